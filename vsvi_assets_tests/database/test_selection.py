"""The rules of the city file, compared with an exhaustive computation, in a real PostGIS."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shapely

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import StreetsNotKeptError
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
    streets_table,
)
from vsvi_assets.mapillary.tiles import IMAGE_SCHEMA
from vsvi_assets.selection.rules import Removal
from vsvi_assets.streets.points import no_streets
from vsvi_assets_tests.database.parts import image, tile
from vsvi_assets_tests.project import BOX
from vsvi_assets_tests.selection.exhaustive import exhaustive_selection, least_costs, projected

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
            "osmid": [point.get("osmid", point["id"]) for point in points],
            "street": [point.get("street") for point in points],
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
@pytest.mark.parametrize(("prefer", "listed"), [("nearest", 64), ("newest", 64), ("nearest", 1)])
def test_one_to_one_serves_the_most_points_at_the_least_cost(
    database: Postgis,
    make_city: Callable[..., City],
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
    prefer: str,
    listed: int,
) -> None:
    monkeypatch.setattr("vsvi_assets.selection.choice.LISTED", listed)
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


def streets_frame(streets: Mapping[str | None, Sequence[tuple[float, float]]]) -> gpd.GeoDataFrame:
    """Return streets by name, as lines through places in degrees."""
    return gpd.GeoDataFrame(
        {
            "osmid": range(100, 100 + len(streets)),
            "name": pd.Series(list(streets), dtype=object),
            "highway": "residential",
            "metres": 1.0,
        },
        geometry=[shapely.LineString(places) for places in streets.values()],
        crs=4326,
    )


def nearest_lines(placed: Rows, lines: Sequence[np.ndarray], reach: float) -> dict[int, int]:
    """Return of each image the row of the nearest line, by the distances to all their segments.

    It is -1 where no line is within reach.
    """
    start = np.concatenate([line[:-1] for line in lines])
    along = np.concatenate([np.diff(line, axis=0) for line in lines])
    owner = np.repeat(np.arange(len(lines)), [len(line) - 1 for line in lines])
    nearest = {}
    for row in placed:
        place = np.array([row["x"], row["y"]])
        share = (((place - start) * along).sum(axis=1) / (along**2).sum(axis=1)).clip(0, 1)
        distances = np.hypot(*(place - start - share[:, None] * along).T)
        first = int(np.argmin(distances))
        nearest[row["id"]] = int(owner[first]) if distances[first] <= reach else -1
    return nearest


def streets_by_path(placed: Rows, nearest: Mapping[int, int]) -> dict[int, int]:
    """Return the street of each image, -1 where its sequence does not keep to the nearest."""
    streets = {}
    for row in placed:
        path = sorted(
            (other["captured_at"], other["id"], other["x"], other["y"])
            for other in placed
            if other["sequence_id"] == row["sequence_id"] and other["captured_at"] is not None
        )
        at = next((number for number, other in enumerate(path) if other[1] == row["id"]), None)
        neighbours = [] if at is None else path[max(at - 1, 0) : at] + path[at + 1 : at + 2]
        near = [o[1] for o in neighbours if math.dist(o[2:], (row["x"], row["y"])) <= 30]
        own = nearest[row["id"]]
        keeps_to_it = not near or any(nearest[other] == own for other in near)
        streets[row["id"]] = own if keeps_to_it else -1
    return streets


def drives(
    frame: gpd.GeoDataFrame, metres_of_error: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return points on streets, and images of two drives along each, beside their true places."""
    numbers = np.random.default_rng(8)
    points: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for street in frame.itertuples():
        for number in range(12):
            place = street.geometry.interpolate((number + 0.5) / 12, normalized=True)
            point = {"id": len(points), "lon": place.x, "lat": place.y, "bearing": 90.0}
            points.append({**point, "osmid": street.osmid, "street": street.name})
        for drive, number in product(range(2), range(30)):
            place = street.geometry.interpolate((number + 0.5) / 30, normalized=True)
            error = numbers.normal(0, metres_of_error / 111_320, 2)
            moment = 1_500_000_000_000 + 200_000_000 * len(images)
            images.append(
                image(
                    len(images) + 1,
                    float(np.clip(place.x + error[0], WEST, EAST)),
                    float(np.clip(place.y + error[1], SOUTH, NORTH)),
                    sequence_id=f"drive-{street.osmid}-{drive}",
                    captured_at=None if numbers.random() < 0.05 else moment,
                    compass_angle=numbers.uniform(0, 360),
                    is_pano=False,
                    creator_id=1,
                )
            )
    return points, images


@pytest.mark.parametrize(
    "keys", [{}, {"facing": "along", "per_year": True, "assignment": "one_to_one"}], ids=str
)
def test_the_same_street_is_that_of_an_exhaustive_computation(
    database: Postgis, make_city: Callable[..., City], keys: dict[str, Any]
) -> None:
    city = make_city(max_distance=50, same_street=True, **keys)
    fifteen_metres = 15 / 111_320
    streets: dict[str | None, Sequence[tuple[float, float]]] = {
        f"{name} {share}": [(WEST, lat + aside), (5.208, lat + aside), (EAST, lat + 2 * aside)]
        for share in (0.2, 0.5, 0.8)
        for lat in [SOUTH + (NORTH - SOUTH) * share]
        for name, aside in (("Main", 0.0), ("Parallel", fifteen_metres))
    }
    streets |= {"Cross": [(5.209, SOUTH), (5.209, NORTH)], None: [(5.206, SOUTH), (5.206, NORTH)]}
    frame = streets_frame(streets)
    points, images = drives(frame, metres_of_error=6)
    fill(database, city, points, images)
    replace_tables(database, city.name, [streets_table(frame, city)])
    lines = [np.array(line.coords) for line in frame.to_crs(city.projected_srid).geometry]
    placed = projected(images, city.projected_srid)
    street_of = streets_by_path(placed, nearest_lines(placed, lines, city.max_distance))
    own = {point["id"]: point["osmid"] - 100 for point in points}
    every = exhaustive_selection(points, images, city, ZONE)
    on_street = [row for row in every if street_of[row["image_id"]] == own[row["street_point_id"]]]
    removals: list[Removal] = []

    found = select_images(database, city, removals).to_pylist()

    assert 0 < len(on_street) < len(every)
    assert (removals[0].rule, removals[0].of) == ("same_street", "candidates")
    assert all(street_of[row["image_id"]] == own[row["street_point_id"]] for row in found)
    if keys:
        best = least_costs(on_street, [row["distance"] for row in on_street])
        total = sum(row["distance"] for row in found)
        assert (len(found), total) == pytest.approx(best, rel=1e-9)
    else:
        assert removals[0].removed == len(every) - len(on_street)
        nearest: dict[int, int] = {}
        for row in on_street:
            nearest.setdefault(row["street_point_id"], row["image_id"])
        assert {row["street_point_id"]: row["image_id"] for row in found} == nearest


def test_a_street_15_metres_away_never_supplies_an_image(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    city = make_city(max_distance=50, same_street=True)
    aside = 15 / 111_320
    frame = streets_frame(
        {
            "Main": [(WEST, 52.525), (EAST, 52.525)],
            "Other": [(WEST, 52.525 + aside), (EAST, 52.5252)],
        }
    )
    points, images = drives(frame, metres_of_error=2)
    fill(database, city, points, images)
    replace_tables(database, city.name, [streets_table(frame, city)])
    for row in select_images(database, city).to_pylist():
        driven = row["sequence_id"].split("-")[1]
        assert driven == str(points[row["street_point_id"]]["osmid"])


def test_without_its_streets_a_city_is_asked_to_fetch_them(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    city = make_city(same_street=True)
    fill(database, city, random_points(3, 1), random_images(30, 1))
    replace_tables(database, city.name, [streets_table(no_streets(), city)])
    with pytest.raises(StreetsNotKeptError, match="vsvi materialize town --overwrite"):
        select_images(database, city)


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


@pytest.mark.parametrize("keys", [{}, {"assignment": "one_to_one", "facing": "along"}], ids=str)
def test_a_city_without_candidates_selects_nothing(
    database: Postgis, make_city: Callable[..., City], keys: dict[str, Any]
) -> None:
    near = {"metres": 3, "seconds": 5}
    city = make_city(prefer="newest", duplicates=near, per_year=True, daylight=-90, **keys)
    for points, images in (([], []), (random_points(3, 1), []), ([], random_images(3, 1))):
        fill(database, city, points, images)
        assert len(select_images(database, city)) == 0
    city = make_city(same_street=True, **keys)
    replace_tables(database, city.name, [streets_table(no_streets(), city)])
    for images in ([], random_images(3, 1)):
        fill(database, city, [], images)
        assert len(select_images(database, city)) == 0
