"""Each asset by itself: what it adopts, what it refuses, and what stays when it breaks off."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, ExecuteInProcessResult

from vsvi_assets.city import City, parse_tile_key
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.mapillary.tile_files import read_tile
from vsvi_assets.orchestration.retries import reason
from vsvi_assets.photographs.sidecar import SIDECAR_NAME, image_path, read_sidecar
from vsvi_assets.sandbox import Fault, Faults
from vsvi_assets_tests.project import BOX, METADATA_ASSETS, Project

WIDE_BOX = BOX | {"east": BOX["east"] + 0.05}
"""A box of which the western tiles alone hold images."""


def materialized(project: Project, city: City, name: str) -> set[str]:
    return project.instance.get_materialized_partitions(AssetKey([city.name, name]))


def was_retried(result: ExecuteInProcessResult) -> bool:
    return any(event.event_type_value == "STEP_UP_FOR_RETRY" for event in result.all_events)


def metadata(result: ExecuteInProcessResult, city: City, name: str) -> dict[str | None, Any]:
    """Return the metadata of an asset's materializations in a run, by partition."""
    node = AssetKey([city.name, name]).to_python_identifier()
    return {
        event.partition: {label: value.value for label, value in event.metadata.items()}
        for event in result.asset_materializations_for_node(node)
    }


def the_failure(result: ExecuteInProcessResult) -> str:
    """Return why the one step failed that did."""
    [failure] = (event for event in result.all_events if event.is_step_failure)
    return reason(failure)


# Tile metadata


def test_tiles_are_fetched_one_partition_or_a_range_at_a_time(project: Project) -> None:
    city = project.write_city(bounding_box=WIDE_BOX)
    first, *middle, last = city.tile_keys
    project.materialize(city, "tile_metadata", partitions=[middle[0]])
    assert materialized(project, city, "tile_metadata") == {middle[0]}
    assert [path.name for path in city.tiles_folder.iterdir()] == [city.tile_path(middle[0]).name]

    result = project.materialize(city, "tile_metadata", partitions=[first, last])

    assert materialized(project, city, "tile_metadata") == set(city.tile_keys)
    assert set(project.sandbox.stats.tiles_asked.values()) == {1}
    reported = metadata(result, city, "tile_metadata")
    assert {key: reported[key]["fetched"] for key in reported} == {
        key: key != middle[0] for key in city.tile_keys
    }
    world = project.sandbox.world
    for key in city.tile_keys:
        tile = parse_tile_key(key)
        ids = {image.id for image in world.images_in((tile.z, tile.x, tile.y))}
        assert set(read_tile(city.tile_path(key), city.services).images["id"].to_pylist()) == ids
        assert reported[key]["images"] == len(ids)
    assert 0 in {reported[key]["images"] for key in reported}, (
        "a tile without images is one all the same"
    )


def test_overwriting_fetches_tiles_anew(project: Project) -> None:
    city = project.write_city()
    for overwrite in (False, False, True):
        project.materialize(city, "tile_metadata", partitions=city.tile_keys, overwrite=overwrite)
    assert set(project.sandbox.stats.tiles_asked.values()) == {2}


def test_overwriting_fetches_each_tile_once_over_all_attempts(project: Project) -> None:
    city = project.write_city(num_retries=0)
    project.materialize(city, "tile_metadata", partitions=city.tile_keys)
    bad, *others = city.tile_keys
    project.sandbox.faults = Faults(by_tile={bad: Fault.SERVER_ERROR}, most=1)
    result = project.materialize(
        city, "tile_metadata", partitions=city.tile_keys, overwrite=True, raise_on_error=False
    )
    assert was_retried(result)
    asked = project.sandbox.stats.tiles_asked
    assert {asked[key] for key in others} == {2}


def test_while_the_address_is_blocked_old_tiles_serve_with_a_warning(project: Project) -> None:
    city = project.write_city(num_retries=0)
    first, *others = city.tile_keys
    project.materialize(city, "tile_metadata", partitions=[others[0], others[-1]])
    project.sandbox.faults = Faults(tiles={Fault.BLOCKED: 1.0})

    def overwrite(*keys: str) -> ExecuteInProcessResult:
        return project.materialize(
            city, "tile_metadata", partitions=keys, overwrite=True, raise_on_error=False
        )

    result = overwrite(others[0], others[-1])
    assert result.success
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert not checks["recent"].passed
    assert checks["recent"].metadata["wrong"].value == len(others)
    asked = project.sandbox.stats.requests["tiles"]

    result = overwrite(first, others[-1])
    assert "blocked" in the_failure(result)
    assert not was_retried(result)
    assert project.sandbox.stats.requests["tiles"] == asked, "no request into a block"
    assert materialized(project, city, "tile_metadata") == set(others)


def test_tiles_of_other_services_are_never_overwritten(project: Project) -> None:
    city = project.write_city()
    project.materialize(city, "tile_metadata", partitions=city.tile_keys)
    path = city.tile_path(city.tile_keys[0])
    before = path.read_bytes()
    other = project.write_city(services="sandbox")
    result = project.materialize(
        other,
        "tile_metadata",
        partitions=city.tile_keys,
        overwrite=True,
        raise_on_error=False,
    )
    assert "services" in the_failure(result)
    assert not was_retried(result)
    assert path.read_bytes() == before


def reference_tile(ids: list[int]) -> str:
    """Return a tile file as percept-vsvi-filter writes it."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [5.206 + number / 1e4, 52.524]},
            "properties": {
                "captured_at": 1_600_000_000_000,
                "compass_angle": 361.39,
                "id": id,
                "is_pano": False,
                "sequence_id": "-of_another_tool",
            },
            "id": number,
        }
        for number, id in enumerate(ids)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, indent=4)


def test_a_tile_cache_of_percept_vsvi_filter_is_adopted_as_it_is(project: Project) -> None:
    city = project.write_city(tile_cache_dir="ams-tiles")
    city.tiles_folder.mkdir(parents=True)
    texts = [reference_tile([7, 8]), *[reference_tile([])] * (len(city.tile_keys) - 1)]
    for key, text in zip(city.tile_keys, texts, strict=True):
        city.tile_path(key).write_text(text)

    project.materialize_metadata(city)

    assert not project.sandbox.stats.tiles_asked
    assert [city.tile_path(key).read_text() for key in city.tile_keys] == texts
    assert materialized(project, city, "tile_metadata") == set(city.tile_keys)
    assert project.sequences(city) == ["-of_another_tool"]


@pytest.mark.parametrize("content", ["", reference_tile([7, 8])[:-40], "<html>busy</html>"])
def test_a_broken_file_in_the_tile_cache_is_fetched_anew(project: Project, content: str) -> None:
    city = project.write_city()
    city.tiles_folder.mkdir(parents=True)
    city.tile_path(city.tile_keys[0]).write_text(content)
    project.materialize(city, "tile_metadata", partitions=city.tile_keys)
    assert project.sandbox.stats.tiles_asked[city.tile_keys[0]] == 1
    assert len(read_tile(city.tile_path(city.tile_keys[0]), city.services))


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.SERVER_ERROR])
def test_an_error_page_never_becomes_an_empty_tile(project: Project, fault: Fault) -> None:
    city = project.write_city(num_retries=1)
    project.sandbox.faults = Faults(tiles={fault: 1.0}, most=2)
    project.materialize(city, "tile_metadata", partitions=city.tile_keys)
    assert project.sandbox.stats.faults["tiles"][fault] == 2 * len(city.tile_keys)
    for key in city.tile_keys:
        assert len(read_tile(city.tile_path(key), city.services))


def test_one_tile_that_cannot_be_fetched_leaves_the_others_recorded(project: Project) -> None:
    city = project.write_city(bounding_box=WIDE_BOX, num_retries=0)
    bad = parse_tile_key(city.tile_keys[2])
    recorded = project.sandbox.world.recorded_tiles
    recorded[(bad.z, bad.x, bad.y)] = b"no tile"

    result = project.materialize(
        city, "tile_metadata", partitions=city.tile_keys, raise_on_error=False
    )

    assert f"tile {city.tile_keys[2]}" in the_failure(result)
    assert was_retried(result)
    others = set(city.tile_keys) - {city.tile_keys[2]}
    assert materialized(project, city, "tile_metadata") == others
    assert not city.tile_path(city.tile_keys[2]).exists()
    assert {project.sandbox.stats.tiles_asked[key] for key in others} == {1}

    tables = project.materialize(city, "street_points", "postgis_tables", raise_on_error=False)
    assert f"1 of {len(city.tile_keys)} are not on disk" in the_failure(tables)
    assert city.tile_keys[2] in the_failure(tables)

    recorded.clear()
    project.materialize(city, "tile_metadata", partitions=city.tile_keys)
    assert {project.sandbox.stats.tiles_asked[key] for key in others} == {1}
    assert materialized(project, city, "tile_metadata") == set(city.tile_keys)


# Tables and selection


def test_tables_and_selection_follow_from_what_is_on_disk(project: Project) -> None:
    city = project.write_city()
    project.materialize(city, "street_points")
    project.materialize(city, "tile_metadata", partitions=city.tile_keys)
    asked = project.sandbox.stats.requests.copy()

    tables = project.materialize(city, "postgis_tables")
    selection = project.materialize(city, "selected_image_ids")

    assert project.sandbox.stats.requests == asked
    assert metadata(tables, city, "postgis_tables")[None]["rows in town.images"] == 120
    reported = metadata(selection, city, "selected_image_ids")[None]
    ids = city.selected_image_ids_path.read_text().split()
    assert reported["images"] == len(ids) == len(set(ids))
    assert ids == sorted(ids, key=int)
    assert reported["sequences"] == len(project.sequences(city)) > 5
    with project.postgis.transaction() as cursor:
        cursor.execute("SELECT DISTINCT sequence_id FROM town.selected_images")
        assert {sequence for (sequence,) in cursor.fetchall()} == set(project.sequences(city))


def test_a_selection_that_fails_changes_neither_file_nor_partitions(project: Project) -> None:
    city = project.write_city()
    project.materialize_metadata(city)
    sequences, ids = project.sequences(city), city.selected_image_ids_path.read_text()

    with project.postgis.transaction() as cursor:
        cursor.execute("DROP TABLE town.images")
    result = project.materialize(city, "selected_image_ids", raise_on_error=False)

    assert "images" in the_failure(result)
    assert not was_retried(result)
    assert (project.sequences(city), city.selected_image_ids_path.read_text()) == (sequences, ids)


def test_an_empty_list_of_ids_selects_and_downloads_nothing(project: Project) -> None:
    (project.folder / "ids.txt").write_text("")
    city = project.write_city(imgid_file=str(project.folder / "ids.txt"))
    project.materialize_metadata(city)
    assert project.sequences(city) == []
    assert city.selected_image_ids_path.read_text() == ""


# Photographs


@pytest.fixture
def city(project: Project) -> City:
    """A city whose images are selected, and none downloaded."""
    city = project.write_city(failed_imgid_file="failed.txt")
    project.materialize_metadata(city)
    return city


def selected_ids(city: City) -> list[int]:
    return [int(line) for line in city.selected_image_ids_path.read_text().split()]


def path_of(project: Project, city: City, image_id: int) -> Path:
    sequence_id = project.sandbox.world.images[image_id].sequence_id
    return image_path(city.sequences_folder / sequence_id, image_id)


def photograph(project: Project, image_id: int) -> bytes:
    world = project.sandbox.world
    return world.picture(world.images[image_id], "original")


def test_sequences_are_downloaded_one_or_a_range_at_a_time(project: Project, city: City) -> None:
    first, second, *_, last = project.sequences(city)
    project.materialize(city, "image_files", partitions=[second])
    assert materialized(project, city, "image_files") == {second}
    assert {path.name for path in city.sequences_folder.iterdir() if path.is_dir()} == {second}

    result = project.materialize(city, "image_files", partitions=[first, last])

    assert materialized(project, city, "image_files") == set(project.sequences(city))
    assert set(project.sandbox.stats.images_asked.values()) == {1}
    reported = metadata(result, city, "image_files")
    assert reported[second]["fetched images"] == 0
    assert sum(reported[key]["images"] for key in reported) == len(selected_ids(city))


def test_one_failing_sequence_takes_no_other_down_and_only_it_is_retried(
    project: Project, city: City
) -> None:
    bad = selected_ids(city)[5]
    bad_sequence = project.sandbox.world.images[bad].sequence_id
    project.sandbox.faults = Faults(by_image={bad: Fault.RESET})

    result = project.materialize_images(city, raise_on_error=False)

    assert f"image {bad}: " in the_failure(result)
    assert "1 images could not be downloaded; all others were" in the_failure(result)
    assert was_retried(result)
    others = set(project.sequences(city)) - {bad_sequence}
    assert materialized(project, city, "image_files") == others
    assert city.failed_image_ids_path
    assert city.failed_image_ids_path.read_text() == f"{bad}\n"
    inventory = take_inventory(city, project.postgis)
    assert inventory.missing == {bad_sequence: [bad]}
    assert inventory.failed.keys() == {bad}
    asked = project.sandbox.stats.images_asked.copy()
    assert {asked[image_id] for image_id in selected_ids(city) if image_id != bad} == {1}

    project.sandbox.faults = Faults()
    project.materialize_images(city)

    newly_asked = project.sandbox.stats.images_asked - asked
    assert newly_asked == {bad: 1}
    assert materialized(project, city, "image_files") == {*others, bad_sequence}
    assert city.failed_image_ids_path.read_text() == ""
    assert read_sidecar(city.sequences_folder / bad_sequence).failed == {}


def test_images_that_mapillary_leaves_out_fail_nothing(project: Project, city: City) -> None:
    gone = selected_ids(city)[3]
    sequence_id = project.sandbox.world.images[gone].sequence_id
    project.sandbox.faults = Faults(gone_ids=frozenset({gone}))
    assert city.failed_image_ids_path
    city.failed_image_ids_path.write_text(f"{gone}\n")  # of a run before it went

    result = project.materialize_images(city)

    assert materialized(project, city, "image_files") == set(project.sequences(city))
    assert metadata(result, city, "image_files")[sequence_id]["not answered"] == [gone]
    assert not path_of(project, city, gone).exists()
    assert take_inventory(city, project.postgis).not_answered.keys() == {gone}
    assert city.failed_image_ids_path.read_text() == ""
    asked = project.sandbox.stats.requests.copy()
    project.materialize_images(city)
    assert project.sandbox.stats.requests == asked


def test_a_folder_of_downloaded_images_is_adopted_as_it_is(project: Project, city: City) -> None:
    ids = selected_ids(city)
    whole, truncated, empty, absent = ids[: len(ids) // 2], ids[-1], ids[-2], ids[-3]
    for image_id in [*whole, truncated, empty]:
        path_of(project, city, image_id).parent.mkdir(parents=True, exist_ok=True)
        path_of(project, city, image_id).write_bytes(photograph(project, image_id))
    path_of(project, city, truncated).write_bytes(photograph(project, truncated)[:-50])
    path_of(project, city, empty).write_bytes(b"")
    unlisted = path_of(project, city, whole[0]).with_name("4711.jpg")
    unlisted.write_bytes(b"somebody's own")
    inodes = [path_of(project, city, image_id).stat().st_ino for image_id in whole]

    project.materialize_images(city)

    asked = project.sandbox.stats
    assert not asked.images_asked.keys() & set(whole)
    assert not asked.graph_ids_asked.keys() & set(whole)
    assert {truncated, empty, absent} <= asked.images_asked.keys()
    assert inodes == [path_of(project, city, image_id).stat().st_ino for image_id in whole]
    assert unlisted.read_bytes() == b"somebody's own"
    for image_id in ids:
        content = path_of(project, city, image_id).read_bytes()
        assert content == photograph(project, image_id)
        sidecar = read_sidecar(path_of(project, city, image_id).parent)
        assert sidecar.images[image_id].sha256 == hashlib.sha256(content).hexdigest()
    assert take_inventory(city, project.postgis).on_disk == len(ids)


def test_a_broken_sidecar_costs_a_look_at_the_files_and_no_download(
    project: Project, city: City
) -> None:
    project.materialize_images(city)
    sequence_id = project.sequences(city)[0]
    sidecar = city.sequences_folder / sequence_id / SIDECAR_NAME
    before = read_sidecar(sidecar.parent)
    sidecar.write_bytes(sidecar.read_bytes()[:100])
    asked = project.sandbox.stats.requests.copy()

    project.materialize(city, "selected_image_ids")
    project.materialize_images(city)

    assert project.sandbox.stats.requests == asked
    assert read_sidecar(sidecar.parent).images.keys() == before.images.keys()


def test_overwriting_fetches_photographs_anew(project: Project, city: City) -> None:
    project.materialize_images(city)
    keys = project.sequences(city)
    project.materialize(city, "image_files", partitions=keys, overwrite=True)
    assert set(project.sandbox.stats.images_served.values()) == {2}


def test_overwriting_fetches_each_photograph_once_over_all_attempts(
    project: Project, city: City
) -> None:
    project.materialize_images(city)
    ids = selected_ids(city)
    project.sandbox.faults = Faults(by_image={ids[0]: Fault.RESET})
    result = project.materialize(
        city,
        "image_files",
        partitions=project.sequences(city),
        overwrite=True,
        raise_on_error=False,
    )
    assert was_retried(result)
    assert {project.sandbox.stats.images_served[image_id] for image_id in ids[1:]} == {2}


def test_a_refused_token_ends_the_run_at_once_in_one_sentence(project: Project, city: City) -> None:
    project.sandbox.tokens = {"MLY|another"}
    result = project.materialize_images(city, raise_on_error=False)
    message = the_failure(result)
    assert "Mapillary refuses the token" in message
    assert "MAPILLARY_TOKEN" in message
    assert "MLY|" not in message
    assert "\n" not in message
    assert not was_retried(result)
    assert project.sandbox.stats.requests["graph"] <= 3
    assert not materialized(project, city, "image_files")


def test_a_missing_token_is_reported_before_anything_is_asked(
    project: Project, city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAPILLARY_TOKEN")
    monkeypatch.setenv("MAPILLARY_TOKEN_FILE", str(project.folder / "token.txt"))
    result = project.materialize_images(city, raise_on_error=False)
    assert "No Mapillary token" in the_failure(result)
    assert str(project.folder / "token.txt") in the_failure(result)
    assert not was_retried(result)
    assert not project.sandbox.stats.requests["graph"]


def test_too_little_room_on_the_disk_ends_the_run_at_once(project: Project) -> None:
    city = project.write_city(required_disk_space=10_000_000)
    project.materialize_metadata(city)
    result = project.materialize_images(city, raise_on_error=False)
    assert "10000000.000 GB required" in the_failure(result)
    assert "required_disk_space" in the_failure(result)
    assert not was_retried(result)
    assert not list(city.sequences_folder.rglob("*.jpg"))


# Cities beside each other


def contents(city: City, project: Project) -> dict[str, str]:
    """Return digests of all that a city has: its files and its tables."""
    folders = [city.folder, city.tiles_folder, city.sequences_folder]
    digests = {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }
    with project.postgis.transaction() as cursor:
        for table in ("street_points", "images", "selected_images"):
            cursor.execute(
                f"SELECT md5(string_agg(row::text, $$,$$ ORDER BY row::text)) "  # noqa: S608
                f'FROM "{city.name}".{table} AS row'
            )
            [(digests[table],)] = cursor.fetchall()
    return digests


def test_a_second_city_disturbs_nothing_of_the_first(project: Project) -> None:
    first = project.write_city()
    project.materialize_metadata(first)
    project.materialize_images(first)
    before = contents(first, project), project.sequences(first)
    assert len(before[0]) > 50

    second = project.write_city("other-town", max_distance=20, selection="all", panorama="only")
    project.materialize_metadata(second)
    project.materialize_images(second)

    assert (contents(first, project), project.sequences(first)) == before
    assert set(project.sequences(second)) < set(project.sequences(first))
    for name in METADATA_ASSETS:
        assert project.instance.get_latest_materialization_event(AssetKey([second.name, name]))
