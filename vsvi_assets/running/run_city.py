"""Runs a city from its bounding box to its photographs, in this process.

The runs are recorded in the Dagster instance that the UI shows. The command line, the tests
and the benchmarks all run a city by `run_city`.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    ExecuteInProcessResult,
    InitLoggerContext,
    RunConfig,
    logger,
)

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import LockHeldError, PostgisError
from vsvi_assets.database.locks import advisory_lock
from vsvi_assets.database.photographs import sequences_in_state, stored_since, take_inventory
from vsvi_assets.database.queries import row_count
from vsvi_assets.database.schema import SELECTED_IMAGES
from vsvi_assets.database.server import project_database
from vsvi_assets.database.tile_requests import paced_client
from vsvi_assets.orchestration.build import build_cities_defs
from vsvi_assets.orchestration.common import CITY_TAG, Fetch, asset_key, closing_assets
from vsvi_assets.orchestration.dagster_internals import interruptible_waits, was_interrupted
from vsvi_assets.orchestration.launcher import LOCK_TAG, end_lost_runs, runs_under_way
from vsvi_assets.orchestration.retries import is_partial, reason
from vsvi_assets.orchestration.sequence_partitions import (
    partition_keys,
    partition_of,
    partitions_per_run,
)
from vsvi_assets.photographs.inventory import Inventory
from vsvi_assets.photographs.states import State
from vsvi_assets.progress import Progress
from vsvi_assets.settings import Settings
from vsvi_assets.views.plan import DownloadPlan, make_plan

METADATA_ASSETS = (
    "street_points",
    "tile_metadata",
    "postgis_tables",
    "selected_image_ids",
    "download_plan",
)


class CityBusyError(PostgisError):
    """Another process, or a run of Dagster's, runs the city."""


@dataclass
class CityRun:
    """What became of a city in `run_city`.

    Attributes
    ----------
    images, bytes
        Photographs that were stored, in all attempts together, and their bytes.
    selected, missing
        Number of selected images, and how many of them have no file in the end; None where
        photographs were not the run's business, or nothing is selected.
    failures
        Why steps failed: a message each, for people, without a traceback.
    checks
        What the asset checks found.
    plan
        What the photographs will take, where only the plan was asked for.
    image_runs
        How many Dagster runs downloaded photographs.
    """

    images: int = 0
    bytes: int = 0
    selected: int | None = None
    missing: int | None = None
    failures: list[str] = field(default_factory=list)
    checks: dict[AssetCheckKey, AssetCheckEvaluation] = field(default_factory=dict)
    plan: DownloadPlan | None = None
    image_runs: int = 0

    @property
    def success(self) -> bool:
        """Whether everything that was asked for is there."""
        return not self.failures

    def lines(self) -> list[str]:
        """Say in a few lines what was downloaded and what the checks found."""
        lines = []
        if self.images:
            lines.append(f"  downloaded     {self.images:,} images, {self.bytes:,} bytes, just now")
        elif self.selected == 0:
            lines.append("  downloaded     none: no image is selected")
        elif self.selected and self.missing:
            lines.append(f"  downloaded     none; {self.missing:,} selected images have no file")
        elif self.selected:
            lines.append("  downloaded     none: every selected image was there already")
        wrong = [check for check in self.checks.values() if not check.passed]
        passed = len(self.checks) - len(wrong)
        lines.append(f"  checks         {passed:,} of {len(self.checks):,} passed")
        lines += [
            f"    {_check_message(check)}"
            for check in wrong
            if check.severity == AssetCheckSeverity.WARN
        ]
        return lines


def run_city(
    city: City,
    settings: Settings,
    instance: DagsterInstance,
    *,
    progress: Progress,
    tiles_only: bool = False,
    plan_only: bool = False,
    overwrite: bool = False,
    recheck_unavailable: bool = False,
    resource_overrides: Mapping[str, object] | None = None,
) -> CityRun:
    """Materialize all assets of a city in order; what is on disk and whole is not fetched again.

    Where the street points or the tiles cannot be fetched, the photographs of the selection that
    is there are downloaded nevertheless.

    Parameters
    ----------
    instance
        Where the runs are recorded.
    progress
        Learns which steps begin and end, and how far they are.
    tiles_only
        Fetch the tiles' metadata and nothing else.
    plan_only
        Stop before the photographs, and return what they will take.
    overwrite
        Fetch again what is on disk; a file is replaced only by a whole new one.
    recheck_unavailable
        Ask again for the images that are believed to be gone, and for refused ones.
    resource_overrides
        Resources to use in place of the project's own, by their keys.

    Raises
    ------
    TokenMissingError, SandboxMissingError
        Before anything is recorded or written.
    CityBusyError
        When another process, or a run that Dagster launched, runs the city.
    KeyboardInterrupt
        When Ctrl-C interrupted it; the run is then recorded as canceled.
    """
    settings.services_of(city.services).token()
    postgis = project_database(settings)
    with only_process(city, postgis):
        end_lost_runs(instance, city_lock(city))
        if others := runs_under_way(instance, city.name):
            raise CityBusyError(
                f"{city.name} is being run by Dagster's run {others[0]}. Wait until it has ended, "
                "or terminate it in the UI (Runs)."
            )
        began = datetime.now(UTC)
        runs = _Runs(city, settings, instance, progress, resource_overrides)
        runs.materialize_metadata(tiles_only=tiles_only, overwrite=overwrite)
        run = runs.run
        if plan_only and any(check.asset_key.path[-1] == "download_plan" for check in run.checks):
            with paced_client(city, settings) as client:
                run.plan = make_plan(city, postgis, client)
        selected = row_count(postgis, city, SELECTED_IMAGES)
        if not (tiles_only or plan_only) and selected is not None:
            inventory = take_inventory(city, postgis)
            if runs.failed <= {"street_points", "tile_metadata"}:
                rechecked = (
                    sequences_in_state(postgis, city, State.UNAVAILABLE, State.REFUSED)
                    if recheck_unavailable
                    else set()
                )
                runs.materialize_images(inventory, overwrite=overwrite, rechecked=rechecked)
                if city.quality:
                    runs.replace_rejected(postgis)
                runs.execute(closing_assets(city))
            if run.image_runs:
                inventory = take_inventory(city, postgis)
            run.selected, run.missing = inventory.selected, inventory.without_file
            run.images, run.bytes = stored_since(postgis, city, began)
        run.failures += [
            _check_message(check)
            for check in run.checks.values()
            if not (check.passed or check.blocking) and check.severity == AssetCheckSeverity.ERROR
        ]
        return run


def city_lock(city: City) -> str:
    """Return the name of the lock that a process holds while it runs the city."""
    return f"city {city.name}"


@contextmanager
def only_process(city: City, postgis: Postgis) -> Iterator[None]:
    """Make sure that no other process, on whatever machine, runs the city by `run_city`.

    Raises
    ------
    CityBusyError
        When one does.
    """
    try:
        with advisory_lock(postgis, city_lock(city), wait=False):
            yield
    except LockHeldError as error:
        since = f", since {error.since:%Y-%m-%d %H:%M} UTC" if error.since else ""
        raise CityBusyError(
            f"{city.name} is being run by {error.holder}{since}. Wait until it has ended, or stop "
            "it with Ctrl-C in its terminal."
        ) from error


class _Runs:
    """The Dagster runs of one `run_city`, one after the other."""

    def __init__(
        self,
        city: City,
        settings: Settings,
        instance: DagsterInstance,
        progress: Progress,
        resource_overrides: Mapping[str, object] | None,
    ) -> None:
        self.run = CityRun()
        self.failed: set[str] = set()
        """The names of the assets that failed, in whichever run."""
        self._city, self._settings, self._instance = city, settings, instance
        self._progress = progress
        names = (*METADATA_ASSETS, "image_files", *closing_assets(city))
        keys = [asset_key(city, name) for name in names]
        self._assets = {key.to_python_identifier(): key.to_user_string() for key in keys}
        resources = {"progress": progress, **(resource_overrides or {})}
        log = _ProgressLog(progress, self._assets)
        defs = build_cities_defs([city], settings, resources, {"progress": log.definition()})
        self._job = defs.resolve_implicit_global_asset_job_def()

    def materialize_metadata(self, *, tiles_only: bool, overwrite: bool) -> None:
        """Materialize all that comes before the photographs, with all tiles, in one run."""
        names = ["tile_metadata"] if tiles_only else list(METADATA_ASSETS)
        keys = self._city.tile_keys
        fetching = {"street_points", "tile_metadata"}.intersection(names)
        fetch = {name: Fetch(overwrite=overwrite) for name in fetching}
        self.execute(names, (keys[0], keys[-1]), fetch)

    def materialize_images(
        self, inventory: Inventory, *, overwrite: bool, rechecked: Collection[str]
    ) -> bool:
        """Materialize the partitions that lack images, or with `overwrite` all.

        Of those in `rechecked`, the images that are unavailable or refused are asked for again.

        A run covers a range of partitions. Where complete ones lie between others, they
        may be in it, which costs nothing.

        A run some of whose images cannot be fetched is followed by the others; one that
        failed for another reason, for which the others would fail too, is the last. Returns
        whether none failed so.
        """
        keys = partition_keys(self._instance, self._city)
        pending = set(keys)
        if not overwrite:
            files = asset_key(self._city, "image_files")
            pending -= self._instance.get_materialized_partitions(files)
            sequences = inventory.pending_sequences.union(rechecked)
            pending |= {partition_of(self._city, sequence) for sequence in sequences} & set(keys)
        expected = inventory.selected if overwrite else inventory.pending_images
        if rechecked and not overwrite:
            expected += len(inventory.unavailable) + len(inventory.refused)
        self._progress.expect(asset_key(self._city, "image_files").to_user_string(), expected)
        fetch = Fetch(overwrite=overwrite, recheck_unavailable=bool(rechecked))
        size = partitions_per_run(self._city, self._settings)
        for partitions in partition_ranges(keys, pending, size):
            result = self.execute(["image_files"], partitions, {"image_files": fetch})
            self.run.image_runs += 1
            failures = _step_failures(result)
            if not (result.success or (failures and all(map(is_partial, failures)))):
                return False
        return True

    def replace_rejected(self, postgis: Postgis) -> None:
        """Select and download other images in place of rejected ones, until none is selected.

        Every selection leaves out the rejected ones, and gives each point up after some tries.
        """
        while take_inventory(self._city, postgis).rejected:
            if not self.execute(["selected_image_ids"]).success:
                return
            inventory = take_inventory(self._city, postgis)
            if not self.materialize_images(inventory, overwrite=False, rechecked=()):
                return

    def execute(
        self,
        names: Sequence[str],
        partitions: tuple[str, str] | None = None,
        fetch: Mapping[str, Fetch] | None = None,
    ) -> ExecuteInProcessResult:
        """Materialize assets in one run, of those with partitions a range: its first and last."""
        tags = {CITY_TAG: self._city.name, LOCK_TAG: city_lock(self._city)}
        if partitions:
            tags["dagster/asset_partition_range_start"] = partitions[0]
            tags["dagster/asset_partition_range_end"] = partitions[1]
        ops: dict[str, Any] = {
            asset_key(self._city, name).to_python_identifier(): config
            for name, config in (fetch or {}).items()
        }
        with interruptible_waits():
            result = self._job.execute_in_process(
                asset_selection=[asset_key(self._city, name) for name in names],
                instance=self._instance,
                raise_on_error=False,
                run_config=RunConfig(ops=ops, loggers={"progress": {}}),
                tags=tags,
            )
        if was_interrupted(result):
            self._instance.report_run_canceled(result.dagster_run, "Interrupted by the user.")
            raise KeyboardInterrupt
        checks = {check.asset_check_key: check for check in result.get_asset_check_evaluations()}
        self.run.checks |= checks
        self.run.failures += self._failures(result, checks.values())
        if not result.success:
            names_by_step = {step: name.rpartition("/")[2] for step, name in self._assets.items()}
            self.failed |= {
                names_by_step.get(event.step_key or "", "another step")
                for event in _step_failures(result)
            } or {"the whole run"}
        return result

    def _failures(
        self, result: ExecuteInProcessResult, checks: Collection[AssetCheckEvaluation]
    ) -> list[str]:
        blocking = [
            _check_message(check)
            for check in checks
            if check.blocking and not check.passed and check.severity == AssetCheckSeverity.ERROR
        ]
        messages = [
            f"{self._assets.get(event.step_key or '', event.step_key)}: {reason(event)}"
            for event in _step_failures(result)
            # A blocking check ends the step by an error of Dagster's.
            if not blocking or event.step_failure_data.user_failure_data
        ]
        if result.success or messages or blocking:
            return messages + blocking
        [failure] = result.filter_events(
            lambda event: event.event_type == DagsterEventType.RUN_FAILURE
        )
        error = failure.job_failure_data.error
        return [f"{self._city.name}: {error.message if error else 'failed without a reason'}"]


class _ProgressLog(logging.Handler):
    """Passes the beginnings, ends and warnings of a run's steps on to the progress.

    Dagster hands every event of a run to the run's loggers. Nothing else of it is printed:
    the caller reports what went wrong, and everything is in the instance.
    """

    def __init__(self, progress: Progress, assets: Mapping[str, str]) -> None:
        super().__init__()
        self._progress, self._assets = progress, assets

    def definition(self) -> Any:
        @logger
        def progress_log(_: InitLoggerContext) -> logging.Logger:
            log = logging.Logger("vsvi progress", logging.DEBUG)
            log.addHandler(self)
            return log

        return progress_log

    def emit(self, record: logging.LogRecord) -> None:
        about: Mapping[str, Any] = record.dagster_meta  # type: ignore[attr-defined]
        event: DagsterEvent | None = about["dagster_event"]
        asset = self._assets.get(about["step_key"] or "")
        if event is None and record.levelno == logging.WARNING:
            self._progress.warned(about["orig_message"])
        elif event and asset and event.event_type == DagsterEventType.STEP_START:
            self._progress.started(asset)
        elif event and asset and event.event_type == DagsterEventType.STEP_SUCCESS:
            self._progress.finished(asset)


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


def _step_failures(result: ExecuteInProcessResult) -> Sequence[DagsterEvent]:
    return result.filter_events(lambda event: event.is_step_failure)


def _check_message(check: AssetCheckEvaluation) -> str:
    return f"{check.asset_key.to_user_string()}, check {check.check_name}: {check.description}"
