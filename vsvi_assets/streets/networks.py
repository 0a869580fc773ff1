"""Street networks as tables of lines: of OpenStreetMap, of graphs, of any file of lines.

A table of streets (GeoDataFrame, EPSG:4326) has a row for each line: `osmid` (int64, the way of
OpenStreetMap), `name` and `highway` (str or None) and `geometry` (LineString). A line is a segment
between two nodes of a way, an edge of a graph, or a line of a file; each is there once, whatever
its directions.
"""

import gzip
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

import geopandas as gpd
import networkx as nx
import numpy as np
import orjson
import osmnx
import pandas as pd
import pyogrio
import shapely
from numpy.typing import NDArray
from shapely.affinity import translate

from vsvi_assets.city import CityFileError
from vsvi_assets.city.vector_files import read_features
from vsvi_assets.streets.errors import Box, StreetsFileError
from vsvi_assets.streets.network_types import is_street

OSM_DECIMALS = 7
"""Of a degree, in which OpenStreetMap stores positions; GDAL multiplies them, which is inexact."""

_BLOCK_BYTES = 65_536

Floats = NDArray[np.float64]
Lines = NDArray[np.object_]


def read_streets(
    path: Path, network_type: str, *, box: Box | None = None, layer: str | None = None
) -> gpd.GeoDataFrame:
    """Read the streets of an OpenStreetMap extract, a graph that osmnx saved, or a file of lines.

    Parameters
    ----------
    path
        An .osm, .osm.gz, .osm.pbf or .graphml file, or one of lines that GDAL reads, in any CRS.
    network_type
        One of `NETWORK_TYPES`. Decides which ways of an extract are streets. In other files all
        lines are.
    box
        Streets that do not meet it may be left out: of an .osm.pbf file, which may be that of a
        country, they are.
    layer
        Of a file of lines that has several.

    Returns
    -------
    streets
        A table of streets. Parts of ways whose nodes are not in the extract are left out. Lines
        of a file have the `highway`, `name` and `osmid` (or `osm_id`) of its columns; where they
        have no id, they are numbered from 1.

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
        if path.suffix == ".pbf":
            return _read_pbf(path, network_type, box)
        return _streets_of_lines(
            read_features(path, "streets_file", layer), f"streets_file = {path}"
        )
    except CityFileError as error:
        raise StreetsFileError(f"{error}.") from error
    except (
        *(expat.ExpatError, gzip.BadGzipFile, zlib.error, EOFError),
        *(nx.NetworkXException, KeyError, OverflowError, ValueError),
        *(pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError),
    ) as error:
        raise StreetsFileError(
            f"{path} cannot be read as a street network ({error!r}). Get the file again."
        ) from error


def _read_pbf(path: Path, network_type: str, box: Box | None) -> gpd.GeoDataFrame:
    """Read an extract in OpenStreetMap's binary format, by GDAL's driver for it.

    The positions of nodes that the driver does not keep in 100 MB it keeps in a temporary file,
    and only ways that meet the box come back; so a country needs little memory.
    """
    info, _, shapes, columns = pyogrio.raw.read(
        path,
        layer="lines",
        columns=["osm_id", "name", "highway", "other_tags"],
        bbox=box,
        where="highway IS NOT NULL",
        TAGS_FORMAT="JSON",
    )
    ways = dict(zip(info["fields"], columns, strict=True))
    highways = ways["highway"]
    kept = np.array(
        [
            is_street({"highway": highway, **orjson.loads(other or "{}")}, network_type)
            for highway, other in zip(highways, ways["other_tags"], strict=True)
        ],
        bool,
    )
    vertices, way = shapely.get_coordinates(shapely.from_wkb(shapes[kept]), return_index=True)
    begins = np.flatnonzero(way[1:] == way[:-1])
    vertices = vertices.round(OSM_DECIMALS)
    return _table(
        shapely.linestrings(np.stack([vertices[begins], vertices[begins + 1]], axis=1)),
        ways["osm_id"][kept].astype(np.int64)[way[begins]],
        ways["name"][kept][way[begins]],
        highways[kept][way[begins]],
    )


def _streets_of_lines(table: gpd.GeoDataFrame, what: str) -> gpd.GeoDataFrame:
    """Return the streets of a file of lines; raise CityFileError for other features or ids."""
    lines, row = shapely.get_parts(table.geometry.to_numpy(), return_index=True)
    kinds = {line.geom_type for line in lines} - {"LineString"}
    if kinds:
        raise CityFileError(f"{what}: streets are lines, and there is a {min(kinds)} among them")
    columns = {str(name).lower(): table[name] for name in table.columns}
    ids = columns.get("osmid", columns.get("osm_id"))
    osmids = np.arange(1, len(table) + 1) if ids is None else _whole_numbers(ids, what)
    nothing = pd.Series(None, index=table.index, dtype=object)

    def texts(name: str) -> NDArray[np.object_]:
        column = columns.get(name, nothing).astype(object)
        return column.where(column.notna(), None).to_numpy()[row]

    long_enough = shapely.length(lines) > 0
    return _table(
        lines[long_enough],
        osmids[row][long_enough],
        texts("name")[long_enough],
        texts("highway")[long_enough],
    )


def _whole_numbers(ids: pd.Series, what: str) -> NDArray[np.int64]:
    numbers = pd.to_numeric(ids, errors="coerce").astype(object)
    whole = numbers.map(lambda number: number % 1 == 0 and abs(number) < 2**63).astype(bool)
    if not whole.all():
        line = int(np.flatnonzero(~whole)[0])
        raise CityFileError(
            f"{what}: {ids.name} must be a whole number, and is {ids.iloc[line]!s:.40} at line "
            f"{line + 1} of {len(ids)}; without that column, lines are numbered"
        )
    return numbers.to_numpy(np.int64)


def streets_of_graph(graph: nx.MultiDiGraph) -> gpd.GeoDataFrame:
    """Return the streets of a graph as osmnx makes it, in degrees.

    An edge that osmnx joined from several ways gets the lowest of their ids, and the first of
    their names and of their classes.

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
    names, highways = (
        np.fromiter((_text(data.get(tag)) for data in edges), object, len(edges))
        for tag in ("name", "highway")
    )
    return _table(lines, osmids, names, highways)


def _parallel(neighbours: Mapping[Any, Mapping[Any, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for edges in neighbours.values():
        yield from edges.values()


def _first(value: Any) -> Any:
    return min(value) if isinstance(value, list) else value


def _text(value: object) -> str | None:
    text = _first(value)
    return text if isinstance(text, str) else None


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
    osmids, lengths, references = array("q"), array("q"), array("q")
    names: list[str | None] = []
    highways: list[str] = []
    for element in elements:
        if element["type"] == "node":
            node_ids.append(element["id"])
            lon.append(element["lon"])
            lat.append(element["lat"])
        elif element["type"] == "way" and is_street(tags := element.get("tags", {}), network_type):
            osmids.append(element["id"])
            names.append(tags.get("name"))
            highways.append(tags["highway"])
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
        lines,
        np.asarray(osmids)[way[begins]],
        np.array(names, dtype=object)[way[begins]],
        np.array(highways, dtype=object)[way[begins]],
    )


def _parse_extract(file: IO[bytes] | gzip.GzipFile) -> Iterator[dict[str, Any]]:
    """Read nodes and ways of OSM XML as the elements of an Overpass answer."""
    elements: list[dict[str, Any]] = []
    way: dict[str, Any] | None = None

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal way
        if name == "nd":
            if way:
                way["nodes"].append(int(attributes["ref"]))
        elif name == "tag":
            if way:
                way["tags"][attributes["k"]] = attributes["v"]
        elif name == "way":
            way = {"type": "way", "id": int(attributes["id"]), "nodes": [], "tags": {}}
            elements.append(way)
        else:
            way = None
            if name == "node" and "lat" in attributes:
                lon, lat = float(attributes["lon"]), float(attributes["lat"])
                node_id = int(attributes["id"])
                elements.append({"type": "node", "id": node_id, "lon": lon, "lat": lat})

    # ElementTree makes an object of each tag, for which it takes twice the time.
    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    while data := file.read(_BLOCK_BYTES):
        parser.Parse(data)
        # The last may be a way whose end is to come.
        yield from elements[:-1]
        del elements[:-1]
    parser.Parse(b"", True)
    yield from elements


def _table(
    lines: Lines,
    osmids: NDArray[np.int64],
    names: NDArray[np.object_],
    highways: NDArray[np.object_],
) -> gpd.GeoDataFrame:
    """Make the table of streets, each line once; of equal ones that of the lowest way stays."""
    if not np.isfinite(shapely.get_coordinates(lines)).all():
        raise ValueError("The street network has coordinates that are not finite.")
    lines, origin = _cut_at_antimeridian(shapely.normalize(lines))
    osmids, names, highways = osmids[origin], names[origin], highways[origin]
    lowest_first = np.argsort(osmids, kind="stable")
    wkb = pd.Series(shapely.to_wkb(lines[lowest_first]), dtype=object)
    once = lowest_first[~wkb.duplicated().to_numpy()]
    return gpd.GeoDataFrame(
        {
            "osmid": osmids[once],
            "name": pd.Series(names[once], dtype=object),
            "highway": pd.Series(highways[once], dtype=object),
        },
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
