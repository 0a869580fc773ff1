"""A QGIS project of a city's tables: points with and without an image, images' views, streets."""

from importlib.resources import files
from string import Template
from xml.sax.saxutils import escape

import pyproj
import shapely
from psycopg2.extensions import parse_dsn

from vsvi_assets.city import City
from vsvi_assets.database.server import SERVICE
from vsvi_assets.views.links import photographs_link

OUTLINE_TOLERANCE = 1e-5
"""Degrees by which the outline of the city's area may differ on the map."""

CONNECTION_KEYS = ("service", "host", "port", "dbname", "user", "sslmode")


def qgis_project(city: City, postgres_url: str | None, pages_url: str | None = None) -> str:
    """Return a project for QGIS 3.22 or newer, in QGIS's own XML (.qgs).

    Map and layers are in the city's projected CRS, so that QGIS converts no coordinates.

    Parameters
    ----------
    postgres_url
        Address of the database, whose password is left out: QGIS asks for it. None: the
        project's own server, as the service `vsvi` of its pg_service.conf.
    pages_url
        The server of the reports, from which QGIS gets photographs that are in an object store.
    """
    crs = pyproj.CRS.from_epsg(city.projected_srid)
    to_crs = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
    xmin, ymin, xmax, ymax = to_crs.transform_bounds(*city.area.bounds)
    values = {
        "city": city.name,
        "connection": _connection(postgres_url),
        "max_distance": f"{city.max_distance:g}",
        "outline": shapely.to_wkt(
            shapely.simplify(city.area.outline, OUTLINE_TOLERANCE).boundary, rounding_precision=6
        ),
        "sequences": photographs_link(city, pages_url),
        "srid": city.projected_srid,
        "wkt": crs.to_wkt(),
        "xmin": xmin,
        "ymin": ymin,
        "xmax": xmax,
        "ymax": ymax,
    }
    template = files("vsvi_assets.views").joinpath("project.qgs").read_text(encoding="utf-8")
    return Template(template).substitute(
        {name: escape(str(value), {'"': "&quot;"}) for name, value in values.items()}
    )


def _connection(postgres_url: str | None) -> str:
    if postgres_url is None:
        return f"service='{SERVICE}'"
    parsed = parse_dsn(postgres_url.replace("postgresql+psycopg2://", "postgresql://", 1))
    return " ".join(f"{key}={_quoted(parsed[key])}" for key in CONNECTION_KEYS if key in parsed)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
