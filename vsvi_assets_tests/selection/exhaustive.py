"""The selection of a city, computed the slow way: every image compared with every point.

Nothing of the package's own rules is used: clocks are those of zoneinfo, the sun is PyEphem's,
and distances are between all pairs.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import ephem
import geopandas as gpd
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from vsvi_assets.city import City

Image = Mapping[str, Any]
Point = Mapping[str, Any]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(image: Image) -> datetime:
    return EPOCH + timedelta(milliseconds=image["captured_at"])


def local(image: Image, city: City, zone: str) -> datetime:
    """Return the local time of an image, without a timezone."""
    if city.clock == "civil":
        return moment(image).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    observer = ephem.Observer()
    observer.lon, observer.lat, observer.date = str(image["lon"]), "0", moment(image)
    sun = ephem.Sun(observer)
    hours = (float(observer.sidereal_time()) - float(sun.ra)) / math.pi * 12 + 12
    mean = moment(image).replace(tzinfo=None) + timedelta(hours=image["lon"] / 15)
    midnight = mean.replace(hour=0, minute=0, second=0, microsecond=0)
    return min(
        (midnight + timedelta(hours=hours % 24 + 24 * day) for day in (-1, 0, 1)),
        key=lambda apparent: abs(apparent - mean),
    )


def sun_height(image: Image) -> float:
    observer = ephem.Observer()
    observer.lon, observer.lat = str(image["lon"]), str(image["lat"])
    observer.pressure, observer.date = 0, moment(image)
    return math.degrees(ephem.Sun(observer).alt)


def in_time(image: Image, city: City, zone: str) -> bool:
    """Return whether an image passes the rules on times."""
    if city.months is None and city.hours is None and city.daylight is None:
        return True
    if image["captured_at"] is None:
        return False
    there = local(image, city, zone)
    minute = there.hour * 60 + there.minute + there.second / 60
    if city.months and there.month not in city.months:
        return False
    if city.hours:
        start, end = city.hours.start, city.hours.end
        inside = start <= minute < end if start < end else minute >= start or minute < end
        if not inside:
            return False
    return city.daylight is None or sun_height(image) >= city.daylight


def are_twins(one: Image, other: Image, city: City) -> bool:
    if one["captured_at"] is None or other["captured_at"] is None:
        return False
    same = ("captured_at", "lon", "lat", "creator_id", "is_pano", "compass_angle")
    if all(one[name] == other[name] for name in same):
        return True
    if isinstance(city.duplicates, str):
        return False
    heading, other_heading = one["compass_angle"], other["compass_angle"]
    turn = 0.0
    if heading is not None and other_heading is not None:
        turn = abs((heading - other_heading + 180) % 360 - 180)
    return (
        math.dist((one["x"], one["y"]), (other["x"], other["y"])) <= city.duplicates.metres
        and abs(one["captured_at"] - other["captured_at"]) <= city.duplicates.seconds * 1000
        and one["creator_id"] == other["creator_id"]
        and bool(one["is_pano"]) == bool(other["is_pano"])
        and turn <= 30
    )


def without_twins(images: Sequence[Image], city: City) -> dict[int, tuple[Image, list[int]]]:
    """Return the images to choose from by id, each with the ids that it stands for."""
    kept: dict[int, tuple[Image, list[int]]] = {}
    for image in sorted(images, key=lambda image: image["id"]):
        representative = None
        if city.duplicates != "keep":
            representative = next(
                (other for other, _ in kept.values() if are_twins(other, image, city)), None
            )
        if representative:
            kept[representative["id"]][1].append(image["id"])
        else:
            kept[image["id"]] = (image, [])
    return kept


def turn(image: Image, point: Point) -> float | None:
    """Return the angle between the lines of an image's heading and of a point's street."""
    if image["compass_angle"] is None or point["bearing"] is None:
        return None
    return abs((image["compass_angle"] - point["bearing"] + 90) % 180 - 90)


def faces(image: Image, point: Point, city: City) -> bool:
    if city.facing == "any" or image["is_pano"]:
        return True
    angle = turn(image, point)
    if angle is None:
        return False
    return abs(angle - (0 if city.facing == "along" else 90)) <= city.facing_tolerance


def projected(images: Iterable[Image], srid: int) -> list[dict[str, Any]]:
    """Return images with their places in metres."""
    images = list(images)
    places = gpd.GeoSeries.from_xy(
        [image["lon"] for image in images], [image["lat"] for image in images], crs=4326
    ).to_crs(srid)
    return [
        {**image, "x": place.x, "y": place.y} for image, place in zip(images, places, strict=True)
    ]


def exhaustive_selection(
    points: Sequence[Point],
    images: Iterable[Image],
    city: City,
    zone: str,
    is_of_street: Callable[[Image, Point], bool] | None = None,
) -> list[dict[str, Any]]:
    """Return all candidates of all points, in the order of points, years and ranks.

    Parameters
    ----------
    points
        `id`, `lon`, `lat`, `bearing`.
    images
        As rows of the table `images`, with `lon` and `lat`.
    is_of_street
        Whether an image counts for a point, with `same_street`.
    """
    passing = [
        image for image in projected(images, city.projected_srid) if in_time(image, city, zone)
    ]
    kept = without_twins(passing, city)
    rows = []
    for point in projected(points, city.projected_srid):
        by_year: dict[int | None, list[tuple[float, Image, list[int]]]] = defaultdict(list)
        for image, twins in kept.values():
            distance = float(np.hypot(image["x"] - point["x"], image["y"] - point["y"]))
            if distance > city.max_distance or not faces(image, point, city):
                continue
            if is_of_street and not is_of_street(image, point):
                continue
            if not city.per_year:
                by_year[None].append((distance, image, twins))
            elif image["captured_at"] is not None:
                by_year[local(image, city, zone).year].append((distance, image, twins))
        for year, candidates in sorted(by_year.items(), key=lambda item: item[0] or 0):

            def order(candidate: tuple[float, Image, list[int]]) -> tuple[float, ...]:
                distance, image, _ = candidate
                by_distance = (round(distance, 6), image["id"])
                newest = -(image["captured_at"] or 0)
                return (newest, *by_distance) if city.prefer == "newest" else by_distance

            for rank, (distance, image, twins) in zip(
                count(1), sorted(candidates, key=order), strict=False
            ):
                rows.append(
                    {
                        "street_point_id": point["id"],
                        "image_id": image["id"],
                        "distance": distance,
                        "rank": rank,
                        "candidates": len(candidates),
                        "year": year,
                        "angle": turn(image, point),
                        "twins": " ".join(map(str, twins)) or None,
                    }
                )
    return rows


def least_costs(
    candidates: Sequence[Mapping[str, Any]], costs: Sequence[float]
) -> tuple[int, float]:
    """Return how many points can have an image each, none twice, and the least that it costs.

    By SciPy's dense solver over all pairs, those that are no candidates included at a high cost.
    """
    places = {(row["street_point_id"], row["year"]): 0 for row in candidates}
    images = {row["image_id"]: 0 for row in candidates}
    for numbered in (places, images):
        numbered.update(zip(numbered, count(), strict=False))
    without = 1e6
    table = np.full((len(places), len(images) + len(places)), without)
    for row, cost in zip(candidates, costs, strict=True):
        table[places[row["street_point_id"], row["year"]], images[row["image_id"]]] = cost
    chosen = table[linear_sum_assignment(table)]
    served = chosen[chosen < without]
    return len(served), float(served.sum())


def assert_chosen(
    found: Sequence[Mapping[str, Any]], candidates: Sequence[Mapping[str, Any]], assignment: str
) -> None:
    """Compare the rows of a selection with what its candidates, in their order, allow."""
    if assignment == "one_to_one":
        best = least_costs(candidates, [row["distance"] for row in candidates])
        assert (len(found), sum(row["distance"] for row in found)) == pytest.approx(best)
        return
    first: dict[int, int] = {}
    for row in candidates:
        first.setdefault(row["street_point_id"], row["image_id"])
    assert {row["street_point_id"]: row["image_id"] for row in found} == first
