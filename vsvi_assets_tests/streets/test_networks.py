"""Street networks as tables of lines, from extracts, answers of Overpass and graphs."""

import gzip
from pathlib import Path
from typing import get_args

import geopandas as gpd
import networkx as nx
import numpy as np
import osmnx
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal

from vsvi_assets.city import City
from vsvi_assets.streets.errors import StreetsFileError
from vsvi_assets.streets.network_types import NETWORK_TYPES, overpass_filter
from vsvi_assets.streets.networks import read_streets, streets_of_graph
from vsvi_assets.streets.points import street_points
from vsvi_assets_tests.streets.parts import BOX, Recorder, line_network, recorder

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

    streets = read_streets(plain, network_type)
    assert set(streets["osmid"]) == ways
    assert_geodataframe_equal(streets, read_streets(packed, network_type))


def test_missing_nodes_leave_a_gap(tmp_path: Path) -> None:
    (tmp_path / "town.osm").write_text(EXTRACT)
    streets = read_streets(tmp_path / "town.osm", "drive")

    assert streets["name"].tolist() == ["Rue des Œillets"] * 2
    assert {line.wkt for line in streets.geometry} == {
        "LINESTRING (4.901 52.361, 4.902 52.362)",
        "LINESTRING (4.904 52.364, 4.905 52.365)",
    }


def test_a_long_extract_is_read_in_blocks_and_its_ways_are_whole(tmp_path: Path) -> None:
    count = 10_000
    nodes = "".join(
        f'<node id="{id}" lat="52.3" lon="{4 + id / 1e5:.5f}"/>' for id in range(1, count + 1)
    )
    references = "".join(f'<nd ref="{id}"/>' for id in range(1, count + 1))
    street = '<tag k="highway" v="residential"/>'
    (tmp_path / "town.osm").write_text(
        f'<osm>{nodes}<way id="7">{references}{street}</way><way id="8">{references}</way>'
        f'<relation id="9"><member type="way" ref="8" role=""/>{street}</relation></osm>'
    )
    streets = read_streets(tmp_path / "town.osm", "all")
    assert len(streets) == count - 1
    assert set(streets["osmid"]) == {7}


def test_an_extract_without_streets_is_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "town.osm").write_text("<osm version='0.6'></osm>")
    assert read_streets(tmp_path / "town.osm", "all").empty
    (tmp_path / "town.osm").write_text(
        EXTRACT.replace("<node", "<place").replace("/node", "/place")
    )
    assert read_streets(tmp_path / "town.osm", "all").empty


def test_network_types_are_those_of_the_city_file() -> None:
    assert get_args(City.model_fields["network_type"].annotation) == NETWORK_TYPES


@pytest.mark.parametrize("network_type", NETWORK_TYPES)
def test_the_rules_of_a_network_type_are_those_of_osmnx(
    network_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(osmnx.settings, "overpass_rate_limit", False)
    monkeypatch.setattr(osmnx.settings, "use_cache", False)
    monkeypatch.setattr(osmnx.settings, "cache_only_mode", True)
    with recorder() as port:
        monkeypatch.setattr(osmnx.settings, "overpass_url", f"http://127.0.0.1:{port}/api")
        for custom_filter in (None, overpass_filter(network_type)):
            with pytest.raises(InterruptedError):
                osmnx.graph_from_polygon(
                    shapely.box(*BOX), network_type=network_type, custom_filter=custom_filter
                )
    of_osmnx, ours = (request.query for request in Recorder.requests)
    assert ours == of_osmnx


def date_line(*lines: list[tuple[float, float]]) -> str:
    nodes, ways = "", ""
    for way, line in enumerate(lines):
        references = ""
        for number, (lon, lat) in enumerate(line):
            nodes += f"<node id='{way}{number}' lon='{lon}' lat='{lat}'/>"
            references += f"<nd ref='{way}{number}'/>"
        ways += f"<way id='{way}'>{references}<tag k='highway' v='residential'/></way>"
    return f"<osm version='0.6'>{nodes}{ways}</osm>"


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_way_across_the_antimeridian_is_cut_there(
    backwards: bool, in_graph: bool, tmp_path: Path
) -> None:
    line = [(179.99, -16.8), (179.999, -16.8), (-179.999, -16.8), (-179.99, -16.79)]
    beside = [(179.98, -16.805), (179.995, -16.805)]
    line = line[::-1] if backwards else line
    if in_graph:
        streets = streets_of_graph(line_network(line, beside))
    else:
        (tmp_path / "date.osm").write_text(date_line(beside, line))
        streets = read_streets(tmp_path / "date.osm", "all")
    lines = streets.geometry.to_numpy()
    lengths = (0.015, 0.009, 0.002, np.hypot(0.009, 0.01))
    assert shapely.length(lines).sum() == pytest.approx(sum(lengths))
    assert np.ptp(shapely.bounds(lines)[:, [0, 2]], axis=1).max() < 0.02

    western = street_points(streets, (179.98, -16.81, 180, -16.79), 32760, 50)
    eastern = street_points(streets, (-180, -16.81, -179.98, -16.78), 32701, 50)
    assert len(western) == pytest.approx(1600 / 50 + 1066 / 50, abs=3)
    assert len(eastern) == pytest.approx(1550 / 50, abs=3)
    assert western.geometry.x.max() > 179.9995
    assert eastern.geometry.x.min() < -179.9995


def test_no_point_lies_beside_a_way_across_the_antimeridian(tmp_path: Path) -> None:
    (tmp_path / "date.osm").write_text(date_line([(179.999, -16.8), (-179.999, -16.8)]))
    streets = read_streets(tmp_path / "date.osm", "all")
    points = street_points(streets, (179.98, -16.81, 180, -16.79), 32760, 50)
    assert 2 <= len(points) <= 4
    assert points.geometry.x.min() > 179.999


@pytest.mark.parametrize("projected", [False, True])
def test_a_graph_that_osmnx_saved_gives_the_points_it_gave_before(
    projected: bool, tmp_path: Path
) -> None:
    network = line_network([(4.901, 52.365), (4.903, 52.366), (4.909, 52.362)], name="Laan")
    network = nx.convert_node_labels_to_integers(network)
    saved = osmnx.project_graph(network) if projected else network
    osmnx.save_graphml(saved, tmp_path / "town.graphml")

    points = street_points(read_streets(tmp_path / "town.graphml", "all"), BOX, 32631, 50)
    expected = street_points(streets_of_graph(network), BOX, 32631, 50)
    assert points["street"].tolist() == expected["street"].tolist()
    assert (points.to_crs(32631).distance(expected.to_crs(32631)) < 0.03).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("town.osm", b""),
        ("town.osm", EXTRACT.encode()[:700]),
        ("town.osm", EXTRACT.replace('lat="52.361"', 'lat="north"').encode()),
        ("town.osm", EXTRACT.replace('way id="', f'way id="{2**70}').encode()),
        ("town.osm.gz", gzip.compress(EXTRACT.encode())[:-30]),
        ("town.osm.gz", EXTRACT.encode()),
        ("town.graphml", b"<graphml/>"),
        ("town.graphml", EXTRACT.encode()),
        ("town.geojson", b"{}"),
    ],
)
def test_a_file_that_is_not_a_network_is_an_error_that_names_it(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StreetsFileError, match=name):
        read_streets(tmp_path / name, "all")


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([7, None], "osmid must be a whole number, and is nan at line 2 of 2"),
        ([7, 1.5], "osmid must be a whole number, and is 1.5 at line 2"),
        ([7, 1e30], r"osmid must be a whole number, and is 1e\+30 at line 2"),
        (["7", "[8, 9]"], r"osmid must be a whole number, and is \[8, 9\] at line 2"),
    ],
)
def test_ids_that_are_no_whole_numbers_are_refused(
    ids: list[object], said: str, tmp_path: Path
) -> None:
    lines = [shapely.LineString([(4.9, lat), (4.91, lat)]) for lat in (52.361, 52.362)]
    table = gpd.GeoDataFrame({"osmid": ids}, geometry=lines, crs=4326)
    table.to_file(tmp_path / "lines.gpkg")
    with pytest.raises(StreetsFileError, match=said):
        read_streets(tmp_path / "lines.gpkg", "all")
    table.assign(osmid=["7", "8"]).to_file(tmp_path / "lines.gpkg")
    assert read_streets(tmp_path / "lines.gpkg", "all")["osmid"].tolist() == [7, 8]
