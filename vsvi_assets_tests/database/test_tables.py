"""A city's tables, in a real PostGIS: what is in them, how they are swapped, what is selected."""

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mercantile
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg2 import sql

from vsvi_assets.city import City, CityFileError
from vsvi_assets.database import audit
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.selection import select_images
from vsvi_assets.database.summaries import selected_capture_years
from vsvi_assets.database.tables import (
    images_table,
    selected_images_of,
    selected_images_table,
    street_points_table,
)
from vsvi_assets.mapillary.tile_files import read_tile, write_tile
from vsvi_assets.mapillary.tiles import IMAGE_SCHEMA, decode_tile
from vsvi_assets.photographs.sidecar import ImageRecord, Sidecar, read_sidecar, write_sidecar
from vsvi_assets_tests.database.parts import (
    EAST,
    NORTH,
    SOUTH,
    WEST,
    ask,
    exhaustive,
    image,
    load,
    points,
    scattered,
    tile,
)
from vsvi_assets_tests.mapillary.parts import tile_of


def test_both_tables_hold_both_geometries_indexed_and_in_spatial_order(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    counts = load(
        database, make_city(), [scattered(2000)], [5.205, 5.213, 5.206], [52.523, 52.527, 52.523]
    )
    assert counts == {"street_points": 3, "images": 2000}
    for table in counts:
        assert ask(
            database,
            """SELECT DISTINCT ST_SRID(geometry), ST_SRID(geo), GeometryType(geometry),
                GeometryType(geo), ST_Distance(ST_Transform(geometry, 28992), geo) < 1e-6
                FROM {table}""",
            table,
        ) == [(4326, 28992, "POINT", "POINT", True)]
        columns = ask(
            database,
            """SELECT f_geometry_column, srid, type FROM geometry_columns
                WHERE f_table_schema = 'town' AND f_table_name = {name} ORDER BY 1""",
            table,
        )
        assert columns == [("geo", 28992, "POINT"), ("geometry", 4326, "POINT")]
        indexes = ask(database, "SELECT indexdef FROM pg_indexes WHERE tablename = {name}", table)
        definitions = " ".join(definition for (definition,) in indexes)
        assert "USING gist (geometry)" in definitions
        assert "USING gist (geo)" in definitions
        assert "USING btree (id)" in definitions
        [(analysed,)] = ask(
            database, "SELECT count(*) FROM pg_stats WHERE tablename = {name}", table
        )
        assert analysed

    # On the disk as along a space-filling curve: neighbours in the file are neighbours.
    stored = ask(
        database,
        """SELECT avg(step), avg(random_step) FROM (
            SELECT geo <-> lag(geo) OVER (ORDER BY ctid) AS step,
                geo <-> lag(geo) OVER (ORDER BY id) AS random_step FROM town.images
        ) AS steps""",
    )
    [(step, random_step)] = stored
    assert step < random_step / 5
    [(name,)] = ask(database, "SELECT DISTINCT street FROM town.street_points")
    assert name == "A"


def test_values_come_out_of_the_table_as_they_went_in(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    odd = image(
        2**62,
        5.2045678901234567,
        52.5234567890123456,
        sequence_id="-_NULL",
        captured_at=0,
        compass_angle=361.39,
        is_pano=True,
        creator_id=2**40,
        organization_id=None,
    )
    load(database, make_city(), [tile(odd, image(2, sequence_id="NA"))])
    rows = ask(
        database,
        """SELECT id, sequence_id, captured_at, compass_angle, is_pano, creator_id,
            organization_id, ST_X(geometry), ST_Y(geometry) FROM town.images ORDER BY id DESC""",
    )
    assert rows[0] == (
        *(2**62, "-_NULL", None, 361.39, True, 2**40, None),
        *(5.2045678901234567, 52.5234567890123456),
    )
    assert rows[1][:7] == (2, "NA", None, None, None, None, None)


def test_images_outside_the_box_are_cut_and_those_of_several_tiles_kept_once(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    inside = [image(1, WEST, SOUTH), image(2, EAST, NORTH), image(3)]
    outside = [
        image(4, WEST - 1e-9),
        image(5, EAST + 1e-9),
        image(6, lat=SOUTH - 1e-9),
        image(7, lat=NORTH + 1e-9),
    ]
    counts = load(
        database, make_city(), [tile(*inside, *outside), tile(*outside, image(3)), tile(image(3))]
    )
    assert counts["images"] == 3
    assert ask(database, "SELECT id FROM town.images ORDER BY id") == [(1,), (2,), (3,)]


def test_images_outside_the_box_may_fill_the_beginning_of_a_tile(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    in_two_pieces = pa.concat_tables([tile(image(1, EAST + 1)), tile(image(2), image(3))])
    load(database, make_city(), [in_two_pieces])
    assert ask(database, "SELECT id FROM town.images ORDER BY id") == [(2,), (3,)]


NEW_YEAR_2020 = 1_577_836_800_000


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ({}, {1, 2, 3, 4, 5}),
        ({"panorama": "only"}, {1, 2}),
        ({"panorama": "exclude"}, {3, 4}),
        ({"captured_after": "2020-01-01"}, {2, 3}),
        ({"captured_before": "2020-01-01"}, {1}),
        ({"captured_after": "2020-01-01T00:00:00.001Z"}, {3}),
        ({"captured_after": "2020-01-01T01:00+01:00"}, {2, 3}),
        ({"creator_ids": [10, 11]}, {1, 2, 3}),
        ({"creator_ids": [10], "panorama": "only", "captured_before": "2020-01-01"}, {1}),
    ],
)
def test_filters_leave_what_was_asked_for(
    database: Postgis, make_city: Callable[..., City], keys: dict, ids: set[int]
) -> None:
    images = tile(
        image(1, is_pano=True, captured_at=NEW_YEAR_2020 - 1, creator_id=10),
        image(2, is_pano=True, captured_at=NEW_YEAR_2020, creator_id=10),
        image(3, is_pano=False, captured_at=NEW_YEAR_2020 + 1, creator_id=11),
        image(4, is_pano=False, captured_at=0, creator_id=12),
        image(5),
    )
    load(database, make_city(**keys), [images])
    assert {id for (id,) in ask(database, "SELECT id FROM town.images")} == ids


HOSTILE = """a"b'; DROP SCHEMA public CASCADE; -- {x} \\ é"""


def test_names_and_values_are_never_taken_for_sql(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    street = 'Rue de l\'"Été"; DROP TABLE town.images; --\n%s\\N,{}'
    table = street_points_table(points([5.209], [52.525], street), make_city())
    rows = tile(image(1, sequence_id=HOSTILE), image(2, sequence_id="%s'); DELETE FROM images --"))
    replace_tables(database, HOSTILE, [table, images_table([rows], make_city(HOSTILE))])
    selection = select_images(database, make_city(HOSTILE, selection="all"))
    replace_tables(database, HOSTILE, [selected_images_table(selection, make_city(HOSTILE))])

    schema = sql.Identifier(HOSTILE)
    read = database.read(
        sql.SQL("SELECT street FROM {}.street_points").format(schema),
        pa.schema({"street": pa.string()}),
    )
    assert read["street"].to_pylist() == [street]
    assert selection["sequence_id"].to_pylist() == rows["sequence_id"].to_pylist()
    [(sequence_id, [found])] = selected_images_of(database, HOSTILE, [HOSTILE, "' OR true --"])
    assert (sequence_id, found.id) == (HOSTILE, 1)
    assert ask(database, "SELECT count(*) FROM pg_namespace WHERE nspname = 'public'") == [(1,)]


def test_memory_does_not_grow_with_the_number_of_tiles(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    held: list[int] = []

    def tiles() -> Iterator[pa.Table]:
        for number in range(20):
            held.append(pool.bytes_allocated() - before)
            yield scattered(5000, seed=number)

    load(database, make_city(), tiles())
    one_tile = scattered(5000).nbytes
    assert held[0] < one_tile
    # The tile before, its sorted copy and its geometries may not be freed yet; 20 tiles came.
    assert max(held) < 5 * one_tile


def selected(selection: pa.Table) -> dict[int, tuple[int, object]]:
    return {
        row["street_point_id"]: (row["image_id"], pytest.approx(row["distance"], abs=1e-3))
        for row in selection.to_pylist()
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_distance", [5, 40, 10_000])
def test_the_selection_is_that_of_an_exhaustive_search(
    database: Postgis, make_city: Callable[..., City], seed: int, max_distance: float
) -> None:
    numbers = np.random.default_rng(seed)
    lons, lats = numbers.uniform(WEST, EAST, 300), numbers.uniform(SOUTH, NORTH, 300)
    images = scattered(800, seed + 10)
    city = make_city(max_distance=max_distance)
    load(database, city, [images], lons, lats)

    found = selected(select_images(database, city))

    assert found == exhaustive(images, lons, lats, max_distance)
    assert found
    assert len(found) < 300 or max_distance > 5


def test_of_equally_near_images_the_lowest_id_is_selected(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    places = random.Random(1)
    cells = [
        (5.205 + 0.001 * column, 52.523 + 0.001 * row) for column in range(5) for row in range(4)
    ]
    images = [image(id, *places.choice(cells)) for id in places.sample(range(1, 10**6), 200)]
    city = make_city(max_distance=100)
    load(database, city, [tile(*images)], *zip(*cells, strict=True))

    found = select_images(database, city)

    lowest = {cell: min(i["id"] for i in images if (i["lon"], i["lat"]) == cell) for cell in cells}
    assert found["image_id"].to_pylist() == [lowest[cell] for cell in cells]
    assert set(found["distance"].to_pylist()) == {0.0}


def test_all_selects_every_image_and_no_point(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    city = make_city(selection="all")
    load(database, city, [scattered(30)], [5.209], [52.525])
    found = select_images(database, city)
    assert found["image_id"].to_pylist() == list(range(1, 31))
    assert found["street_point_id"].null_count == found["distance"].null_count == 30


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("ids.txt", "3\n29\n3\n31\n", [3, 29]),
        ("ids.json", json.dumps([{"mapillary_img_id": "30"}, {"mapillary_img_id": 2}]), [2, 30]),
        ("ids.txt", "", []),
        ("ids.json", "[]", []),
    ],
)
def test_a_list_of_ids_selects_these_alone(
    database: Postgis,
    make_city: Callable[..., City],
    tmp_path: Path,
    name: str,
    content: str,
    ids: list[int],
) -> None:
    (tmp_path / name).write_text(content)
    city = make_city(imgid_file=name)
    load(database, city, [scattered(30)], [5.209], [52.525])
    found = select_images(database, city)
    assert found["image_id"].to_pylist() == ids
    assert replace_tables(database, "town", [selected_images_table(found, city)]) == {
        "selected_images": len(ids)
    }


def test_a_missing_list_of_ids_is_an_error(
    database: Postgis, make_city: Callable[..., City], tmp_path: Path
) -> None:
    (tmp_path / "ids.txt").write_text("1")
    city = make_city(imgid_file="ids.txt")
    (tmp_path / "ids.txt").unlink()
    load(database, city, [scattered(3)])
    with pytest.raises(CityFileError, match=r"imgid_file = .*ids\.txt cannot be read"):
        select_images(database, city)


def test_selected_images_come_by_sequence_each_once(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    city = make_city(max_distance=500)
    names = ["b", "-a", "NA", "_"]
    images = [
        image(
            id,
            5.205 + id * 1e-5,
            sequence_id=names[id % 4],
            captured_at=NEW_YEAR_2020 + id,
            is_pano=id % 2 == 0,
        )
        for id in range(1, 41)
    ]
    load(database, city, [tile(*images)], [5.205 + i * 1e-6 for i in range(400)], [52.525] * 400)
    selection = select_images(database, city)
    replace_tables(database, "town", [selected_images_table(selection, city)])

    found = dict(selected_images_of(database, "town", [*names, "absent"]))

    assert list(found) == sorted(names)
    assert [i.id for s in found.values() for i in s] == [
        i for name in sorted(names) for i in range(1, 41) if names[i % 4] == name
    ]
    one = found["NA"][0]
    assert (one.id, one.captured_at, one.is_pano, one.creator_id) == (
        2,
        NEW_YEAR_2020 + 2,
        True,
        None,
    )
    assert (one.lon, one.lat) == (images[1]["lon"], images[1]["lat"])
    assert list(selected_images_of(database, "town", [])) == []


FIRST_POSSIBLE = 1_072_915_200_000
"""2004-01-01, in milliseconds since 1970."""


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30))
@example([0, FIRST_POSSIBLE - 1, FIRST_POSSIBLE, NEW_YEAR_2020, 1_600_000_000_000_000_000, None])
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_capture_time_makes_anything_fail_and_impossible_ones_are_unknown(
    database: Postgis, make_city: Callable[..., City], tmp_path: Path, times: list[int | None]
) -> None:
    city = make_city(selection="all")
    properties = [
        {"id": id, "sequence_id": "s"} | ({} if moment is None else {"captured_at": moment})
        for id, moment in enumerate(times, 1)
    ]
    middle = mercantile.tile(5.209, 52.525, 14)
    decoded = decode_tile(tile_of(properties, at=[(1000, 2000)] * len(times)), middle)
    write_tile(decoded, tmp_path / "tile", "mapillary")
    stored = read_tile(tmp_path / "tile", "mapillary").images
    assert stored["captured_at"].to_pylist() == times

    places = {"lon": [5.209] * len(times), "lat": [52.525] * len(times)}
    load(database, city, [pa.table({**stored.to_pydict(), **places}, IMAGE_SCHEMA)])
    selection = select_images(database, city)
    replace_tables(database, "town", [selected_images_table(selection, city)])
    [(_, found)] = selected_images_of(database, "town", ["s"])

    tomorrow = (time.time() + 24 * 3600) * 1000
    known = [t if t is not None and FIRST_POSSIBLE <= t <= tomorrow else None for t in times]
    assert [selected_image.captured_at for selected_image in found] == known
    assert sum(selected_capture_years(database, city).totals.values()) == len(times)
    assert audit.unknown_capture_times(database, city).count == known.count(None)
    assert audit.selected_and_old(database, city, 10).of == len(times)
    records = {
        i.id: ImageRecord(i.id, i.lon, i.lat, i.captured_at, None, None, None, 1, 1, 1, "00")
        for i in found
    }
    (tmp_path / "s").mkdir(exist_ok=True)
    write_sidecar(tmp_path / "s", Sidecar(records))
    assert [i.captured_at for i in read_sidecar(tmp_path / "s").images.values()] == known
