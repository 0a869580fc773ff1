import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vsvi_assets.photographs.errors import InvalidImageError
from vsvi_assets.photographs.jpeg import check_jpeg
from vsvi_assets.photographs.quality import SIDE, Quality, measure_grey, measure_quality


def scene(width: int = 2048, height: int = 1536) -> Image.Image:
    """Draw a street: a bright sky above walls with windows of all sizes."""
    pixels = np.random.default_rng(7).integers(40, 200, (height // 8, width // 8), np.uint8)
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
    picture.paste(210, (0, 0, width, height // 3))
    return picture.convert("RGB")


def measured(picture: Image.Image, **options: object) -> Quality:
    """Measure a picture as a JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", **({"quality": 90} | options))
    jpeg = file.getvalue()
    return measure_quality(jpeg, check_jpeg(jpeg))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("width", [256, 1024, 2048])
def test_sharpness_falls_with_every_step_of_blur(width: int, progressive: bool) -> None:
    street = scene().resize((width, width * 3 // 4))
    blurred = [street.filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 2, 4, 8, 16)]
    sharpness = [measured(picture, progressive=progressive).sharpness for picture in blurred]
    assert all(before > 1.3 * after for before, after in pairwise(sharpness))


def test_photographs_of_one_scene_are_as_sharp_in_every_large_size() -> None:
    sizes = [scene().resize((width, width * 3 // 4)) for width in (1024, 2048, 4096)]
    sharpness = [measured(picture).sharpness for picture in sizes]
    assert max(sharpness) < 1.3 * min(sharpness)


def test_a_black_a_grey_and_a_white_picture() -> None:
    black, grey, white = (
        measured(Image.new("RGB", (800, 600), (value,) * 3)) for value in (0, 128, 255)
    )
    assert (black.brightness, grey.brightness, white.brightness) == (0, 0.502, 1)
    assert (black.over_exposure, grey.over_exposure, white.over_exposure) == (0, 0, 1)
    assert black.contrast == grey.contrast == white.contrast == 0
    assert black.sharpness == 0
    assert (black.night, grey.night) == (True, False)


def test_contrast_of_a_picture_half_black_half_white_is_one_half() -> None:
    picture = Image.new("L", (400, 400))
    picture.paste(255, (200, 0, 400, 400))
    quality = measure_grey(picture)
    assert (quality.contrast, quality.brightness, quality.over_exposure) == (0.5, 0.5, 0.5)


def test_a_street_at_night_has_lamps_below_and_a_dark_sky() -> None:
    night = Image.new("RGB", (1200, 800), (12, 12, 25))
    night.paste((250, 230, 180), (0, 500, 1200, 800))
    assert measured(night).night
    assert not measured(scene()).night


def test_the_formula_of_sharpness_over_all_inner_pixels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60)).astype(np.uint8)
    values = [
        int(pixels[y - 1, x]) + int(pixels[y + 1, x]) + int(pixels[y, x - 1])
        + int(pixels[y, x + 1]) - 4 * int(pixels[y, x])
        for y in range(1, 39)
        for x in range(1, 59)
    ]  # fmt: skip
    assert measure_grey(Image.fromarray(pixels)).sharpness == pytest.approx(
        np.var(values), abs=0.05
    )


def test_the_first_scans_of_a_progressive_jpeg_measure_like_all_of_it() -> None:
    file = io.BytesIO()
    noise = Image.effect_noise(scene().size, 60).convert("RGB")
    Image.blend(scene(), noise, 0.3).save(file, "JPEG", quality=90, progressive=True)
    jpeg = file.getvalue()
    info = check_jpeg(jpeg)
    assert info.preview_end is not None
    assert info.preview_end < len(jpeg) / 2
    # What lies behind them is not read.
    first = measure_quality(jpeg[: info.preview_end], info)
    with Image.open(file) as picture:
        whole = measure_grey(
            picture.convert("L").resize((SIDE, SIDE * 3 // 4), Image.Resampling.BOX)
        )
    assert first[1:4] == pytest.approx(whole[1:4], abs=0.01)
    assert first.sharpness == pytest.approx(whole.sharpness, rel=0.3)
    assert first.night == whole.night


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_pictures_of_every_mode_are_measured(mode: str, progressive: bool) -> None:
    assert measured(Image.new(mode, (3000, 20)), progressive=progressive).sharpness == 0


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (2, 900)])
def test_slivers_are_measured(size: tuple[int, int]) -> None:
    assert measured(Image.new("RGB", size)).brightness == 0


def test_what_cannot_be_decoded_is_not_whole() -> None:
    file = io.BytesIO()
    scene().save(file, "JPEG")
    jpeg = file.getvalue()
    info = check_jpeg(jpeg)
    tables = jpeg.index(b"\xff\xc4") + 5
    with pytest.raises(InvalidImageError, match="decoded"):
        measure_quality(jpeg[:tables] + b"\xff" * 16 + jpeg[tables + 16 :], info)
