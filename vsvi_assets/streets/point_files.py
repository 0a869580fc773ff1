"""Street points as a GeoJSON file (EPSG:4326), a feature per line, as GDAL writes it."""

import io
from pathlib import Path
from typing import BinaryIO

import geopandas as gpd
import pyarrow as pa
import pyarrow.json
import shapely

from vsvi_assets.city.places import columns_of_user
from vsvi_assets.streets.points import COORDINATE_DECIMALS

_START, _END = b'"features": [\n', b"\n]\n}"
_CRS = b'"urn:ogc:def:crs:OGC:1.3:CRS84"'
_OWN = pa.schema(
    {"id": pa.int64(), "osmid": pa.int64(), "street": pa.string(), "bearing": pa.float64()}
)
_LINES = pa.json.ParseOptions(
    explicit_schema=pa.schema(
        {
            "properties": pa.struct(list(_OWN)),
            "geometry": pa.struct({"coordinates": pa.list_(pa.float64())}),
        }
    ),
    unexpected_field_behavior="ignore",
)


def write_points(points: gpd.GeoDataFrame, file: BinaryIO) -> None:
    """Write points with all their columns."""
    # GDAL writes to memory: pyogrio takes no open file.
    text = io.BytesIO()
    points.to_file(
        text,
        driver="GeoJSON",
        layer="street_points",
        COORDINATE_PRECISION=COORDINATE_DECIMALS,
        # Faster, but lists in the user's own columns come out otherwise.
        use_arrow=not columns_of_user(points),
    )
    file.write(text.getbuffer())


def read_points(path: Path, *, of_user: bool = False) -> gpd.GeoDataFrame:
    """Read `id`, `osmid`, `street`, `bearing` and `geometry`; of the user's places all columns.

    Arrow reads points on streets in a fifth of GDAL's time. What is not laid out as GDAL writes it,
    such as a file that was edited, GDAL reads, with all its columns.
    """
    if of_user:
        return gpd.read_file(path)
    head, _, features = path.read_bytes().partition(_START)
    lines, end, _ = features.rpartition(_END)
    if _CRS not in head or not end:
        return gpd.read_file(path)
    try:
        source = pa.BufferReader(lines.replace(b"},\n", b"}\n"))
        table = pa.json.read_json(source, parse_options=_LINES).flatten()
    except pa.ArrowInvalid:
        return gpd.read_file(path)
    coordinates = table["geometry.coordinates"].combine_chunks()
    places = coordinates.flatten()
    own = pa.table([table[f"properties.{name}"] for name in _OWN.names], _OWN)
    has_all = not (own["id"].null_count or own["osmid"].null_count or places.null_count)
    if not has_all or len(places) != 2 * len(table) or coordinates.null_count:
        return gpd.read_file(path)
    points = shapely.points(places.to_numpy().reshape(-1, 2))
    return gpd.GeoDataFrame(own.to_pandas(), geometry=points, crs="EPSG:4326")
