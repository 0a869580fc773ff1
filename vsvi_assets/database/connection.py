"""Connections to a PostgreSQL database with PostGIS."""

import io
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from typing import IO, Any

import psycopg2
import psycopg2.extensions
import pyarrow as pa
import pyarrow.csv
from psycopg2 import sql

from vsvi_assets.database.errors import (
    DatabaseAddressError,
    PostgisMissingError,
    ServerUnreachableError,
    explained,
)
from vsvi_assets.database.interrupts import InterruptibleCursor, interruptible

APPLICATION_NAME = "vsvi-assets"
CONNECT_TIMEOUT_SECONDS = 10
CURSOR_ROWS = 10_000
"""Rows that a streaming query holds in memory at a time."""

ANSWER_BYTES = 1_000_000
"""Up to which an answer waits in memory, and not in a temporary file."""

_environment = threading.Lock()


@contextmanager
def without_libpq_variables() -> Iterator[None]:
    """Hide libpq's environment variables (PGSERVICE, PGSSLMODE, …) while a connection is made.

    Some of them change a connection whatever its address says, and libpq cannot be made to
    leave them alone. They are meant for the user's other databases.
    """
    with _environment:
        hidden = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("PG")}
        try:
            yield
        finally:
            os.environ.update(hidden)


class Postgis:
    """A PostgreSQL database with PostGIS, with one schema per city.

    Parameters
    ----------
    url
        `postgresql://…`; SQLAlchemy's `postgresql+psycopg2://` is understood too.
    is_own
        Whether it is the project's own server, to which libpq's environment variables do not
        apply.
    """

    def __init__(self, url: str, *, is_own: bool = False) -> None:
        self._url = url.replace("postgresql+psycopg2://", "postgresql://", 1)
        self._is_own = is_own

    @contextmanager
    def transaction(self) -> Iterator[psycopg2.extensions.cursor]:
        """Open a connection with one transaction: committed at the end, undone by an error.

        In it PostGIS's functions are found wherever they are, and times are in UTC. Tables have
        to be named with their schema.

        Raises
        ------
        PostgisError
            Where there is no connection, or no PostGIS; where the role may not do this; or where
            the server's disk is full.
        """
        with (
            explained(),
            closing(self._connect()) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            _prepare(cursor)
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
        PostgisError
            As `transaction` does, but for a missing PostGIS.
        """
        with explained(), closing(self._connect(application_name)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor

    def read(
        self,
        query: sql.Composable,
        schema: pa.Schema,
        parameters: Mapping[str, object] | None = None,
    ) -> pa.Table:
        """Return a query's result, whose columns have the names and types of `schema`."""
        with self.transaction() as cursor:
            return _copy_out(cursor, query, schema, parameters)

    def read_in_parallel(
        self,
        query: sql.Composable,
        schema: pa.Schema,
        parameters: Sequence[Mapping[str, object]],
    ) -> pa.Table:
        """Return the results of a query with several parameters, one after the other.

        Each has a connection of its own. They see the same tables, but not the same state of
        them: the caller has to see to it that nothing changes meanwhile.
        """
        with ExitStack() as stack:
            cursors = [stack.enter_context(self.transaction()) for _ in parameters]
            with ThreadPoolExecutor(len(cursors)) as pool:
                results = [
                    pool.submit(_copy_out, cursor, query, schema, values)
                    for cursor, values in zip(cursors, parameters, strict=True)
                ]
                try:
                    return pa.concat_tables([result.result() for result in results])
                except BaseException:
                    for cursor in cursors:
                        with suppress(psycopg2.Error):
                            cursor.connection.cancel()
                    raise

    def stream_batches(
        self,
        query: sql.Composable,
        schema: pa.Schema,
        parameters: Mapping[str, object] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield a query's result in batches, whose columns have the names and types of `schema`.

        It waits in a temporary file: the transaction ends before the first batch, and memory
        does not grow with the rows. Several times as fast as `stream`.
        """
        with tempfile.TemporaryFile() as answer:
            with self.transaction() as cursor:
                _copy_to(answer, cursor, query, parameters)
            if answer.tell():
                answer.seek(0)
                # A line break within a value, unlike in `read_csv`, may lie between two blocks.
                parsing = pa.csv.ParseOptions(newlines_in_values=True)
                yield from pa.csv.open_csv(answer, parse_options=parsing, **_csv_options(schema))

    def stream(
        self, query: sql.Composable, parameters: Mapping[str, object] | None = None
    ) -> Iterator[tuple]:
        """Yield a query's rows; memory does not grow with them.

        The transaction ends before the first row: the server keeps the result, and no lock on
        the tables, however long the rows take.
        """
        with explained(), closing(self._connect()) as connection:
            with connection.cursor() as cursor:
                _prepare(cursor)
                rows = connection.cursor("rows", withhold=True)
                rows.itersize = CURSOR_ROWS
                rows.execute(query, parameters)
            interruptible(connection, connection.commit)
            connection.autocommit = True
            yield from rows

    def _connect(self, application_name: str = APPLICATION_NAME) -> psycopg2.extensions.connection:
        try:
            with without_libpq_variables() if self._is_own else nullcontext():
                return psycopg2.connect(
                    self._checked_url(),
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    application_name=application_name,
                    client_encoding="UTF8",
                    cursor_factory=InterruptibleCursor,
                )
        except psycopg2.OperationalError as error:
            advice = " Start it with `vsvi up`." if self._is_own else ""
            raise ServerUnreachableError(
                f"No connection to PostGIS: {str(error).strip()}.{advice}"
            ) from error

    def _checked_url(self) -> str:
        """Return the address, of which a part would be taken for another where it is not right."""
        authority, *rest = re.split("[/?#]", self._url.partition("://")[2], maxsplit=1)
        if authority.count("@") > 1 or any("@" in part for part in rest):
            raise DatabaseAddressError(
                "VSVI_POSTGRES_URL has a user name or a password with one of the characters "
                "@ / ? # : %. Write them as %40 %2F %3F %23 %3A %25."
            )
        try:
            psycopg2.extensions.parse_dsn(self._url)
        except psycopg2.Error:
            # Its text would show a part of the password.
            raise DatabaseAddressError(
                "VSVI_POSTGRES_URL is not the address of a PostgreSQL database, such as "
                "postgresql://user:password@host:5432/database (with % written as %25)."
            ) from None
        return self._url


def _prepare(cursor: psycopg2.extensions.cursor) -> None:
    """Make the transaction find PostGIS, whose schema may be none of the search path."""
    cursor.execute(
        """
        SELECT set_config('search_path', quote_ident(nspname), true),
            set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO', true)
        FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
        WHERE extname = 'postgis' AND has_schema_privilege(extnamespace, 'USAGE')
        """
    )
    if not cursor.rowcount:
        cursor.execute(
            """
            SELECT format('GRANT USAGE ON SCHEMA %I TO %I', nspname, current_user)
            FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
            WHERE extname = 'postgis'
            """
        )
        [statement] = cursor.fetchone() or ["CREATE EXTENSION postgis"]
        info = cursor.connection.info
        raise PostgisMissingError(
            f"The database {info.dbname} has no PostGIS that the role {info.user} may use. As its "
            f"administrator, run in it: {statement}"
        )


def _copy_out(
    cursor: psycopg2.extensions.cursor,
    query: sql.Composable,
    schema: pa.Schema,
    parameters: Mapping[str, object] | None,
) -> pa.Table:
    with tempfile.SpooledTemporaryFile(ANSWER_BYTES) as answer:
        # The rows come one by one, for which a spooled file alone is slow.
        writer = io.BufferedWriter(answer, ANSWER_BYTES)
        try:
            _copy_to(writer, cursor, query, parameters)
        finally:
            writer.detach()
        if not answer.tell():
            return schema.empty_table()
        answer.seek(0)
        table = pa.csv.read_csv(answer, **_csv_options(schema))
    return pa.Table.from_arrays(table.columns, schema=schema)


def _copy_to(
    file: IO[bytes],
    cursor: psycopg2.extensions.cursor,
    query: sql.Composable,
    parameters: Mapping[str, object] | None,
) -> None:
    bound = cursor.mogrify(query, parameters).decode()
    cursor.copy_expert(f"COPY ({bound}) TO STDOUT (FORMAT csv)", file)


def _csv_options(schema: pa.Schema) -> dict[str, Any]:
    return {
        "read_options": pa.csv.ReadOptions(column_names=schema.names),
        "convert_options": pa.csv.ConvertOptions(
            column_types=schema,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            true_values=["t"],
            false_values=["f"],
        ),
    }
