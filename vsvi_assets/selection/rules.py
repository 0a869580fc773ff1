"""Which images may be chosen at all: the rules that look at images, and not at points."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vsvi_assets.city import City
from vsvi_assets.city.rules import Hours
from vsvi_assets.selection.local_time import LocalTime, local_time
from vsvi_assets.selection.sun import sun_elevation
from vsvi_assets.selection.twins import exact_twins, near_twins

IMAGES_AT_A_TIME = 500_000
"""Whose times are in memory together, besides the table."""


@dataclass(frozen=True)
class Removal:
    """What a rule of the city file left out.

    Attributes
    ----------
    rule, setting
        The key of the city file and its value, as people read it.
    of
        What it was applied to: "images", "candidates" (an image near a point) or "points".
    before, removed
        How many there were when its turn came, and how many of them it left out.
    """

    rule: str
    setting: str
    of: str
    before: int
    removed: int

    def __str__(self) -> str:
        return f"leaves out {self.removed:,} of {self.before:,} {self.of}"


def usable_images(images: pa.Table, city: City) -> tuple[pa.Table, list[Removal]]:
    """Leave out the images that the city's rules exclude, whatever point they are near to.

    Parameters
    ----------
    images
        `id`, `captured_at`, `lon`, `lat` (degrees), `x`, `y` (metres in the city's projected
        CRS), `creator_id`, `is_pano`, `compass_angle`, and others, which are kept.

    Returns
    -------
    images
        Sorted by id, with the columns `year` (int32, of the local date; null where unknown, or
        where no rule needs it) and `twins` (string, the ids of the images that it stands for,
        separated by spaces; null where there are none).
    removals
        Of each rule, in the order in which they are applied.
    """
    images = images.sort_by("id")
    removals = []
    for rule, setting, passes in _filters(city):
        kept = _passing(images, passes)
        removals.append(
            Removal(rule, setting, "images", len(images), len(images) - int(kept.sum()))
        )
        images = images.filter(pa.array(kept))
    before = len(images)
    images = _without_twins(images, city)
    if city.duplicates != "keep":
        removals.append(
            Removal("duplicates", str(city.duplicates), "images", before, before - len(images))
        )
    return images.append_column("year", _years(images, city)), removals


def _filters(
    city: City,
) -> Iterator[tuple[str, str, Callable[[pa.Table], NDArray[np.bool_]]]]:
    """Yield key, setting and condition of each rule on the time; times are known there."""
    if months := city.months:
        yield (
            "months",
            f"{', '.join(map(str, months))} ({city.clock} time)",
            lambda images: np.isin(_local_time(images, city).month, months),
        )
    if hours := city.hours:
        yield (
            "hours",
            f"{hours} ({city.clock} time)",
            lambda images: _within(_local_time(images, city).minute, hours),
        )
    if (elevation := city.daylight) is not None:
        yield (
            "daylight",
            f"sun at least {elevation:g} degrees high",
            lambda images: sun_elevation(*_moment(images)) >= elevation,
        )


def _within(minute: NDArray[np.float64], hours: Hours) -> NDArray[np.bool_]:
    if hours.start < hours.end:
        return (minute >= hours.start) & (minute < hours.end)
    return (minute >= hours.start) | (minute < hours.end)


def _moment(
    images: pa.Table,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    return tuple(images[name].to_numpy() for name in ("captured_at", "lon", "lat"))


def _local_time(images: pa.Table, city: City) -> LocalTime:
    return local_time(*_moment(images), city.clock)


def _passing(
    images: pa.Table, passes: Callable[[pa.Table], NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    """Return which images pass a condition; those of unknown time do not."""
    known = images["captured_at"].is_valid().to_numpy()
    rows = np.flatnonzero(known)
    for start in range(0, len(rows), IMAGES_AT_A_TIME):
        part = rows[start : start + IMAGES_AT_A_TIME]
        known[part] = passes(images.take(pa.array(part)))
    return known


def _without_twins(images: pa.Table, city: City) -> pa.Table:
    """Leave out all but one of each set of twins, and give that one their ids."""
    if city.duplicates == "keep":
        return images.append_column("twins", pa.nulls(len(images), pa.string()))
    stands_for = exact_twins(images)
    if not isinstance(city.duplicates, str):
        once = np.flatnonzero(stands_for == np.arange(len(images)))
        near = near_twins(images.take(pa.array(once)), city.duplicates)
        representative = np.empty(len(images), np.int64)
        representative[once] = once[near]
        stands_for = representative[stands_for]
    kept = stands_for == np.arange(len(images))
    dropped = np.flatnonzero(~kept)
    by_kept = dropped[np.argsort(stands_for[dropped], kind="stable")]
    ids = images["id"].take(pa.array(by_kept)).to_pylist()
    twins: dict[int, list[str]] = {}
    for row, image_id in zip(stands_for[by_kept].tolist(), ids, strict=True):
        twins.setdefault(row, []).append(str(image_id))
    texts = np.full(len(images), None, object)
    texts[list(twins)] = [" ".join(of_one) for of_one in twins.values()]
    images = images.append_column("twins", pa.array(texts, pa.string()))
    return images.filter(pa.array(kept))


def _years(images: pa.Table, city: City) -> pa.Array:
    years = np.zeros(len(images), np.int32)
    unknown = np.ones(len(images), bool)
    if city.per_year:
        unknown = images["captured_at"].is_null().to_numpy()
        known = np.flatnonzero(~unknown)
        for start in range(0, len(known), IMAGES_AT_A_TIME):
            part = known[start : start + IMAGES_AT_A_TIME]
            years[part] = _local_time(images.take(pa.array(part)), city).year
    return pa.array(years, mask=unknown)
