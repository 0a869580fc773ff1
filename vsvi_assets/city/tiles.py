"""Mapillary's tiles: their zoom level, partition keys and file names."""

import re
from typing import Literal

import mercantile

ZOOM = 14
"""The zoom level at which Mapillary's tiles hold single images."""

Origin = Literal["original", "computed"]
"""Whether a value is the camera's own, or what Mapillary's structure from motion made of it."""

_FILE_NAME = re.compile(rf"mly1_public_\d{{1,5}}_\d{{1,5}}_{ZOOM}")


def tile_key(tile: mercantile.Tile) -> str:
    """Return the partition key of a tile, `14/x/y`."""
    return f"{tile.z}/{tile.x}/{tile.y}"


def parse_tile_key(key: str) -> mercantile.Tile:
    """Return the tile of a partition key."""
    z, x, y = map(int, key.split("/"))
    return mercantile.Tile(x, y, z)


def tile_file_name(
    tile: mercantile.Tile, positions: Origin = "original", heading: Origin = "original"
) -> str:
    """Return the name of a tile's file in the tile cache.

    With the cameras' own positions and headings it is the one that percept-vsvi-filter writes.
    Tiles with corrected positions lie beside them, under the name of Mapillary's other tile set,
    and those with corrected headings under names that say so.
    """
    tile_set = "mly1_public" if positions == "original" else "mly1_computed_public"
    if heading == "computed":
        tile_set += "_computed_heading"
    return f"{tile_set}_{tile.x}_{tile.y}_{tile.z}"


def is_tile_file_name(text: str) -> bool:
    """Return whether a text is written like a tile's file name."""
    return bool(_FILE_NAME.fullmatch(text))
