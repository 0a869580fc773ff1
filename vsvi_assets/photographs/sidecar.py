"""A sequence's folder: its images, and the `images.geojson` beside them that describes them."""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import orjson

from vsvi_assets.files import DataPath, atomic_write
from vsvi_assets.mapillary.errors import cut_short
from vsvi_assets.mapillary.tiles import check_sequence_id
from vsvi_assets.photographs.errors import InvalidSidecarError
from vsvi_assets.photographs.quality import Quality
from vsvi_assets.photographs.states import Absence, Photograph, Refusal, State

log = logging.getLogger(__name__)

SIDECAR_NAME = "images.geojson"
IMAGE_PAGE = "https://www.mapillary.com/app/?pKey={id}"

SERVICES_WITHOUT_MARK = "mapillary"
"""Where photographs come from whose folder does not say so: percept-vsvi-filter's, for one."""

_SERVICES_MARK = re.compile(rb'"services":\s*"(\w+)"')
_MARK_WITHIN = 200
"""Bytes at the beginning of a sidecar that hold the mark, even where the rest is broken."""

Value = TypeVar("Value")


class Description(Protocol):
    """What a tile says of an image, as `ImageRecord` gives it."""

    @property
    def id(self) -> int: ...
    @property
    def lon(self) -> float | None: ...
    @property
    def lat(self) -> float | None: ...
    @property
    def captured_at(self) -> int | None: ...
    @property
    def compass_angle(self) -> float | None: ...
    @property
    def is_pano(self) -> bool | None: ...


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image on disk.

    lon, lat in degrees (EPSG:4326), captured_at in milliseconds since 1970 UTC, compass_angle
    in degrees clockwise from north, width and height in pixels, sha256 in hexadecimal; None
    where Mapillary does not say. `image_size` is the city file's when the image was fetched,
    `stored_at` when its file was written (with timezone); None in old sidecars, and for the
    size of a file that was there already. `quality` is None where it was not measured.
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
    image_size: str | None = None
    stored_at: datetime | None = None
    quality: Quality | None = None


@dataclass
class Sidecar:
    """What is known of a sequence's images.

    An image whose old file is kept because it could not be fetched again is in `images` and in
    `failed` or `refused`; one that the service left out before it could not be asked for is
    in `absent` and in `failed`.

    Attributes
    ----------
    images
        The images on disk, by id.
    absent
        Images that Mapillary's answers left out, by id.
    refused
        Images that no attempt can make usable, by id.
    failed
        Why images were not stored at the last attempt, by id.
    services
        Which services the folder's images come from; None where it does not say.
    """

    images: dict[int, ImageRecord] = field(default_factory=dict)
    absent: dict[int, Absence] = field(default_factory=dict)
    refused: dict[int, Refusal] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    services: str | None = None

    @property
    def ids(self) -> set[int]:
        """All images that something is known of."""
        return {*self.images, *self.absent, *self.refused, *self.failed}

    def updated(self, newer: "Sidecar") -> "Sidecar":
        """Return what is known after `newer`, which says all that is known of its images."""
        ids = newer.ids
        return Sidecar(
            images=_without(self.images, ids) | newer.images,
            absent=_without(self.absent, ids) | newer.absent,
            refused=_without(self.refused, ids) | newer.refused,
            failed=_without(self.failed, ids) | newer.failed,
            services=newer.services or self.services,
        )


def _without(mapping: dict[int, Value], ids: set[int]) -> dict[int, Value]:
    return {image_id: value for image_id, value in mapping.items() if image_id not in ids}


def photographs_of(sequence_id: str, sidecar: Sidecar) -> Iterator[Photograph]:
    """Yield what a sidecar says of each image, as the table `photographs` has it, by id."""
    for image_id in sorted(sidecar.ids):
        known: dict[str, Any] = {}
        if absence := sidecar.absent.get(image_id):
            known = {
                "state": absence.state,
                "first_asked": absence.first_asked,
                "last_asked": absence.last_asked,
                "answers": absence.answers,
            }
        if refusal := sidecar.refused.get(image_id):
            known |= {
                "state": State.REFUSED,
                "reason": refusal.reason,
                "last_asked": refusal.asked,
            }
        if image_id in sidecar.failed:
            known |= {"state": State.FAILED, "reason": sidecar.failed[image_id]}
        if image := sidecar.images.get(image_id):
            known |= {
                "state": State.STORED,
                "bytes": image.bytes,
                "sha256": image.sha256,
                "width": image.width,
                "height": image.height,
                "image_size": image.image_size,
                "creator": image.creator,
                "stored_at": image.stored_at,
                **(image.quality._asdict() if image.quality else {}),
            }
        yield Photograph(sequence_id, image_id, **known)


def sequence_folder(seqdir: DataPath, sequence_id: str) -> DataPath:
    """Return the folder of a sequence's images, never outside `seqdir`; see `check_sequence_id`."""
    return seqdir / check_sequence_id(sequence_id)


def image_name(image_id: int) -> str:
    """Return the name of an image's file."""
    return f"{image_id}.jpg"


def image_path(folder: DataPath, image_id: int) -> DataPath:
    """Return the file of an image in its sequence's folder."""
    return folder / image_name(image_id)


def write_sidecar(folder: DataPath, sidecar: Sidecar) -> None:
    """Write `images.geojson` of a sequence's folder, whole or not at all, ordered by id.

    It is a GeoJSON FeatureCollection of the images on disk, with further members: `services`,
    and by id `not_answered`, `unavailable`, `refused` and `failed`.
    """
    head: dict[str, object] = {"type": "FeatureCollection"}
    if sidecar.services:
        head["services"] = sidecar.services
    features = [_feature(sidecar.images[image_id]) for image_id in sorted(sidecar.images)]
    tail = {
        "not_answered": _by_id(sidecar.absent, State.NOT_ANSWERED),
        "unavailable": _by_id(sidecar.absent, State.UNAVAILABLE),
        "refused": {
            str(image_id): {"reason": refusal.reason, "asked": _iso(refusal.asked)}
            for image_id, refusal in sorted(sidecar.refused.items())
        },
        "failed": {str(image_id): why for image_id, why in sorted(sidecar.failed.items())},
    }
    with atomic_write(folder / SIDECAR_NAME) as file:
        file.write(orjson.dumps(head)[:-1] + b',"features":[\n')
        file.write(b",\n".join(map(orjson.dumps, features)))
        file.write(b"\n]," + orjson.dumps(tail)[1:] + b"\n")


def read_sidecar(folder: DataPath) -> Sidecar:
    """Read `images.geojson` of a sequence's folder; an empty `Sidecar` where there is none.

    Old ones list unavailable images without dates, and were quick to believe it: they count
    as not answered since the file was written.

    Raises
    ------
    InvalidSidecarError
        When the file is not what `write_sidecar` writes.
    OSError
        When it cannot be read.
    """
    path = folder / SIDECAR_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Sidecar()
    try:
        content = orjson.loads(data)
        unavailable = content["unavailable"]
        if isinstance(unavailable, list):
            written = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
            absent = {_whole(image_id): Absence(written, written) for image_id in unavailable}
        else:
            absent = _absences(content["not_answered"]) | _absences(unavailable)
        services = content.get("services")
        return Sidecar(
            images={image.id: image for image in map(_image, content["features"])},
            absent=absent,
            refused={
                _whole(image_id): Refusal(_text(refusal["reason"]), _moment(refusal["asked"]))
                for image_id, refusal in content.get("refused", {}).items()
            },
            failed={_whole(image_id): _text(why) for image_id, why in content["failed"].items()},
            services=None if services is None else str(services),
        )
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise InvalidSidecarError(
            f"{path}: not a list of images ({cut_short(str(error))}). It is written "
            "again, and images are kept, when the sequence is downloaded again."
        ) from error


def known_images(folder: DataPath) -> Sidecar:
    """Return what the sidecar of a sequence's folder says: of a broken one the services alone.

    What it does not say is looked for in the files themselves.
    """
    try:
        return read_sidecar(folder)
    except InvalidSidecarError as error:
        log.warning("%s", error)
        with (folder / SIDECAR_NAME).open("rb") as file:
            mark = _SERVICES_MARK.search(file.read(_MARK_WITHIN))
        return Sidecar(services=mark[1].decode() if mark else None)


def sha256_of(path: DataPath) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_creator(images: Mapping[int, ImageRecord]) -> dict[int, ImageRecord]:
    """Return a sequence's images, with their creator where others of the sequence give it.

    A sequence is of one creator (as the layer `sequence` of the tiles has it), whom files that
    were there already, as those of a run that was killed, do not name.
    """
    creators = {image.creator for image in images.values() if image.creator}
    if len(creators) != 1:
        return dict(images)
    creator = creators.pop()
    return {
        image_id: image if image.creator else replace(image, creator=creator)
        for image_id, image in images.items()
    }


def _by_id(absent: Mapping[int, Absence], state: State) -> dict[str, object]:
    return {
        str(image_id): {
            "first_asked": _iso(absence.first_asked),
            "last_asked": _iso(absence.last_asked),
            "answers": absence.answers,
        }
        for image_id, absence in sorted(absent.items())
        if absence.state == state
    }


def _absences(content: Mapping[str, Mapping[str, Any]]) -> dict[int, Absence]:
    return {
        _whole(image_id): Absence(
            _moment(absence["first_asked"]),
            _moment(absence["last_asked"]),
            _whole(absence["answers"], bits=32),
        )
        for image_id, absence in content.items()
    }


def _feature(image: ImageRecord) -> Mapping[str, Any]:
    captured_at = image.captured_at
    return {
        "type": "Feature",
        "geometry": None
        if image.lon is None
        else {"type": "Point", "coordinates": [image.lon, image.lat]},
        "properties": {
            "id": image.id,
            "captured_at": None if captured_at is None else _iso_of_milliseconds(captured_at),
            "compass_angle": image.compass_angle,
            "is_pano": image.is_pano,
            "creator": image.creator,
            "width": image.width,
            "height": image.height,
            "bytes": image.bytes,
            "sha256": image.sha256,
            "image_size": image.image_size,
            "stored_at": None if image.stored_at is None else _iso(image.stored_at),
            **(image.quality._asdict() if image.quality else {}),
            "url": IMAGE_PAGE.format(id=image.id),
        },
    }


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _iso_of_milliseconds(milliseconds: int) -> str | None:
    """Return the moment in ISO 8601, None for a number that is no moment of our calendar."""
    try:
        return _iso(datetime.fromtimestamp(milliseconds / 1000, UTC))
    except (ValueError, OverflowError, OSError):
        return None


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{cut_short(text)} has no timezone")
    return moment.astimezone(UTC)


def _image(feature: Mapping[str, Any]) -> ImageRecord:
    properties, geometry = feature["properties"], feature["geometry"]
    lon, lat = geometry["coordinates"] if geometry else (None, None)
    captured_at, stored_at = properties["captured_at"], properties.get("stored_at")
    creator, image_size = properties["creator"], properties.get("image_size")
    if captured_at is not None:
        captured_at = round(datetime.fromisoformat(captured_at).timestamp() * 1000)
    return ImageRecord(
        id=_whole(properties["id"]),
        lon=lon,
        lat=lat,
        captured_at=captured_at,
        compass_angle=properties["compass_angle"],
        is_pano=properties["is_pano"],
        creator=None if creator is None else _text(creator),
        width=_whole(properties["width"], bits=32),
        height=_whole(properties["height"], bits=32),
        bytes=_whole(properties["bytes"]),
        sha256=_text(properties["sha256"]),
        image_size=None if image_size is None else _text(image_size),
        stored_at=None if stored_at is None else _moment(stored_at),
        quality=_quality(properties),
    )


def _quality(properties: Mapping[str, Any]) -> Quality | None:
    if "sharpness" not in properties:
        return None
    numbers = {name: float(properties[name]) for name in Quality._fields if name != "night"}
    return Quality(**numbers, night=bool(properties["night"]))


def _whole(value: Any, bits: int = 64) -> int:
    """Return a number as the table `photographs` can hold it."""
    number = int(value)
    if not 0 <= number < 2 ** (bits - 1):
        raise ValueError(f"{cut_short(str(value))} is out of range")
    return number


def _text(value: Any) -> str:
    """Return a text as the table `photographs` can hold it."""
    text = str(value)
    if "\0" in text:
        raise ValueError("a text holds the character 0")
    return text
