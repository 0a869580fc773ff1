"""The projected CRS in which a city's distances are measured."""

import math
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

MAX_DISTORTION = 0.03
"""Largest difference from 1 that the scale of a CRS may have in a box. National grids and UTM
stay below 0.002 where they are used, Europe's equal-area CRS (EPSG:3035) below 0.015 in Lisbon,
Reykjavik and Nicosia; web maps' CRS (EPSG:3857) has 0.48 at 47° north."""

Bounds = tuple[float, float, float, float]
"""West, south, east, north in degrees (EPSG:4326)."""


def utm_srid(bounds: Bounds) -> int:
    """Return the EPSG code of the WGS 84 UTM zone that holds the middle of a box."""
    west, south, east, north = bounds
    zone = min(int(((west + east) / 2 + 180) // 6) + 1, 60)
    return (32600 if south + north >= 0 else 32700) + zone


@lru_cache
def from_degrees(srid: int) -> pyproj.Transformer:
    """Return what transforms longitudes and latitudes (EPSG:4326) to a CRS.

    To make it takes 30 ms. Threads may share it (pyproj 3.1 and later).
    """
    return pyproj.Transformer.from_crs(4326, srid, always_xy=True)


def projected(shapes: Any, srid: int) -> Any:
    """Return one or many shapely geometries, given in degrees (EPSG:4326), in a projected CRS."""
    return shapely.transform(shapes, from_degrees(srid).transform, interleaved=False)


def unprojected(shapes: Any, srid: int) -> Any:
    """Return one or many shapely geometries of a projected CRS in degrees (EPSG:4326)."""
    back = partial(from_degrees(srid).transform, direction="INVERSE")
    return shapely.transform(shapes, back, interleaved=False)


def bearings(start: Any, end: Any) -> NDArray[np.float64]:
    """Return the directions of lines on the ellipsoid: degrees clockwise from north, below 180.

    `start` and `end` are the lines' ends, each as longitudes and latitudes (float64). The result
    is rounded to a tenth.
    """
    azimuths, _, _ = pyproj.Geod(ellps="WGS84").inv(*start, *end)
    return (np.asarray(azimuths) % 180).round(1) % 180


def check_srid(srid: int, bounds: Bounds) -> None:
    """Raise ValueError unless a CRS is a projected one in metres, made for the area of a box."""
    advice = _advice(bounds)
    try:
        crs = pyproj.CRS.from_epsg(srid)
    except pyproj.exceptions.CRSError as error:
        raise ValueError(f"srid {srid} is unknown; {advice}") from error
    if not crs.is_projected or any(axis.unit_conversion_factor != 1 for axis in crs.axis_info):
        raise ValueError(f"srid {srid} ({crs.name}) has no unit of metres; {advice}")
    area = crs.area_of_use
    if area is not None and not _meets(area.bounds, bounds):
        raise ValueError(
            f"srid {srid} ({crs.name}) is made for {area.name}, which the bounding box "
            f"does not meet; {advice}"
        )


def check_scale(srid: int, bounds: Bounds) -> None:
    """Raise ValueError unless in a box the metres of a projected CRS are metres on the ground.

    They are where they differ by at most `MAX_DISTORTION`, and the CRS reaches all of the box.
    """
    crs = pyproj.CRS.from_epsg(srid)
    metres = _ground_metres(crs, bounds)
    if abs(1 / metres - 1) <= MAX_DISTORTION:
        return
    what = f"1 m of srid {srid} ({crs.name}) is {metres:.2f} m on the ground in the bounding box"
    if not math.isfinite(metres):
        what = f"srid {srid} ({crs.name}) does not reach all of the bounding box"
    advice = _advice(bounds)
    if srid == utm_srid(bounds):
        advice = "the box is too large for one CRS; write several cities, each with a part of it"
    raise ValueError(f"{what}; {advice}")


def _advice(bounds: Bounds) -> str:
    return f"it must be the EPSG code of a projected CRS in metres, such as {utm_srid(bounds)}"


def _meets(area: Bounds, box: Bounds) -> bool:
    left, bottom, right, top = area
    west, south, east, north = box
    # An area of use across the antimeridian has its west east of its east.
    spans = [(left, right)] if left <= right else [(left, 180.0), (-180.0, right)]
    return south < top and north > bottom and any(west < e and east > w for w, e in spans)


def _ground_metres(crs: pyproj.CRS, bounds: Bounds) -> float:
    """Return the metres on the ground of 1 m in a CRS, where they differ most from 1 in a box.

    The scale along the parallel and the meridian is measured at the box's corners, the middles
    of its edges and its centre. It is not finite where the CRS does not reach.
    """
    west, south, east, north = bounds
    lon, lat = np.meshgrid(np.linspace(west, east, 3), np.linspace(south, north, 3))
    factors = pyproj.Proj(crs).get_factors(lon.ravel(), lat.ravel())
    scales = np.concatenate([factors.meridional_scale, factors.parallel_scale])
    if not np.isfinite(scales).all() or (scales <= 0).any():
        return math.inf
    return float(1 / scales[np.argmax(np.abs(np.log(scales)))])
