"""Is it a whole JPEG? Decided by following its markers, and where these are odd by Pillow.

Following the markers takes 0.3 ms for a photograph of 700 KB and decoding it 40 ms. Pillow
therefore decodes a photograph without its pixels, which takes 0.2 ms and finds damaged tables;
the whole one it decodes only where that fails, or where the markers do not lead from start to
end. No image that it decodes is refused, and none that has lost its end, or that it cannot
decode, is taken for whole.

Source of the structure: ITU-T T.81 (JPEG), annex B; CIPA DC-007 (Multi-Picture Format).
"""

import io
import mmap
import re
import struct
import threading
from dataclasses import dataclass, field, replace
from typing import IO, Literal, cast

from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from vsvi_assets.files import DataPath, content_of
from vsvi_assets.photographs.errors import InvalidImageError, OtherFormatError, OversizedImageError

MAX_PIXELS = 178_956_970
"""Above it Pillow refuses an image as a decompression bomb."""

MAX_BYTES = 200_000_000

_START, _END, _SCAN, _APP2 = 0xD8, 0xD9, 0xDA, 0xE2
_PROGRESSIVE = 0xC2
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_SEGMENT = frozenset({0x01, *range(0xD0, 0xD8)})
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MULTI_PICTURE = b"MPF\0"
_ENTRIES = 0xB002
_SIZE_OF_ENTRY = 16
_SMALL_SIZE = struct.pack(">HH", 8, 8)
_USUAL_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_USUAL_COMPONENTS = frozenset({1, 3, 4})
_OTHER_FORMATS = ("AVIF", "BMP", "GIF", "JPEG2000", "PNG", "TIFF", "WEBP")

_decoding = threading.Lock()
"""One picture at a time: a progressive one takes three bytes of memory for each of its pixels."""


@dataclass(frozen=True)
class JpegInfo:
    """What the headers of a JPEG say of its picture.

    Attributes
    ----------
    width, height
        Pixels.
    preview_end
        Of a progressive JPEG, how many of its bytes make a picture that is as sharp as the whole
        one at a quarter of the size: those up to the end of the first scan of details of
        brightness. None where there is no such scan.
    """

    width: int
    height: int
    preview_end: int | None = field(default=None, compare=False)

    @property
    def is_oversized(self) -> bool:
        """Whether Pillow refuses to open it, unless its limit is raised."""
        return self.width * self.height > MAX_PIXELS


@dataclass(frozen=True)
class _Picture:
    """A whole picture: its size, its end in the file, and where it has an index of others."""

    info: JpegInfo
    end: int
    index: int | None


def check_jpeg(image: bytes | mmap.mmap | DataPath) -> JpegInfo:
    """Check that bytes, or a file, are a JPEG or MPO from its start to its end, with its tables.

    Whatever lies behind the end is tolerated, as cameras pad and append. Pictures behind the
    first one have to be whole too, unless a program that dropped them left their index.

    Raises
    ------
    OtherFormatError
        When it is a picture, but no JPEG that Pillow reads.
    OversizedImageError
        When it would have to be decoded, and has more than `MAX_PIXELS`.
    InvalidImageError
        When it is something else, or ends too early.
    FileNotFoundError
        When there is no such file.
    """
    if not isinstance(image, bytes | mmap.mmap):
        with content_of(image) as content:
            return check_jpeg(content)
    if not len(image):
        raise InvalidImageError("it is empty")
    if image[:3] != b"\xff\xd8\xff":
        raise _no_jpeg(image)
    try:
        first = _walk(image, 0)
    except InvalidImageError as error:
        return _decode(image, error)
    for start in _starts_of_others(image, first):
        try:
            _walk(image, start)
        except InvalidImageError as error:
            _decode(image[start:], error)
    return first.info


def _walk(image: bytes | mmap.mmap, start: int) -> _Picture:
    """Follow the markers of the picture at `start`, up to its end."""
    if image[start : start + 2] != bytes((0xFF, _START)):
        raise InvalidImageError(f"no picture at byte {start:,} of {len(image):,}")
    info = index = brightness = preview_end = None
    is_usual, scans = True, 0
    headers = [image[start : start + 2]]
    position = start + 2
    while True:
        marker, position = _marker(image, position)
        if marker == _END:
            break
        if marker in _WITHOUT_SEGMENT:
            continue
        length = int.from_bytes(image[position : position + 2], "big")
        if length < 2 or position + length > len(image):
            raise InvalidImageError(f"it ends within its headers, after {len(image):,} bytes")
        segment = image[position : position + length]
        if marker in _FRAME_HEADERS:
            if length < 9:
                raise InvalidImageError("its frame header is too short")
            bits, height, width, components = struct.unpack_from(">BHHB", segment, 2)
            info = JpegInfo(width, height)
            is_usual = marker in _USUAL_FRAMES and bits == 8 and components in _USUAL_COMPONENTS
            brightness = segment[8:9] if marker == _PROGRESSIVE else None
            segment = segment[:3] + _SMALL_SIZE + segment[7:]
        elif marker == _APP2 and segment[2:6] == _MULTI_PICTURE:
            index = position + 6
        headers += bytes((0xFF, marker)), segment
        position += length
        if marker == _SCAN:
            scans += 1
            found = _MARKER_IN_SCAN.search(image, position)
            if not found:
                raise InvalidImageError(f"it has no end, after {len(image):,} bytes")
            position = found.start()
            # It names its component, and last but two its first coefficient, 0 being the mean.
            if not preview_end and segment[3:4] == brightness and segment[-3]:
                preview_end = position - start
    if not (info and info.width and info.height and scans and is_usual):
        raise InvalidImageError("it holds no picture")
    _check_tables(b"".join([*headers, image[position - 2 : position]]))
    return _Picture(replace(info, preview_end=preview_end), position, index)


def _check_tables(headers: bytes) -> None:
    """Let Pillow decode a picture that has all headers and tables of another, and no pixels."""
    try:
        with JpegImageFile(io.BytesIO(headers)) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidImageError("its tables are damaged") from error


def _marker(image: bytes | mmap.mmap, position: int) -> tuple[int, int]:
    """Return the marker at `position`, and where it ends; fill bytes may go before it."""
    if image[position : position + 1] != b"\xff":
        raise InvalidImageError(f"no marker at byte {position:,} of {len(image):,}")
    while image[position : position + 1] == b"\xff":
        position += 1
    if position >= len(image):
        raise InvalidImageError(f"it has no end, after {len(image):,} bytes")
    return image[position], position + 1


def _decode(image: bytes | mmap.mmap, odd: InvalidImageError) -> JpegInfo:
    """Let Pillow decide about a picture whose markers are odd."""
    file = _file_of(image)
    try:
        with _decoding, JpegImageFile(file) as picture:
            info = JpegInfo(*picture.size)
            # Pillow decodes some pictures without their last bytes.
            if image.rfind(bytes((0xFF, _END))) < file.tell():
                raise odd
            if info.is_oversized:
                raise OversizedImageError(
                    f"{info.width} x {info.height} pixels, more than {MAX_PIXELS:,}"
                )
            # An eighth of the size, in grey: all bytes are read, in two thirds of the time.
            picture.draft("L", (1, 1))
            picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise odd from error
    return info


def _starts_of_others(image: bytes | mmap.mmap, first: _Picture) -> list[int]:
    """Return where further pictures begin, by the index of the Multi-Picture Format.

    The index is out of date when the first picture has not the length that it gives: a
    program has written the first picture again, and dropped the others.
    """
    if first.index is None:
        return []
    order: Literal["<", ">"] = "<" if image[first.index : first.index + 2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}4xI", image, first.index)
        directory += first.index
        (fields,) = struct.unpack_from(f"{order}H", image, directory)
        entries: list[tuple[int, int]] = []
        for field in range(fields):
            tag, length, value = struct.unpack_from(
                f"{order}H2xII", image, directory + 2 + 12 * field
            )
            if tag == _ENTRIES:
                entries = [
                    struct.unpack_from(f"{order}4xII4x", image, first.index + value + entry)
                    for entry in range(0, length - length % _SIZE_OF_ENTRY, _SIZE_OF_ENTRY)
                ]
    except struct.error:
        return []
    if not entries or entries[0][0] != first.end:
        return []
    return [first.index + offset for _, offset in entries[1:]]


def _file_of(image: bytes | mmap.mmap) -> IO[bytes]:
    if isinstance(image, bytes):
        return io.BytesIO(image)
    image.seek(0)
    return cast(IO[bytes], image)


def _no_jpeg(image: bytes | mmap.mmap) -> InvalidImageError:
    """Return the error for what does not begin as a JPEG."""
    try:
        with Image.open(_file_of(image), formats=_OTHER_FORMATS) as picture:
            return OtherFormatError(f"it is a picture in the format {picture.format}, no JPEG")
    except UnidentifiedImageError:
        return InvalidImageError(f"it begins with {bytes(image[:12])!r}")
    except Image.DecompressionBombError as error:
        return OversizedImageError(str(error))
