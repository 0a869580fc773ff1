"""Copies of photographs that say where, when and by whom they were taken.

Pillow writes the EXIF data, which go in front of the picture's own data; no pixel is decoded.
Sources: CIPA DC-008 (Exif 2.32); Adobe XMP specification, parts 1 and 3; Google's Photo Sphere
XMP (GPano); Creative Commons' recommendation for XMP.
"""

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from vsvi_assets.city.views import HeadingAt
from vsvi_assets.dataset.errors import DatasetError, MissingPhotographError
from vsvi_assets.dataset.manifest import photographs_on_disk
from vsvi_assets.dataset.perspective import heading_of_centre
from vsvi_assets.files import DataPath, atomic_write, in_store
from vsvi_assets.photographs.attribution import LICENCE, LICENCE_PAGE
from vsvi_assets.photographs.sidecar import IMAGE_PAGE, ImageRecord

_KEPT_TAGS = (Base.Make, Base.Model, Base.Orientation)
# Exif requires these of every JPEG: no known resolution (72), pixels as JFIF places them, sRGB.
# Pillow cannot write one more, ComponentsConfiguration, with the type that it has to have.
_REQUIRED_TAGS: dict[int, object] = {
    Base.XResolution: 72,
    Base.YResolution: 72,
    Base.ResolutionUnit: 2,
    Base.YCbCrPositioning: 1,
}
_REQUIRED_DETAILS: dict[int, object] = {
    Base.ExifVersion: b"0232",
    Base.FlashPixVersion: b"0100",
    Base.ColorSpace: 1,
}
_SAME_NAMES = ("compass_angle", "is_pano", "creator", "width", "height", "bytes", "sha256")
_COLUMNS = ["image_id", "image_lon", "image_lat", "captured_at", "file", *_SAME_NAMES]
_WORKERS = 8
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_APP0, _APP1, _SCAN = 0xE0, 0xE1, 0xDA
_NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpRights": "http://ns.adobe.com/xap/1.0/rights/",
    "cc": "http://creativecommons.org/ns#",
    "GPano": "http://ns.google.com/photos/1.0/panorama/",
}
for _prefix, _uri in _NAMESPACES.items():
    ElementTree.register_namespace(_prefix, _uri)


def write_described_copy(
    photograph: DataPath, copy: Path, image: ImageRecord, heading_at: HeadingAt = "centre"
) -> None:
    """Copy a photograph and add EXIF and XMP data; all bytes of its picture stay the same.

    What is known is written: position (WGS 84), compass direction of the picture's middle,
    time in UTC, creator, licence, id and page at Mapillary, and for a full panorama what
    viewers need to show it. EXIF and XMP of the photograph itself are replaced, but for the
    camera's make and model and the orientation. The copy appears whole or not at all.

    Raises
    ------
    DatasetError
        When the photograph is no JPEG, or copy and photograph are the same file.
    """
    if not in_store(photograph) and copy.exists() and copy.samefile(photograph):
        raise DatasetError(f"{photograph}: a copy must be another file than the photograph")
    data = photograph.read_bytes()
    direction = None
    if image.compass_angle is not None:
        direction = image.compass_angle % 360
        if image.is_pano:
            direction = heading_of_centre(image.compass_angle, heading_at)
    segments = list(_segments(data, photograph))
    described = [_exif(data, image, direction), _XMP + _xmp(image, direction)]
    # JFIF wants its segment to be the first, which readers of Exif accept.
    before = [data[start:end] for marker, start, end in segments if marker == _APP0]
    after = [
        data[start:end]
        for marker, start, end in segments
        if marker != _APP0 and not (marker == _APP1 and data.startswith((_EXIF, _XMP), start + 4))
    ]
    picture = segments[-1][2] if segments else 2
    copy.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(copy) as file:
        file.write(data[:2])
        file.writelines(before)
        for payload in described:
            file.write(b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload)
        file.writelines(after)
        file.write(memoryview(data)[picture:])


def write_described_copies(
    table: Path, photographs: DataPath, folder: Path, heading_at: HeadingAt
) -> int:
    """Write copies of all photographs of a table, by sequence; return their number.

    Parameters
    ----------
    table
        As `manifest.photographs_on_disk` takes it.
    photographs
        The folder below which the table's `file` lie.
    heading_at
        Where in a panorama its compass angle lies.

    Raises
    ------
    MissingPhotographError
        When a photograph is not where it should be.
    """
    count = 0
    with ThreadPoolExecutor(_WORKERS) as pool:

        def copy(row: Mapping[str, Any]) -> None:
            photograph = photographs / row["file"]
            try:
                write_described_copy(photograph, folder / row["file"], _record(row), heading_at)
            except FileNotFoundError as error:
                raise MissingPhotographError(photograph) from error

        images = (rows[0] for rows in photographs_on_disk(table, _COLUMNS))
        while batch := list(islice(images, 100 * _WORKERS)):
            count += sum(1 for _ in pool.map(copy, batch))
    return count


def _record(row: Mapping[str, Any]) -> ImageRecord:
    captured_at = row["captured_at"]
    return ImageRecord(
        id=row["image_id"],
        lon=row["image_lon"],
        lat=row["image_lat"],
        captured_at=None if captured_at is None else round(captured_at.timestamp() * 1000),
        **{name: row[name] for name in _SAME_NAMES},
    )


def _segments(data: bytes, path: DataPath) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment that lies before the picture's scans."""
    if data[:2] != b"\xff\xd8":
        raise DatasetError(f"{path}: not a JPEG")
    start = 2
    while True:
        while data[start : start + 2] == b"\xff\xff":  # fill bytes
            start += 1
        if data[start : start + 1] != b"\xff" or start + 4 > len(data):
            raise DatasetError(f"{path}: not a whole JPEG")
        marker = data[start + 1]
        if marker == _SCAN:
            return
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        yield marker, start, end
        start = end


def _exif(photograph: bytes, image: ImageRecord, direction: float | None) -> bytes:
    exif = Image.Exif()
    with Image.open(io.BytesIO(photograph)) as opened:
        own = opened.getexif()
        exif.update({tag: own[tag] for tag in _KEPT_TAGS if tag in own})
        width, height = opened.size
    exif.update(_REQUIRED_TAGS)
    exif[Base.ImageDescription] = f"Mapillary image {image.id}, {IMAGE_PAGE.format(id=image.id)}"
    # As bytes, since Pillow replaces by "?" what is not ASCII; readers take UTF-8.
    exif[Base.Copyright] = f"{_credit(image)}, {LICENCE}, {LICENCE_PAGE}".encode()
    if image.creator:
        exif[Base.Artist] = image.creator.encode()
    details: dict[int, object] = _REQUIRED_DETAILS | {
        Base.ExifImageWidth: width,
        Base.ExifImageHeight: height,
        Base.ImageUniqueID: str(image.id),
    }
    position: dict[int, object] = {GPS.GPSVersionID: b"\2\3\0\0"}
    if image.captured_at is not None:
        moment = _moment(image.captured_at)
        details |= {
            Base.DateTimeOriginal: moment.strftime("%Y:%m:%d %H:%M:%S"),
            Base.SubsecTimeOriginal: f"{moment.microsecond // 1000:03}",
            Base.OffsetTimeOriginal: "+00:00",
        }
        position |= {
            GPS.GPSDateStamp: moment.strftime("%Y:%m:%d"),
            GPS.GPSTimeStamp: (moment.hour, moment.minute, moment.second),
        }
    if image.lon is not None and image.lat is not None:
        position |= {
            GPS.GPSMapDatum: "WGS-84",
            GPS.GPSLatitudeRef: "S" if image.lat < 0 else "N",
            GPS.GPSLatitude: _degrees_minutes_seconds(image.lat),
            GPS.GPSLongitudeRef: "W" if image.lon < 0 else "E",
            GPS.GPSLongitude: _degrees_minutes_seconds(image.lon),
        }
    if direction is not None:
        position |= {GPS.GPSImgDirectionRef: "T", GPS.GPSImgDirection: round(direction, 4)}
    exif[IFD.Exif] = details
    exif[IFD.GPSInfo] = position
    return exif.tobytes()


def _xmp(image: ImageRecord, direction: float | None) -> bytes:
    page = IMAGE_PAGE.format(id=image.id)
    meta = ElementTree.Element(_name("x:xmpmeta"))
    rdf = ElementTree.SubElement(meta, _name("rdf:RDF"))
    description = ElementTree.SubElement(rdf, _name("rdf:Description"), {_name("rdf:about"): ""})

    def add(name: str, value: object) -> None:
        ElementTree.SubElement(description, _name(name)).text = str(value)

    def add_list(name: str, kind: str, value: str, **attributes: str) -> None:
        items = ElementTree.SubElement(
            ElementTree.SubElement(description, _name(name)), _name(f"rdf:{kind}")
        )
        ElementTree.SubElement(items, _name("rdf:li"), attributes).text = value

    if image.creator:
        add_list("dc:creator", "Seq", image.creator)
    add_list("dc:rights", "Alt", f"{_credit(image)}, {LICENCE}", **{"xml:lang": "x-default"})
    add("dc:identifier", image.id)
    add("dc:source", page)
    add("xmpRights:Marked", True)
    add("xmpRights:WebStatement", page)
    licence = ElementTree.SubElement(description, _name("cc:license"))
    licence.set(_name("rdf:resource"), LICENCE_PAGE)
    add("cc:attributionName", _credit(image))
    add("cc:attributionURL", page)
    if image.captured_at is not None:
        moment = _moment(image.captured_at).isoformat(timespec="milliseconds")
        add("xmp:CreateDate", moment)
    if image.is_pano and image.width == 2 * image.height:
        add("GPano:ProjectionType", "equirectangular")
        add("GPano:UsePanoramaViewer", True)
        if direction is not None:
            add("GPano:PoseHeadingDegrees", round(direction, 4) % 360)
        for part in ("CroppedAreaImage", "FullPano"):
            add(f"GPano:{part}WidthPixels", image.width)
            add(f"GPano:{part}HeightPixels", image.height)
        add("GPano:CroppedAreaLeftPixels", 0)
        add("GPano:CroppedAreaTopPixels", 0)
    packet = ElementTree.tostring(meta, encoding="unicode")
    begin = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    return f'{begin}{packet}<?xpacket end="r"?>'.encode()


def _name(prefixed: str) -> str:
    prefix, name = prefixed.split(":")
    return f"{{{_NAMESPACES[prefix]}}}{name}"


def _credit(image: ImageRecord) -> str:
    return f"© {image.creator}, Mapillary" if image.creator else "© Mapillary contributors"


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _degrees_minutes_seconds(degrees: float) -> tuple[int, int, float]:
    whole, minutes = divmod(abs(degrees) * 60, 60)
    minutes, seconds = divmod(minutes * 60, 60)
    return int(whole), int(minutes), round(seconds, 6)
