"""Each asset check: silent on sound data, and loud on data broken on purpose."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster import AssetCheckEvaluation, AssetCheckSeverity, AssetKey, TableMetadataValue
from PIL import Image
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.orchestration.checks import build_city_checks
from vsvi_assets_tests.project import Project

WARNINGS = {
    "tile_metadata/recent",
    "tile_metadata/unique_ids",
    "tile_metadata/usable",
    "selected_image_ids/listed_ids",
    "coverage_report/answered",
    "coverage_report/usable",
    "postgis_tables/compass_angles",
    "postgis_tables/capture_times",
    "selected_image_ids/recent",
    "selected_image_ids/points_with_image",
}


def evaluations(project: Project, city: City, asset: str) -> dict[str, AssetCheckEvaluation]:
    """Run the checks of one asset and return their results by name.

    The checks of `tile_metadata` and `coverage_report` are part of these assets, which look at
    what is there.
    """
    job = project.defs().resolve_implicit_global_asset_job_def()
    if asset == "tile_metadata":
        result = project.materialize(city, asset, partitions=city.tile_keys)
    elif asset == "coverage_report":
        result = project.materialize(city, asset)
    else:
        keys = {
            key
            for checks in build_city_checks(city)
            for key in checks.check_keys
            if key.asset_key == AssetKey([city.name, asset])
        }
        subset = job.get_subset(asset_selection=set(), asset_check_selection=keys)
        result = subset.execute_in_process(instance=project.instance)
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def broken(project: Project, city: City, asset: str) -> set[str]:
    """Return the checks of an asset that do not pass; severities are as they should be."""
    found = evaluations(project, city, asset)
    for name, evaluation in found.items():
        is_warning = f"{asset}/{name}" in WARNINGS
        assert evaluation.severity == AssetCheckSeverity["WARN" if is_warning else "ERROR"]
        assert evaluation.passed or "the first of them" in evaluation.metadata
    return {name for name, evaluation in found.items() if not evaluation.passed}


@contextmanager
def edited(path: Path, edit: Callable[[str], str]) -> Iterator[None]:
    """Change the text of a file for a while."""
    before = path.read_text()
    path.write_text(edit(before))
    yield
    path.write_text(before)


def edit_features(edit: Callable[[list[dict]], None]) -> Callable[[str], str]:
    """Return the edit of a GeoJSON text that `edit` makes to its list of features."""

    def change(text: str) -> str:
        collection = json.loads(text)
        edit(collection["features"])
        return json.dumps(collection)

    return change


def execute(project: Project, *statements: str) -> None:
    with project.postgis.transaction() as cursor:
        for statement in statements:
            cursor.execute(sql.SQL(statement).format(a_point=A_POINT))


@pytest.fixture
def city(project: Project) -> City:
    """A city with everything but photographs."""
    city = project.write_city(max_distance=100)
    assert project.materialize_metadata(city).success
    return city


def test_sound_data_pass_in_the_run_that_makes_them(project: Project) -> None:
    city = project.write_city(max_distance=100)
    found = [
        *project.materialize_metadata(city).get_asset_check_evaluations(),
        *project.materialize_images(city).get_asset_check_evaluations(),
        *project.materialize(city, "coverage_report").get_asset_check_evaluations(),
    ]
    assert {f"{found.asset_key.path[-1]}/{found.check_name}" for found in found} == {
        "street_points/in_the_box",
        "street_points/spacing",
        "tile_metadata/inside_their_tile",
        "tile_metadata/unique_ids",
        "tile_metadata/usable",
        "tile_metadata/recent",
        "postgis_tables/geometries",
        "postgis_tables/compass_angles",
        "postgis_tables/capture_times",
        "selected_image_ids/in_the_tables",
        "selected_image_ids/ids_file",
        "selected_image_ids/recent",
        "selected_image_ids/points_with_image",
        "selected_image_ids/distances",
        "coverage_report/on_disk",
        "coverage_report/answered",
        "coverage_report/usable",
    }
    assert [found.check_name for found in found if not found.passed] == []


def test_street_points(project: Project, city: City) -> None:
    def move_out(features: list[dict]) -> None:
        features[0]["geometry"]["coordinates"] = [5.2, 52.5]

    def crowd(features: list[dict]) -> None:
        lon, lat = features[0]["geometry"]["coordinates"]
        features[1]["geometry"]["coordinates"] = [lon, lat + 24 / 111_200]

    for edit, name in ((move_out, "in_the_box"), (crowd, "spacing")):
        with edited(city.street_points_path, edit_features(edit)):
            assert broken(project, city, "street_points") == {name}
    assert not broken(project, city, "street_points")


def test_tiles(project: Project, city: City) -> None:
    def move_out(features: list[dict]) -> None:
        features[0]["geometry"]["coordinates"][1] += 0.02

    def repeat(features: list[dict]) -> None:
        features.append(features[0])

    def spoil(features: list[dict]) -> None:
        features[0]["properties"]["compass_angle"] = "north"

    path = city.tile_path(city.tile_keys[0])
    faults = ((move_out, "inside_their_tile"), (repeat, "unique_ids"), (spoil, "usable"))
    for edit, name in faults:
        with edited(path, edit_features(edit)):
            assert broken(project, city, "tile_metadata") == {name}
            found = evaluations(project, city, "tile_metadata")[name]
            first = found.metadata["the first of them"]
            assert isinstance(first, TableMetadataValue)
            assert first.records[0].data["tile"] == city.tile_keys[0]


TABLE_FAULTS = [
    ("geometries", "UPDATE town.images SET geometry = ST_Translate(geometry, 1, 0)"),
    ("geometries", "UPDATE town.street_points SET geometry = ST_Translate(geometry, 1, 0)"),
    ("compass_angles", "UPDATE town.images SET compass_angle = 361.39 WHERE id = 1000000"),
    ("compass_angles", "UPDATE town.images SET compass_angle = -1 WHERE id = 1000000"),
    ("capture_times", "UPDATE town.images SET captured_at = NULL WHERE id = 1000000"),
]


def test_tables(project: Project, city: City) -> None:
    for name, statement in TABLE_FAULTS:
        execute(project, statement)
        assert broken(project, city, "postgis_tables") == {name}
        project.materialize(city, "postgis_tables")


A_POINT = sql.SQL("(SELECT min(street_point_id) FROM town.selected_images)")
SELECTION_FAULTS = [
    ("in_the_tables", "UPDATE town.selected_images SET street_point_id = 1 "
                      "WHERE street_point_id = {a_point}"),
    ("in_the_tables", "UPDATE town.selected_images SET sequence_id = 'other' "
                      "WHERE street_point_id = {a_point}"),
    ("distances", "UPDATE town.selected_images SET distance = distance + 1 "
                  "WHERE street_point_id = {a_point}"),
    ("recent", "UPDATE town.images SET captured_at = 1000000000000"),
    ("points_with_image", "DELETE FROM town.selected_images AS selected WHERE EXISTS (SELECT FROM "
                          "town.selected_images AS other WHERE other.image_id = selected.image_id "
                          "AND other.street_point_id < selected.street_point_id)"),
]  # fmt: skip


def test_selection(project: Project, city: City) -> None:
    for name, statement in SELECTION_FAULTS:
        execute(project, statement)
        assert broken(project, city, "selected_image_ids") == {name}
        project.materialize(city, "postgis_tables", "selected_image_ids")
    for edit in (lambda text: text + "7\n", lambda text: text.partition("\n")[2]):
        with edited(city.selected_image_ids_path, edit):
            assert broken(project, city, "selected_image_ids") == {"ids_file"}


def test_a_selection_farther_than_max_distance(project: Project, city: City) -> None:
    nearer = project.write_city(max_distance=5)
    assert broken(project, nearer, "selected_image_ids") == {"distances"}


def test_a_selection_of_all_images_has_no_distances(project: Project) -> None:
    city = project.write_city(selection="all")
    found = project.materialize_metadata(city).get_asset_check_evaluations()
    names = {found.check_name for found in found if found.asset_key.path[-1].startswith("sel")}
    assert names == {"in_the_tables", "ids_file", "recent", "points_with_image"}
    assert all(found.passed for found in found)


def test_listed_ids_that_are_not_in_the_tables(project: Project) -> None:
    ids = project.folder / "ids.txt"
    ids.write_text("1000000\n4712\n1000001\n4711\n4711\n")
    city = project.write_city(imgid_file=str(ids))
    project.materialize_metadata(city)
    assert broken(project, city, "selected_image_ids") == {"listed_ids", "points_with_image"}
    found = evaluations(project, city, "selected_image_ids")["listed_ids"]
    assert (found.metadata["wrong"].value, found.metadata["of"].value) == (2, 4)
    assert found.metadata["all of them"].value == str(city.absent_image_ids_path)
    assert city.absent_image_ids_path.read_text() == "4711\n4712\n"

    ids.write_text("1000000\n")
    project.materialize(city, "selected_image_ids")
    assert broken(project, city, "selected_image_ids") == {"points_with_image"}
    assert city.absent_image_ids_path.read_text() == ""


def test_photographs(project: Project, city: City) -> None:
    assert not broken(project, city, "coverage_report")  # nothing is downloaded
    assert project.materialize_images(city).success
    path = next(city.sequences_folder.glob("*/*.jpg"))
    content = path.read_bytes()

    path.unlink()
    assert broken(project, city, "coverage_report") == {"on_disk"}
    path.write_bytes(content[:-1])
    assert broken(project, city, "coverage_report") == {"on_disk"}
    path.write_bytes(content)
    assert not broken(project, city, "coverage_report")


def test_images_that_cannot_be_fetched_are_listed_and_not_missing(
    project: Project, city: City
) -> None:
    gone, odd, *_ = map(int, city.selected_image_ids_path.read_text().split())
    world = project.sandbox.world
    del world.images[gone]
    draw, png = world.picture, io.BytesIO()
    Image.new("RGB", (64, 48)).save(png, "PNG")
    world.picture = lambda image, size: png.getvalue() if image.id == odd else draw(image, size)
    assert project.materialize_images(city).success

    assert broken(project, city, "coverage_report") == {"answered", "usable"}
    found = evaluations(project, city, "coverage_report")
    assert found["on_disk"].metadata["missing"].value == 0
    for name, image_id in (("answered", gone), ("usable", odd)):
        assert found[name].metadata["wrong"].value == 1
        first = found[name].metadata["the first of them"]
        assert isinstance(first, TableMetadataValue)
        assert first.records[0].data["image"] == str(image_id)


def test_the_checks_of_some_tiles_read_no_others(project: Project, city: City) -> None:
    first, second, *_ = city.tile_keys
    city.tile_path(second).write_text("broken since")
    tiles = project.materialize(city, "tile_metadata", partitions=[first])
    assert tiles.success
    found = {found.check_name: found for found in tiles.get_asset_check_evaluations()}
    assert found["inside_their_tile"].metadata["tiles"].value == 1
