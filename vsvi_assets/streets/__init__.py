"""Street networks from OpenStreetMap, and points at even distances along their streets."""

import gc
import gzip
import json
import re
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import geopandas as gpd
import networkx as nx
import numpy as np
import orjson
import osmnx
import pandas as pd
import pyproj
import requests
import shapely
from numpy.typing import NDArray

NETWORK_TYPES = ("all", "all_public", "bike", "drive", "drive_service", "walk")
"""The kinds of streets that osmnx tells apart."""

MIN_INTERVAL = 5
"""Metres; points of a smaller interval could share an id."""

OVERPASS_TIMEOUT = 180
"""Seconds that a query may take, osmnx's and Overpass's own default."""

COORDINATE_DECIMALS = 7
"""Decimals of a degree that OpenStreetMap stores, about a centimetre."""

_ID_CELLS_PER_DEGREE = 300_000

_SLACK = 0.2
"""Metres that the parts of a street stay below the interval. A point is moved by up to a
centimetre where its coordinates are rounded, and by a little more where the edge of the box,
a straight line in degrees, is a curve in the projected CRS."""

_osmnx_lock = threading.Lock()

Box = tuple[float, float, float, float]


class NoStreetsError(ValueError):
    """No street lies in a bounding box."""

    def __init__(self, box: Box, network_type: str | None) -> None:
        kind = f" of network type {network_type!r}" if network_type else ""
        super().__init__(
            f"No street{kind} lies in {_describe(box)}. Check the bounding box, take network "
            "type 'all', or name a streets file that covers the box."
        )


class OverpassError(Exception):
    """Overpass did not give the streets of a bounding box."""

    may_pass = True


class StreetsFileError(ValueError):
    """A file is no whole street network."""


def download_network(
    box: Box, network_type: str, *, overpass_url: str, cache_folder: Path
) -> nx.MultiDiGraph:
    """Download the streets that meet a box from Overpass, by osmnx.

    osmnx keeps each answer in `cache_folder` and asks once for the same box and network type.
    Nothing but `overpass_url` is contacted. A refusal is an error at once, where osmnx by
    itself would repeat the request every 55 seconds for as long as the server is busy.

    Parameters
    ----------
    box
        West, south, east, north in degrees (EPSG:4326).
    network_type
        One of `NETWORK_TYPES`.
    overpass_url
        Base URL of the Overpass API, such as https://overpass-api.de/api.
    cache_folder
        Made where it is missing.

    Returns
    -------
    network
        As `read_network` returns it. Ways that leave the box are whole.

    Raises
    ------
    OverpassError
        When Overpass cannot be reached, refuses, or gives less than the whole answer.
    StreetsFileError
        When an answer in `cache_folder` is not whole, as after a crash.
    """
    west, south, east, north = box
    margin = 0.001
    # osmnx divides a large area in a projected CRS, where a long parallel is a curve.
    # Vertices along the edges keep the parts from missing what lies in between.
    area = shapely.segmentize(
        shapely.box(west - margin, south - margin, east + margin, north + margin), 0.05
    )
    with _osmnx_configured(overpass_url, cache_folder):
        try:
            # osmnx.graph_from_polygon would drop a segment that crosses the box
            # and has both of its nodes outside.
            answers = list(osmnx._overpass._download_overpass_network(area, network_type, None))
        except requests.RequestException as error:
            raise OverpassError(
                f"Overpass gave no streets for {_describe(box)}: {error}. Run again later, or "
                "set OVERPASS_URL to another server."
            ) from error
        except json.JSONDecodeError as error:
            raise StreetsFileError(
                f"An answer for {_describe(box)} that osmnx keeps in {cache_folder} is not whole "
                f"({error}). Delete that folder and run again."
            ) from error
    return _build_network(
        (element for answer in answers for element in answer["elements"]), network_type
    )


def read_network(path: Path, network_type: str) -> nx.MultiDiGraph:
    """Read a street network from an OpenStreetMap extract, or from a graph that osmnx saved.

    Parameters
    ----------
    path
        An .osm, .osm.gz or .graphml file.
    network_type
        One of `NETWORK_TYPES`. Decides which ways of an extract are streets, by the filters
        that osmnx sends to Overpass. A .graphml file was filtered when it was made.

    Returns
    -------
    network
        Nodes with `x` and `y` in degrees (EPSG:4326). Edges with `osmid`, `name` where there
        is one, and `geometry` where the edge is not straight. Of an extract, each segment
        between two nodes of a way is an edge, in the way's own direction; parts of ways whose
        nodes are not in the extract are left out.

    Raises
    ------
    StreetsFileError
        When the file is none of these.
    """
    try:
        if path.suffix == ".graphml":
            network = osmnx.load_graphml(path)
            if osmnx.projection.is_projected(network.graph["crs"]):
                network = osmnx.project_graph(network, to_latlong=True)
            return network
        if path.suffix == ".osm":
            with path.open("rb") as file:
                return _build_network(_parse_extract(file), network_type)
        if path.name.endswith(".osm.gz"):
            with gzip.open(path, "rb") as file:
                return _build_network(_parse_extract(file), network_type)
    except (
        *(ElementTree.ParseError, gzip.BadGzipFile, zlib.error, EOFError),
        *(nx.NetworkXException, KeyError, ValueError),
    ) as error:
        raise StreetsFileError(
            f"{path} cannot be read as a street network ({error!r}). Get the file again."
        ) from error
    raise StreetsFileError(f"{path} is not an .osm, .osm.gz or .graphml file.")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause Python's collector of cycles, which would go over the whole network again and again
    while geometries are made of it, for a third of the time of `street_points`."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def street_points(
    network: nx.MultiDiGraph, box: Box, srid: int, interval: float
) -> gpd.GeoDataFrame:
    """Place points along all streets inside a box.

    A street is a way of OpenStreetMap from end to end, or between its forks, once whatever its
    directions. It is divided into equal parts shorter than the interval, and the middle of each
    part is a candidate. From the longest street to the shortest, a candidate becomes a point
    unless one stands within half an interval of it. Therefore

    - no place on a street inside the box is farther than `interval` from a point,
    - no two points are closer than `interval / 2`,
    - all points lie within the box, and
    - the same streets give the same points, ids and order, in whatever order they come.

    Parameters
    ----------
    network
        In degrees, as `read_network`, `download_network` and osmnx's own functions return it.
    box
        West, south, east, north in degrees (EPSG:4326).
    srid
        EPSG code of a projected CRS in metres; distances are measured in it.
    interval
        Metres, at least `MIN_INTERVAL`.

    Returns
    -------
    points
        `id` (int64, by position alone; below 2**53, so exact in JSON), `osmid` (int64, the
        OpenStreetMap way), `street` (its name, str or None) and `geometry` (Point, EPSG:4326,
        rounded to `COORDINATE_DECIMALS`), in the order of the ids, from south to north.

    Raises
    ------
    NoStreetsError
        When no street lies in the box.
    ValueError
        When the interval is too small, or a coordinate is not finite, in degrees or in `srid`.
    """
    if not interval >= MIN_INTERVAL:
        raise ValueError(f"The interval is {interval} m; it must be at least {MIN_INTERVAL} m.")
    pieces = _clip(_read_lines(network), box)
    if pieces.empty:
        raise NoStreetsError(box, network.graph.get("network_type"))
    projection = pyproj.Transformer.from_crs(4326, srid, always_xy=True)
    pieces["line"] = shapely.transform(
        pieces["line"].to_numpy(), projection.transform, interleaved=False
    )
    _require_finite(pieces["line"].to_numpy(), f"EPSG:{srid} cannot hold {_describe(box)}")
    streets = _merge(pieces)
    street, x, y = _divide(streets["line"].to_numpy(), interval - _SLACK)

    west, south, east, north = box
    lon, lat = projection.transform(x, y, direction="INVERSE")
    lon = lon.round(COORDINATE_DECIMALS).clip(west, east)
    lat = lat.round(COORDINATE_DECIMALS).clip(south, north)
    chosen = _thin(*projection.transform(lon, lat), interval / 2)

    lon, lat = lon[chosen], lat[chosen]
    streets = streets.iloc[street[chosen]]
    points = gpd.GeoDataFrame(
        {
            "id": _position_ids(lon, lat),
            "osmid": streets["osmid"].to_numpy(),
            "street": pd.Series(streets["name"].to_numpy(), dtype=object),
        },
        geometry=shapely.points(lon, lat),
        crs="EPSG:4326",
    )
    return points.sort_values("id", ignore_index=True)


def street_lines(network: nx.MultiDiGraph) -> NDArray[np.object_]:
    """Return the lines of a network's streets (shapely LineStrings, EPSG:4326), each once."""
    return _read_lines(network)["line"].to_numpy()


def _read_lines(network: nx.MultiDiGraph) -> pd.DataFrame:
    """Return `line`, `osmid` and `name` of the edges, each line once whatever its directions."""
    nodes = dict(network.nodes(data=True))
    edges, geometries, straight = [], [], []
    for node, neighbours in network.adjacency():
        for neighbour, parallel in neighbours.items():
            for data in parallel.values():
                edges.append(data)
                geometries.append(data.get("geometry"))
                if geometries[-1] is None:
                    start, end = nodes[node], nodes[neighbour]
                    straight.append((start["x"], start["y"], end["x"], end["y"]))
    lines = np.fromiter(geometries, object, len(edges))
    lines[shapely.is_missing(lines)] = shapely.linestrings(
        np.array(straight, dtype=float).reshape(-1, 2, 2)
    )
    lines = shapely.normalize(lines)
    # An edge that osmnx joined of several ways lists them, and their names, in any order.
    osmids = np.array(
        [min(way) if isinstance(way := data["osmid"], list) else way for data in edges],
        dtype=np.int64,
    )
    lowest_first = np.argsort(osmids, kind="stable")
    wkb = shapely.to_wkb(lines[lowest_first])
    once = lowest_first[~pd.Series(wkb, dtype=object).duplicated().to_numpy()]
    _require_finite(lines[once], "The street network has coordinates that are not finite")
    names = [edges[index].get("name") for index in once.tolist()]
    names = [min(name) if isinstance(name, list) else name for name in names]
    names = [name if isinstance(name, str) else None for name in names]
    return pd.DataFrame(
        {
            "line": lines[once],
            "osmid": osmids[once],
            "name": pd.Series(names, dtype=object),
        }
    )


def _clip(edges: pd.DataFrame, box: Box) -> pd.DataFrame:
    lines = edges["line"].to_numpy()
    west, south, east, north = box
    left, bottom, right, top = shapely.bounds(lines).T
    inside = (left >= west) & (bottom >= south) & (right <= east) & (top <= north)
    meets = (right >= west) & (top >= south) & (left <= east) & (bottom <= north)
    crossing = np.flatnonzero(meets & ~inside)
    # shapely.clip_by_rect would be faster, but drops what runs along the edge of the box.
    cut, origin = shapely.get_parts(
        shapely.intersection(lines[crossing], shapely.box(*box)), return_index=True
    )
    clipped = edges.iloc[np.concatenate([np.flatnonzero(inside), crossing[origin]])].copy()
    clipped["line"] = np.concatenate([lines[inside], cut])
    return clipped[shapely.length(clipped["line"].to_numpy()) > 0]


def _merge(pieces: pd.DataFrame) -> pd.DataFrame:
    """Join the pieces of each way where they meet end to end; the longest come first."""
    by_way = np.lexsort((*shapely.bounds(pieces["line"]).T, pieces["osmid"]))
    pieces = pieces.iloc[by_way]
    # A way has several names only where osmnx joined it with others.
    names = pieces.drop_duplicates("osmid").set_index("osmid")["name"]
    several = pieces["osmid"].duplicated(keep=False)
    osmids, way = np.unique(pieces["osmid"][several], return_inverse=True)
    merged, origin = shapely.get_parts(
        shapely.line_merge(
            shapely.multilinestrings(pieces["line"][several].to_numpy(), indices=way)
        ),
        return_index=True,
    )
    lines = np.concatenate([pieces["line"][~several], merged])
    osmids = np.concatenate([pieces["osmid"][~several], osmids[origin]])
    longest_first = np.lexsort((*shapely.bounds(lines).T, osmids, -shapely.length(lines)))
    lines, osmids = lines[longest_first], osmids[longest_first]
    names = pd.Series(names.loc[osmids].to_numpy(), dtype=object)
    return pd.DataFrame({"line": lines, "osmid": osmids, "name": names})


def _divide(
    lines: NDArray[np.object_], longest: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Divide lines into equal parts up to `longest`.

    Returns
    -------
    line, x, y
        Of each part the index of its line, and its middle.
    """
    vertices, owner = shapely.get_coordinates(lines, return_index=True)
    # End to end and a metre apart, all lines are one, on which a place is one number.
    steps = np.where(np.diff(owner), 1, np.hypot(*np.diff(vertices, axis=0).T))
    along = np.concatenate([[0], steps.cumsum()])
    start = along[np.searchsorted(owner, np.arange(len(lines)))]
    lengths = shapely.length(lines)
    parts = np.ceil(lengths / longest).astype(np.int64)
    line = np.repeat(np.arange(len(lines)), parts)
    part = np.arange(len(line)) - np.repeat(parts.cumsum() - parts, parts)
    middle = start[line] + (part + 0.5) * (lengths / parts)[line]
    x, y = (np.interp(middle, along, coordinate) for coordinate in vertices.T)
    return line, x, y


def _thin(x: NDArray[np.float64], y: NDArray[np.float64], distance: float) -> NDArray[np.bool_]:
    """Choose points at least `distance` apart, each other one being nearer to a chosen one.

    The choice is that of going through the points in order and taking each that is not too
    near to one taken before. It is made in few rounds: in each, the points with no undecided
    one before them are taken, and those too near to them given up.
    """
    # A thousandth of a millimetre more, lest two chosen points measure less for rounding.
    earlier, later = _near_pairs(x, y, distance + 1e-6)
    chosen = np.ones(len(x), dtype=bool)
    while earlier.size:
        first = np.ones(len(x), dtype=bool)
        first[later] = False
        chosen[later[first[earlier]]] = False
        undecided = chosen[earlier] & chosen[later]
        earlier, later = earlier[undecided], later[undecided]
    return chosen


def _near_pairs(
    x: NDArray[np.float64], y: NDArray[np.float64], distance: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of points nearer than `distance`, the lower index first.

    Points are sorted into square cells of that size: a pair shares a cell, or its cells touch.
    On arrays this is several times faster than an STRtree of as many geometries.
    """
    column, row = (np.floor(values / distance).astype(np.int64) for values in (x, y))
    height = np.ptp(row) + 2
    cell = column * height + row
    order = np.argsort(cell, kind="stable")
    cell = cell[order]
    position = np.arange(len(cell))
    pairs = []
    for offset in (0, 1, height - 1, height, height + 1):
        start = np.searchsorted(cell, cell + offset, "left") if offset else position + 1
        count = np.searchsorted(cell, cell + offset, "right") - start
        one = np.repeat(position, count)
        other = np.arange(len(one)) + np.repeat(start - count.cumsum() + count, count)
        one, other = order[one], order[other]
        near = np.hypot(x[one] - x[other], y[one] - y[other]) < distance
        pairs.append(np.sort([one[near], other[near]], axis=0))
    earlier, later = np.concatenate(pairs, axis=1)
    return earlier, later


def _position_ids(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the cells of a grid over the world, at most 37 cm wide, row by row from the south."""
    columns = 360 * _ID_CELLS_PER_DEGREE + 1
    column = np.floor((lon + 180) * _ID_CELLS_PER_DEGREE).astype(np.int64)
    row = np.floor((lat + 90) * _ID_CELLS_PER_DEGREE).astype(np.int64)
    return row * columns + column


def _require_finite(lines: NDArray[np.object_], otherwise: str) -> None:
    if not np.isfinite(shapely.get_coordinates(lines)).all():
        raise ValueError(f"{otherwise}.")


def _describe(box: Box) -> str:
    west, south, east, north = box
    return f"the box west {west}, south {south}, east {east}, north {north} (degrees)"


def _parse_extract(file: IO[bytes] | gzip.GzipFile) -> Iterator[dict[str, Any]]:
    """Read nodes and ways of OSM XML as the elements of an Overpass answer."""
    for _, element in ElementTree.iterparse(file):
        if element.tag == "node" and "lat" in element.attrib:
            yield {
                "type": "node",
                "id": int(element.attrib["id"]),
                "lon": float(element.attrib["lon"]),
                "lat": float(element.attrib["lat"]),
            }
        elif element.tag == "way":
            yield {
                "type": "way",
                "id": int(element.attrib["id"]),
                "nodes": [int(node.attrib["ref"]) for node in element.iterfind("nd")],
                "tags": {tag.attrib["k"]: tag.attrib["v"] for tag in element.iterfind("tag")},
            }
        if element.tag in {"node", "way", "relation"}:
            element.clear()


def _build_network(elements: Iterator[dict[str, Any]], network_type: str) -> nx.MultiDiGraph:
    positions = {}
    ways = {}
    for element in elements:
        if element["type"] == "node":
            positions[element["id"]] = {"x": element["lon"], "y": element["lat"]}
        elif element["type"] == "way":
            ways[element["id"]] = element
    rules = _tag_rules(network_type)
    network = nx.MultiDiGraph(crs="EPSG:4326", network_type=network_type)
    for osmid, way in ways.items():
        tags = way.get("tags", {})
        if not all(_obeys(tags, *rule) for rule in rules):
            continue
        name = {"name": tags["name"]} if "name" in tags else {}
        for known, nodes in groupby(way["nodes"], positions.__contains__):
            if known:
                nx.add_path(network, nodes, osmid=osmid, **name)
    nx.set_node_attributes(network, {node: positions[node] for node in network})
    return network


def _tag_rules(network_type: str) -> list[tuple[str, str]]:
    """Return the tags that osmnx demands of a street, each with a pattern it must not match.

    osmnx writes them as a filter for Overpass, such as `["highway"]["area"!~"yes"]`; an empty
    pattern here means that the tag must be there.
    """
    return re.findall(
        r'\["([^"]+)"(?:!~"([^"]+)")?\]', osmnx._overpass._get_network_filter(network_type)
    )


def _obeys(tags: dict[str, str], key: str, pattern: str) -> bool:
    return not re.search(pattern, tags.get(key, "")) if pattern else key in tags


@contextmanager
def _osmnx_configured(overpass_url: str, cache_folder: Path) -> Iterator[None]:
    """Set osmnx's settings, which are those of the whole process, for a while."""
    agent = f"vsvi-assets/{version('vsvi-assets')}"
    settings = {
        "overpass_url": overpass_url,
        "overpass_rate_limit": False,
        "doh_url_template": None,
        "use_cache": True,
        "cache_folder": cache_folder,
        "http_user_agent": agent,
        "http_referer": agent,
        "requests_timeout": OVERPASS_TIMEOUT,
        "requests_kwargs": {"hooks": {"response": _require_whole}},
        "log_console": False,
        "log_file": False,
    }
    with _osmnx_lock:
        before = {name: getattr(osmnx.settings, name) for name in settings}
        # osmnx replaces it by a function that pins the server's address.
        getaddrinfo = socket.getaddrinfo
        try:
            for name, value in settings.items():
                setattr(osmnx.settings, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(osmnx.settings, name, value)
            socket.getaddrinfo = getaddrinfo


def _require_whole(response: requests.Response, **_: object) -> None:
    """Raise unless a response is a whole answer, before it is followed, repeated or kept."""
    where = f"{response.url} answered"
    if response.status_code != 200:
        raise requests.HTTPError(
            f"{where} HTTP {response.status_code} {response.reason}", response=response
        )
    try:
        answer = orjson.loads(response.content)
    except orjson.JSONDecodeError as error:
        raise requests.RequestException(f"{where} with what is no JSON: {error}") from error
    if not isinstance(answer, dict) or "elements" not in answer:
        raise requests.RequestException(f"{where} without any elements")
    if "remark" in answer:
        raise requests.RequestException(f"{where} in part: {answer['remark']}")
