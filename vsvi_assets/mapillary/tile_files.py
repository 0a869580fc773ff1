"""Tile files: GeoJSON FeatureCollections of images, as percept-vsvi-filter keeps them.

What this project writes has a feature per line, and members after the features: `services`, where
the tile comes from, `dropped`, what of it could not be used, and, where corrected positions and
headings were asked for, `uncorrected` and `uncorrected_headings`, how many images have none.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from vsvi_assets.files import DataPath, atomic_write, content_of
from vsvi_assets.mapillary.errors import InvalidTileError, OtherServicesError, cut_short
from vsvi_assets.mapillary.tiles import (
    IMAGE_SCHEMA,
    POSITION,
    Dropped,
    TileImages,
    unusable_values,
    usable_images,
)

MAX_BYTES = 2_500_000_000
"""What about 6,000,000 images take. Such a file is read in blocks, so that only its table is in
memory."""

MAX_BYTES_OF_OTHER_LAYOUTS = 400_000_000
"""What about 700,000 images take that percept-vsvi-filter wrote. Such a file is in memory as a
whole, with an object per feature: about 6 bytes for each of its own."""

SERVICES_OF_UNMARKED_FILES = "mapillary"

_PROPERTIES = [name for name in IMAGE_SCHEMA.names if name not in POSITION]
_UNCORRECTED = ("uncorrected", "uncorrected_headings")
_START, _BETWEEN, _END = b'{"type":"FeatureCollection","features":[\n', b"}},\n", b"\n]"
_MEMBERS_BYTES = 1_000_000
"""The most that follows the features."""

_BLOCK_BYTES = 16_000_000
_BLOCK_IMAGES = 50_000
_FEATURE_LINES = pa.json.ParseOptions(
    explicit_schema=pa.schema(
        {
            "geometry": pa.struct({"coordinates": pa.list_(pa.float64())}),
            "properties": pa.struct([IMAGE_SCHEMA.field(name) for name in _PROPERTIES]),
        }
    ),
    unexpected_field_behavior="ignore",
)


def write_tile(tile: TileImages, path: DataPath, services: str) -> None:
    """Write a tile to a file, which appears whole or not at all.

    Parameters
    ----------
    services
        Where the tile comes from: "mapillary" or "sandbox".
    """
    with atomic_write(path) as file:
        file.writelines(tile_geojson(tile, services))


def tile_geojson(tile: TileImages, services: str) -> Iterator[bytes | memoryview]:
    """Yield the parts of a GeoJSON FeatureCollection of a tile's images, one feature a line.

    The features are those of vt2geojson: Points whose properties are the tile's own, absent
    where the tile does not have them.
    """
    yield _START
    for start in range(0, len(tile), _BLOCK_IMAGES):
        lines = _feature_lines(tile.images.slice(start, _BLOCK_IMAGES))
        is_last = start + _BLOCK_IMAGES >= len(tile)
        yield lines[: -len(b",\n")] if is_last else lines
    members: dict[str, Any] = {
        "services": services,
        "dropped": [asdict(dropped) for dropped in tile.dropped],
    }
    members |= {name: count for name in _UNCORRECTED if (count := getattr(tile, name)) is not None}
    yield _END
    yield b"," + orjson.dumps(members)[1:] + b"\n"


def read_tile(path: DataPath, services: str) -> TileImages:
    """Read a tile file, written by `write_tile` or by percept-vsvi-filter, to `IMAGE_SCHEMA`.

    percept-vsvi-filter stores an empty FeatureCollection for whatever the service answers
    without images, error pages among them; such a file looks like an empty tile.

    Parameters
    ----------
    services
        Where the tile must come from. A file that does not say so comes from Mapillary.

    Raises
    ------
    InvalidTileError
        When it is no FeatureCollection of Mapillary images, or too many of them cannot be used.
    OtherServicesError
        When it comes from other services.
    FileNotFoundError
        When there is no such file.
    """
    with content_of(path) as data:
        return _read_lines(data, path, services) or _read_features(data, path, services)


def _read_lines(data: bytes | mmap.mmap, path: DataPath, services: str) -> TileImages | None:
    """Read a file that has a feature a line, as `write_tile` writes it; None of any other.

    Arrow reads such lines in a quarter of the time that a dict for each feature takes.
    """
    end = data.rfind(_END, max(0, len(data) - _MEMBERS_BYTES))
    if data[: len(_START)] != _START or end < 0:
        return None
    _check_size(data, path, MAX_BYTES)
    try:
        members = orjson.loads(b'{"features":[]' + data[end + len(_END) :])
        _check_services(members, path, services)
        dropped = [
            Dropped(entry["reason"], entry["count"], tuple(entry["examples"]))
            for entry in members.get("dropped", ())
        ]
        uncorrected = _uncorrected(members)
        blocks = [_read_block(block) for block in _blocks(data, len(_START), end)]
        table = pa.concat_tables(blocks) if blocks else IMAGE_SCHEMA.empty_table()
    except (ValueError, TypeError, KeyError):  # pa.ArrowInvalid is a ValueError
        return None
    return replace(usable_images(table, str(path), dropped), **uncorrected)


def _uncorrected(members: dict[str, Any]) -> dict[str, Any]:
    return {name: int(members[name]) for name in _UNCORRECTED if name in members}


def _blocks(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[bytes]:
    """Yield features, many at a time, of a file that has one per line."""
    while start < end:
        stop = end
        if start + _BLOCK_BYTES < end:
            between = data.rfind(_BETWEEN, start, start + _BLOCK_BYTES)
            if between < 0:
                raise ValueError("a feature longer than a block")
            stop = between + len(_BETWEEN) - len(b",\n")
        yield data[start:stop]
        start = stop + len(b",\n")


def _read_block(block: bytes) -> pa.Table:
    lines = np.frombuffer(block, np.uint8).copy()
    ends = np.flatnonzero(lines == ord("\n"))
    if (lines[ends - 1] != ord(",")).any():
        raise ValueError("a line that is not followed by another")
    lines[ends - 1] = ord(" ")
    source = pa.BufferReader(pa.py_buffer(lines))
    table = pa.json.read_json(source, parse_options=_FEATURE_LINES).flatten()
    coordinates = table["geometry.coordinates"]
    are_positions = pc.all(pc.equal(pc.list_value_length(coordinates), 2), skip_nulls=False)
    if len(table) != len(ends) + 1 or not are_positions.as_py():
        raise ValueError("a line that is no feature")
    columns = [table[f"properties.{name}"] for name in _PROPERTIES]
    columns += [pc.list_element(coordinates, axis) for axis in range(2)]
    return pa.Table.from_arrays(columns, schema=IMAGE_SCHEMA)


def _read_features(data: bytes | mmap.mmap, path: DataPath, services: str) -> TileImages:
    """Read a GeoJSON file of images, however it is laid out."""
    _check_size(data, path, MAX_BYTES_OF_OTHER_LAYOUTS)
    try:
        collection = orjson.loads(data[:])
        features = collection["features"]
        if collection["type"] != "FeatureCollection" or not isinstance(features, list):
            raise TypeError("no FeatureCollection")
        uncorrected = _uncorrected(collection)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidTileError(
            f"{path}: not a GeoJSON file of images, begins with {cut_short(data[:100])}. "
            "Delete it to have the tile fetched again."
        ) from error
    _check_services(collection, path, services)
    properties = [_part(feature, "properties") for feature in features]
    positions = [_position(_part(feature, "geometry")) for feature in features]
    columns: dict[str, Sequence[Any]] = {
        name: [image.get(name) for image in properties] for name in _PROPERTIES
    }
    columns |= {name: [place[axis] for place in positions] for axis, name in enumerate(POSITION)}
    arrays, dropped = [], []
    for field in IMAGE_SCHEMA:
        values = columns[field.name]
        array = _array(values, field.type)
        if field.nullable:
            unusable = array.null_count - sum(value is None for value in values)
            dropped += unusable_values(field.name, unusable, len(values), str(path))
        arrays.append(array)
    table = pa.Table.from_arrays(arrays, schema=IMAGE_SCHEMA)
    return replace(usable_images(table, str(path), dropped), **uncorrected)


def _part(feature: object, name: str) -> dict[str, Any]:
    part = feature.get(name) if isinstance(feature, dict) else None
    return part if isinstance(part, dict) else {}


def _position(geometry: dict[str, Any]) -> tuple[Any, Any]:
    coordinates = geometry.get("coordinates")
    if isinstance(coordinates, list) and len(coordinates) == 2:
        return coordinates[0], coordinates[1]
    return None, None


def _array(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """Make an array of values that may be anything; null where one is not of the type."""
    try:
        return pa.array(values, type_)
    except (ValueError, TypeError, OverflowError):
        return pa.array([_value(value, type_) for value in values], type_)


def _value(value: Any, type_: pa.DataType) -> Any:
    try:
        return pa.scalar(value, type_).as_py()
    except (ValueError, TypeError, OverflowError):
        return None


def _feature_lines(images: pa.Table) -> memoryview:
    """Return features as lines, each with a comma at its end.

    The text is put together column by column in Arrow, which takes a third of the time that
    a dict for each feature takes.
    """
    pieces: list[Any] = [
        '{"type":"Feature","geometry":{"type":"Point","coordinates":[',
        _json_texts(images["lon"]),
        ",",
        _json_texts(images["lat"]),
        ']},"properties":{"id":',
        _json_texts(images["id"]),
    ]
    for name in images.column_names:
        if name not in ("id", *POSITION):
            key = f",{orjson.dumps(name).decode()}:"
            texts = pc.binary_join_element_wise(key, _json_texts(images[name]), "")
            pieces.append(texts.fill_null(""))
    lines = pc.binary_join_element_wise(*pieces, _BETWEEN.decode(), "").cast(pa.large_string())
    # The lines lie in memory one behind the other, as they are to lie in the file.
    text = lines.combine_chunks().buffers()[2]
    return memoryview(text)[: pc.sum(pc.binary_length(lines)).as_py()]


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


def _check_services(members: dict[str, Any], path: DataPath, services: str) -> None:
    found = members.get("services", SERVICES_OF_UNMARKED_FILES)
    if found != services:
        raise OtherServicesError(
            f"{path}: comes from the services {cut_short(found)}, and the city uses {services!r}. "
            "Move its folder away, or set another tile_cache_dir in the city file."
        )


def _check_size(data: bytes | mmap.mmap, path: DataPath, most: int) -> None:
    if len(data) > most:
        raise InvalidTileError(f"{path}: {len(data):,} bytes, more than {most:,}")
