import io
import warnings
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vsvi_assets.photographs.errors import InvalidImageError, OtherFormatError, OversizedImageError
from vsvi_assets.photographs.jpeg import JpegInfo, check_jpeg


def picture(mode: str = "RGB", size: tuple[int, int] = (61, 43)) -> Image.Image:
    """Return noise: its JPEG is full of bytes that look like markers."""
    noise = Image.effect_noise(size, 90)
    return Image.merge("RGB", [noise, noise.rotate(90), noise.rotate(180)]).convert(mode)


def saved(format: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture(str(options.pop("mode", "RGB"))).save(file, format, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x010E] = "with an embedded \xff\xd8 and \xff\xd9"

WHOLE = {
    "baseline": saved("JPEG"),
    "progressive": saved("JPEG", progressive=True, quality=97),
    "restart markers": saved("JPEG", restart_marker_blocks=1),
    "subsampled": saved("JPEG", subsampling=2, optimize=True),
    "grey": saved("JPEG", mode="L"),
    "cmyk": saved("JPEG", mode="CMYK"),
    "exif": saved("JPEG", exif=EXIF, comment=b"\xff\xd9"),
    "mpo": saved("MPO", save_all=True, append_images=[picture(), picture()]),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_images_are_taken_for_whole(kind: str, tmp_path: Path) -> None:
    image = WHOLE[kind]
    expected = JpegInfo(61, 43)
    assert check_jpeg(image) == expected
    assert check_jpeg(image + bytes(1000)) == expected
    assert check_jpeg(image + b"\xff\xd8 what a camera appended") == expected
    path = tmp_path / "image.jpg"
    path.write_bytes(image)
    assert check_jpeg(path) == expected
    with Image.open(path) as opened:
        assert opened.size == (61, 43)


@pytest.mark.parametrize("kind", WHOLE)
def test_an_image_cut_off_anywhere_is_not_whole(kind: str) -> None:
    image = WHOLE[kind]
    taken_for_whole = []
    for length in range(len(image)):
        try:
            check_jpeg(image[:length])
            taken_for_whole.append(length)
        except InvalidImageError:
            pass
    # The JPEG encoder pads an MPO's frames; only padding may be missing.
    assert all(not image[length:].strip(b"\0") for length in taken_for_whole)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html></html>", b'{"error": {}}', b"\0"])
def test_something_else_is_no_image(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    for image in (content, path):
        with pytest.raises(InvalidImageError):
            check_jpeg(image)


def test_more_pixels_than_pillow_opens_are_seen() -> None:
    image = WHOLE["baseline"]
    frame = image.index(b"\xff\xc0") + 5
    for height, width in [(13_377, 13_379), (65_535, 65_535)]:
        size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        bomb = image[:frame] + size + image[frame + 4 :]
        assert check_jpeg(bomb).is_oversized
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(bomb))
        odd = bomb.replace(b"\xff\xdb", b"junk\xff\xdb", 1)
        with pytest.raises(OversizedImageError, match="pixels"):
            check_jpeg(odd)


def pillow_decodes(image: bytes) -> bool:
    """Return whether Pillow opens and decodes the first picture of a file."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def is_whole(image: bytes) -> bool:
    try:
        check_jpeg(image)
    except InvalidImageError:
        return False
    return True


def reencoded(mpo: bytes) -> bytes:
    """Return the first picture of an MPO, made anew, with the index of pictures it has not."""
    start = mpo.index(b"\xff\xe2")
    index = mpo[start : start + 2 + int.from_bytes(mpo[start + 2 : start + 4], "big")]
    with Image.open(io.BytesIO(mpo)) as opened:
        file = io.BytesIO()
        opened.save(file, "JPEG", quality=30)
    return file.getvalue()[:2] + index + file.getvalue()[2:]


@pytest.mark.filterwarnings("ignore:Image appears to be", "ignore:Corrupt EXIF")
def test_an_index_of_pictures_that_a_program_has_dropped_is_no_fault() -> None:
    stale = reencoded(WHOLE["mpo"])
    assert pillow_decodes(stale)
    assert is_whole(stale)
    assert not any(is_whole(stale[:length]) for length in range(len(stale)))
    broken_index = stale.replace(b"MPF\0II*\0\x08", b"MPF\0II*\0\xff", 1)
    assert broken_index != stale
    assert pillow_decodes(broken_index)
    assert is_whole(broken_index)


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_another_format_is_named(format: str) -> None:
    with pytest.raises(OtherFormatError, match=format):
        check_jpeg(saved(format))


JUNK = st.binary(max_size=6).map(lambda junk: junk.replace(b"\xff", b"\xfe"))
FILL = st.integers(1, 5).map(lambda count: b"\xff" * count)


@given(
    st.sampled_from(sorted(WHOLE.keys() - {"mpo"})),
    st.lists(st.tuples(st.integers(0, 20), JUNK | FILL), max_size=3),
    st.binary(max_size=50),
    st.integers(-60, 0),
)
@settings(max_examples=500, deadline=None)
def test_it_is_whole_where_pillow_decodes_it_and_its_end_is_there(
    kind: str, between: list[tuple[int, bytes]], behind: bytes, cut: int
) -> None:
    """Junk and fill bytes between the segments, bytes behind the end, and a cut anywhere there."""
    image = WHOLE[kind]
    starts = segment_starts(image)
    places = [(starts[number % len(starts)], odd) for number, odd in between]
    for start, odd in sorted(places, reverse=True):
        image = image[:start] + odd + image[start:]
    end = len(image)
    image = (image + behind)[: len(image) + len(behind) + cut]
    assert is_whole(image) == (pillow_decodes(image) and len(image) >= end)


def segment_starts(image: bytes) -> list[int]:
    """Return where the segments of a JPEG begin, but for the first marker and the pixels."""
    starts, position = [], 2
    while image[position + 1] != 0xDA:
        starts.append(position)
        position += 2 + int.from_bytes(image[position + 2 : position + 4], "big")
    return [*starts, position]


@given(
    st.sampled_from(sorted(WHOLE.keys() - {"mpo"})),
    st.lists(st.tuples(st.integers(0, 1500), st.binary(max_size=8)), max_size=5),
)
@settings(max_examples=500, deadline=None)
def test_a_damaged_image_that_pillow_decodes_is_whole(
    kind: str, damages: list[tuple[int, bytes]]
) -> None:
    image = bytearray(WHOLE[kind])
    for position, damage in damages:
        image[position : position + len(damage)] = damage
    image += b"\xff\xd9"  # the damage may have hit the end
    assert is_whole(bytes(image)) or not pillow_decodes(bytes(image))


TABLES = (0xC4, 0xDB)
"""The markers of Huffman and quantization tables."""


@given(st.sampled_from(sorted(WHOLE.keys() - {"mpo"})), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_an_image_with_damaged_tables_is_whole_where_pillow_decodes_it(
    kind: str, random: Random
) -> None:
    image = bytearray(WHOLE[kind])
    start = random.choice([start for start in all_segments(image) if image[start + 1] in TABLES])
    length = int.from_bytes(image[start + 2 : start + 4], "big")
    for _ in range(random.randint(1, 4)):
        image[start + random.randint(4, length + 1)] = random.choice(
            (0, 255, random.getrandbits(8))
        )
    assert is_whole(bytes(image)) == pillow_decodes(bytes(image))


def all_segments(image: bytes | bytearray) -> list[int]:
    """Return where the segments of a JPEG begin, also those between its scans."""
    starts, position = [], 2
    while image[position + 1] != 0xD9:
        starts.append(position)
        position += 2 + int.from_bytes(image[position + 2 : position + 4], "big")
        while image[position] != 0xFF or image[position + 1] in (0, *range(0xD0, 0xD8)):
            position += 1
    return starts


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey"])
def test_an_image_without_a_table_is_not_whole(kind: str) -> None:
    image = WHOLE[kind]
    for start in all_segments(image):
        if image[start + 1] in TABLES:
            end = start + 2 + int.from_bytes(image[start + 2 : start + 4], "big")
            # Huffman tables that are missing altogether are those of the standard.
            less = image[:start] + image[end:]
            assert is_whole(less) == pillow_decodes(less)
            broken = image[: start + 4] + b"\xff" * (end - start - 4) + image[end:]
            assert not is_whole(broken)


@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 1500), st.binary(max_size=8)), max_size=5),
)
@settings(max_examples=500)
def test_damaged_images_raise_nothing_else(kind: str, damages: list[tuple[int, bytes]]) -> None:
    image = bytearray(WHOLE[kind])
    for position, damage in damages:
        image[position : position + len(damage)] = damage
    try:
        info = check_jpeg(bytes(image))
    except InvalidImageError:
        return
    assert info.width * info.height > 0


@given(st.binary(max_size=300).map(lambda tail: b"\xff\xd8\xff" + tail) | st.binary())
def test_any_bytes_raise_nothing_else(image: bytes) -> None:
    with pytest.raises(InvalidImageError):
        check_jpeg(image)


def test_what_is_whole_can_be_decoded() -> None:
    for image in WHOLE.values():
        with warnings.catch_warnings(action="error"), Image.open(io.BytesIO(image)) as opened:
            opened.load()
