"""Parts shared by the tests: a real PostGIS server of the test session's own."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from dagster import DagsterInstance
from psycopg2 import sql

from vsvi_assets.database.server import LocalPostgis
from vsvi_assets.mapillary.client import shared_paces
from vsvi_assets.sandbox import OverpassLimits, Sandbox
from vsvi_assets_tests.object_store import (
    ObjectStore,
    ObjectStoreMissingError,
    running_object_store,
)
from vsvi_assets_tests.project import Project, small_world


def pytest_configure() -> None:
    """Let tests be interrupted: what a shell starts in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def temporary_postgis() -> Iterator[LocalPostgis]:
    """Give a data folder with a PostGIS server, not yet started, and leave nothing of it."""
    with tempfile.TemporaryDirectory(prefix="vsvi-") as folder:
        postgis = LocalPostgis(Path(folder, "data"))
        try:
            yield postgis
        finally:
            postgis.stop()
            # As root, the server's folder lies outside the data folder.
            shutil.rmtree(postgis.folder.resolve(), ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_pace_of_another_test() -> None:
    """Forget how fast services allowed to be asked: a port may be given out again."""
    shared_paces.cache_clear()


@pytest.fixture(scope="session")
def postgis() -> Iterator[LocalPostgis]:
    """The session's PostGIS server, running."""
    with temporary_postgis() as postgis:
        postgis.start()
        yield postgis


@pytest.fixture(scope="session")
def _template_database(postgis: LocalPostgis) -> str:
    _execute(postgis, "CREATE DATABASE {} TEMPLATE vsvi", "empty_postgis")
    return "empty_postgis"


@pytest.fixture
def postgis_url(postgis: LocalPostgis, _template_database: str) -> Iterator[str]:
    """SQLAlchemy address of an empty database with PostGIS, of this test alone."""
    database = f"test_{secrets.token_hex(6)}"
    _execute(postgis, "CREATE DATABASE {} TEMPLATE {}", database, _template_database)
    yield postgis.vsvi_url.removesuffix("vsvi") + database
    _execute(postgis, "DROP DATABASE {} WITH (FORCE)", database)


def _execute(postgis: LocalPostgis, statement: str, *names: str) -> None:
    url = postgis.dagster_url.replace("+psycopg2", "")
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox that serves a small city."""
    # As much shorter than the real pause as that of the tests' pipeline.
    with Sandbox(small_world(), overpass_limits=OverpassLimits(pause=0.005)) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """The session's object store, running."""
    with ExitStack() as running:
        try:
            store = running.enter_context(running_object_store())
        except ObjectStoreMissingError as error:
            pytest.skip(f"needs an object store: {error}")
        yield store


@pytest.fixture
def project(
    tmp_path: Path, sandbox: Sandbox, postgis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """A project on that sandbox, with an empty database and a new in-memory instance."""
    environment = {
        "VSVI_CITIES_DIR": str(tmp_path / "cities"),
        "VSVI_DATA_DIR": str(tmp_path / "data"),
        "VSVI_DAGSTER_DIR": str(tmp_path / "data" / "dagster"),
        "VSVI_POSTGRES_URL": postgis_url,
        "VSVI_PAGES_URL": "http://127.0.0.1:9",  # so that no command starts a server
        "VSVI_RETRY_DELAY": "1",
        "VSVI_TILES_PER_MINUTE": "60000",
        **sandbox.environment(),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with DagsterInstance.ephemeral() as instance:
        yield Project(tmp_path, sandbox, instance)


@pytest.fixture
def project_in_store(
    project: Project, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """The same project with its data in the object store, in a folder of its own."""
    environment = {**object_store.environ, "VSVI_DATA_DIR": str(object_store.new_folder())}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project.folder)
    return project
