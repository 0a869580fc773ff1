"""Cities that go by the positions and headings that Mapillary corrected."""

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from dagster import AssetKey
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.mapillary.client import IMAGES_PER_REQUEST
from vsvi_assets.sandbox import StreetImage
from vsvi_assets.sandbox.world import grid_cell
from vsvi_assets.views.plan import plan_lines
from vsvi_assets_tests.project import Project

NORTHWARD = 4e-5
"""Degrees, 4.4 m, by which the corrected positions differ."""


@pytest.fixture
def corrected(project: Project) -> Project:
    """All images but those of the first sequence are corrected: 4.4 m northward, 180 not 90."""
    world = project.sandbox.world
    world.add_images(
        replace(
            image,
            computed_lat=image.lat + NORTHWARD,
            computed_compass_angle=180.0,
            is_reconstructed=not image.sequence_id.startswith("sequence-0000"),
        )
        for image in list(world.images.values())
    )
    return project


def positions(project: Project, city: City) -> dict[int, tuple[float, float]]:
    with project.postgis.transaction() as cursor:
        table = sql.Identifier(city.name, "images")
        cursor.execute(sql.SQL("SELECT id, ST_X(geometry), ST_Y(geometry) FROM {}").format(table))
        return {id_: (lon, lat) for id_, lon, lat in cursor.fetchall()}


def is_at(found: tuple[float, float], lon: float, lat: float) -> bool:
    """Whether a position is in the grid cell of another, or beside it."""
    return bool(np.abs(np.subtract(grid_cell(*found), grid_cell(lon, lat))).max() <= 1)


def changes_tile(project: Project, image: StreetImage) -> bool:
    world = project.sandbox.world
    return world.tiles_of(image) != world.tiles_of(image.corrected())


def test_images_stand_where_they_were_corrected_to(corrected: Project) -> None:
    city = corrected.write_city(positions="computed")
    run = corrected.run_city(city)
    assert run.success, run.failures
    images = corrected.sandbox.world.images
    found = positions(corrected, city)
    uncorrected = {
        id_
        for id_ in found
        if not images[id_].is_reconstructed or changes_tile(corrected, images[id_])
    }
    assert 10 <= len(uncorrected) < len(found) / 2
    for id_, position in found.items():
        image = images[id_] if id_ in uncorrected else images[id_].corrected()
        assert is_at(position, image.lon, image.lat), id_
    assert counted(corrected, city, "images without a corrected position") == len(uncorrected)


def counted(project: Project, city: City, what: str) -> object:
    event = project.instance.get_latest_materialization_event(
        AssetKey([city.name, "postgis_tables"])
    )
    assert event
    assert event.asset_materialization
    return event.asset_materialization.metadata[what].value


def test_both_tile_sets_are_asked_for_once(corrected: Project) -> None:
    """Tiles lie beside those of cities that take the cameras' positions, and count twice."""
    own = corrected.write_city("own", tile_cache_dir="tiles")
    city = corrected.write_city("city", tile_cache_dir="tiles", positions="computed")
    asked = corrected.sandbox.stats.requests
    assert corrected.materialize_metadata(own).success
    assert asked["tiles"] == own.tile_requests == len(own.tiles)
    before = {path: path.read_bytes() for path in own.tiles_folder.iterdir()}

    assert corrected.materialize_metadata(city).success
    assert asked["tiles"] == own.tile_requests + city.tile_requests
    assert city.tile_requests == 2 * len(city.tiles)
    assert corrected.materialize_metadata(city).success
    assert asked["tiles"] == own.tile_requests + city.tile_requests
    assert {path: path.read_bytes() for path in before} == before
    names = {path.name for path in city.tiles_folder.iterdir()}
    assert {f"mly1_computed_public_{tile.x}_{tile.y}_14" for tile in city.tiles} < names

    assert positions(corrected, own).keys() == positions(corrected, city).keys()
    assert positions(corrected, own) != positions(corrected, city)
    assert all(
        is_at(position, image.lon, image.lat)
        for id_, position in positions(corrected, own).items()
        if (image := corrected.sandbox.world.images[id_])
    )


def test_a_tile_file_keeps_the_cameras_own_positions(corrected: Project) -> None:
    city = corrected.write_city(positions="computed")
    assert corrected.materialize_metadata(city).success
    images = corrected.sandbox.world.images
    for key in city.tile_keys:
        tile = orjson.loads(city.tile_path(key).read_bytes())
        kept = [feature["properties"] for feature in tile["features"]]
        with_both = [each for each in kept if "original_lon" in each]
        assert len(kept) - len(with_both) == tile.get("uncorrected", 0)
        for each in with_both:
            image = images[each["id"]]
            assert is_at((each["original_lon"], each["original_lat"]), image.lon, image.lat)


def test_a_key_that_is_added_later_moves_the_images(corrected: Project) -> None:
    city = corrected.write_city()
    assert corrected.run_city(city).success
    before = positions(corrected, city)
    city = corrected.write_city(positions="computed")
    assert corrected.run_city(city).success
    after = positions(corrected, city)
    moved = sum(before[id_] != after[id_] for id_ in before.keys() & after.keys())
    assert moved > len(before) / 2


def column(project: Project, city: City, table: str, *names: str) -> list[tuple[Any, ...]]:
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    query = sql.SQL("SELECT {} FROM {}").format(columns, sql.Identifier(city.name, table))
    return list(project.postgis.stream(query))


def test_images_look_where_they_were_corrected_to(corrected: Project) -> None:
    """By the cameras all images look along the rows of streets, by Mapillary nearly none."""
    stats = corrected.sandbox.stats
    own = corrected.write_city("own", tile_cache_dir="tiles", facing="along", panorama="exclude")
    assert corrected.materialize_metadata(own).success
    assert not stats.requests["graph"]
    assert {angle for (angle,) in column(corrected, own, "images", "compass_angle")} == {90}

    city = corrected.write_city(
        "city", tile_cache_dir="tiles", facing="across", panorama="exclude", heading="computed"
    )
    assert corrected.materialize_metadata(city).success
    images = corrected.sandbox.world.images
    for id_, angle in column(corrected, city, "images", "id", "compass_angle"):
        assert angle == (180 if images[id_].is_reconstructed else 90)
    chosen = {id_ for (id_,) in column(corrected, city, "selected_images", "image_id")}
    along = {id_ for (id_,) in column(corrected, own, "selected_images", "image_id")}
    assert chosen
    assert chosen != along
    for id_, angle in column(corrected, city, "selected_images", "image_id", "angle"):
        assert angle == pytest.approx(90, abs=30), id_
    uncorrected = [image for image in images.values() if not image.is_reconstructed]
    assert counted(corrected, city, "images without a corrected heading") == len(uncorrected)

    assert set(stats.graph_ids_asked.values()) == {1}
    asked = dict(stats.requests)
    assert corrected.materialize_metadata(city).success
    assert stats.requests == asked
    tile = orjson.loads(city.tile_path(city.tile_keys[0]).read_bytes())
    kept = [feature["properties"] for feature in tile["features"]]
    assert all(
        each.get("original_compass_angle") == (90 if images[each["id"]].is_reconstructed else None)
        for each in kept
    )


def test_a_plan_counts_the_requests_for_headings_and_the_images_without(
    corrected: Project,
) -> None:
    images = corrected.sandbox.world.images
    city = corrected.write_city(positions="computed", heading="computed")
    assert corrected.materialize_metadata(city).success
    asked = corrected.sandbox.stats.requests["graph"]
    run = corrected.run_city(city, plan_only=True)
    assert run.success, run.failures
    assert run.plan
    found = run.plan.corrections
    assert found
    assert found.heading_requests == asked >= len(images) / IMAGES_PER_REQUEST
    uncorrected = sum(not image.is_reconstructed for image in images.values())
    assert found.images == len(images)
    assert found.without_heading == uncorrected
    assert found.without_position == counted(corrected, city, "images without a corrected position")
    lines = "\n".join(plan_lines(city, run.plan))
    assert f"{uncorrected:,} of {len(images):,} images in the tiles have no corrected head" in lines
    assert f"of a refresh: {asked} requests take seconds at 4,500 per minute" in lines

    own = corrected.write_city(tile_cache_dir="tiles")
    plan = corrected.run_city(own, plan_only=True).plan
    assert plan
    assert plan.corrections is None
    assert "headings" not in "\n".join(plan_lines(own, plan))


def test_an_image_that_the_graph_cannot_answer_keeps_its_own_heading(corrected: Project) -> None:
    images = corrected.sandbox.world.images
    failing, gone = frozenset(sorted(images)[-2:]), frozenset(sorted(images)[-4:-2])
    corrected.sandbox.faults.failing_ids = failing
    corrected.sandbox.faults.gone_ids = gone
    city = corrected.write_city(heading="computed", positions="computed", num_retries=1)
    assert corrected.materialize_metadata(city).success
    angles = dict(column(corrected, city, "images", "id", "compass_angle"))
    assert {angles[id_] for id_ in failing | gone} == {90}
    uncorrected = sum(not image.is_reconstructed for image in images.values())
    found = counted(corrected, city, "images without a corrected heading")
    assert found == uncorrected + len(failing | gone)
    assert city.tile_path(city.tile_keys[0]).name.startswith("mly1_computed_public_computed_head")


def test_a_graph_that_knows_no_image_fails_the_tile(corrected: Project) -> None:
    """It is no answer about headings, and not to be kept for one."""
    world = corrected.sandbox.world
    corrected.sandbox.faults.gone_ids = frozenset(world.images)
    city = corrected.write_city(heading="computed", num_retries=0)
    result = corrected.materialize(
        city,
        "tile_metadata",
        partitions=(city.tile_keys[0], city.tile_keys[-1]),
        raise_on_error=False,
    )
    assert not result.success
    sizes = {key: len(world.images_in(tile_of(key))) for key in city.tile_keys}
    assert max(sizes.values()) > IMAGES_PER_REQUEST
    for key, images in sizes.items():
        assert city.tile_path(key).exists() == (images <= IMAGES_PER_REQUEST)


def tile_of(key: str) -> tuple[int, int, int]:
    z, x, y = map(int, key.split("/"))
    return z, x, y
