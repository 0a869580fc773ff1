"""Studies of the user's own places: from the file to the dataset, without a street."""

import io
import json

import geopandas as gpd
import pandas as pd
import pyarrow.parquet
import pytest

from vsvi_assets.city import City
from vsvi_assets.database.dataset import dataset
from vsvi_assets_tests.project import BOX, Project

WEST, SOUTH, EAST, NORTH = BOX.values()
NEAR_ROW_0 = SOUTH + (NORTH - SOUTH) / 16

SCHOOLS = f"""id,name,lon,lat,pupils,state
s-7,De Dijk,{WEST + 0.002},{NEAR_ROW_0},120,open
s-3,"Noord, west",{WEST + 0.005},{NEAR_ROW_0 + 0.0001},,closed
s-9,Ver weg,{EAST + 0.05},{NORTH},40,open
s-1,In het veld,{WEST + 0.00001},{NORTH - 0.00001},8,open
"""


@pytest.fixture
def schools(project: Project) -> City:
    folder = project.settings.data_dir
    folder.mkdir(exist_ok=True)
    (folder / "schools.csv").write_text(SCHOOLS)
    return project.write_city(points_file="schools.csv", max_distance=45)


def test_every_place_is_once_in_the_result(project: Project, schools: City) -> None:
    run = project.run_city(schools)
    assert run.success, run.failures
    assert not project.sandbox.stats.requests["overpass"]

    table = dataset(project.postgis, schools).read_all().to_pandas().set_index("place_id")
    asked = pd.read_csv(io.StringIO(SCHOOLS)).set_index("id")
    assert sorted(table.index) == sorted(asked.index)
    for place_id, row in asked.iterrows():
        found = table.loc[place_id]
        for name in ("name", "pupils", "state"):
            assert pd.isna(row[name]) or found[f"place_{name}"] == row[name]
    assert table.loc[["s-7", "s-3"], "state"].tolist() == ["stored", "stored"]
    assert table.loc["s-9", "reason"] == "The place lies outside the bounding box."
    assert table.loc["s-1", "reason"] == "No image within 45 m passes the city's rules."
    assert table.loc[["s-9", "s-1"], "state"].tolist() == ["gap", "gap"]
    assert (table.loc[["s-7", "s-3"], "distance"] <= 45).all()

    points = gpd.read_file(schools.street_points_path)
    assert points["place_id"].tolist() == list(asked.index)
    assert points["place_pupils"].dropna().tolist() == [120, 40, 8]
    stored = pyarrow.parquet.read_table(schools.dataset_path)
    assert stored["place_name"].to_pylist().count("De Dijk") == 1
    with project.postgis.transaction() as cursor:
        cursor.execute("SELECT place_id, place FROM town.street_points ORDER BY place_id")
        rows = dict(cursor.fetchall())
    assert rows["s-7"] == {"name": "De Dijk", "pupils": 120, "state": "open"}
    [outside] = [check for key, check in run.checks.items() if key.name == "in_the_box"]
    assert not outside.passed
    assert "s-9" in schools.warnings[0]


def test_places_alone_say_where_the_city_is(project: Project) -> None:
    folder = project.settings.data_dir
    folder.mkdir(exist_ok=True)
    inside = [line for line in SCHOOLS.splitlines() if "s-9" not in line]
    (folder / "schools.csv").write_text("\n".join(inside))
    city = project.write_city(bounding_box=None, points_file="schools.csv", max_distance=45)
    run = project.run_city(city)
    assert run.success, run.failures
    table = dataset(project.postgis, city).read_all().to_pandas()
    assert table["state"].tolist().count("stored") == 2
    with project.postgis.transaction() as cursor:
        cursor.execute(
            "SELECT count(*), bool_and(EXISTS (SELECT FROM town.street_points AS point WHERE "
            "ST_DWithin(point.geo, image.geo, 49))) FROM town.images AS image"
        )
        [(count, are_near)] = cursor.fetchall()
    assert count
    assert are_near


def test_a_track_and_streets_of_a_file(project: Project) -> None:
    world, folder = project.sandbox.world, project.settings.data_dir
    folder.mkdir(exist_ok=True)
    row = [(WEST + 0.001 * step, NEAR_ROW_0 + 0.00002) for step in range(1, 9)]
    trkpts = "".join(f'<trkpt lat="{lat}" lon="{lon}"/>' for lon, lat in row)
    (folder / "ride.gpx").write_text(
        '<?xml version="1.0"?><gpx version="1.1" creator="x" '
        'xmlns="http://www.topografix.com/GPX/1/1"><trk><name>ride</name>'
        f"<trkseg>{trkpts}</trkseg></trk></gpx>"
    )
    streets = [
        {
            "type": "Feature",
            "properties": {"osmid": street.id, "highway": street.tags["highway"]}
            | {"name": street.tags.get("name")},
            "geometry": {
                "type": "LineString",
                "coordinates": [world.nodes[node] for node in street.nodes],
            },
        }
        for street in world.streets.values()
    ]
    (folder / "streets.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": streets})
    )
    city = project.write_city(
        bounding_box=None, points_file="ride.gpx", interval=40, streets_file="streets.geojson"
    )
    run = project.run_city(city)
    assert run.success, run.failures
    assert not project.sandbox.stats.requests["overpass"]
    table = dataset(project.postgis, city).read_all().to_pandas()
    assert table["place_metre"].sort_values().tolist() == [40.0 * n for n in range(len(table))]
    # At a crossing a lane may be as near.
    assert (table["street"] == "Row 0").mean() > 0.9
    assert (table["highway"] == "residential").mean() > 0.9
    assert table["bearing"].between(89, 91).all()
