import io
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vsvi_assets.mapillary.errors import InvalidImageError, OversizedImageError
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
def test_whole_images_are_told_as_pillow_tells_them(kind: str, tmp_path: Path) -> None:
    image = WHOLE[kind]
    expected = JpegInfo(61, 43, "MPO" if kind == "mpo" else "JPEG")
    assert check_jpeg(image) == expected
    assert check_jpeg(image + bytes(1000)) == expected
    assert check_jpeg(image + b"\xff\xd8 what a camera appended") == expected
    path = tmp_path / "image.jpg"
    path.write_bytes(image)
    assert check_jpeg(path) == expected
    with Image.open(path) as opened:
        assert (opened.width, opened.height, opened.format) == (61, 43, expected.format)


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


def test_more_pixels_than_pillow_opens_are_refused() -> None:
    image = WHOLE["baseline"]
    frame = image.index(b"\xff\xc0") + 5
    for height, width in [(13_377, 13_379), (65_535, 65_535)]:
        size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        bomb = image[:frame] + size + image[frame + 4 :]
        with pytest.raises(OversizedImageError, match="pixels"):
            check_jpeg(bomb)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(bomb))


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
