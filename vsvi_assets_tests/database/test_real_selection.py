"""The rules of the city file on recorded data, in the folder that VSVI_REAL_DATA names."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    nearest_street,
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


@pytest.mark.parametrize(
    "keys",
    [
        {"same_street": True},
        {
            "same_street": True,
            "duplicates": "exact",
            "facing": "along",
            "months": [4, 5, 6, 7, 8, 9, 10],
            "daylight": 5,
            "assignment": "one_to_one",
        },
    ],
    ids=str,
)
def test_a_real_tile_on_the_streets_of_delft(
    database: Postgis, make_city: Callable[..., City], keys: dict[str, Any]
) -> None:
    # The tile's own place is not recorded; its points keep their pattern.
    tile = mercantile.tile(4.36, 52.01, 14)
    data = (REAL_DATA / "tiles" / "mapillary_2024_xy_unknown.mvt").read_bytes()
    decoded = decode_tile(data, tile).images.sort_by([("sequence_id", "ascending")])
    images = decoded.select(
        [
            *("id", "sequence_id", "captured_at", "compass_angle", "is_pano", "creator_id"),
            *("lon", "lat"),
        ]
    ).to_pylist()[:700]
    places = np.array([(image["lon"], image["lat"]) for image in images])
    city = city_around(places, make_city, max_distance=40, **keys)
    lines = read_streets(REAL_DATA / "osm" / "Delft.graphml", "all")
    box, srid = city.area.bounds, city.projected_srid
    streets = streets_within(lines, box, srid)
    along = street_points(lines, box, srid, 100)
    points = [
        {
            **{"id": row.id, "lon": row.geometry.x, "lat": row.geometry.y},
            **{"bearing": row.bearing, "osmid": row.osmid, "street": row.street},
        }
        for row in along.itertuples()
    ]
    fill(database, city, points, images)
    replace_tables(database, city.name, [streets_table(streets, city)])
    names = [
        name if isinstance(name, str) else osmid
        for name, osmid in zip(streets["name"], streets["osmid"], strict=True)
    ]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    shapes = [np.array(line.coords) for line in streets.to_crs(srid).geometry]
    placed = projected(images, srid)
    nearest = {}
    for each in placed:
        line = nearest_street(each, shapes, city.max_distance)
        nearest[each["id"]] = -1 if line < 0 else numbers[names[line]]
    street_of = streets_by_path(placed, nearest)
    own = {point["id"]: numbers.get(point["street"] or point["osmid"], -2) for point in points}
    candidates = [
        row
        for row in exhaustive_selection(points, images, city, "Europe/Amsterdam")
        if street_of[row["image_id"]] == own[row["street_point_id"]]
    ]
    found = select_images(database, city).to_pylist()
    assert candidates
    assert all(street_of[row["image_id"]] == own[row["street_point_id"]] for row in found)
    assert_chosen(found, candidates, city.assignment)
