"""Along which street an image was taken."""

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

PATH_REACH = 30.0
"""Metres. Images of a sequence that are farther from each other say nothing of its path."""

NO_STREET = -1

IMAGES_AT_A_TIME = 100_000


def streets_of_images(
    images: pa.Table, lines: NDArray[np.object_], street: NDArray[np.int64], reach: float
) -> NDArray[np.int64]:
    """Return the street of each image, or `NO_STREET`.

    It is the street nearest to the image, and it is that of the path of its sequence too: the
    image before it in the sequence, or the one after it, is nearest to the same street. So an
    image taken while crossing a street does not count for that one, nor does one that lies on
    a parallel street by an error of its position. Where neither neighbour is within
    `PATH_REACH` the path is not known, and the nearest street counts alone. Neighbours are those
    in the order of capture (of equal times, of ids); an image of unknown time has none.

    Parameters
    ----------
    images
        `id`, `sequence_id`, `captured_at`, `x`, `y` (metres).
    lines
        LineStrings in the same CRS.
    street
        The number of each line's street, at least 0; a street may have several lines.
    reach
        Metres beyond which a street does not count.
    """
    x, y = images["x"].to_numpy(), images["y"].to_numpy()
    nearest = _nearest(x, y, lines, street, reach)
    sequence = images["sequence_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    known = np.flatnonzero(images["captured_at"].is_valid().to_numpy())
    time, ids = images["captured_at"].fill_null(0).to_numpy(), images["id"].to_numpy()
    path = known[np.lexsort([ids[known], time[known], sequence[known]])]
    before, after = path[:-1], path[1:]
    apart = np.sqrt((x[before] - x[after]) ** 2 + (y[before] - y[after]) ** 2)
    joined = (sequence[before] == sequence[after]) & (apart <= PATH_REACH)
    before, after = before[joined], after[joined]
    has_path, on_path = np.zeros(len(images), bool), np.zeros(len(images), bool)
    has_path[before] = has_path[after] = True
    same = nearest[before] == nearest[after]
    on_path[before[same]] = on_path[after[same]] = True
    return np.where(has_path & ~on_path, NO_STREET, nearest)


def _nearest(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    lines: NDArray[np.object_],
    street: NDArray[np.int64],
    reach: float,
) -> NDArray[np.int64]:
    """Return the nearest street of each place; of several equally near the lowest."""
    tree = shapely.STRtree(lines)
    lowest = np.full(len(x), np.iinfo(np.int64).max)
    for start in range(0, len(x), IMAGES_AT_A_TIME):
        part = slice(start, start + IMAGES_AT_A_TIME)
        place, line = tree.query_nearest(shapely.points(x[part], y[part]), max_distance=reach)
        np.minimum.at(lowest, start + place, street[line])
    return np.where(lowest == np.iinfo(np.int64).max, NO_STREET, lowest)
