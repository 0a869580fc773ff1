"""Which errors another try may mend: those of services that are busy, or away for minutes."""

import sys
import time
from collections.abc import Mapping
from itertools import islice

import psycopg2
from dagster import Backoff, Failure, Jitter, RetryPolicy, get_dagster_logger
from dagster._utils.error import SerializableErrorInfo

from vsvi_assets.database.errors import ServerUnreachableError
from vsvi_assets.mapillary.coverage import TilesFailedError
from vsvi_assets.mapillary.errors import TransientError
from vsvi_assets.settings import Settings
from vsvi_assets.streets import OverpassError

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
    ServerUnreachableError,
)


class ServiceRetryPolicy(RetryPolicy):
    """Runs a step once more after errors that may pass, and after no others.

    The clients already repeat each request within seconds; this serves outages of minutes.
    What an attempt stored is there for the next, which takes the rest. A plain `RetryPolicy`
    would also repeat what no time mends (a refused token, a full disk, a fault of this
    program), and what was interrupted on purpose; and its waiting cannot be interrupted.

    Dagster asks for the delay while it handles the error of the step, which decides here.
    """

    @classmethod
    def of(cls, settings: Settings) -> "ServiceRetryPolicy":
        """Return the policy of all assets: exponential delays, with jitter."""
        return cls(
            max_retries=3,
            delay=settings.retry_delay,
            backoff=Backoff.EXPONENTIAL,
            jitter=Jitter.PLUS_MINUS,
        )

    def calculate_delay(self, attempt_num: int) -> float:
        """Wait, and return how much longer is to be waited: nothing.

        Raises
        ------
        dagster.Failure
            When the error that is being handled is not one that may pass.
        BaseException
            The interruption that is being handled.
        """
        error = sys.exception()
        if not isinstance(error, Exception):
            raise
        if not isinstance(error, MAY_PASS) or _is_lasting(error):
            raise Failure(str(error), allow_retries=False) from error
        if attempt_num <= self.max_retries:
            delay = max(super().calculate_delay(attempt_num), 0.0)
            get_dagster_logger().warning(
                f"{str(error).strip()}\nTried again in {delay:.0f} seconds, "
                f"for the {attempt_num}. time of {self.max_retries}."
            )
            time.sleep(delay)
        return 0.0


def _is_lasting(error: Exception) -> bool:
    return isinstance(error, psycopg2.errors.DiskFull) or (
        isinstance(error, TilesFailedError) and not error.may_pass
    )


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
    while error.cause and (error.cls_name or "").startswith(
        ("Dagster", "RetryRequested", "Failure")
    ):
        error = error.cause
    return error
