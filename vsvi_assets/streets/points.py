"""Points at even distances along streets."""

from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from vsvi_assets.city.area import Polygons
from vsvi_assets.city.projection import bearings, from_degrees, projected
from vsvi_assets.streets.errors import Box, NoStreetsError, describe_box

MIN_INTERVAL = 5
"""Metres; points of a smaller interval could share an id."""

COORDINATE_DECIMALS = 7
"""Decimals of a degree that OpenStreetMap stores, about a centimetre."""

_BEARING_REACH = 5
"""Metres on both sides of a point over which the direction of its street is measured."""

_ID_CELLS_PER_DEGREE = 300_000

_PART = 4.0
"""Metres of street that count as one place."""

_SLACK = 0.2
"""Metres that the parts of a street stay below the interval. A point is moved by up to a
centimetre where its coordinates are rounded, and by a little more where the edge of the box,
a straight line in degrees, is a curve in the projected CRS."""


@dataclass(frozen=True)
class StreetsAndPoints:
    """The points of a city, and the streets that they stand on.

    Attributes
    ----------
    points
        As `street_points` returns them.
    streets
        As `streets_within` returns them.
    """

    points: gpd.GeoDataFrame
    streets: gpd.GeoDataFrame


def street_points(
    streets: gpd.GeoDataFrame,
    box: Box,
    srid: int,
    interval: float,
    *,
    within: Polygons | None = None,
) -> gpd.GeoDataFrame:
    """Place points along all streets inside a box, or inside polygons.

    A street is a way of OpenStreetMap from end to end, or between its forks. It is divided into
    equal parts shorter than the interval, and the middle of each part is a candidate. From the
    longest street to the shortest, a candidate becomes a point unless one stands within half an
    interval of it. Therefore

    - no place on a street inside the area is farther than `interval` from a point,
    - no two points are closer than `interval / 2`,
    - all points lie within the area (where a street runs along the edge of a polygon: or no
      farther outside than coordinates are rounded), and
    - the same streets give the same points, ids and order, in whatever order they come.

    Parameters
    ----------
    streets
        `osmid`, `name`, `highway` and `geometry` of each line, as
        `vsvi_assets.streets.networks` makes them.
    box
        West, south, east, north in degrees (EPSG:4326).
    srid
        EPSG code of a projected CRS in metres; distances are measured in it.
    interval
        Metres, at least `MIN_INTERVAL`.
    within
        Polygons in degrees (EPSG:4326), of which the box has the bounds; None: the whole box.

    Returns
    -------
    points
        `id` (int64, by position alone; below 2**53, so exact in JSON), `osmid` (int64, the
        OpenStreetMap way), `street` (its name, str or None), `bearing` (float64, the direction
        of the street there: degrees clockwise from north, rounded to a tenth, at least 0 and
        below 180, since a street has no beginning), `highway` (its class, str or None) and
        `geometry` (Point, EPSG:4326, rounded to `COORDINATE_DECIMALS`), in the order of the ids,
        from south to north.

    Raises
    ------
    NoStreetsError
        When no street lies in the area.
    ValueError
        When the interval is too small, or `srid` cannot hold a coordinate.
    """
    if not interval >= MIN_INTERVAL:
        raise ValueError(f"The interval is {interval} m; it must be at least {MIN_INTERVAL} m.")
    pieces = _clip(streets, box, within)
    if pieces.empty:
        raise NoStreetsError(box)
    projection = from_degrees(srid)
    pieces["line"] = projected(pieces["line"].to_numpy(), srid)
    if not np.isfinite(shapely.get_coordinates(pieces["line"].to_numpy())).all():
        raise ValueError(f"EPSG:{srid} cannot hold {describe_box(box)}.")
    ways = _merge(pieces)
    way, x, y, before, after = _divide(ways["line"].to_numpy(), interval - _SLACK)

    lon, lat = projection.transform(x, y, direction="INVERSE")
    lon, lat = lon.round(COORDINATE_DECIMALS), lat.round(COORDINATE_DECIMALS)
    # The outermost places in the box that have so few decimals.
    steps = 10.0**COORDINATE_DECIMALS
    west, south = np.ceil(np.array(box[:2]) * steps) / steps
    east, north = np.floor(np.array(box[2:]) * steps) / steps
    lon, lat = lon.clip(west, east), lat.clip(south, north)
    chosen = _thin(*projection.transform(lon, lat), interval / 2)

    lon, lat = lon[chosen], lat[chosen]
    bearing = _bearings(projection, before[:, chosen], after[:, chosen])
    ways = ways.iloc[way[chosen]]
    points = gpd.GeoDataFrame(
        {
            "id": _position_ids(lon, lat),
            "osmid": ways["osmid"].to_numpy(),
            "street": pd.Series(ways["name"].to_numpy(), dtype=object),
            "bearing": bearing,
            "highway": pd.Series(ways["highway"].to_numpy(), dtype=object),
        },
        geometry=shapely.points(lon, lat),
        crs="EPSG:4326",
    )
    return points.sort_values("id", ignore_index=True)


def no_streets() -> gpd.GeoDataFrame:
    """Return a table of streets without a row, as `streets_within` would."""
    columns = {"osmid": "int64", "name": "object", "highway": "object", "metres": "float64"}
    table = pd.DataFrame(columns=list(columns)).astype(columns)
    return gpd.GeoDataFrame(table, geometry=[], crs="EPSG:4326")


def streets_within(
    streets: gpd.GeoDataFrame, box: Box, srid: int, *, within: Polygons | None = None
) -> gpd.GeoDataFrame:
    """Return the parts of streets inside a box, or inside polygons, each way from end to end.

    Returns
    -------
    streets
        A table of streets, and `metres` (float64), each line's length in the CRS `srid`. The
        longest come first.
    """
    pieces = _clip(streets, box, within)
    ways = _merge(pieces)
    ways["metres"] = shapely.length(projected(ways["line"].to_numpy(), srid))
    ways = ways.sort_values("metres", ascending=False, kind="stable", ignore_index=True)
    return gpd.GeoDataFrame(
        ways[["osmid", "name", "highway", "metres"]], geometry=ways["line"], crs="EPSG:4326"
    )


def metres_of_points(
    points: gpd.GeoDataFrame, streets: gpd.GeoDataFrame, srid: int
) -> NDArray[np.float64]:
    """Return how many metres of street each point stands for: those nearest to it.

    Streets are cut into parts of at most `_PART` metres, and each part counts for the nearest
    point of its own class, or where the class has no point for the nearest of all. So the sum
    is the length of the streets.

    Parameters
    ----------
    points, streets
        As `street_points` and `streets_within` return them.
    """
    metres = np.zeros(len(points))
    if not len(points):
        return metres
    lines = projected(streets.geometry.to_numpy(), srid)
    places = shapely.get_coordinates(projected(points.geometry.to_numpy(), srid))
    line, x, y, _, _ = _divide(lines, _PART)
    parts = np.column_stack([x, y])
    length = (shapely.length(lines) / np.bincount(line, minlength=len(lines)))[line]
    # An unknown class is None or NaN, by where it comes from.
    classes, names = pd.factorize(streets["highway"].fillna(""))
    class_of_point = points["highway"].fillna("").to_numpy()
    for number, name in enumerate(names):
        own = np.flatnonzero(class_of_point == name)
        own = own if own.size else np.arange(len(points))
        of_class = classes[line] == number
        nearest = own[cKDTree(places[own]).query(parts[of_class])[1]]
        metres += np.bincount(nearest, length[of_class], minlength=len(points))
    return metres


def with_nearest_street(
    places: gpd.GeoDataFrame, streets: gpd.GeoDataFrame, srid: int, max_distance: float
) -> gpd.GeoDataFrame:
    """Return the user's places with `osmid`, `street`, `bearing` and `highway` of their streets.

    That is for each place the nearest street within `max_distance` metres; where there is none,
    and without streets, they are null. A bearing that a place has already, it keeps.

    Parameters
    ----------
    places
        As `vsvi_assets.city.places` makes them.
    streets
        As `streets_within` returns them.
    """
    lines = projected(streets.geometry.to_numpy(), srid)
    points = projected(places.geometry.to_numpy(), srid)
    place, street = shapely.STRtree(lines).query_nearest(
        points, max_distance=max_distance, all_matches=False
    )
    along = shapely.line_locate_point(lines[street], points[place])
    before, after = (
        shapely.get_coordinates(
            shapely.line_interpolate_point(
                lines[street],
                np.clip(along + step, 0, shapely.length(lines[street])),
            )
        ).T
        for step in (-_BEARING_REACH, _BEARING_REACH)
    )
    found = pd.DataFrame(
        {
            "osmid": streets["osmid"].to_numpy()[street],
            "street": streets["name"].to_numpy()[street],
            "bearing": _bearings(from_degrees(srid), before, after),
            "highway": streets["highway"].to_numpy()[street],
        },
        index=place,
    ).reindex(range(len(places)))
    found.index = places.index
    result = places.drop(columns="bearing").assign(
        osmid=found["osmid"].astype("Int64"),
        street=found["street"],
        bearing=places["bearing"].fillna(found["bearing"]),
        highway=found["highway"],
    )
    own = ["id", "osmid", "street", "bearing", "highway"]
    return result[[*own, *(name for name in result.columns if name not in own)]]


def _clip(streets: gpd.GeoDataFrame, box: Box, within: Polygons | None) -> pd.DataFrame:
    """Return `line`, `osmid`, `name` and `highway` of the parts of streets inside an area."""
    lines = streets.geometry.to_numpy()
    west, south, east, north = box
    left, bottom, right, top = shapely.bounds(lines).T
    inside = (left >= west) & (bottom >= south) & (right <= east) & (top <= north)
    meets = (right >= west) & (top >= south) & (left <= east) & (bottom <= north)
    area = shapely.box(*box) if within is None else within
    if within is not None:
        shapely.prepare(within)
        inside[inside] = shapely.covers(within, lines[inside])
        meets[meets] = shapely.intersects(within, lines[meets])
    crossing = np.flatnonzero(meets & ~inside)
    # shapely.clip_by_rect would be faster, but drops what runs along the edge of the box.
    cut, origin = shapely.get_parts(shapely.intersection(lines[crossing], area), return_index=True)
    kept = np.concatenate([np.flatnonzero(inside), crossing[origin]])
    line = np.concatenate([lines[inside], cut])
    pieces = pd.DataFrame(
        {
            "line": line,
            "osmid": streets["osmid"].to_numpy()[kept],
            "name": pd.Series(streets["name"].to_numpy()[kept], dtype=object),
            "highway": pd.Series(streets["highway"].to_numpy()[kept], dtype=object),
        }
    )
    return pieces[shapely.length(line) > 0]


def _merge(pieces: pd.DataFrame) -> pd.DataFrame:
    """Join the pieces of each way where they meet end to end; the longest come first."""
    by_way = np.lexsort((*shapely.bounds(pieces["line"]).T, pieces["osmid"]))
    pieces = pieces.iloc[by_way]
    # A way has several names or classes only where osmnx joined it with others.
    tags = pieces.drop_duplicates("osmid").set_index("osmid")[["name", "highway"]]
    several = pieces["osmid"].duplicated(keep=False)
    osmids, way = np.unique(pieces["osmid"][several], return_inverse=True)
    merged, origin = shapely.get_parts(
        shapely.line_merge(
            shapely.multilinestrings(pieces["line"][several].to_numpy(), indices=way)
        ),
        return_index=True,
    )
    lines = np.concatenate([pieces["line"][~several], merged])
    osmids = np.concatenate([pieces["osmid"][~several], osmids[origin]])
    longest_first = np.lexsort((*shapely.bounds(lines).T, osmids, -shapely.length(lines)))
    lines, osmids = lines[longest_first], osmids[longest_first]
    return pd.DataFrame({"line": lines, "osmid": osmids, **tags.loc[osmids].reset_index(drop=True)})


def _divide(
    lines: NDArray[np.object_], longest: float
) -> tuple[
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
]:
    """Divide lines into equal parts up to `longest`.

    Returns
    -------
    line, x, y, before, after
        Of each part the index of its line, its middle, and the places (x and y in two rows) a
        little before and after the middle, within the part.
    """
    vertices, owner = shapely.get_coordinates(lines, return_index=True)
    # End to end and a metre apart, all lines are one, on which a place is one number.
    steps = np.where(np.diff(owner), 1, np.hypot(*np.diff(vertices, axis=0).T))
    along = np.concatenate([[0], steps.cumsum()])
    start = along[np.searchsorted(owner, np.arange(len(lines)))]
    lengths = shapely.length(lines)
    parts = np.ceil(lengths / longest).astype(np.int64)
    line = np.repeat(np.arange(len(lines)), parts)
    part = np.arange(len(line)) - np.repeat(parts.cumsum() - parts, parts)
    middle = start[line] + (part + 0.5) * (lengths / parts)[line]
    little = np.minimum((lengths / parts)[line] / 2, _BEARING_REACH)
    places = [
        np.array([np.interp(place, along, coordinate) for coordinate in vertices.T])
        for place in (middle, middle - little, middle + little)
    ]
    (x, y), before, after = places
    return line, x, y, before, after


def _bearings(
    projection: pyproj.Transformer, before: NDArray[np.float64], after: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return `bearings` between places of a projected CRS."""
    start = projection.transform(before[0], before[1], direction="INVERSE")
    end = projection.transform(after[0], after[1], direction="INVERSE")
    return bearings(start, end)


def _thin(x: NDArray[np.float64], y: NDArray[np.float64], distance: float) -> NDArray[np.bool_]:
    """Choose points at least `distance` apart, each other one being nearer to a chosen one."""
    # A thousandth of a millimetre more, so that rounding brings no two chosen points nearer.
    distance += 1e-6
    pairs = cKDTree(np.column_stack([x, y])).query_pairs(1.001 * distance, output_type="ndarray")
    earlier, later = np.sort(pairs, axis=1).T
    near = np.hypot(x[earlier] - x[later], y[earlier] - y[later]) < distance
    return chosen_in_order(len(x), earlier[near], later[near])


def chosen_in_order(
    count: int, earlier: NDArray[np.int64], later: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Choose, in order, each of `count` things that is not near to one that was chosen before.

    `earlier` and `later` are the indices of the pairs that are near. It is done in few rounds: in
    each, the things with no undecided one before them are chosen, and those near to them given
    up.
    """
    chosen = np.ones(count, dtype=bool)
    while earlier.size:
        first = np.ones(count, dtype=bool)
        first[later] = False
        chosen[later[first[earlier]]] = False
        undecided = chosen[earlier] & chosen[later]
        earlier, later = earlier[undecided], later[undecided]
    return chosen


def _position_ids(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the cells of a grid over the world, at most 37 cm wide, row by row from the south."""
    columns = 360 * _ID_CELLS_PER_DEGREE + 1
    column = np.floor((lon + 180) * _ID_CELLS_PER_DEGREE).astype(np.int64)
    row = np.floor((lat + 90) * _ID_CELLS_PER_DEGREE).astype(np.int64)
    return row * columns + column
