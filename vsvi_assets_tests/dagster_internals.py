"""What tests need of Dagster and can get in no public way; no other test imports it.

The names are for faults that a test makes (an event, a heartbeat or a backfill written by hand) and
for what Dagster does with the project's files. Run as a program, this is Dagster's daemon with
short pauses, and with a clock that the file `days_passed` moves on.
"""

from datetime import datetime, timedelta
from pathlib import Path

from dagster._config import validate_config as validate_config
from dagster._core.code_pointer import ModuleCodePointer as ModuleCodePointer
from dagster._core.events import EngineEventData as EngineEventData
from dagster._core.execution.backfill import BulkActionStatus as BulkActionStatus
from dagster._core.execution.backfill import PartitionBackfill as PartitionBackfill
from dagster._core.instance.ref import InstanceRef as InstanceRef
from dagster._core.origin import JobPythonOrigin as JobPythonOrigin
from dagster._core.origin import RepositoryPythonOrigin as RepositoryPythonOrigin
from dagster._core.remote_representation.external_data import RepositorySnap as RepositorySnap
from dagster._core.secrets.env_file import get_env_var_dict as get_env_var_dict
from dagster._daemon import asset_daemon, controller
from dagster._daemon.cli import main
from dagster._daemon.types import DaemonHeartbeat as DaemonHeartbeat
from dagster._scheduler import scheduler
from dagster._time import get_current_datetime
from dagster._utils.error import (
    serializable_error_info_from_exc_info as serializable_error_info_from_exc_info,
)

PAUSE_SECONDS = 2


def _moved_clock(tz: str = "UTC") -> datetime:
    return get_current_datetime(tz) + timedelta(days=int(Path("days_passed").read_text()))


if __name__ == "__main__":
    # Its loops rest for up to a minute, which no setting shortens.
    scheduler.get_current_datetime = _moved_clock
    scheduler._get_next_scheduler_iteration_time = lambda start_time: start_time + PAUSE_SECONDS
    asset_daemon.MIN_INTERVAL_LOOP_SECONDS = PAUSE_SECONDS
    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = PAUSE_SECONDS
    main()
