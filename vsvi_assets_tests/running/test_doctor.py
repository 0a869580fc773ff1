"""The doctor finds what is wrong, and says so without the token."""

import shutil
import time
from datetime import UTC, date, datetime
from pathlib import Path

import psycopg2
import pytest
from click.testing import CliRunner
from dagster import DagsterInstance

from vsvi_assets.city import tile_file_name
from vsvi_assets.cli import main
from vsvi_assets.database import server as local_postgis
from vsvi_assets.database.server import LocalPostgis
from vsvi_assets.progress import LogProgress
from vsvi_assets.running.doctor import Finding, Verdict, busiest_day, examine
from vsvi_assets.sandbox.faults import Fault
from vsvi_assets_tests.dagster_internals import DaemonHeartbeat
from vsvi_assets_tests.project import Project

ROOT = Path(__file__).parents[2]


@pytest.fixture
def healthy(project: Project, postgis: LocalPostgis, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project of which nothing is wrong."""
    shutil.copy(ROOT / "dagster.yaml", project.folder)
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("DAGSTER_HOME", str(project.folder))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgis.dagster_url)
    project.write_city()
    with DagsterInstance.get() as instance:
        for daemon in instance.get_daemon_statuses():
            instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), daemon, "test"))
    return project


def found(project: Project, subject: str) -> Finding:
    [finding] = [each for each in examine(project.settings) if each.subject == subject]
    return finding


def bad(project: Project, subject: str) -> str:
    """Return what is reported of something that is wrong, which the exit status shows too."""
    finding = found(project, subject)
    assert finding.verdict == Verdict.BAD
    return str(finding)


def test_nothing_is_wrong(healthy: Project) -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line[0] for line in lines] == [Verdict.GOOD] * 10, result.output
    assert "4 tiles take seconds at 60,000 per minute; 49,999 of 50,000" in result.output
    assert "PostGIS 3." in result.output
    assert healthy.sandbox.environment()["MAPILLARY_TOKEN"] not in result.output


def test_what_is_wrong_makes_the_command_fail(healthy: Project) -> None:
    healthy.write_city(required_disk_space=1e9)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "✗ disk for town" in result.output
    assert "→ make room, or lower required_disk_space" in result.output
    assert "1,000,000,000.0 GB required" in result.output


def test_city_files(healthy: Project) -> None:
    (healthy.settings.cities_dir / "ghost.json").write_text('{"bounding_box": 7}')
    assert "ghost.json: bounding_box = 7" in bad(healthy, "city ghost")
    assert found(healthy, "city town").verdict == Verdict.GOOD
    shutil.rmtree(healthy.settings.cities_dir)
    assert "no such folder; make it" in bad(healthy, "city files")


def test_tiles_of_a_list_that_do_not_meet_the_box_are_reported_before_and_in_a_run(
    healthy: Project,
) -> None:
    names = [tile_file_name(tile) for tile in healthy.write_city().tiles]
    (healthy.folder / "tiles.txt").write_text(f"{names[0]}\nmly1_public_1_1_14\n")
    listed = healthy.write_city(tile_list_file=str(healthy.folder / "tiles.txt"))
    notices = [str(each) for each in examine(healthy.settings) if each.verdict == Verdict.NOTICE]
    [reported] = [notice for notice in notices if "city town" in notice]
    assert "1 of its 2 tiles do not meet the bounding box" in reported
    lines: list[str] = []
    assert healthy.run_city(listed, LogProgress(lines.append), tiles_only=True).success
    assert any("1 of its 2 tiles do not meet the bounding box" in line for line in lines)


def test_the_token(healthy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPILLARY_TOKEN", "MLY|1|not-the-token")
    reported = bad(healthy, "Mapillary token")
    assert "→ Make a client token at https://www.mapillary.com/dashboard/developers" in reported
    assert "not-the-token" not in reported
    monkeypatch.delenv("MAPILLARY_TOKEN")
    monkeypatch.setenv("MAPILLARY_TOKEN_FILE", "no-such-file.txt")
    assert "→ Put the client token" in bad(healthy, "Mapillary token")
    assert "no-such-file.txt, or set MAPILLARY_TOKEN" in bad(healthy, "Mapillary token")


def test_a_token_is_accepted_only_by_an_answer(healthy: Project) -> None:
    assert "accepted by the Graph API" in str(found(healthy, "Mapillary token"))
    for fault in (Fault.SERVER_ERROR, Fault.REDIRECT_TO_HOST, Fault.EXPIRED, Fault.RESET):
        healthy.sandbox.faults.graph = {fault: 1.0}
        assert found(healthy, "Mapillary token").verdict == Verdict.NOTICE
        assert "not tested" in str(found(healthy, "Mapillary token"))
        bad(healthy, "Graph API")


def test_the_services(healthy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = healthy.sandbox.faults
    faults.tiles = {Fault.UNAVAILABLE: 1.0}
    assert "tile server answered 503" in bad(healthy, "tile server")
    faults.tiles = {Fault.NOT_FOUND: 1.0}
    assert found(healthy, "tile server").verdict == Verdict.GOOD
    faults.graph = {Fault.SERVER_ERROR: 1.0}
    assert "Graph API answered 500" in bad(healthy, "Graph API")
    assert found(healthy, "tile server").verdict == Verdict.GOOD
    monkeypatch.setenv("OVERPASS_URL", "http://127.0.0.1:9/api")
    assert "http://127.0.0.1:9/api does not answer" in bad(healthy, "Overpass")
    assert "→ check the connection, and OVERPASS_URL" in bad(healthy, "Overpass")


def test_a_proxy_that_cannot_be_used_is_reported_in_a_sentence(
    healthy: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://user:p#ss@127.0.0.1:3128")
    for service in ("MAPILLARY_TILES_URL", "MAPILLARY_GRAPH_URL", "OVERPASS_URL"):
        monkeypatch.setenv(service, "http://maps.invalid")
    for subject in ("Graph API", "tile server", "Overpass"):
        assert "the proxy of this machine cannot be used" in bad(healthy, subject)
        assert "p#ss" not in bad(healthy, subject)
    assert "not tested" in str(found(healthy, "Mapillary token"))


def test_overpass_is_asked_under_the_projects_own_name(healthy: Project) -> None:
    assert found(healthy, "Overpass").verdict == Verdict.GOOD
    [asked] = healthy.sandbox.stats.asked("overpass status")
    assert asked.user_agent == healthy.settings.user_agent


def test_a_city_on_the_sandbox_asks_nothing_of_mapillary(
    healthy: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy.write_city(services="sandbox")
    assert found(healthy, "sandbox").verdict == Verdict.NOTICE
    monkeypatch.setenv("VSVI_SANDBOX_URL", healthy.sandbox.url)
    assert found(healthy, "sandbox").verdict == Verdict.GOOD
    subjects = {finding.subject for finding in examine(healthy.settings)}
    assert subjects.isdisjoint({"Mapillary token", "tile server", "Overpass", "tile requests"})
    assert healthy.sandbox.stats.requests.keys() <= {"stats"}
    assert "from the sandbox" in str(found(healthy, "city town"))


def test_no_tile_is_asked_for_while_the_address_is_blocked(healthy: Project) -> None:
    healthy.sandbox.block.block()
    text = bad(healthy, "tile server")
    assert "Mapillary has blocked this network address" in text
    assert "→ No tile is requested until" in text
    asked = healthy.sandbox.stats.requests["tiles"]
    assert asked == 1
    assert "blocked by Mapillary since" in bad(healthy, "tile requests")
    assert "Mapillary has blocked" in bad(healthy, "tile server")
    assert healthy.sandbox.stats.requests["tiles"] == asked


def test_the_tile_budget(healthy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSVI_TILES_PER_DAY", "4")
    assert found(healthy, "tile requests").verdict == Verdict.NOTICE
    for _ in range(3):
        found(healthy, "tile server")
    text = bad(healthy, "tile requests")
    assert "0 of 4 requests are left today" in text
    assert "after midnight UTC" in text
    assert healthy.sandbox.stats.requests["tiles"] == 4


def test_schedules_that_need_more_tiles_than_a_day_allows(
    healthy: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy.write_city(schedule="0 * * * *")
    assert [each for each in examine(healthy.settings) if each.subject == "schedules"] == []
    monkeypatch.setenv("VSVI_TILES_PER_DAY", "99")
    healthy.write_city("suburb", schedule="0 3 * * *")
    finding = found(healthy, "schedules")
    assert finding.verdict == Verdict.NOTICE
    assert "together they need 100 tile requests on" in str(finding)
    assert "budget allow 99 per day" in str(finding)


def test_the_busiest_day_counts_the_ticks_of_all_cities(healthy: Project) -> None:
    hourly = healthy.write_city(schedule="0 * * * *")
    monthly = healthy.write_city("suburb", schedule="30 4 15 * *", timezone="Asia/Tokyo")
    each_minute = healthy.write_city("village", schedule="* * * * *")
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert busiest_day([hourly, monthly], now) == (date(2026, 3, 14), 25 * 4)
    assert busiest_day([each_minute], now)[1] == 24 * 60 * 4
    assert busiest_day([healthy.write_city("hamlet")], now)[1] == 0
    corrected = healthy.write_city("port", schedule="0 3 * * *", positions="computed")
    assert busiest_day([corrected], now)[1] == 2 * 4


def test_tiles_with_corrected_positions_count_twice(healthy: Project) -> None:
    assert "to fetch: 4 tiles take" in str(found(healthy, "tile requests"))
    healthy.write_city(positions="computed")
    assert "to fetch: 8 tiles take" in str(found(healthy, "tile requests"))


def test_postgis(
    healthy: Project, postgis_url: str, postgis: LocalPostgis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg2.connect(postgis_url.replace("+psycopg2", "")) as connection:
        connection.cursor().execute("DROP EXTENSION postgis CASCADE")
    assert "CREATE EXTENSION postgis" in bad(healthy, "PostGIS")
    assert "fix PostGIS first" in str(found(healthy, "tile server"))
    monkeypatch.setenv("VSVI_POSTGRES_URL", "postgresql://vsvi:secret@127.0.0.1:9/vsvi")
    reported = bad(healthy, "PostGIS")
    assert "Connection refused" in reported
    assert "→ start the server of VSVI_POSTGRES_URL" in reported
    assert "secret" not in reported
    monkeypatch.setenv("VSVI_POSTGRES_URL", "postgresql://vsvi:p@ss/w@127.0.0.1:9/vsvi")
    assert "Write them as %40" in bad(healthy, "PostGIS")
    monkeypatch.delenv("VSVI_POSTGRES_URL")
    monkeypatch.setattr(local_postgis, "_program_folders", lambda: iter(()))
    assert "No PostgreSQL server with PostGIS is installed. Install" in bad(healthy, "PostGIS")


def test_what_a_role_may_do_in_the_database(
    healthy: Project, postgis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = psycopg2.connect(postgis_url.replace("+psycopg2", ""))
    owner.autocommit = True
    cursor, database = owner.cursor(), owner.info.dbname
    cursor.execute("CREATE ROLE guest_of_the_doctor LOGIN PASSWORD 'g'")
    try:
        address = f"postgresql://guest_of_the_doctor:g@127.0.0.1:{owner.info.port}/{database}"
        monkeypatch.setenv("VSVI_POSTGRES_URL", address)
        text = bad(healthy, "PostGIS")
        assert "may not create the cities' schemas" in text
        fix = text.rpartition("run in it: ")[2]
        assert fix.startswith("GRANT CREATE ON DATABASE")
        cursor.execute(fix)
        assert found(healthy, "PostGIS").verdict == Verdict.GOOD

        cursor.execute("CREATE SCHEMA extensions")
        cursor.execute("DROP EXTENSION postgis CASCADE")
        cursor.execute("CREATE EXTENSION postgis SCHEMA extensions")
        text = bad(healthy, "PostGIS")
        assert "no PostGIS that the role guest_of_the_doctor may use" in text
        cursor.execute(text.rpartition("run in it: ")[2])
        assert found(healthy, "PostGIS").verdict == Verdict.GOOD
    finally:
        cursor.execute("DROP OWNED BY guest_of_the_doctor")
        cursor.execute("DROP ROLE guest_of_the_doctor")
        owner.close()


def test_dagsters_storage(
    healthy: Project, postgis: LocalPostgis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg2.connect(postgis.dagster_url.replace("+psycopg2", "")) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT version_num FROM alembic_version")
        [(version,)] = cursor.fetchall()
        cursor.execute("UPDATE alembic_version SET version_num = '8e200719f790'")
        connection.commit()
        try:
            assert "→ dagster instance migrate" in bad(healthy, "Dagster's storage")
        finally:
            cursor.execute("UPDATE alembic_version SET version_num = %s", [version])
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://v:secret@127.0.0.1:9/d")
    reported = bad(healthy, "Dagster's storage")
    assert "Connection refused" in reported
    assert "→ start the server of DAGSTER_POSTGRES_URL" in reported
    assert "secret" not in reported
    monkeypatch.delenv("DAGSTER_POSTGRES_URL")
    assert "DAGSTER_POSTGRES_URL not set" in bad(healthy, "Dagster's storage")


def test_dagsters_daemon(healthy: Project) -> None:
    assert found(healthy, "Dagster's daemon").verdict == Verdict.GOOD
    with DagsterInstance.get() as instance:
        instance.wipe_daemon_heartbeats()
    finding = found(healthy, "Dagster's daemon")
    assert finding.verdict == Verdict.NOTICE
    assert "dagster dev" in str(finding)
