"""Decides what follows from an error in a step: a retry in a while, or the end of the run.

The clients repeat each request within seconds; a retry of the step serves outages of minutes.
What an attempt stored is there for the next, which does the rest.

The assets have no `RetryPolicy`: with one, Dagster would also run a step again that was
interrupted on purpose.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from dagster import (
    Backoff,
    DagsterError,
    DagsterEvent,
    Failure,
    InputContext,
    IOManager,
    OpExecutionContext,
    OutputContext,
    RetryPolicy,
    RetryRequested,
)

from vsvi_assets.settings import Settings

MAX_RETRIES = 3

ALL_ELSE_IS_DONE = "all else is done"
"""The label in a failure's metadata that says so."""


@contextmanager
def retry_boundary() -> Iterator[None]:
    """Turn an error in a step into a retry where it may pass, and otherwise into a failure.

    An error may pass when it says so itself, by an attribute `may_pass`. While a step waits
    for its retry it holds no place in its pool. A failure is final: Dagster makes no other
    attempt. Its description is the error's message.

    Raises
    ------
    dagster.RetryRequested
        When another attempt may succeed: at most three times, after 30, 90 and 210 seconds
        (where VSVI_RETRY_DELAY is 30).
    dagster.Failure
        For any other error.
    """
    try:
        yield
    except (DagsterError, Failure, RetryRequested):
        raise
    except Exception as error:
        step = OpExecutionContext.get()
        retry = step.retry_number + 1
        if retry <= MAX_RETRIES and may_pass(error):
            seconds = _delay(retry)
            step.log.warning(
                f"{message_of(error)}\nRetry {retry} of {MAX_RETRIES} in {seconds:g} seconds."
            )
            raise RetryRequested(MAX_RETRIES, seconds) from error
        metadata = {ALL_ELSE_IS_DONE: True} if getattr(error, "all_else_is_done", False) else None
        raise Failure(message_of(error), metadata, allow_retries=False) from error


class RetriedIOManager(IOManager):
    """Stores and loads by another IO manager, within the boundary."""

    def __init__(self, manager: IOManager) -> None:
        self._manager = manager

    @retry_boundary()
    def handle_output(self, context: OutputContext, obj: Any) -> None:
        self._manager.handle_output(context, obj)

    @retry_boundary()
    def load_input(self, context: InputContext) -> Any:
        return self._manager.load_input(context)


def may_pass(error: Exception) -> bool:
    """Return whether the same may succeed in some minutes."""
    if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return not isinstance(error, psycopg2.errors.DiskFull)
    return bool(getattr(error, "may_pass", False))


def message_of(error: Exception) -> str:
    """Return the error's message; where the error is not the project's own, after its class."""
    message = str(error).strip()
    is_own = type(error).__module__.partition(".")[0] == __name__.partition(".")[0]
    return message if is_own else f"{type(error).__name__}: {message}"


def reason(event: DagsterEvent) -> str:
    """Return why the step failed whose failure `event` records, without a traceback."""
    failure = event.step_failure_data
    if failure.user_failure_data and failure.user_failure_data.description:
        return failure.user_failure_data.description
    return failure.error.message.strip() if failure.error else "failed without a reason"


def is_partial(event: DagsterEvent) -> bool:
    """Return whether the step failed for single images alone, after all else was done."""
    failure = event.step_failure_data.user_failure_data
    return failure is not None and ALL_ELSE_IS_DONE in failure.metadata


def _delay(retry: int) -> float:
    seconds = Settings.from_environment().retry_delay
    policy = RetryPolicy(MAX_RETRIES, delay=seconds, backoff=Backoff.EXPONENTIAL)
    return policy.calculate_delay(retry)
