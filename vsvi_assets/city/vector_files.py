"""Files of features that a city file names, in any format and CRS that GDAL reads."""

import warnings
from pathlib import Path

import geopandas as gpd
import pyogrio
import pyproj
import shapely

from vsvi_assets.city.errors import CityFileError

LONGEST_EDGE = 1000
"""Units of a projected CRS; longer edges get vertices, since they are curves in degrees."""


def read_features(path: Path, key: str, layer: str | None = None) -> gpd.GeoDataFrame:
    """Read the features of a file in degrees (EPSG:4326), without a third dimension.

    Parameters
    ----------
    key
        Of the city file, for messages.
    layer
        Its name; None where the file has just one.

    Raises
    ------
    CityFileError
        When the file cannot be read, has several layers or no CRS.
    """
    what = f"{key} = {path}"
    try:
        if not path.exists():
            raise CityFileError(f"{what}: no such file")
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if not layers:
            raise CityFileError(f"{what}: has no geometry in it")
        if layer is None and len(layers) > 1:
            raise CityFileError(
                f"{what}: has the layers {', '.join(layers)}; name one of them, as in "
                f'{{"file": "{path.name}", "layer": "{layers[0]}"}}'
            )
        if layer is not None and layer not in layers:
            raise CityFileError(f"{what}: has no layer {layer!r}, but {', '.join(layers)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of features that are looked at below
            table = gpd.read_file(path, layer=layer)
    except CityFileError:
        raise
    except OSError as error:
        raise CityFileError(f"{what}: cannot be read ({error.strerror})") from error
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        raise CityFileError(f"{what}: GDAL cannot read it ({error})") from error
    except shapely.errors.GEOSException as error:
        raise CityFileError(
            f"{what}: has an invalid shape, such as a ring that is not closed "
            f"({str(error).strip()}); repair the file, with QGIS for example"
        ) from error
    if not isinstance(table, gpd.GeoDataFrame) or table.geometry.isna().all():
        raise CityFileError(f"{what}: has no geometry in it")
    if table.crs is None:
        raise CityFileError(
            f"{what}: does not say its coordinate system; give it one, such as EPSG:4326"
        )
    return in_degrees(table, what)


def in_degrees(table: gpd.GeoDataFrame, what: str) -> gpd.GeoDataFrame:
    """Return features in degrees, flat; raise CityFileError where their CRS does not reach."""
    shapes = shapely.force_2d(table.geometry.to_numpy())
    if table.crs.is_projected:
        shapes = shapely.segmentize(shapes, LONGEST_EDGE)
    try:
        table = table.set_geometry(gpd.GeoSeries(shapes, crs=table.crs)).to_crs(4326)
    except pyproj.exceptions.ProjError as error:
        raise CityFileError(f"{what}: cannot be transformed to degrees ({error})") from error
    bounds = shapely.bounds(table.geometry.dropna().to_numpy())
    if not (abs(bounds[~shapely.is_empty(table.geometry.dropna().to_numpy())]) <= 360).all():
        raise CityFileError(
            f"{what}: has coordinates outside its coordinate system ({table.crs.name})"
        )
    return table
