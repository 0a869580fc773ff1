"""A dense tile, from the service's bytes to the stored GeoJSON."""

from collections.abc import Iterator
from pathlib import Path

import mercantile

from benchmarks import reference
from benchmarks.inputs import dense_tile
from benchmarks.measure import Clock, in_turn, measure
from benchmarks.table import Row, megabytes, seconds
from vsvi_assets.mapillary.tile_files import write_tile
from vsvi_assets.mapillary.tiles import decode_tile

FIRST_TILE = 100
"""Images in a tile before the one that is timed: a city has hundreds, and what only a process's
first one costs is left out."""


def project_tile(clock: Clock, images: int, path: Path) -> None:
    tile, data = dense_tile(images)
    _project(*dense_tile(FIRST_TILE), path)
    with clock:
        _project(tile, data, path)


def reference_tile(clock: Clock, images: int, path: Path) -> None:
    tile, data = dense_tile(images)
    reference.store_tile(*dense_tile(FIRST_TILE), path)
    with clock:
        reference.store_tile(tile, data, path)


def _project(tile: mercantile.Tile, data: bytes, path: Path) -> None:
    write_tile(decode_tile(data, tile), path, "mapillary")


def tile(folder: Path, images: int, repeat: int) -> Iterator[Row]:
    """A dense tile, bytes to stored GeoJSON."""
    ours, theirs = in_turn(
        repeat,
        lambda: measure(project_tile, images, folder / "project.geojson"),
        lambda: measure(reference_tile, images, folder / "reference.geojson"),
    )
    ratio = theirs.seconds / ours.seconds
    yield Row(
        f"a tile of {images:,} images, bytes to stored GeoJSON",
        seconds(theirs.seconds),
        seconds(ours.seconds),
        f"{ratio:.1f}",
        f"{megabytes(ours.memory)} (reference {megabytes(theirs.memory)})",
        ">= 5",
        ratio >= 5,
    )
