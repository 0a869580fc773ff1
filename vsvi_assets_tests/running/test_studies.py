"""The example studies of the README run on the sandbox as they stand there."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
from dagster import AssetKey

from vsvi_assets.city import City, PlaceNotLookedUpError, load_cities
from vsvi_assets.database.dataset import dataset
from vsvi_assets.database.selection import read_removals
from vsvi_assets.running.places import look_up_region
from vsvi_assets.sandbox import OverpassLimits, Sandbox, demo_world
from vsvi_assets_tests.project import Project, picture

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "docs" / "studies"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    world = demo_world()
    world.picture = picture
    with Sandbox(world, overpass_limits=OverpassLimits(pause=0.005)) as sandbox:
        yield sandbox


@pytest.fixture
def studies(project: Project, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("VSVI_SANDBOX_URL", sandbox.url)
    project.settings.cities_dir.mkdir()
    project.settings.data_dir.mkdir()
    return project


def study(project: Project, name: str) -> City:
    """Take a study out of docs/studies, as the README says."""
    settings = project.settings
    shutil.copy(STUDIES / f"{name}.json", settings.cities_dir)
    for path in STUDIES.iterdir():
        if path.suffix != ".json":
            shutil.copy(path, settings.data_dir)
    cities, broken = load_cities(settings.cities_dir, settings.data_dir)
    for each in broken:
        assert isinstance(each.error, PlaceNotLookedUpError)
        assert "Markerstad, Markermeer" in look_up_region(each.error, settings)
        cities, _ = load_cities(settings.cities_dir, settings.data_dir)
    [city] = cities
    assert not city.warnings
    return city


def test_the_readme_shows_the_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Your study\n")[2].partition("\n## ")[0]
    shown = [json.loads(part.partition("```")[0]) for part in section.split("```json\n")[1:]]
    for path in sorted(STUDIES.glob("*.json")):
        assert json.loads(path.read_text()) in shown, path.name
        assert f"`{path.name}`" in section


def test_a_municipality_by_its_name(studies: Project) -> None:
    city = study(studies, "municipality")
    run = studies.run_city(city)
    assert run.success, run.failures
    points = gpd.read_file(city.street_points_path)
    assert set(points["highway"]) == {"residential", "living_street", "tertiary"}
    assert len(points) > 100
    assert "South-west" in city.coverage_report_path.read_text(encoding="utf-8")


def test_a_list_of_schools(studies: Project, sandbox: Sandbox) -> None:
    city = study(studies, "schools")
    run = studies.run_city(city)
    assert run.success, run.failures
    assert not sandbox.stats.requests["overpass"]
    rows = {row["place_id"]: row for row in dataset(studies.postgis, city).read_all().to_pylist()}
    assert sorted(rows) == ["S-104", "S-117", "S-121", "S-203", "S-230", "S-301"]
    assert rows["S-121"]["place_name"] == "Het Rond, primary school"
    assert rows["S-104"]["state"] == "stored"
    assert rows["S-121"]["state"] == "gap"  # nobody took a photograph near to it
    assert rows["S-301"]["state"] == "gap"
    assert rows["S-301"]["reason"].startswith("No image within 60 m")


def test_a_panel_over_years(studies: Project) -> None:
    city = study(studies, "panel")
    run = studies.run_city(city)
    assert run.success, run.failures
    table = dataset(studies.postgis, city).read_all().to_pandas()
    table = table[table["image_id"].notna()]
    assert not table.duplicated(["street_point_id", "year"]).any()
    assert table["street_point_id"].duplicated().any()
    local = table["captured_at"].dt.tz_convert("Europe/Amsterdam")
    assert (local.dt.year == table["year"]).all()
    assert set(local.dt.month) <= {4, 5, 6, 7, 8, 9}
    assert local.dt.hour.between(9, 17).all()
    years = table.groupby("street_point_id")["year"].transform("nunique")
    assert (table["balanced"] == (years == table["year"].nunique())).all()
    removals = read_removals(studies.postgis, city)
    assert [each.rule for each in removals] == ["months", "hours", "duplicates", "per_year"]
    event = studies.instance.get_latest_materialization_event(
        AssetKey(["panel", "selected_image_ids"])
    )
    assert event
    assert event.asset_materialization
    shown: Any = event.asset_materialization.metadata["rules"].value
    assert [record.data["removed"] for record in shown.records] == [
        each.removed for each in removals
    ]


def test_facades(studies: Project) -> None:
    city = study(studies, "facades")
    run = studies.run_city(city)
    assert run.success, run.failures
    table = dataset(studies.postgis, city).read_all().to_pandas()
    table = table[table["image_id"].notna()]
    assert len(table) > 20
    assert not table["image_id"].duplicated().any()
    assert set(table["rule"]) == {"newest, one to one"}
    assert (table["is_pano"].astype(bool) | (table["angle"] >= 60)).all()
    assert (table["candidates"] >= table["rank"]).all()
    assert (table["state"] == "stored").all()


def test_a_gpx_track(studies: Project, sandbox: Sandbox) -> None:
    city = study(studies, "ride")
    run = studies.run_city(city)
    assert run.success, run.failures
    assert not sandbox.stats.requests["overpass"]
    table = dataset(studies.postgis, city).read_all().to_pandas()
    metres = table["place_metre"].sort_values().tolist()
    assert metres == [20.0 * number for number in range(len(metres))]
    assert set(table["place_track"]) == {"Morning ride"}
    assert (table["state"] == "stored").mean() > 0.9
