"""What the project needs of Dagster and can get in no public way.

No other module imports from `dagster._…`. Each function says why it is here, and
test_dagster_internals.py fails when Dagster changes underneath it.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    Definitions,
    ExecuteInProcessResult,
    Executor,
    Failure,
    InitExecutorContext,
    PartitionKeyRange,
    PartitionsDefinition,
    RunConfig,
    asset,
    define_asset_job,
    executor,
    raise_execution_interrupts,
)
from dagster._core.events import (
    DagsterEventBatchMetadata,
    RunFailureReason,
    generate_event_batch_id,
)
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.execution.context.metadata_logging import (
    AssetMetadataHandle,
    OutputMetadataAccumulator,
)
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.instance.ref import InstanceRef

# What a run launcher that knows its runs' health has to take and to return.
from dagster._core.launcher import CheckRunHealthResult as CheckRunHealthResult
from dagster._core.launcher import LaunchRunContext as LaunchRunContext
from dagster._core.launcher import RunLauncher
from dagster._core.launcher import WorkerStatus as WorkerStatus
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster._core.storage.tags import GRPC_INFO_TAG

# What the configuration in dagster.yaml gives to a launcher.
from dagster._serdes import ConfigurableClassData as ConfigurableClassData
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import OperationalError

from vsvi_assets.database.errors import ServerUnreachableError

BATCH = 200
"""How many materializations are recorded together."""

SHORTEST_WAIT = 0.1
"""Seconds between two looks at a pool that is full."""

MOST_RECENT_BACKFILLS = 50
"""How many backfills are looked at for news: those of a minute are fewer."""

ENDED_BACKFILLS = {
    BulkActionStatus.COMPLETED_SUCCESS: "succeeded",
    BulkActionStatus.COMPLETED_FAILED: "over, but some of its runs failed",
    BulkActionStatus.FAILED: "failed",
    BulkActionStatus.CANCELED: "canceled",
}

UNFINISHED_BACKFILLS = [
    BulkActionStatus.REQUESTED,
    BulkActionStatus.CANCELING,
    BulkActionStatus.FAILING,
]


@contextmanager
def interruptible_waits() -> Iterator[None]:
    """Let Ctrl-C and Terminate end a run that waits for a retry or for a place in a pool.

    Dagster's in-process executor puts interrupts off until the next step begins: for minutes
    where a step waits for its retry, and for as long as the pool is full where it waits for a
    place there, which it does without a pause.
    """
    wait = ActiveExecution.sleep_til_ready

    def interruptible_wait(self: ActiveExecution) -> None:
        with raise_execution_interrupts():
            time.sleep(max(self.sleep_interval(), SHORTEST_WAIT))

    ActiveExecution.sleep_til_ready = interruptible_wait  # type: ignore[method-assign]
    try:
        yield
    finally:
        ActiveExecution.sleep_til_ready = wait  # type: ignore[method-assign]


class _InterruptibleExecutor(InProcessExecutor):
    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        with interruptible_waits():
            yield from super().execute(plan_context, execution_plan)


@executor(name="in_process")
def interruptible_executor(_: InitExecutorContext) -> Executor:
    """Execute all steps of a run in its one process, with `interruptible_waits`.

    `execute_in_process` takes no executor: whoever calls it enters `interruptible_waits`.
    """
    return _InterruptibleExecutor(RetryMode.ENABLED)


def add_partition_metadata(
    context: AssetExecutionContext, metadata: Mapping[str, Mapping[str, Any]]
) -> None:
    """Give each partition's materialization its metadata, by partition key.

    `context.add_asset_metadata` does so for one partition, and reads all keys of the asset
    each time: with 20,000 sequences that takes longer than the partition itself.
    """
    step = context.get_step_execution_context()
    added = dict(step._metadata_accumulator.per_output_metadata)
    for key, values in metadata.items():
        added[AssetMetadataHandle(asset_key=context.asset_key, partition_key=key)] = values
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata=added)


def record_together(
    context: AssetExecutionContext,
    materializations: Iterable[AssetMaterialization],
    seconds: float = math.inf,
) -> None:
    """Record materializations, many in each write where DAGSTER_EVENT_BATCH_SIZE allows it.

    `context.log_event` records one at a time, for minutes where there are thousands.

    Parameters
    ----------
    seconds
        After so many no further ones are begun.
    """
    step, deadline = context.get_step_execution_context(), time.monotonic() + seconds
    remaining = iter(materializations)
    while time.monotonic() < deadline and (some := list(islice(remaining, BATCH))):
        batch = generate_event_batch_id()
        for materialization in some:
            is_last = materialization is some[-1]
            DagsterEvent.asset_materialization(
                step, materialization, DagsterEventBatchMetadata(batch, is_last)
            )


OUTDATED = "outdated_partitions"
"""What the runs are called that show partitions as failed."""


def show_as_failed(
    instance: DagsterInstance,
    key: AssetKey,
    partitions_def: PartitionsDefinition,
    partitions: PartitionKeyRange,
    reason: str,
    tags: Mapping[str, str],
) -> None:
    """Let materialized partitions show as failed, by a run of them that fails with the reason.

    A materialization cannot be taken back: `wipe_asset_partitions` is not implemented for SQL
    storages, and a dynamic partition that is deleted and added again has its old status.
    """

    @asset(key=key, partitions_def=partitions_def)
    def outdated() -> None:
        raise Failure(reason, allow_retries=False)

    job = define_asset_job(OUTDATED, selection=[outdated])
    Definitions([outdated], jobs=[job]).resolve_job_def(OUTDATED).execute_in_process(
        instance=instance,
        raise_on_error=False,
        run_config=RunConfig(loggers={"console": {"config": {"log_level": "CRITICAL"}}}),
        tags={
            "dagster/asset_partition_range_start": partitions.start,
            "dagster/asset_partition_range_end": partitions.end,
            **tags,
        },
    )


def is_in_a_backfill(instance: DagsterInstance, key: AssetKey) -> bool:
    """Return whether a backfill that is not finished covers the asset.

    Between two of its runs, no run shows it.
    """
    backfills = instance.get_backfills(BulkActionsFilter(statuses=UNFINISHED_BACKFILLS))
    return any(key in (backfill.asset_selection or ()) for backfill in backfills)


@dataclass(frozen=True)
class EndedBackfill:
    """A backfill that is over: its assets, tags and outcome, and when it ended (seconds, UTC)."""

    id: str
    assets: list[str]
    tags: Mapping[str, str]
    outcome: str
    ended_at: float


def backfills_ended_since(instance: DagsterInstance, moment: float) -> list[EndedBackfill]:
    """Return the backfills that ended after a moment (seconds since 1970), in this order.

    Dagster has sensors for the ends of runs, but none for those of backfills.
    """
    filters = BulkActionsFilter(statuses=list(ENDED_BACKFILLS))
    ended = [
        EndedBackfill(
            backfill.backfill_id,
            [key.to_user_string() for key in backfill.asset_selection or ()],
            backfill.tags,
            ENDED_BACKFILLS[backfill.status],
            backfill.backfill_end_timestamp,
        )
        for backfill in instance.get_backfills(filters, limit=MOST_RECENT_BACKFILLS)
        if backfill.backfill_end_timestamp and backfill.backfill_end_timestamp > moment
    ]
    return sorted(ended, key=lambda backfill: backfill.ended_at)


@contextmanager
def instance_for_a_terminal(home: Path) -> Iterator[DagsterInstance]:
    """Give the instance of the folder's dagster.yaml, as a command in a terminal uses it.

    What steps print goes to the terminal alone. Dagster would copy it by processes of its own,
    which Ctrl-C ends too, with a traceback each; and dagster.yaml, which turns that off, turns
    it off for the UI's runs as well.

    Raises
    ------
    ServerUnreachableError
        When the database of DAGSTER_POSTGRES_URL does not answer, at first or any more.
    """
    compute_logs = {
        "module": NoOpComputeLogManager.__module__,
        "class": NoOpComputeLogManager.__name__,
    }
    reference = InstanceRef.from_dir(str(home), overrides={"compute_logs": compute_logs})
    try:
        with DagsterInstance.from_ref(reference) as instance:
            yield instance
    except (DagsterPostgresException, OperationalError) as error:
        # SQLAlchemy's error, and the driver's own, which has no link to SQLAlchemy's page.
        cause = error if isinstance(error, OperationalError) else error.__cause__
        raise ServerUnreachableError(
            "Dagster's database (DAGSTER_POSTGRES_URL) is not reachable: "
            f"{str(getattr(cause, 'orig', cause)).strip()} What is whole is kept: run it again "
            "once the server is there."
        ) from error


def was_interrupted(result: ExecuteInProcessResult) -> bool:
    """Return whether Ctrl-C ended a run.

    `execute_in_process` raises it only where it raises the errors of steps too, at the first
    of which it would end.
    """
    failures = result.filter_events(lambda e: e.event_type == DagsterEventType.RUN_FAILURE)
    reasons = [failure.job_failure_data.failure_reason for failure in failures]
    return RunFailureReason.UNEXPECTED_TERMINATION in reasons


def code_server_of(run: DagsterRun) -> Mapping[str, object]:
    """Return where the code server is that started the run's process: `host`, `port`, `socket`.

    Dagster's default launcher notes it in a tag, for itself.
    """
    return json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))


def instance_of(launcher: RunLauncher) -> DagsterInstance:
    """Return the instance that has a launcher, which Dagster's own launchers read in this way."""
    return launcher._instance
