"""The images that are chosen for street points."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vsvi_assets.city import City
from vsvi_assets.selection.candidates import Ranked, ranked_candidates
from vsvi_assets.selection.rules import Removal


def choose(points: pa.Table, images: pa.Table, city: City) -> tuple[pa.Table, list[Removal]]:
    """Choose the first candidate of each point, and with `per_year` of each of its years.

    It is that of rank 1, unless that one is rejected.

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
    first = Ranked.joined(
        [
            part.where(_is_first(part, images))
            for part in ranked_candidates(points, images, city, removed)
        ]
    )
    rows = selected_rows(points, images, city, first)
    return rows, _removals(city, removed)


def _is_first(part: Ranked, images: pa.Table) -> np.ndarray:
    """Return which candidates are the first ones left of their point and year."""
    slot = _slots(part.point, images["year"].take(pa.array(part.image)))
    return np.diff(slot, prepend=-1) != 0


def _removals(city: City, removed: Counter[str]) -> list[Removal]:
    before, removals = removed["candidates"], []
    if city.per_year:
        count = removed["per_year"]
        removals.append(Removal("per_year", "year unknown", "candidates", before, count))
        before -= count
    if city.quality and city.quality.limits:
        setting = ", ".join(limit.reason for limit in city.quality.limits)
        removals.append(Removal("quality", setting, "candidates", before, removed["quality"]))
    return removals


def selected_rows(points: pa.Table, images: pa.Table, city: City, chosen: Ranked) -> pa.Table:
    """Return chosen candidates as rows of the selection."""
    of_image = images.take(pa.array(chosen.image))
    year = of_image["year"].combine_chunks()
    return pa.table(
        {
            "street_point_id": points["id"].take(pa.array(chosen.point)),
            "image_id": of_image["id"],
            "sequence_id": of_image["sequence_id"],
            "distance": chosen.distance,
            "rule": pa.array([rule_name(city)] * len(year), pa.string()),
            "rank": pa.array(chosen.rank, pa.int32()),
            "angle": pa.array(chosen.angle, from_pandas=True),
            "candidates": pa.array(chosen.candidates, pa.int32()),
            "year": year,
            "balanced": _balanced(chosen, year, city),
            "twins": of_image["twins"],
        }
    )


def rule_name(city: City) -> str:
    """Return the rule by which images are chosen: "nearest" or "newest", of each year or not."""
    return f"{city.prefer} of the year" if city.per_year else city.prefer


def _balanced(chosen: Ranked, year: pa.Array, city: City) -> pa.Array:
    """Return whether the point of each row has an image in every year that occurs."""
    if not city.per_year:
        return pa.nulls(len(year), pa.bool_())
    years = pc.count_distinct(year).as_py()
    _, slot, counts = np.unique(chosen.point, return_inverse=True, return_counts=True)
    return pa.array(counts[slot] == years)


def choose_next(
    points: pa.Table, images: pa.Table, city: City, rejected: pa.Table, tries: int
) -> pa.Table:
    """Choose the candidates that follow others in rank.

    Parameters
    ----------
    points, images
        As `choose` takes them.
    rejected
        `street_point_id`, `year` and `rank` of those that others are wanted for.
    tries
        How many to choose for each of them, where there are as many.

    Returns
    -------
    rows
        As `choose` returns them, in the order of points, years and ranks; `balanced` is null.
    """
    points = points.sort_by("id")
    row = pc.index_in(rejected["street_point_id"], points["id"].combine_chunks()).to_numpy()
    wanted = _slots(row, rejected["year"])
    order = np.argsort(wanted)
    wanted, after = wanted[order], rejected["rank"].to_numpy()[order]
    parts = []
    for part in ranked_candidates(points, images, city):
        slot = _slots(part.point, images["year"].take(pa.array(part.image)))
        place = np.searchsorted(wanted, slot).clip(max=len(wanted) - 1)
        beyond = part.rank - after[place]
        parts.append(part.where((wanted[place] == slot) & (beyond > 0) & (beyond <= tries)))
    rows = selected_rows(points, images, city, Ranked.joined(parts))
    balanced = rows.column_names.index("balanced")
    return rows.set_column(balanced, "balanced", pa.nulls(len(rows), pa.bool_()))


def _slots(point: np.ndarray, year: pa.ChunkedArray) -> np.ndarray:
    """Number the points' years; an unknown year is one of its own."""
    return point * 10_000 + year.fill_null(0).to_numpy()
