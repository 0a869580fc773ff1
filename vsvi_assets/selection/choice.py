"""The images that are chosen for street points."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vsvi_assets.city import City
from vsvi_assets.selection.assignment import Wishes, assign
from vsvi_assets.selection.candidates import Ranked, cost, ranked_candidates, slots
from vsvi_assets.selection.rules import Removal

LISTED = 64
"""Candidates of each point that are looked at first, where no image may be chosen twice."""


def choose(points: pa.Table, images: pa.Table, city: City) -> tuple[pa.Table, list[Removal]]:
    """Choose the first candidate of each point, and with `per_year` of each of its years.

    It is that of rank 1, unless that one is rejected.

    With `assignment: one_to_one` no image is chosen twice: as many points as possible get one of
    their candidates, and of all such choices the distances together are the least (with
    `prefer: newest` the ages), as `assignment.assign` describes.

    Parameters
    ----------
    points
        `id`, `x`, `y` (metres), `bearing` (degrees, null where unknown).
    images
        As `rules.usable_images` returns them.

    Returns
    -------
    rows
        `street_point_id`, `image_id`, `sequence_id`, `distance`, `rule`, `rank`, `angle`,
        `candidates`, `year`, `balanced`, `twins`, in the order of points and years.
    removals
        Of each rule on pairs of a point and an image.
    """
    points = points.sort_by("id")
    removed: Counter[str] = Counter()
    once = city.assignment == "one_to_one"
    most = LISTED if once else 1
    if once and city.quality:
        most = max(len(images), 1)
    parts = ranked_candidates(
        points, images, city, removed, only_first=not once and city.quality is None
    )
    ranked = Ranked.joined([part.where(_choice(part, images) <= most) for part in parts])
    removals = _removals(city, removed)
    if once:
        before = int((_choice(ranked, images) == 1).sum())
        ranked = _each_once(points, images, city, ranked)
        removals.append(
            Removal("assignment", "one to one", "points", before, before - len(ranked.point))
        )
    return selected_rows(points, images, city, ranked), removals


def _choice(ranked: Ranked, images: pa.Table) -> NDArray[np.int64]:
    """Return of each candidate whether it is the first that is left of its point and year, or
    the second, and so on."""
    years = images["year"].fill_null(0).to_numpy()[ranked.image]
    row = np.arange(len(years))
    is_first = np.diff(slots(ranked.point, years), prepend=-1) != 0
    return row - np.maximum.accumulate(np.where(is_first, row, 0)) + 1


def _removals(city: City, removed: Counter[str]) -> list[Removal]:
    before, removals = removed["candidates"], []
    settings = {
        "same_street": "of the point's street",
        "facing": f"{city.facing} the street within {city.facing_tolerance:g} degrees",
        "per_year": "year known",
    }
    for rule, setting in settings.items():
        if rule in city.rules:
            removals.append(Removal(rule, setting, "candidates", before, removed[rule]))
            before -= removed[rule]
    if city.quality and city.quality.limits:
        setting = ", ".join(limit.reason for limit in city.quality.limits)
        removals.append(Removal("quality", setting, "candidates", before, removed["quality"]))
    return removals


def _each_once(points: pa.Table, images: pa.Table, city: City, ranked: Ranked) -> Ranked:
    """Choose candidates so that no image is chosen twice.

    Parameters
    ----------
    ranked
        Of each point at least the first `LISTED` candidates; all that are left where the city
        has limits of quality, by which it is not known how many there were.
    """
    while True:
        years = images["year"].fill_null(0).to_numpy()[ranked.image]
        _, first, place = np.unique(
            slots(ranked.point, years), return_index=True, return_inverse=True
        )
        costs = cost(images, city, ranked)
        choice = _choice(ranked, images)
        left = np.bincount(place) if city.quality else ranked.candidates[first]
        wishes = Wishes(place, ranked.image, costs, choice, left)
        chosen, wanting = assign(wishes)
        if not len(wanting):
            return ranked.where(chosen)
        rows = np.unique(ranked.point[first[wanting]])
        others = ranked.where(~np.isin(ranked.point, rows))
        whole = ranked_candidates(points.take(pa.array(rows)), images, city)
        parts = [replace(part, point=rows[part.point]) for part in whole]
        ranked = Ranked.joined([others, *parts]).in_order(images)


def selected_rows(points: pa.Table, images: pa.Table, city: City, chosen: Ranked) -> pa.Table:
    """Return chosen candidates as rows of the selection."""
    of_image = images.take(pa.array(chosen.image))
    year = of_image["year"].combine_chunks()
    of_year = " of the year" if city.per_year else ""
    once = ", one to one" if city.assignment == "one_to_one" else ""
    rule = f"{city.prefer}{of_year}{once}"  # such as "newest of the year, one to one"
    return pa.table(
        {
            "street_point_id": points["id"].take(pa.array(chosen.point)),
            "image_id": of_image["id"],
            "sequence_id": of_image["sequence_id"],
            "distance": chosen.distance,
            "rule": pa.array([rule] * len(year), pa.string()),
            "rank": pa.array(chosen.rank, pa.int32()),
            "angle": pa.array(chosen.angle, from_pandas=True),
            "candidates": pa.array(chosen.candidates, pa.int32()),
            "year": year,
            "balanced": _balanced(chosen, year, city),
            "twins": of_image["twins"],
        }
    )


def _balanced(chosen: Ranked, year: pa.Array, city: City) -> pa.Array:
    """Return whether the point of each row has an image in every year that occurs."""
    if not city.per_year:
        return pa.nulls(len(year), pa.bool_())
    years = pc.count_distinct(year).as_py()
    _, slot, counts = np.unique(chosen.point, return_inverse=True, return_counts=True)
    return pa.array(counts[slot] == years)
