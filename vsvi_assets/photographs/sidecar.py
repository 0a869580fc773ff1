"""A sequence's folder: its images, and the `images.geojson` beside them that describes them."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson

from vsvi_assets.files import atomic_write
from vsvi_assets.mapillary.errors import InvalidSidecarError, cut_short
from vsvi_assets.mapillary.tiles import check_sequence_id

log = logging.getLogger(__name__)

SIDECAR_NAME = "images.geojson"
Value = TypeVar("Value")

IMAGE_PAGE = "https://www.mapillary.com/app/?pKey={id}"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image on disk.

    lon, lat in degrees (EPSG:4326), captured_at in milliseconds since 1970 UTC, compass_angle
    in degrees clockwise from north, width and height in pixels, sha256 in hexadecimal; None
    where Mapillary does not say.
    """

    id: int
    lon: float | None
    lat: float | None
    captured_at: int | None
    compass_angle: float | None
    is_pano: bool | None
    creator: str | None
    width: int
    height: int
    bytes: int
    sha256: str


@dataclass
class Sidecar:
    """What is known of a sequence's images.

    Attributes
    ----------
    images
        The images on disk, by id.
    unavailable
        Ids that were asked for and that Mapillary has no longer; they are not asked for again.
    failed
        Why images could not be had at the last try, by id.
    """

    images: dict[int, ImageRecord] = field(default_factory=dict)
    unavailable: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)

    def updated(self, newer: "Sidecar") -> "Sidecar":
        """Return what is known after `newer`, which need not tell of all images, was found."""
        settled = {*newer.images, *newer.unavailable, *newer.failed}
        return Sidecar(
            images=_without(self.images, settled) | newer.images,
            unavailable=(self.unavailable - settled) | newer.unavailable,
            failed=_without(self.failed, settled) | newer.failed,
        )


def _without(mapping: dict[int, Value], ids: set[int]) -> dict[int, Value]:
    return {image_id: value for image_id, value in mapping.items() if image_id not in ids}


def sequence_folder(seqdir: Path, sequence_id: str) -> Path:
    """Return the folder of a sequence's images.

    Raises
    ------
    InvalidSequenceIdError
        When the id is not one, as one that would lead out of `seqdir`.
    """
    return seqdir / check_sequence_id(sequence_id)


def image_path(folder: Path, image_id: int) -> Path:
    """Return the file of an image in its sequence's folder."""
    return folder / f"{image_id}.jpg"


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    """Write `images.geojson` of a sequence's folder, whole or not at all, ordered by id.

    It is a GeoJSON FeatureCollection of the images on disk, with two members more:
    `unavailable`, a list of ids, and `failed`, reasons by id.
    """
    features = [_feature(sidecar.images[image_id]) for image_id in sorted(sidecar.images)]
    unavailable = orjson.dumps(sorted(sidecar.unavailable))
    failed = orjson.dumps({str(image_id): why for image_id, why in sorted(sidecar.failed.items())})
    with atomic_write(folder / SIDECAR_NAME) as file:
        file.write(b'{"type":"FeatureCollection","features":[\n')
        file.write(b",\n".join(map(orjson.dumps, features)))
        file.write(b'\n],"unavailable":%b,"failed":%b}\n' % (unavailable, failed))


def read_sidecar(folder: Path) -> Sidecar:
    """Read `images.geojson` of a sequence's folder; an empty `Sidecar` where there is none.

    Raises
    ------
    InvalidSidecarError
        When the file is not what `write_sidecar` writes.
    """
    path = folder / SIDECAR_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Sidecar()
    try:
        content = orjson.loads(data)
        return Sidecar(
            images={image.id: image for image in map(_image, content["features"])},
            unavailable={int(image_id) for image_id in content["unavailable"]},
            failed={int(image_id): str(why) for image_id, why in content["failed"].items()},
        )
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise InvalidSidecarError(
            f"{path}: not a list of images ({cut_short(str(error))}). It is written "
            "anew, and images are kept, when the sequence is downloaded again."
        ) from error


def known_images(folder: Path) -> Sidecar:
    """Return what the sidecar of a sequence's folder tells: nothing where it is broken.

    What it does not tell of is looked for in the files themselves.
    """
    try:
        return read_sidecar(folder)
    except InvalidSidecarError as error:
        log.warning("%s", error)
        return Sidecar()


def differences(folder: Path) -> dict[int, str]:
    """Compare a sequence's files with its sidecar, byte by byte, by SHA-256.

    Returns what is wrong, by image id; empty where all is as it was written.
    """
    wrong = {}
    for image in read_sidecar(folder).images.values():
        path = image_path(folder, image.id)
        if not path.is_file():
            wrong[image.id] = "missing"
        elif path.stat().st_size != image.bytes:
            wrong[image.id] = f"{path.stat().st_size:,} bytes instead of {image.bytes:,}"
        elif sha256_of(path) != image.sha256:
            wrong[image.id] = "other bytes than were downloaded"
    return wrong


def strangers(folder: Path) -> list[str]:
    """Return the names of the files in a sequence's folder that its sidecar does not list."""
    listed = {image_path(folder, image_id).name for image_id in read_sidecar(folder).images}
    return sorted({path.name for path in folder.iterdir()} - listed - {SIDECAR_NAME})


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _feature(image: ImageRecord) -> Mapping[str, Any]:
    captured_at = image.captured_at
    return {
        "type": "Feature",
        "geometry": None
        if image.lon is None
        else {"type": "Point", "coordinates": [image.lon, image.lat]},
        "properties": {
            "id": image.id,
            "captured_at": None if captured_at is None else _iso(captured_at),
            "compass_angle": image.compass_angle,
            "is_pano": image.is_pano,
            "creator": image.creator,
            "width": image.width,
            "height": image.height,
            "bytes": image.bytes,
            "sha256": image.sha256,
            "url": IMAGE_PAGE.format(id=image.id),
        },
    }


def _iso(milliseconds: int) -> str | None:
    """Return the moment in ISO 8601, None for a number that is no moment of our calendar."""
    try:
        moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _image(feature: Mapping[str, Any]) -> ImageRecord:
    properties, geometry = feature["properties"], feature["geometry"]
    lon, lat = geometry["coordinates"] if geometry else (None, None)
    captured_at = properties["captured_at"]
    if captured_at is not None:
        captured_at = round(datetime.fromisoformat(captured_at).timestamp() * 1000)
    return ImageRecord(
        id=int(properties["id"]),
        lon=lon,
        lat=lat,
        captured_at=captured_at,
        compass_angle=properties["compass_angle"],
        is_pano=properties["is_pano"],
        creator=properties["creator"],
        width=int(properties["width"]),
        height=int(properties["height"]),
        bytes=int(properties["bytes"]),
        sha256=str(properties["sha256"]),
    )
