"""The demo city: it is as large and as odd as promised, and the same each time."""

import io
from collections import Counter

import mapbox_vector_tile
import mercantile
import numpy as np
import pytest
from PIL import Image

from vsvi_assets.sandbox import DEMO_BOX, World, demo_world
from vsvi_assets.sandbox.vector_tiles import encode_tile
from vsvi_assets.sandbox.world import EXTENT, StreetImage, grid_cell


@pytest.fixture(scope="module")
def world() -> World:
    return demo_world()


def test_the_city_is_the_same_each_time(world: World) -> None:
    assert demo_world() == world


def test_the_city_has_what_it_promises(world: World) -> None:
    images = list(world.images.values())
    assert 2500 < len(images) < 4000
    assert len({image.sequence_id for image in images}) == 80
    assert 0.15 < np.mean([image.is_pano for image in images]) < 0.3
    assert {image.sequence_id[0] for image in images} >= {"-", "_"}
    assert {len(image.sequence_id) for image in images} == {22}
    assert {image.compass_angle for image in images} >= {0.0, 361.39}
    assert any(image.captured_at == 0 for image in images)
    assert {image.organization_id is None for image in images} == {True, False}
    assert any(len(world.tiles_of(image)) > 1 for image in images)
    cells = Counter(grid_cell(image.lon, image.lat) for image in images)
    assert max(cells.values()) > 3


def test_images_lie_in_the_tiles_of_the_box_but_not_all_in_the_box(world: World) -> None:
    west, south, east, north = DEMO_BOX
    tiles = {(tile.z, tile.x, tile.y) for tile in mercantile.tiles(*DEMO_BOX, zooms=14)}
    inside = [
        west <= image.lon <= east and south <= image.lat <= north for image in world.images.values()
    ]
    assert world.tiles() <= tiles
    assert 0.9 < np.mean(inside) < 1


def test_streets_without_images_leave_gaps(world: World) -> None:
    """Some streets are farther than 100 m from any image."""
    places = np.array([(image.lon, image.lat) for image in world.images.values()])
    nodes = np.array([world.nodes[street.nodes[0]] for street in world.streets.values()])
    metres = (nodes[:, None] - places[None]) * (67_700, 111_200)
    nearest = np.hypot(metres[..., 0], metres[..., 1]).min(axis=1)
    assert 0.02 < np.mean(nearest > 100) < 0.6


def test_tiles_hold_the_images_in_place(world: World) -> None:
    """To within a grid cell, with Mapillary's keys and types."""
    seen = set()
    for tile in world.tiles():
        layers = mapbox_vector_tile.decode(
            encode_tile(tile, world.images_in(tile)), default_options={"y_coord_down": True}
        )
        assert {name: layer["extent"] for name, layer in layers.items()} == {
            "sequence": EXTENT,
            "image": EXTENT,
        }
        bounds = mercantile.xy_bounds(tile[1], tile[2], tile[0])
        for feature in layers["image"]["features"]:
            properties = feature["properties"]
            image = world.images[properties.pop("id")]
            seen.add(image.id)
            x, y = mercantile.xy(image.lon, image.lat)
            column, row = feature["geometry"]["coordinates"]
            assert 0 <= (x - bounds.left) / (bounds.right - bounds.left) * EXTENT - column < 1
            assert 0 <= (bounds.top - y) / (bounds.top - bounds.bottom) * EXTENT - row < 1
            expected = {
                "captured_at": image.captured_at,
                "compass_angle": image.compass_angle,
                "creator_id": image.creator_id,
                "is_pano": image.is_pano,
                "sequence_id": image.sequence_id,
            }
            if image.organization_id is not None:
                expected["organization_id"] = image.organization_id
            assert properties == expected
            assert isinstance(properties["compass_angle"], float)
    assert seen == set(world.images)


@pytest.mark.parametrize("is_pano", [False, True])
def test_pictures_are_jpegs_of_the_size_asked_for(world: World, is_pano: bool) -> None:
    image = next(image for image in world.images.values() if image.is_pano is is_pano)
    proportion = 2 if is_pano else 4 / 3
    for size, width in (("original", image.width), ("1024", 1024), ("256", 256)):
        with Image.open(io.BytesIO(world.picture(image, size))) as picture:
            picture.load()
            assert picture.format == "JPEG"
            assert picture.size == (width, width / proportion)


def test_pictures_are_the_same_each_time_and_differ_from_each_other(world: World) -> None:
    images = list(world.images.values())[:40:10]
    pictures = [world.picture(image, "256") for image in images]
    assert pictures == [world.picture(image, "256") for image in images]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("angle", [0.0, 361.39, -15.0])
def test_any_image_can_be_drawn(world: World, angle: float) -> None:
    """Whatever its angle, place and time are, as recorded images have them."""
    for lon, lat in ((0.0, 0.0), (-179.99, -84.0), (151.2, -33.8)):
        image = StreetImage(1, lon, lat, "s", captured_at=0, compass_angle=angle)
        assert world.picture(image, "256")
