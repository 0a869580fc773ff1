"""Mapillary's vector tiles: images and sequences as Mapbox vector tiles of version 2."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

from google.protobuf.message import DecodeError

# The package's public `encode` writes no tile as Mapillary does: with ids counted through both
# layers, coordinates beyond the border, and faults. No other module uses its generated one.
from mapbox_vector_tile.Mapbox.vector_tile_pb2 import tile as TileMessage

from vsvi_assets.sandbox.world import EXTENT, StreetImage, Tile, cell_position, grid_cell

_POINT, _LINE = 1, 2
_MOVE_TO, _LINE_TO = 1, 2
_IMAGE_FIELDS = {field.name for field in fields(StreetImage)}


def encode_tile(
    tile: Tile, images: Iterable[StreetImage], changes: Sequence[Mapping[str, Any]] = ()
) -> bytes:
    """Encode the layers `sequence` and `image` of one z14 tile, with Mapillary's own keys.

    Feature ids are a running counter through both layers, as in Mapillary's tiles. Images
    beyond the tile's border get coordinates outside of 0..4095. Without images there is no layer
    `image`. `changes` are laid over the properties of the first images, one each; None takes a
    property away.
    """
    _, x, y = tile
    cells = []
    sequences: dict[str, list[tuple[StreetImage, tuple[int, int]]]] = {}
    for image in images:
        column, row = grid_cell(image.lon, image.lat)
        cell = (column - x * EXTENT, row - y * EXTENT)
        cells.append((image, cell))
        sequences.setdefault(image.sequence_id, []).append((image, cell))

    message = TileMessage()
    lines = _Layer(message, "sequence", first_id=0)
    for sequence_id, members in sequences.items():
        path = [cell for _, cell in members]
        path = [path[0]] + [b for a, b in pairwise(path) if a != b]
        if len(path) > 1:
            first = members[0][0]
            lines.add(_LINE, path, _properties(first) | {"id": sequence_id, "image_id": first.id})
    if not cells:
        return message.SerializeToString()
    points = _Layer(message, "image", first_id=lines.next_id)
    for number, (image, cell) in enumerate(cells):
        properties = _properties(image) | {
            "id": image.id,
            "sequence_id": image.sequence_id,
            "compass_angle": image.compass_angle,
        }
        changed = properties | (dict(changes[number]) if number < len(changes) else {})
        points.add(
            _POINT, [cell], {key: value for key, value in changed.items() if value is not None}
        )
    return message.SerializeToString()


def decode_images(tile: Tile, encoded: bytes) -> list[StreetImage]:
    """Return the images of a recorded tile, each in the middle of its grid cell.

    Properties that the sandbox does not know are left alone.

    Raises
    ------
    ValueError
        When the bytes are no vector tile of images.
    """
    _, x, y = tile
    message = TileMessage()
    try:
        message.ParseFromString(encoded)
    except DecodeError as error:
        raise ValueError("no vector tile") from error
    images = []
    for layer in message.layers:
        if layer.name != "image":
            continue
        values = [value.ListFields()[0][1] for value in layer.values]  # each holds one
        for feature in layer.features:
            tags = feature.tags
            properties = {
                layer.keys[key]: values[value]
                for key, value in zip(tags[::2], tags[1::2], strict=True)
                if layer.keys[key] in _IMAGE_FIELDS
            }
            if absent := {"id", "sequence_id"} - properties.keys():
                raise ValueError(f"an image without {' and '.join(sorted(absent))}")
            column, row = (n >> 1 ^ -(n & 1) for n in feature.geometry[1:3])
            lon, lat = cell_position(x * EXTENT + column + 0.5, y * EXTENT + row + 0.5)
            images.append(StreetImage(lon=lon, lat=lat, **properties))
    return images


def _properties(image: StreetImage) -> dict[str, Any]:
    """Return the properties that images and sequences have in common."""
    properties: dict[str, Any] = {
        "captured_at": image.captured_at,
        "creator_id": image.creator_id,
        "is_pano": image.is_pano,
    }
    if image.organization_id is not None:
        properties["organization_id"] = image.organization_id
    return properties


class _Layer:
    """A layer under construction; keys and values are kept once, as the format asks."""

    def __init__(self, message: Any, name: str, first_id: int) -> None:
        self.layer = message.layers.add(name=name, version=2, extent=EXTENT)
        self.keys: dict[str, int] = {}
        self.values: dict[tuple[type, Any], int] = {}
        self.next_id = first_id

    def add(self, kind: int, path: list[tuple[int, int]], properties: dict[str, Any]) -> None:
        feature = self.layer.features.add(id=self.next_id, type=kind)
        self.next_id += 1
        for key, value in sorted(properties.items()):
            feature.tags.append(self.keys.setdefault(key, len(self.keys)))
            if (type(value), value) not in self.values:
                self.values[type(value), value] = len(self.values)
                self._add_value(value)
            feature.tags.append(self.values[type(value), value])
            if len(self.keys) > len(self.layer.keys):
                self.layer.keys.append(key)
        column = row = 0
        for number, (to_column, to_row) in enumerate(path):
            if number == 0:
                feature.geometry.append(_MOVE_TO | 1 << 3)
            elif number == 1:
                feature.geometry.append(_LINE_TO | (len(path) - 1) << 3)
            for step in (to_column - column, to_row - row):
                feature.geometry.append(step << 1 ^ step >> 31)
            column, row = to_column, to_row

    def _add_value(self, value: Any) -> None:
        message = self.layer.values.add()
        match value:
            case bool():
                message.bool_value = value
            case int() if value >= 1 << 63:
                message.uint_value = value
            case int():
                message.int_value = value
            case float():
                message.double_value = value
            case _:
                message.string_value = value
