"""Locks that all processes share that use the same database, on whatever machine they run."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import psycopg2.extensions

from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import LockHeldError

_LOST_MACHINE_SECONDS = 60


@contextmanager
def advisory_lock(postgis: Postgis, name: str, *, wait: bool) -> Iterator[None]:
    """Hold the lock `name` of a database for as long as the context lasts.

    The lock belongs to a session of its own, so that it ends with this process however that
    ends, and within about a minute where the whole machine is lost. A pooler in front of the
    database must keep sessions (pgbouncer: `pool_mode = session`).

    Parameters
    ----------
    wait
        Whether to wait until the lock is free. An interrupt ends the wait.

    Raises
    ------
    LockHeldError
        Where another session holds the lock and `wait` is False.
    """
    with postgis.session(f"vsvi on {socket.gethostname()}, process {os.getpid()}") as cursor:
        _survive_idle_hours(cursor)
        if wait:
            cursor.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
        else:
            cursor.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [name])
            [(locked,)] = cursor.fetchall()
            if not locked:
                # It may have been released just now.
                holder, since = _holder(cursor, name) or ("another process", None)
                raise LockHeldError(name, holder or "another process", since)
        try:
            yield
        finally:
            # The end of the session frees the lock too, but only once the server has noticed it;
            # of a session that is lost already there is nothing left to free.
            with suppress(psycopg2.Error):
                cursor.execute("SELECT pg_advisory_unlock_all()")


def is_locked(postgis: Postgis, name: str) -> bool:
    """Return whether a session holds the lock `name` of a database."""
    with postgis.transaction() as cursor:
        return _holder(cursor, name) is not None


def lock_holders(postgis: Postgis) -> list[str]:
    """Return the application names of the sessions that hold locks of this project, in order."""
    with postgis.transaction() as cursor:
        cursor.execute(
            "SELECT DISTINCT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND granted AND application_name LIKE 'vsvi on %'"
            " ORDER BY application_name"
        )
        return [name for (name,) in cursor.fetchall()]


def _survive_idle_hours(cursor: psycopg2.extensions.cursor) -> None:
    """Let the server keep the silent session, and notice where its machine is gone."""
    interval = _LOST_MACHINE_SECONDS // 4
    cursor.execute(
        "SELECT set_config(name, value, false) FROM (VALUES"
        " ('tcp_keepalives_idle', %(interval)s), ('tcp_keepalives_interval', %(interval)s),"
        " ('tcp_keepalives_count', '3'), ('idle_session_timeout', '0')) AS wanted (name, value)"
        " JOIN pg_settings USING (name)",
        {"interval": str(interval)},
    )


def _holder(cursor: psycopg2.extensions.cursor, name: str) -> tuple[str, datetime | None] | None:
    """Return the application name of the session that holds a lock, and when it began (UTC)."""
    cursor.execute(
        """
        SELECT application_name, backend_start
        FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE locktype = 'advisory' AND granted AND objsubid = 1
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND (classid::bigint << 32) | objid::bigint = hashtextextended(%s, 0)
        """,
        [name],
    )
    found = cursor.fetchone()
    return found and (found[0], found[1] and found[1].astimezone(UTC))
