import csv
import json
import math
import sqlite3
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from vsvi_assets.dataset.errors import DatasetError
from vsvi_assets.dataset.export import write_table
from vsvi_assets_tests.dataset.parts import SCHEMA, row, rows_of

ROWS = [row(number) for number in range(2500)]
ENDINGS = ("parquet", "gpkg", "csv")


@pytest.mark.parametrize("ending", ["parquet", "gpkg"])
def test_geopandas_reads_every_row_and_field(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "new" / f"dataset.{ending}"
    assert write_table(rows_of(ROWS), path) == len(ROWS)
    read = geopandas.read_parquet if ending == "parquet" else geopandas.read_file
    table = read(path)
    assert table.crs == "EPSG:4326"
    assert len(table) == len(ROWS)
    first = table.iloc[0]
    assert (first.geometry.x, first.geometry.y) == (ROWS[0]["lon"], ROWS[0]["lat"])
    for name in SCHEMA.names:
        values = [None if value is None or value != value else value for value in table[name]]
        expected = [known[name] for known in ROWS]
        if name == "captured_at":
            values = [None if value is None else value.to_pydatetime() for value in values]
        assert values == expected, name


def test_csv_has_every_row_and_field(tmp_path: Path) -> None:
    path = tmp_path / "dataset.csv"
    assert write_table(rows_of(ROWS), path) == len(ROWS)
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(ROWS)
    assert table[0]["street"] == ROWS[0]["street"]
    assert table[0]["captured_at"] == "2024-02-29 23:59:59.123000Z"
    assert [float(line["lon"]) for line in table] == [known["lon"] for known in ROWS]
    assert table[2]["image_id"] == table[2]["file"] == ""


def test_geoparquet_has_the_metadata_that_its_specification_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "dataset.parquet"
    write_table(rows_of(ROWS), path)
    file = pyarrow.parquet.ParquetFile(path)
    geo = json.loads(file.metadata.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Point"])
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 4326}
    lon, lat = ([float(str(known[name])) for known in ROWS] for name in ("lon", "lat"))
    assert column["bbox"] == [min(lon), min(lat), max(lon), max(lat)]
    assert file.schema.column(len(SCHEMA)).physical_type == "BYTE_ARRAY"
    assert file.schema_arrow.field("street_point_id").metadata[b"description"]


def test_the_geopackage_s_times_and_names_are_as_its_specification_says(tmp_path: Path) -> None:
    path = tmp_path / "dataset.gpkg"
    write_table(rows_of(ROWS), path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (10300,)
        time, kind = database.execute(
            "SELECT captured_at, typeof(captured_at) FROM dataset LIMIT 1"
        ).fetchone()
        columns = "SELECT column_name, geometry_type_name FROM gpkg_geometry_columns"
        assert database.execute(columns).fetchall() == [("geometry", "POINT")]
    assert (time, kind) == ("2024-02-29T23:59:59.123Z", "text")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_place_that_is_not_known_has_no_geometry(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"dataset.{ending}"
    unknown = row(0) | {"lon": None}
    assert write_table(rows_of([unknown, row(1)]), path) == 2
    if ending == "csv":
        return
    read = geopandas.read_parquet if ending == "parquet" else geopandas.read_file
    assert list(read(path).geometry.isna()) == [True, False]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_city_without_points_gives_an_empty_table(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"dataset.{ending}"
    assert write_table(rows_of([]), path) == 0
    if ending == "parquet":
        assert geopandas.read_parquet(path).empty
    elif ending == "gpkg":
        assert geopandas.read_file(path).empty
    else:
        assert path.read_text().count("\n") == 1


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_broken_stream_leaves_the_old_file_and_nothing_else(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"dataset.{ending}"
    path.write_bytes(b"old")

    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pylist(ROWS, SCHEMA)
        raise ConnectionError("the database is gone")

    with pytest.raises(ConnectionError, match="the database is gone"):
        write_table(pa.RecordBatchReader.from_batches(SCHEMA, batches()), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"must end in one of \.parquet, \.gpkg, \.csv"):
        write_table(rows_of(ROWS), tmp_path / "dataset.xlsx")


def repeated(times: int) -> pa.RecordBatchReader:
    batch = pa.RecordBatch.from_pylist([row(number) for number in range(10_000)], SCHEMA)
    return pa.RecordBatchReader.from_batches(SCHEMA, (batch for _ in range(times)))


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_million_rows_take_seconds_and_no_more_memory_than_a_tenth_of_them(
    tmp_path: Path, ending: str
) -> None:
    peaks = {}
    for times in (10, 100):
        pool = pa.default_memory_pool()
        highest = 0
        tracemalloc.start()

        def watched(
            batches: pa.RecordBatchReader, pool: pa.MemoryPool = pool
        ) -> Iterator[pa.RecordBatch]:
            nonlocal highest
            for batch in batches:
                highest = max(highest, pool.bytes_allocated())
                yield batch

        rows = repeated(times)
        started = time.process_time()  # in which other processes have no part
        path = tmp_path / f"dataset.{ending}"
        write_table(pa.RecordBatchReader.from_batches(rows.schema, watched(rows)), path)
        assert time.process_time() - started < 20
        peaks[times] = highest + tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[100] < 1.5 * peaks[10]


def test_places_are_written_to_the_last_bit(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    places = [
        row(0) | {"lon": float(lon), "lat": float(lat)}
        for lon, lat in generator.uniform((-180, -90), (180, 90), (500, 2))
    ]
    path = tmp_path / "dataset.parquet"
    write_table(rows_of(places), path)
    geometry = geopandas.read_parquet(path).geometry
    assert list(zip(geometry.x, geometry.y, strict=True)) == [
        (place["lon"], place["lat"]) for place in places
    ]
    assert all(map(math.isfinite, geometry.total_bounds))
