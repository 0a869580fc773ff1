"""The keys region and buffer: what area they give a city, and what is refused."""

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import mercantile
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vsvi_assets.city import Area, City, CityFileError, PlaceNotLookedUpError, load_city

BOX = {"west": 4.3, "south": 52, "east": 4.4, "north": 52.1}
SQUARE = shapely.box(4.30, 51.98, 4.40, 52.03)
HOLED = shapely.Polygon(
    SQUARE.exterior.coords, [shapely.box(4.33, 52.0, 4.37, 52.01).exterior.coords]
)
ISLAND = shapely.box(4.45, 51.98, 4.46, 51.99)


def write_shapes(folder: Path, *shapes: Any, name: str = "area.geojson", crs: int = 4326) -> Path:
    path = folder / name
    gpd.GeoDataFrame(geometry=list(shapes), crs=4326).to_crs(crs).to_file(path)
    return path


def town(folder: Path, **keys: object) -> City:
    path = folder / "town.json"
    path.write_text(json.dumps(keys))
    return load_city(path, folder)


def refusal(folder: Path, **keys: object) -> str:
    with pytest.raises(CityFileError) as refused:
        town(folder, **keys)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "crs"),
    [
        *(("area.geojson", 4326), ("area.gpkg", 28992), ("area.shp", 32631), ("area.fgb", 3857)),
        ("area.kml", 4326),
    ],
)
def test_a_region_is_read_in_any_format_and_crs(tmp_path: Path, name: str, crs: int) -> None:
    write_shapes(tmp_path, HOLED, ISLAND, name=name, crs=crs)
    city = town(tmp_path, region=name)
    expected = shapely.union(HOLED, ISLAND)
    difference = shapely.symmetric_difference(city.area.outline, expected)
    # A straight edge of 7 km in another CRS is a curve in degrees.
    assert difference.area < 1e-3 * expected.area
    assert not city.warnings


def test_a_long_straight_edge_stays_straight_in_the_crs_of_its_file(tmp_path: Path) -> None:
    rd = pyproj.Transformer.from_crs(4326, 28992, always_xy=True)
    x, y = rd.transform(4.0, 52.0)
    square = shapely.box(x, y, x + 60_000, y + 1000)
    gpd.GeoDataFrame(geometry=[square], crs=28992).to_file(tmp_path / "area.gpkg")
    area = town(tmp_path, region="area.gpkg").area
    # Points 3 m inside and outside of the southern edge, all along it.
    along = np.linspace(x + 100, x + 59_900, 500)
    for metres, inside in ((3, True), (-3, False)):
        lon, lat = rd.transform(along, np.full(500, y + metres), direction="INVERSE")
        assert (area.covers(np.array(lon), np.array(lat)) == inside).all()


def test_the_tiles_are_those_that_meet_the_polygons(tmp_path: Path) -> None:
    write_shapes(tmp_path, HOLED, ISLAND)
    city = town(tmp_path, region="area.geojson")
    outline = city.area.outline
    expected = [
        tile
        for tile in mercantile.tiles(*outline.bounds, 14)
        if shapely.box(*mercantile.bounds(tile)).intersects(outline)
    ]
    assert sorted(city.tiles) == sorted(expected)
    assert len(expected) < city.area.box.count_tiles()


@st.composite
def polygons(draw: st.DrawFn) -> shapely.MultiPolygon | shapely.Polygon:
    """Make polygons with holes and several parts, somewhere on the earth."""
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    middle = draw(st.tuples(st.floats(-179, 179), st.floats(-80, 80)))
    shapes = [
        shapely.Point(middle + numbers.uniform(-0.05, 0.05, 2)).buffer(numbers.uniform(0.001, 0.05))
        for _ in range(5)
    ]
    whole = shapely.union_all(shapes[:3])
    merged = shapely.difference(whole, shapely.union_all(shapes[3:]))
    return whole if merged.is_empty else merged


@hypothesis_settings(max_examples=40, deadline=None)
@given(polygons(), st.integers(0, 2**32))
def test_what_lies_in_an_area_is_what_its_edges_say(
    shape: shapely.MultiPolygon | shapely.Polygon, seed: int
) -> None:
    area = Area.of_polygons(shape)
    west, south, east, north = shape.bounds
    numbers = np.random.default_rng(seed)
    lon = numbers.uniform(west - 0.01, east + 0.01, 300)
    lat = numbers.uniform(south - 0.01, north + 0.01, 300)
    assert (area.covers(lon, lat) == crossings(shape, lon, lat)).all()
    tiles = set(area.tiles())
    inside = np.flatnonzero(area.covers(lon, lat))
    assert {mercantile.tile(lon[i], lat[i], 14) for i in inside} <= tiles


def crossings(shape: Any, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Count, of each position, whether a ray to the east crosses edges an odd number of times."""
    odd = np.zeros(len(lon), bool)
    for ring in shapely.get_rings(shapely.get_parts(shape)):
        (x1, y1), (x2, y2) = ring.coords.xy and (
            np.array(ring.coords)[:-1].T,
            np.array(ring.coords)[1:].T,
        )
        spans = (y1 > lat[:, None]) != (y2 > lat[:, None])
        with np.errstate(divide="ignore", invalid="ignore"):
            x = x1 + (lat[:, None] - y1) / (y2 - y1) * (x2 - x1)
        odd ^= (spans & (lon[:, None] < x)).sum(1) % 2 == 1
    return odd


def test_a_buffer_is_in_metres(tmp_path: Path) -> None:
    write_shapes(tmp_path, SQUARE)
    plain, larger = (town(tmp_path, region="area.geojson", buffer=b) for b in (0, 500))
    geod = pyproj.Geod(ellps="WGS84")
    edge = np.array(plain.area.outline.exterior.segmentize(0.002).coords)
    outer = larger.area.outline.exterior
    for lon, lat in edge[::7]:
        near = np.array(outer.segmentize(0.0002).coords)
        _, _, metres = geod.inv(np.full(len(near), lon), np.full(len(near), lat), *near.T)
        assert min(metres) == pytest.approx(500, abs=2)


def test_a_polygon_that_is_not_valid_is_repaired_and_reported(tmp_path: Path) -> None:
    bow_tie = shapely.Polygon([(4.3, 52.0), (4.4, 52.1), (4.4, 52.0), (4.3, 52.1)])
    write_shapes(tmp_path, bow_tie)
    city = town(tmp_path, region="area.geojson")
    assert city.area.outline.is_valid
    [warning] = city.warnings
    assert "not valid (Self-intersection" in warning
    assert "repaired" in warning


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([shapely.LineString([(4.3, 52), (4.4, 52)])], "made of polygons, and a LineString"),
        ([SQUARE, shapely.Point(4.3, 52)], "made of polygons, and a Point"),
        ([shapely.Polygon()], "no polygon with an area"),
        ([shapely.Polygon([(4.3, 52), (4.4, 52.1), (4.3, 52)])], "no polygon with an area"),
        ([shapely.box(-179.9, 52, -179.8, 52.1), shapely.box(179.8, 52, 179.9, 52.1)], "antimerid"),
        ([shapely.box(4, 85, 4.1, 89)], "latitude; Mapillary's tiles end at 85"),
        ([shapely.box(-10, 40, 30, 60)], "more than 20,000 tiles"),
        ([shapely.box(-15, 0, 15, 0.001)], "too large for one CRS"),
    ],
)
def test_what_is_no_area_of_a_city_is_refused(tmp_path: Path, shapes: list[Any], said: str) -> None:
    write_shapes(tmp_path, *shapes)
    refused = refusal(tmp_path, region="area.geojson")
    assert said in refused


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "bounding_box, region or points_file must say"),
        ({"region": "absent.geojson"}, "no such file"),
        ({"region": "text.geojson"}, "GDAL cannot read it"),
        ({"region": "table.csv"}, "has no geometry in it"),
        ({"region": "layers.gpkg"}, "has the layers north, south; name one of them"),
        ({"region": {"file": "layers.gpkg", "layer": "west"}}, "has no layer 'west', but north"),
        ({"region": "without-crs.shp"}, "does not say its coordinate system"),
        ({"region": "metres-as-degrees.geojson"}, "coordinates outside its coordinate system"),
        ({"region": "tables"}, "has no geometry in it"),
        ({"region": "open.geojson"}, "has an invalid shape, such as a ring that is not"),
        ({"region": "x" * 300}, "cannot be read (File name too long)"),
        ({"region": ["area.geojson"]}, "must be an object of the keys file, layer, place"),
        ({"region": "good.geojson", "buffer": 5, "srid": 999_999}, "srid 999999 is unknown"),
        ({"region": "good.geojson", "buffer": 5, "srid": 4326}, "has no unit of metres"),
        ({"region": {"place": "Delft", "file": "x"}}, "must be a file such as"),
        ({"region": {"name": "Delft"}}, "unknown key; the keys are file, layer, place"),
        ({"region": {"osm_relation": 0}}, "greater than 0"),
        ({"region": {"place": "Delft", "layer": "x"}}, "layer is the layer of a file"),
        ({"region": "layers.gpkg", "buffer": -5}, "greater than or equal to 0"),
        (
            {"bounding_box": BOX, "buffer": 5},
            "buffer needs a region",
        ),
        (
            {"bounding_box": BOX, "region": "x.gpkg"},
            "not both",
        ),
    ],
)
def test_bad_input_gets_one_sentence(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "schools.csv").write_text("id,name\n1,Delft\n")
    (tmp_path / "text.geojson").write_text("north of the river")
    (tmp_path / "table.csv").write_text("id,name\n1,Delft\n")
    for layer in ("north", "south"):
        frame = gpd.GeoDataFrame(geometry=[SQUARE], crs=4326)
        frame.to_file(tmp_path / "layers.gpkg", layer=layer)
    write_shapes(tmp_path, SQUARE, name="without-crs.shp")
    (tmp_path / "without-crs.prj").unlink()
    write_shapes(tmp_path, SQUARE, name="good.geojson")
    ring = {"type": "Polygon", "coordinates": [[[4.3, 52], [4.4, 52], [4.4, 52.1]]]}
    feature = {"type": "Feature", "properties": {}, "geometry": ring}
    (tmp_path / "open.geojson").write_text(json.dumps(feature))
    metres = shapely.box(84_000, 446_000, 85_000, 447_000)
    (tmp_path / "metres-as-degrees.geojson").write_text(
        json.dumps({"type": "Feature", "properties": {}, "geometry": metres.__geo_interface__})
    )
    assert said in refusal(tmp_path, **keys)


@pytest.mark.parametrize(
    ("districts", "said"),
    [
        ("absent.gpkg", "no such file"),
        ("points.geojson", "made of polygons, and a Point"),
        ("twice.gpkg", "two districts are called 'West'; give each its own name"),
        ({"file": "twice.gpkg", "layer": "east"}, "has no layer 'east'"),
        ("unnamed.gpkg", "district 2 of 2 has no name in the column name"),
    ],
)
def test_districts_that_cannot_be_used_are_refused(
    tmp_path: Path, districts: object, said: str
) -> None:
    write_shapes(tmp_path, shapely.Point(4.3, 52), name="points.geojson")
    twice = gpd.GeoDataFrame({"name": ["West", "West"]}, geometry=[SQUARE, SQUARE], crs=4326)
    twice.to_file(tmp_path / "twice.gpkg", layer="west")
    unnamed = twice.assign(name=["West", None])
    unnamed.to_file(tmp_path / "unnamed.gpkg")
    refused = refusal(tmp_path, bounding_box=BOX, districts=districts)
    assert said in refused
    assert "districts = " in refused


def test_districts_elsewhere_are_reported(tmp_path: Path) -> None:
    elsewhere = gpd.GeoDataFrame({"name": ["a"]}, geometry=[shapely.box(9, 9, 10, 10)], crs=4326)
    elsewhere.to_file(tmp_path / "d.gpkg")
    city = town(tmp_path, bounding_box=BOX, districts="d.gpkg")
    assert city.warnings == ("districts = d.gpkg: none of them meets the bounding box",)


def test_a_place_that_was_not_looked_up_says_how(tmp_path: Path) -> None:
    with pytest.raises(PlaceNotLookedUpError, match="`vsvi region town` asks once"):
        town(tmp_path, region={"place": "Delft"})
