"""Reads the points of vector tiles into NumPy arrays, whole columns at a time.

A tile is a protocol buffer (https://protobuf.dev/programming-guides/encoding) by the Mapbox
Vector Tile specification 2.1 (https://github.com/mapbox/vector-tile-spec). Each of its messages
begins where the one before it ends, so these are found one after the other; what they hold is
then read from all of them at once. That takes a fraction of the time and of the memory that an
object per feature and per value takes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DEFAULT_EXTENT = 4096

MAX_FEATURES = 3_000_000
MAX_VALUES = 10 * MAX_FEATURES
MAX_KEYS = 60
"""Limits of a layer, which bound the memory that reading it can take: 8 bytes for each feature and
each value, and 4 for each feature and key. Tiles of Mapillary have 6 to 10 keys, and up to 4
values of its own for each feature."""

_AT_A_TIME = 65_536
"""Messages that are read together: it bounds the memory, and fits the processor's cache."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LAYER_OF_TILE = 3
_NAME, _FEATURE, _KEY, _VALUE, _EXTENT = 1, 2, 3, 4, 5
_TAGS, _TYPE, _GEOMETRY = 2, 3, 4
_TEXT, _FLOAT, _DOUBLE, _INT, _UINT, _SINT, _BOOL = range(1, 8)
_WIRE_OF_KIND = np.array(
    [-1, _BYTES, _FIXED32, _FIXED64, _VARINT, _VARINT, _VARINT, _VARINT], np.int8
)
_POINT = 1
_MOVE_TO_ONE_POINT = 9

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]


class MalformedError(ValueError):
    """The bytes are no whole vector tile."""


class TooLargeError(ValueError):
    """A layer has more features, values or keys than can be read."""


@dataclass(frozen=True)
class Column:
    """A property of the features of a layer.

    Each way of reading it returns an Arrow array of the values, null where one is of another type,
    and which of them are of that type.
    """

    _layer: "Layer"
    _values: NDArray[np.int32]
    """For each feature the index of its value among the layer's, -1 where it has none."""

    @cached_property
    def present(self) -> Mask:
        """Which features have the property."""
        return self._values >= 0

    @cached_property
    def _kinds(self) -> NDArray[np.int8]:
        return np.where(self.present, self._layer.value_kinds[self._values], -1)

    def integers(self) -> tuple[pa.Array, Mask]:
        """Return the values as whole numbers of 64 bits."""
        numbers, valid = self._whole_numbers()
        return pa.array(numbers, mask=~valid), valid

    def _whole_numbers(self) -> tuple[NDArray[np.int64], Mask]:
        numbers = np.zeros(len(self._values), np.int64)
        valid = np.isin(self._kinds, (_INT, _UINT, _SINT))
        read, _ = _varints(self._layer.data, self._starts(valid))
        kinds = self._kinds[valid]
        signed = read.view(np.int64)
        numbers[valid] = np.where(kinds == _SINT, _unzigzag(read), signed)
        valid[valid] = (kinds != _UINT) | (signed >= 0)
        return numbers, valid

    def floats(self) -> tuple[pa.Array, Mask]:
        """Return the values as floating point numbers, whole ones too; null if not finite."""
        integers, valid = self._whole_numbers()
        numbers = integers.astype(np.float64)
        for kind, width, type_ in ((_FLOAT, 4, "<f4"), (_DOUBLE, 8, "<f8")):
            rows = self._kinds == kind
            places = self._starts(rows)[:, None] + np.arange(width)
            numbers[rows] = self._layer.data[places].view(type_)[:, 0]
            valid |= rows
        return pa.array(numbers, mask=~(valid & np.isfinite(numbers))), valid

    def booleans(self) -> tuple[pa.Array, Mask]:
        """Return the values as true or false."""
        booleans = np.zeros(len(self._values), bool)
        valid = self._kinds == _BOOL
        booleans[valid] = _varints(self._layer.data, self._starts(valid))[0] != 0
        return pa.array(booleans, mask=~valid), valid

    def texts(self) -> tuple[pa.DictionaryArray, Mask]:
        """Return the values as text (UTF-8)."""
        valid = self._kinds == _TEXT
        used, codes = np.unique(self._values[valid], return_inverse=True)
        texts = self._layer.texts(used)
        numbers = np.zeros(len(self._values), np.int32)
        numbers[valid] = codes
        valid[valid] = np.array([text is not None for text in texts], bool)[codes]
        dictionary = pa.array([text or "" for text in texts], pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(numbers, mask=~valid), dictionary), valid

    def _starts(self, rows: Mask) -> Places:
        return self._layer.value_starts[self._values[rows]].astype(np.int64)


@dataclass(frozen=True)
class Layer:
    """A layer of a vector tile.

    Attributes
    ----------
    data
        The bytes of the tile.
    name
        Of the layer; bytes where it is no UTF-8.
    extent
        The number of cells along a side of the tile.
    keys
        The names of the properties; bytes where one is no UTF-8.
    value_starts, value_kinds
        Where in `data` the content of each value begins, and its kind (the number of its field
        in the specification); 0 where it is none of these.
    feature_starts, feature_ends
        Where in `data` each feature lies.
    """

    data: NDArray[np.uint8]
    name: str | bytes
    extent: int
    keys: Sequence[str | bytes]
    value_starts: NDArray[np.int32]
    value_kinds: NDArray[np.int8]
    feature_starts: NDArray[np.int32]
    feature_ends: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.feature_starts)

    def points(self) -> tuple[NDArray[np.int32], Mask, dict[str | bytes, Column]]:
        """Read the features.

        Returns
        -------
        cells
            Array (2, feature) of the cells, x to the east and y to the south of the tile's
            north-western corner.
        valid
            Which features are a single point; the cell of another one means nothing.
        columns
            The properties by name.

        Raises
        ------
        MalformedError
            When a feature breaks off, or has a property that the layer does not list.
        """
        cells, valid = np.zeros((2, len(self)), np.int32), np.zeros(len(self), bool)
        values = np.full((len(self.keys), len(self)), -1, np.int32)
        for first in range(0, len(self), _AT_A_TIME):
            rows = slice(first, first + _AT_A_TIME)
            types, tags, geometries = self._fields(rows)
            self._read_tags(tags, values[:, rows])
            cells[:, rows], valid[rows] = _read_points(self.data, geometries)
            valid[rows] &= types == _POINT
        columns: dict[str | bytes, Column] = {}
        for key, of_key in zip(self.keys, values, strict=True):
            if key in columns:
                of_key = np.where(of_key < 0, columns[key]._values, of_key)
            columns[key] = Column(self, of_key)
        return cells, valid, columns

    def texts(self, values: NDArray[np.int32]) -> list[str | None]:
        """Return the texts of some values, which are texts; None where one is no UTF-8."""
        places = self.value_starts[values].astype(np.int64)
        lengths, sizes = _varints(self.data, places)
        starts = places + sizes
        ends = starts + lengths.astype(np.int64)
        return [
            _text(self.data[start:end].tobytes())
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]

    def _fields(self, rows: slice) -> tuple[Places, Places, Places]:
        """Return the types of features, and (2, feature) start and end of tags and geometry."""
        place = self.feature_starts[rows].astype(np.int64)
        end = self.feature_ends[rows].astype(np.int64)
        types = np.zeros(len(end), np.int64)
        parts = {
            _TAGS: np.zeros((2, len(end)), np.int64),
            _GEOMETRY: np.zeros((2, len(end)), np.int64),
        }
        rest = np.flatnonzero(place < end)
        while len(rest):
            number, wire, start, stop, content = _read_fields(self.data, place[rest], end[rest])
            here = (number == _TYPE) & (wire == _VARINT)
            types[rest[here]] = content[here]
            for field, part in parts.items():
                here = number == field
                if (wire[here] != _BYTES).any() or part[1, rest[here]].any():
                    raise MalformedError("a feature whose numbers are not packed together")
                part[:, rest[here]] = start[here], stop[here]
            place[rest] = stop
            rest = rest[stop < end[rest]]
        return types, parts[_TAGS], parts[_GEOMETRY]

    def _read_tags(self, tags: Places, values: NDArray[np.int32]) -> None:
        """Read pairs of key and value into `values`, a row per key and a column per feature."""
        numbers, counts = _packed_varints(self.data, *tags)
        if (counts % 2).any():
            raise MalformedError("a property without a value")
        keys, indices = numbers.reshape(-1, 2).T
        if (keys >= len(self.keys)).any() or (indices >= len(self.value_starts)).any():
            raise MalformedError("a property that the layer does not list")
        values[keys, np.repeat(np.arange(len(counts)), counts // 2)] = indices


def read_layers(tile: bytes) -> list[Layer]:
    """Return the layers of a vector tile, whose features are yet to be read.

    Raises
    ------
    MalformedError
        When the bytes are no whole vector tile.
    """
    data = np.frombuffer(tile, np.uint8)
    return [
        _read_layer(tile, data, int(start[place]), int(end[place]))
        for number, start, end in _messages(tile, data, 0, len(tile))
        for place in np.flatnonzero(number == _LAYER_OF_TILE)
    ]


def _read_layer(tile: bytes, data: NDArray[np.uint8], start: int, end: int) -> Layer:
    name: str | bytes = ""
    extent, keys = DEFAULT_EXTENT, []
    features, values = [np.zeros((2, 0), np.int32)], [np.zeros((2, 0), np.int32)]
    counts = {_FEATURE: 0, _VALUE: 0, _KEY: 0}
    for number, starts, ends in _messages(tile, data, start, end):
        for field, most in ((_FEATURE, MAX_FEATURES), (_VALUE, MAX_VALUES), (_KEY, MAX_KEYS)):
            counts[field] += int(np.count_nonzero(number == field))
            if counts[field] > most:
                what = {_FEATURE: "features", _VALUE: "values", _KEY: "keys"}[field]
                raise TooLargeError(f"a layer of more than {most:,} {what}")
        here = number == _FEATURE
        features.append(np.stack([starts[here], ends[here]]).astype(np.int32))
        here = number == _VALUE
        values.append(_read_values(data, starts[here], ends[here]))
        for place in np.flatnonzero(np.isin(number, (_NAME, _KEY, _EXTENT))):
            content = tile[starts[place] : ends[place]]
            if number[place] == _EXTENT:
                extent = int(_varints(data, starts[place : place + 1])[0][0])
            elif number[place] == _NAME:
                name = _text_or_bytes(content)
            else:
                keys.append(_text_or_bytes(content))
    value_starts, value_kinds = np.concatenate(values, axis=1)
    feature_starts, feature_ends = np.concatenate(features, axis=1)
    return Layer(
        data=data,
        name=name,
        extent=extent,
        keys=keys,
        value_starts=value_starts,
        value_kinds=value_kinds.astype(np.int8),
        feature_starts=feature_starts,
        feature_ends=feature_ends,
    )


def _messages(
    tile: bytes, data: NDArray[np.uint8], place: int, end: int
) -> Iterator[tuple[Places, Places, Places]]:
    """Yield the fields of a message, many at a time: numbers, starts and ends of the contents."""
    while place < end:
        places: list[int] = []
        append = places.append
        try:
            for _ in range(_AT_A_TIME):
                if place >= end:
                    break
                append(place)
                # Nearly all are messages and texts of less than 128 bytes.
                if tile[place] & 0x87 == _BYTES and (length := tile[place + 1]) < 128:
                    place += 2 + length
                else:
                    [place] = _read_fields(data, np.array([place]), np.array([end]))[3].tolist()
        except IndexError as error:
            raise MalformedError("it breaks off") from error
        if place > end:
            raise MalformedError("it breaks off")
        starts = np.array(places)
        number, _, start, stop, _ = _read_fields(data, starts, np.append(starts[1:], place))
        yield number, start, stop


def _read_fields(
    data: NDArray[np.uint8], places: Places, ends: Places
) -> tuple[Places, Places, Places, Places, NDArray[np.uint64]]:
    """Read the fields that begin at `places`, in messages that end at `ends`.

    Returns
    -------
    number, wire
        Of the field, and its type on the wire.
    start, stop
        Where its content lies.
    content
        Its value where that is a varint, its length where that is written.
    """
    key, size = _varints(data, places)
    start = places + size
    if (start >= ends).any():
        raise MalformedError("it breaks off")
    number, wire = (key >> np.uint64(3)).astype(np.int64), (key & np.uint64(7)).astype(np.int64)
    content, size = _varints(data, start)
    sizes = np.select(
        [wire == _VARINT, wire == _BYTES, wire == _FIXED64, wire == _FIXED32],
        [size, np.minimum(content, len(data)).astype(np.int64), 8, 4],
        -1,
    )
    start = np.where(wire == _BYTES, start + size, start)
    stop = start + sizes
    if (sizes < 0).any() or (stop > ends).any():
        raise MalformedError("it breaks off, or is something else")
    return number, wire, start, stop, content


def _read_values(data: NDArray[np.uint8], starts: Places, ends: Places) -> NDArray[np.int32]:
    """Return (2, value) where the content of each value begins, and its kind."""
    found = np.zeros((2, len(starts)), np.int32)
    some = starts < ends
    number, wire, start, stop, _ = _read_fields(data, starts[some], ends[some])
    known = (number >= _TEXT) & (number <= _BOOL) & (stop == ends[some])
    kind = np.where(known, number, 0)
    kind[_WIRE_OF_KIND[kind] != wire] = 0
    # Of a text the place of its length.
    begin = np.where(wire == _BYTES, starts[some] + 1, start)
    found[:, some] = begin, kind
    return found


def _read_points(data: NDArray[np.uint8], geometries: Places) -> tuple[NDArray[np.int32], Mask]:
    """Return (2, feature) cells, and which geometries are a single point."""
    start, end = geometries
    cells = np.zeros((2, len(start)), np.int32)
    valid = end - start >= 3
    command, place = _next_varints(data, start[valid])
    x, place = _next_varints(data, place)
    y, place = _next_varints(data, place)
    small = (x < 2**31) & (y < 2**31)
    cells[:, valid] = np.where(small, [_unzigzag(x), _unzigzag(y)], 0)
    valid[valid] = (command == _MOVE_TO_ONE_POINT) & small & (place == end[valid])
    return cells, valid


def _next_varints(data: NDArray[np.uint8], places: Places) -> tuple[NDArray[np.uint64], Places]:
    numbers, sizes = _varints(data, places)
    return numbers, places + sizes


def _varints(data: NDArray[np.uint8], places: Places) -> tuple[NDArray[np.uint64], Places]:
    """Return the varints (base 128, the lowest digits first) at the places, and their sizes."""
    numbers, sizes = np.zeros(len(places), np.uint64), np.ones(len(places), np.int64)
    rows: slice | Places = slice(None)
    for digit in range(10):
        # What lies past the end belongs to no message, which those who ask for it notice.
        digits = data[np.minimum(places[rows] + digit, len(data) - 1)]
        numbers[rows] |= (digits & 0x7F).astype(np.uint64) << np.uint64(7 * digit)
        more = np.flatnonzero(digits >= 128)
        if not len(more):
            return numbers, sizes
        rows = more if isinstance(rows, slice) else rows[more]
        sizes[rows] += 1
    raise MalformedError("a number of more than 64 bits")


def _packed_varints(
    data: NDArray[np.uint8], starts: Places, ends: Places
) -> tuple[NDArray[np.uint64], Places]:
    """Return all varints that fill the given ranges, in order, and how many each range has."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    digits = data[np.repeat(starts - before, lengths) + np.arange(lengths.sum())]
    last = digits < 128
    filled = lengths > 0
    if not last[(before + lengths - 1)[filled]].all():
        raise MalformedError("a number breaks off")
    stops = np.flatnonzero(last)
    counts = np.diff(np.searchsorted(stops, np.append(before, len(digits))))
    begins = np.append(0, stops[:-1] + 1) if len(stops) else stops
    shift = np.arange(len(digits)) - np.repeat(begins, np.diff(np.append(begins, len(digits))))
    if (shift > 9).any():
        raise MalformedError("a number of more than 64 bits")
    parts = (digits & 0x7F).astype(np.uint64) << (7 * shift).astype(np.uint64)
    return np.add.reduceat(parts, begins) if len(begins) else parts, counts


def _unzigzag(numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (numbers >> np.uint64(1)).view(np.int64) ^ -(numbers & np.uint64(1)).view(np.int64)


def _text(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _text_or_bytes(content: bytes) -> str | bytes:
    text = _text(content)
    return content if text is None else text
