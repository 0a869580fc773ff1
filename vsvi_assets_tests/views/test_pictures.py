"""The pictures: whole, small, quickly drawn, on a background of their own, and right."""

import base64
import io
import time
from collections.abc import Callable
from pathlib import Path

import mercantile
import numpy as np
import pytest
import shapely
from PIL import Image

from vsvi_assets.city import Area, BoundingBox
from vsvi_assets.database.summaries import image_density, selected_capture_years
from vsvi_assets.views import pictures as maps
from vsvi_assets_tests.project import Project

BOX = BoundingBox(west=5.0, south=52.45, east=5.16, north=52.53)
AREA = Area(BOX)
POINTS = 79_000
SECONDS = 10
"""Far more than a picture takes, and far less than it would with a path for each point."""


def opened(picture: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(picture))
    image.load()
    return image


def count_pixels(picture: bytes, colour: str) -> int:
    """Count the pixels of about a colour, given as #rrggbb."""
    pixels = np.asarray(opened(picture).convert("RGB")).astype(int)
    return int((abs(pixels - list(bytes.fromhex(colour[1:]))).max(axis=2) < 16).sum())


def positions(count: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(0)
    return (
        numbers.uniform(BOX.west, BOX.east, count),
        numbers.uniform(BOX.south, BOX.north, count),
    )


def streets(count: int) -> np.ndarray:
    begin = np.column_stack(positions(count))
    return shapely.linestrings(np.stack([begin, begin + 0.001], axis=1))


def draw_points() -> bytes:
    return maps.street_points_map(streets(POINTS), *positions(POINTS), AREA)


def draw_selection() -> bytes:
    distance = np.random.default_rng(0).uniform(0, 120, POINTS)
    distance[distance > 100] = np.nan
    return maps.selection_map(*positions(POINTS), distance, AREA, 100)


def draw_density() -> bytes:
    return maps.density_map(np.random.default_rng(0).poisson(40, (140, 160)), AREA)


def draw_tiles() -> bytes:
    tiles = mercantile.tiles(4, 51, 7, 52.5, 14)
    return maps.tiles_map({tile: tile.x % 7 * tile.y % 1000 for tile in tiles}, AREA)


@pytest.mark.parametrize("draw", [draw_points, draw_selection, draw_density, draw_tiles])
def test_pictures_of_large_cities_are_small_and_opaque(draw: Callable[[], bytes]) -> None:
    began = time.monotonic()
    picture = draw()
    assert time.monotonic() - began < SECONDS
    assert len(picture) < 400_000
    pixels = np.asarray(opened(picture).convert("RGBA"))
    assert (pixels[..., 3] == 255).all()
    assert pixels[2, 2].tolist() == [255, 255, 255, 255]


NARROW_BOXES = {
    "tall": BoundingBox(west=8.4, south=47, east=8.4001, north=48),
    "flat": BoundingBox(west=8, south=47, east=9, north=47.0001),
    "tiny": BoundingBox(west=8.4, south=47, east=8.4001, north=47.0001),
    "in the far north": BoundingBox(west=8.4, south=84.9, east=8.5, north=85.05),
}


@pytest.mark.parametrize("box", NARROW_BOXES.values(), ids=NARROW_BOXES)
def test_boxes_of_every_shape_can_be_drawn(box: BoundingBox) -> None:
    lon, lat = np.linspace(box.west, box.east, 12), np.linspace(box.south, box.north, 12)
    lines = shapely.linestrings([np.column_stack([lon, lat])])
    tiles, area = list(mercantile.tiles(*box.bounds, 14)), Area(box)
    for picture in (
        maps.street_points_map(lines, lon, lat, area),
        maps.selection_map(lon, lat, np.arange(12.0), area, 100),
        maps.density_map(np.ones((160, 1), int), area),
        maps.tiles_map(dict.fromkeys(tiles, 3), area),
    ):
        assert 100 < opened(picture).height < 2000


@pytest.mark.parametrize("box", NARROW_BOXES.values(), ids=NARROW_BOXES)
def test_the_density_grid_of_every_box_is_bounded(project: Project, box: BoundingBox) -> None:
    city = project.write_city(bounding_box=box.model_dump(), srid=None)
    with project.postgis.transaction() as cursor:
        cursor.execute("CREATE SCHEMA town")
        cursor.execute(
            "CREATE TABLE town.images AS SELECT ST_SetSRID(ST_MakePoint("
            "%(west)s + share * (%(east)s - %(west)s),"
            "%(south)s + share * (%(north)s - %(south)s)), 4326) AS geometry "
            "FROM generate_series(0, 1, 0.01) AS share",
            box.model_dump(),
        )
    density = image_density(project.postgis, city)
    assert density.sum() == 101
    assert max(density.shape) == 160
    assert np.count_nonzero(density) > 50


def test_points_without_an_image_have_a_colour_of_their_own() -> None:
    lon, lat = positions(20)
    distance = np.full(20, 12.0)
    covered = maps.selection_map(lon, lat, distance, AREA, 100)
    distance[3] = np.nan
    partly = maps.selection_map(lon, lat, distance, AREA, 100)
    assert count_pixels(partly, maps.UNCOVERED) > count_pixels(covered, maps.UNCOVERED)
    assert count_pixels(partly, maps.COVERED) > 10 * count_pixels(partly, maps.UNCOVERED) > 0


def test_a_city_without_anything_can_be_drawn() -> None:
    nothing = np.empty(0)
    opened(maps.selection_map(nothing, nothing, nothing, AREA, 100))
    opened(maps.density_map(np.zeros((3, 3), int), AREA))
    opened(maps.tiles_map({mercantile.Tile(8428, 5372, 14): 0}, AREA))
    opened(maps.contact_sheet([]))


def test_a_contact_sheet_shows_each_photograph(tmp_path: Path) -> None:
    paths = []
    for number, colour in enumerate(("red", "lime", "blue", "red", "red", "red", "red")):
        paths.append(tmp_path / f"{number}.jpg")
        Image.new("RGB", (4000, 2000), colour).save(paths[-1])
    paths[1].write_bytes(b"no photograph")
    sheet = opened(maps.contact_sheet(paths))
    assert sheet.format == "JPEG"
    width, height = maps.THUMBNAIL
    assert sheet.getpixel((width // 2, height // 2))[0] > 200  # type: ignore[index]
    assert sheet.getpixel((3 * width // 2, height // 2)) == (255, 255, 255)
    assert sheet.getpixel((5 * width // 2, height // 2))[2] > 200  # type: ignore[index]


def test_markdown_holds_the_whole_picture() -> None:
    picture = maps.capture_years_chart({2019: 3}, {2020: 1}, 7)
    text = maps.markdown_picture(picture, "capture years")
    start = "![capture years](data:image/png;base64,"
    assert text.startswith(start)
    assert base64.b64decode(text.removeprefix(start).removesuffix(")")) == picture


def test_counts_of_the_tables_are_those_of_the_world(project: Project) -> None:
    city = project.write_city(selection="all")
    project.materialize_metadata(city)
    images = project.sandbox.world.images.values()
    density = image_density(project.postgis, city)
    assert density.sum() == len(images)
    northern = sum(image.lat > 52.525 for image in images)
    assert density[density.shape[0] // 2 :].sum() == pytest.approx(northern, abs=2)
    years = selected_capture_years(project.postgis, city)
    assert sum(years.flat.values()) == sum(not image.is_pano for image in images)
    assert sum(years.panoramas.values()) == sum(image.is_pano for image in images)
    assert min(years.flat) == 2017
    assert years.unknown == 0


@pytest.mark.parametrize("asset", ["street_points", "selected_image_ids"])
def test_asset_pages_show_a_map(project: Project, asset: str) -> None:
    city = project.write_city()
    result = project.materialize_metadata(city)
    [event] = result.asset_materializations_for_node(f"town__{asset}")
    picture = str(event.metadata["map"].value)
    assert picture.count("data:image/png") == 1
