"""What the assets have in common."""

from types import SimpleNamespace
from typing import Any

from dagster import DagsterInstance, DagsterRun, Definitions, asset, define_asset_job

from vsvi_assets.orchestration.common import began


@asset
def something() -> None:
    pass


JOB = Definitions([something], jobs=[define_asset_job("job")]).resolve_job_def("job")


def test_a_run_that_repeats_a_lost_one_began_when_that_one_did() -> None:
    with DagsterInstance.ephemeral() as instance:

        def run(parent: DagsterRun | None = None, **tags: str) -> DagsterRun:
            parent_id = parent.run_id if parent else None
            return instance.create_run_for_job(
                JOB, tags=tags, parent_run_id=parent_id, root_run_id=parent_id
            )

        def began_of(run: DagsterRun) -> object:
            context: Any = SimpleNamespace(run=run, instance=instance)
            return began(context)

        lost = run()
        retry = run(lost, **{"dagster/retry_number": "1"})
        second_retry = run(retry, **{"dagster/retry_number": "2"})
        by_hand = run(second_retry)
        assert began_of(second_retry) == began_of(retry) == began_of(lost)
        assert began_of(by_hand) > began_of(lost)  # type: ignore[operator]
