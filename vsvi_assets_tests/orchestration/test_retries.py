"""What follows from an error in a step, in a real instance, by either of the two executors."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from dagster import (
    DagsterEvent,
    DagsterInstance,
    Definitions,
    Failure,
    InputContext,
    IOManager,
    JobDefinition,
    Output,
    OutputContext,
    RetryRequested,
    asset,
    define_asset_job,
    execute_job,
    reconstructable,
)

from vsvi_assets.mapillary.errors import RefusedTokenError, TransientError
from vsvi_assets.orchestration.common import MAPILLARY_POOL
from vsvi_assets.orchestration.dagster_internals import interruptible_executor, was_interrupted
from vsvi_assets.orchestration.retries import RetriedIOManager, reason, retry_boundary


class Trouble:
    """What the next attempts meet, and where."""

    def __init__(self) -> None:
        self.body: list[BaseException] = []
        self.storing: list[BaseException] = []
        self.loading: list[BaseException] = []
        self.attempts = 0


trouble = Trouble()


class Memory(IOManager):
    def handle_output(self, context: OutputContext, obj: Iterator[int]) -> None:
        list(obj)

    def load_input(self, context: InputContext) -> int:
        _meet(trouble.loading)
        return 1


def _meet(errors: list[BaseException]) -> None:
    if errors:
        raise errors.pop(0)


@asset(io_manager_key="memory")
def source() -> Any:
    return [1]


@asset(pool=MAPILLARY_POOL, io_manager_key="memory")
@retry_boundary()
def fetched(source: int) -> Output:
    trouble.attempts += 1
    time.sleep(0.3)  # for the watch to see it
    _meet(trouble.body)

    def values() -> Iterator[int]:
        yield source
        _meet(trouble.storing)

    return Output(values())


def the_job() -> JobDefinition:
    job = define_asset_job("the_job", selection="fetched")
    memory = RetriedIOManager(Memory())
    definitions = Definitions(
        [source, fetched], jobs=[job], resources={"memory": memory}, executor=interruptible_executor
    )
    return definitions.resolve_job_def("the_job")


def execute_in_process(instance: DagsterInstance) -> list[DagsterEvent]:
    return list(the_job().execute_in_process(instance=instance, raise_on_error=False).all_events)


def execute_as_dagster_dev_does(instance: DagsterInstance) -> list[DagsterEvent]:
    with execute_job(reconstructable(the_job), instance) as result:
        return list(result.all_events)


@pytest.fixture(autouse=True)
def _no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSVI_RETRY_DELAY", "1")
    trouble.__init__()  # type: ignore[misc]


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def failures(events: list[DagsterEvent]) -> list[str]:
    return [reason(event) for event in events if event.is_step_failure]


def delays(events: list[DagsterEvent]) -> list[float | None]:
    retries = (event for event in events if event.is_step_up_for_retry)
    return [event.step_retry_data.seconds_to_wait for event in retries]


WHERE = pytest.mark.parametrize("where", ["body", "storing", "loading"])


@WHERE
def test_what_may_pass_is_tried_again(instance: DagsterInstance, where: str) -> None:
    setattr(trouble, where, [TransientError("away"), psycopg2.OperationalError("away")])
    events = execute_in_process(instance)
    assert failures(events) == []
    assert delays(events) == [1, 3]
    [run] = instance.get_runs()
    warnings = [entry.user_message for entry in instance.all_logs(run.run_id) if entry.level == 30]
    assert warnings == [
        "away\nRetry 1 of 3 in 1 seconds.",
        "OperationalError: away\nRetry 2 of 3 in 3 seconds.",
    ]


@WHERE
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RefusedTokenError("refused\n"), "refused"),
        (TypeError("no number"), "TypeError: no number"),
        (psycopg2.errors.DiskFull("full"), "DiskFull: full"),
        (Failure("of its own"), "of its own"),
    ],
)
def test_what_lasts_ends_the_run_at_once(
    instance: DagsterInstance, where: str, error: Exception, message: str
) -> None:
    setattr(trouble, where, [error])
    events = execute_in_process(instance)
    assert failures(events) == [message]
    assert delays(events) == []


def test_after_three_retries_the_error_itself_is_the_reason(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsvi_assets.orchestration.retries._delay", lambda retry: 0.01 * retry)
    trouble.body = [TransientError(f"away {number}") for number in range(9)]
    events = execute_in_process(instance)
    assert trouble.attempts == 4
    assert failures(events) == ["away 3"]


@WHERE
def test_an_interrupt_is_never_followed_by_a_retry(instance: DagsterInstance, where: str) -> None:
    setattr(trouble, where, [KeyboardInterrupt(), TransientError("away")])
    result = the_job().execute_in_process(instance=instance, raise_on_error=False)
    assert was_interrupted(result)
    assert delays(list(result.all_events)) == []
    assert len(getattr(trouble, where)) == 1


@pytest.mark.parametrize("execute", [execute_in_process, execute_as_dagster_dev_does])
def test_a_step_that_waits_for_its_retry_holds_no_place_in_its_pool(
    execute: Callable[[DagsterInstance], list[DagsterEvent]], tmp_path: Path, postgis_url: str
) -> None:
    (tmp_path / "dagster.yaml").write_text(
        f"storage: {{postgres: {{postgres_url: '{postgis_url}'}}}}\n"
        "concurrency: {pools: {granularity: op, default_limit: 1}}\n"
    )
    trouble.storing = [TransientError("away")]
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        with watched_pool(instance) as taken:
            events = execute(instance)
        assert failures(events) == []
        assert taken == [0, 1, 0, 1, 0]

        trouble.storing = [RefusedTokenError("refused")]
        with watched_pool(instance) as taken:
            events = execute(instance)
        assert failures(events) == ["refused"]
        assert taken == [0, 1, 0]


@contextmanager
def watched_pool(instance: DagsterInstance) -> Iterator[list[int]]:
    """Give the numbers of places taken in the pool, one for each change."""
    seen: list[int] = [0]
    ended = threading.Event()

    def look() -> None:
        taken = instance.event_log_storage.get_concurrency_info(MAPILLARY_POOL).active_slot_count
        if taken != seen[-1]:
            seen.append(taken)

    def watch() -> None:
        while not ended.wait(0.02):
            look()
        look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def test_dagsters_own_words_pass_the_boundary() -> None:
    for error in (RetryRequested(max_retries=1), Failure("of its own")):
        with pytest.raises(type(error)) as raised, retry_boundary():
            raise error
        assert raised.value is error
