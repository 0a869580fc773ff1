"""Which errors another try may mend: those of services that are busy, or away for minutes."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

import psycopg2
from dagster import AssetExecutionContext, OutputContext, RetryRequested
from dagster._utils.error import SerializableErrorInfo

from vsvi_assets.mapillary.coverage import TilesFailedError
from vsvi_assets.mapillary.errors import TransientError
from vsvi_assets.settings import Settings
from vsvi_assets.streets import OverpassError

MAX_RETRIES = 3
REASONS_SHOWN = 5


class ImagesFailedError(Exception):
    """Images that could not be downloaded, after everything else was."""

    def __init__(self, failed: Mapping[int, str]) -> None:
        reasons = "\n".join(
            f"image {id_}: {why}" for id_, why in islice(failed.items(), REASONS_SHOWN)
        )
        super().__init__(
            f"{len(failed)} images could not be downloaded; all others were. Run it again to ask "
            f"for these alone. The first reasons:\n{reasons}"
        )
        self.failed = failed


MAY_PASS = (
    TransientError,
    TilesFailedError,
    ImagesFailedError,
    OverpassError,
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
)


@contextmanager
def tried_again(context: AssetExecutionContext | OutputContext) -> Iterator[None]:
    """Have Dagster run the step once more after errors that may pass, and after no others.

    The clients already repeat each request within seconds; this serves outages of minutes.
    What an attempt stored is there for the next, which takes the rest. A retry policy of the
    asset would also repeat what no time mends (a refused token, a full disk, a fault of this
    program), and what was interrupted on purpose.
    """
    try:
        yield
    except MAY_PASS as error:
        failures = _failures_before(context) + 1
        if failures > MAX_RETRIES or _is_lasting(error):
            raise
        delay = Settings.from_environment().retry_delay
        assert context.log
        context.log.warning(
            f"{context.asset_key.to_user_string()}: {str(error).strip()}\n"
            f"Tried again in {delay} seconds, for the {failures}. time of {MAX_RETRIES}."
        )
        # Here and not by RetryRequested: Dagster's own waiting cannot be interrupted.
        time.sleep(delay)
        raise RetryRequested(MAX_RETRIES, seconds_to_wait=0) from error


def _is_lasting(error: Exception) -> bool:
    return isinstance(error, psycopg2.errors.DiskFull) or (
        isinstance(error, TilesFailedError) and not error.may_pass
    )


def _failures_before(context: AssetExecutionContext | OutputContext) -> int:
    if isinstance(context, OutputContext):
        return context.step_context.previous_attempt_count
    return context.retry_number


def is_partial(error: SerializableErrorInfo) -> bool:
    """Return whether a step failed of single images alone, after all else was done."""
    return _unwrapped(error).cls_name == ImagesFailedError.__name__


def reason(error: SerializableErrorInfo) -> str:
    """Return what went wrong in a step, without Dagster's wrapping and without a traceback.

    The project's own errors speak for themselves; of others the class is told too.
    """
    error = _unwrapped(error)
    name, _, text = error.message.strip().partition(": ")
    return text if name.startswith("vsvi_assets.") else error.message.strip()


def _unwrapped(error: SerializableErrorInfo) -> SerializableErrorInfo:
    while error.cause and (error.cls_name or "").startswith(("Dagster", "RetryRequested")):
        error = error.cause
    return error
