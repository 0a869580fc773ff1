"""Connections to databases as they are found, each a real one."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg2
import pyarrow as pa
import pytest
import sqlalchemy
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import (
    DatabaseAddressError,
    EncodingError,
    PostgisMissingError,
    PrivilegeMissingError,
    ServerUnreachableError,
)
from vsvi_assets.database.queries import usable_versions
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.selection import select_images
from vsvi_assets.database.server import LocalPostgis
from vsvi_assets.database.tables import selected_images_table, street_points_table
from vsvi_assets_tests.database.parts import load, points, scattered

STREET = "Große Straße"


def administer(url: str, *statements: str) -> None:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


@contextmanager
def database_of_a_guest(postgis: LocalPostgis, name: str, options: str = "") -> Iterator[str]:
    """Make a database with a role that has no privileges but to connect; give the address."""
    superuser = postgis.dagster_url
    administer(
        superuser, f"CREATE DATABASE {name} {options}", f"CREATE ROLE {name} LOGIN PASSWORD 'g'"
    )
    own = f"{superuser.removesuffix('dagster')}{name}"
    try:
        yield own
    finally:
        administer(superuser, f"DROP DATABASE {name} WITH (FORCE)", f"DROP ROLE {name}")


def as_guest(url: str, name: str) -> Postgis:
    host = url.rpartition("@")[2].partition("/")[0]
    return Postgis(f"postgresql://{name}:g@{host}/{name}")


def street(database: Postgis) -> str:
    query = sql.SQL("SELECT street FROM town.street_points")
    return database.read(query, pa.schema({"street": pa.string()}))["street"][0].as_py()


def test_names_are_stored_right_whatever_encoding_the_environment_asks_for(
    database: Postgis, make_city: Callable[..., City], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    table = street_points_table(points([5.209], [52.525], STREET), make_city())
    replace_tables(database, "town", [table])
    assert street(database) == STREET
    with database.transaction() as cursor:
        cursor.execute("SELECT char_length(street) FROM town.street_points")
        assert cursor.fetchall() == [(len(STREET),)]


def test_a_database_of_another_encoding_stores_what_it_can_and_says_what_it_cannot(
    postgis: LocalPostgis, make_city: Callable[..., City]
) -> None:
    options = "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    with database_of_a_guest(postgis, "latin", options) as url:
        administer(url, "CREATE EXTENSION postgis")
        database = Postgis(url)
        for name in (STREET, "Łódź"):
            table = street_points_table(points([5.209], [52.525], name), make_city())
            if name == STREET:
                replace_tables(database, "town", [table])
            else:
                with pytest.raises(EncodingError, match="UTF8, and set VSVI_POSTGRES_URL"):
                    replace_tables(database, "town", [table])
        assert street(database) == STREET


def test_postgis_may_be_in_a_schema_off_the_search_path(
    postgis: LocalPostgis, make_city: Callable[..., City]
) -> None:
    with database_of_a_guest(postgis, "extension_schema") as url:
        administer(
            url,
            "CREATE SCHEMA extensions",
            "CREATE EXTENSION postgis SCHEMA extensions",
            "GRANT USAGE ON SCHEMA extensions TO extension_schema",
            "GRANT CREATE ON DATABASE extension_schema TO extension_schema",
        )
        database, city = as_guest(url, "extension_schema"), make_city()
        load(database, city, [scattered(50)], [5.209], [52.525])
        selection = select_images(database, city)
        replace_tables(database, "town", [selected_images_table(selection, city)])
        assert len(selection) == 1
        assert usable_versions(database).startswith("PostgreSQL ")


def test_what_a_role_may_not_do_is_said_in_a_sentence(
    postgis: LocalPostgis, make_city: Callable[..., City]
) -> None:
    with database_of_a_guest(postgis, "read_only") as url:
        database = as_guest(url, "read_only")
        with pytest.raises(PostgisMissingError, match=r"read_only has no PostGIS .* CREATE EXT"):
            load(database, make_city(), [scattered(5)])
        administer(url, "CREATE EXTENSION postgis")
        with pytest.raises(PrivilegeMissingError, match="GRANT CREATE ON DATABASE read_only TO"):
            usable_versions(database)
        with pytest.raises(PrivilegeMissingError, match="permission denied for database read_only"):
            load(database, make_city(), [scattered(5)])


def test_a_server_that_is_away_is_a_sentence() -> None:
    with (
        pytest.raises(ServerUnreachableError, match=r"No connection to PostGIS.*port 9 failed"),
        Postgis("postgresql://guest:secret@127.0.0.1:9/one").transaction(),
    ):
        pass


def test_a_connection_that_is_lost_is_a_sentence(database: Postgis) -> None:
    with pytest.raises(ServerUnreachableError, match="was lost"), database.transaction() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://guest:p@ss@127.0.0.1:9/one",
        "postgresql://guest:p@ss/w@127.0.0.1:9/one",
        "postgresql://guest:p/ss@127.0.0.1:9/one",
        "postgresql://guest:p?ss@127.0.0.1:9/one",
        "postgresql://guest:p#ss@127.0.0.1:9/one",
        "postgresql://guest:p%ss@127.0.0.1:9/one",
        "mysql://guest:p-ss@127.0.0.1/one",
    ],
)
def test_an_address_that_would_be_misread_is_refused_without_showing_it(url: str) -> None:
    with (
        pytest.raises(DatabaseAddressError, match="VSVI_POSTGRES_URL") as refused,
        Postgis(url).transaction(),
    ):
        pass
    assert "ss" not in str(refused.value).replace("password", "").replace("address", "")


LIBPQ = {
    "PGSERVICE": "mydb",
    "PGSSLMODE": "require",
    "PGOPTIONS": "-c search_path=work",
    "PGHOST": "/nowhere",
    "PGHOSTADDR": "10.255.255.1",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGPASSWORD": "wrong",
    "PGDATABASE": "nothing",
    "PGREQUIREAUTH": "gss",
    "PGTZ": "nowhere",
    "PGDATESTYLE": "German",
    "PGCHANNELBINDING": "require",
    "PGCLIENTENCODING": "LATIN1",
}


@pytest.mark.parametrize("name", LIBPQ)
def test_variables_of_libpq_do_not_reach_the_projects_own_server(
    postgis: LocalPostgis, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, LIBPQ[name])
    postgis.start()
    assert "PostGIS" in postgis.version()
    with postgis.database().transaction() as cursor:
        cursor.execute("SELECT ST_SRID(ST_Point(1, 2, 4326)), current_setting('client_encoding')")
        assert cursor.fetchall() == [(4326, "UTF8")]
    assert os.environ[name] == LIBPQ[name]


def test_the_search_path_of_the_environment_does_not_hide_postgis(
    database: Postgis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c search_path=work -c DateStyle=German")
    with database.transaction() as cursor:
        cursor.execute("SELECT ST_SRID(ST_Point(1, 2, 4326)), current_setting('DateStyle')")
        assert cursor.fetchall() == [(4326, "ISO, DMY")]


@pytest.mark.parametrize("name", ["PGSERVICE", "PGSSLMODE", "PGTZ"])
def test_nor_do_they_reach_dagsters_storage_there(
    postgis: LocalPostgis, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, LIBPQ[name])
    engine = sqlalchemy.create_engine(f"{postgis.dagster_url}?plugin=vsvi")
    with engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT 1")) == 1
    engine.dispose()
