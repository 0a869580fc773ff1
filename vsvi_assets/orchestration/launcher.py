"""Runs whose process is gone: it was killed, or the machine lost its power.

Nobody else notices: Dagster's code server reports the end of the processes that it started,
unless it ends together with them. A run that seems to go on would hold back all later ones,
by its place in the pool `mapillary` and by the bounds on runs in dagster.yaml.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

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
        lost = is_lost(self._instance, run)
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
        if run.tags.get(COMMAND_LINE_TAG) == str(locked_here) or is_lost(instance, run):
            instance.report_run_failed(run, "Its process ended before the run did.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def is_lost(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Return whether a run that is not finished has certainly no process on this machine."""
    if lock := run.tags.get(COMMAND_LINE_TAG):
        return not _is_locked(Path(lock))
    process_ids = _process_ids(instance, run)
    return bool(process_ids) and not any(map(_is_dagster, process_ids))


def _is_locked(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _process_ids(instance: DagsterInstance, run: DagsterRun) -> set[int]:
    """Return the processes that the run's own log names."""
    entries = instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
    metadata = [
        entry.dagster_event.engine_event_data.metadata for entry in entries if entry.dagster_event
    ]
    return {int(str(values["pid"].value)) for values in metadata if "pid" in values}


def _is_dagster(process_id: int) -> bool:
    """Return whether there is such a process, and it may be a run's: ids are used again."""
    try:
        os.kill(process_id, 0)
        command = Path(f"/proc/{process_id}/cmdline").read_bytes()
    except ProcessLookupError:
        return False
    except (PermissionError, FileNotFoundError):  # of another user; or no Linux
        return True
    return b"dagster" in command or b"multiprocessing" in command
