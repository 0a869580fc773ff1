"""The key `points_file` of a city file: the user's own places, in place of points on streets.

A table of places (GeoDataFrame, EPSG:4326) has a row for each place: `id` (int64, the place's own
where all ids are whole numbers, else its number in the file, from 1), `place_id` (str, as the file
has it), `bearing` (degrees clockwise from north below 180, along a track; else null), the columns
of the file, each as `place_<name>`, and `geometry` (Point).
"""

import csv
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from numpy.typing import NDArray

from vsvi_assets.city.area import MAX_LATITUDE, Area, Polygons
from vsvi_assets.city.errors import CityFileError
from vsvi_assets.city.lists import shortened
from vsvi_assets.city.projection import bearings, projected, unprojected, utm_srid
from vsvi_assets.city.vector_files import read_features
from vsvi_assets.files import TextFileError, read_text

PREFIX = "place_"
"""Before the name of each of the user's columns, so that it differs from this project's."""

LONGITUDES = ("lon", "longitude", "lng", "long", "x")
LATITUDES = ("lat", "latitude", "y")

LARGEST_ID = 2**53
"""Up to which JSON's numbers are exact."""

FAR, NEAR = 5.0, 1.0
"""Degrees from the middle of all places: one as far as this looks wrong, if swapping its
coordinates brings it as near as that."""

_CORNERS = 4
"""Of a quarter of the circle around a place."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Places:
    """The user's places, and sentences on what looks wrong with them."""

    table: gpd.GeoDataFrame
    warnings: tuple[str, ...]


def read_places(path: Path, layer: str | None, interval: float) -> Places:
    """Read places from a CSV file, a GPX file, or one of points that GDAL reads.

    Parameters
    ----------
    layer
        Of a file that has several.
    interval
        Metres between the places along the tracks and routes of a GPX file. One that has neither
        has its waypoints.

    Raises
    ------
    CityFileError
        When the file cannot be read, has no places, impossible positions, or the same id at
        several positions.
    """
    what = f"points_file = {path}"
    bearing = None
    if path.suffix.lower() == ".csv":
        table = _read_csv(path, what)
    elif path.suffix.lower() == ".gpx":
        table, bearing = _read_gpx(path, interval)
    else:
        table = read_features(path, "points_file", layer)
    table = table.reset_index(drop=True)
    _require_points(table, what)
    lon, lat = table.geometry.x.to_numpy(), table.geometry.y.to_numpy()
    _require_positions(lon, lat, what)
    return _with_ids(table, bearing, what)


def swapped(table: gpd.GeoDataFrame, area: Area | None) -> NDArray[np.bool_]:
    """Return which places look as if longitude and latitude were swapped.

    With an area: those outside it that are inside when swapped. Without: those far from the middle
    of all places that are near to it when swapped.
    """
    lon, lat = table.geometry.x.to_numpy(), table.geometry.y.to_numpy()
    if area is not None:
        return ~area.covers(lon, lat) & area.covers(lat, lon)
    middle_lon, middle_lat = np.median(lon), np.median(lat)
    is_far = np.hypot(lon - middle_lon, lat - middle_lat) > FAR
    return is_far & (np.hypot(lat - middle_lon, lon - middle_lat) < NEAR)


def surroundings(table: gpd.GeoDataFrame, metres: float, srid: int) -> Polygons:
    """Return polygons in degrees that hold all that is so near to one of the places, or more."""
    # Larger, so that the polygon around the circle holds it, and the CRS's own scale.
    radius = 1.03 * metres / np.cos(np.pi / 4 / _CORNERS) + 1
    places = projected(table.geometry.to_numpy(), srid)
    circles = shapely.buffer(places, radius, quad_segs=_CORNERS)
    return unprojected(shapely.union_all(circles), srid)


def columns_of_user(table: gpd.GeoDataFrame) -> list[str]:
    """Return the names of the user's own columns, but for the id."""
    return [name for name in table.columns if name.startswith(PREFIX) and name != f"{PREFIX}id"]


def named(table: gpd.GeoDataFrame, which: NDArray[np.bool_]) -> str:
    """Return the ids of some places, the first of them in words."""
    return shortened([str(each) for each in table["place_id"][which]])


def _read_csv(path: Path, what: str) -> gpd.GeoDataFrame:
    try:
        text = read_text(path)
    except TextFileError as error:
        raise CityFileError(f"points_file = {error}") from error
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    try:
        with warnings.catch_warnings():
            # Otherwise a line of more fields than there are names would lose its last ones.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            rows = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                dtype=str,
                index_col=False,
                skipinitialspace=True,
                na_values=[""],
                keep_default_na=False,
            )
    except pd.errors.ParserWarning as error:
        raise CityFileError(
            f"{what}: its lines have more fields than the first line has names"
        ) from error
    except (ValueError, csv.Error) as error:
        raise CityFileError(f"{what}: cannot be read as CSV ({error})") from error
    rows.columns = [str(name).strip() for name in rows.columns]
    found = {name.lower(): name for name in rows.columns}
    lon_name, lat_name = (
        next((found[name] for name in names if name in found), None)
        for names in (LONGITUDES, LATITUDES)
    )
    if lon_name is None or lat_name is None:
        raise CityFileError(
            f"{what}: needs the columns lon and lat, in degrees; its columns are "
            f"{', '.join(rows.columns)}"
        )
    lon, lat = (_numbers(rows[name], what) for name in (lon_name, lat_name))
    rows = rows.drop(columns=[lon_name, lat_name])
    typed = {
        name: rows[name] if name.lower() == "id" else _typed(rows[name]) for name in rows.columns
    }
    return gpd.GeoDataFrame(typed, geometry=gpd.points_from_xy(lon, lat), crs=4326)


def _numbers(texts: pd.Series, what: str) -> Floats:
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if wrong.size:
        row = int(wrong[0])
        raise CityFileError(
            f"{what}: {texts.name} must be a number of degrees such as 4.3571, and is "
            f"{texts.fillna('').iloc[row]!r:.40} at place {row + 1}"
        )
    return numbers


def _typed(texts: pd.Series) -> pd.Series:
    """Return a column of texts as numbers where all of them are written like numbers."""
    known = texts.dropna()
    if len(known) and known.str.fullmatch(r"-?(0|[1-9]\d{0,17})").all():
        return texts.astype("Int64")
    if len(known) and known.str.fullmatch(r"-?(0|[1-9]\d{0,17})?(\.\d+)?([eE][-+]?\d+)?").all():
        numbers = pd.to_numeric(texts)
        return texts if np.isinf(numbers).any() else numbers
    return texts


def _read_gpx(path: Path, interval: float) -> tuple[gpd.GeoDataFrame, Floats | None]:
    """Return the places, and along tracks the direction (degrees) of each."""
    what = f"points_file = {path}"
    parts = []
    for kind in ("track", "route"):
        # Read by their points: of a track with a segment of one point GDAL makes no line.
        layer = f"{kind}_points"
        try:
            info = pyogrio.read_info(path, layer=layer, force_feature_count=True)
            lines = pyogrio.read_dataframe(path, layer=f"{kind}s", read_geometry=False)
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
            raise CityFileError(f"{what}: GDAL cannot read it ({error})") from error
        if not info["features"]:
            continue
        table = read_features(path, "points_file", layer)
        _require_points(table, what)
        lon, lat = table.geometry.x.to_numpy(), table.geometry.y.to_numpy()
        _require_positions(lon, lat, what)
        segment = table.get(f"{kind}_seg_id", pd.Series(0, table.index))
        segments = table.groupby([table[f"{kind}_fid"], segment]).indices
        for number, ((row, _), vertices) in enumerate(segments.items(), 1):
            # A segment of one point is a line without a length.
            ends = vertices if len(vertices) > 1 else vertices.repeat(2)
            line = shapely.linestrings(lon[ends], lat[ends])
            title = lines["name"].iloc[row] or f"{kind}s {number}"
            parts.append(_along(line, interval).assign(track=title))
    if not parts:
        return read_features(path, "points_file", "waypoints").dropna(axis=1, how="all"), None
    along = pd.concat(parts, ignore_index=True)
    if along.empty:
        raise CityFileError(f"{what}: its tracks have no length")
    return along.drop(columns="bearing"), along["bearing"].to_numpy()


def _along(line: shapely.LineString, interval: float) -> gpd.GeoDataFrame:
    """Return places at even distances along a track, from its beginning."""
    srid = utm_srid(line.bounds)
    track = projected(line, srid)
    metres = np.arange(0, track.length, interval)
    behind, places, ahead = (
        unprojected(shapely.line_interpolate_point(track, np.maximum(metres + step, 0)), srid)
        for step in (-5, 0, 5)
    )
    directions = bearings(shapely.get_coordinates(behind).T, shapely.get_coordinates(ahead).T)
    return gpd.GeoDataFrame(
        {"metre": metres.round(1), "bearing": directions}, geometry=places, crs=4326
    )


def _require_points(table: gpd.GeoDataFrame, what: str) -> None:
    shapes = table.geometry.to_numpy()
    if not len(shapes):
        raise CityFileError(f"{what}: has no place in it")
    without = np.flatnonzero(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    if without.size:
        raise CityFileError(f"{what}: place {without[0] + 1} of {len(shapes)} has no position")
    other = [shape.geom_type for shape in shapes if shape.geom_type != "Point"]
    if other:
        raise CityFileError(
            f"{what}: places are points, and {len(other)} of {len(shapes)} are something else, "
            f"such as a {other[0]}; take a point of each"
        )


def _require_positions(lon: Floats, lat: Floats, what: str) -> None:
    wrong = (np.abs(lat) > MAX_LATITUDE) | (np.abs(lon) > 180)
    if not wrong.any():
        return
    row = int(np.flatnonzero(wrong)[0])
    advice = (
        "; are lon and lat swapped?"
        if np.abs(lon[row]) <= MAX_LATITUDE and np.abs(lat[row]) <= 180
        else "; are they degrees?"
    )
    raise CityFileError(
        f"{what}: {int(wrong.sum())} of {len(lon)} places have an impossible position, the first "
        f"of them place {row + 1} with lon {lon[row]:g}, lat {lat[row]:g}{advice}"
    )


def _with_ids(table: gpd.GeoDataFrame, bearing: Floats | None, what: str) -> Places:
    """Return the table of places, each id once."""
    id_column = next((name for name in table.columns if str(name).lower() == "id"), None)
    others = [name for name in table.columns if name not in (id_column, table.geometry.name)]
    texts = (
        pd.Series([_id_text(value) for value in table[id_column]], dtype=object)
        if id_column is not None
        else pd.Series([str(number) for number in range(1, len(table) + 1)], dtype=object)
    )
    if texts.isna().any():
        row = int(np.flatnonzero(texts.isna())[0])
        raise CityFileError(f"{what}: place {row + 1} of {len(table)} has no id")
    places = gpd.GeoDataFrame(
        {
            "place_id": texts,
            "bearing": np.nan if bearing is None else bearing,
            **{f"{PREFIX}{name}": table[name] for name in others},
        },
        geometry=table.geometry.to_numpy(),
        crs=4326,
    )
    warnings: tuple[str, ...] = ()
    repeated = texts.duplicated().to_numpy()
    if repeated.any():
        positions = pd.Series(shapely.to_wkb(places.geometry.to_numpy()))
        places_of_id = positions.groupby(texts).nunique()
        several = places_of_id.index[places_of_id > 1].tolist()
        if several:
            raise CityFileError(
                f"{what}: the same id is at several positions: {shortened(several)}; give each "
                "place its own"
            )
        warnings += (
            f"{what}: {int(repeated.sum())} of {len(table)} rows repeat an id and its position, "
            f"and are left out: {shortened(sorted(set(texts[repeated])))}",
        )
        places = places[~repeated].reset_index(drop=True)
    places.insert(0, "id", _numeric_ids(places["place_id"]))
    return Places(places, warnings)


def _id_text(value: object) -> str | None:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _numeric_ids(ids: Sequence[str]) -> NDArray[np.int64]:
    if all(re.fullmatch(r"0|[1-9]\d{0,15}", each) and int(each) < LARGEST_ID for each in ids):
        return np.array([int(each) for each in ids], np.int64)
    return np.arange(1, len(ids) + 1)
