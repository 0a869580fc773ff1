"""How a city's tables are replaced, in a real PostGIS."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg2
import psycopg2.extensions
import pyarrow as pa
import pytest
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database import replacement
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import (
    DependentViewError,
    TableInUseError,
    TableNotOwnError,
)
from vsvi_assets.database.photographs import ensure_photographs
from vsvi_assets.database.replacement import NewTable, replace_tables
from vsvi_assets.database.schema import IMAGES, STREET_POINTS, Table
from vsvi_assets.database.selection import select_images
from vsvi_assets.database.tables import (
    images_table,
    selected_images_of,
    selected_images_table,
    street_points_table,
)
from vsvi_assets_tests.database.parts import ask, image, load, points, scattered, tile


@contextmanager
def another_program(url: str, name: str = "a browser") -> Iterator[psycopg2.extensions.cursor]:
    """Connect as another program does, which leaves its transaction open."""
    address = url.replace("+psycopg2", "")
    with closing(psycopg2.connect(address, application_name=name)) as connection:
        yield connection.cursor()


def test_readers_see_the_old_tables_or_the_new_and_never_half(
    database: Postgis, postgis_url: str, make_city: Callable[..., City]
) -> None:
    city = make_city()

    def generation(number: int) -> None:
        count = 100 + number
        tables = [
            street_points_table(points([5.209] * count, [52.525] * count), city),
            images_table([scattered(count)], city),
        ]
        replace_tables(database, "town", tables)

    generation(0)
    seen: set[tuple[int, int]] = set()
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        connection = psycopg2.connect(postgis_url.replace("+psycopg2", ""))
        connection.autocommit = True
        with connection.cursor() as cursor:
            while not done.is_set():
                cursor.execute(
                    """SELECT (SELECT count(*) FROM town.street_points),
                        (SELECT count(*) FROM town.images)"""
                )
                seen.update(cursor.fetchall())
        connection.close()

    def reading() -> None:
        try:
            read()
        except psycopg2.Error as error:
            wrong.append(error)

    readers = [threading.Thread(target=reading) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 16):
        generation(number)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(seen) > 5
    assert all(in_points == in_images for in_points, in_images in seen)


def test_a_replacement_that_fails_leaves_the_old_tables(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    city = make_city()
    load(database, city, [scattered(50)], [5.209], [52.525])

    def breaking() -> Iterator[pa.Table]:
        yield scattered(10)
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        load(database, city, breaking(), [5.209] * 7, [52.525] * 7)
    assert ask(database, "SELECT count(*) FROM town.images") == [(50,)]
    assert ask(database, "SELECT count(*) FROM town.street_points") == [(1,)]

    ask(database, "CREATE VIEW mine AS SELECT * FROM town.images; SELECT 1")
    with pytest.raises(DependentViewError, match="view mine depends on table"):
        load(database, city, [scattered(10)])
    assert ask(database, "SELECT count(*) FROM mine") == [(50,)]
    schemas = ask(database, "SELECT nspname FROM pg_namespace WHERE nspname LIKE '%town%'")
    assert schemas == [("town",)]


def test_the_rows_of_a_table_are_made_while_the_server_indexes_the_one_before(
    database: Postgis, make_city: Callable[..., City], monkeypatch: pytest.MonkeyPatch
) -> None:
    city = make_city()
    are_made = threading.Event()
    mark_as_own = replacement.mark_as_own
    found = []

    def rows() -> Iterator[pa.Table]:
        are_made.set()
        yield from street_points_table(points([5.209], [52.525]), city).rows

    def mark(cursor: psycopg2.extensions.cursor, name: sql.Composable, table: Table) -> None:
        if table is IMAGES:
            found.append(are_made.wait(5))
        mark_as_own(cursor, name, table)

    monkeypatch.setattr(replacement, "mark_as_own", mark)
    tables = [images_table([scattered(10)], city), NewTable(STREET_POINTS, city, rows())]
    assert replace_tables(database, city.name, tables) == {"images": 10, "street_points": 1}
    assert found == [True]


def test_two_replacements_of_one_city_wait_for_each_other(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    city = make_city()
    with ThreadPoolExecutor(3) as pool:
        loads = [pool.submit(load, database, city, [scattered(n)]) for n in (300, 400, 500)]
    assert [done.result()["images"] for done in loads] == [300, 400, 500]
    [(count,)] = ask(database, "SELECT count(*) FROM town.images")
    assert count in (300, 400, 500)


def test_a_table_in_use_is_not_replaced_and_it_is_said_who_uses_it(
    database: Postgis,
    postgis_url: str,
    make_city: Callable[..., City],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replacement, "LOCK_SECONDS", 1)
    monkeypatch.setattr(replacement, "SWAP_SECONDS", 3)
    load(database, make_city(), [scattered(50)])
    served: list[float] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            started = time.monotonic()
            ask(database, "SELECT count(*) FROM town.images")
            served.append(time.monotonic() - started)

    with another_program(postgis_url) as cursor, ThreadPoolExecutor(1) as pool:
        cursor.execute("SELECT count(*) FROM town.images")
        reader = pool.submit(read)
        with pytest.raises(TableInUseError) as refused:
            load(database, make_city(), [scattered(60)])
        done.set()
        reader.result()
        pid = cursor.connection.info.backend_pid
    assert re.search(
        rf"town\.street_points and town\.images cannot be replaced .*: a browser \(user vsvi at "
        rf"127\.0\.0\.1, process {pid}, idle in transaction since \d{{4}}-.* UTC; "
        rf"SELECT pg_terminate_backend\({pid}\) ends it\)",
        str(refused.value),
    )
    # Others waited for as long as one attempt lasts, and not behind all of them.
    assert len(served) > 3
    assert max(served) < 3
    assert ask(database, "SELECT count(*) FROM town.images") == [(50,)]
    load(database, make_city(), [scattered(60)])
    assert ask(database, "SELECT count(*) FROM town.images") == [(60,)]


REPLACE = """
import sys
from pathlib import Path
from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.tables import images_table
box = {"west": 5.2, "south": 52.52, "east": 5.21, "north": 52.53}
city = City.parse({"bounding_box": box, "srid": 28992}, name="town", data_dir=Path("/nowhere"))
print("waits", flush=True)
replace_tables(Postgis(sys.argv[1]), "town", [images_table([], city)])
"""


def test_an_interrupt_ends_the_wait_for_a_table_in_use(
    database: Postgis, postgis_url: str, make_city: Callable[..., City]
) -> None:
    load(database, make_city(), [scattered(50)])
    with (
        another_program(postgis_url) as cursor,
        subprocess.Popen(
            [sys.executable, "-c", REPLACE, postgis_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as waiting,
    ):
        cursor.execute("SELECT count(*) FROM town.images")
        assert waiting.stdout
        assert waiting.stdout.readline() == "waits\n"
        time.sleep(3)
        assert waiting.poll() is None
        started = time.monotonic()
        waiting.send_signal(2)
        _, err = waiting.communicate(timeout=30)
        assert time.monotonic() - started < 5
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert ask(database, "SELECT count(*) FROM town.images") == [(50,)]


def test_a_download_keeps_no_lock_on_the_tables(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    city = make_city(selection="all")
    names = [f"sequence{number:03}" for number in range(250)]
    images = [image(number + 1, sequence_id=name) for number, name in enumerate(names)]
    load(database, city, [tile(*images)])
    selection = select_images(database, city)
    replace_tables(database, "town", [selected_images_table(selection, city)])

    downloads = selected_images_of(database, "town", names)
    rows = database.stream(IMAGE_IDS)
    found = [next(downloads)[0]]
    first = next(rows)
    load(database, city, [tile(*images)])  # would wait for a lock
    found += [sequence_id for sequence_id, _ in downloads]

    assert found == names
    assert sorted([first, *rows]) == [(number + 1,) for number in range(250)]
    idle = ask(database, "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'")
    assert idle == [(0,)]


IMAGE_IDS = replacement.sql.SQL("SELECT id FROM town.images")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE town.images (photo text); INSERT INTO town.images VALUES ('mine')",
        "CREATE VIEW town.images AS SELECT 'mine' AS photo",
        "CREATE TABLE town.images AS SELECT 'mine' AS photo; "
        "COMMENT ON TABLE town.images IS 'field notes'",
    ],
)
def test_tables_of_the_users_own_are_left_alone(
    database: Postgis, make_city: Callable[..., City], statement: str
) -> None:
    ask(database, f"CREATE SCHEMA town; {statement}; SELECT 1")
    with pytest.raises(TableNotOwnError, match=r"a table town\.images that vsvi-assets did not"):
        load(database, make_city(), [scattered(10)], [5.209], [52.525])
    assert ask(database, "SELECT photo FROM town.images") == [("mine",)]
    assert ask(database, "SELECT to_regclass('town.street_points')") == [(None,)]


def test_a_table_of_photographs_of_the_users_own_is_left_alone(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    ask(database, "CREATE SCHEMA town; CREATE TABLE town.photographs (mine text); SELECT 1")
    with pytest.raises(TableNotOwnError, match=r"town\.photographs that vsvi-assets did not make"):
        ensure_photographs(database, make_city())


def test_tables_of_earlier_versions_are_known_by_their_columns(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    load(database, make_city(), [scattered(10)])
    ask(database, "COMMENT ON TABLE town.images IS NULL; SELECT 1")
    load(database, make_city(), [scattered(20)])
    assert ask(database, "SELECT count(*) FROM town.images") == [(20,)]


def test_owner_privileges_and_comments_carry_over(
    database: Postgis, make_city: Callable[..., City]
) -> None:
    load(database, make_city(), [scattered(10)], [5.209], [52.525])
    ask(
        database,
        """
        CREATE ROLE "Anna's role"; CREATE ROLE owner_of_tables;
        GRANT SELECT ON town.images TO PUBLIC;
        GRANT SELECT, UPDATE ON town.street_points TO "Anna's role" WITH GRANT OPTION;
        GRANT UPDATE (street, osmid) ON town.street_points TO owner_of_tables;
        COMMENT ON COLUMN town.images.creator_id IS 'see the wiki';
        GRANT ALL ON SCHEMA town TO owner_of_tables;
        ALTER TABLE town.images OWNER TO owner_of_tables;
        SELECT 1
        """,
    )
    try:
        before = ask(database, DESCRIBED)
        load(database, make_city(), [scattered(20)], [5.209], [52.525])
        assert ask(database, DESCRIBED) == before
        text = str(before)
        assert "see the wiki" in text
        assert IMAGES.description in text
        assert "owner_of_tables=" in text
    finally:
        ask(
            database,
            """DROP SCHEMA town CASCADE; DROP ROLE "Anna's role"; DROP ROLE owner_of_tables;
            SELECT 1""",
        )


DESCRIBED = """
    SELECT relname, pg_get_userbyid(relowner), relacl::text, obj_description(pg_class.oid), attname,
        attacl::text, col_description(pg_class.oid, attnum), format_type(atttypid, atttypmod),
        attnotnull, attgenerated
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    WHERE relnamespace = 'town'::regnamespace AND relkind = 'r' AND attnum > 0
    ORDER BY relname, attnum
"""
