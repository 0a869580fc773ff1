"""The rules of the city file on recorded data, in the folder that VSVI_REAL_DATA names."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import mercantile
import numpy as np
import pytest

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.selection import select_images
from vsvi_assets.database.tables import streets_table
from vsvi_assets.mapillary.tiles import decode_tile
from vsvi_assets.selection.rules import Removal
from vsvi_assets.streets.networks import read_streets
from vsvi_assets.streets.points import street_points, streets_within
from vsvi_assets_tests.database.test_selection import (
    comparable,
    fill,
    nearest_lines,
    streets_by_path,
)
from vsvi_assets_tests.selection.exhaustive import (
    assert_chosen,
    exhaustive_selection,
    projected,
)

REAL_DATA = Path(os.environ.get("VSVI_REAL_DATA", "/nowhere"))
pytestmark = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="VSVI_REAL_DATA names no folder")


def city_around(places: np.ndarray, make_city: Callable[..., City], **keys: Any) -> City:
    """Make a city whose box holds all places (longitude, latitude)."""
    (west, south), (east, north) = places.min(axis=0) - 1e-6, places.max(axis=0) + 1e-6
    box = {"west": west, "south": south, "east": east, "north": north}
    return make_city(bounding_box=box, srid=None, **keys)


def test_the_twins_of_a_recorded_answer_collapse(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    answer = json.loads((REAL_DATA / "graph" / "images_bbox_curitiba.json").read_text())["data"]
    images = [
        {
            "id": int(image["id"]),
            "sequence_id": image["sequence"],
            "captured_at": image["captured_at"],
            "compass_angle": image["compass_angle"],
            "is_pano": False,
            "creator_id": int(image["creator"]["id"]),
            "lon": image["geometry"]["coordinates"][0],
            "lat": image["geometry"]["coordinates"][1],
        }
        for image in answer
    ]
    places = np.array([(image["lon"], image["lat"]) for image in images])
    points = [
        {"id": number, "lon": lon, "lat": lat, "bearing": 10.0 * (number % 18)}
        for number, (lon, lat) in enumerate(places[::25])
    ]
    keys: dict[str, Any]
    for keys in (
        {"duplicates": "exact"},
        {"duplicates": {"metres": 4, "seconds": 3}, "facing": "along", "clock": "solar"},
    ):
        keys |= {"per_year": True, "max_distance": 40}
        city = city_around(places, make_city, **keys)
        fill(database, city, points, images)
        expected = exhaustive_selection(points, images, city, "America/Sao_Paulo")
        removals: list[Removal] = []
        found = select_images(database, city, removals).to_pylist()
        assert comparable(found) == comparable([row for row in expected if row["rank"] == 1])
        if keys["duplicates"] == "exact":
            assert (removals[0].before, removals[0].removed) == (760, 173)
        else:
            assert removals[0].removed > 173


@dataclass(frozen=True)
class Recorded:
    """The streets of a place, and the images of a real tile laid over them.

    The tiles are of other places; the images keep their pattern.
    """

    streets: gpd.GeoDataFrame
    images: list[dict[str, Any]]
    zone: str


@pytest.fixture(scope="module", params=["Delft", "Monaco"])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    streets, tile, lon, lat, zone = {
        "Delft": ("Delft.graphml", "mapillary_2024_xy_unknown.mvt", 4.36, 52.01, "Amsterdam"),
        "Monaco": ("monaco.osm.gz", "mly1_public_8574_5735_14.mvt", 7.42, 43.735, "Monaco"),
    }[request.param]
    data = (REAL_DATA / "tiles" / tile).read_bytes()
    decoded = decode_tile(data, mercantile.tile(lon, lat, 14)).images
    images = decoded.drop_columns("organization_id").sort_by("sequence_id").to_pylist()[:700]
    return Recorded(read_streets(REAL_DATA / "osm" / streets, "all"), images, f"Europe/{zone}")


EVERY_RULE: dict[str, Any] = {
    "same_street": True,
    "duplicates": {"metres": 3, "seconds": 2},
    "facing": "along",
    "months": [4, 5, 6, 7, 8, 9, 10],
    "hours": "06:00-21:00",
    "daylight": 5,
}


@pytest.mark.parametrize(
    "keys",
    [
        {"months": [4, 6, 7, 10, 12]},
        {"hours": "08:00-18:00"},
        {"hours": "16:00-09:00", "clock": "solar"},
        {"daylight": 30},
        {"duplicates": "exact"},
        {"duplicates": {"metres": 3, "seconds": 5}},
        {"prefer": "newest"},
        {"per_year": True},
        {"facing": "along"},
        {"facing": "across", "facing_tolerance": 20},
        {"same_street": True},
        {"assignment": "one_to_one"},
        EVERY_RULE,
        {**EVERY_RULE, "assignment": "one_to_one"},
        {**EVERY_RULE, "assignment": "one_to_one", "per_year": True},
        {**EVERY_RULE, "prefer": "newest", "per_year": True, "clock": "solar"},
    ],
    ids=str,
)
def test_each_rule_on_real_streets_and_images_selects_what_an_exhaustive_computation_does(
    database: Postgis, make_city: Callable[..., City], recorded: Recorded, keys: dict[str, Any]
) -> None:
    images = recorded.images
    places = np.array([(image["lon"], image["lat"]) for image in images])
    city = city_around(places, make_city, max_distance=40, **keys)
    box, srid = city.area.bounds, city.projected_srid
    points = [
        {
            **{"id": row.id, "lon": row.geometry.x, "lat": row.geometry.y},
            **{"bearing": row.bearing, "osmid": row.osmid, "street": row.street},
        }
        for row in street_points(recorded.streets, box, srid, 30).itertuples()
    ]
    fill(database, city, points, images)
    is_of_street = None
    if city.same_street:
        streets = streets_within(recorded.streets, box, srid)
        replace_tables(database, city.name, [streets_table(streets, city)])
        is_of_street = same_street(streets, points, images, city)
    candidates = exhaustive_selection(points, images, city, recorded.zone, is_of_street)
    removals: list[Removal] = []

    found = select_images(database, city, removals).to_pylist()

    assert len(found) > 5
    if city.assignment == "one_to_one":
        by_pair = {(row["street_point_id"], row["image_id"]): row for row in candidates}
        rows = [by_pair[row["street_point_id"], row["image_id"]] for row in found]
        assert_chosen(found, candidates, city.assignment)
        assert max(row["rank"] for row in found) > 1
    else:
        rows = [row for row in candidates if row["rank"] == 1]
    assert comparable(found) == comparable(rows)
    assert {removal.rule for removal in removals} == set(keys) - {
        *("clock", "prefer", "facing_tolerance")
    }


def same_street(
    streets: gpd.GeoDataFrame,
    points: Sequence[Mapping[str, Any]],
    images: Sequence[Mapping[str, Any]],
    city: City,
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], bool]:
    """Return a function that says whether an image was taken along a point's street."""
    names = [
        name if isinstance(name, str) else osmid
        for name, osmid in zip(streets["name"], streets["osmid"], strict=True)
    ]
    lines = [np.array(line.coords) for line in streets.to_crs(city.projected_srid).geometry]
    placed = projected(images, city.projected_srid)
    number = {name: row for row, name in enumerate(names)}
    nearest = {
        image_id: -1 if line < 0 else number[names[line]]
        for image_id, line in nearest_lines(placed, lines, city.max_distance).items()
    }
    of_image = streets_by_path(placed, nearest)
    of_point = {point["id"]: number.get(point["street"] or point["osmid"], -2) for point in points}
    return lambda image, point: of_image[image["id"]] == of_point[point["id"]]
