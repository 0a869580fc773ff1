import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vsvi_assets.photographs.quality import SIDE, measure_quality


def scene(width: int = 1600, height: int = 1200) -> Image.Image:
    """Draw a street: a bright sky above walls with windows of all sizes."""
    pixels = np.random.default_rng(7).integers(40, 200, (height // 8, width // 8), np.uint8)
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
    picture.paste(210, (0, 0, width, height // 3))
    return picture.convert("RGB")


def jpeg(picture: Image.Image, **options: object) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, **options)
    return Image.open(file)


def test_sharpness_falls_with_every_step_of_blur() -> None:
    blurred = [scene().filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 2, 4, 8)]
    sharpness = [measure_quality(jpeg(picture)).sharpness for picture in blurred]
    assert all(before > 1.3 * after for before, after in pairwise(sharpness))


def test_a_black_a_grey_and_a_white_picture() -> None:
    black, grey, white = (
        measure_quality(Image.new("RGB", (800, 600), (value,) * 3)) for value in (0, 128, 255)
    )
    assert (black.brightness, grey.brightness, white.brightness) == (0, 0.502, 1)
    assert (black.over_exposed, grey.over_exposed, white.over_exposed) == (0, 0, 1)
    assert black.contrast == grey.contrast == white.contrast == 0
    assert black.sharpness == 0
    assert (black.night, grey.night) == (True, False)


def test_contrast_of_a_picture_half_black_half_white_is_one_half() -> None:
    picture = Image.new("L", (400, 400))
    picture.paste(255, (200, 0, 400, 400))
    quality = measure_quality(picture)
    assert (quality.contrast, quality.brightness, quality.over_exposed) == (0.5, 0.5, 0.5)


def test_a_street_at_night_has_lamps_below_and_a_dark_sky() -> None:
    night = Image.new("RGB", (1200, 800), (12, 12, 25))
    night.paste((250, 230, 180), (0, 500, 1200, 800))
    assert measure_quality(jpeg(night)).night
    assert not measure_quality(jpeg(scene())).night


def test_the_formula_of_sharpness_over_all_inner_pixels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60)).astype(np.uint8)
    values = [
        int(pixels[y - 1, x]) + int(pixels[y + 1, x]) + int(pixels[y, x - 1])
        + int(pixels[y, x + 1]) - 4 * int(pixels[y, x])
        for y in range(1, 39)
        for x in range(1, 59)
    ]  # fmt: skip
    assert measure_quality(Image.fromarray(pixels)).sharpness == pytest.approx(
        np.var(values), abs=0.05
    )


def test_a_loaded_picture_and_its_file_measure_alike() -> None:
    from_file, loaded = jpeg(scene(4096, 2048)), jpeg(scene(4096, 2048))
    loaded.load()
    a, b = measure_quality(from_file), measure_quality(loaded)
    assert (a.brightness, a.contrast) == pytest.approx((b.brightness, b.contrast), rel=0.02)
    assert a.sharpness == pytest.approx(b.sharpness, rel=0.15)


def test_a_large_jpeg_is_not_decoded_whole() -> None:
    picture = jpeg(scene(4096, 2048))
    measure_quality(picture)
    assert picture.size == (SIDE, SIDE // 2)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA", "I;16"])
def test_pictures_of_every_mode_are_measured(mode: str) -> None:
    assert measure_quality(Image.new(mode, (30, 20))).sharpness == 0


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (2, 900)])
def test_slivers_are_measured(size: tuple[int, int]) -> None:
    assert measure_quality(Image.new("RGB", size)).brightness == 0
