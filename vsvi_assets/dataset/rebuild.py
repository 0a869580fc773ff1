"""A frozen dataset fetched again, anywhere else, from its manifest."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import mercantile

from vsvi_assets.city import ZOOM, City, parse_tile_key
from vsvi_assets.city.area import MAX_LATITUDE
from vsvi_assets.dataset.errors import ManifestError
from vsvi_assets.dataset.manifest import (
    MANIFEST_NAME,
    PHOTOGRAPHS_FOLDER,
    Manifest,
    table_rows,
)
from vsvi_assets.files import DiskGuard, atomic_write
from vsvi_assets.mapillary.client import ImageSize, Mapillary
from vsvi_assets.photographs.attribution import write_attribution
from vsvi_assets.photographs.downloads import SequenceJob, SequenceResult, download_sequences
from vsvi_assets.photographs.sidecar import IMAGE_PAGE

WITHDRAWN_NAME = "withdrawn.txt"

_KEYS = ("bounding_box", "image_size", "num_retries", "required_disk_space")
_COLUMNS = [
    *("image_id", "sequence_id", "file", "sha256"),
    *("image_lon", "image_lat", "captured_at", "compass_angle", "is_pano"),
]


class FrozenImage(NamedTuple):
    """A photograph of a frozen dataset, as `photographs.sidecar.Description` has it."""

    id: int
    lon: float | None
    lat: float | None
    captured_at: int | None
    compass_angle: float | None
    is_pano: bool | None
    sha256: str


def _box_of(manifest: Manifest) -> dict[str, float]:
    """Return the box of one of the dataset's tiles."""
    tile = parse_tile_key(manifest.tiles[0].tile) if manifest.tiles else mercantile.Tile(0, 0, ZOOM)
    bounds = mercantile.bounds(tile)
    return {
        "west": bounds.west,
        "south": max(bounds.south, -MAX_LATITUDE),
        "east": bounds.east,
        "north": min(bounds.north, MAX_LATITUDE),
    }


@dataclass
class Rebuilt:
    """What became of a frozen dataset's photographs.

    Attributes
    ----------
    proved
        How many are byte by byte the frozen ones, by SHA-256.
    other_bytes
        Images that are there, but as other files than were frozen.
    withdrawn
        Images that Mapillary leaves out of its answers. Whoever holds copies has to remove
        them once Mapillary does so for longer than a day.
    failed
        Why others are not there, by image id; repeating it asks for these alone.
    """

    proved: int = 0
    other_bytes: list[int] = field(default_factory=list)
    withdrawn: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)


def rebuild_city(manifest: Manifest, folder: Path) -> City:
    """Return the city of a frozen dataset, with those keys that its photographs depend on.

    Raises
    ------
    ManifestError
        When the frozen city file cannot be used.
    """
    content = {key: manifest.city_file[key] for key in _KEYS if key in manifest.city_file}
    if "bounding_box" not in content:
        # The files of a region or of places are not part of the dataset, and any box will do:
        # which photographs to fetch, the table says.
        content["bounding_box"] = _box_of(manifest)
    try:
        return City.parse(
            content | {"services": manifest.services}, name=manifest.city, data_dir=folder
        )
    except ValueError as error:
        raise ManifestError(f"The city file in the manifest cannot be used: {error}") from error


def rebuild(
    manifest: Manifest,
    table: Path,
    client: Mapillary,
    folder: Path,
    *,
    size: ImageSize,
    guard: DiskGuard,
    settled: Callable[[int], object] = lambda bytes_: None,
) -> Rebuilt:
    """Fetch exactly the photographs of a frozen dataset to `<folder>/photographs`.

    What is there and whole is not fetched again. Beside them lie the manifest and the table,
    and `withdrawn.txt` with the pages of the images that Mapillary leaves out.

    Parameters
    ----------
    manifest, table
        As `read_manifest` returns them.
    client
        Of the services that the manifest names.
    size
        As in the frozen city file.
    settled
        Called as by `download_sequences`.

    Raises
    ------
    RefusedTokenError, DiskFullError
        At once; what is whole is kept.
    """
    photographs = folder / PHOTOGRAPHS_FOLDER
    photographs.mkdir(parents=True, exist_ok=True)
    write_attribution(photographs)
    _write(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2).encode() + b"\n")
    if table.absolute() != (folder / manifest.table.file).absolute():
        with atomic_write(folder / manifest.table.file) as file, table.open("rb") as source:
            shutil.copyfileobj(source, file)
    frozen: dict[str, dict[int, str]] = {}

    def jobs() -> Iterator[SequenceJob]:
        for sequence_id, images in _images_by_sequence(table):
            frozen[sequence_id] = {image.id: image.sha256 for image in images}
            yield SequenceJob(sequence_id, images)

    rebuilt = Rebuilt()
    results = download_sequences(
        client,
        jobs(),
        photographs,
        size=size,
        services=manifest.services,
        guard=guard,
        settled=settled,
    )
    with closing(results):
        for result in results:
            _add(rebuilt, result, frozen.pop(result.sequence_id))
    pages = [IMAGE_PAGE.format(id=image_id) for image_id in rebuilt.withdrawn]
    _write(folder / WITHDRAWN_NAME, "".join(f"{page}\n" for page in pages).encode())
    return rebuilt


def _add(rebuilt: Rebuilt, result: SequenceResult, hashes: dict[int, str]) -> None:
    found = result.found
    for image_id, sha256 in hashes.items():
        if image := found.images.get(image_id):
            if image.sha256 == sha256:
                rebuilt.proved += 1
            else:
                rebuilt.other_bytes.append(image_id)
        elif image_id in found.absent:
            rebuilt.withdrawn.append(image_id)
        elif refusal := found.refused.get(image_id):
            rebuilt.failed[image_id] = refusal.reason
        else:
            rebuilt.failed[image_id] = found.failed[image_id]


def _images_by_sequence(table: Path) -> Iterator[tuple[str, list[FrozenImage]]]:
    stored = (row for row in table_rows(table, _COLUMNS) if row["file"] is not None)
    for sequence_id, rows in groupby(stored, key=itemgetter("sequence_id")):
        images = {row["image_id"]: _frozen_image(row) for row in rows}
        yield sequence_id, list(images.values())


def _frozen_image(row: dict[str, Any]) -> FrozenImage:
    captured_at: datetime | None = row["captured_at"]
    return FrozenImage(
        id=row["image_id"],
        lon=row["image_lon"],
        lat=row["image_lat"],
        captured_at=None if captured_at is None else round(captured_at.timestamp() * 1000),
        compass_angle=row["compass_angle"],
        is_pano=row["is_pano"],
        sha256=row["sha256"],
    )


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
