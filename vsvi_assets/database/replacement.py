"""Replaces tables of a city: builds them beside the old ones and swaps them in a moment."""

import io
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest

import psycopg2.errors
import psycopg2.extensions
import pyarrow as pa
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database.binary_copy import binary_rows
from vsvi_assets.database.connection import APPLICATION_NAME, Postgis
from vsvi_assets.database.errors import DependentViewError, TableInUseError, TableNotOwnError
from vsvi_assets.database.schema import Table
from vsvi_assets.threads import interruptible_workers

LOCK_SECONDS = 2
"""How long a swap waits for those who use the old tables, while new readers wait behind it."""

SWAP_SECONDS = 60
"""How long it is tried, with pauses in which readers are served."""

_MARK = f"Made by {APPLICATION_NAME}, which replaces it."
"""How the comment of each table begins that this project may drop."""


@dataclass(frozen=True)
class NewTable:
    """A table to be.

    Attributes
    ----------
    table
        Its name, columns, primary key and indexes.
    city
        Whose table it is.
    rows
        The rows in batches, in the order of storage; consumed once, one batch in memory at a time,
        the first of them made in another thread.
        Columns that the server makes of others are not in them. Of rows with the same primary key
        one is kept: the first by longitude and latitude.
    """

    table: Table
    city: City
    rows: Iterable[pa.Table]

    @property
    def given_columns(self) -> list[str]:
        """The names of the columns that `rows` has."""
        return [column.name for column in self.table.columns if not column.made_of]


def replace_tables(postgis: Postgis, schema: str, new_tables: Sequence[NewTable]) -> dict[str, int]:
    """Replace tables of a schema together, and return each one's number of rows.

    Readers see all the old tables or all the new ones. Two replacements of the same schema wait
    for each other. The new tables get the owners, privileges and comments of the old ones. They
    are built in a schema of their own, so that their indexes and constraints get the plain names.

    Raises
    ------
    TableNotOwnError
        When there is a table that this project did not make.
    TableInUseError
        When somebody uses an old table all the time.
    DependentViewError
        When a view of the user's depends on an old table.
    PostgisError
        As `Postgis.transaction` does. Nothing is changed after any error.
    """
    building = f"{schema}~building"
    with postgis.transaction() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [_lock_name(schema)])
        old = {new.table.name: own_table(cursor, schema, new.table) for new in new_tables}
        cursor.execute(
            sql.SQL("CREATE SCHEMA IF NOT EXISTS {}; CREATE SCHEMA {}").format(
                sql.Identifier(schema), sql.Identifier(building)
            )
        )
        counts = _build(cursor, building, new_tables)
        oids = {name: oid for name, oid in old.items() if oid}
        _lock_tables(cursor, schema, oids)
        for name, oid in oids.items():
            _inherit(cursor, oid, sql.Identifier(building, name))
        _swap(cursor, schema, building, counts)
    return counts


@contextmanager
def unreplaced(postgis: Postgis, schema: str) -> Iterator[None]:
    """Let `replace_tables` of a schema wait, so that several queries see the same tables."""
    with postgis.transaction() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(hashtext(%s))", [_lock_name(schema)])
        yield


def mark_as_own(cursor: psycopg2.extensions.cursor, name: sql.Composable, table: Table) -> None:
    """Comment on a table and its columns, by which this project knows it for its own."""
    cursor.execute(
        sql.SQL("COMMENT ON TABLE {} IS {}").format(
            name, sql.Literal(f"{_MARK} {table.description}")
        )
    )
    for column in table.columns:
        cursor.execute(
            sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(
                name, sql.Identifier(column.name), sql.Literal(column.description)
            )
        )


def _lock_name(schema: str) -> str:
    return f"vsvi {schema}"


def own_table(cursor: psycopg2.extensions.cursor, schema: str, table: Table) -> int | None:
    """Return the oid of a table of this project; None where there is none of that name.

    Earlier versions did not comment on their tables, whose columns are among those of today.

    Raises
    ------
    TableNotOwnError
        When this project did not make it.
    """
    cursor.execute(
        """
        SELECT oid, relkind = 'r' AND (
            starts_with(coalesce(obj_description(oid, 'pg_class'), ''), %(mark)s)
            OR (
                SELECT count(*) > 3 AND bool_and(attname = ANY(%(columns)s)) FROM pg_attribute
                WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
            )
        )
        FROM pg_class
        WHERE relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND relname = %(name)s
        """,
        {
            "mark": _MARK,
            "columns": [column.name for column in table.columns],
            "schema": schema,
            "name": table.name,
        },
    )
    found = cursor.fetchone()
    if found is None:
        return None
    oid, is_own = found
    if not is_own:
        raise TableNotOwnError(
            f"The database has a table {schema}.{table.name} that {APPLICATION_NAME} did not make, "
            "and does not replace. Move it to another schema (ALTER TABLE … SET SCHEMA …), or "
            "rename the city file."
        )
    return int(oid)


def _build(
    cursor: psycopg2.extensions.cursor, schema: str, new_tables: Sequence[NewTable]
) -> dict[str, int]:
    """Make tables with their indexes, and return each one's number of rows.

    A thread makes the first rows of a table while the server indexes the one before.
    """
    counts = {}
    with interruptible_workers(1) as (pool, _):
        rows = _File(new_tables[0], pool)
        for new, following in zip_longest(new_tables, new_tables[1:]):
            name = sql.Identifier(schema, new.table.name)
            count = _load(cursor, name, new, rows)
            if following:
                rows = _File(following, pool)
            counts[new.table.name] = count - finish(cursor, name, new.table)
    return counts


def _load(
    cursor: psycopg2.extensions.cursor, name: sql.Composable, new: NewTable, rows: "_File"
) -> int:
    """Make a table of the rows; return how many they are."""
    cursor.execute(sql.SQL("CREATE TABLE {} {}").format(name, new.table.definition(new.city)))
    try:
        cursor.copy_expert(
            # FREEZE: nobody has to look up later whether the rows were committed.
            sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary, FREEZE)").format(
                name, sql.SQL(", ").join(map(sql.Identifier, new.given_columns))
            ),
            rows,
        )
    except psycopg2.errors.QueryCanceled:
        if rows.error:
            raise rows.error from None
        raise
    return int(cursor.rowcount)


def finish(cursor: psycopg2.extensions.cursor, name: sql.Composable, table: Table) -> int:
    """Give a table its indexes and comments; return how many rows were deleted for its key."""
    for column in table.columns:
        if column.made_of:
            cursor.execute(
                sql.SQL("ALTER TABLE {} ALTER COLUMN {} DROP EXPRESSION").format(
                    name, sql.Identifier(column.name)
                )
            )
    deleted = _add_primary_key(cursor, name, table) if table.primary_key else 0
    for method, indexed in table.indexes:
        cursor.execute(
            sql.SQL("CREATE INDEX ON {} USING {} ({})").format(
                name, sql.SQL(method), sql.Identifier(indexed)
            )
        )
    mark_as_own(cursor, name, table)
    cursor.execute(sql.SQL("ANALYZE {}").format(name))
    return deleted


class _File(io.RawIOBase):
    """The rows of a table as COPY takes them, read from the beginning to the end.

    A thread of the pool makes the first batch of rows at once.
    """

    def __init__(self, new: NewTable, pool: Executor) -> None:
        super().__init__()
        self._rows = iter(new.rows)
        self._first: Future[pa.Table | None] = pool.submit(next, self._rows, None)
        self._parts = binary_rows(rows.select(new.given_columns) for rows in self._batches())
        self.error: BaseException | None = None
        """What kept the rows from coming; psycopg2 raises an error of its own instead."""

    def read(self, size: int = -1) -> bytes:
        """Return the next part, whatever its size."""
        try:
            return next(self._parts, b"")
        except BaseException as error:
            self.error = error
            raise

    def _batches(self) -> Iterator[pa.Table]:
        first = self._first.result()
        if first is not None:
            yield first
            yield from self._rows


def _add_primary_key(cursor: psycopg2.extensions.cursor, name: sql.Composable, table: Table) -> int:
    """Add the primary key; return how many rows had to be deleted, whose key others have."""
    key = sql.SQL(", ").join(map(sql.Identifier, table.primary_key))
    add = sql.SQL("ALTER TABLE {} ADD PRIMARY KEY ({})").format(name, key)
    cursor.execute("SAVEPOINT before_key")
    try:
        cursor.execute(add)
        return 0
    except psycopg2.errors.UniqueViolation:
        cursor.execute("ROLLBACK TO SAVEPOINT before_key")
    cursor.execute(
        sql.SQL(
            """
            DELETE FROM {name} WHERE ctid IN (
                SELECT ctid FROM (
                    SELECT ctid, row_number() OVER (
                        PARTITION BY {key} ORDER BY ST_X(geometry), ST_Y(geometry)
                    ) AS number
                    FROM {name}
                ) AS numbered
                WHERE number > 1
            )
            """
        ).format(name=name, key=key)
    )
    deleted = cursor.rowcount
    cursor.execute(add)
    return deleted


def _lock_tables(cursor: psycopg2.extensions.cursor, schema: str, oids: Mapping[str, int]) -> None:
    """Lock tables against everybody else, in short attempts between which others are served.

    Raises TableInUseError after `SWAP_SECONDS`.
    """
    if not oids:
        return
    lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(
        sql.SQL(", ").join(sql.Identifier(schema, name) for name in oids)
    )
    deadline = time.monotonic() + SWAP_SECONDS
    while True:
        cursor.execute("SAVEPOINT before_lock")
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{LOCK_SECONDS}s"])
        try:
            cursor.execute(lock)
            return
        except psycopg2.errors.LockNotAvailable:
            cursor.execute("ROLLBACK TO SAVEPOINT before_lock")
        holders = _holders(cursor, oids.values())
        if time.monotonic() > deadline and holders:
            names = " and ".join(f"{schema}.{name}" for name in oids)
            raise TableInUseError(
                f"{names} cannot be replaced while others use them: {'; '.join(holders)}. Close "
                "it there and run again; until then the old tables stay."
            )
        time.sleep(1)


def _holders(cursor: psycopg2.extensions.cursor, oids: Collection[int]) -> list[str]:
    """Return who else has locks on tables, as people know them."""
    cursor.execute(
        """
        SELECT DISTINCT pid, application_name, usename::text, host(client_addr), state,
            date_trunc('second', xact_start)
        FROM pg_locks JOIN pg_stat_activity AS activity USING (pid)
        WHERE relation = ANY(%s) AND granted AND pid <> pg_backend_pid()
            AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        """,
        [list(oids)],
    )
    holders = []
    for pid, application, user, host, state, since in cursor.fetchall():
        began = f" since {since:%Y-%m-%d %H:%M} UTC" if since else ""
        holders.append(
            f"{application or 'a program without a name'} (user {user}"
            f"{f' at {host}' if host else ''}, process {pid}, {state or 'active'}{began}; "
            f"SELECT pg_terminate_backend({pid}) ends it)"
        )
    return holders


def _inherit(cursor: psycopg2.extensions.cursor, old: int, new: sql.Composable) -> None:
    """Give a new table the comments, the privileges and the owner of an old one."""
    cursor.execute(
        """
        SELECT NULL, obj_description(%(old)s, 'pg_class')
        UNION ALL
        SELECT attname::text, col_description(attrelid, attnum) FROM pg_attribute
        WHERE attrelid = %(old)s AND attnum > 0 AND NOT attisdropped
        """,
        {"old": old},
    )
    for column, comment in cursor.fetchall():
        of = (
            sql.SQL("TABLE {}").format(new)
            if column is None
            else sql.SQL("COLUMN {}.{}").format(new, sql.Identifier(column))
        )
        if comment:
            cursor.execute(sql.SQL("COMMENT ON {} IS {}").format(of, sql.Literal(comment)))
    cursor.execute(
        """
        SELECT privilege_type, attname::text, rolname::text, is_grantable
        FROM (
            SELECT (aclexplode(relacl)).*, NULL AS attname, relowner
            FROM pg_class WHERE oid = %(old)s
            UNION ALL
            SELECT (aclexplode(attacl)).*, attname, relowner
            FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
            WHERE attrelid = %(old)s AND NOT attisdropped
        ) AS privilege
        LEFT JOIN pg_roles ON pg_roles.oid = grantee
        WHERE grantee <> relowner
        """,
        {"old": old},
    )
    for privilege, column, role, is_grantable in cursor.fetchall():
        cursor.execute(
            sql.SQL("GRANT {}{} ON {} TO {}{}").format(
                sql.SQL(privilege),
                sql.SQL(" ({})").format(sql.Identifier(column)) if column else sql.SQL(""),
                new,
                sql.Identifier(role) if role else sql.SQL("PUBLIC"),
                sql.SQL(" WITH GRANT OPTION" if is_grantable else ""),
            )
        )
    cursor.execute(
        "SELECT pg_get_userbyid(relowner)::text FROM pg_class"
        " WHERE oid = %s AND relowner <> (SELECT oid FROM pg_roles WHERE rolname = current_user)",
        [old],
    )
    for (owner,) in cursor.fetchall():
        cursor.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(new, sql.Identifier(owner)))


def _swap(
    cursor: psycopg2.extensions.cursor, schema: str, building: str, names: Collection[str]
) -> None:
    for name in names:
        old, new = sql.Identifier(schema, name), sql.Identifier(building, name)
        try:
            cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(old))
        except psycopg2.errors.DependentObjectsStillExist as error:
            raise DependentViewError(
                f"{schema}.{name} cannot be replaced, since something depends on it: "
                f"{error.diag.message_detail}. Drop that, run again, and make it again; until then "
                "the old tables stay."
            ) from error
        cursor.execute(sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(new, sql.Identifier(schema)))
    cursor.execute(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(building)))
