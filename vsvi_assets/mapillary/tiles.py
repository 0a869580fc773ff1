"""The images of a vector tile: from the service's bytes to a table.

Source: the properties of the `image` layer at
https://www.mapillary.com/developer/api-documentation#coverage-tiles.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import mercantile
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vsvi_assets.mapillary.errors import (
    InvalidSequenceIdError,
    InvalidTileError,
    MalformedTileError,
    cut_short,
)
from vsvi_assets.mapillary.vector_tiles import (
    Column,
    Layer,
    MalformedError,
    TooLargeError,
    read_layers,
)

IMAGE_LAYER = "image"

MAX_TILE_BYTES = 200_000_000
"""What about 3,000,000 images take. The largest tile known has 2,100,000 (14/4196/6084 in Chicago).

This and the limits of `vector_tiles` bound the memory that a tile can take: 2,500,000 images
take about 1 GB to decode, write, read or load.
"""

TOLERATED_SHARE = 0.01
"""The share of a tile's images that may be left out because they cannot be used; more of them
mean that the tile is not what this program takes it for."""

FILTERED_COLUMNS = ("captured_at", "is_pano", "creator_id")
"""What a city's filters go by, so that many unusable values would silently leave images out."""

MAX_TEXT_BYTES = 1000
"""The longest text of a property that nothing here needs."""

EXAMPLES = 3
"""How many of the images that are left out are named."""

POSITION = ("lon", "lat")


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

_SEQUENCE_ID = r"[A-Za-z0-9_-]{1,64}"


@dataclass(frozen=True)
class Dropped:
    """What of a tile could not be used, for one reason.

    Attributes
    ----------
    reason
        What was left out and why: "images without sequence_id".
    count
        How many images or values.
    examples
        The first of them by name: "image 1000007".
    """

    reason: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        examples = f" ({', '.join(self.examples)})" if self.examples else ""
        return f"{self.count:,} {self.reason}{examples}"


@dataclass(frozen=True)
class TileImages:
    """The images of a tile.

    Attributes
    ----------
    images
        Table of `IMAGE_SCHEMA`; as it is decoded from a tile, followed by one column for each
        property that the tile has beyond it.
    dropped
        What could not be used, and is not in the table.
    uncorrected, uncorrected_headings
        How many images have the camera's own position, and heading, although corrected ones were
        asked for; None where they were not.
    """

    images: pa.Table
    dropped: tuple[Dropped, ...] = ()
    uncorrected: int | None = None
    uncorrected_headings: int | None = None

    def __len__(self) -> int:
        return len(self.images)


def is_sequence_id(text: str) -> bool:
    """Return whether a text is 1 to 64 of A-Z, a-z, 0-9, `_` and `-`."""
    return bool(re.fullmatch(_SEQUENCE_ID, text))


def check_sequence_id(sequence_id: str) -> str:
    """Return a sequence id, safe as a folder's name; raise InvalidSequenceIdError for others."""
    if not is_sequence_id(sequence_id):
        raise InvalidSequenceIdError(f"{cut_short(sequence_id)} is no sequence id")
    return sequence_id


def tile_name(tile: mercantile.Tile) -> str:
    """Return a tile's name in messages: "tile 14/8574/5735"."""
    return f"tile {tile.z}/{tile.x}/{tile.y}"


def decode_tile(data: bytes, tile: mercantile.Tile) -> TileImages:
    """Decode the `image` layer of a vector tile.

    No bytes, or no `image` layer, is a tile without images. Images, values and properties that
    cannot be used are left out and counted.

    Raises
    ------
    MalformedTileError
        When the bytes are no whole vector tile.
    InvalidTileError
        When the tile is larger than `MAX_TILE_BYTES`, or too many of its images cannot be used.
    """
    where = tile_name(tile)
    if len(data) > MAX_TILE_BYTES:
        raise InvalidTileError(f"{where}: {len(data):,} bytes, more than {MAX_TILE_BYTES:,}")
    try:
        layers = read_layers(data)
        named = [layer for layer in layers if layer.name == IMAGE_LAYER]
        if data and not layers:
            raise MalformedError("it has no layers")
        if len(named) > 1:
            raise InvalidTileError(f"{where}: {len(named)} layers named {IMAGE_LAYER!r}")
        if not named:
            return TileImages(IMAGE_SCHEMA.empty_table())
        return _decode_layer(named[0], tile)
    except TooLargeError as error:
        raise InvalidTileError(f"{where}: {error}") from error
    except MalformedError as error:
        raise MalformedTileError(
            f"{where}: not a whole vector tile ({error}), begins with {cut_short(data)}"
        ) from error


def with_computed_positions(tile: TileImages, computed: TileImages) -> TileImages:
    """Give a tile's images the positions that Mapillary corrected by structure from motion.

    An image that the corrected tile does not have keeps the camera's own position, and is counted
    in `uncorrected`. Such are images without a reconstruction, and the few whose corrected position
    lies in another tile. All else is that of the first tile, its `compass_angle` too: of the
    corrected tile set Mapillary documents other geometries and "exactly the same" properties
    (https://www.mapillary.com/developer/api-documentation#coverage-tiles-computed).

    Parameters
    ----------
    tile
        Of the tile set `mly1_public`.
    computed
        The same tile of `mly1_computed_public`.

    Returns
    -------
    TileImages
        Its table has the columns `original_lon` and `original_lat` in addition: the camera's own
        position in degrees (EPSG:4326) of the images that have a corrected one, null of others.
    """
    images = tile.images
    rows = pc.index_in(images["id"], computed.images["id"].combine_chunks())
    for name in POSITION:
        images = _corrected(images, name, computed.images[name].take(rows))
    return replace(tile, images=images, uncorrected=rows.null_count)


def with_computed_headings(tile: TileImages, headings: Mapping[int, float]) -> TileImages:
    """Give a tile's images the headings that Mapillary corrected by structure from motion.

    An image without one keeps the camera's own, and is counted in `uncorrected_headings`.

    Parameters
    ----------
    headings
        Degrees clockwise from north, by image id.

    Returns
    -------
    TileImages
        Its table has the column `original_compass_angle` in addition: the camera's own heading in
        degrees of the images that have a corrected one, null of others.
    """
    corrected = pa.array(map(headings.get, tile.images["id"].to_pylist()), pa.float64())
    images = _corrected(tile.images, "compass_angle", corrected)
    return replace(tile, images=images, uncorrected_headings=corrected.null_count)


def _corrected(images: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Put values in a column where they are known, and append what they replace."""
    own, index = images[name], images.column_names.index(name)
    return images.set_column(
        index, images.schema.field(index), pc.coalesce(values, own)
    ).append_column(f"original_{name}", pc.if_else(pc.is_valid(values), own, None))


def usable_images(table: pa.Table, where: str, dropped: Sequence[Dropped] = ()) -> TileImages:
    """Leave out the images without what they are found by, or with ids that no image has.

    Parameters
    ----------
    table
        Of `IMAGE_SCHEMA`, in which all may be null.
    where
        The tile or the file, as it is named in messages.
    dropped
        What was left out before.

    Raises
    ------
    InvalidTileError
        When more than `TOLERATED_SHARE` of the images, and more than one, would be left out, or
        as many values of a column of `FILTERED_COLUMNS` were.
    """
    sequence_ids = table["sequence_id"]
    distinct = sequence_ids.unique()
    possible = distinct.filter(pc.match_substring_regex(distinct, rf"\A{_SEQUENCE_ID}\z"))
    lon, lat = (table[name].to_numpy() for name in POSITION)
    with np.errstate(invalid="ignore"):
        on_earth = (abs(lon) <= 181) & (abs(lat) <= 90)
    faults = {
        "images without id": pc.is_null(table["id"]),
        "images whose id is none": pc.less_equal(table["id"], 0),
        "images without sequence_id": pc.is_null(sequence_ids),
        "images whose sequence_id is none": pc.invert(pc.is_in(sequence_ids, possible)),
        "images that are no point of the tile": pa.array(~on_earth),
    }
    left_out = np.zeros(len(table), bool)
    found = list(dropped)
    for reason, fault in faults.items():
        wrong = pc.fill_null(fault, False).to_numpy(zero_copy_only=False) & ~left_out
        rows = np.flatnonzero(wrong)
        if len(rows):
            names = tuple(_image_name(table, row) for row in rows[:EXAMPLES].tolist())
            found.append(Dropped(reason, len(rows), names))
            left_out |= wrong
    tolerated = max(1, int(TOLERATED_SHARE * len(table)))
    count = int(left_out.sum())
    if count > tolerated or (count and count == len(table)):
        raise InvalidTileError(
            f"{where}: cannot be used, for {count:,} of its {len(table):,} images cannot: "
            + "; ".join(map(str, found))
        )
    return TileImages(table.filter(pa.array(~left_out)) if count else table, tuple(found))


def unusable_values(name: str, count: int, of: int, where: str) -> list[Dropped]:
    """Return what to report of values of a column that are not of its type.

    Raises
    ------
    InvalidTileError
        When they are too many, and a filter may go by the column.
    """
    if not count:
        return []
    dropped = Dropped(f"values of {name} that are no {IMAGE_SCHEMA.field(name).type}", count)
    if name in FILTERED_COLUMNS and count > max(1, int(TOLERATED_SHARE * of)):
        raise InvalidTileError(f"{where}: cannot be used: {dropped} of {of:,}")
    return [dropped]


def _image_name(table: pa.Table, row: int) -> str:
    image_id = table["id"][row].as_py()
    return f"feature {row + 1}" if image_id is None else f"image {image_id}"


def _decode_layer(layer: Layer, tile: mercantile.Tile) -> TileImages:
    where = tile_name(tile)
    cells, are_points, columns = layer.points()
    dropped: list[Dropped] = []
    arrays: dict[pa.Field, pa.Array] = {}
    lon_lat = _positions(cells, are_points, layer.extent, tile)
    for field in IMAGE_SCHEMA:
        if field.name in POSITION:
            arrays[field] = lon_lat[field.name]
        elif field.name in columns:
            column = columns[field.name]
            array, valid = _READERS[field.type](column)
            arrays[field] = array.cast(field.type)
            unusable = int((column.present & ~valid).sum())
            if field.nullable:
                dropped += unusable_values(field.name, unusable, len(layer), where)
        else:
            arrays[field] = pa.nulls(len(layer), field.type)
    for name, column in columns.items():
        if name not in IMAGE_SCHEMA.names and column.present.any():
            array = _further_property(column) if isinstance(name, str) else None
            if array is None or not str(name).isprintable():
                dropped.append(
                    Dropped(
                        f"values of the property {cut_short(name)}, which are left out because "
                        "they or its name cannot be read",
                        int(column.present.sum()),
                    )
                )
            else:
                arrays[pa.field(name, array.type)] = array
    table = pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(list(arrays)))
    return usable_images(table, where, dropped)


def _positions(
    cells: NDArray[np.int32], are_points: NDArray[np.bool_], extent: int, tile: mercantile.Tile
) -> Mapping[str, pa.Array]:
    """Return longitudes and latitudes (inverse spherical Mercator), null far outside the tile."""
    x, y = cells.astype(np.int64)
    outside = ~are_points | (abs(x) > 2 * extent) | (abs(y) > 2 * extent)
    size = extent * 2.0**tile.z
    lon = (x + extent * tile.x) * 360.0 / size - 180.0
    mercator = 180.0 - (y + extent * tile.y) * 360.0 / size
    lat = np.degrees(2.0 * np.arctan(np.exp(np.radians(mercator)))) - 90.0
    return {"lon": pa.array(lon, mask=outside), "lat": pa.array(lat, mask=outside)}


_READERS: Mapping[pa.DataType, Callable[[Column], tuple[pa.Array, NDArray[np.bool_]]]] = {
    pa.int64(): Column.integers,
    pa.float64(): Column.floats,
    pa.bool_(): Column.booleans,
    pa.string(): Column.texts,
}


def _further_property(column: Column) -> pa.Array | None:
    """Return a property that nothing here needs; None where its values are of several types."""
    for read in (Column.booleans, Column.integers, Column.floats):
        array, valid = read(column)
        if (valid == column.present).all():
            return array
    texts, valid = column.texts()
    if (valid == column.present).all():
        longest = pc.max(pc.binary_length(texts.dictionary)).as_py() or 0
        return texts.cast(pa.string()) if longest <= MAX_TEXT_BYTES else None
    return None
