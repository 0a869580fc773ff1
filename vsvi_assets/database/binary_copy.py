"""Rows as COPY … (FORMAT binary) takes them, made of Arrow's columns.

PostgreSQL reads them in two thirds of the time that text takes, and a geometry needs no digits.
Source: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

_MAX_BATCH_BYTES = 4_000_000
_LENGTH = np.dtype(">i4")
_NULL = -1
_FIXED: dict[pa.DataType, np.dtype[Any]] = {
    pa.bool_(): np.dtype("u1"),
    pa.int32(): np.dtype(">i4"),
    pa.int64(): np.dtype(">i8"),
    pa.float64(): np.dtype(">f8"),
}
_EWKB_POINT = np.dtype(
    [("order", "u1"), ("type", "<u4"), ("srid", "<u4"), ("x", "<f8"), ("y", "<f8")]
)
_POINT_WITH_SRID = 0x20000001


def binary_rows(tables: Iterable[pa.Table]) -> Iterator[bytes]:
    """Yield the bytes of all rows, with header and trailer, in parts.

    Columns are int32, int64, float64, bool, string, binary, and binary of one width without
    nulls, such as `ewkb_points`.
    """
    yield HEADER
    for table in tables:
        for batch in table.to_batches(max_chunksize=_MAX_BATCH_BYTES // 200):
            yield from _encode(batch)
    yield TRAILER


def ewkb_points(x: NDArray[np.float64], y: NDArray[np.float64], srid: int) -> pa.Array:
    """Return points as PostGIS's extended well-known binary (ISO/IEC 13249-3 with an SRID)."""
    points = np.empty(len(x), _EWKB_POINT)
    points["order"], points["type"], points["srid"] = 1, _POINT_WITH_SRID, srid
    points["x"], points["y"] = x, y
    type_ = pa.binary(_EWKB_POINT.itemsize)
    return pa.Array.from_buffers(type_, len(x), [None, pa.py_buffer(points)])


def _encode(batch: pa.RecordBatch) -> Iterator[bytes]:
    """Lay the fields out side by side, as wide as the widest, and leave out what is not used."""
    parts = [np.full((len(batch), 1), batch.num_columns, ">i2").view(np.uint8)]
    used = [np.ones((len(batch), 2), bool)]
    width = sum(_width(column) for column in batch.columns)
    if len(batch) > 1 and len(batch) * width > 2 * _MAX_BATCH_BYTES:
        half = len(batch) // 2
        yield from _encode(batch.slice(0, half))
        yield from _encode(batch.slice(half))
        return
    for column in batch.columns:
        lengths, content = _field(column)
        parts += [lengths[:, None].astype(_LENGTH).view(np.uint8), content]
        used += [
            np.ones((len(batch), _LENGTH.itemsize), bool),
            np.arange(content.shape[1]) < lengths[:, None],
        ]
    yield np.concatenate(parts, axis=1)[np.concatenate(used, axis=1)].tobytes()


def _width(column: pa.Array) -> int:
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        return pc.max(pc.binary_length(column)).as_py() or 0
    return 8


def _field(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the length of each value, and (row, byte) the values from the left."""
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        return _texts(column)
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        content = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, width)
        content = content[column.offset : column.offset + len(column)]
        return np.full(len(column), width), content
    values = column.fill_null(False if pa.types.is_boolean(column.type) else 0)
    type_ = _FIXED[column.type]
    numbers = values.to_numpy(zero_copy_only=False).astype(type_)
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    return np.where(is_null, _NULL, type_.itemsize), numbers[:, None].view(np.uint8)


def _texts(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    offsets = np.frombuffer(column.buffers()[1], np.int32)
    offsets = offsets[column.offset : column.offset + len(column) + 1]
    lengths = np.diff(offsets).astype(np.int64)
    content = np.zeros((len(column), int(lengths.max(initial=0))), np.uint8)
    if data := column.buffers()[2]:
        text = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
        content[np.arange(content.shape[1]) < lengths[:, None]] = text
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    return np.where(is_null, _NULL, lengths), content
