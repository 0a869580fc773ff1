"""Partial success: of a run over many partitions, what was stored stays recorded."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Any, Generic, NamedTuple, TypeVar

from dagster import AssetExecutionContext, AssetMaterialization, AssetObservation

from vsvi_assets.orchestration.dagster_internals import add_partition_metadata, record_together

Value = TypeVar("Value")

SECONDS_BEFORE_RECORDING = 30.0
SECONDS_BETWEEN_RECORDS = 1.0
SECONDS_TO_END = 5.0
"""How long what is stored is still being recorded once a run breaks off."""


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
    would record none: those stored until then are recorded here, as many as a few seconds
    allow. The next run finds the others stored.

    In a run that lasts, partitions are recorded as they come too, so that the UI shows them
    as materialized. A record takes tens of milliseconds and is repeated at the end, so there
    is at most one per second.
    """
    stored: dict[str, Mapping[str, Any]] = {}
    unrecorded: deque[str] = deque()
    next_record = time.monotonic() + SECONDS_BEFORE_RECORDING

    def materialization(key: str) -> AssetMaterialization:
        return AssetMaterialization(context.asset_key, partition=key, metadata=stored[key])

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
                    context.log_event(materialization(unrecorded.popleft()))
                    next_record = time.monotonic() + SECONDS_BETWEEN_RECORDS
    except BaseException:
        record_together(context, map(materialization, unrecorded), SECONDS_TO_END)
        raise
    add_partition_metadata(context, stored)
