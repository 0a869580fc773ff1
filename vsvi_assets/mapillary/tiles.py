"""Vector tiles of images: from the service's bytes to a table, and to a GeoJSON file and back.

Sources: Mapbox Vector Tile specification 2.1; the properties of the `image` layer at
https://www.mapillary.com/developer/api-documentation#coverage-tiles.
"""

import io
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import mercantile
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from google.protobuf.message import DecodeError
from mapbox_vector_tile.Mapbox import vector_tile_pb2

from vsvi_assets.files import atomic_write
from vsvi_assets.mapillary.errors import (
    InvalidSequenceIdError,
    InvalidTileError,
    MalformedTileError,
    cut_short,
)

IMAGE_LAYER = "image"
MAX_TILE_BYTES = 40_000_000
MAX_IMAGES = 1_000_000
MAX_PROPERTIES = 100
MAX_FILE_BYTES = 800_000_000
"""Limits several times above the densest city's tile: 170,000 images in 10 MB.

A tile made to take memory takes 40 times its bytes, so these also bound the memory.
"""


def _field(name: str, type: pa.DataType, description: str, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, type, nullable, metadata={"description": description})


IMAGE_SCHEMA = pa.schema(
    [
        _field("id", pa.int64(), "Mapillary's id of the image.", nullable=False),
        _field("sequence_id", pa.string(), "Mapillary's id of its sequence.", nullable=False),
        _field("captured_at", pa.int64(), "Milliseconds since 1970 (UTC); null where unknown."),
        _field("compass_angle", pa.float64(), "Degrees clockwise from north."),
        _field("is_pano", pa.bool_(), "Whether it is a panorama."),
        _field("creator_id", pa.int64(), "Who took it."),
        _field("organization_id", pa.int64(), "For which organization it was taken."),
        _field("lon", pa.float64(), "Longitude in degrees (EPSG:4326).", nullable=False),
        _field("lat", pa.float64(), "Latitude in degrees (EPSG:4326).", nullable=False),
    ]
)
"""One row per image, each field with its description. Null where the tile does not say."""

POSITION = ("lon", "lat")
_PROPERTIES = [name for name in IMAGE_SCHEMA.names if name not in POSITION]
_FILE_START, _BETWEEN_FEATURES, _FILE_END = (
    b'{"type":"FeatureCollection","features":[\n',
    b"}},\n",
    b"\n]}\n",
)
_FEATURE_LINES = pa.json.ParseOptions(
    explicit_schema=pa.schema(
        {
            "geometry": pa.struct({"coordinates": pa.list_(pa.float64())}),
            "properties": pa.struct([IMAGE_SCHEMA.field(name) for name in _PROPERTIES]),
        }
    ),
    unexpected_field_behavior="ignore",
)
_SEQUENCE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_POINT = 1
_MOVE_TO_ONE_POINT = 9


def is_sequence_id(text: str) -> bool:
    """Return whether a text is 1 to 64 of A-Z, a-z, 0-9, `_` and `-`."""
    return bool(_SEQUENCE_ID.fullmatch(text))


def check_sequence_id(sequence_id: str) -> str:
    """Return a sequence id that is safe as the name of a folder.

    Raises
    ------
    InvalidSequenceIdError
        When it is none, as `is_sequence_id` decides.
    """
    if not is_sequence_id(sequence_id):
        raise InvalidSequenceIdError(f"{cut_short(sequence_id)} is no sequence id")
    return sequence_id


def decode_tile(data: bytes, tile: mercantile.Tile) -> pa.Table:
    """Decode the `image` layer of a vector tile.

    Returns a table of `IMAGE_SCHEMA`, followed by one column for each property that the layer
    has beyond it. No bytes, or no `image` layer, is a tile without images.

    The protocol buffer is parsed by mapbox-vector-tile's generated (C) code and flattened
    into NumPy arrays, which is several times faster than its own decoder to Python dicts.
    GDAL is about as fast, but takes broken features for absent ones.

    Raises
    ------
    MalformedTileError
        When the bytes are no whole vector tile.
    InvalidTileError
        When an image in it is not what it should be.
    """
    where = tile_name(tile)
    layer = _image_layer(data, where)
    if layer is None:
        return IMAGE_SCHEMA.empty_table()
    if len(layer.features) > MAX_IMAGES:
        raise InvalidTileError(f"{where}: {len(layer.features):,} images, more than {MAX_IMAGES:,}")
    columns = _properties(layer, where)
    columns["lon"], columns["lat"] = _positions(layer, tile, where)
    table = _table(columns, len(layer.features), where)
    _check_images(table, where)
    return table


def tile_geojson(table: pa.Table) -> bytes:
    """Write a table of images as a GeoJSON FeatureCollection, one feature a line.

    The features are those of vt2geojson: Points whose properties are the tile's own, absent
    where the tile does not have them.

    The text is put together column by column in Arrow, which takes a third of the time that
    a dict for each feature takes.
    """
    pieces: list[Any] = [
        '{"type":"Feature","geometry":{"type":"Point","coordinates":[',
        _json_texts(table["lon"]),
        ",",
        _json_texts(table["lat"]),
        ']},"properties":{"id":',
        _json_texts(table["id"]),
    ]
    for name in table.column_names:
        if name not in ("id", *POSITION):
            key = f",{orjson.dumps(name).decode()}:"
            texts = pc.binary_join_element_wise(key, _json_texts(table[name]), "")
            pieces.append(texts.fill_null(""))
    end = _BETWEEN_FEATURES.decode()
    lines = pc.binary_join_element_wise(*pieces, end, "").cast(pa.large_string())
    # The lines lie in memory one behind the other, as they are to lie in the file.
    text = lines.combine_chunks().buffers()[2]
    length = pc.sum(pc.binary_length(lines), min_count=0).as_py()
    features = memoryview(text)[: max(length - len(",\n"), 0)]
    return b"".join([_FILE_START, features, _FILE_END])


def write_tile(table: pa.Table, path: Path) -> None:
    """Write `tile_geojson` to a file, which appears whole or not at all."""
    with atomic_write(path) as file:
        file.write(tile_geojson(table))


def read_tile(path: Path) -> pa.Table:
    """Read a tile file, written by `write_tile` or by percept-vsvi-filter, to `IMAGE_SCHEMA`.

    percept-vsvi-filter stores an empty FeatureCollection for whatever the service answers
    without images, error pages among them; such a file cannot be told from an empty tile.

    Raises
    ------
    InvalidTileError
        When it is no FeatureCollection of Mapillary images.
    FileNotFoundError
        When there is no such file.
    """
    where = str(path)
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise InvalidTileError(f"{where}: {size:,} bytes, more than {MAX_FILE_BYTES:,}")
    data = path.read_bytes()
    table = _read_lines(data)
    if table is None:
        table = _read_features(data, where)
    elif len(table) > MAX_IMAGES:
        raise InvalidTileError(f"{where}: {len(table):,} images, more than {MAX_IMAGES:,}")
    _check_images(table, where)
    return table


def tile_name(tile: mercantile.Tile) -> str:
    """Return a tile's name in messages: "tile 14/8574/5735"."""
    return f"tile {tile.z}/{tile.x}/{tile.y}"


def _read_lines(data: bytes) -> pa.Table | None:
    """Read a file that has a feature a line, as `tile_geojson` writes it; None of any other.

    Arrow reads such lines in a quarter of the time that a dict for each feature takes.
    """
    if not (data.startswith(_FILE_START) and data.endswith(_FILE_END)):
        return None
    features = data[len(_FILE_START) : -len(_FILE_END)]
    lines = io.BytesIO(features.replace(_BETWEEN_FEATURES, b"}}\n"))
    try:
        table = pa.json.read_json(lines, parse_options=_FEATURE_LINES).flatten()
    except pa.ArrowInvalid:
        return None
    coordinates = table["geometry.coordinates"]
    are_positions = pc.all(pc.equal(pc.list_value_length(coordinates), 2), skip_nulls=False)
    if len(table) != features.count(_BETWEEN_FEATURES) + 1 or not are_positions.as_py():
        return None
    columns = [table[f"properties.{name}"] for name in _PROPERTIES]
    columns += [pc.list_element(coordinates, axis) for axis in range(2)]
    return pa.Table.from_arrays(columns, schema=IMAGE_SCHEMA)


def _read_features(data: bytes, where: str) -> pa.Table:
    """Read a GeoJSON file of images, however it is laid out."""
    try:
        collection = orjson.loads(data)
        features = collection["features"]
        if collection["type"] != "FeatureCollection" or not isinstance(features, list):
            raise TypeError("no FeatureCollection")
        if len(features) > MAX_IMAGES:
            raise InvalidTileError(f"{where}: {len(features):,} images, more than {MAX_IMAGES:,}")
        properties = [feature["properties"] for feature in features]
        positions = [feature["geometry"]["coordinates"] for feature in features]
        columns: dict[str, Any] = {
            name: [image.get(name) for image in properties] for name in _PROPERTIES
        }
        columns["lon"] = [lon for lon, _ in positions]
        columns["lat"] = [lat for _, lat in positions]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidTileError(
            f"{where}: not a GeoJSON file of images, begins with {cut_short(data)}. "
            "Delete it to have the tile fetched again."
        ) from error
    return _table(columns, len(positions), where)


def _image_layer(data: bytes, where: str) -> vector_tile_pb2.tile.layer | None:
    """Return the layer of images; None where the tile has none."""
    if len(data) > MAX_TILE_BYTES:
        raise InvalidTileError(f"{where}: {len(data):,} bytes, more than {MAX_TILE_BYTES:,}")
    message = vector_tile_pb2.tile()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise MalformedTileError(
            f"{where}: not a whole vector tile, begins with {cut_short(data)}"
        ) from error
    if data and not message.layers:
        raise MalformedTileError(f"{where}: not a vector tile, begins with {cut_short(data)}")
    layers = [layer for layer in message.layers if layer.name == IMAGE_LAYER]
    if len(layers) > 1:
        raise InvalidTileError(f"{where}: {len(layers)} layers named {IMAGE_LAYER!r}")
    return layers[0] if layers else None


def _json_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column's values as JSON; null where they are null, or no JSON number."""
    if pa.types.is_string(column.type):
        distinct = column.unique().drop_null()
        texts = pa.array(
            [orjson.dumps(text).decode() for text in distinct.to_pylist()], pa.string()
        )
        return texts.take(pc.index_in(column, distinct))
    if pa.types.is_floating(column.type):
        texts = pc.if_else(pc.is_finite(column), column, None).cast(pa.string())
        is_integer = pc.match_substring_regex(texts, r"^-?\d+$")
        return pc.if_else(is_integer, pc.binary_join_element_wise(texts, "0", "."), texts)
    return column.cast(pa.string())


def _properties(layer: vector_tile_pb2.tile.layer, where: str) -> dict[str, np.ndarray]:
    """Return the layer's properties by name, a value (or None) for each feature."""
    values = np.empty(len(layer.values), object)
    contents = [content for value in layer.values for _, content in value.ListFields()[:1]]
    if len(contents) != len(values):
        raise MalformedTileError(f"{where}: a value without a type")
    values[:] = contents
    tags = [feature.tags for feature in layer.features]
    lengths = np.fromiter(map(len, tags), np.int64, len(tags))
    if (lengths % 2).any():
        raise MalformedTileError(f"{where}: a property without a value")
    if len(layer.keys) > MAX_PROPERTIES:
        raise InvalidTileError(f"{where}: {len(layer.keys):,} properties")
    pairs = np.fromiter(chain.from_iterable(tags), np.int64, lengths.sum()).reshape(-1, 2)
    keys, indices = pairs.T
    if len(pairs) and (keys.max() >= len(layer.keys) or indices.max() >= len(values)):
        raise MalformedTileError(f"{where}: a property that the layer does not list")
    rows = np.repeat(np.arange(len(tags)), lengths // 2)
    columns: dict[str, np.ndarray] = {}
    for key, name in enumerate(layer.keys):
        if not isinstance(name, str) or not name.isprintable():  # bytes where it is no UTF-8
            raise MalformedTileError(f"{where}: a property named {cut_short(name)}")
        column = columns.setdefault(name, np.full(len(tags), None, object))
        having = keys == key
        column[rows[having]] = values[indices[having]]
    return columns


def _positions(
    layer: vector_tile_pb2.tile.layer, tile: mercantile.Tile, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return longitudes and latitudes of the features (inverse spherical Mercator)."""
    types = {feature.type for feature in layer.features}
    geometries = [feature.geometry for feature in layer.features]
    lengths = set(map(len, geometries))
    if not (types <= {_POINT} and lengths <= {3}):
        raise InvalidTileError(f"{where}: an image that is no point")
    numbers = np.fromiter(chain.from_iterable(geometries), np.int64, 3 * len(geometries))
    command, x, y = numbers.reshape(-1, 3).T
    if (command != _MOVE_TO_ONE_POINT).any() or not layer.extent:
        raise InvalidTileError(f"{where}: an image that is no point")
    x, y = ((zigzag >> 1) ^ -(zigzag & 1) for zigzag in (x, y))
    if any((abs(axis) > 2 * layer.extent).any() for axis in (x, y)):
        raise InvalidTileError(f"{where}: an image far outside the tile")
    size = layer.extent * 2.0**tile.z
    lon = (x + layer.extent * tile.x) * 360.0 / size - 180.0
    mercator = 180.0 - (y + layer.extent * tile.y) * 360.0 / size
    lat = np.degrees(2.0 * np.arctan(np.exp(np.radians(mercator)))) - 90.0
    return lon, lat


def _table(columns: Mapping[str, Any], rows: int, where: str) -> pa.Table:
    """Make the table of columns whose values may be anything."""
    absent = [None] * rows
    arrays = {
        field: _array(columns.get(field.name, absent), field.type, f"{where}: {field.name}")
        for field in IMAGE_SCHEMA
    }
    for name in columns:
        if name not in IMAGE_SCHEMA.names:
            array = _array(columns[name], None, f"{where}: {cut_short(name)}")
            if array.null_count < rows:
                arrays[pa.field(name, array.type)] = array
    return pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(list(arrays)))


def _array(values: Any, type: pa.DataType | None, where: str) -> pa.Array:
    try:
        array = pa.array(values, type)
        if pa.types.is_binary(array.type):
            raise TypeError("text that is no UTF-8")
        return array
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidTileError(f"{where}: {cut_short(str(error))}") from error


def _check_images(table: pa.Table, where: str) -> None:
    """Refuse images without what they are found by, or with ids that no image has."""
    for name in ("id", "sequence_id", *POSITION):
        if table[name].null_count:
            raise InvalidTileError(f"{where}: an image without {name}")
    ids = table["id"].to_numpy()
    if (ids <= 0).any():
        raise InvalidTileError(f"{where}: {ids.min()} is no image id")
    for sequence_id in table["sequence_id"].unique().to_pylist():
        try:
            check_sequence_id(sequence_id)
        except InvalidSequenceIdError as error:
            raise InvalidTileError(f"{where}: {error}") from error
    lon, lat = (table[name].to_numpy() for name in POSITION)
    if not ((abs(lon) <= 181) & (abs(lat) <= 90)).all():
        raise InvalidTileError(f"{where}: an image at no place on earth")
