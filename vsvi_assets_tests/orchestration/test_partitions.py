"""What stays recorded of a run over many partitions that breaks off."""

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetExecutionContext,
    AssetKey,
    DagsterInstance,
    InputContext,
    IOManager,
    Output,
    OutputContext,
    StaticPartitionsDefinition,
    asset,
    materialize,
)

from vsvi_assets.orchestration.partitions import Partition, hand_over


class Stored(IOManager):
    def handle_output(self, context: OutputContext, obj: Any) -> None:
        for _ in obj:
            pass

    def load_input(self, context: InputContext) -> None:
        pytest.fail("nothing is loaded in this test")


@pytest.mark.parametrize(
    ("error", "stored"),
    [(KeyboardInterrupt, 20_000), (KeyboardInterrupt, 10), (ConnectionError, 300)],
)
def test_a_run_that_breaks_off_ends_within_seconds_with_what_was_stored_recorded(
    tmp_path: Path,
    postgis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    stored: int,
) -> None:
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "200")  # as `vsvi up` sets it
    (tmp_path / "dagster.yaml").write_text(
        f"storage: {{postgres: {{postgres_url: '{postgis_url}?plugin=vsvi'}}}}\n"
    )
    keys = [f"key-{number}" for number in range(stored)]
    broke_off = 0.0

    def partitions() -> Generator[Partition[str], None, None]:
        nonlocal broke_off
        for key in keys:
            yield Partition(key, None, {"name": key})
        broke_off = time.monotonic()
        if error is KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
        raise error

    # One partition is planned, since it takes Dagster a minute to plan all of them.
    @asset(partitions_def=StaticPartitionsDefinition(["key-0"]))
    def tiles(context: AssetExecutionContext) -> Output:
        return Output(hand_over(context, partitions()))

    with DagsterInstance.from_config(str(tmp_path)) as instance:
        result = materialize(
            [tiles],
            partition_key="key-0",
            instance=instance,
            resources={"io_manager": Stored()},
            raise_on_error=False,
        )
        assert time.monotonic() - broke_off < 10
        assert not result.success
        recorded = instance.get_materialized_partitions(AssetKey("tiles"))
        assert recorded == set(keys[: len(recorded)])
        assert len(recorded) >= min(stored, 200)
