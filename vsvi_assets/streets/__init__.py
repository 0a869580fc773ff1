"""Streets of OpenStreetMap: networks of a box, and points at even distances along them."""

from vsvi_assets.streets.errors import (
    Box,
    NoStreetsError,
    OverpassBusyError,
    OverpassError,
    OverpassRefusedError,
    OverpassUnreachableError,
    StreetsFileError,
)
from vsvi_assets.streets.network_types import NETWORK_TYPES
from vsvi_assets.streets.networks import read_streets, streets_of_graph
from vsvi_assets.streets.overpass import DownloadedStreets, Overpass, download_streets
from vsvi_assets.streets.points import COORDINATE_DECIMALS, MIN_INTERVAL, street_points

__all__ = [
    "COORDINATE_DECIMALS",
    "MIN_INTERVAL",
    "NETWORK_TYPES",
    "Box",
    "DownloadedStreets",
    "NoStreetsError",
    "Overpass",
    "OverpassBusyError",
    "OverpassError",
    "OverpassRefusedError",
    "OverpassUnreachableError",
    "StreetsFileError",
    "download_streets",
    "read_streets",
    "street_points",
    "streets_of_graph",
]
