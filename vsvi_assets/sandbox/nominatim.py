"""Nominatim's answers: places by name and by their objects' ids.

Shape by nominatim.org/release-docs/latest/api/Output; the page of a refusal by
hotosm/tasking-manager#6304 and gboeing/osmnx#385, that of too many requests by
earthobservations/luftdatenpumpe#65.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import shapely
import shapely.geometry

from vsvi_assets.sandbox.world import Place, World

LICENCE = "Data © OpenStreetMap contributors, ODbL 1.0. http://osm.org/copyright"

BLOCKED = (
    "<html>\n<head>\n<title>Access blocked</title>\n</head>\n<body>\n<h1>Access blocked</h1>\n\n"
    "<p>You have been blocked because you have violated the\n"
    '<a href="https://operations.osmfoundation.org/policies/nominatim/">usage policy</a>\n'
    "of OSM's Nominatim geocoding service.</p>\n</body>\n</html>\n"
)
TOO_MANY_REQUESTS = (
    '<?xml version="1.0" encoding="utf-8"?>\n<html>\n<head>\n<title>429 Too many requests</title>\n'
    "</head>\n<body>\n<h1>Error 429 Too many requests</h1>\n</body>\n</html>\n"
)
MOST_RESULTS = 40
"""The largest `limit` that the search keeps to."""


class ParameterError(ValueError):
    """A parameter is missing, or not what it can be."""


def answer(kind: str, parameters: Mapping[str, str], world: World) -> list[dict[str, Any]]:
    """Answer `search` (parameters `q`, `limit`) or `lookup` (`osm_ids`), in its format `json`.

    A name matches a place when each of its parts between commas is one of the place's. Ids of
    nothing are left out.

    Raises
    ------
    ParameterError
        When the parameters are none that the sandbox understands.
    """
    if parameters.get("format") != "json":
        raise ParameterError("Parameter 'format' must be one of: json")
    if kind == "lookup":
        ids = parameters.get("osm_ids", "").split(",")  # such as R324431
        found = [
            place for place in world.places if f"{place.osm_type[0].upper()}{place.osm_id}" in ids
        ]
    else:
        found = list(_named(parameters.get("q", ""), world))
        limit = parameters.get("limit", "10")
        if not limit.isdecimal():
            raise ParameterError("Parameter 'limit' must be a number.")
        found = found[: min(max(int(limit), 1), MOST_RESULTS)]
    with_geometry = parameters.get("polygon_geojson") == "1"
    return [_entry(number, place, with_geometry) for number, place in enumerate(found, 1)]


def _named(name: str, world: World) -> Iterator[Place]:
    wanted = {part.strip().casefold() for part in name.split(",")}
    if not any(wanted):
        raise ParameterError("Nothing to search for.")
    for place in sorted(world.places, key=lambda place: -place.importance):
        if wanted <= {part.strip().casefold() for part in place.display_name.split(",")}:
            yield place


def _entry(number: int, place: Place, with_geometry: bool) -> dict[str, Any]:
    shape = shapely.geometry.shape(place.geometry)
    west, south, east, north = shape.bounds
    middle = shape.representative_point()
    entry = {
        "place_id": 200_000_000 + number,
        "licence": LICENCE,
        "osm_type": place.osm_type,
        "osm_id": place.osm_id,
        "lat": f"{middle.y:.7f}",
        "lon": f"{middle.x:.7f}",
        "class": "boundary",
        "type": "administrative",
        "place_rank": 16,
        "importance": place.importance,
        "addresstype": "city",
        "name": place.display_name.partition(",")[0],
        "display_name": place.display_name,
        "boundingbox": [f"{value:.7f}" for value in (south, north, west, east)],
    }
    return entry | ({"geojson": dict(place.geometry)} if with_geometry else {})
