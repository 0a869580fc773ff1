"""Overpass answers: the ways of a network that a query asks for, with all their nodes."""

import re
from typing import Any

import orjson
import shapely

from vsvi_assets.sandbox.world import Street, World

_TAG_FILTER = re.compile(r"""\["([^"]+)"(?:(!?[=~])"([^"]*)")?\]""")
_POLYGON = re.compile(r"""\(poly:\s*['"]([-\d.eE\s]+)['"]\)""")
_BOX = re.compile(r"[\[(](?:bbox:)?\s*(-?[\d.]+),\s*(-?[\d.]+),\s*(-?[\d.]+),\s*(-?[\d.]+)\s*[\])]")


class QueryError(ValueError):
    """The query is none that the sandbox understands."""


def answer(query: str, world: World) -> bytes:
    """Answer a query for ways, such as osmnx sends them, in Overpass's JSON.

    Understood are the tag filters of one `way` statement (`["k"]`, `["k"="v"]`, `["k"!="v"]`,
    `["k"~"regex"]`, `["k"!~"regex"]`) and its area: `(poly:"lat lon lat lon …")` or a box
    `(south,west,north,east)`. As with `(._;>;);out;`, a way that touches the area comes
    whole, with all of its nodes that are known.

    Raises
    ------
    QueryError
        When the query names no area.
    """
    area = _area(query)
    filters = _TAG_FILTER.findall(query)
    streets = [
        street
        for street in list(world.streets.values())
        if _matches(street, filters) and _touches(street, area, world)
    ]
    node_ids = sorted({node for street in streets for node in street.nodes if node in world.nodes})
    elements: list[dict[str, Any]] = [
        {"type": "node", "id": id, "lat": world.nodes[id][1], "lon": world.nodes[id][0]}
        for id in node_ids
    ]
    elements += [
        {"type": "way", "id": street.id, "nodes": list(street.nodes), "tags": dict(street.tags)}
        for street in streets
    ]
    return orjson.dumps(
        {
            "version": 0.6,
            "generator": "Overpass API",
            "osm3s": {
                "timestamp_osm_base": "2025-11-01T00:00:00Z",
                "copyright": "The data included in this document is from www.openstreetmap.org. "
                "The data is made available under ODbL.",
            },
            "elements": elements,
        },
        option=orjson.OPT_INDENT_2,
    )


def status(current_time: str) -> str:
    """Return the text of `/api/status` of a server that has slots to spare.

    osmnx reads its fifth line, and asks at once where that begins with a number.
    """
    return (
        "Connected as: 2130706433\n"
        f"Current time: {current_time}\n"
        "Announced endpoint: none\n"
        "Rate limit: 2\n"
        "2 slots available now.\n"
        "Currently running queries (pid, space limit, time limit, start time):\n"
    )


def _area(query: str) -> shapely.Polygon:
    if polygon := _POLYGON.search(query):
        numbers = [float(number) for number in polygon[1].split()]
        return shapely.Polygon(zip(numbers[1::2], numbers[::2], strict=True))
    if box := _BOX.search(query):
        south, west, north, east = (float(number) for number in box.groups())
        return shapely.box(west, south, east, north)
    raise QueryError("The query names neither a polygon nor a bounding box.")


def _matches(street: Street, filters: list[tuple[str, str, str]]) -> bool:
    for key, operator, operand in filters:
        value = street.tags.get(key)
        match operator:
            case "":
                holds = value is not None
            case "=":
                holds = value == operand
            case "!=":
                holds = value != operand
            case "~":
                holds = value is not None and re.search(operand, value) is not None
            case _:
                holds = value is None or re.search(operand, value) is None
        if not holds:
            return False
    return True


def _touches(street: Street, area: shapely.Polygon, world: World) -> bool:
    line = [world.nodes[node] for node in street.nodes if node in world.nodes]
    if len(line) < 2:
        return any(area.covers(shapely.Point(position)) for position in line)
    return bool(area.intersects(shapely.LineString(line)))
