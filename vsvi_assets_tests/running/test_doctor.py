"""The doctor finds what is wrong, and says so without the token."""

import shutil
import time
from pathlib import Path

import psycopg2
import pytest
from click.testing import CliRunner
from dagster import DagsterInstance
from dagster._daemon.types import DaemonHeartbeat

from vsvi_assets.cli import main
from vsvi_assets.database import server as local_postgis
from vsvi_assets.database.server import LocalPostgis
from vsvi_assets.mapillary.pacing import TILES_PER_DAY, TileBudget
from vsvi_assets.running.doctor import Finding, Verdict, examine
from vsvi_assets.sandbox.faults import Fault
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
    """Return what is told of something that is wrong, which the exit status shows too."""
    finding = found(project, subject)
    assert finding.verdict == Verdict.BAD
    return str(finding)


def test_nothing_is_wrong(healthy: Project) -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line[0] for line in lines] == [Verdict.GOOD] * 10, result.output
    assert f"of {TILES_PER_DAY:,} requests left today, 4 tiles to fetch" in result.output
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


def test_the_token(healthy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPILLARY_TOKEN", "MLY|1|not-the-token")
    told = bad(healthy, "Mapillary token")
    assert "→ Make a client token at https://www.mapillary.com/dashboard/developers" in told
    assert "not-the-token" not in told
    monkeypatch.delenv("MAPILLARY_TOKEN")
    monkeypatch.setenv("MAPILLARY_TOKEN_FILE", "no-such-file.txt")
    assert "→ Put the client token" in bad(healthy, "Mapillary token")
    assert "no-such-file.txt, or set MAPILLARY_TOKEN" in bad(healthy, "Mapillary token")


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


def test_the_tile_budget(healthy: Project) -> None:
    path = healthy.settings.data_dir / "tile_budget.json"
    TileBudget(path)._add(TILES_PER_DAY - 4)
    assert found(healthy, "tile budget").verdict == Verdict.NOTICE
    TileBudget(path)._add(3)
    assert "0 of 50,000 requests left" in bad(healthy, "tile budget")
    assert "after midnight UTC" in bad(healthy, "tile budget")


def test_postgis(
    healthy: Project, postgis_url: str, postgis: LocalPostgis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg2.connect(postgis_url.replace("+psycopg2", "")) as connection:
        connection.cursor().execute("DROP EXTENSION postgis CASCADE")
    assert "CREATE EXTENSION postgis" in bad(healthy, "PostGIS")
    monkeypatch.setenv("VSVI_POSTGRES_URL", "postgresql://vsvi:secret@127.0.0.1:9/vsvi")
    told = bad(healthy, "PostGIS")
    assert "Connection refused" in told
    assert "→ start the server of VSVI_POSTGRES_URL" in told
    assert "secret" not in told
    monkeypatch.delenv("VSVI_POSTGRES_URL")
    monkeypatch.setattr(local_postgis, "_program_folders", lambda: iter(()))
    assert "No PostgreSQL server with PostGIS is installed. Install" in bad(healthy, "PostGIS")


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
    told = bad(healthy, "Dagster's storage")
    assert "Connection refused" in told
    assert "→ start the server of DAGSTER_POSTGRES_URL" in told
    assert "secret" not in told
    monkeypatch.delenv("DAGSTER_POSTGRES_URL")
    assert "DAGSTER_POSTGRES_URL not set" in bad(healthy, "Dagster's storage")


def test_dagsters_daemon(healthy: Project) -> None:
    assert found(healthy, "Dagster's daemon").verdict == Verdict.GOOD
    with DagsterInstance.get() as instance:
        instance.wipe_daemon_heartbeats()
    finding = found(healthy, "Dagster's daemon")
    assert finding.verdict == Verdict.NOTICE
    assert "dagster dev" in str(finding)
