"""Connections of Dagster's storage in the project's own server, which stay open between queries.

dagster-postgres opens a connection for every query, several per event, and each costs more
than what it is opened for. Its own way out is made for the webserver alone. SQLAlchemy
loads this module wherever a database URL says `?plugin=vsvi`, as the one in `.env` does.
"""

from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, CreateEnginePlugin, Dialect, Engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, QueuePool

from vsvi_assets.database.connection import without_libpq_variables


class KeptConnection(CreateEnginePlugin):
    """Lets each engine keep one connection; further ones are closed after use, as before.

    A kept connection is tried before it is used, so the server may be restarted meanwhile.
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        if kwargs.get("poolclass") is NullPool:
            kwargs.update(poolclass=QueuePool, pool_size=1, max_overflow=-1, pool_pre_ping=True)

    def update_url(self, url: URL) -> URL:
        return url

    def engine_created(self, engine: Engine) -> None:
        event.listen(engine, "do_connect", _connect)


def _connect(
    dialect: Dialect, entry: ConnectionPoolEntry, arguments: list[Any], keywords: dict[str, Any]
) -> Any:
    with without_libpq_variables():
        return dialect.connect(*arguments, **keywords)
