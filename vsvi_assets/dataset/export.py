"""A city's dataset as one table in a file, written as its rows arrive."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
import pyogrio
import pyproj

from vsvi_assets.dataset.errors import DatasetError
from vsvi_assets.files import DataPath, atomic_write, in_store

_ROWS_PER_GROUP = 65_536
_SRID = 4326


def write_table(rows: pa.RecordBatchReader, path: DataPath) -> int:
    """Write a table of places to a file that appears whole or not at all; return its rows.

    The file's ending names the format: `.parquet` (GeoParquet 1.1), `.gpkg` (GeoPackage) or
    `.csv`. Rows are written as they arrive, so memory does not grow with their number.

    Parameters
    ----------
    rows
        Batches with the columns `lon` and `lat` (float64, degrees, EPSG:4326). GeoParquet and
        GeoPackage get a column `geometry` of them, null where one of them is.

    Raises
    ------
    DatasetError
        When the ending names none of these formats.
    """
    writers: dict[str, Callable[[pa.RecordBatchReader, DataPath], int]] = {
        ".parquet": _write_geoparquet,
        ".gpkg": _write_geopackage,
        ".csv": _write_csv,
    }
    if path.suffix not in writers:
        raise DatasetError(f"{path}: must end in one of {', '.join(writers)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return writers[path.suffix](rows, path)


def convert_table(table: Path, path: DataPath) -> int:
    """Write a GeoParquet file of `write_table` once more, in the format of the path's ending."""
    with pyarrow.parquet.ParquetFile(table) as file:
        names = [name for name in file.schema_arrow.names if name != "geometry"]
        schema = pa.schema([file.schema_arrow.field(name) for name in names])
        batches = file.iter_batches(_ROWS_PER_GROUP, columns=names)
        return write_table(pa.RecordBatchReader.from_batches(schema, batches), path)


def _write_geoparquet(rows: pa.RecordBatchReader, path: DataPath) -> int:
    """Write GeoParquet 1.1.0 (https://geoparquet.org/releases/v1.1.0/), geometry as WKB."""
    bounds = _Bounds()
    schema = _with_geometry(rows.schema)
    with (
        atomic_write(path) as file,
        pa.parquet.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        count = 0
        for table in _row_groups(rows):
            bounds.add(table)
            writer.write_table(_add_geometry(table, schema), row_group_size=_ROWS_PER_GROUP)
            count += table.num_rows
        geometry = {
            "encoding": "WKB",
            "geometry_types": ["Point"],
            "crs": pyproj.CRS.from_epsg(_SRID).to_json_dict(),
            **bounds.bbox(),
        }
        geo = {
            "version": "1.1.0",
            "primary_column": "geometry",
            "columns": {"geometry": geometry},
        }
        writer.add_key_value_metadata({"geo": orjson.dumps(geo).decode()})
    return count


def _write_geopackage(rows: pa.RecordBatchReader, path: DataPath) -> int:
    schema = _with_geometry(rows.schema)
    count = 0

    failure: Exception | None = None

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal count, failure
        try:
            for batch in rows:
                count += batch.num_rows
                yield from _add_geometry(pa.Table.from_batches([batch]), schema).to_batches()
        except Exception as error:
            failure = error
            raise

    beside = None if in_store(path) else path.parent
    # GDAL wants a path of its own to write to, with the ending that it knows.
    with tempfile.TemporaryDirectory(dir=beside, prefix=".") as folder:
        written = Path(folder, path.name)
        try:
            pyogrio.raw.write_arrow(
                pa.RecordBatchReader.from_batches(schema, batches()),
                written,
                layer=path.stem,
                driver="GPKG",
                geometry_name="geometry",
                geometry_type="Point",
                crs=f"EPSG:{_SRID}",
                # GDAL 3.6, as in R and QGIS of long-lived systems, warns of anything newer.
                dataset_options={"VERSION": "1.3"},
                layer_options={"GEOMETRY_NAME": "geometry", "DATETIME_PRECISION": "MILLISECOND"},
            )
        except RuntimeError as error:
            # GDAL hides what went wrong in the rows behind an error of its own.
            raise failure or error from error
        with atomic_write(path) as file, written.open("rb") as source:
            shutil.copyfileobj(source, file)
    return count


def _write_csv(rows: pa.RecordBatchReader, path: DataPath) -> int:
    count = 0
    with atomic_write(path) as file, pa.csv.CSVWriter(file, rows.schema) as writer:
        for batch in rows:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _row_groups(rows: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Yield the rows in tables of at least `_ROWS_PER_GROUP`, but for the last one."""
    waiting: list[pa.RecordBatch] = []
    for batch in rows:
        waiting.append(batch)
        if sum(part.num_rows for part in waiting) >= _ROWS_PER_GROUP:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


class _Bounds:
    """The box around all places that were added."""

    def __init__(self) -> None:
        self._boxes: list[list[float]] = []

    def add(self, table: pa.Table) -> None:
        known = table.filter(pa.compute.is_valid(_point_numbers(table)))
        if known.num_rows:
            lon, lat = (pa.compute.min_max(known[name]).as_py() for name in ("lon", "lat"))
            self._boxes.append([lon["min"], lat["min"], lon["max"], lat["max"]])

    def bbox(self) -> dict[str, list[float]]:
        """Return the box as GeoParquet's member `bbox`; no member where no place is known."""
        if not self._boxes:
            return {}
        west, south, east, north = zip(*self._boxes, strict=True)
        return {"bbox": [min(west), min(south), max(east), max(north)]}


def _point_numbers(table: pa.Table) -> pa.ChunkedArray:
    """Return a column that is null where longitude or latitude is."""
    return pa.compute.add(table["lon"], table["lat"])


def _with_geometry(schema: pa.Schema) -> pa.Schema:
    # GDAL knows a geometry by this name of GeoArrow's.
    geoarrow = {"ARROW:extension:name": "ogc.wkb"}
    return schema.append(pa.field("geometry", pa.binary(), metadata=geoarrow))


def _add_geometry(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with its places as points in WKB (OGC 06-103r4, little-endian)."""
    lon = table["lon"].combine_chunks()
    lat = table["lat"].combine_chunks()
    missing = pa.compute.is_null(_point_numbers(table)).combine_chunks()
    points = np.empty(table.num_rows, [("order", "u1"), ("type", "<u4"), ("xy", "<f8", 2)])
    points["order"], points["type"] = 1, 1
    points["xy"][:, 0] = lon.to_numpy(zero_copy_only=False)
    points["xy"][:, 1] = lat.to_numpy(zero_copy_only=False)
    offsets = np.arange(table.num_rows + 1, dtype=np.int32) * points.itemsize
    all_points = pa.BinaryArray.from_buffers(
        pa.binary(), table.num_rows, [None, pa.py_buffer(offsets), pa.py_buffer(points)]
    )
    geometry = pa.compute.if_else(missing, pa.scalar(None, pa.binary()), all_points)
    return table.append_column("geometry", geometry).cast(schema)
