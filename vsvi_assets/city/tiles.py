"""Mapillary's tiles: their zoom level, partition keys and file names."""

import re

import mercantile

ZOOM = 14
"""The zoom level at which Mapillary's tiles hold single images."""

_FILE_NAME = re.compile(rf"mly1_public_\d{{1,5}}_\d{{1,5}}_{ZOOM}")


def tile_key(tile: mercantile.Tile) -> str:
    """Return the partition key of a tile, `14/x/y`."""
    return f"{tile.z}/{tile.x}/{tile.y}"


def parse_tile_key(key: str) -> mercantile.Tile:
    """Return the tile of a partition key."""
    z, x, y = map(int, key.split("/"))
    return mercantile.Tile(x, y, z)


def tile_file_name(tile: mercantile.Tile) -> str:
    """Return the name of a tile's file in the tile cache, as percept-vsvi-filter writes it."""
    return f"mly1_public_{tile.x}_{tile.y}_{tile.z}"


def is_tile_file_name(text: str) -> bool:
    """Return whether a text is written like a tile's file name."""
    return bool(_FILE_NAME.fullmatch(text))
