"""Perspective views of equirectangular panoramas.

A full panorama shows longitude from left to right, 360 degrees, and latitude from top to
bottom, 180 degrees. A view is what an ideal camera without lens distortion would show that
stands in its middle (the gnomonic projection, J. P. Snyder, "Map Projections: A Working
Manual", USGS Professional Paper 1395, 1987, page 164).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsvi_assets.city.views import HeadingAt

_BITS = 8
_SUBPIXELS = 1 << _BITS
"""Places between two pixels that the interpolation distinguishes."""

_ROWS = 64
"""Rows that are computed at a time, so that they stay in the processor's cache."""


class NotAPanoramaError(ValueError):
    """A picture that is not twice as wide as it is high, so not a full panorama."""


@dataclass(frozen=True)
class View:
    """Where a camera looks, and the size of its picture.

    Attributes
    ----------
    heading
        Degrees clockwise from north.
    pitch
        Degrees above the horizon; below it is negative.
    fov
        Horizontal field of view in degrees, more than 0 and less than 180.
    width, height
        Pixels.
    """

    heading: float
    pitch: float
    fov: float
    width: int
    height: int

    @property
    def focal_length(self) -> float:
        """Distance of the image plane, in pixels."""
        return self.width / 2 / float(np.tan(np.radians(self.fov) / 2))

    @property
    def panorama_width(self) -> int:
        """Width in pixels of a panorama that has all the details which the view can show."""
        half_diagonal = np.hypot(self.width, self.height) / 2
        pixels_per_radian = self.focal_length * (1 + (half_diagonal / self.focal_length) ** 2)
        return int(np.ceil(2 * np.pi * pixels_per_radian))


def heading_of_centre(compass_angle: float, heading_at: HeadingAt) -> float:
    """Return the heading of a panorama's middle column, in degrees, at least 0 and below 360.

    Mapillary does not document where in the picture `compass_angle` lies. Its own viewer
    (mapillary-js) and Project Sidewalk take it as the heading of the centre; others take it
    as that of the left edge. Neither was tried here on a real panorama whose heading is known.
    """
    return (compass_angle + (180 if heading_at == "left" else 0)) % 360


class Panorama:
    """The pixels of a full panorama, from which views are taken.

    Parameters
    ----------
    image
        A picture twice as wide as high.
    centre_heading
        Heading of its middle column, in degrees clockwise from north.
    width
        Width in pixels that is enough, as `View.panorama_width` gives it. A JPEG is then
        decoded to the smallest size that is at least as wide, which is faster.

    Raises
    ------
    NotAPanoramaError
        When the picture has other proportions.
    """

    def __init__(self, image: Image.Image, centre_heading: float, width: int | None = None) -> None:
        if abs(image.width / image.height - 2) > 0.02:
            raise NotAPanoramaError(
                f"{image.width} x {image.height} pixels: a full panorama is twice as wide as high"
            )
        if width is not None:
            image.draft("RGB", (width, width // 2))
        pixels = np.asarray(image.convert("RGB").convert("RGBA"))
        self.centre_heading = centre_heading
        self._height, self._width = pixels.shape[:2]
        # One number per pixel: looked up several times as fast as three.
        self._pixels = pixels.view(np.uint32).ravel()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as decoded."""
        return self._width, self._height

    def view(self, view: View) -> Image.Image:
        """Return the view, interpolated bilinearly."""
        columns, rows, row_weights = _projection(
            view.pitch, view.focal_length, view.width, view.height, self._width, self._height
        )
        turn = (view.heading - self.centre_heading) % 360 / 360 * self._width
        columns = columns + np.int32(round(turn * _SUBPIXELS))
        picture = np.empty((view.height, view.width, 4), np.uint8)
        for start in range(0, view.height, _ROWS):
            part = slice(start, start + _ROWS)
            picture[part] = self._interpolated(columns[part], rows[part], row_weights[part])
        return Image.fromarray(picture[..., :3])

    def _interpolated(
        self, columns: NDArray[np.int32], rows: NDArray[np.int32], row_weights: NDArray[np.uint16]
    ) -> NDArray[np.uint16]:
        """Return colours between the pixels: columns in subpixels, rows in whole pixels."""
        weights = (columns & (_SUBPIXELS - 1)).astype(np.uint16)[..., None]
        left = (columns >> _BITS) % self._width
        right = (left + 1) % self._width
        upper = rows * self._width
        lower = np.minimum(rows + 1, self._height - 1) * self._width
        above = _between(self._colours(upper + left), self._colours(upper + right), weights)
        below = _between(self._colours(lower + left), self._colours(lower + right), weights)
        return _between(above, below, row_weights[..., None])

    def _colours(self, indices: NDArray[np.int32]) -> NDArray[np.uint16]:
        colours = self._pixels.take(indices).view(np.uint8)
        return colours.reshape(*indices.shape, 4).astype(np.uint16)


def _between(
    first: NDArray[np.uint16], second: NDArray[np.uint16], weights: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    mixed = first * (_SUBPIXELS - weights)
    mixed += second * weights
    mixed += _SUBPIXELS // 2
    mixed >>= _BITS
    return mixed


@lru_cache(maxsize=4)
def _projection(
    pitch: float,
    focal_length: float,
    width: int,
    height: int,
    panorama_width: int,
    panorama_height: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint16]]:
    """Return where a panorama shows each pixel of a view of its middle column.

    Returns
    -------
    columns, rows, row_weights
        Arrays (height, width): columns in subpixels, rows in whole pixels, and the weight of
        the row below in subpixels.
    """
    x = (np.arange(width) + 0.5 - width / 2) / focal_length
    y = (np.arange(height) + 0.5 - height / 2)[:, None] / focal_length
    cos, sin = np.cos(np.radians(pitch)), np.sin(np.radians(pitch))
    down, ahead = y * cos - sin, y * sin + cos
    longitude = np.arctan2(x, ahead)
    latitude = np.arctan2(down, np.hypot(x, ahead))
    columns = ((longitude / (2 * np.pi) + 0.5) * panorama_width - 0.5) * _SUBPIXELS
    rows = ((latitude / np.pi + 0.5) * panorama_height - 0.5).clip(0, panorama_height - 1)
    in_subpixels = np.rint(rows * _SUBPIXELS).astype(np.int32)
    return (
        np.rint(columns).astype(np.int32),
        in_subpixels // _SUBPIXELS,
        (in_subpixels % _SUBPIXELS).astype(np.uint16),
    )
