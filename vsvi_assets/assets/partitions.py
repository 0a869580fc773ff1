"""Partial success: of a run over many partitions, what was stored stays recorded."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Any, Generic, NamedTuple, TypeVar

from dagster import AssetExecutionContext, AssetMaterialization, AssetObservation

from vsvi_assets.city import City
from vsvi_assets.failures import explained

Value = TypeVar("Value")


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
    context: AssetExecutionContext,
    city: City,
    partitions: Generator[Partition[Value], None, None],
) -> Iterator[tuple[str, Value | None]]:
    """Yield partitions to the IO manager, which stores each before it takes the next.

    Where all goes well, Dagster itself records a materialization of every partition of the
    run, with the metadata given here. Where the run breaks off, at whatever point, it would
    record none: those stored until then are recorded here, so that a retry takes the rest.
    """
    stored: dict[str, Mapping[str, Any]] = {}
    try:
        with explained(city), closing(partitions):
            for key, value, metadata, is_complete in partitions:
                yield key, value
                if is_complete:
                    stored[key] = metadata
                else:
                    context.log_event(
                        AssetObservation(context.asset_key, partition=key, metadata=metadata)
                    )
    except BaseException:
        for key, metadata in stored.items():
            context.log_event(
                AssetMaterialization(context.asset_key, partition=key, metadata=metadata)
            )
        raise
    for key, metadata in stored.items():
        context.add_asset_metadata(metadata, partition_key=key)
