"""The asset of street points: when Overpass is asked, by whom, and what the asset's page says."""

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dagster import AssetKey, ExecuteInProcessResult

from vsvi_assets.city import City
from vsvi_assets.orchestration.common import REFRESH_TAG
from vsvi_assets.orchestration.resources import OverpassResource, PostgisResource
from vsvi_assets.orchestration.retries import reason
from vsvi_assets.sandbox import Fault, Faults
from vsvi_assets.settings import SettingError
from vsvi_assets_tests.project import Project

EXTRACT = """<osm version="0.6">
  <node id="1" lat="52.524" lon="5.205"/><node id="2" lat="52.524" lon="5.213"/>
  <way id="10"><nd ref="1"/><nd ref="2"/><tag k="highway" v="residential"/></way>
</osm>"""


def metadata(result: ExecuteInProcessResult, city: City) -> dict[str, Any]:
    node = AssetKey([city.name, "street_points"]).to_python_identifier()
    [event] = result.asset_materializations_for_node(node)
    return {label: value.value for label, value in event.metadata.items()}


def the_failure(result: ExecuteInProcessResult) -> str:
    [failure] = (event for event in result.all_events if event.is_step_failure)
    return reason(failure)


def queries(project: Project) -> int:
    return project.sandbox.stats.requests["overpass"]


def make_older(project: Project, age: timedelta) -> None:
    """Date the one answer that is kept back."""
    [path] = project.settings.data_dir.glob("osmnx/*/request.json")
    request = json.loads(path.read_text())
    asked_at = datetime.fromisoformat(request["asked_at"]) - age
    path.write_text(json.dumps(request | {"asked_at": asked_at.isoformat()}))


def test_street_points_come_from_overpass_once(project: Project) -> None:
    city = project.write_city(interval=40)
    first = metadata(project.materialize(city, "street_points"), city)
    before = city.street_points_path.read_bytes()
    features = json.loads(before)["features"]
    assert len(features) > 100
    assert (first["dagster/row_count"], first["srid"]) == (len(features), 28992)
    assert first["streets from cache"] is False

    asked = queries(project)
    again = metadata(project.materialize(city, "street_points"), city)
    assert queries(project) == asked
    assert city.street_points_path.read_bytes() == before
    assert again["streets from cache"] is True
    assert again["streets of"] == first["streets of"]
    assert again["streets of"].startswith(f"{datetime.now(UTC):%Y-}")


def test_overwriting_asks_anew(project: Project) -> None:
    city = project.write_city()
    project.materialize(city, "street_points")
    before, asked = city.street_points_path.read_bytes(), queries(project)
    project.sandbox.world.add_street([(5.2041, 52.5221), (5.2139, 52.5279)], highway="path")
    result = project.materialize(city, "street_points", overwrite=True)
    assert queries(project) == 2 * asked
    assert metadata(result, city)["streets from cache"] is False
    assert city.street_points_path.read_bytes() != before


def test_a_run_that_overwrites_asks_for_each_part_once_in_all_its_attempts(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSVI_OVERPASS_AREA", "1")
    city = project.write_city()
    project.materialize(city, "street_points")
    parts = queries(project)
    assert parts > 3
    project.sandbox.faults = Faults(seed=2, overpass={Fault.RESET: 0.3})
    result = project.materialize(city, "street_points", overwrite=True)
    failed = project.sandbox.stats.faults["overpass"][Fault.RESET]
    assert failed > 1
    assert sum(event.is_step_restarted for event in result.all_events) == failed
    assert queries(project) == 2 * parts + failed


def test_a_refresh_asks_for_what_is_older_than_its_tick(project: Project) -> None:
    city = project.write_city(schedule="0 0 1 1 *")
    tags = {REFRESH_TAG: "0 0 1 1 *"}
    project.materialize(city, "street_points")
    asked = queries(project)
    project.materialize(city, "street_points", tags=tags)
    assert queries(project) == asked, "nothing is older than the tick"

    make_older(project, timedelta(days=400))
    project.materialize(city, "street_points")
    assert queries(project) == asked, "not a refresh"
    project.materialize(city, "street_points", tags=tags)
    assert queries(project) == 2 * asked


def test_vsvi_materialize_passes_overwrite_on(project: Project) -> None:
    city = project.write_city()
    for asked, overwrite in ((1, False), (2, True)):
        run = project.run_city(city, plan_only=True, overwrite=overwrite)
        assert not run.failures
        assert queries(project) == asked


def test_streets_that_appear_later_are_found(project: Project) -> None:
    nowhere = {"west": 3.1, "south": 53.1, "east": 3.11, "north": 53.11}
    city = project.write_city(bounding_box=nowhere, srid=32631)
    for _ in range(2):
        result = project.materialize(city, "street_points", raise_on_error=False)
        assert "No street lies in the box west 3.1" in the_failure(result)
        assert not any(event.is_step_up_for_retry for event in result.all_events)
        assert not city.street_points_path.exists()
    project.sandbox.world.add_street([(3.101, 53.101), (3.109, 53.109)], highway="track")
    project.materialize(city, "street_points")
    assert city.street_points_path.exists()


def test_a_busy_server_is_asked_again_and_the_run_says_so(project: Project) -> None:
    project.sandbox.overpass_limits.pause = 0.01
    project.sandbox.faults = Faults(overpass={Fault.TOO_BUSY: 1.0}, most=2)
    result = project.materialize(project.write_city(), "street_points")
    assert queries(project) == 3
    assert not any(event.is_step_up_for_retry for event in result.all_events)

    project.sandbox.faults = Faults(overpass={Fault.TOO_BUSY: 1.0})
    result = project.materialize(
        project.write_city(), "street_points", overwrite=True, raise_on_error=False
    )
    assert "too busy, 6 times. Run again later" in the_failure(result)
    assert not any(event.is_step_up_for_retry for event in result.all_events)
    assert queries(project) == 3 + 6


def test_a_streets_file_asks_nobody(project: Project) -> None:
    path = project.folder / "town.osm"
    path.write_text(EXTRACT)
    city = project.write_city(streets_file=str(path))
    result = project.materialize(city, "street_points")
    assert queries(project) == 0
    assert metadata(result, city)["streets"] == str(path)


def test_one_asks_while_the_others_wait_for_their_turn(project: Project) -> None:
    """A turn is a lock of the database; that queries are made within it is tested in streets."""
    city = project.write_city()
    database = PostgisResource(data_dir=str(project.settings.data_dir))
    reports: list[str] = []
    entered = threading.Event()

    def take_turn() -> None:
        with OverpassResource().server(city, database, reports.append).turn():
            entered.set()

    other = threading.Thread(target=take_turn)
    with OverpassResource().server(city, database, reports.append).turn():
        other.start()
        assert not entered.wait(1)
    assert entered.wait(10)
    other.join()
    [report] = reports
    assert report.startswith("Overpass (127.0.0.1) is locked by vsvi on ")
    assert "Waiting for it" in report


def test_the_server_is_asked_as_the_settings_say(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSVI_OVERPASS_MEMORY", "2048")
    monkeypatch.setenv("VSVI_OVERPASS_AREA", "100")
    monkeypatch.setenv("VSVI_CONTACT", "somebody@example.org")
    database = PostgisResource(data_dir=str(project.settings.data_dir))
    server = OverpassResource().server(project.write_city(), database, print)
    assert (server.memory, server.area, server.pause) == (2048, 100, 30)
    assert "somebody@example.org" in server.user_agent
    monkeypatch.setenv("VSVI_OVERPASS_MEMORY", "0")
    with pytest.raises(SettingError, match="VSVI_OVERPASS_MEMORY"):
        OverpassResource().server(project.write_city(), database, print)
