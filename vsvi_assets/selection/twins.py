"""Photographs that are there twice, under several ids."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from vsvi_assets.city.rules import NearTwins
from vsvi_assets.streets.points import chosen_in_order

SAME_DIRECTION = 30.0
"""Degrees. Near twins whose headings differ by more are those of several cameras on one car."""

_ROUNDING = 1e-3


def exact_twins(images: pa.Table) -> NDArray[np.int64]:
    """Return of each image the row of the lowest id among its exact twins, itself included.

    Twins have the same camera, time and place: equal `captured_at`, `lon`, `lat`, `creator_id`,
    `is_pano` and `compass_angle`, where null equals null. The compass angle is among them
    because the cameras of one car differ in nothing else. An image of unknown time has none.

    Parameters
    ----------
    images
        With those columns, and `id`, by which it is sorted.
    """
    count = len(images)
    group = np.zeros(count, np.int64)
    for name in ("captured_at", "lon", "lat", "creator_id", "is_pano", "compass_angle"):
        values = images[name].combine_chunks().dictionary_encode(null_encoding="encode").indices
        code = values.to_numpy().astype(np.int64)
        group = np.unique(group * (code.max(initial=0) + 1) + code, return_inverse=True)[1]
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    lowest = first[group]
    return np.where(images["captured_at"].is_null().to_numpy(), np.arange(count), lowest)


def near_twins(images: pa.Table, limits: NearTwins) -> NDArray[np.int64]:
    """Return of each image the row of the image that stands for it, or its own.

    From the lowest id to the highest, an image is kept unless one that is kept already is its
    twin; then the lowest of these stands for it. Twins are of the same creator and kind, lie
    within the limits' metres and seconds (both inclusive), and where both headings are known these
    differ by at most `SAME_DIRECTION`. An image of unknown time has none.

    Parameters
    ----------
    images
        `id`, by which it is sorted, `x`, `y` (metres), `captured_at`, `creator_id`, `is_pano` and
        `compass_angle`.
    """
    count = len(images)
    known = np.flatnonzero(images["captured_at"].is_valid().to_numpy())
    earlier, later = _near_pairs(images.take(pa.array(known)), limits)
    earlier, later = known[earlier], known[later]
    stands_for = np.arange(count)
    is_kept = chosen_in_order(count, earlier, later)
    by_kept = is_kept[earlier] & ~is_kept[later]
    np.minimum.at(stands_for, later[by_kept], earlier[by_kept])
    return stands_for


def _near_pairs(images: pa.Table, limits: NearTwins) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the pairs of near twins, the lower one first."""
    x, y = images["x"].to_numpy(), images["y"].to_numpy()
    time = images["captured_at"].to_numpy()
    creator = images["creator_id"].fill_null(-1).to_numpy()
    is_pano = images["is_pano"].fill_null(False).to_numpy()
    heading = images["compass_angle"].to_numpy()
    # Time is a third dimension, so that only pairs near in time are looked at.
    metres_per_millisecond = limits.metres / max(limits.seconds * 1000, 1)
    places = np.column_stack([x, y, time * metres_per_millisecond])
    pairs = cKDTree(places).query_pairs(
        limits.metres * (1 + _ROUNDING), p=np.inf, output_type="ndarray"
    )
    one, other = np.sort(pairs, axis=1).T
    near = np.sqrt((x[one] - x[other]) ** 2 + (y[one] - y[other]) ** 2) <= limits.metres
    near &= np.abs(time[one] - time[other]) <= limits.seconds * 1000
    near &= (creator[one] == creator[other]) & (is_pano[one] == is_pano[other])
    apart = np.abs((heading[one] - heading[other] + 180) % 360 - 180)
    near &= ~(apart > SAME_DIRECTION)
    return one[near], other[near]
