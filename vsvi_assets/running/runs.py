"""A city's assets materialized in this process, recorded in the instance that the UI shows."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    DagsterEventType,
    DagsterInstance,
    Definitions,
    EventLogEntry,
    ExecuteInProcessResult,
    JobDefinition,
    RunConfig,
)
from dagster._core.errors import DagsterAssetCheckFailedError
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster._core.utils import make_new_run_id
from dagster._utils.error import SerializableErrorInfo

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.orchestration.common import CITY_TAG, Fetch, asset_key
from vsvi_assets.orchestration.launcher import COMMAND_LINE_TAG, end_lost_runs
from vsvi_assets.orchestration.retries import is_partial, reason
from vsvi_assets.orchestration.sequence_partitions import sequence_partitions_name
from vsvi_assets.photographs.inventory import take_inventory
from vsvi_assets.progress import Progress
from vsvi_assets.running.services import lock_path

# What went wrong is told by the caller, and all of it is in the instance.
QUIET_CONSOLE = {"console": {"config": {"log_level": "CRITICAL"}}}

METADATA_ASSETS = (
    "street_points",
    "tile_metadata",
    "postgis_tables",
    "selected_image_ids",
    "download_plan",
)


def command_line_instance(home: str) -> DagsterInstance:
    """Return the instance of the folder's dagster.yaml, as a command in a terminal uses it.

    What steps print goes to the terminal alone. Dagster would copy it by processes of its own,
    which Ctrl-C ends too: with a traceback each.
    """
    compute_logs = {
        "module": NoOpComputeLogManager.__module__,
        "class": NoOpComputeLogManager.__name__,
    }
    reference = InstanceRef.from_dir(home, overrides={"compute_logs": compute_logs})
    return DagsterInstance.from_ref(reference)


class CityRuns:
    """Runs of one city's assets, one after the other; to be used within `services.only_process`.

    Parameters
    ----------
    defs
        The definitions that hold the city, with `progress` as their resource.
    instance
        Where the runs are recorded.
    progress
        Told of the steps that begin and end.
    """

    def __init__(
        self,
        defs: Definitions,
        city: City,
        instance: DagsterInstance,
        progress: Progress,
    ) -> None:
        self._job: JobDefinition = defs.resolve_implicit_global_asset_job_def()
        self._city = city
        self._instance = instance
        self._progress = progress
        end_lost_runs(instance, locked_here=lock_path(city))
        keys = [
            asset_key(city, name) for name in (*METADATA_ASSETS, "image_files", "coverage_report")
        ]
        self._assets = {key.to_python_identifier(): key.to_user_string() for key in keys}

    def materialize_metadata(
        self, *, tiles_only: bool = False, overwrite: bool = False
    ) -> ExecuteInProcessResult:
        """Materialize all that comes before the photographs, with all tiles, in one run."""
        names = ["tile_metadata"] if tiles_only else list(METADATA_ASSETS)
        keys = self._city.tile_keys
        fetch = {"tile_metadata": Fetch(overwrite=overwrite)}
        return self._execute(names, _range_tags(keys[0], keys[-1]), fetch)

    def materialize_images(
        self, sequence_ids: Collection[str], *, sequences_per_run: int, overwrite: bool = False
    ) -> Iterator[ExecuteInProcessResult]:
        """Materialize the photographs of the given sequences, as many a run as asked for.

        A run covers a range of partitions. Where sequences that were not asked for lie
        between others, they may be in it: all their files are there, so that costs nothing.

        A run whose images could not all be had is followed by the others; one that failed of
        something else, of which the others would fail too, is the last.
        """
        registered = self._instance.get_dynamic_partitions(sequence_partitions_name(self._city))
        for first, last in partition_ranges(registered, set(sequence_ids), sequences_per_run):
            fetch = {"image_files": Fetch(overwrite=overwrite)}
            result = self._execute(["image_files"], _range_tags(first, last), fetch)
            yield result
            errors = [error for _, error in _step_errors(result)]
            if not (result.success or (errors and all(map(is_partial, errors)))):
                return

    def materialize_report(self) -> ExecuteInProcessResult:
        """Materialize the coverage report, of what is there now."""
        return self._execute(["coverage_report"], {}, {})

    def pending_sequences(self, postgis: Postgis) -> set[str]:
        """Return the sequences that lack images on disk, or their materialization in Dagster."""
        registered = self._instance.get_dynamic_partitions(sequence_partitions_name(self._city))
        materialized = self._instance.get_materialized_partitions(
            asset_key(self._city, "image_files")
        )
        lacking = take_inventory(self._city, postgis).missing
        return set(registered).difference(materialized) | lacking.keys()

    def all_sequences(self) -> set[str]:
        """Return all sequences of which an image is selected."""
        return set(self._instance.get_dynamic_partitions(sequence_partitions_name(self._city)))

    def failure_messages(self, result: ExecuteInProcessResult) -> list[str]:
        """Return why a run failed, a message for each step or check, without tracebacks."""
        messages = [
            f"{self._assets.get(step, step)}: {reason(error)}"
            for step, error in _step_errors(result)
            if error.cls_name != DagsterAssetCheckFailedError.__name__
        ]
        messages += [
            check_message(check)
            for check in check_results(result).values()
            if check.blocking and not check.passed and check.severity == AssetCheckSeverity.ERROR
        ]
        if messages or result.success:
            return messages
        error = _run_failure(result).error
        return [f"{self._city.name}: {reason(error) if error else 'failed without a reason'}"]

    def _execute(
        self,
        names: Sequence[str],
        tags: Mapping[str, str],
        fetch: Mapping[str, Fetch],
    ) -> ExecuteInProcessResult:
        ops: dict[str, Any] = {
            asset_key(self._city, name).to_python_identifier(): config
            for name, config in fetch.items()
        }
        run_id = make_new_run_id()
        self._instance.add_event_listener(run_id, self._listen)
        result = self._job.execute_in_process(
            asset_selection=[asset_key(self._city, name) for name in names],
            instance=self._instance,
            run_id=run_id,
            raise_on_error=False,
            run_config=RunConfig(ops=ops, loggers=QUIET_CONSOLE),
            tags={
                **tags,
                CITY_TAG: self._city.name,
                COMMAND_LINE_TAG: str(lock_path(self._city)),
            },
        )
        interrupted = RunFailureReason.UNEXPECTED_TERMINATION
        if not result.success and _run_failure(result).failure_reason == interrupted:
            self._instance.report_run_canceled(result.dagster_run, "Interrupted by the user.")
            raise KeyboardInterrupt
        return result

    def _listen(self, entry: EventLogEntry) -> None:
        event = entry.dagster_event
        asset = self._assets.get(event.step_key or "") if event else None
        if event is None and entry.level == logging.WARNING:
            self._progress.warned(entry.user_message)
        elif event and asset and event.event_type == DagsterEventType.STEP_START:
            self._progress.started(asset)
        elif event and asset and event.event_type == DagsterEventType.STEP_SUCCESS:
            self._progress.finished(asset)


def _range_tags(first: str, last: str) -> Mapping[str, str]:
    return {
        "dagster/asset_partition_range_start": first,
        "dagster/asset_partition_range_end": last,
    }


def partition_ranges(
    keys: Sequence[str], wanted: Collection[str], size: int
) -> Iterator[tuple[str, str]]:
    """Cut ordered partition keys into ranges of at most `size` that cover all that are wanted.

    Each range begins and ends with a wanted key.
    """
    positions = [position for position, key in enumerate(keys) if key in wanted]
    start = 0
    while start < len(positions):
        end = start
        while end + 1 < len(positions) and positions[end + 1] - positions[start] < size:
            end += 1
        yield keys[positions[start]], keys[positions[end]]
        start = end + 1


def fetched(result: ExecuteInProcessResult) -> tuple[int, int]:
    """Return how many photographs a run fetched, and their bytes."""
    # By partition, since one can be recorded in the course of a run and again at its end.
    told = {
        (event.asset_key, event.partition): event.step_materialization_data.materialization.metadata
        if event.is_step_materialization
        else event.asset_observation_data.asset_observation.metadata
        for event in result.all_events
        if event.is_step_materialization or event.is_asset_observation
    }

    def total(name: str) -> int:
        return sum(int(str(metadata[name].value)) for metadata in told.values() if name in metadata)

    return total("fetched images"), total("fetched bytes")


def _run_failure(result: ExecuteInProcessResult) -> JobFailureData:
    [failure] = result.filter_events(lambda event: event.event_type == DagsterEventType.RUN_FAILURE)
    return failure.job_failure_data


def _step_errors(result: ExecuteInProcessResult) -> Iterator[tuple[str, SerializableErrorInfo]]:
    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.error:
            yield event.step_key or "", event.step_failure_data.error


def check_results(result: ExecuteInProcessResult) -> dict[AssetCheckKey, AssetCheckEvaluation]:
    """Return what the asset checks of a run found."""
    return {check.asset_check_key: check for check in result.get_asset_check_evaluations()}


def check_message(check: AssetCheckEvaluation) -> str:
    """Tell which check it is, and what it found."""
    return f"{check.asset_key.to_user_string()}, check {check.check_name}: {check.description}"
