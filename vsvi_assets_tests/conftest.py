"""Parts shared by the tests: a real PostGIS server of the test session's own."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql

from vsvi_assets.local_postgis import LocalPostgis


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
