"""Images whose photographs are rejected, left out of the selection: beside an exhaustive one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import PhotographRecords
from vsvi_assets.database.selection import select_images
from vsvi_assets.photographs.quality import Quality
from vsvi_assets.photographs.sidecar import ImageRecord, Sidecar
from vsvi_assets.selection.rules import Removal
from vsvi_assets_tests.database.test_selection import ZONE, fill, random_images, random_points
from vsvi_assets_tests.selection.exhaustive import exhaustive_selection

QUALITY = {"min_sharpness": 10, "tries": 3}


def measure(database: Postgis, city: City, sharpness: dict[int, float]) -> None:
    """Let photographs of these sharpnesses be in store."""
    records = {
        image_id: ImageRecord(
            image_id, None, None, None, None, None, None, 4, 3, 7, "00",
            quality=Quality(value, 0.5, 0.2, 0.0, night=False),
        )
        for image_id, value in sharpness.items()
    }  # fmt: skip
    with PhotographRecords(database, city) as stored:
        stored.add("sequence-1", Sidecar(records))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"prefer": "newest"},
        {"per_year": True},
        {"duplicates": "exact"},
        {"months": [4, 5, 6, 7, 8, 9], "prefer": "newest", "per_year": True},
    ],
    ids=str,
)
def test_a_point_gets_its_first_image_that_is_not_rejected_of_those_to_try(
    database: Postgis, make_city: Callable[..., City], keys: dict[str, Any]
) -> None:
    city = make_city(max_distance=45, quality=QUALITY, **keys)
    points, images = random_points(120, 5), random_images(1500, 6)
    fill(database, city, points, images)
    numbers = np.random.default_rng(7)
    sharpness = {row["id"]: float(numbers.uniform(0, 20)) for row in images[::2]}
    measure(database, city, sharpness)
    expected: dict[tuple[int, int | None], int] = {}
    rejected_before: dict[tuple[int, int | None], int] = {}
    for row in exhaustive_selection(points, images, city, ZONE):
        slot = row["street_point_id"], row["year"]
        if sharpness.get(row["image_id"], 20.0) < QUALITY["min_sharpness"]:
            rejected_before[slot] = rejected_before.get(slot, 0) + 1
        elif rejected_before.get(slot, 0) < QUALITY["tries"]:
            expected.setdefault(slot, row["image_id"])
    removals: list[Removal] = []

    found = select_images(database, city, removals).to_pylist()

    assert {(row["street_point_id"], row["year"]): row["image_id"] for row in found} == expected
    assert any(row["rank"] > 1 for row in found)
    given_up = rejected_before.keys() - expected.keys()
    assert any(rejected_before[slot] >= QUALITY["tries"] for slot in given_up)
    assert removals[-1].rule == "quality"
    assert removals[-1].removed >= sum(rejected_before.values())


def test_no_image_is_chosen_twice_in_place_of_a_rejected_one(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    city = make_city(max_distance=45, quality=QUALITY, assignment="one_to_one")
    points, images = random_points(120, 5), random_images(1500, 6)
    fill(database, city, points, images)
    measure(database, city, {row["id"]: float(row["id"] % 20) for row in images})
    found = select_images(database, city)["image_id"].to_pylist()
    assert len(found) == len(set(found)) > 10
    assert all(image_id % 20 >= QUALITY["min_sharpness"] for image_id in found)
