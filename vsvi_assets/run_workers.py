"""Runs whose process is gone: it was killed, or the machine lost its power.

Nobody else notices: Dagster's code server reports the end of the processes that it started,
unless it ends together with them. A run that seems to go on would hold back all later ones,
by its place in the pool `mapillary` and by the bounds on runs in dagster.yaml.
"""

import fcntl
import json
from contextlib import suppress
from pathlib import Path

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter, deserialize_value
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult

COMMAND_LINE_TAG = "vsvi/command_line"
"""The run tag that holds the path of the file which the command locks while it runs."""

UNFINISHED = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, which the daemon can also ask whether a run still has a process.

    With it, run monitoring ends runs that lost theirs, and run retries take them up again.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        lost = is_lost(run)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND if lost else WorkerStatus.RUNNING)


def end_lost_runs(instance: DagsterInstance, locked_here: Path) -> None:
    """Record as failed all runs that lost their process, and free their places in pools.

    Parameters
    ----------
    instance
        Where the runs are recorded.
    locked_here
        The file that this process itself has locked: runs of earlier holders are lost.
    """
    for run in instance.get_runs(RunsFilter(statuses=UNFINISHED)):
        if run.tags.get(COMMAND_LINE_TAG) == str(locked_here) or is_lost(run):
            instance.report_run_failed(run, "Its process ended before the run did.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def is_lost(run: DagsterRun) -> bool:
    """Return whether a run that is not finished has certainly no process any more."""
    if lock := run.tags.get(COMMAND_LINE_TAG):
        return not _is_locked(Path(lock))
    if server := run.tags.get(GRPC_INFO_TAG):
        return not _is_run_by(server, run)
    return False


def _is_locked(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _is_run_by(server: str, run: DagsterRun) -> bool:
    """Ask the code server that started a run; one that does not answer in time may be busy."""
    address = json.loads(server)
    client = DagsterGrpcClient(
        port=address.get("port"), socket=address.get("socket"), host=address["host"]
    )
    request = CanCancelExecutionRequest(run_id=run.run_id)
    try:
        answer = client.can_cancel_execution(request, timeout=10)
    except DagsterUserCodeUnreachableError as error:
        return "UNAVAILABLE" not in str(error)
    return (
        deserialize_value(answer, CanCancelExecutionResult).can_cancel
        or run.status == DagsterRunStatus.CANCELING
    )
