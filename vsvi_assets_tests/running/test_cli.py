"""The `vsvi` command as people type it: processes of its own, in a project's folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
import pytest
from dotenv import dotenv_values
from psycopg2 import sql

from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.server import LocalPostgis
from vsvi_assets.sandbox import Sandbox
from vsvi_assets_tests.conftest import temporary_postgis
from vsvi_assets_tests.project import BOX, small_world

VSVI = Path(sys.executable).with_name("vsvi")
TOKEN = "MLY|sandbox|5ec4e7-0f-this-test"


@dataclass
class Shell:
    """A terminal in a project's folder."""

    postgis: LocalPostgis
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.postgis.data_dir.parent

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        inherited = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ
        }
        return subprocess.Popen(
            [VSVI, *arguments],
            cwd=self.folder,
            env=inherited | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def vsvi(self, *arguments: str, status: int = 0) -> str:
        """Run a command to its end and return all that it printed."""
        process = self.start(*arguments)
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == status, printed
        assert "Traceback" not in printed
        return printed

    def write_city(self, name: str, **keys: object) -> None:
        content = {"bounding_box": BOX, "srid": 28992, "max_distance": 60, "required_disk_space": 0}
        (self.folder / "cities" / f"{name}.json").write_text(json.dumps(content | keys))

    def images(self, city: str) -> list[Path]:
        return sorted((self.postgis.data_dir / city / "sequences").rglob("*.jpg"))


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    """A project without a token, in a folder and with a PostGIS server of its own."""
    with temporary_postgis() as postgis:
        shell = Shell(postgis)
        for name in ("dagster.yaml", "workspace.yaml"):
            shutil.copy(name, shell.folder)
        (shell.folder / "cities").mkdir()
        yield shell
        shell.vsvi("down")


@pytest.fixture
def sandbox(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Services that are no sandbox as far as the project knows, and a token for them."""
    with Sandbox(small_world(), tokens={TOKEN}) as sandbox:
        monkeypatch.setattr(shell, "environment", sandbox.environment())
        yield sandbox


def test_up_starts_what_is_missing_and_down_stops_it(shell: Shell) -> None:
    env = shell.folder / ".env"
    env.write_text("VSVI_SEQUENCES_PER_RUN=5\n")
    shell.write_city("made_up", services="sandbox")
    shell.write_city("real")

    for _ in range(2):
        printed = shell.vsvi("up")
        assert "PostGIS: PostgreSQL" in printed
        assert "in place of Mapillary and OSM for made_up\n" in printed

    settings = dotenv_values(env)
    assert settings["VSVI_SEQUENCES_PER_RUN"] == "5"
    assert str(settings["DAGSTER_POSTGRES_URL"]).startswith("postgresql+psycopg2://")
    assert str(settings["VSVI_SANDBOX_URL"]).startswith("http://127.0.0.1:")
    assert settings["VSVI_DAGSTER_DIR"] == str(shell.postgis.data_dir / "dagster")
    assert not [name for name in settings if name.startswith(("MAPILLARY", "OVERPASS"))]
    assert env.read_text().count("DAGSTER_POSTGRES_URL") == 1
    assert env.stat().st_mode & 0o077 == 0
    assert shell.postgis.is_running()

    assert shell.vsvi("down").split() == ["Stopped:", "Reports,", "Sandbox,", "PostGIS"]
    assert not shell.postgis.is_running()
    assert shell.vsvi("down") == "Nothing runs.\n"

    (shell.folder / "cities/made_up.json").unlink()
    assert "Sandbox" not in shell.vsvi("up")
    assert dotenv_values(env)["VSVI_PAGES_URL"] == settings["VSVI_PAGES_URL"]
    assert "VSVI_SANDBOX_URL" not in dotenv_values(env)


def test_a_city_from_its_box_to_its_photographs(shell: Shell, sandbox: Sandbox) -> None:
    shell.write_city("town")

    shell.vsvi("materialize", "town", "--tiles-only")
    assert sandbox.stats.requests.keys() == {"tiles"}
    assert shell.images("town") == []

    printed = shell.vsvi("materialize", "town", "--overwrite")
    ids = (shell.postgis.data_dir / "town/selected_image_ids.txt").read_text().split()
    images = shell.images("town")
    assert sorted(path.stem for path in images) == sorted(ids)
    total = sum(path.stat().st_size for path in images)
    assert f"downloaded     {len(ids)} images, {total:,} bytes, just now" in printed
    assert set(sandbox.stats.tiles_asked.values()) == {2}

    asked = dict(sandbox.stats.requests)
    printed = shell.vsvi("materialize", "town")
    assert "downloaded     none: every selected image was there already" in printed
    assert dict(sandbox.stats.requests) == asked
    with Postgis(shell.postgis.vsvi_url).transaction() as cursor:
        cursor.execute("DELETE FROM town.photographs WHERE image_id = %s", [int(ids[0])])
    assert "missing        1 images" in shell.vsvi("status", "town")
    printed = shell.vsvi("status", "town", "--verify")
    assert f"on disk        {len(ids)} images, {total:,} bytes" in printed
    assert f"{len(ids)} photographs are as they were downloaded" in printed
    assert sandbox.stats.token_leaks == 0
    assert_nowhere(TOKEN, shell)


def assert_nowhere(secret: str, shell: Shell) -> None:
    """Look for a secret in all that the project wrote: files, events, runs, tables."""
    cluster = shell.postgis.folder.resolve()
    files = [path for path in shell.folder.rglob("*") if path.is_file()]
    assert any("town" in path.parts for path in files)
    for path in files:
        if cluster not in path.resolve().parents:
            assert secret.encode() not in path.read_bytes(), path
    rows = 0
    for url in (shell.postgis.dagster_url, shell.postgis.vsvi_url):
        connection = psycopg2.connect(url.replace("+psycopg2", ""))
        with connection, connection.cursor() as cursor:
            cursor.execute(
                """SELECT table_schema, table_name FROM information_schema.tables
                WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"""
            )
            for table in cursor.fetchall():
                cursor.execute(
                    sql.SQL("SELECT row::text FROM {} AS row").format(sql.Identifier(*table))
                )
                for (row,) in cursor:
                    rows += 1
                    assert secret not in row, table
        connection.close()
    assert rows > 200


def test_an_interrupted_download_ends_at_once_and_goes_on_from_there(
    shell: Shell, sandbox: Sandbox
) -> None:
    shell.write_city("harbour", selection="all")
    sandbox.latency = 0.3
    process = shell.start("materialize", "harbour")
    while len(shell.images("harbour")) < 20:
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    interrupted = time.monotonic()
    printed, _ = process.communicate(timeout=60)
    assert time.monotonic() - interrupted < 15
    assert process.returncode
    assert "interrupted" in printed.lower()
    assert "Traceback" not in printed
    there = {path.stem for path in shell.images("harbour")}
    assert 20 <= len(there) < 120
    assert not list((shell.postgis.data_dir / "harbour").rglob("*.part"))

    sandbox.latency = 0.0
    before = sandbox.stats.images_served.copy()
    shell.vsvi("materialize", "harbour")

    assert len(shell.images("harbour")) == 120
    fetched = {str(image_id) for image_id in sandbox.stats.images_served - before}
    assert fetched.isdisjoint(there)


def test_down_stops_nothing_that_a_run_needs(shell: Shell, sandbox: Sandbox) -> None:
    shell.write_city("port", selection="all")
    sandbox.latency = 0.5
    process = shell.start("materialize", "port")
    while len(shell.images("port")) < 20:
        time.sleep(0.05)
        assert process.poll() is None
    printed = shell.vsvi("down", status=1)
    assert f"process {process.pid}" in printed
    assert "stop it with Ctrl-C in its terminal" in printed
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(shell.images("port")) == 120


def test_an_interrupt_amid_thousands_of_tiles_ends_within_seconds(
    shell: Shell, sandbox: Sandbox
) -> None:
    province = {"west": 4.6, "south": 52.1, "east": 5.4, "north": 52.8}
    shell.write_city("province", bounding_box=province)
    tiles = shell.postgis.data_dir / "province" / "tiles"
    process = shell.start("materialize", "province", "--tiles-only")
    while sandbox.stats.requests["tiles"] < 1500:
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    interrupted = time.monotonic()
    printed, _ = process.communicate(timeout=120)
    assert time.monotonic() - interrupted < 20
    assert "Traceback" not in printed
    assert process.returncode
    there = len(list(tiles.iterdir()))
    assert there >= 1400
    assert not list(tiles.glob("*.part"))

    before = sandbox.stats.requests["tiles"]
    printed = shell.vsvi("materialize", "province", "--tiles-only")
    assert sandbox.stats.requests["tiles"] - before == len(list(tiles.iterdir())) - there


def test_what_people_get_wrong_is_reported_without_a_traceback(
    shell: Shell, sandbox: Sandbox, tmp_path: Path
) -> None:
    shell.write_city("village", interval=0)
    (shell.folder / "cities/hamlet.yaml").write_text("bounding_box: [1")
    try:
        printed = shell.vsvi("materialize", "atlantis", status=1)
        assert "There is no city 'atlantis'" in printed
        printed = shell.vsvi("status", "village", status=1)
        assert "village.json: interval = 0: Input should be greater" in printed
        printed = shell.vsvi("materialize", "hamlet", status=1)
        assert "hamlet.yaml: cannot be read as YAML" in printed
    finally:
        for name in ("village.json", "hamlet.yaml"):
            (shell.folder / "cities" / name).unlink()

    (shell.folder / "dagster.yaml").rename(tmp_path / "dagster.yaml")
    try:
        assert "no dagster.yaml of this project in" in shell.vsvi("up", status=1)
    finally:
        (tmp_path / "dagster.yaml").rename(shell.folder / "dagster.yaml")


def test_without_a_token_a_real_city_is_refused_before_anything_is_started(
    shell: Shell,
) -> None:
    shell.vsvi("down")
    shell.write_city("delft")
    before = {path for path in shell.folder.rglob("*") if path.is_file()}
    try:
        printed = shell.vsvi("materialize", "delft", status=1)
        assert printed.startswith("Error: No Mapillary token.")
        assert {path for path in shell.folder.rglob("*") if path.is_file()} == before
        assert not shell.postgis.is_running()
    finally:
        (shell.folder / "cities/delft.json").unlink()


def test_output_that_finds_no_room_is_reported_in_a_sentence(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [VSVI, "init"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    assert ran.returncode
    assert ran.stderr.startswith("Error: No space left on device.")
    assert "Traceback" not in ran.stderr


def test_a_database_that_is_away_is_reported_in_a_sentence(
    shell: Shell, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.write_city("town")
    away = {**shell.environment, "VSVI_POSTGRES_URL": "postgresql://me:p@127.0.0.1:9/x"}
    monkeypatch.setattr(shell, "environment", away)
    for command in ("status", "materialize"):
        printed = shell.vsvi(command, "town", status=1)
        assert "Error: " in printed
        assert "127.0.0.1" in printed


@pytest.mark.parametrize("seconds", [0, 0.2, 0.5, 1, 2])
def test_ctrl_c_while_the_command_is_loading_shows_no_traceback(
    shell: Shell, seconds: float
) -> None:
    process = shell.start("materialize", "atlantis")
    # Python itself, which has begun before that, cannot be kept from showing one.
    while "pydantic_core" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert "Traceback" not in printed
    assert process.returncode


def test_the_sandbox_serves_until_it_is_stopped(shell: Shell) -> None:
    process = shell.start("sandbox")
    assert process.stdout
    assert "The sandbox answers at http://127.0.0.1:" in process.stdout.readline()
    name, url = process.stdout.readline().strip().split("=")
    assert name == "VSVI_SANDBOX_URL"
    port = url.rpartition(":")[2]
    assert f"Error: Port {port} of 127.0.0.1 is in use" in shell.vsvi(
        "sandbox", "--port", port, status=1
    )
    assert "65536 is not in the range" in shell.vsvi("sandbox", "--port", "65536", status=2)
    assert "is no IPv4 address of this machine" in shell.vsvi("sandbox", "--host", "::1", status=1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0
