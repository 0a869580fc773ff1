"""The city file: what is accepted as it is, what is refused, and what the refusal says."""

import json
import keyword
import random
from pathlib import Path
from typing import Any

import mercantile
import pytest
import yaml
from dagster import AutomationCondition, ScheduleDefinition
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vsvi_assets.city import CityFileError, load_cities, load_city, parse_tile_key, tile_file_name
from vsvi_assets.city.lists import read_image_ids
from vsvi_assets.city.schedule import check_cron
from vsvi_assets.orchestration.build import build_defs
from vsvi_assets.settings import Settings

AMSTERDAM = """{
    "bounding_box": {
        "west": 4.7149,
        "south": 52.2818,
        "east": 5.1220,
        "north": 52.4284
    },
    "tile_cache_dir": "ams-tiles",
    "seqdir": "ams-seqs"
}
"""
UTRECHT = """{
    "bounding_box": {
        "west": 5.033,
        "south": 52.047,
        "east": 5.188,
        "north": 52.137
    },
    "tile_cache_dir": "utrecht-tiles",
    "seqdir": "utrecht-seqs"
}
"""
BOX = {"west": 5.033, "south": 52.047, "east": 5.188, "north": 52.137}


def write(folder: Path, content: object, name: str = "town.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refusal(folder: Path, content: object, name: str = "town.json") -> str:
    """Return why a city file is refused; the reason always names the file."""
    path = write(folder, content, name)
    with pytest.raises(CityFileError) as refused:
        load_city(path, folder)
    assert str(refused.value).startswith(f"{path}: ")
    return str(refused.value)


def test_city_files_of_percept_vsvi_filter_load_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, AMSTERDAM, "greater-amsterdam.json")
    write(tmp_path, UTRECHT, "utrecht.json")

    cities, broken = load_cities(tmp_path, tmp_path / "data")

    assert not broken
    amsterdam, utrecht = cities
    assert amsterdam.name == "greater-amsterdam"
    assert amsterdam.area.bounds == (4.7149, 52.2818, 5.1220, 52.4284)
    assert amsterdam.tiles_folder == tmp_path / "data/ams-tiles"
    assert amsterdam.sequences_folder == tmp_path / "data/ams-seqs"
    assert amsterdam.tile_path("14/8415/5384").name == "mly1_public_8415_5384_14"
    assert amsterdam.projected_srid == utrecht.projected_srid == 32631
    assert len(utrecht.tile_keys) == 64
    keys = build_defs(settings(tmp_path)).resolve_asset_graph().get_all_asset_keys()
    assert {key.path[0] for key in keys} == {"greater-amsterdam", "utrecht"}


def settings(folder: Path) -> Settings:
    return Settings.from_environment(
        {"VSVI_CITIES_DIR": str(folder), "VSVI_DATA_DIR": str(folder / "data")}
    )


def test_yaml_says_the_same_as_json(tmp_path: Path) -> None:
    content = {
        "bounding_box": BOX,
        "interval": 25,
        "creator_ids": [1, 2],
        "image_size": 2048,
        "schedule": "0 3 * * 1",
        "timezone": "Europe/Amsterdam",
        "captured_after": "2020-01-01",
    }
    as_json = load_city(write(tmp_path, content), tmp_path)
    as_yaml = load_city(write(tmp_path, yaml.safe_dump(content), "town.yaml"), tmp_path)
    bare_date = yaml.safe_dump(content).replace("'2020-01-01'", "2020-01-01")
    assert "captured_after: 2020-01-01" in bare_date
    with_date = load_city(write(tmp_path, bare_date, "town.yml"), tmp_path)
    assert as_json == as_yaml == with_date
    assert (as_json.interval, as_json.image_size) == (25, "2048")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bounding_box": {**BOX, "west": 6}}, ["bounding_box", "west (6.0)", "east (5.188)"]),
        ({"bounding_box": {**BOX, "west": 5.188}}, ["west (5.188) must be less than east"]),
        (
            {"bounding_box": {"west": 179, "south": -18, "east": -179, "north": -16}},
            ["bounding_box", "west (179.0)", "antimeridian", "two cities"],
        ),
        ({"bounding_box": {**BOX, "east": 181}}, ["bounding_box.east = 181", "180"]),
        ({"bounding_box": {**BOX, "north": 91}}, ["bounding_box.north = 91", "85.0511"]),
        ({"bounding_box": {**BOX, "south": -86.0}}, ["bounding_box.south = -86.0", "-85.0511"]),
        ({"bounding_box": {**BOX, "south": 53}}, ["bounding_box", "south (53.0)", "north"]),
        ({"bounding_box": {**BOX, "up": 1}}, ["bounding_box.up = 1", "unknown key", "north"]),
        ({"bounding_box": {"west": 5}}, ["bounding_box.south", "required"]),
        ({"bounding_box": "5,52,6,53"}, ["bounding_box = '5,52,6,53'"]),
        ({"intervall": 25}, ["intervall = 25: unknown key; did you mean interval?"]),
        ({"shape": 1}, ["shape = 1: unknown key; the keys are bounding_box, region,"]),
        (
            {"bounding_box": [4.3, 51.9, 4.4, 52.1]},
            ["bounding_box = [", "must be an object of the keys west, south, east, north"],
        ),
        ({"interval": "many"}, ["interval = 'many'", "number"]),
        ({"interval": 0}, ["interval = 0", "greater than or equal to 5"]),
        ({"max_distance": float("inf")}, ["max_distance = inf", "finite"]),
        ({"months": [0]}, ["months = [0]", "months from 1 to 12", "[6, 7, 8]"]),
        ({"months": []}, ["months = []", "months from 1 to 12"]),
        ({"months": ["June"]}, ["months = ['June']", "months from 1 to 12"]),
        ({"months": [True]}, ["months = [True]", "months from 1 to 12"]),
        ({"hours": "9-17"}, ["hours = '9-17'", '"09:00-17:30"']),
        ({"hours": "09:00-24:30"}, ["hours", '"22:00-05:00"']),
        ({"hours": [9, 17]}, ["hours = [9, 17]", '"09:00-17:30"']),
        ({"hours": "09:00-09:00"}, ["hours", "two different times"]),
        ({"clock": "utc"}, ["clock = 'utc'", "'civil' or 'solar'"]),
        ({"daylight": True}, ["daylight = True", "number"]),
        ({"daylight": 90}, ["daylight = 90", "less than 90"]),
        ({"daylight": "dawn"}, ["daylight = 'dawn'", "number"]),
        ({"duplicates": "near"}, ["duplicates = 'near'", '"keep", "exact"', '"metres": 3']),
        ({"duplicates": {"metres": 3}}, ["duplicates.near.seconds", "required"]),
        ({"duplicates": {"metres": -3, "seconds": 1}}, ["duplicates.near.metres = -3"]),
        (
            {"duplicates": {"metres": 3, "minutes": 1, "seconds": 1}},
            ["minutes = 1", "unknown key; the keys are metres, seconds"],
        ),
        ({"positions": "corrected"}, ["positions = 'corrected'", "'original' or 'computed'"]),
        ({"heading": 90}, ["heading = 90", "'original' or 'computed'"]),
        ({"prefer": "oldest"}, ["prefer = 'oldest'", "'nearest' or 'newest'"]),
        ({"same_street": "Main"}, ["same_street = 'Main'", "boolean"]),
        (
            {"same_street": True, "street_classes": ["primary"]},
            ["same_street cannot be used with street_classes", "all streets"],
        ),
        ({"facing": "towards"}, ["facing = 'towards'", "'any', 'along' or 'across'"]),
        (
            {"facing": "along", "facing_tolerance": 120},
            ["facing_tolerance = 120", "less than or equal to 90"],
        ),
        ({"facing_tolerance": 10}, ["facing_tolerance (10)", "set facing too, or leave it out"]),
        ({"clock": "solar"}, ["clock (solar)", "months, hours and per_year", "leave it out"]),
        ({"assignment": "unique"}, ["assignment = 'unique'", "'independent' or 'one_to_one'"]),
        (
            {"selection": "all", "facing": "along", "assignment": "one_to_one"},
            ["facing and assignment cannot be used with selection: all"],
        ),
        ({"per_year": "often"}, ["per_year = 'often'", "boolean"]),
        (
            {"selection": "all", "prefer": "newest", "per_year": True},
            ["prefer and per_year cannot be used with selection: all", "leave one of them out"],
        ),
        ({"srid": 999_999}, ["srid 999999 is unknown", "such as 32631"]),
        ({"srid": 4326}, ["srid 4326 (WGS 84)", "projected CRS in metres", "32631"]),
        ({"srid": 2263}, ["srid 2263", "metres", "32631"]),
        ({"srid": 2154}, ["srid 2154", "France", "does not meet", "32631"]),
        ({"srid": 3857}, ["1 m of srid 3857", "is 0.61 m on the ground", "such as 32631"]),
        (
            {"bounding_box": {"west": -20, "south": 1, "east": 20, "north": 1.1}},
            ["1 m of srid 32631", "0.92 m on the ground", "several cities"],
        ),
        (
            {"bounding_box": {"west": 0, "south": 40, "east": 10, "north": 50}},
            ["bounding_box covers", "at most 20,000", "several cities"],
        ),
        (
            {"bounding_box": {"west": 0, "south": 0, "east": 1e-12, "north": 1e-12}},
            ["bounding_box is too small"],
        ),
        ({"network_type": "rail"}, ["network_type = 'rail'", "'walk'"]),
        ({"services": "google"}, ["services = 'google'", "'mapillary' or 'sandbox'"]),
        ({"selection": "best"}, ["selection = 'best'", "'nearest'"]),
        ({"panorama": True}, ["panorama = True", "'only'"]),
        ({"image_size": 512}, ["image_size = '512'", "'1024'"]),
        ({"captured_after": "yesterday"}, ["captured_after = 'yesterday'", "datetime"]),
        (
            {"captured_after": "2021-01-01", "captured_before": "2020-01-01"},
            ["captured_after (2021", "must be before", "captured_before (2020"],
        ),
        ({"captured_after": "0001-01-01T00:00:00+14:00"}, ["captured_after", "years 1 and 9999"]),
        ({"creator_ids": []}, ["creator_ids = []", "must not be empty"]),
        ({"street_classes": "primary"}, ["street_classes = 'primary'", "must be a list"]),
        ({"creator_ids": [2**63]}, ["creator_ids.0 = 9223372036854775808", "less than"]),
        ({"schedule": "weekly"}, ["schedule = 'weekly'", "five fields"]),
        ({"schedule": "0 3 * * 9"}, ["schedule = '0 3 * * 9'", "cron"]),
        ({"schedule": "0 0 30 2 *"}, ["schedule = '0 0 30 2 *'", "never comes"]),
        ({"schedule": "0 0 31 4,6 *"}, ["schedule = '0 0 31 4,6 *'", "never comes"]),
        ({"schedule": "0 3 15W * *"}, ["schedule = '0 3 15W * *'", "five fields"]),
        ({"timezone": "Europe"}, ["timezone = 'Europe'", "Europe/Amsterdam"]),
        ({"timezone": "Europe/Utrecht"}, ["timezone = 'Europe/Utrecht'", "Europe/Amsterdam"]),
        ({"num_retries": -1}, ["num_retries = -1", "greater than or equal to 0"]),
        ({"required_disk_space": "100GB"}, ["required_disk_space = '100GB'", "number"]),
        ({"seqdir": "a\0b"}, ["seqdir", "null character"]),
        ({"seqdir": "~nobody-of-that-name/photos"}, ["seqdir = ", "home folder"]),
        ({"seqdir": "postgis/photos"}, ["seqdir = postgis/photos", "the project's own"]),
        ({"tile_cache_dir": "x/../Osmnx"}, ["tile_cache_dir = x/../Osmnx", "the project's own"]),
        ({"tile_list_file": "absent.txt"}, ["tile_list_file = ", "absent.txt", "cannot be read"]),
        ({"imgid_file": "absent.txt"}, ["imgid_file = ", "absent.txt", "cannot be read"]),
        ({"streets_file": "absent.osm"}, ["streets_file = ", "absent.osm", "cannot be read"]),
    ],
)
def test_what_is_wrong_is_refused_with_key_value_and_what_would_be_right(
    tmp_path: Path, change: dict[str, Any], said: list[str]
) -> None:
    reason = refusal(tmp_path, {"bounding_box": BOX} | change)
    for text in said:
        assert text in reason


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("town.json", "{"),
        ("town.json", "[1, 2]"),
        ("town.json", "[" * 100_000),
        ("town.yaml", "bounding_box: [1"),
        ("town.yaml", "bounding_box: !!python/object/apply:os.getcwd []"),
        ("town.yaml", "interval: !!bool perhaps"),
        ("town.yaml", "1: 2"),
        ("public.json", json.dumps({"bounding_box": BOX})),
        ("pg_town.json", json.dumps({"bounding_box": BOX})),
        ("my town.json", json.dumps({"bounding_box": BOX})),
        ("a" * 51 + ".json", json.dumps({"bounding_box": BOX})),
        *(
            (f"{name}.json", json.dumps({"bounding_box": BOX}))
            for name in ("postgis", "osmnx", "pages", "sandbox", "Dagster", "vsvi", "tiger_data")
        ),
    ],
)
def test_a_file_that_is_no_city_is_refused(tmp_path: Path, name: str, content: str) -> None:
    assert refusal(tmp_path, content, name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("town.json", json.dumps({"bounding_box": BOX, "token": "MLY|1234|secret"})),
        ("town.json", json.dumps({"bounding_box": BOX, "MLY|1234|secret": True})),
        ("town.yaml", "bounding_box: {west: 5\ntoken: MLY|1234|secret"),
    ],
)
def test_a_token_in_a_city_file_is_not_repeated(tmp_path: Path, name: str, content: str) -> None:
    assert "secret" not in refusal(tmp_path, content, name)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "town.json"
    path.write_text(UTRECHT, encoding="utf-8-sig")
    assert load_city(path, tmp_path).area.box.west == 5.033


def test_all_that_is_wrong_in_a_file_is_reported_at_once(tmp_path: Path) -> None:
    reason = refusal(tmp_path, {"bounding_box": BOX, "interval": 0, "panorama": "yes"})
    assert "interval = 0" in reason
    assert "panorama = 'yes'" in reason


def test_the_sandbox_is_used_only_where_the_file_names_it(tmp_path: Path) -> None:
    assert load_city(write(tmp_path, {"bounding_box": BOX}), tmp_path).services == "mapillary"
    content = {"bounding_box": BOX, "services": "sandbox"}
    assert load_city(write(tmp_path, content), tmp_path).services == "sandbox"
    demo = Path(__file__).parents[2] / "cities" / "demo.json"
    assert load_city(demo, tmp_path).services == "sandbox"


def test_a_tile_list_keeps_the_tiles_that_it_names(tmp_path: Path) -> None:
    whole = load_city(write(tmp_path, {"bounding_box": BOX}), tmp_path)
    names = [tile_file_name(tile) for tile in whole.tiles]
    content = {"bounding_box": BOX, "tile_list_file": "tiles.txt"}
    (tmp_path / "tiles.txt").write_text("\n".join([names[3], names[0]]))
    city = load_city(write(tmp_path, content), tmp_path)
    assert city.tile_keys == [whole.tile_keys[0], whole.tile_keys[3]]
    assert not city.warnings


def test_tiles_of_a_list_that_do_not_meet_the_box_are_reported(tmp_path: Path) -> None:
    whole = load_city(write(tmp_path, {"bounding_box": BOX}), tmp_path)
    content = {"bounding_box": BOX, "tile_list_file": "tiles.txt"}
    (tmp_path / "tiles.txt").write_text(f"mly1_public_1_1_14\n{tile_file_name(whole.tiles[5])}")
    city = load_city(write(tmp_path, content), tmp_path)
    assert city.tile_keys == [whole.tile_keys[5]]
    [warning] = city.warnings
    assert "1 of its 2 tiles" in warning
    assert "'mly1_public_1_1_14'" in warning

    (tmp_path / "tiles.txt").write_text("mly1_public_1_1_14\n")
    assert "none of its 1 tiles meets the bounding box" in refusal(tmp_path, content)


@pytest.mark.parametrize(
    "name", ["{}.geojson", "{}.", "MLY1_public_8421_5390_14", "14/8421/5390", "mly1_public_1_1_13"]
)
def test_a_misspelt_tile_is_refused_with_the_right_spelling(tmp_path: Path, name: str) -> None:
    whole = load_city(write(tmp_path, {"bounding_box": BOX}), tmp_path)
    names = [tile_file_name(tile) for tile in whole.tiles]
    wrong = name.format(names[1])
    (tmp_path / "tiles.txt").write_text("\n".join([names[0], wrong, names[2]]))
    reason = refusal(tmp_path, {"bounding_box": BOX, "tile_list_file": "tiles.txt"})
    assert f"{wrong!r} in it" in reason
    assert "mly1_public_<x>_<y>_14" in reason


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_may_come_from_windows(tmp_path: Path, encoding: str) -> None:
    whole = load_city(write(tmp_path, {"bounding_box": BOX}), tmp_path)
    names = [tile_file_name(tile) for tile in whole.tiles[:2]]
    (tmp_path / "tiles.txt").write_text("\r\n".join(names), encoding=encoding)
    (tmp_path / "ids.txt").write_text("12\r\n7\r\n", encoding=encoding)
    content = {"bounding_box": BOX, "tile_list_file": "tiles.txt", "imgid_file": "ids.txt"}
    city = load_city(write(tmp_path, content), tmp_path)
    assert city.tile_keys == whole.tile_keys[:2]
    assert city.read_image_ids() == [12, 7]


def test_paths_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    content = {"bounding_box": BOX, "seqdir": "~/photos", "tile_cache_dir": "~"}
    city = load_city(write(tmp_path, content), tmp_path)
    assert city.sequences_folder == tmp_path / "home/photos"
    assert city.tiles_folder == tmp_path / "home"


@pytest.mark.parametrize("srid", [28992, 32631, 3035])
def test_projections_that_are_true_in_the_box_are_accepted(tmp_path: Path, srid: int) -> None:
    city = load_city(write(tmp_path, {"bounding_box": BOX, "srid": srid}), tmp_path)
    assert city.projected_srid == srid


def test_a_broken_file_is_shown_and_takes_no_other_city_down(tmp_path: Path) -> None:
    write(tmp_path, UTRECHT, "utrecht.json")
    write(tmp_path, {"bounding_box": BOX, "srid": 4326}, "delft.json")
    write(tmp_path, "{", "gouda.json")
    write(tmp_path, "{", "gouda.yaml")
    write(tmp_path, {"bounding_box": BOX, "seqdir": "\ud800"}, "leiden.json")
    write(tmp_path, "not a city", "notes.txt")

    graph = build_defs(settings(tmp_path)).resolve_asset_graph()

    by_city: dict[str, set[str]] = {}
    for key in graph.get_all_asset_keys():
        by_city.setdefault(key.path[0], set()).add(key.path[1])
    assert {"street_points", "image_files"} < by_city.pop("utrecht")
    assert by_city == {name: {"city_file"} for name in ("delft", "gouda", "leiden")}
    described = {
        key.path[0]: str(graph.get(key).description)
        for key in graph.get_all_asset_keys()
        if key.path[1] == "city_file"
    }
    assert "srid 4326" in described["delft"]
    assert str(tmp_path / "gouda.json") in described["gouda"]
    assert str(tmp_path / "gouda.yaml") in described["gouda"]


WORDS_OF_DAGSTER = ("context", "conf", "config", "meta", "type", "input", "output", "dict", "int")


def test_a_city_may_be_called_like_a_word_of_python_or_dagster(tmp_path: Path) -> None:
    names = [*keyword.kwlist, *WORDS_OF_DAGSTER, "As", "str", "bool", "float", "class_city"]
    for name in names:
        write(tmp_path, {"bounding_box": BOX, "schedule": "0 3 * * 1"}, f"{name}.json")
    cities, broken = load_cities(tmp_path, tmp_path)
    assert {city.name for city in broken} == {"as", "As", "class", "class_city"}
    assert len({city.group for city in cities}) == len(cities) == len(names) - 4
    defs = build_defs(settings(tmp_path))
    assert {schedule.name for schedule in defs.schedules or ()} >= {city.group for city in cities}


CRON_FIELDS = st.sampled_from(
    [
        *("*", "*/5", "0", "3", "7", "12", "15", "29", "30", "31", "59", "60", "1-5", "1,15"),
        *("L", "l", "L5", "1L", "5#1", "5#6", "W", "15W", "LW", "?", "H", "R", "mon", "MON-FRI"),
        *("feb", "2", "4", "6,9", "1-31/2", "0-6", "7#2", "@daily", "-1", "1/2", "*/0"),
    ]
)


@given(st.lists(CRON_FIELDS, min_size=5, max_size=5).map(" ".join))
@hypothesis_settings(max_examples=400, deadline=None)
def test_schedules_that_a_city_may_have_are_those_of_dagster(expression: str) -> None:
    try:
        check_cron(expression)
    except ValueError:
        return
    ScheduleDefinition(name="town", cron_schedule=expression, job_name="job")
    AutomationCondition.on_cron(expression, "Europe/Amsterdam")


def test_cities_in_each_others_way_are_all_refused(tmp_path: Path) -> None:
    write(tmp_path, {"bounding_box": BOX, "seqdir": "photos"}, "delft.json")
    write(tmp_path, {"bounding_box": BOX, "seqdir": "data/../photos"}, "gouda.json")
    write(tmp_path, {"bounding_box": BOX}, "new-town.json")
    write(tmp_path, {"bounding_box": BOX}, "New_Town.json")
    write(tmp_path, {"bounding_box": BOX}, "utrecht.json")

    cities, broken = load_cities(tmp_path, tmp_path)

    assert [city.name for city in cities] == ["utrecht"]
    reasons = {city.name: str(city.error) for city in broken}
    assert set(reasons) == {"delft", "gouda", "new-town", "New_Town"}
    assert "seqdir" in reasons["delft"]
    assert "gouda.json" in reasons["delft"]
    assert "delft.json" in reasons["gouda"]
    assert "New_Town.json" in reasons["new-town"]


def test_without_a_folder_of_cities_it_is_said_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CityFileError, match="VSVI_CITIES_DIR"):
        load_cities(tmp_path / "absent", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("ids.txt", "12\n7\n\n  9 \n", [12, 7, 9]),
        ("ids.json", '[{"mapillary_img_id": "12"}, {"mapillary_img_id": 7, "x": 1}]', [12, 7]),
        ("ids.txt", "", []),
        ("ids.json", "[]", []),
    ],
)
def test_ids_are_read_from_both_kinds_of_list(
    tmp_path: Path, name: str, content: str, ids: list[int]
) -> None:
    (tmp_path / name).write_text(content)
    city = load_city(write(tmp_path, {"bounding_box": BOX, "imgid_file": name}), tmp_path)
    assert city.read_image_ids() == ids


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ids.txt", None),
        ("ids.txt", "12\ntwelve\n"),
        ("ids.txt", "99999999999999999999\n"),
        ("ids.txt", "-5\n"),
        ("ids.txt", b"\xff\xfe1"),
        ("ids.txt", b"\xe9"),
        ("ids.json", '{"mapillary_img_id": 12}'),
        ("ids.json", '[{"id": 12}]'),
        ("ids.json", '[{"mapillary_img_id": 1.5}]'),
        ("ids.json", '[{"mapillary_img_id": true}]'),
        ("ids.json", "[" * 100_000),
    ],
)
def test_a_list_of_ids_that_is_none_is_refused(
    tmp_path: Path, name: str, content: str | bytes | None
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CityFileError, match="imgid_file = "):
        read_image_ids(tmp_path / name)
    assert "imgid_file = " in refusal(tmp_path, {"bounding_box": BOX, "imgid_file": name})


@given(
    west=st.floats(-180, 179),
    south=st.floats(-85, 84),
    width=st.floats(0.0001, 0.5),
    height=st.floats(0.0001, 0.3),
    seed=st.integers(0, 1000),
)
@hypothesis_settings(deadline=None)
def test_the_tiles_cover_the_box_and_each_meets_it(
    tmp_path_factory: pytest.TempPathFactory,
    west: float,
    south: float,
    width: float,
    height: float,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("box")
    box = {"west": west, "south": south, "east": west + width, "north": south + height}
    city = load_city(write(folder, {"bounding_box": box}), folder)

    tiles = {parse_tile_key(key) for key in city.tile_keys}
    assert len(tiles) == len(city.tile_keys)
    places = random.Random(seed)
    for _ in range(20):
        lon = places.uniform(west, west + width)
        lat = places.uniform(south, south + height)
        assert mercantile.tile(lon, lat, 14) in tiles
    for tile in tiles:
        bounds = mercantile.bounds(tile)
        assert bounds.west <= box["east"]
        assert bounds.east >= box["west"]
        assert bounds.south <= box["north"]
        assert bounds.north >= box["south"]


KEYS = st.sampled_from(
    [
        *("bounding_box", "west", "south", "east", "north", "tile_cache_dir", "seqdir", "srid"),
        *("interval", "imgid_file", "tile_list_file", "panorama", "captured_after"),
        *("captured_before", "creator_ids", "image_size", "schedule", "timezone"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(5.1)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(), inner),
    max_leaves=12,
)


@given(
    content=st.text()
    | ANYTHING.map(json.dumps)
    | st.dictionaries(KEYS, ANYTHING)
    .map(lambda keys: {"bounding_box": BOX} | keys)
    .map(json.dumps),
    suffix=st.sampled_from(["json", "yaml"]),
)
@hypothesis_settings(deadline=None)
def test_whatever_a_file_holds_it_is_a_city_or_a_broken_one(
    tmp_path_factory: pytest.TempPathFactory, content: str, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("cities")
    (folder / f"town.{suffix}").write_bytes(content.encode(errors="surrogatepass"))
    cities, broken = load_cities(folder, folder)
    assert len(cities) + len(broken) == 1
