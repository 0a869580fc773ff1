"""A city's tables in PostGIS: loaded by COPY, swapped in one transaction, asked in SQL."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import psycopg2
import psycopg2.extensions
import pyarrow as pa
import pyarrow.csv
from psycopg2 import sql

from vsvi_assets.database.errors import ServerUnreachableError
from vsvi_assets.database.interrupts import InterruptibleCursor

CONNECT_TIMEOUT_SECONDS = 10
CURSOR_ROWS = 10_000
"""Rows that a streaming query holds in memory at a time."""


@dataclass(frozen=True)
class NewTable:
    """A table to be: the rows to copy into a staging table, and the query that makes it of them.

    Attributes
    ----------
    name
        The table's name in the city's schema.
    columns
        The staging columns and their PostgreSQL types, in the order of the rows' columns.
    rows
        The rows, in batches; consumed once, one batch in memory at a time.
    query
        A SELECT over `pg_temp.staging` whose result is the table, in the order of storage.
    constraints
        SQL after ALTER TABLE, such as a primary key.
    indexes
        Column lists after CREATE INDEX … USING, such as `gist (geo)`.
    """

    name: str
    columns: Mapping[str, str]
    rows: Iterable[pa.Table]
    query: sql.Composable
    constraints: Sequence[sql.SQL] = ()
    indexes: Sequence[sql.SQL] = ()


class Postgis:
    """A PostgreSQL database with PostGIS, one schema a city.

    Parameters
    ----------
    url
        `postgresql://…`; SQLAlchemy's `postgresql+psycopg2://` is understood too.
    """

    def __init__(self, url: str) -> None:
        self._dsn = url.replace("postgresql+psycopg2://", "postgresql://", 1)

    @contextmanager
    def transaction(self) -> Iterator[psycopg2.extensions.cursor]:
        """Open a connection with one transaction: committed at the end, undone by an error.

        Raises
        ------
        ServerUnreachableError
            When there is no connection to be made.
        """
        with closing(self._connect()) as connection, connection, connection.cursor() as cursor:
            yield cursor

    @contextmanager
    def session(self, application_name: str) -> Iterator[psycopg2.extensions.cursor]:
        """Open a connection whose statements are transactions of their own (autocommit).

        Parameters
        ----------
        application_name
            What other sessions see of this one, in `pg_stat_activity`.

        Raises
        ------
        ServerUnreachableError
            When there is no connection to be made.
        """
        with closing(self._connect(application_name)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor

    def _connect(self, application_name: str = "vsvi-assets") -> psycopg2.extensions.connection:
        try:
            return psycopg2.connect(
                self._dsn,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                application_name=application_name,
                client_encoding="UTF8",
                cursor_factory=InterruptibleCursor,
            )
        except psycopg2.OperationalError as error:
            raise ServerUnreachableError(
                f"No connection to PostGIS: {str(error).strip()}"
            ) from error

    def replace_tables(self, schema: str, tables: Sequence[NewTable]) -> dict[str, int]:
        """Replace tables of a schema together, and return each one's number of rows.

        Readers see all the old tables or all the new ones. Two replacements of the same
        schema wait for each other. The new tables are built in a schema of their own, so
        that their indexes and constraints get the plain names.

        Raises
        ------
        psycopg2.errors.DependentObjectsStillExist
            When a view of the user's hangs on an old table; nothing is changed then.
        """
        building = sql.Identifier(f"{schema}~building")
        city = sql.Identifier(schema)
        counts = {}
        with self.transaction() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [_lock_name(schema)])
            cursor.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(city))
            cursor.execute(sql.SQL("CREATE SCHEMA {}").format(building))
            for table in tables:
                counts[table.name] = _build(cursor, building, table)
            for table in tables:
                name = sql.Identifier(table.name)
                cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}.{}").format(city, name))
                cursor.execute(
                    sql.SQL("ALTER TABLE {}.{} SET SCHEMA {}").format(building, name, city)
                )
            cursor.execute(sql.SQL("DROP SCHEMA {}").format(building))
        return counts

    @contextmanager
    def unreplaced(self, schema: str) -> Iterator[None]:
        """Let `replace_tables` of a schema wait, so that several queries see the same tables."""
        with self.transaction() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock_shared(hashtext(%s))", [_lock_name(schema)]
            )
            yield

    def read(
        self,
        query: sql.Composable,
        schema: pa.Schema,
        parameters: Mapping[str, object] | None = None,
    ) -> pa.Table:
        """Return a query's result, whose columns have the names and types of `schema`."""
        answer = io.BytesIO()
        with self.transaction() as cursor:
            bound = cursor.mogrify(query, parameters).decode()
            cursor.copy_expert(f"COPY ({bound}) TO STDOUT (FORMAT csv)", answer)
        if not answer.tell():
            return schema.empty_table()
        answer.seek(0)
        table = pa.csv.read_csv(
            answer,
            read_options=pa.csv.ReadOptions(column_names=schema.names),
            convert_options=pa.csv.ConvertOptions(
                column_types=schema,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                true_values=["t"],
                false_values=["f"],
            ),
        )
        return pa.Table.from_arrays(table.columns, schema=schema)

    def stream(
        self, query: sql.Composable, parameters: Mapping[str, object] | None = None
    ) -> Iterator[tuple]:
        """Yield a query's rows from a server-side cursor; memory does not grow with them."""
        with (
            closing(self._connect()) as connection,
            connection,
            connection.cursor(name="rows") as cursor,
        ):
            cursor.itersize = CURSOR_ROWS
            cursor.execute(query, parameters)
            yield from cursor


def _lock_name(schema: str) -> str:
    return f"vsvi {schema}"


def _build(cursor: psycopg2.extensions.cursor, building: sql.Identifier, table: NewTable) -> int:
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(type_))
        for name, type_ in table.columns.items()
    )
    cursor.execute(sql.SQL("CREATE TEMPORARY TABLE staging ({})").format(columns))
    for batch in table.rows:
        buffer = io.BytesIO()
        # In one piece: Arrow writes garbage for a table whose first piece is empty.
        whole = batch.select(list(table.columns)).combine_chunks()
        pa.csv.write_csv(whole, buffer, pa.csv.WriteOptions(include_header=False))
        buffer.seek(0)
        cursor.copy_expert("COPY pg_temp.staging FROM STDIN (FORMAT csv)", buffer)
    cursor.execute("ANALYZE pg_temp.staging")
    target = sql.SQL("{}.{}").format(building, sql.Identifier(table.name))
    cursor.execute(sql.SQL("CREATE TABLE {} AS {}").format(target, table.query))
    count = cursor.rowcount
    cursor.execute("DROP TABLE pg_temp.staging")
    for constraint in table.constraints:
        cursor.execute(sql.SQL("ALTER TABLE {} {}").format(target, constraint))
    for index in table.indexes:
        cursor.execute(sql.SQL("CREATE INDEX ON {} USING {}").format(target, index))
    cursor.execute(sql.SQL("ANALYZE {}").format(target))
    return count
