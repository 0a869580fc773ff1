"""The rules of the city file, compared with an exhaustive computation, in a real PostGIS."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pytest

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.selection import (
    read_removals,
    select_images,
    selection_rules_table,
)
from vsvi_assets.database.tables import (
    images_table,
    selected_images_table,
    street_points_table,
)
from vsvi_assets.mapillary.tiles import IMAGE_SCHEMA
from vsvi_assets.selection.rules import Removal
from vsvi_assets_tests.database.parts import image, tile
from vsvi_assets_tests.project import BOX
from vsvi_assets_tests.selection.exhaustive import exhaustive_selection, least_costs

ZONE = "Europe/Amsterdam"
WEST, SOUTH, EAST, NORTH = BOX.values()

Rows = Sequence[Mapping[str, Any]]


def random_points(count: int, seed: int) -> list[dict[str, Any]]:
    numbers = np.random.default_rng(seed)
    return [
        {
            "id": id,
            "lon": numbers.uniform(WEST, EAST),
            "lat": numbers.uniform(SOUTH, NORTH),
            "bearing": None if id % 11 == 0 else round(numbers.uniform(0, 180), 1) % 180,
        }
        for id in range(count)
    ]


def random_images(count: int, seed: int) -> list[dict[str, Any]]:
    """Return images of all hours of five years, among them twins, near twins and unknown values."""
    numbers = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    for id in numbers.permutation(count) + 1:
        row: dict[str, Any] = {
            "lon": numbers.uniform(WEST, EAST),
            "lat": numbers.uniform(SOUTH, NORTH),
            "captured_at": int(numbers.integers(1_500_000_000_000, 1_650_000_000_000)),
            "compass_angle": numbers.uniform(0, 360),
            "is_pano": bool(numbers.random() < 0.3),
            "creator_id": int(numbers.integers(1, 4)),
        }
        if images and numbers.random() < 0.3:
            row = dict(images[int(numbers.integers(len(images)))])
            if numbers.random() < 0.7:
                row["lon"] = np.clip(row["lon"] + numbers.uniform(-5e-5, 5e-5), WEST, EAST)
                row["captured_at"] += int(numbers.integers(-6000, 6000))
                row["compass_angle"] = (row["compass_angle"] + numbers.uniform(-40, 40)) % 360
        images.append({**row, "id": int(id), "sequence_id": f"sequence-{id % 7}"})
    for row in images:
        for name in ("captured_at", "compass_angle", "is_pano", "creator_id"):
            if numbers.random() < 0.05:
                row[name] = None
    return images


def fill(database: Postgis, city: City, points: Rows, images: Rows) -> None:
    frame = gpd.GeoDataFrame(
        {
            "id": [point["id"] for point in points],
            "osmid": [point["id"] for point in points],
            "street": [None for _ in points],
            "bearing": [point["bearing"] for point in points],
        },
        geometry=gpd.points_from_xy(
            [point["lon"] for point in points], [point["lat"] for point in points]
        ),
        crs=4326,
    )
    table = pa.Table.from_pylist(list(images), IMAGE_SCHEMA)
    replace_tables(
        database, city.name, [street_points_table(frame, city), images_table([table], city)]
    )


def comparable(rows: Rows) -> list[dict[str, Any]]:
    """Return the columns of rows that are compared, numbers about equal."""
    return [
        {
            name: pytest.approx(row[name], abs=1e-5)
            if name in ("distance", "angle") and row[name] is not None
            else row[name]
            for name in (
                *("street_point_id", "year", "rank", "image_id", "distance", "candidates"),
                *("angle", "twins"),
            )
        }
        for row in rows
    ]


RULES: list[dict[str, Any]] = [
    {"months": [6, 7, 8]},
    {"hours": "09:00-17:30"},
    {"hours": "22:15-05:00", "clock": "solar"},
    {"daylight": 6},
    {"daylight": -6, "months": [12, 1], "clock": "solar"},
    {"duplicates": "exact"},
    {"duplicates": {"metres": 3, "seconds": 5}},
    {"prefer": "newest"},
    {"per_year": True},
    {"per_year": True, "prefer": "newest", "clock": "solar"},
    {"facing": "along"},
    {"facing": "across", "facing_tolerance": 20, "prefer": "newest"},
    {
        "facing": "along",
        "facing_tolerance": 60,
        "months": [3, 4, 5, 6, 7, 8, 9],
        "hours": "08:00-20:00",
        "daylight": 25,
        "duplicates": {"metres": 2, "seconds": 3},
        "prefer": "newest",
        "per_year": True,
    },
]


@pytest.mark.parametrize("keys", RULES, ids=str)
def test_each_rule_selects_what_an_exhaustive_computation_does(
    database: Postgis, make_city: Callable[..., City], keys: dict[str, Any]
) -> None:
    city = make_city(max_distance=45, **keys)
    points, images = random_points(120, 1), random_images(1500, 2)
    fill(database, city, points, images)
    expected = exhaustive_selection(points, images, city, ZONE)
    removals: list[Removal] = []

    found = select_images(database, city, removals).to_pylist()

    assert comparable(found) == comparable([row for row in expected if row["rank"] == 1])
    assert len(found) > 10
    reported = {removal.rule for removal in removals}
    assert reported == set(keys) - {"clock", "prefer", "facing_tolerance"}
    # Once a rule on times is applied, no unknown time is left.
    assert all(
        0 < removal.removed < removal.before or (removal.rule == "per_year" and len(keys) > 3)
        for removal in removals
    )
    if city.per_year:
        years = {row["year"] for row in found}
        of_point = {
            point: {row["year"] for row in found if row["street_point_id"] == point}
            for point in {row["street_point_id"] for row in found}
        }
        assert [row["balanced"] for row in found] == [
            of_point[row["street_point_id"]] == years for row in found
        ]


@pytest.mark.parametrize("keys", [{}, RULES[-1]], ids=str)
@pytest.mark.parametrize("prefer", ["nearest", "newest"])
def test_one_to_one_serves_the_most_points_at_the_least_cost(
    database: Postgis, make_city: Callable[..., City], keys: dict[str, Any], prefer: str
) -> None:
    keys = {**keys, "prefer": prefer, "assignment": "one_to_one"}
    city = make_city(max_distance=60, **keys)
    points, images = random_points(150, 5), random_images(180 if len(keys) < 5 else 900, 6)
    fill(database, city, points, images)
    candidates = exhaustive_selection(points, images, city, ZONE)
    newest = max(image["captured_at"] or 0 for image in images)
    age = {image["id"]: (newest - (image["captured_at"] or 0)) / 86_400_000 for image in images}
    costs = [row["distance"] if prefer == "nearest" else age[row["image_id"]] for row in candidates]
    removals: list[Removal] = []

    found = select_images(database, city, removals)

    rows = found.to_pylist()
    key = ("street_point_id", "year", "image_id")
    of_pair = dict(zip((tuple(map(row.get, key)) for row in candidates), costs, strict=True))
    total = sum(of_pair[tuple(map(row.get, key))] for row in rows)
    assert (len(rows), total) == pytest.approx(least_costs(candidates, costs), rel=1e-9)
    assert len({row["image_id"] for row in rows}) == len(rows)
    by_pair = {tuple(map(row.get, key)): row for row in candidates}
    assert comparable(rows) == comparable([by_pair[tuple(map(row.get, key))] for row in rows])
    wishing = len({(row["street_point_id"], row["year"]) for row in candidates})
    assert (removals[-1].rule, removals[-1].before) == ("assignment", wishing)
    assert removals[-1].removed == wishing - len(rows)
    if len(keys) == 2:
        assert 1 in found["rank"].to_pylist()
        assert max(found["rank"].to_pylist()) > 1

    fill(database, city, points[::-1], images[::-1])
    assert select_images(database, city).equals(found)


def test_rules_leave_out_images_that_are_selected_for_themselves(
    database: Postgis, make_city: Callable[..., City], tmp_path: Any
) -> None:
    july, january = 1_593_604_800_000, 1_578_312_000_000
    images = [
        image(1, captured_at=july, creator_id=1),
        image(2, captured_at=july, creator_id=1),
        image(3, captured_at=january, creator_id=1),
        image(4, captured_at=None),
        image(5, captured_at=july, creator_id=2),
    ]
    (tmp_path / "ids.txt").write_text("2\n3\n5\n")
    for keys, ids in (({"selection": "all"}, [1, 5]), ({"imgid_file": "ids.txt"}, [2, 5])):
        city = make_city(months=[7], duplicates="exact", **keys)
        fill(database, city, random_points(2, 1), tile(*images).to_pylist())
        found = select_images(database, city)
        assert found["image_id"].to_pylist() == ids
        assert found["street_point_id"].null_count == 2


def test_what_rules_left_out_is_kept_with_the_selection(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    city = make_city(months=[7], duplicates={"metres": 3, "seconds": 5})
    fill(database, city, random_points(20, 1), random_images(300, 2))
    removals: list[Removal] = []
    selection = select_images(database, city, removals)
    assert read_removals(database, city) == []
    tables = [selected_images_table(selection, city), selection_rules_table(removals, city)]
    replace_tables(database, city.name, tables)
    months, twins = read_removals(database, city)
    assert (months, twins) == tuple(removals)
    assert (months.rule, months.setting, months.of, months.before) == (
        *("months", "7 (civil time)", "images", 300),
    )
    assert twins.setting == "within 3 m and 5 s"
    assert twins.before == months.before - months.removed


def test_a_city_without_candidates_selects_nothing(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    city = make_city(prefer="newest", duplicates={"metres": 3, "seconds": 5}, per_year=True)
    for points, images in (([], []), (random_points(3, 1), []), ([], random_images(3, 1))):
        fill(database, city, points, images)
        assert len(select_images(database, city)) == 0
