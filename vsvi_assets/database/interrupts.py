"""Queries that end when the program is interrupted.

psycopg2 waits for the server in C, where Python's signal handlers do not run: a query that
waits for a lock would make Ctrl-C wait as long. Its own way out, a wait callback, rules COPY
out. So a query of the main thread, which alone is interrupted, runs in another thread.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import psycopg2.extensions

from vsvi_assets.threads import run_task

Result = TypeVar("Result")

_CANCEL_SECONDS = 5.0


class InterruptibleCursor(psycopg2.extensions.cursor):
    """A cursor whose statements the server gives up when the program is interrupted."""

    def execute(self, *arguments: Any, **keywords: Any) -> None:
        execute = super().execute
        interruptible(self.connection, lambda: execute(*arguments, **keywords))

    def copy_expert(self, *arguments: Any, **keywords: Any) -> None:
        copy_expert = super().copy_expert
        interruptible(self.connection, lambda: copy_expert(*arguments, **keywords))


def interruptible(connection: psycopg2.extensions.connection, work: Callable[[], Result]) -> Result:
    """Return what `work` returns, which waits for a query of the connection.

    An exception of a signal handler, such as KeyboardInterrupt, is raised as soon as the server
    has given the query up, or after some seconds where it does not answer.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    done: Future[Result] = Future()
    threading.Thread(target=run_task, args=(done, work), daemon=True).start()
    try:
        return done.result()
    except BaseException:
        if not done.done():
            with suppress(psycopg2.Error):
                connection.cancel()
            with suppress(BaseException):
                done.result(_CANCEL_SECONDS)
        raise
