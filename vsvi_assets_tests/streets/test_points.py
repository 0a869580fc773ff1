"""Points along streets: what is promised of them, on random, generated and real networks."""

import os
import random
from pathlib import Path

import geopandas as gpd
import networkx as nx
import numpy as np
import pyproj
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal
from hypothesis import given, settings
from hypothesis import strategies as st

from vsvi_assets.sandbox import Sandbox
from vsvi_assets.sandbox.demo import demo_world
from vsvi_assets.streets.errors import Box, NoStreetsError
from vsvi_assets.streets.networks import read_streets, streets_of_graph
from vsvi_assets.streets.overpass import download_streets
from vsvi_assets.streets.points import street_points
from vsvi_assets_tests.streets.parts import BOX, line_network, overpass_at


def points_of(network: nx.MultiDiGraph, box: Box, srid: int, interval: float) -> gpd.GeoDataFrame:
    return street_points(streets_of_graph(network), box, srid, interval)


def streets_inside(streets: gpd.GeoDataFrame, box: Box, srid: int) -> gpd.GeoSeries:
    """Clip each line to the box, by shapely alone, and project it."""
    parts = streets.geometry.force_2d().intersection(shapely.box(*box)).explode(ignore_index=True)
    parts = parts[shapely.length(parts.to_numpy()) > 0]
    return parts.set_crs(4326, allow_override=True).to_crs(srid)


def assert_promises(
    streets: gpd.GeoDataFrame, box: Box, srid: int, interval: float
) -> gpd.GeoDataFrame:
    """Check all that `street_points` promises of a table of streets; return the points."""
    inside = streets_inside(streets, box, srid)
    if inside.empty:
        with pytest.raises(NoStreetsError):
            street_points(streets, box, srid, interval)
        return gpd.GeoDataFrame()
    points = street_points(streets, box, srid, interval)

    west, south, east, north = box
    # With the decimals that their file has.
    assert points.geometry.x.round(7).between(west, east).all()
    assert points.geometry.y.round(7).between(south, north).all()

    tree = shapely.STRtree(points.to_crs(srid).geometry.to_numpy())
    places = shapely.points(shapely.get_coordinates(inside.segmentize(interval / 25).to_numpy()))
    assert tree.query_nearest(places, return_distance=True)[1].max() <= interval
    _, gaps = tree.query_nearest(tree.geometries, exclusive=True, return_distance=True)
    assert (gaps >= interval / 2).all()

    assert points["id"].is_unique
    assert points["id"].is_monotonic_increasing
    assert points["id"].between(0, 2**53 - 1).all()
    ways = set(zip(streets["osmid"], streets["name"], strict=True))
    assert set(zip(points["osmid"], points["street"], strict=True)) <= ways

    shuffled = streets.sample(frac=1, random_state=1)
    assert_geodataframe_equal(points, street_points(shuffled, box, srid, interval))
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
@settings(max_examples=100, deadline=None, derandomize=True)
def test_promises_on_random_networks(
    drawn: tuple[nx.MultiDiGraph, Box, int], interval: float
) -> None:
    network, box, srid = drawn
    streets = streets_of_graph(network)
    ways = {
        (way, name)
        for *_, data in network.edges(data=True)
        for way in _all(data["osmid"])
        for name in _all(data.get("name"))
    }
    assert set(zip(streets["osmid"], streets["name"], strict=True)) <= ways
    shuffled = streets_of_graph(_shuffled(network))
    assert_geodataframe_equal(_in_order(shuffled), _in_order(streets))
    assert_promises(streets, box, srid, interval)


def _in_order(streets: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Return streets in an order of their own: geometries have none that is the same each time."""
    ordered = streets.assign(wkb=streets.geometry.to_wkb(hex=True)).sort_values(["osmid", "wkb"])
    return ordered.drop(columns="wkb").reset_index(drop=True)


@pytest.mark.parametrize("interval", [10, 50])
def test_promises_on_a_generated_city(interval: float, tmp_path: Path) -> None:
    box = (5.204, 52.521, 5.218, 52.532)
    with Sandbox(demo_world()) as sandbox:
        downloaded = download_streets(
            box,
            "all",
            overpass=overpass_at(sandbox.overpass_url),
            cache_folder=tmp_path,
            report=print,
        )
    points = assert_promises(downloaded.streets, box, 28992, interval)
    assert len(points) > 10_000 / interval


REAL_NETWORKS = {
    "monaco.osm.gz": ((7.405, 43.72, 7.44, 43.75), 32632),
    "Delft.graphml": ((4.33, 51.98, 4.38, 52.02), 28992),
    "campo-grande.osm.gz": ((-54.6, -20.5, -54.57, -20.46), 32721),
}


@pytest.mark.parametrize("interval", [5, 50])
@pytest.mark.parametrize("file", REAL_NETWORKS)
def test_promises_on_real_networks(file: str, interval: float) -> None:
    streets = read_streets(real_data(file), "all")
    assert len(assert_promises(streets, *REAL_NETWORKS[file], interval)) > 10_000 / interval


def real_data(name: str) -> Path:
    """Return a recorded file, in the folder that VSVI_REAL_DATA names."""
    folder = os.environ.get("VSVI_REAL_DATA")
    if not folder or not (path := Path(folder, "osm", name)).is_file():
        pytest.skip(f"VSVI_REAL_DATA names no folder with osm/{name}")
    return path


def test_points_stand_at_even_distances() -> None:
    points = points_of(line_network([(4.901, 52.365), (4.909, 52.365)]), BOX, 32631, 50)

    gaps = np.diff(np.sort(points.to_crs(32631).geometry.x))
    assert len(points) == 11
    assert gaps == pytest.approx(np.full(10, gaps.mean()), abs=0.02)


def test_directions_make_no_difference() -> None:
    both = line_network([(4.901, 52.365), (4.903, 52.366), (4.909, 52.362)], name="Laan")
    one_way = both.copy()
    one_way.remove_edge((1, -1), (1, 0))

    assert_geodataframe_equal(points_of(both, BOX, 32631, 50), points_of(one_way, BOX, 32631, 50))


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
        points_of(in_segments(line, 1), BOX, 32631, 50),
        points_of(line_network(line), BOX, 32631, 50),
    )


def test_segments_of_a_roundabout_are_one_ring() -> None:
    angles = np.linspace(0, 2 * np.pi, 13)
    ring = list(zip(4.905 + 0.001 * np.cos(angles), 52.365 + 0.0006 * np.sin(angles), strict=True))
    ring[-1] = ring[0]
    points = assert_promises(streets_of_graph(in_segments(ring, 1)), BOX, 32631, 50)

    assert len(points) == 9


def test_a_ring_has_no_first_segment() -> None:
    """Of an hourglass, two segments reach equally far in every direction."""
    corners = [(4.903, 52.363), (4.907, 52.367), (4.903, 52.367), (4.907, 52.363), (4.903, 52.363)]
    for turn in range(4):
        ring = corners[turn:4] + corners[: turn + 1]
        assert_geodataframe_equal(
            points_of(in_segments(ring, 1), BOX, 32631, 50),
            points_of(in_segments(corners, 1), BOX, 32631, 50),
        )


def test_a_way_that_was_joined_with_others_has_one_name() -> None:
    one, other = [(4.901, 52.365), (4.905, 52.365)], [(4.905, 52.365), (4.909, 52.364)]
    edges = [(*one, {"osmid": [1, 2], "name": "Weg"}), (*other, {"osmid": [3, 1], "name": "Laan"})]
    networks = []
    for order in (1, -1):
        network = in_segments([*one, other[1]][::order], 1)
        network.clear_edges()
        network.add_edges_from(edges[::order])
        networks.append(points_of(network, BOX, 32631, 50))

    assert networks[0]["street"].nunique() == 1
    assert_geodataframe_equal(*networks)


def test_streets_along_the_edge_of_the_box_have_their_points_inside() -> None:
    box = (4.900000043, 52.360000043, 4.909999957, 52.369999957)
    rim = list(shapely.box(*box).exterior.coords)
    assert_promises(streets_of_graph(in_segments(rim, 1)), box, 32631, 50)


def test_short_streets_leave_long_ones_even() -> None:
    street = [(4.901, 52.365), (4.909, 52.365)]
    stubs = [[(4.9015 + 0.0007 * n, 52.365), (4.9015 + 0.0007 * n, 52.3653)] for n in range(10)]
    alone = points_of(in_segments(street, 99), BOX, 32631, 50)
    beside = points_of(nx.compose(in_segments(street, 99), line_network(*stubs)), BOX, 32631, 50)

    assert set(alone["id"]) == set(beside["id"][beside["osmid"] == 99])


def test_ids_stay_when_a_street_is_added_elsewhere() -> None:
    street = [(4.901, 52.362), (4.909, 52.363)]
    before = points_of(line_network(street), BOX, 32631, 50)
    after = points_of(line_network(street, [(4.901, 52.369), (4.909, 52.368)]), BOX, 32631, 50)

    assert len(after) > len(before)
    assert_geodataframe_equal(before, after[after["osmid"] == 1].reset_index(drop=True))


@pytest.mark.parametrize("bearing", [0, 12.3, 45, 90, 123.4, 179.9])
def test_points_know_the_direction_of_their_street(bearing: float) -> None:
    """In the same zone far from its middle, where the grid's north is not the true one."""
    for west in (0.2, 4.905):
        lon, lat, _ = pyproj.Geod(ellps="WGS84").fwd(west, 52.365, bearing, 200)
        line = [(west, 52.365), (lon, lat)]
        box = (west - 0.01, 52.36, west + 0.01, 52.37)
        for ends in (line, line[::-1]):
            points = points_of(line_network(ends), box, 32631, 50)
            off = (points["bearing"] - bearing + 90) % 180 - 90
            assert len(points) >= 4
            assert off.abs().max() <= 0.1
            assert points["bearing"].between(0, 180, inclusive="left").all()


def test_columns() -> None:
    network = line_network([(4.901, 52.365), (4.909, 52.365)], name=["Weg", "Laan"])
    for direction, (*_, data) in zip((1, -1), network.edges(data=True), strict=True):
        data["osmid"] = [8, 7, 9][::direction]
    points = points_of(network, BOX, 32631, 50)

    assert points.crs == "EPSG:4326"
    assert list(points.columns) == ["id", "osmid", "street", "bearing", "highway", "geometry"]
    assert points["id"].dtype == points["osmid"].dtype == np.int64
    assert set(points["osmid"]) == {7}
    assert set(points["street"]) == {"Laan"}
    nameless = points_of(line_network([(4.901, 52.365), (4.909, 52.365)]), BOX, 32631, 50)
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
    with pytest.raises(NoStreetsError, match=r" 4\.9, south 52\.36, .*network_type"):
        points_of(network, BOX, 32631, 50)


@pytest.mark.parametrize("interval", [4.9, 0, -50, float("nan")])
def test_an_interval_too_small_is_an_error(interval: float) -> None:
    with pytest.raises(ValueError, match="at least 5 m"):
        points_of(line_network([(4.901, 52.365), (4.909, 52.365)]), BOX, 32631, interval)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_coordinates_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="not finite"):
        points_of(line_network([(4.901, 52.365), (4.9, float("nan"))]), BOX, 32631, 50)


def test_a_projection_that_cannot_hold_the_box_is_an_error() -> None:
    network = line_network([(92.9, 0.0), (93.1, 0.0)])
    with pytest.raises(ValueError, match="EPSG:32631 cannot hold the box west 92"):
        points_of(network, (92, -1, 94, 1), 32631, 50)
