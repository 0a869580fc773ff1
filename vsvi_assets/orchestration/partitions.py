"""Partial success: of a run over many partitions, what was stored stays recorded."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Any, Generic, NamedTuple, TypeVar

from dagster import AssetExecutionContext, AssetMaterialization, AssetObservation
from dagster._core.execution.context.metadata_logging import (
    AssetMetadataHandle,
    OutputMetadataAccumulator,
)

Value = TypeVar("Value")

SECONDS_BEFORE_RECORDING = 30.0
SECONDS_BETWEEN_RECORDS = 1.0


class Partition(NamedTuple, Generic[Value]):
    """A partition on its way to the IO manager.

    A value of None says that what is on disk stands as it is. An incomplete partition is
    stored but does not count as materialized: its metadata goes into an observation.
    """

    key: str
    value: Value | None
    metadata: Mapping[str, Any]
    is_complete: bool = True


def hand_over(
    context: AssetExecutionContext, partitions: Generator[Partition[Value], None, None]
) -> Iterator[tuple[str, Value | None]]:
    """Yield partitions to the IO manager, which stores each before it takes the next.

    Where all goes well, Dagster itself records a materialization of every partition at the end
    of the run, with the metadata given here. Where the run breaks off, at whatever point, it
    would record none: those stored until then are recorded here, so that a retry takes the
    rest.

    In a run that lasts, partitions are recorded as they come too, so that the UI shows them
    as materialized. Since a record takes tens of milliseconds and is repeated at the end, one
    is made a second at the most: many partitions a second are soon over.
    """
    stored: dict[str, Mapping[str, Any]] = {}
    unrecorded: deque[str] = deque()
    next_record = time.monotonic() + SECONDS_BEFORE_RECORDING

    def record(key: str) -> None:
        context.log_event(
            AssetMaterialization(context.asset_key, partition=key, metadata=stored[key])
        )

    try:
        with closing(partitions):
            for key, value, metadata, is_complete in partitions:
                yield key, value
                if is_complete:
                    stored[key] = metadata
                    unrecorded.append(key)
                else:
                    context.log_event(
                        AssetObservation(context.asset_key, partition=key, metadata=metadata)
                    )
                if unrecorded and time.monotonic() >= next_record:
                    record(unrecorded.popleft())
                    next_record = time.monotonic() + SECONDS_BETWEEN_RECORDS
    except BaseException:
        for key in unrecorded:
            record(key)
        raise
    _add_metadata(context, stored)


def _add_metadata(context: AssetExecutionContext, stored: Mapping[str, Mapping[str, Any]]) -> None:
    """Do what `context.add_asset_metadata` does for each partition, for all at once.

    That one reads all keys of the asset for every partition: where there are 20,000 of them,
    it takes longer than the partition itself.
    """
    step = context.get_step_execution_context()
    metadata = dict(step._metadata_accumulator.per_output_metadata)
    for key, value in stored.items():
        metadata[AssetMetadataHandle(asset_key=context.asset_key, partition_key=key)] = value
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata=metadata)
