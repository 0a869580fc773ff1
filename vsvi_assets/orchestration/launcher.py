"""Runs whose process is gone: it was killed, or its machine lost its power.

Nobody else notices: Dagster's code server reports the end of the processes that it started,
unless it ends together with them. A run that seems to go on would hold back all later ones,
by its place in the pool `mapillary` and by the bounds on runs in dagster.yaml.

Several machines may share Dagster's database, so nothing here judges the runs of another
machine: whoever launched a run is asked. A run in the process of a command is launched by
nobody. It lives as long as that process holds a lock of the cities' database.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from dagster import (
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultRunLauncher,
    RunsFilter,
)

from vsvi_assets.database.locks import is_locked
from vsvi_assets.database.server import project_database
from vsvi_assets.orchestration.dagster_internals import (
    CheckRunHealthResult,
    LaunchRunContext,
    WorkerStatus,
    code_server_of,
    instance_of,
)
from vsvi_assets.settings import Settings

LOCK_TAG = "vsvi/lock"
"""The run tag with the name of the lock that the run's process holds while it lives."""

HOST_TAG = "vsvi/host"
"""The run tag with the name of the machine on which the run's process was started."""

UNFINISHED = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, which the daemon can also ask whether a run still has a process.

    With it, run monitoring ends runs that lost theirs, and run retries take them up again.
    Runs that were started on another machine, or by an unknown one, count as alive.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def launch_run(self, context: LaunchRunContext) -> None:
        super().launch_run(context)
        run_id = context.dagster_run.run_id
        run = instance_of(self).get_run_by_id(run_id)
        if run and _is_this_machine(code_server_of(run)):
            instance_of(self).add_run_tags(run_id, {HOST_TAG: this_machine()})

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        if health := health_of_command(run):
            return health
        is_here = run.tags.get(HOST_TAG) == this_machine()
        return _health(is_here and _lost_its_process(instance_of(self), run))


def health_of_command(run: DagsterRun) -> CheckRunHealthResult | None:
    """Return whether the command lives in whose process a run is executed; None: in no command's.

    Every launcher asks this first: a command's run was launched by none.
    """
    lock = run.tags.get(LOCK_TAG)
    return _health(not _is_held(lock)) if lock else None


def _health(is_lost: bool) -> CheckRunHealthResult:
    return CheckRunHealthResult(WorkerStatus.NOT_FOUND if is_lost else WorkerStatus.RUNNING)


def this_machine() -> str:
    """Return a name of this machine by which no other is called: many are "localhost"."""
    machine_id = Path("/etc/machine-id")
    known = machine_id.read_text().strip() if machine_id.is_file() else ""
    return f"{socket.gethostname()} {known}".strip()


def end_lost_runs(instance: DagsterInstance, held_lock: str) -> None:
    """Record that runs without a process have ended, and free their places in pools.

    Parameters
    ----------
    instance
        Where the runs are recorded.
    held_lock
        The lock that this process holds by now: runs of earlier holders are lost.
    """
    for run in instance.get_runs(RunsFilter(statuses=UNFINISHED)):
        if run.tags.get(LOCK_TAG) == held_lock or _is_lost(instance, run):
            _end(instance, run)


def runs_under_way(instance: DagsterInstance, city_name: str) -> list[str]:
    """Return the ids of the runs that materialize assets of a city now, on whatever machine."""
    under_way = RunsFilter(statuses=[DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING])
    return [
        run.run_id
        for run in instance.get_runs(under_way)
        if any(key.path[0] == city_name for key in run.asset_selection or ())
    ]


def unfinished_runs_of_code_server(instance: DagsterInstance, host: str) -> list[str]:
    """Return the ids of runs whose processes a code server started, by the host it is known by."""
    runs = instance.get_runs(RunsFilter(statuses=UNFINISHED))
    return [run.run_id for run in runs if code_server_of(run).get("host") == host]


def end_runs(instance: DagsterInstance, run_ids: Sequence[str]) -> None:
    """Record that runs have ended whose processes are gone, where nobody else did meanwhile."""
    for run in instance.get_runs(RunsFilter(run_ids=run_ids, statuses=UNFINISHED)):
        _end(instance, run)


def _end(instance: DagsterInstance, run: DagsterRun) -> None:
    # First, so that a process that is killed in here leaves the rest to the next one.
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    if run.status == DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, "Its process ended while it was being canceled.")
    else:
        instance.report_run_failed(run, "Its process ended before the run did.")


def _is_lost(instance: DagsterInstance, run: DagsterRun) -> bool:
    if lock := run.tags.get(LOCK_TAG):
        return not _is_held(lock)
    launcher = instance.run_launcher
    # A run that is only about to start has no process yet, wherever it will run.
    started = run.status in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING)
    if not (started and launcher.supports_check_run_worker_health):
        return False
    health = launcher.check_run_worker_health(run)
    return not health.transient and health.status in (WorkerStatus.NOT_FOUND, WorkerStatus.FAILED)


def _is_held(lock: str) -> bool:
    return is_locked(project_database(Settings.from_environment()), lock)


def _is_this_machine(code_server: Mapping[str, object]) -> bool:
    """Return whether a code server, which starts the processes of runs, runs on this machine."""
    return "socket" in code_server or code_server.get("host") in ("localhost", "127.0.0.1", "::1")


def _lost_its_process(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Return whether the run's own log names processes, and none of them is there any more."""
    entries = instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
    metadata = [
        entry.dagster_event.engine_event_data.metadata for entry in entries if entry.dagster_event
    ]
    process_ids = {int(str(values["pid"].value)) for values in metadata if "pid" in values}
    return bool(process_ids) and not any(map(_is_dagster, process_ids))


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
