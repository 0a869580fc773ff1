"""The candidates of street points in the order of the city's rules: which image is chosen first."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from vsvi_assets.city import City

PAIRS_AT_A_TIME = 250_000
"""Pairs of a point and an image that are in memory together; those of one point at least."""

_ROUNDING = 1e-6
"""The share by which the search reaches farther than is asked, before distances are compared."""


@dataclass(frozen=True)
class Ranked:
    """Candidates of some points, in the order of points, years and ranks.

    All arrays are equally long; `point` and `image` are rows of the tables they come from.

    Attributes
    ----------
    distance
        Metres between the two.
    angle
        Degrees between the image's heading and the line of the street, 0 to 90; NaN where one of
        them is unknown.
    rank
        1 for the candidate that the rules prefer, of its point, and with `per_year` of its year.
    candidates
        How many there are of that point, and with `per_year` of that year.
    """

    point: NDArray[np.int64]
    image: NDArray[np.int64]
    distance: NDArray[np.float64]
    angle: NDArray[np.float64]
    rank: NDArray[np.int64]
    candidates: NDArray[np.int64]

    def where(self, chosen: NDArray[np.bool_]) -> "Ranked":
        """Return some of the candidates."""
        return Ranked(*(values[chosen] for values in vars(self).values()))

    def in_order(self, images: pa.Table) -> "Ranked":
        """Return the same in the order of points, years and ranks."""
        years = images["year"].fill_null(0).to_numpy()[self.image]
        order = np.lexsort([self.rank, slots(self.point, years)])
        return Ranked(*(values[order] for values in vars(self).values()))

    @classmethod
    def joined(cls, parts: list["Ranked"]) -> "Ranked":
        """Return candidates of several sets of points."""
        if not parts:
            none, nowhere = np.empty(0, np.int64), np.empty(0)
            return cls(none, none, nowhere, nowhere, none, none)
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))


def ranked_candidates(
    points: pa.Table,
    images: pa.Table,
    city: City,
    removed: Counter[str] | None = None,
    *,
    only_first: bool = False,
) -> Iterator[Ranked]:
    """Yield the candidates of all points, some points at a time.

    A candidate of a point is an image within `max_distance` metres (inclusive) that the city's
    rules on pairs do not exclude: with `same_street` one of the point's street; with `facing` a
    flat image whose heading is known to be along or across the street, and any panorama; with
    `per_year` one of known year. With `prefer: nearest` they are ordered by distance, and where
    it is equal by id; with `prefer: newest` by time of capture first, the unknown ones last.
    Rejected images are left out when all have their ranks, as are those behind as many rejected
    ones as the city file allows to try.

    Parameters
    ----------
    points
        `x`, `y` (metres), `bearing` (degrees), and with `same_street` `street` (int64, below 0
        where unknown).
    images
        As `rules.usable_images` returns them: sorted by id, with `is_rejected` (bool) and likewise
        `street`.
    removed
        Gets the numbers of candidates that each rule left out, and as `candidates` their number
        before.
    only_first
        Whether the first candidates are enough, which saves most of the sorting.
    """
    places = np.column_stack([images[name].to_numpy() for name in ("x", "y")])
    if not len(places):
        return
    reach = city.max_distance * (1 + _ROUNDING)
    tree = cKDTree(places)
    removed = Counter() if removed is None else removed
    for rows, here in _groups(points, tree, reach):
        found = cKDTree(here).sparse_distance_matrix(tree, reach, output_type="ndarray")
        image = found["j"]
        east, north = (here[found["i"]] - places[image]).T
        distance = np.sqrt(east * east + north * north)
        near = distance <= city.max_distance
        point, image, distance = rows[found["i"][near]], image[near], distance[near]
        ranked = _ranked(points, images, city, point, image, distance, removed, only_first)
        if city.quality:
            to_try = _to_try(ranked, images["is_rejected"].to_numpy(), city.quality.tries)
            removed["quality"] += len(to_try) - int(to_try.sum())
            ranked = ranked.where(to_try)
        yield ranked.where(ranked.rank == 1) if only_first else ranked


def _groups(
    points: pa.Table, tree: cKDTree, reach: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield rows and places of points with about `PAIRS_AT_A_TIME` images near to them."""
    places = np.column_stack([points[name].to_numpy() for name in ("x", "y")])
    rows = np.arange(len(places))
    if not len(places):
        return
    counts = tree.query_ball_point(places, reach, return_length=True)
    group = counts.cumsum() // PAIRS_AT_A_TIME
    for start in np.unique(group, return_index=True)[1]:
        of_group = slice(start, start + int((group == group[start]).sum()))
        yield rows[of_group], places[of_group]


def _ranked(
    points: pa.Table,
    images: pa.Table,
    city: City,
    point: NDArray[np.int64],
    image: NDArray[np.int64],
    distance: NDArray[np.float64],
    removed: Counter[str],
    only_first: bool,
) -> Ranked:
    removed["candidates"] += len(point)
    heading = images["compass_angle"].to_numpy()[image]
    angle = 90 - np.abs(90 - (heading - points["bearing"].to_numpy()[point]) % 180)

    def keep(rule: str, passes: NDArray[np.bool_]) -> None:
        nonlocal point, image, distance, angle
        removed[rule] += len(passes) - int(passes.sum())
        point, image = point[passes], image[passes]
        distance, angle = distance[passes], angle[passes]

    if city.same_street:
        street = points["street"].to_numpy()[point]
        keep("same_street", (street >= 0) & (street == images["street"].to_numpy()[image]))
    if city.facing != "any":
        is_pano = images["is_pano"].fill_null(False).to_numpy()[image]
        off = angle if city.facing == "along" else 90 - angle
        keep("facing", is_pano | (off <= city.facing_tolerance))
    if city.per_year:
        keep("per_year", images["year"].is_valid().to_numpy()[image])
    slot = slots(point, images["year"].fill_null(0).to_numpy()[image])
    _, slot_number, counts = np.unique(slot, return_inverse=True, return_counts=True)
    candidates = counts[slot_number]
    keys = [image, distance, *_preference(images, city, image)]
    if only_first:
        least = np.full(len(counts), np.inf)
        np.minimum.at(least, slot_number, keys[-1])
        leading = np.flatnonzero(keys[-1] == least[slot_number])
        point, image = point[leading], image[leading]
        distance, angle = distance[leading], angle[leading]
        slot_number, candidates = slot_number[leading], candidates[leading]
        keys = [key[leading] for key in keys]
    order = np.lexsort([*keys, slot_number])
    slot_number = slot_number[order]
    new = np.concatenate([[True], np.diff(slot_number) > 0])[: len(order)]
    row = np.arange(len(order))
    return Ranked(
        point[order],
        image[order],
        distance[order],
        angle[order],
        row - np.maximum.accumulate(np.where(new, row, 0)) + 1,
        candidates[order],
    )


def _to_try(ranked: Ranked, is_rejected: NDArray[np.bool_], tries: int) -> NDArray[np.bool_]:
    """Return which candidates are good, as far as is known, and within so many tries."""
    rejected = is_rejected[ranked.image]
    before: NDArray[np.int64] = np.cumsum(rejected) - rejected
    first = np.flatnonzero(ranked.rank == 1)
    before -= np.repeat(before[first], np.diff(np.append(first, len(before))))
    return ~rejected & (before < tries)


def slots(point: NDArray[np.int64], year: NDArray[np.int32]) -> NDArray[np.int64]:
    """Number the points' years; an unknown year, 0, is one of its own."""
    return point * 10_000 + year


def cost(images: pa.Table, city: City, ranked: Ranked) -> NDArray[np.float64]:
    """Return what is to be small of a chosen image: metres, or its age in days.

    The age is that at the time of the newest image; an unknown one is that of 1970.
    """
    if city.prefer == "nearest":
        return ranked.distance
    [age] = _preference(images, city, ranked.image)
    return (age - age.min(initial=0)) / 86_400_000


def _preference(images: pa.Table, city: City, image: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return what comes before distance in the order of candidates."""
    if city.prefer == "nearest":
        return []
    return [-images["captured_at"].fill_null(0).to_numpy()[image]]
