"""What dagster_internals promises, so that a change of Dagster shows here."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetPartitionStatus,
    DagsterInstance,
    Definitions,
    DynamicPartitionsDefinition,
    EventLogEntry,
    MaterializeResult,
    PartitionKeyRange,
    RetryRequested,
    RunsFilter,
    asset,
    define_asset_job,
    materialize,
)

from vsvi_assets.database.errors import ServerUnreachableError
from vsvi_assets.database.server import LocalPostgis
from vsvi_assets.orchestration.dagster_internals import (
    OUTDATED,
    add_partition_metadata,
    instance_for_a_terminal,
    instance_of,
    interruptible_waits,
    record_together,
    show_as_failed,
    was_interrupted,
)

KEYS = [f"key-{number}" for number in range(9)]
PARTITIONS = DynamicPartitionsDefinition(name="keys")
RANGE = {
    "dagster/asset_partition_range_start": KEYS[0],
    "dagster/asset_partition_range_end": KEYS[-1],
}


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("keys", KEYS)
        yield instance


@contextmanager
def interrupted_when(it_is_time: Callable[[], object]) -> Iterator[None]:
    """Press Ctrl-C once it is time; the block has five seconds to end after that."""
    moments: list[float] = []

    def press() -> None:
        while not it_is_time():
            time.sleep(0.02)
        moments.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    yield
    thread.join()
    assert time.monotonic() - moments[0] < 5


def test_ctrl_c_ends_the_wait_for_a_retry(instance: DagsterInstance) -> None:
    waiting = []

    @asset
    def failing() -> None:
        waiting.append(True)
        raise RetryRequested(seconds_to_wait=60)

    with interruptible_waits(), interrupted_when(lambda: waiting):
        result = materialize([failing], instance=instance, raise_on_error=False)
    assert was_interrupted(result)
    assert waiting == [True]


def test_a_run_that_fails_or_succeeds_was_not_interrupted(instance: DagsterInstance) -> None:
    @asset
    def failing() -> None:
        raise KeyError

    @asset
    def succeeding() -> None: ...

    for definition in (failing, succeeding):
        result = materialize([definition], instance=instance, raise_on_error=False)
        assert not was_interrupted(result)


def test_ctrl_c_ends_the_wait_for_a_place_in_a_pool(tmp_path: Path, postgis_url: str) -> None:
    @asset(pool="full")
    def blocked() -> None:
        pytest.fail("there was no place")

    (tmp_path / "dagster.yaml").write_text(
        f"storage: {{postgres: {{postgres_url: '{postgis_url}'}}}}\n"
        "concurrency: {pools: {granularity: op}}\n"
    )
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.event_log_storage.set_concurrency_slots("full", 1)
        instance.event_log_storage.claim_concurrency_slot("full", "another-run", "step")

        def is_waiting() -> bool:
            return instance.event_log_storage.get_concurrency_info("full").pending_step_count == 1

        with interruptible_waits(), interrupted_when(is_waiting):
            result = materialize([blocked], instance=instance, raise_on_error=False)
        assert not result.success


def test_each_partition_is_recorded_with_its_own_metadata(instance: DagsterInstance) -> None:
    @asset(partitions_def=PARTITIONS)
    def several(context: AssetExecutionContext) -> None:
        context.add_output_metadata({"folder": "of all"})
        add_partition_metadata(context, {key: {"name": key} for key in context.partition_keys})

    job = define_asset_job("job", selection="several")
    definitions = Definitions([several], jobs=[job])
    result = definitions.resolve_job_def("job").execute_in_process(instance=instance, tags=RANGE)
    recorded = {
        event.partition: {name: value.value for name, value in event.metadata.items()}
        for event in result.asset_materializations_for_node("several")
    }
    assert recorded == {key: {"name": key, "folder": "of all"} for key in KEYS}


def test_what_is_recorded_together_is_stored_in_few_writes(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "5")
    written = []
    store = instance.event_log_storage.store_event_batch

    def counted(events: Sequence[EventLogEntry]) -> None:
        written.append(len(events))
        store(events)

    monkeypatch.setattr(instance.event_log_storage, "store_event_batch", counted)

    @asset
    def recording(context: AssetExecutionContext) -> MaterializeResult:
        others = [AssetMaterialization("several", partition=key) for key in KEYS]
        record_together(context, others)
        record_together(context, [])
        return MaterializeResult()

    materialize([recording], instance=instance)
    assert written == [5, 4]
    assert instance.get_materialized_partitions(AssetKey("several")) == set(KEYS)


def test_a_command_in_a_terminal_starts_no_process_that_copies_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def refuse(_: object, command: object, *arguments: object, **keywords: object) -> None:
        started.append(command)  # Dagster would only log that this raises
        raise OSError("refused")

    @asset
    def printing() -> None:
        print("printed")

    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with instance_for_a_terminal(tmp_path) as instance:
        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
        assert materialize([printing], instance=instance).success
        assert started == []
        assert Path(instance.root_directory) == tmp_path


def test_a_command_whose_records_are_lost_meanwhile_says_so_in_a_sentence(
    tmp_path: Path, postgis: LocalPostgis, postgis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy("dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgis_url)
    monkeypatch.setenv("VSVI_DAGSTER_DIR", str(tmp_path / "dagster"))
    name = postgis_url.rpartition("/")[2]
    url_of_another_database = postgis.dagster_url.replace("+psycopg2", "")

    def command() -> None:
        with instance_for_a_terminal(tmp_path) as instance:
            assert instance.get_runs_count() == 0
            with closing(psycopg2.connect(url_of_another_database)) as connection:
                connection.autocommit = True
                connection.cursor().execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            instance.get_runs_count()

    with pytest.raises(ServerUnreachableError, match=r"is not reachable: .* run it again"):
        command()


def test_partitions_that_are_outdated_show_as_failed_and_go_on_doing_so(
    instance: DagsterInstance,
) -> None:
    @asset(partitions_def=PARTITIONS)
    def several() -> None:
        pass

    job = define_asset_job("job", selection="several")
    resolved = Definitions([several], jobs=[job]).resolve_job_def("job")
    resolved.execute_in_process(instance=instance, tags=RANGE)

    def failed() -> set[str]:
        found = instance.get_status_by_partition(several.key, KEYS, PARTITIONS) or {}
        return {key for key, status in found.items() if status == AssetPartitionStatus.FAILED}

    assert failed() == set()
    outdated = PartitionKeyRange(KEYS[2], KEYS[4])
    show_as_failed(instance, several.key, PARTITIONS, outdated, "It lacks images.", {"city": "x"})
    assert failed() == set(KEYS[2:5])
    [run] = instance.get_runs(RunsFilter(job_name=OUTDATED))
    assert run.tags["city"] == "x"
    assert any("It lacks images." in str(entry) for entry in instance.all_logs(run.run_id))
    resolved.execute_in_process(instance=instance, tags=RANGE)
    assert failed() == set()


def test_a_launcher_knows_its_instance(instance: DagsterInstance) -> None:
    assert instance_of(instance.run_launcher) is instance
