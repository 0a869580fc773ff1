"""Street networks as tables of lines: from extracts and answers of OpenStreetMap, from graphs.

A table of streets (GeoDataFrame, EPSG:4326) has a row for each line: `osmid` (int64, the way of
OpenStreetMap), `name` (str or None) and `geometry` (LineString). A line is a segment between two
nodes of a way or, from a graph, an edge; each is there once, whatever its directions.
"""

import gzip
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import geopandas as gpd
import networkx as nx
import numpy as np
import osmnx
import pandas as pd
import shapely
from numpy.typing import NDArray
from shapely.affinity import translate

from vsvi_assets.streets.errors import StreetsFileError
from vsvi_assets.streets.network_types import is_street

Floats = NDArray[np.float64]
Lines = NDArray[np.object_]


def read_streets(path: Path, network_type: str) -> gpd.GeoDataFrame:
    """Read the streets of an OpenStreetMap extract, or of a graph that osmnx saved.

    Parameters
    ----------
    path
        An .osm, .osm.gz or .graphml file.
    network_type
        One of `NETWORK_TYPES`. Decides which ways of an extract are streets. A .graphml file
        was filtered when it was made.

    Returns
    -------
    streets
        A table of streets. Parts of ways whose nodes are not in the extract are left out.

    Raises
    ------
    StreetsFileError
        When the file is none of these.
    """
    try:
        if path.suffix == ".graphml":
            graph = osmnx.load_graphml(path)
            if osmnx.projection.is_projected(graph.graph["crs"]):
                graph = osmnx.project_graph(graph, to_latlong=True)
            return streets_of_graph(graph)
        if path.suffix == ".osm":
            with path.open("rb") as file:
                return streets_of_elements(_parse_extract(file), network_type)
        if path.name.endswith(".osm.gz"):
            with gzip.open(path, "rb") as file:
                return streets_of_elements(_parse_extract(file), network_type)
    except (
        *(ElementTree.ParseError, gzip.BadGzipFile, zlib.error, EOFError),
        *(nx.NetworkXException, KeyError, ValueError),
    ) as error:
        raise StreetsFileError(
            f"{path} cannot be read as a street network ({error!r}). Get the file again."
        ) from error
    raise StreetsFileError(f"{path} is not an .osm, .osm.gz or .graphml file.")


def streets_of_graph(graph: nx.MultiDiGraph) -> gpd.GeoDataFrame:
    """Return the streets of a graph as osmnx makes it, in degrees.

    An edge that osmnx joined from several ways gets the lowest of their ids, and the first of
    their names.

    Raises
    ------
    ValueError
        When a coordinate is not finite.
    """
    edges = [data for _, neighbours in graph.adjacency() for data in _parallel(neighbours)]
    lines = np.fromiter((data.get("geometry") for data in edges), object, len(edges))
    straight = shapely.is_missing(lines)
    number = {node: position for position, node in enumerate(graph)}
    ends = np.fromiter(
        (
            number[node]
            for start, neighbours in graph.adjacency()
            for end, parallel in neighbours.items()
            for node in (start, end) * len(parallel)
        ),
        np.int64,
        2 * len(edges),
    ).reshape(-1, 2)
    positions = np.column_stack(
        [
            np.fromiter((place[axis] for place in graph.nodes.values()), np.float64, len(graph))
            for axis in ("x", "y")
        ]
    )
    lines[straight] = shapely.linestrings(positions[ends[straight]])
    osmids = np.fromiter((_first(data["osmid"]) for data in edges), np.int64, len(edges))
    names = np.fromiter((_name(data.get("name")) for data in edges), object, len(edges))
    return _table(lines, osmids, names)


def _parallel(neighbours: Mapping[Any, Mapping[Any, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for edges in neighbours.values():
        yield from edges.values()


def _first(value: Any) -> Any:
    return min(value) if isinstance(value, list) else value


def _name(value: object) -> str | None:
    name = _first(value)
    return name if isinstance(name, str) else None


def streets_of_elements(
    elements: Iterable[Mapping[str, Any]], network_type: str
) -> gpd.GeoDataFrame:
    """Return the streets among the elements of an Overpass answer (`[out:json]`), in any order.

    Parts of ways whose nodes are not among the elements are left out.

    Raises
    ------
    ValueError
        When a coordinate is not finite.
    """
    node_ids, lon, lat = array("q"), array("d"), array("d")
    osmids, names, lengths, references = array("q"), [], array("q"), array("q")
    for element in elements:
        if element["type"] == "node":
            node_ids.append(element["id"])
            lon.append(element["lon"])
            lat.append(element["lat"])
        elif element["type"] == "way" and is_street(tags := element.get("tags", {}), network_type):
            osmids.append(element["id"])
            names.append(tags.get("name"))
            lengths.append(len(element["nodes"]))
            references.extend(element["nodes"])
    known, position = np.unique(np.asarray(node_ids), return_index=True)
    positions = np.column_stack([lon, lat])[position]
    way = np.repeat(np.arange(len(osmids)), lengths)
    wanted = np.asarray(references)
    node = np.searchsorted(known, wanted).clip(max=max(len(known) - 1, 0))
    there = known[node] == wanted if len(known) else np.zeros(len(wanted), bool)
    begins = np.flatnonzero((way[1:] == way[:-1]) & there[1:] & there[:-1])
    lines = shapely.linestrings(positions[np.column_stack([node[begins], node[begins + 1]])])
    return _table(
        lines, np.asarray(osmids)[way[begins]], np.array(names, dtype=object)[way[begins]]
    )


def _parse_extract(file: IO[bytes] | gzip.GzipFile) -> Iterator[dict[str, Any]]:
    """Read nodes and ways of OSM XML as the elements of an Overpass answer."""
    events = ElementTree.iterparse(file, events=("start", "end"))
    _, root = next(events)
    for event, element in events:
        if event == "start" or element.tag not in {"node", "way", "relation"}:
            continue
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
        # Otherwise all elements would stay in memory.
        root.clear()


def _table(lines: Lines, osmids: NDArray[np.int64], names: NDArray[np.object_]) -> gpd.GeoDataFrame:
    """Make the table of streets, each line once; of equal ones that of the lowest way stays."""
    if not np.isfinite(shapely.get_coordinates(lines)).all():
        raise ValueError("The street network has coordinates that are not finite.")
    lines, origin = _cut_at_antimeridian(shapely.normalize(lines))
    osmids, names = osmids[origin], names[origin]
    lowest_first = np.argsort(osmids, kind="stable")
    wkb = pd.Series(shapely.to_wkb(lines[lowest_first]), dtype=object)
    once = lowest_first[~wkb.duplicated().to_numpy()]
    return gpd.GeoDataFrame(
        {"osmid": osmids[once], "name": pd.Series(names[once], dtype=object)},
        geometry=lines[once],
        crs="EPSG:4326",
    )


def _cut_at_antimeridian(lines: Lines) -> tuple[Lines, NDArray[np.int64]]:
    """Cut the lines that cross the antimeridian there, since a pair of longitudes more than 180°
    apart means the shorter way; return of each line also the index of the one it comes from."""
    vertices, owner = shapely.get_coordinates(lines, return_index=True)
    jumps = (np.abs(np.diff(vertices[:, 0])) > 180) & (np.diff(owner) == 0)
    crossing = np.unique(owner[1:][jumps])
    if not crossing.size:
        return lines, np.arange(len(lines))
    pieces, origin = [np.delete(lines, crossing)], [np.delete(np.arange(len(lines)), crossing)]
    for index in crossing:
        line = shapely.force_2d(lines[index])
        unwrapped = shapely.transform(
            line, lambda xy: np.column_stack([np.unwrap(xy[:, 0], period=360), xy[:, 1]])
        )
        for degrees in (-360, 0, 360):
            moved = translate(unwrapped, degrees)
            inside = shapely.get_parts(shapely.intersection(moved, shapely.box(-180, -90, 180, 90)))
            inside = inside[shapely.length(inside) > 0]
            pieces.append(inside)
            origin.append(np.full(len(inside), index))
    return shapely.normalize(np.concatenate(pieces)), np.concatenate(origin)
