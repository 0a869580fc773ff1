"""The questions to a city's tables, in a real PostGIS."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vsvi_assets.city import City
from vsvi_assets.database import audit
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.queries import (
    count_points_without_image,
    coverage,
    row_count,
    selected_ids,
)
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.schema import IMAGES, SELECTED_IMAGES
from vsvi_assets.database.selection import select_images
from vsvi_assets.database.tables import selected_images_table
from vsvi_assets_tests.database.parts import (
    EAST,
    NORTH,
    SOUTH,
    WEST,
    exhaustive,
    image,
    load,
    scattered,
    tile,
)


@pytest.mark.parametrize("keys", [{}, {"selection": "all"}, {"imgid_file": "ids.txt"}])
def test_a_point_is_covered_by_the_nearest_selected_image_whatever_was_selected(
    database: Postgis, make_city: Callable[..., City], tmp_path: Path, keys: dict
) -> None:
    numbers = np.random.default_rng(4)
    lons, lats = numbers.uniform(WEST, EAST, 200), numbers.uniform(SOUTH, NORTH, 200)
    images = scattered(600, seed=5)
    listed = range(1, 601, 7)
    (tmp_path / "ids.txt").write_text("\n".join(map(str, listed)))
    city = make_city(max_distance=20, **keys)
    load(database, city, [images], lons, lats)
    selection = select_images(database, city)
    replace_tables(database, "town", [selected_images_table(selection, city)])

    found = coverage(database, city)

    candidates = (
        images.slice(0, 600) if "imgid_file" not in keys else images.take([id - 1 for id in listed])
    )
    expected = exhaustive(candidates, lons, lats, 20)
    assert 0 < len(expected) < 200
    assert {
        row["street_point_id"]: (row["image_id"], pytest.approx(row["distance"], abs=1e-3))
        for row in found.to_pylist()
        if row["image_id"]
    } == expected
    assert found["street_point_id"].to_pylist() == list(range(200))
    np.testing.assert_array_equal(found["lon"].to_numpy(), lons)
    assert count_points_without_image(database, city) == 200 - len(expected)
    gaps = audit.points_without_image(database, city)
    assert (gaps.count, gaps.of) == (200 - len(expected), 200)
    assert len(gaps.examples) == audit.EXAMPLES


def test_tables_that_are_not_made_yet_have_no_count(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    city = make_city()
    assert row_count(database, city, IMAGES) is None
    load(database, city, [scattered(3)])
    assert row_count(database, city, IMAGES) == 3
    assert row_count(database, city, SELECTED_IMAGES) is None


def test_selected_ids_come_each_once(database: Postgis, make_city: Callable[..., City]) -> None:
    city = make_city(selection="all")
    load(database, city, [tile(*(image(id) for id in range(1, 8)))])
    selection = select_images(database, city)
    replace_tables(database, "town", [selected_images_table(selection, city)])
    assert selected_ids(database, city).to_pylist() == list(range(1, 8))
