"""Which images may be chosen at all: the rules that look at images, and not at points."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vsvi_assets.city import City
from vsvi_assets.selection.local_time import local_time
from vsvi_assets.selection.sun import sun_elevation
from vsvi_assets.selection.twins import exact_twins, near_twins

IMAGES_AT_A_TIME = 100_000
"""Whose local times and suns are in memory together."""


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
    images, removals = _within_times(images, city)
    images = images.sort_by("id")
    before = len(images)
    images = _without_twins(images, city)
    if city.duplicates != "keep":
        count = before - len(images)
        removals.append(Removal("duplicates", str(city.duplicates), "images", before, count))
    return images, removals


def _within_times(images: pa.Table, city: City) -> tuple[pa.Table, list[Removal]]:
    """Apply the rules on times, and add the column `year`."""
    if not (city.months or city.hours or city.daylight is not None or city.per_year):
        return images.append_column("year", pa.nulls(len(images), pa.int32())), []
    parts, settings = [], dict[str, str]()
    left: Counter[str] = Counter()
    for start in range(0, max(len(images), 1), IMAGES_AT_A_TIME):
        part = images.slice(start, IMAGES_AT_A_TIME)
        years, rules = _times(part, city)
        passing = np.ones(len(part), bool)
        for rule, setting, passes in rules:
            passing &= passes
            settings[rule] = setting
            left[rule] += int(passing.sum())
        parts.append(part.append_column("year", years).filter(pa.array(passing)))
    before, removals = len(images), []
    for rule, setting in settings.items():
        removals.append(Removal(rule, setting, "images", before, before - left[rule]))
        before = left[rule]
    return pa.concat_tables(parts), removals


def _times(
    images: pa.Table, city: City
) -> tuple[pa.Array, list[tuple[str, str, NDArray[np.bool_]]]]:
    """Return the local years of images, and of each rule on times which images pass it.

    Images of unknown time have no year, and pass none.
    """
    known = images["captured_at"].is_valid().to_numpy()
    captured_at, lon, lat = (
        images[name].filter(pa.array(known)).to_numpy() for name in ("captured_at", "lon", "lat")
    )
    years, rules = np.zeros(len(images), np.int32), []

    def add(rule: str, setting: str, passes: NDArray[np.bool_]) -> None:
        passing = np.zeros(len(images), bool)
        passing[known] = passes
        rules.append((rule, setting, passing))

    if city.months or city.hours or city.per_year:
        local = local_time(captured_at, lon, lat, city.clock)
    if city.per_year:
        years[known] = local.year
    if city.months:
        listed = ", ".join(map(str, city.months))
        add("months", f"{listed} ({city.clock} time)", np.isin(local.month, city.months))
    if city.hours:
        after, before = local.minute >= city.hours.start, local.minute < city.hours.end
        over_midnight = city.hours.start > city.hours.end
        add(
            "hours",
            f"{city.hours} ({city.clock} time)",
            after | before if over_midnight else after & before,
        )
    if city.daylight is not None:
        high = sun_elevation(captured_at, lon, lat) >= city.daylight
        add("daylight", f"sun at least {city.daylight:g} degrees high", high)
    return pa.array(years, mask=~known if city.per_year else np.ones(len(images), bool)), rules


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
