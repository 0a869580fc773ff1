"""Points along streets: what is promised of them, on random, generated and real networks."""

import gzip
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import get_args

import geopandas as gpd
import networkx as nx
import numpy as np
import osmnx
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal
from hypothesis import given, settings
from hypothesis import strategies as st

from vsvi_assets.city import City
from vsvi_assets.sandbox import Sandbox
from vsvi_assets.sandbox.demo import demo_world
from vsvi_assets.sandbox.faults import Fault, Faults
from vsvi_assets.sandbox.world import World
from vsvi_assets.streets import (
    NETWORK_TYPES,
    Box,
    NoStreetsError,
    OverpassError,
    StreetsFileError,
    download_network,
    read_network,
    street_points,
)

BOX = (4.90, 52.36, 4.91, 52.37)


# What is promised


def streets_inside(network: nx.MultiDiGraph, box: Box, srid: int) -> gpd.GeoSeries:
    """Clip each edge to the box, by shapely alone, and project it."""
    edges = osmnx.graph_to_gdfs(network, nodes=False).geometry.force_2d()
    parts = edges.intersection(shapely.box(*box)).explode(ignore_index=True)
    parts = parts[shapely.length(parts.to_numpy()) > 0]
    return parts.set_crs(4326, allow_override=True).to_crs(srid)


def assert_promises(
    network: nx.MultiDiGraph, box: Box, srid: int, interval: float
) -> gpd.GeoDataFrame:
    """Check all that `street_points` promises of one network; return the points."""
    inside = streets_inside(network, box, srid)
    if inside.empty:
        with pytest.raises(NoStreetsError):
            street_points(network, box, srid, interval)
        return gpd.GeoDataFrame()
    points = street_points(network, box, srid, interval)

    west, south, east, north = box
    assert points.geometry.x.between(west, east).all()
    assert points.geometry.y.between(south, north).all()

    tree = shapely.STRtree(points.to_crs(srid).geometry.to_numpy())
    places = shapely.points(shapely.get_coordinates(inside.segmentize(interval / 25).to_numpy()))
    assert tree.query_nearest(places, return_distance=True)[1].max() <= interval
    _, gaps = tree.query_nearest(tree.geometries, exclusive=True, return_distance=True)
    assert (gaps >= interval / 2).all()

    assert points["id"].is_unique
    assert points["id"].is_monotonic_increasing
    assert points["id"].between(0, 2**53 - 1).all()
    ways = {
        (way, name)
        for *_, data in network.edges(data=True)
        for way in _all(data["osmid"])
        for name in _all(data.get("name"))
    }
    assert set(zip(points["osmid"], points["street"], strict=True)) <= ways

    assert_geodataframe_equal(points, street_points(_shuffled(network), box, srid, interval))
    return points


def _all(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _shuffled(network: nx.MultiDiGraph) -> nx.MultiDiGraph:
    """Give the same network with nodes, edges and lists of ways in another order."""
    chance = random.Random(1)
    shuffled = nx.MultiDiGraph(**network.graph)
    nodes = list(network.nodes(data=True))
    edges = list(network.edges(data=True))
    chance.shuffle(nodes)
    chance.shuffle(edges)
    shuffled.add_nodes_from(nodes)
    for one, other, data in edges:
        data = {
            key: value[::-1] if isinstance(value, list) else value for key, value in data.items()
        }
        shuffled.add_edge(one, other, **data)
    return shuffled


@st.composite
def networks(draw: st.DrawFn) -> tuple[nx.MultiDiGraph, Box, int]:
    """Draw a network, a box that cuts it, and an SRID.

    Positions lie on a grid of about 30 m or beside it, so that streets touch, overlap, cross
    themselves, run along the edge of the box, and have no length. Some have more decimals
    than points have.
    """
    lon, lat, srid = draw(
        st.sampled_from(
            [
                (4.900000043, 52.370000043, 32631),
                (4.9, 52.37, 28992),
                (-54.600000043, -20.450000043, 32721),
                (25.7, 66.5, 3067),
            ]
        )
    )
    step = 0.0004
    grid = st.integers(-12, 12)
    offset = grid | st.floats(-12, 12, allow_nan=False)
    position = st.tuples(offset, offset).map(lambda o: (lon + o[0] * step, lat + o[1] * step))

    network = nx.MultiDiGraph(crs="EPSG:4326")
    places = draw(st.lists(position, min_size=2, max_size=9))
    for node, (x, y) in enumerate(places):
        network.add_node(node, x=x, y=y)
    end = st.integers(0, len(places) - 1)
    edge = st.tuples(end, end, st.lists(position, max_size=3), st.integers(1, 6), st.booleans())
    for one, other, between, way, two_way in draw(st.lists(edge, min_size=1, max_size=14)):
        tags = {"osmid": way} | ({"name": f"Street {way // 2}"} if way > 2 else {})
        line = shapely.LineString([places[one], *between, places[other]])
        line = shapely.force_3d(line, 7.0) if way == 6 else line
        network.add_edge(one, other, **tags, **({"geometry": line} if between else {}))
        if two_way:
            back = {"geometry": line.reverse()} if between else {}
            network.add_edge(other, one, **tags, **back)

    west, east = sorted(draw(st.lists(grid, min_size=2, max_size=2, unique=True)))
    south, north = sorted(draw(st.lists(grid, min_size=2, max_size=2, unique=True)))
    box = (lon + west * step, lat + south * step, lon + east * step, lat + north * step)
    return network, box, srid


@given(networks(), st.sampled_from([5, 12.5, 50, 300]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_promises_on_random_networks(
    drawn: tuple[nx.MultiDiGraph, Box, int], interval: float
) -> None:
    assert_promises(*drawn, interval)


@pytest.mark.parametrize("interval", [10, 50])
def test_promises_on_a_generated_city(interval: float, tmp_path: Path) -> None:
    box = (5.204, 52.521, 5.218, 52.532)
    with Sandbox(demo_world()) as sandbox:
        network = download_network(
            box, "all", overpass_url=sandbox.overpass_url, cache_folder=tmp_path
        )
    points = assert_promises(network, box, 28992, interval)
    assert len(points) > 10_000 / interval


REAL_NETWORKS = {
    "monaco.osm.gz": ((7.405, 43.72, 7.44, 43.75), 32632),
    "Delft.graphml": ((4.33, 51.98, 4.38, 52.02), 28992),
    "campo-grande.osm.gz": ((-54.6, -20.5, -54.57, -20.46), 32721),
}


@pytest.mark.parametrize("interval", [5, 50])
@pytest.mark.parametrize("file", REAL_NETWORKS)
def test_promises_on_real_networks(file: str, interval: float) -> None:
    network = read_network(real_data(file), "all")
    assert len(assert_promises(network, *REAL_NETWORKS[file], interval)) > 10_000 / interval


def real_data(name: str) -> Path:
    """Return a recorded file, in the folder that VSVI_REAL_DATA names."""
    folder = os.environ.get("VSVI_REAL_DATA")
    if not folder or not (path := Path(folder, "osm", name)).is_file():
        pytest.skip(f"VSVI_REAL_DATA names no folder with osm/{name}")
    return path


def line_network(*lines: list[tuple[float, float]], **data: object) -> nx.MultiDiGraph:
    """Make one two-way street of each line, numbered from 1."""
    network = nx.MultiDiGraph(crs="EPSG:4326")
    for osmid, line in enumerate(lines, 1):
        ends = [(osmid, end) for end in (0, -1)]
        for node in ends:
            network.add_node(node, x=line[node[1]][0], y=line[node[1]][1])
        geometry = shapely.LineString(line)
        network.add_edge(*ends, osmid=osmid, geometry=geometry, **data)
        network.add_edge(*ends[::-1], osmid=osmid, geometry=geometry.reverse(), **data)
    return network


def test_points_stand_at_even_distances() -> None:
    points = street_points(line_network([(4.901, 52.365), (4.909, 52.365)]), BOX, 32631, 50)

    gaps = np.diff(np.sort(points.to_crs(32631).geometry.x))
    assert len(points) == 11
    assert gaps == pytest.approx(np.full(10, gaps.mean()), abs=0.02)


def test_directions_make_no_difference() -> None:
    both = line_network([(4.901, 52.365), (4.903, 52.366), (4.909, 52.362)], name="Laan")
    one_way = both.copy()
    one_way.remove_edge((1, -1), (1, 0))

    assert_geodataframe_equal(
        street_points(both, BOX, 32631, 50), street_points(one_way, BOX, 32631, 50)
    )


def in_segments(line: list[tuple[float, float]], osmid: int) -> nx.MultiDiGraph:
    """Make one two-way street of a line, with an edge for each of its segments."""
    network = nx.MultiDiGraph(crs="EPSG:4326")
    network.add_nodes_from((position, {"x": position[0], "y": position[1]}) for position in line)
    nx.add_path(network, line, osmid=osmid)
    nx.add_path(network, line[::-1], osmid=osmid)
    return network


def test_segments_of_a_way_are_one_street() -> None:
    line = [(4.901, 52.365), (4.9013, 52.3652), (4.9017, 52.3652), (4.905, 52.366), (4.909, 52.362)]

    assert_geodataframe_equal(
        street_points(in_segments(line, 1), BOX, 32631, 50),
        street_points(line_network(line), BOX, 32631, 50),
    )


def test_segments_of_a_roundabout_are_one_ring() -> None:
    angles = np.linspace(0, 2 * np.pi, 13)
    ring = list(zip(4.905 + 0.001 * np.cos(angles), 52.365 + 0.0006 * np.sin(angles), strict=True))
    ring[-1] = ring[0]
    points = assert_promises(in_segments(ring, 1), BOX, 32631, 50)

    assert len(points) == 9


def test_a_ring_has_no_first_segment() -> None:
    """Of an hourglass, two segments reach equally far in every direction."""
    corners = [(4.903, 52.363), (4.907, 52.367), (4.903, 52.367), (4.907, 52.363), (4.903, 52.363)]
    for turn in range(4):
        ring = corners[turn:4] + corners[: turn + 1]
        assert_geodataframe_equal(
            street_points(in_segments(ring, 1), BOX, 32631, 50),
            street_points(in_segments(corners, 1), BOX, 32631, 50),
        )


def test_a_way_that_was_joined_with_others_has_one_name() -> None:
    one, other = [(4.901, 52.365), (4.905, 52.365)], [(4.905, 52.365), (4.909, 52.364)]
    edges = [(*one, {"osmid": [1, 2], "name": "Weg"}), (*other, {"osmid": [3, 1], "name": "Laan"})]
    networks = []
    for order in (1, -1):
        network = in_segments([*one, other[1]][::order], 1)
        network.clear_edges()
        network.add_edges_from(edges[::order])
        networks.append(street_points(network, BOX, 32631, 50))

    assert networks[0]["street"].nunique() == 1
    assert_geodataframe_equal(*networks)


def test_streets_along_the_edge_of_the_box_have_their_points_inside() -> None:
    box = (4.900000043, 52.360000043, 4.909999957, 52.369999957)
    rim = list(shapely.box(*box).exterior.coords)
    assert_promises(in_segments(rim, 1), box, 32631, 50)


def test_short_streets_leave_long_ones_even() -> None:
    street = [(4.901, 52.365), (4.909, 52.365)]
    stubs = [[(4.9015 + 0.0007 * n, 52.365), (4.9015 + 0.0007 * n, 52.3653)] for n in range(10)]
    alone = street_points(in_segments(street, 99), BOX, 32631, 50)
    beside = street_points(
        nx.compose(in_segments(street, 99), line_network(*stubs)), BOX, 32631, 50
    )

    assert set(alone["id"]) == set(beside["id"][beside["osmid"] == 99])


def test_ids_stay_when_a_street_is_added_elsewhere() -> None:
    street = [(4.901, 52.362), (4.909, 52.363)]
    before = street_points(line_network(street), BOX, 32631, 50)
    after = street_points(line_network(street, [(4.901, 52.369), (4.909, 52.368)]), BOX, 32631, 50)

    assert len(after) > len(before)
    assert_geodataframe_equal(before, after[after["osmid"] == 1].reset_index(drop=True))


def test_columns() -> None:
    network = line_network([(4.901, 52.365), (4.909, 52.365)], name=["Weg", "Laan"])
    for direction, (*_, data) in zip((1, -1), network.edges(data=True), strict=True):
        data["osmid"] = [8, 7, 9][::direction]
    points = street_points(network, BOX, 32631, 50)

    assert points.crs == "EPSG:4326"
    assert list(points.columns) == ["id", "osmid", "street", "geometry"]
    assert points["id"].dtype == points["osmid"].dtype == np.int64
    assert set(points["osmid"]) == {7}
    assert set(points["street"]) == {"Laan"}
    nameless = street_points(line_network([(4.901, 52.365), (4.909, 52.365)]), BOX, 32631, 50)
    assert set(nameless["street"]) == {None}


@pytest.mark.parametrize(
    "network",
    [
        nx.MultiDiGraph(crs="EPSG:4326"),
        line_network([(4.8, 52.3), (4.8, 52.4)]),
        line_network([(4.8, 52.37), (4.9, 52.37), (4.8, 52.38)]),
    ],
    ids=["empty", "elsewhere", "touching a corner"],
)
def test_a_box_without_streets_is_an_error(network: nx.MultiDiGraph) -> None:
    network.graph["network_type"] = "drive"
    with pytest.raises(NoStreetsError, match=r"'drive'.* 4\.9, south 52\.36, .*network type 'all'"):
        street_points(network, BOX, 32631, 50)


@pytest.mark.parametrize("interval", [4.9, 0, -50, float("nan")])
def test_an_interval_too_small_is_an_error(interval: float) -> None:
    with pytest.raises(ValueError, match="at least 5 m"):
        street_points(line_network([(4.901, 52.365), (4.909, 52.365)]), BOX, 32631, interval)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_coordinates_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="not finite"):
        street_points(line_network([(4.901, 52.365), (4.9, float("nan"))]), BOX, 32631, 50)


def test_a_projection_that_cannot_hold_the_box_is_an_error() -> None:
    network = line_network([(92.9, 0.0), (93.1, 0.0)])
    with pytest.raises(ValueError, match="EPSG:32631 cannot hold the box west 92"):
        street_points(network, (92, -1, 94, 1), 32631, 50)


# Files

EXTRACT = """<?xml version="1.0"?>
<osm version="0.6">
  <node id="1" lat="52.361" lon="4.901"/>
  <node id="2" lat="52.362" lon="4.902"><tag k="highway" v="crossing"/></node>
  <node id="4" lat="52.364" lon="4.904"/>
  <node id="5" lat="52.365" lon="4.905"/>
  <way id="10">
    <nd ref="1"/><nd ref="2"/><nd ref="3"/><nd ref="4"/><nd ref="5"/>
    <tag k="highway" v="residential"/><tag k="name" v="Rue des Œillets"/>
  </way>
  <way id="11"><nd ref="1"/><nd ref="5"/><tag k="highway" v="footway"/></way>
  <way id="12"><nd ref="2"/><nd ref="5"/><tag k="building" v="yes"/></way>
  <way id="13"><nd ref="2"/><nd ref="4"/><tag k="highway" v="proposed"/></way>
  <way id="14"><nd ref="1"/><nd ref="4"/>
    <tag k="highway" v="service"/><tag k="access" v="private"/></way>
  <way id="15"><nd ref="8"/><nd ref="9"/><tag k="highway" v="residential"/></way>
  <relation id="20"><member type="way" ref="12" role="outer"/></relation>
</osm>
"""


@pytest.mark.parametrize(
    ("network_type", "ways"),
    [
        ("all", {10, 11, 14}),
        ("all_public", {10, 11}),
        ("bike", {10}),
        ("drive", {10}),
        ("drive_service", {10}),
        ("walk", {10, 11}),
    ],
)
def test_an_extract_gives_the_ways_of_its_network_type(
    network_type: str, ways: set[int], tmp_path: Path
) -> None:
    plain, packed = tmp_path / "town.osm", tmp_path / "town.osm.gz"
    plain.write_text(EXTRACT)
    packed.write_bytes(gzip.compress(EXTRACT.encode()))

    network = read_network(plain, network_type)
    assert {data["osmid"] for *_, data in network.edges(data=True)} == ways
    assert nx.utils.graphs_equal(network, read_network(packed, network_type))


def test_missing_nodes_leave_a_gap(tmp_path: Path) -> None:
    (tmp_path / "town.osm").write_text(EXTRACT)
    network = read_network(tmp_path / "town.osm", "drive")

    assert sorted(network.edges(data="name")) == [
        (1, 2, "Rue des Œillets"),
        (4, 5, "Rue des Œillets"),
    ]
    assert network.nodes[4] == {"x": 4.904, "y": 52.364}


def test_network_types_are_those_of_osmnx_and_the_city_file() -> None:
    assert get_args(City.model_fields["network_type"].annotation) == NETWORK_TYPES
    for network_type in NETWORK_TYPES:
        assert osmnx._overpass._get_network_filter(network_type).startswith('["highway"]')


@pytest.mark.parametrize("projected", [False, True])
def test_a_graph_that_osmnx_saved_gives_the_points_it_gave_before(
    projected: bool, tmp_path: Path
) -> None:
    network = line_network([(4.901, 52.365), (4.903, 52.366), (4.909, 52.362)], name="Laan")
    network = nx.convert_node_labels_to_integers(network)
    saved = osmnx.project_graph(network) if projected else network
    osmnx.save_graphml(saved, tmp_path / "town.graphml")

    points = street_points(read_network(tmp_path / "town.graphml", "all"), BOX, 32631, 50)
    expected = street_points(network, BOX, 32631, 50)
    assert points["street"].tolist() == expected["street"].tolist()
    assert (points.to_crs(32631).distance(expected.to_crs(32631)) < 0.03).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("town.osm", b""),
        ("town.osm", EXTRACT.encode()[:700]),
        ("town.osm", EXTRACT.replace('lat="52.361"', 'lat="north"').encode()),
        ("town.osm.gz", gzip.compress(EXTRACT.encode())[:-30]),
        ("town.osm.gz", EXTRACT.encode()),
        ("town.graphml", b"<graphml/>"),
        ("town.graphml", EXTRACT.encode()),
        ("town.geojson", b"{}"),
    ],
)
def test_a_file_that_is_no_network_is_an_error_that_names_it(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StreetsFileError, match=name):
        read_network(tmp_path / name, "all")


# Overpass


def no_picture(*_: object) -> bytes:
    raise AssertionError("no image was to be asked for")


@contextmanager
def overpass(*lines: list[tuple[float, float]], **tags: str) -> Iterator[Sandbox]:
    world = World(picture=no_picture)
    for line in lines:
        world.add_street(line, **{"highway": "residential", **tags})
    with Sandbox(world) as sandbox:
        yield sandbox


def test_a_segment_that_crosses_the_box_between_nodes_outside_is_kept(tmp_path: Path) -> None:
    crossing = [(4.8, 52.3), (5.0, 52.43)]
    with overpass([(4.7, 52.2), *crossing, (5.2, 52.5)], name="Rijksweg") as sandbox:
        network = download_network(
            BOX, "drive", overpass_url=sandbox.overpass_url, cache_folder=tmp_path
        )
    points = assert_promises(network, BOX, 32631, 50)
    assert set(points["street"]) == {"Rijksweg"}
    assert shapely.distance(points.geometry.to_numpy(), shapely.LineString(crossing)).max() < 1e-6


def test_a_large_box_is_asked_for_in_parts_that_miss_nothing(tmp_path: Path) -> None:
    box = (4.0, 51.5, 5.6, 52.5)
    inside = [box[0] + 0.0001, box[1] + 0.0001, box[2] - 0.0001, box[3] - 0.0001]
    rim = list(shapely.box(*inside).segmentize(0.01).exterior.coords)
    pieces = [rim[start : start + 2] for start in range(len(rim) - 1)]
    with overpass(*pieces) as sandbox:
        network = download_network(
            box, "all", overpass_url=sandbox.overpass_url, cache_folder=tmp_path
        )
        assert sandbox.stats.requests["overpass"] > 1
    assert len(network.edges) == len(pieces)


def test_the_same_box_is_asked_for_once(tmp_path: Path) -> None:
    with overpass([(4.901, 52.365), (4.909, 52.365)]) as sandbox:
        url = sandbox.overpass_url
        first = download_network(BOX, "all", overpass_url=url, cache_folder=tmp_path / "new")
        again = download_network(BOX, "all", overpass_url=url, cache_folder=tmp_path / "new")
        assert sandbox.stats.requests == {"overpass": 1}
    assert nx.utils.graphs_equal(first, again)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault.RATE_LIMITED, "HTTP 429 Too Many Requests"),
        (Fault.GATEWAY_TIMEOUT, "HTTP 504 Gateway Timeout"),
        (Fault.NOT_FOUND, "HTTP 404 Not Found"),
        (Fault.REDIRECT_TO_HOST, "HTTP 302 Found"),
        (Fault.RESET, "Connection aborted"),
        (Fault.CUT_OFF, "Connection broken"),
        (Fault.TRUNCATED, "no JSON"),
        (Fault.HTML_PAGE, "no JSON"),
        (Fault.EMPTY, "no JSON"),
    ],
)
@pytest.mark.timeout(60)
def test_a_refusal_is_an_error_at_once_that_names_the_box(
    fault: Fault, reason: str, tmp_path: Path
) -> None:
    with overpass([(4.901, 52.365), (4.909, 52.365)]) as sandbox:
        sandbox.faults = Faults(overpass={fault: 1.0})
        with pytest.raises(OverpassError, match=rf"west 4\.9, south 52\.36, .*{reason}"):
            download_network(BOX, "all", overpass_url=sandbox.overpass_url, cache_folder=tmp_path)
        assert sandbox.stats.requests["overpass"] == 1
        assert sandbox.stats.redirects_followed == 0

        sandbox.faults = Faults()
        network = download_network(
            BOX, "all", overpass_url=sandbox.overpass_url, cache_folder=tmp_path
        )
    assert len(network.edges) == 1


def test_a_server_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "{}:{}".format(*listener.getsockname())
    with pytest.raises(OverpassError, match="OVERPASS_URL"):
        download_network(BOX, "all", overpass_url=f"http://{address}/api", cache_folder=tmp_path)


def test_half_an_answer_in_the_cache_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with overpass([(4.901, 52.365), (4.909, 52.365)]) as sandbox:
        url = sandbox.overpass_url
        download_network(BOX, "all", overpass_url=url, cache_folder=tmp_path)
        for file in tmp_path.iterdir():
            file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(StreetsFileError, match=str(tmp_path)):
            download_network(BOX, "all", overpass_url=url, cache_folder=tmp_path)


class Recorder(BaseHTTPRequestHandler):
    """Answers every query with a remark, as Overpass does when it ran out of time."""

    requests: list[tuple[str, dict[str, str]]]

    def do_POST(self) -> None:
        self.requests.append(
            (self.path, {key.lower(): value for key, value in self.headers.items()})
        )
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"elements": [], "remark": "runtime error: Query timed out"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing on the terminal."""


@contextmanager
def recorder() -> Iterator[int]:
    """Serve `Recorder` on loopback; give its port."""
    Recorder.requests = []
    with HTTPServer(("127.0.0.1", 0), Recorder) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_nobody_else_is_asked_and_osmnx_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str) -> str:
        raise socket.gaierror(f"{name} has no address")

    connections = []
    connect = socket.socket.connect

    def recorded_connect(self: socket.socket, address: tuple[str, int]) -> None:
        connections.append(address)
        connect(self, address)

    # osmnx asks a public server by HTTPS for the address of a host that has none.
    monkeypatch.setattr(socket, "gethostbyname", unknown)
    monkeypatch.setattr(socket.socket, "connect", recorded_connect)
    before = {name: getattr(osmnx.settings, name) for name in osmnx.settings.__annotations__}
    getaddrinfo = socket.getaddrinfo

    with recorder() as port, pytest.raises(OverpassError, match=r"in part: .*Query timed out"):
        download_network(
            BOX, "all", overpass_url=f"http://localhost:{port}/api", cache_folder=tmp_path
        )

    assert {address[1] for address in connections} == {port}
    [(path, headers)] = Recorder.requests
    assert path == "/api/interpreter"
    assert headers["user-agent"].startswith("vsvi-assets/")
    assert headers["referer"].startswith("vsvi-assets/")
    assert not list(tmp_path.iterdir())
    assert before == {name: getattr(osmnx.settings, name) for name in before}
    assert socket.getaddrinfo is getaddrinfo
