"""The key points_file: the user's own places, in each format, and what is wrong with some."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vsvi_assets.city.places import read_places, surroundings
from vsvi_assets.city.projection import utm_srid
from vsvi_assets_tests.city.test_region import BOX, refusal, town

CSV = """id,name,lon,lat,pupils,code,opened
S-1,"Het Noorden, east",4.351,52.011,120,0101,2001-09-01
S-2,De Zon,4.352,52.012,80,0102,
S-3,Übung,4.353,52.013,,0103,1950-01-01
"""


def write(folder: Path, text: str, name: str = "schools.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_file_keeps_ids_and_columns(tmp_path: Path) -> None:
    write(tmp_path, CSV)
    city = town(tmp_path, points_file="schools.csv")
    places = city.places
    assert places is not None
    assert places["place_id"].tolist() == ["S-1", "S-2", "S-3"]
    assert places["id"].tolist() == [1, 2, 3]
    assert places["place_pupils"].dropna().tolist() == [120, 80]
    assert places["place_code"].tolist() == ["0101", "0102", "0103"]
    assert places["place_name"].tolist() == ["Het Noorden, east", "De Zon", "Übung"]
    assert places.geometry.x.tolist() == [4.351, 4.352, 4.353]
    assert not city.warnings


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CSV, "utf-8-sig"),
        (CSV.replace("lon", "Longitude").replace("lat", "LATITUDE"), "utf-16"),
        ("id;lon;lat\nS-1;4.351;52.011\nS-2;4.352;52.012\nS-3;4.353;52.013\n", "utf-8"),
        ("id\tx\ty\r\nS-1\t4.351\t52.011\r\nS-2\t4.352\t52.012\r\nS-3\t4.353\t52.013\r\n", "utf-8"),
    ],
)
def test_csv_as_different_programs_write_it(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "s.csv").write_text(text, encoding=encoding)
    table = read_places(tmp_path / "s.csv", None, 50).table
    assert table["place_id"].tolist() == ["S-1", "S-2", "S-3"]
    assert table.geometry.y.tolist() == [52.011, 52.012, 52.013]


@pytest.mark.parametrize(
    ("name", "crs"), [("s.gpkg", 28992), ("s.geojson", 4326), ("s.shp", 32631)]
)
def test_a_file_of_points_keeps_ids_and_columns(tmp_path: Path, name: str, crs: int) -> None:
    frame = gpd.GeoDataFrame(
        {"ID": [70, 30], "kind": ["primary", None]},
        geometry=gpd.points_from_xy([4.35, 4.36], [52.01, 52.02]),
        crs=4326,
    )
    frame.to_crs(crs).to_file(tmp_path / name)
    table = read_places(tmp_path / name, None, 50).table
    assert table["id"].tolist() == [70, 30]
    assert table["place_id"].tolist() == ["70", "30"]
    assert table["place_kind"].iloc[0] == "primary"
    assert shapely.distance(table.geometry.to_numpy(), frame.geometry.to_numpy()).max() < 1e-7


def gpx(points: list[tuple[float, float]], kind: str = "trk") -> str:
    tag = {"trk": "trkpt", "rte": "rtept", "wpt": "wpt"}[kind]
    inside = "".join(f'<{tag} lat="{lat}" lon="{lon}"></{tag}>' for lon, lat in points)
    body = {
        "trk": f"<trk><name>ride</name><trkseg>{inside}</trkseg></trk>",
        "rte": f"<rte><name>ride</name>{inside}</rte>",
        "wpt": inside.replace("></wpt>", "><name>stop</name></wpt>"),
    }[kind]
    return (
        '<?xml version="1.0"?><gpx version="1.1" creator="x" '
        f'xmlns="http://www.topografix.com/GPX/1/1">{body}</gpx>'
    )


@pytest.mark.parametrize("kind", ["trk", "rte"])
def test_a_track_has_a_place_each_interval(tmp_path: Path, kind: str) -> None:
    track = [(4.35, 52.01), (4.36, 52.01), (4.36, 52.005)]
    write(tmp_path, gpx(track, kind), "ride.gpx")
    city = town(tmp_path, points_file="ride.gpx", interval=25)
    places = city.places
    assert places is not None
    geod = pyproj.Geod(ellps="WGS84")
    length = geod.line_length([lon for lon, _ in track], [lat for _, lat in track])
    assert len(places) == int(length / 25) + 1
    assert places["place_metre"].tolist() == [25 * number for number in range(len(places))]
    assert set(places["place_track"]) == {"ride"}
    lon, lat = places.geometry.x.to_numpy(), places.geometry.y.to_numpy()
    azimuth, _, steps = geod.inv(lon[:-1], lat[:-1], lon[1:], lat[1:])
    straight = np.abs(steps - 25) < 0.05
    assert straight.sum() >= len(steps) - 1  # but for the corner
    turned = np.abs((places["bearing"].to_numpy()[:-1] - azimuth + 90) % 180 - 90)
    assert turned[straight][1:-1].max() < 46
    assert np.median(turned) < 0.1


def test_waypoints_are_places(tmp_path: Path) -> None:
    write(tmp_path, gpx([(4.35, 52.01), (4.36, 52.02)], "wpt"), "stops.gpx")
    table = read_places(tmp_path / "stops.gpx", None, 50).table
    assert table["place_name"].tolist() == ["stop", "stop"]
    assert table.geometry.x.tolist() == [4.35, 4.36]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,x1,y1\n1,2,3\n", "needs the columns lon and lat, in degrees; its columns are id, x1"),
        ("id,lon,lat\n", "has no place in it"),
        ('id,lon,lat\n1,4.35,52\n2,"4,36",52\n', "lon must be a number of degrees such as 4.3571"),
        ("id,lon,lat\n1,4.35,\n", "lat must be a number of degrees such as 4.3571, and is '' at"),
        ("lon,lat\n4.35,52,9\n", "its lines have more fields than the first line has names"),
        ("id,lon,lat\n1,84000,446000\n", "have an impossible position, the first of them place 1"),
        ("id,lon,lat\n1,52,134\n2,52,4\n", "lat 134; are lon and lat swapped?"),
        ("id,lon,lat\n1,4.3,52\n1,4.31,52\n", "the same id is at several positions: '1'"),
        ("id,lon,lat\n,4.3,52\n2,4.31,52\n", "place 1 of 2 has no id"),
        ("id,lon,lat\n1,4.3,52\n2,52,4.31\n3,4.31,52.01\n", "lon and lat were swapped: '2'"),
        ("", "cannot be read as CSV"),
    ],
)
def test_places_that_cannot_be_right_are_refused(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, text, "s.csv")
    assert said in refusal(tmp_path, points_file="s.csv")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"points_file": "absent.gpkg"}, "no such file"),
        ({"points_file": "absent.csv"}, "cannot be read"),
        ({"points_file": "absent.gpx"}, "GDAL cannot read it"),
        ({"points_file": "north.gpx"}, "an impossible position, the first of them place 1"),
        ({"points_file": "point.gpx"}, "its tracks have no length"),
        ({"points_file": 5}, "points_file.file = 5: must be the path of a file"),
        ({"points_file": {"file": "s.csv", "layer": "s", "name": "x"}}, "the keys are file, layer"),
        ({"points_file": "s.csv", "srid": 999_999}, "srid 999999 is unknown"),
        ({"points_file": "s.csv", "srid": 4326}, "has no unit of metres"),
        ({"points_file": "areas.geojson"}, "places are points, and 1 of 1 are something else"),
        ({"points_file": "s.csv", "street_classes": ["primary"]}, "there are none"),
    ],
)
def test_bad_input_gets_one_sentence(tmp_path: Path, keys: dict[str, object], said: str) -> None:
    frame = gpd.GeoDataFrame(geometry=[shapely.box(4, 52, 4.1, 52.1)], crs=4326)
    frame.to_file(tmp_path / "areas.geojson")
    write(tmp_path, CSV, "s.csv")
    write(tmp_path, gpx([(4.35, 95), (4.36, 95)], "trk"), "north.gpx")
    write(tmp_path, gpx([(4.35, 52)], "trk"), "point.gpx")
    assert said in refusal(tmp_path, **keys)


def test_a_segment_of_one_point_does_not_spoil_a_track(tmp_path: Path) -> None:
    text = gpx([(4.35, 52.01), (4.36, 52.01)], "trk")
    write(tmp_path, text, "ride.gpx")
    one = '<trkseg><trkpt lat="52.3" lon="4.3"/></trkseg>'
    write(tmp_path, text.replace("<trkseg>", f"{one}<trkseg>"), "spoilt.gpx")
    tables = [read_places(tmp_path / name, None, 50).table for name in ("ride.gpx", "spoilt.gpx")]
    assert len(tables[0]) > 10
    assert_geodataframe_equal(*tables)


def test_numbers_too_large_for_their_type_stay_texts(tmp_path: Path) -> None:
    write(tmp_path, f"id,lon,lat,a,b,c\n1,4.35,52.01,{'9' * 5000},1e999,7\n", "s.csv")
    table = read_places(tmp_path / "s.csv", None, 50).table
    row = table.iloc[0]
    assert (row["place_a"], row["place_b"], row["place_c"]) == ("9" * 5000, "1e999", 7)


def test_places_swapped_into_a_box_are_refused_and_those_outside_reported(tmp_path: Path) -> None:
    write(tmp_path, "id,lon,lat\na,4.35,52.05\nb,52.05,4.35\n", "s.csv")
    said = refusal(tmp_path, bounding_box=BOX, points_file="s.csv")
    assert "1 of 2 places look as if lon and lat were swapped: 'b'" in said
    write(tmp_path, "id,lon,lat\na,4.35,52.05\nb,9,48\n", "s.csv")
    city = town(tmp_path, bounding_box=BOX, points_file="s.csv")
    assert city.places_outside.tolist() == [False, True]
    [warning] = city.warnings
    assert "1 of 2 places lie outside the bounding box, and get no image: 'b'" in warning


def test_a_row_that_is_repeated_counts_once(tmp_path: Path) -> None:
    write(tmp_path, "id,lon,lat\na,4.35,52.05\na,4.35,52.05\nb,4.36,52.05\n", "s.csv")
    city = town(tmp_path, points_file="s.csv")
    assert city.places is not None
    assert city.places["place_id"].tolist() == ["a", "b"]
    assert "1 of 3 rows repeat an id and its position, and are left out: 'a'" in city.warnings[0]


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from([5, 100, 3000]), st.floats(-75, 75), st.floats(-170, 170)
)
def test_all_that_is_near_to_a_place_lies_in_the_area(
    seed: int, metres: float, lat: float, lon: float
) -> None:
    numbers = np.random.default_rng(seed)
    places = gpd.GeoDataFrame(
        geometry=gpd.points_from_xy(
            lon + numbers.uniform(-0.3, 0.3, 20), lat + numbers.uniform(-0.3, 0.3, 20)
        ),
        crs=4326,
    )
    area = surroundings(places, metres, utm_srid(tuple(places.total_bounds)))
    geod = pyproj.Geod(ellps="WGS84")
    repeated = places.geometry.repeat(20)
    lons, lats, _ = geod.fwd(
        repeated.x, repeated.y, numbers.uniform(0, 360, 400), numbers.uniform(0, metres, 400)
    )
    assert shapely.intersects_xy(area, np.array(lons), np.array(lats)).all()


def test_ids_of_the_city_file_and_its_json_agree(tmp_path: Path) -> None:
    write(tmp_path, CSV)
    city = town(tmp_path, points_file="schools.csv")
    again = town(tmp_path, **json.loads(city.model_dump_json(exclude_unset=True)))
    assert again.area.outline.equals(city.area.outline)
