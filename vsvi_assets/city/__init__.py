"""A city as its file describes it: the area, the tiles, the rules, the folders."""

from vsvi_assets.city.area import Area, BoundingBox
from vsvi_assets.city.errors import CityFileError
from vsvi_assets.city.model import REPORT_NAME, City
from vsvi_assets.city.reading import BrokenCity, load_cities, load_city
from vsvi_assets.city.region import PlaceNotLookedUpError
from vsvi_assets.city.tiles import ZOOM, Origin, parse_tile_key, tile_file_name, tile_key

__all__ = [
    "REPORT_NAME",
    "ZOOM",
    "Area",
    "BoundingBox",
    "BrokenCity",
    "City",
    "CityFileError",
    "Origin",
    "PlaceNotLookedUpError",
    "load_cities",
    "load_city",
    "parse_tile_key",
    "tile_file_name",
    "tile_key",
]
