"""How good a photograph is, by its pixels alone.

Sources: J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000
(variance of the Laplacian as sharpness); E. Peli, "Contrast in complex images", Journal of the
Optical Society of America A 7(10), 1990 (standard deviation of luminance as contrast). The
luminance is the Y of JPEG (ITU-R BT.601), divided by 255.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 1024
"""Longer side in pixels of the small version that is measured; nothing is enlarged."""

OVER_EXPOSED = 250
NIGHT_SKY = 0.2


@dataclass(frozen=True, slots=True)
class Quality:
    """What is measured of a photograph.

    Attributes
    ----------
    sharpness
        Variance of the Laplacian of the luminance (0 to 255): low where all is blurred, but
        also where there is little to see. Photographs of less than `SIDE` pixels have
        other values than larger ones of the same scene.
    brightness
        Mean luminance, 0 (black) to 1 (white).
    contrast
        Standard deviation of the luminance, 0 to 0.5.
    over_exposed
        Share of the pixels, 0 to 1, that are white: luminance of at least 250 of 255.
    night
        Whether the upper half, where the sky is by day, has a mean luminance below 0.2. A rule
        of thumb: tunnels and dense trees count too.
    """

    sharpness: float
    brightness: float
    contrast: float
    over_exposed: float
    night: bool


def measure_quality(image: Image.Image) -> Quality:
    """Measure a photograph on a small version of it.

    A JPEG that was opened but not loaded is decoded in grey and to about `SIDE` pixels only;
    `image` is changed thereby.

    Raises
    ------
    OSError
        When the picture cannot be decoded.
    """
    scale = min(SIDE / max(image.size), 1)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    image.draft("L", size)
    small = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX))
    brightness = small.mean() / 255
    upper_half = small[: max(small.shape[0] // 2, 1)]
    return Quality(
        sharpness=round(_variance_of_laplacian(small), 1),
        brightness=round(float(brightness), 4),
        contrast=round(float(small.std() / 255), 4),
        over_exposed=round(float((small >= OVER_EXPOSED).mean()), 4),
        night=bool(upper_half.mean() / 255 < NIGHT_SKY),
    )


def _variance_of_laplacian(grey: np.ndarray) -> float:
    """Return the variance over the inner pixels; 0 where there are none."""
    if min(grey.shape) < 3:
        return 0.0
    signed = grey.astype(np.int16)
    laplacian = (
        signed[:-2, 1:-1] + signed[2:, 1:-1] + signed[1:-1, :-2] + signed[1:-1, 2:]
    ) - 4 * signed[1:-1, 1:-1]
    return float(laplacian.var(dtype=np.float64))
