"""Is it a whole JPEG? Told from the markers, without decoding a pixel.

Source of the structure: ITU-T T.81 (JPEG), annex B; CIPA DC-007 (Multi-Picture Format).
"""

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vsvi_assets.mapillary.errors import InvalidImageError, OversizedImageError

MAX_PIXELS = 178_956_970
"""Above it Pillow refuses an image as a decompression bomb."""

MAX_BYTES = 200_000_000

_START, _END, _SCAN, _APP2 = 0xD8, 0xD9, 0xDA, 0xE2
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_SEGMENT = frozenset({0x01, *range(0xD0, 0xD8)})
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MULTI_PICTURE = b"MPF\0"
_NUMBER_OF_IMAGES = 0xB001


@dataclass(frozen=True)
class JpegInfo:
    """Width and height in pixels, and the format by Pillow's name for it."""

    width: int
    height: int
    format: Literal["JPEG", "MPO"]


def check_jpeg(image: bytes | mmap.mmap | Path) -> JpegInfo:
    """Check that bytes, or a file, are a JPEG or MPO from its start to its end.

    Every marker is followed up to the end of the image, for an MPO of all its images.
    Whatever lies behind the end is tolerated, as cameras pad and append.

    Raises
    ------
    InvalidImageError
        When it is something else, or ends too early.
    OversizedImageError
        When it claims more than `MAX_PIXELS` or has more than `MAX_BYTES`.
    FileNotFoundError
        When there is no such file.
    """
    if isinstance(image, Path):
        with image.open("rb") as file:
            return check_jpeg_file(file.fileno())
    if len(image) > MAX_BYTES:
        raise OversizedImageError(f"{len(image):,} bytes, more than {MAX_BYTES:,}")
    width, height, images, end = _walk(image, 0)
    for _ in range(images - 1):
        start = image.find(b"\xff\xd8\xff", end)
        if start < 0:
            raise InvalidImageError(f"it ends before the last of its {images} images")
        end = _walk(image, start)[3]
    return JpegInfo(width, height, "MPO" if images > 1 else "JPEG")


def check_jpeg_file(descriptor: int) -> JpegInfo:
    """Check an open file as `check_jpeg` does, without reading it into memory."""
    try:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as image:
            return check_jpeg(image)
    except ValueError as error:  # mmap's word for an empty file
        raise InvalidImageError("it is empty") from error


def _walk(image: bytes | mmap.mmap, start: int) -> tuple[int, int, int, int]:
    """Follow the markers of the image at `start`: width, height, images in the file, end."""
    if image[start : start + 2] != bytes((0xFF, _START)):
        raise InvalidImageError(f"it begins with {bytes(image[start : start + 12])!r}")
    width = height = scans = 0
    images = 1
    position = start + 2
    while True:
        marker, position = _marker(image, position)
        if marker == _END:
            break
        if marker in _WITHOUT_SEGMENT:
            continue
        segment = image[position : position + 2]
        length = int.from_bytes(segment, "big")
        if len(segment) < 2 or length < 2 or position + length > len(image):
            raise InvalidImageError(f"it ends within its headers, after {len(image):,} bytes")
        if marker in _FRAME_HEADERS:
            if length < 8:
                raise InvalidImageError("its frame header is too short")
            height, width = struct.unpack_from(">HH", image, position + 3)
            if width * height > MAX_PIXELS:
                raise OversizedImageError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
        elif marker == _APP2 and image[position + 2 : position + 6] == _MULTI_PICTURE:
            images = _number_of_images(image[position + 6 : position + length])
        position += length
        if marker == _SCAN:
            scans += 1
            found = _MARKER_IN_SCAN.search(image, position)
            if not found:
                raise InvalidImageError(f"it has no end, after {len(image):,} bytes")
            position = found.start()
    if not (width and height and scans):
        raise InvalidImageError("it holds no picture")
    return width, height, images, position


def _marker(image: bytes | mmap.mmap, position: int) -> tuple[int, int]:
    """Return the marker at `position`, and where it ends; fill bytes may go before it."""
    if image[position : position + 1] != b"\xff":
        raise InvalidImageError(f"no marker at byte {position:,} of {len(image):,}")
    while image[position : position + 1] == b"\xff":
        position += 1
    if position >= len(image):
        raise InvalidImageError(f"it has no end, after {len(image):,} bytes")
    return image[position], position + 1


def _number_of_images(multi_picture: bytes) -> int:
    """Return how many images the index of a Multi-Picture Format segment announces."""
    order: Literal["<", ">"] = "<" if multi_picture[:2] == b"II" else ">"
    try:
        (index,) = struct.unpack_from(f"{order}4xI", multi_picture)
        (entries,) = struct.unpack_from(f"{order}H", multi_picture, index)
        for entry in range(entries):
            tag, value = struct.unpack_from(f"{order}H6xI", multi_picture, index + 2 + 12 * entry)
            if tag == _NUMBER_OF_IMAGES:
                return max(int(value), 1)
    except struct.error as error:
        raise InvalidImageError("its multi-picture index is broken") from error
    return 1
