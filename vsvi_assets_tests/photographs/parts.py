"""Photographs of all qualities, for the sandbox to serve."""

import io
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from vsvi_assets.sandbox import StreetImage, World


@cache
def street(kind: str = "good") -> bytes:
    """Draw a street of 640 x 480 pixels: good, blurred, dark or overexposed."""
    pixels = np.random.default_rng(7).integers(40, 200, (60, 80), np.uint8)
    picture = Image.fromarray(pixels).resize((640, 480), Image.Resampling.NEAREST)
    change: dict[str, Callable[[Image.Image], Image.Image]] = {
        "good": lambda picture: picture,
        "blurred": lambda picture: picture.filter(ImageFilter.GaussianBlur(12)),
        "dark": lambda picture: picture.point(lambda value: value / 10),
        "overexposed": lambda picture: picture.point(lambda value: min(value * 4, 255)),
    }
    file = io.BytesIO()
    change[kind](picture).save(file, "JPEG", quality=90, progressive=True)
    return file.getvalue()


def show(world: World, kind_of: Callable[[StreetImage], str]) -> None:
    """Let the sandbox show pictures of a kind."""
    world.picture = lambda image, size: street(kind_of(image))
