"""A row of the schema `vsvi` by which all processes of a database keep to something together."""

import threading
from contextlib import ExitStack

import psycopg2
import psycopg2.extensions
from psycopg2 import sql

from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import PostgisError

_CREATE_SCHEMA = """
    SELECT pg_advisory_xact_lock(hashtextextended('vsvi.tile_requests', 0));
    CREATE SCHEMA IF NOT EXISTS vsvi;
"""


class SharedRow:
    """Runs statements on one row, by one connection that all threads of the process share.

    Parameters
    ----------
    table
        Its name in the schema `vsvi`. It is created where it is missing, and so is the row.
    column, key
        Name of its key, which is the address of a service, and that of the row.
    create
        Statement that creates the table unless it exists.
    """

    def __init__(self, postgis: Postgis, table: str, column: str, key: str, create: str) -> None:
        self._postgis, self._table, self._column, self._key = postgis, table, column, key
        self._create = create
        self._statement = threading.Lock()
        self._session = ExitStack()
        self._cursor: psycopg2.extensions.cursor | None = None

    def run(self, statement: str, **values: object) -> list[tuple]:
        """Run a statement in a transaction of its own; `%(key)s` in it is the row's key.

        Raises
        ------
        PostgisError
            When the role may not create the table.
        psycopg2.Error
            When the database cannot be used.
        """
        values |= {"key": self._key}
        with self._statement:
            if self._cursor is not None:
                try:
                    return _rows(self._cursor, statement, values)
                except (psycopg2.OperationalError, psycopg2.InterfaceError):
                    self._session.close()  # the server was restarted meanwhile
                    self._cursor = None
            self._cursor = self._connect()
            return _rows(self._cursor, statement, values)

    def _connect(self) -> psycopg2.extensions.cursor:
        name = f"vsvi {self._table.replace('_', ' ')}"
        cursor = self._session.enter_context(self._postgis.session(name))
        cursor.execute("SELECT to_regclass(%s) IS NULL", [f"vsvi.{self._table}"])
        [(is_missing,)] = cursor.fetchall()
        if is_missing:
            try:
                # Several statements at once are one transaction.
                cursor.execute(_CREATE_SCHEMA + self._create)
            except psycopg2.errors.InsufficientPrivilege as error:
                info = cursor.connection.info
                grant = sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
                    sql.Identifier(info.dbname), sql.Identifier(info.user)
                )
                raise PostgisError(
                    f"The pace of the {self._table.replace('_', ' ')} is kept in the schema vsvi, "
                    "which the role of VSVI_POSTGRES_URL may not create. As the database's owner, "
                    f"run: {grant.as_string(cursor)}"
                ) from error
        insert = sql.SQL("INSERT INTO vsvi.{} ({}) VALUES (%s) ON CONFLICT DO NOTHING").format(
            sql.Identifier(self._table), sql.Identifier(self._column)
        )
        cursor.execute(insert, [self._key])
        return cursor


def _rows(
    cursor: psycopg2.extensions.cursor, statement: str, values: dict[str, object]
) -> list[tuple]:
    cursor.execute(statement, values)
    return cursor.fetchall() if cursor.description else []
