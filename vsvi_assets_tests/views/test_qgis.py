"""A city's data opens where its users look at it: in QGIS, and in notebooks."""

import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from psycopg2.extensions import parse_dsn

from vsvi_assets.cli import main
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.views.qgis import qgis_project
from vsvi_assets_tests.project import Project

SYSTEM_PYTHON = "/usr/bin/python3"

OPEN_IN_QGIS = """
import sys
from qgis.core import QgsApplication, QgsProject
application = QgsApplication([], False)
application.initQgis()
project = QgsProject.instance()
assert project.read(sys.argv[1])
print(project.crs().authid())
for node in project.layerTreeRoot().findLayers():
    layer = node.layer()
    print(layer.name(), layer.isValid(), layer.crs().authid(), layer.featureCount(), sep=";")
project.clear()
application.exitQgis()
"""

NOTEBOOK = """
import geopandas, pandas, pathlib, sqlalchemy
points = geopandas.read_file("data/town/street_points.geojson")
tile = geopandas.read_file(next(pathlib.Path("data/town/tiles").glob("mly1_public_*")))
photographs = pandas.concat(map(geopandas.read_file, pathlib.Path("data/town/sequences").glob("*/images.geojson")))
engine = sqlalchemy.create_engine("postgresql+psycopg2:///?service=vsvi")
selected = geopandas.read_postgis("SELECT * FROM town.images JOIN town.selected_images ON id = image_id", engine, "geometry")
"""  # noqa: E501


@pytest.fixture
def connected(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose database is the service `vsvi`, as of the project's own server."""
    address = parse_dsn(os.environ["VSVI_POSTGRES_URL"].replace("+psycopg2", ""))
    service = project.folder / "pg_service.conf"
    service.write_text("[vsvi]\n" + "".join(f"{key}={value}\n" for key, value in address.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    monkeypatch.chdir(project.folder)
    city = project.write_city()
    project.materialize_metadata(city)
    project.materialize_images(city)
    return project


def test_qgis_opens_the_project(connected: Project) -> None:
    if (
        not Path(SYSTEM_PYTHON).exists()
        or subprocess.run(
            [SYSTEM_PYTHON, "-c", "import qgis.core"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("QGIS is not installed (Debian: apt-get install python3-qgis)")
    city = connected.write_city()
    city.qgis_project_path.write_text(qgis_project(city, None), encoding="utf-8")
    opened = subprocess.run(
        [SYSTEM_PYTHON, "-c", OPEN_IN_QGIS, city.qgis_project_path],
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
        check=False,
    )
    inventory = take_inventory(city, connected.postgis)
    with connected.postgis.transaction() as cursor:
        cursor.execute(
            "SELECT (SELECT count(*) FROM town.street_points), (SELECT count(*) FROM town.images),"
            " (SELECT count(*) FROM town.streets)"
        )
        [(points, images, streets)] = cursor.fetchall()
    assert opened.stdout.splitlines() == [
        "EPSG:28992",
        f"selected images;True;EPSG:28992;{inventory.selected}",
        f"street points;True;EPSG:28992;{points}",
        f"all images;True;EPSG:28992;{images}",
        f"streets;True;EPSG:28992;{streets}",
        "area;True;EPSG:28992;1",
    ], opened.stderr


def test_the_layers_can_be_read(connected: Project) -> None:
    """Each layer's table by itself, since QGIS is not installed everywhere."""
    root = ElementTree.fromstring(qgis_project(connected.write_city(), None))
    tables = {}
    for layer in root.iter("maplayer"):
        source = layer.findtext("datasource", "")
        table = source.partition(" table=")[2].rpartition(" (geo)")[0]
        is_query = table.startswith('"(')
        query = table[2:-2].replace('\\"', '"') if is_query else f"TABLE {table}"
        with connected.postgis.transaction() as cursor:
            cursor.execute(f"SELECT count(*), min(ST_SRID(geo)) FROM ({query}) AS layer")  # noqa: S608
            [tables[layer.findtext("id")]] = cursor.fetchall()
    assert {srid for _, srid in tables.values()} == {28992}
    assert tables["area_of_city"] == (1, 28992)
    assert tables["streets_of_city"][0] > 0
    assert set(tables) == {layer.get("id") for layer in root.iter("layer") if layer.get("id")}


def test_the_project_holds_no_password(project: Project) -> None:
    city = project.write_city()
    url = "postgresql://someone:secret@db.example.org:5433/cities"
    text = qgis_project(city, url)
    ElementTree.fromstring(text)
    assert "host='db.example.org' port='5433' dbname='cities' user='someone'" in text
    assert "secret" not in text


def test_the_command_writes_the_project(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("DAGSTER_HOME", str(project.folder))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", os.environ["VSVI_POSTGRES_URL"])
    city = project.write_city()
    result = CliRunner().invoke(main, ["qgis", "town"])
    assert result.exit_code == 1
    assert "Nothing is selected for town yet: run `vsvi materialize town` first." in result.output
    assert not city.qgis_project_path.exists()

    project.materialize_metadata(city)
    result = CliRunner().invoke(main, ["qgis", "town"])
    assert result.output == f"qgis {city.qgis_project_path}\n"
    assert ElementTree.parse(city.qgis_project_path).getroot().get("projectname") == "town"


def test_geopandas_reads_every_output(connected: Project) -> None:
    city = connected.write_city()
    read: dict[str, object] = {}
    exec(NOTEBOOK, read)
    selected = take_inventory(city, connected.postgis).selected
    for name in ("points", "tile", "photographs", "selected"):
        table = read[name]
        assert len(table) > 0  # type: ignore[arg-type]
        assert table.crs.to_epsg() == 4326  # type: ignore[attr-defined]
    assert len(read["photographs"]) == selected  # type: ignore[arg-type]
