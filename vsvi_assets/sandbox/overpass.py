"""Overpass answers: the ways of a network that a query asks for, with all their nodes."""

import math
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import orjson
import shapely

from vsvi_assets.sandbox.world import Street, World

_TAG_FILTER = re.compile(r"""\["([^"]+)"(?:(!?[=~])"([^"]*)")?\]""")
_POLYGON = re.compile(r"""\(poly:\s*['"]([-\d.eE\s]+)['"]\)""")
_MEMORY = re.compile(r"\[maxsize:(\d+)\]")
_TIMEOUT = re.compile(r"\[timeout:(\d+)\]")
_DEFAULT_MEMORY, _DEFAULT_TIMEOUT = 512 << 20, 180
_BOX = re.compile(r"[\[(](?:bbox:)?\s*(-?[\d.]+),\s*(-?[\d.]+),\s*(-?[\d.]+),\s*(-?[\d.]+)\s*[\])]")

_HOLDS: dict[str, Callable[[str | None, str], bool]] = {
    "": lambda value, _: value is not None,
    "=": lambda value, operand: value == operand,
    "!=": lambda value, operand: value != operand,
    "~": lambda value, pattern: value is not None and bool(re.search(pattern, value)),
    "!~": lambda value, pattern: value is None or not re.search(pattern, value),
}
"""Whether a tag's value, None where the way has no such tag, is as a filter asks."""


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
    return _document(elements)


def out_of_memory(query: str) -> bytes:
    """Return the answer to a query that needs more memory than its `[maxsize:]` allows."""
    megabytes = memory_of(query) >> 20
    return _document(
        [],
        remark=f"runtime error: Query run out of memory using about {megabytes} MB of RAM.",
    )


def timed_out(query: str) -> bytes:
    """Return the answer to a query that needs more time than its `[timeout:]` allows."""
    found = _TIMEOUT.search(query)
    seconds = int(found[1]) if found else _DEFAULT_TIMEOUT
    return _document(
        [],
        remark=f'runtime error: Query timed out in "query" at line 1 after {seconds} seconds.',
    )


def memory_of(query: str) -> int:
    """Return the bytes of memory that a query may use, by its `[maxsize:]`."""
    found = _MEMORY.search(query)
    return int(found[1]) if found else _DEFAULT_MEMORY


def status(now: datetime, seconds_left: float) -> str:
    """Return the text of `/api/status`, for an address that has to wait so many seconds.

    osmnx reads its fifth line, and asks at once where that begins with a number.
    """
    free_at = now + timedelta(seconds=math.ceil(seconds_left))
    slot = (
        f"Slot available after: {free_at:%Y-%m-%dT%H:%M:%SZ}, in {math.ceil(seconds_left)} seconds."
        if seconds_left
        else "1 slots available now."
    )
    return (
        "Connected as: 2130706433\n"
        f"Current time: {now:%Y-%m-%dT%H:%M:%SZ}\n"
        "Announced endpoint: none\n"
        "Rate limit: 1\n"
        f"{slot}\n"
        "Currently running queries (pid, space limit, time limit, start time):\n"
    )


def _document(elements: list[dict[str, Any]], **more: str) -> bytes:
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
        }
        | more,
        option=orjson.OPT_INDENT_2,
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
    return all(
        _HOLDS[operator](street.tags.get(key), operand) for key, operator, operand in filters
    )


def _touches(street: Street, area: shapely.Polygon, world: World) -> bool:
    line = [world.nodes[node] for node in street.nodes if node in world.nodes]
    if len(line) < 2:
        return any(area.covers(shapely.Point(position)) for position in line)
    return bool(area.intersects(shapely.LineString(line)))
