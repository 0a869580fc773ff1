"""Streets of OpenStreetMap: networks of a box, and points at even distances along them."""

from vsvi_assets.streets.errors import (
    Box,
    NoStreetsError,
    OverpassBusyError,
    OverpassError,
    OverpassRefusedError,
    OverpassUnreachableError,
    PlaceError,
    StreetsFileError,
)
from vsvi_assets.streets.network_types import NETWORK_TYPES
from vsvi_assets.streets.networks import read_streets, streets_of_graph
from vsvi_assets.streets.nominatim import Nominatim, look_up
from vsvi_assets.streets.overpass import DownloadedStreets, Overpass, download_streets
from vsvi_assets.streets.points import COORDINATE_DECIMALS, MIN_INTERVAL, street_points

__all__ = [
    "COORDINATE_DECIMALS",
    "MIN_INTERVAL",
    "NETWORK_TYPES",
    "Box",
    "DownloadedStreets",
    "NoStreetsError",
    "Nominatim",
    "Overpass",
    "OverpassBusyError",
    "OverpassError",
    "OverpassRefusedError",
    "OverpassUnreachableError",
    "PlaceError",
    "StreetsFileError",
    "download_streets",
    "look_up",
    "read_streets",
    "street_points",
    "streets_of_graph",
]
