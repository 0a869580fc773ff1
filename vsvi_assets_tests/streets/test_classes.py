"""Classes of streets, what streets are made of in other files, and how much of them points hold."""

import gzip
from pathlib import Path

import geopandas as gpd
import networkx as nx
import numpy as np
import osmium
import pyproj
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal

from vsvi_assets.streets.errors import StreetsFileError
from vsvi_assets.streets.network_types import NETWORK_TYPES
from vsvi_assets.streets.networks import read_streets, streets_of_graph
from vsvi_assets.streets.points import metres_of_points, street_points, streets_within
from vsvi_assets_tests.streets.test_points import real_data

MONACO = (7.405, 43.72, 7.44, 43.755)
SRID = 32632
CLASSES = ("residential", "service", "footway", "primary", "steps", "path", "tertiary")
HARBOUR = shapely.Polygon([(7.413, 43.728), (7.425, 43.726), (7.43, 43.742), (7.418, 43.745)])
AREA = shapely.difference(HARBOUR, shapely.Point(7.421, 43.735).buffer(0.002))


@pytest.fixture(scope="module", params=["at random", "of Monaco"])
def network(request: pytest.FixtureRequest) -> gpd.GeoDataFrame:
    if request.param == "of Monaco":
        return read_streets(real_data("monaco.osm.gz"), "all")
    numbers = np.random.default_rng(5)
    graph = nx.MultiDiGraph(crs="EPSG:4326")
    west, south, east, north = MONACO
    for osmid in range(150):
        start = numbers.uniform((west, south), (east, north))
        turns = numbers.uniform(-0.002, 0.002, (numbers.integers(2, 6), 2))
        line = shapely.LineString(start + turns.cumsum(0))
        ends = [(osmid, end) for end in (0, -1)]
        for node in ends:
            graph.add_node(node, x=line.coords[node[1]][0], y=line.coords[node[1]][1])
        highway = CLASSES[numbers.integers(len(CLASSES))]
        graph.add_edge(*ends, osmid=osmid, geometry=line, highway=highway)
    return streets_of_graph(graph)


@pytest.fixture(scope="module")
def made(network: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    points = street_points(network, AREA.bounds, SRID, 50, within=AREA)
    return points, streets_within(network, AREA.bounds, SRID, within=AREA)


def test_streets_of_a_region_are_those_inside_it(
    network: gpd.GeoDataFrame, made: tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]
) -> None:
    _, streets = made
    inside = gpd.GeoSeries([network.union_all().intersection(AREA)], crs=4326)
    assert shapely.difference(streets.union_all(), AREA.buffer(1e-9)).length == 0
    assert streets.to_crs(SRID).length.to_numpy() == pytest.approx(streets["metres"].to_numpy())
    # Streets lie upon each other in places, so that all together are a little longer.
    assert streets["metres"].sum() == pytest.approx(inside.to_crs(SRID).length.sum(), rel=0.02)
    classes = dict(zip(network["osmid"], network["highway"], strict=True))
    assert streets["highway"].tolist() == [classes[osmid] for osmid in streets["osmid"]]
    assert len(set(streets["highway"])) > 5


def test_points_of_a_region_keep_what_they_promise(
    made: tuple[gpd.GeoDataFrame, gpd.GeoDataFrame],
) -> None:
    points, streets = made
    assert shapely.distance(points.geometry.to_numpy(), AREA).max() <= 1e-7
    places, lines = points.to_crs(SRID).geometry, streets.to_crs(SRID).geometry
    everywhere = shapely.points(shapely.get_coordinates(lines.segmentize(5).to_numpy()))
    nearest = shapely.distance(everywhere, places.union_all())
    assert nearest.max() <= 50
    pairs = shapely.STRtree(places.to_numpy()).query(places.to_numpy(), "dwithin", 25 - 1e-3)
    assert (pairs[0] == pairs[1]).all()
    by_way = streets.drop_duplicates("osmid").set_index("osmid")["highway"]
    assert points["highway"].tolist() == by_way.loc[points["osmid"]].tolist()


def test_the_metres_of_points_are_those_nearest_to_them(
    made: tuple[gpd.GeoDataFrame, gpd.GeoDataFrame],
) -> None:
    points, streets = made
    metres = metres_of_points(points, streets, SRID)
    assert metres.sum() == pytest.approx(streets["metres"].sum())
    for highway in set(points["highway"]):
        of_class = streets.loc[streets["highway"] == highway, "metres"].sum()
        assert metres[points["highway"] == highway].sum() >= of_class - 1e-6
    # Every metre of every street, by all distances.
    there = pyproj.Transformer.from_crs(4326, SRID, always_xy=True)
    x, y = there.transform(points.geometry.x.to_numpy(), points.geometry.y.to_numpy())
    expected = np.zeros(len(points))
    for line, highway in zip(streets.to_crs(SRID).geometry, streets["highway"], strict=True):
        own = np.flatnonzero(points["highway"] == highway)
        own = own if own.size else np.arange(len(points))
        steps = max(int(line.length), 1)
        for step in range(steps):
            place = line.interpolate((step + 0.5) / steps, normalized=True)
            nearest = own[np.hypot(x[own] - place.x, y[own] - place.y).argmin()]
            expected[nearest] += line.length / steps
    assert np.abs(metres - expected).max() < 25
    assert np.abs(metres - expected).mean() < 2


# Other files


def as_pbf(extract: Path) -> Path:
    packed = extract.with_suffix(".osm.pbf")
    with osmium.SimpleWriter(str(packed)) as writer:
        for each in osmium.FileProcessor(str(extract)):
            writer.add(each)
    return packed


def test_streets_without_a_class_count_as_a_class_of_their_own(tmp_path: Path) -> None:
    streets = gpd.GeoDataFrame(
        {"osmid": [1, 2], "name": None, "highway": ["residential", None]},
        geometry=[
            shapely.LineString([(7.42, 43.73), (7.42, 43.74)]),
            shapely.LineString([(7.421, 43.73), (7.421, 43.74)]),
        ],
        crs=4326,
    )
    points = street_points(streets, MONACO, SRID, 50)
    # As they come back from disk, where an unknown class is NaN.
    streets_within(streets, MONACO, SRID).to_parquet(tmp_path / "streets.parquet")
    kept = gpd.read_parquet(tmp_path / "streets.parquet")

    metres = metres_of_points(points, kept, SRID)

    assert metres[points["highway"].isna()].sum() == pytest.approx(kept["metres"].sum() / 2, 1e-4)
    assert metres.sum() == pytest.approx(kept["metres"].sum())


def test_a_pbf_file_has_the_streets_of_the_same_extract(tmp_path: Path) -> None:
    nodes = "".join(
        f"<node id='{i}' version='1' lat='{43.73 + i % 7 * 0.001:.7f}'"
        f" lon='{7.41 + i * 0.001:.7f}'/>"
        for i in range(1, 25)
    )
    ways = "".join(
        f"<way id='{way}' version='1'>"
        + "".join(f"<nd ref='{node}'/>" for node in range(way, way + 5))
        + f"<tag k='highway' v='{highway}'/>{more}</way>"
        for way, (highway, more) in enumerate(
            [
                ("residential", "<tag k='name' v='Rue &quot;des&quot; Œillets'/>"),
                ("service", "<tag k='access' v='private'/>"),
                ("footway", "<tag k='foot' v='no'/><tag k='note' v='a =&gt; b, \\'/>"),
                ("proposed", ""),
                ("primary", "<tag k='motor_vehicle' v='no'/>"),
            ],
            1,
        )
    )
    plain = tmp_path / "town.osm"
    plain.write_text(f"<osm version='0.6'>{nodes}{ways}</osm>")
    packed = as_pbf(plain)
    for network_type in NETWORK_TYPES:
        expected = read_streets(plain, network_type)
        assert_geodataframe_equal(read_streets(packed, network_type), expected)
    some = read_streets(packed, "all", box=(7.41, 43.7, 7.4115, 43.8))
    assert set(some["osmid"]) == {1}


def test_a_real_extract_gives_the_same_packed_as_pbf(tmp_path: Path) -> None:
    plain = tmp_path / "monaco.osm"
    plain.write_bytes(gzip.decompress(real_data("monaco.osm.gz").read_bytes()))
    packed = as_pbf(plain)
    for network_type in ("all", "drive", "walk"):
        expected = read_streets(plain, network_type)
        assert_geodataframe_equal(read_streets(packed, network_type), expected)
    some = read_streets(packed, "all", box=(7.42, 43.73, 7.425, 43.735))
    assert 0 < len(some) < len(read_streets(plain, "all")) / 2


@pytest.mark.parametrize(
    ("name", "crs"), [("s.gpkg", 28992), ("s.shp", 4326), ("s.geojson", 4326), ("s.fgb", 3857)]
)
def test_a_layer_of_lines_is_a_street_network(tmp_path: Path, name: str, crs: int) -> None:
    lines = [
        shapely.MultiLineString([[(4.36, 52.0), (4.37, 52.0)], [(4.37, 52.0), (4.37, 52.01)]]),
        shapely.LineString([(4.36, 52.01), (4.365, 52.01)]),
    ]
    table = gpd.GeoDataFrame(
        {"osm_id": [7, 9], "Highway": ["primary", "path"], "NAME": ["Weg", None]},
        geometry=lines,
        crs=4326,
    )
    table.to_crs(crs).to_file(tmp_path / name)
    streets = read_streets(tmp_path / name, "drive")
    assert sorted(streets["osmid"]) == [7, 7, 9]
    assert dict(zip(streets["osmid"], streets["highway"], strict=True)) == {7: "primary", 9: "path"}
    assert set(streets["name"]) == {"Weg", None}
    table[["geometry"]].to_crs(crs).to_file(tmp_path / f"bare-{name}")
    bare = read_streets(tmp_path / f"bare-{name}", "all")
    assert set(bare["osmid"]) == {1, 2}  # in the order of the file, which some formats choose
    assert bare["highway"].isna().all()


@pytest.mark.parametrize(
    ("geometry", "osmid", "said"),
    [
        (shapely.box(4, 52, 4.1, 52.1), 1, "there is a Polygon among them"),
        (shapely.LineString([(4, 52), (4.1, 52)]), "a1", "osmid must be a whole number, and is a1"),
    ],
)
def test_what_is_no_street_is_refused(
    tmp_path: Path, geometry: shapely.Geometry, osmid: object, said: str
) -> None:
    table = gpd.GeoDataFrame({"osmid": [osmid]}, geometry=[geometry], crs=4326)
    table.to_file(tmp_path / "s.geojson")
    with pytest.raises(StreetsFileError, match=said):
        read_streets(tmp_path / "s.geojson", "all")


def test_a_pbf_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "town.osm.pbf").write_bytes(b"no extract")
    with pytest.raises(StreetsFileError, match=r"town\.osm\.pbf"):
        read_streets(tmp_path / "town.osm.pbf", "all")
