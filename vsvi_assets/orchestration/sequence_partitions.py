"""A city's sequences as partitions: those that are selected, each with a status that is true.

A partition is a sequence, and in cities with `sequence_buckets` a bucket of them: Dagster keeps at
most `MAX_SEQUENCES` keys of dynamic partitions.

A sequence is to show as materialized if and only if every image selected for it is on disk,
or known to be unavailable. The runs of `image_files` keep to that by themselves; a new
selection, or a file deleted by hand, changes it without a run. Dagster's Postgres storage
cannot wipe single partitions, and a partition that is deleted and added again brings its old
status back. So what was materialized and is no longer complete is shown as failed, by a run
that fails with the reason; what became complete is recorded as materialized.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetPartitionStatus,
    DagsterInstance,
    DagsterRunStatus,
    DynamicPartitionsDefinition,
    PartitionKeyRange,
    RunsFilter,
    StaticPartitionsDefinition,
)

from vsvi_assets.city import City
from vsvi_assets.city.buckets import bucket_keys, bucket_of
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.tables import sequences_of_buckets
from vsvi_assets.orchestration.common import CITY_TAG, asset_key
from vsvi_assets.orchestration.dagster_internals import (
    is_in_a_backfill,
    record_together,
    show_as_failed,
)
from vsvi_assets.orchestration.launcher import UNFINISHED
from vsvi_assets.settings import Settings

MAX_SEQUENCES = 100_000
"""Dagster recommends at most so many partition keys per asset
(docs.dagster.io/guides/build/partitions-and-backfills/partitioning-assets)."""

RUNS_OF_ALL_BUCKETS = 128
"""At most so many: Dagster queues about one run of a backfill per second (dagster#28998)."""


def sequence_partitions_name(city: City) -> str:
    """Return the name of the city's dynamic partitions, one per sequence with a selected image."""
    return f"{city.name}_sequences"


class TooManySequencesError(Exception):
    """More sequences are selected than can be partitions of their own."""

    def __init__(self, city: City, sequences: int) -> None:
        super().__init__(
            f"{city.name}: images of {sequences:,} sequences are selected, and Dagster keeps at "
            f'most {MAX_SEQUENCES:,} as partitions of their own. Add "sequence_buckets": 1024 to '
            "the city file, by which a partition holds many sequences, or cut the city into "
            f"several: vsvi split {city.name}"
        )


def sequence_partitions(
    city: City,
) -> DynamicPartitionsDefinition | StaticPartitionsDefinition:
    """Return the partitions of the city's `image_files`."""
    if city.sequence_buckets:
        return StaticPartitionsDefinition(bucket_keys(city.sequence_buckets))
    return DynamicPartitionsDefinition(name=sequence_partitions_name(city))


def partition_of(city: City, sequence_id: str) -> str:
    """Return the key of the partition that holds a sequence."""
    return bucket_of(sequence_id, city.sequence_buckets) if city.sequence_buckets else sequence_id


def partition_keys(instance: DagsterInstance, city: City) -> list[str]:
    """Return the keys of the city's partitions of photographs, in their order."""
    partitions = sequence_partitions(city)
    return list(partitions.get_partition_keys(dynamic_partitions_store=instance))


def partitions_per_run(city: City, settings: Settings) -> int:
    """Return how many partitions of photographs a run takes at most."""
    if city.sequence_buckets:
        return math.ceil(city.sequence_buckets / RUNS_OF_ALL_BUCKETS)
    return settings.sequences_per_run


def sequences_of(postgis: Postgis, city: City, keys: Sequence[str]) -> Sequence[str]:
    """Return the sequences that partitions hold.

    Raises
    ------
    SelectionOutdatedError
        As `sequences_of_buckets` does.
    """
    return sequences_of_buckets(postgis, city, keys) if city.sequence_buckets else keys


def sequence_statuses(
    instance: DagsterInstance, city: City
) -> Mapping[str, AssetPartitionStatus | None]:
    """Return the status of each partition, as the UI shows it; None where it has none."""
    keys = partition_keys(instance, city)
    files, partitions = asset_key(city, "image_files"), sequence_partitions(city)
    return instance.get_status_by_partition(files, keys, partitions) or {}


def update_sequences(
    context: AssetExecutionContext,
    city: City,
    selected: Sequence[str],
    incomplete: Collection[str],
) -> None:
    """Make the city's partitions, and their statuses, those of a new selection.

    A bucket without a selected image is complete.

    Parameters
    ----------
    context
        Of the run in which the selection was made.
    selected
        All sequences of which an image is selected.
    incomplete
        Those of them that lack images on disk.
    """
    instance = context.instance
    if city.sequence_buckets:
        selected = partition_keys(instance, city)
        incomplete = {partition_of(city, sequence) for sequence in incomplete}
    else:
        _register(instance, city, selected, incomplete)
    statuses = sequence_statuses(instance, city)
    outdated = {
        sequence
        for sequence in incomplete
        if statuses.get(sequence) == AssetPartitionStatus.MATERIALIZED
    }
    # A run fails for a range, so others that lack images may be in it.
    for adjacent in _adjacent(list(statuses), incomplete):
        lacking = [sequence for sequence in adjacent if sequence in outdated]
        if lacking:
            show_as_failed(
                instance,
                asset_key(city, "image_files"),
                sequence_partitions(city),
                PartitionKeyRange(lacking[0], lacking[-1]),
                f"{city.name}: images that are selected by now are not on disk, in partitions "
                f"{lacking[0]} to {lacking[-1]}. The city's next refresh downloads them, as does "
                "running these partitions.",
                tags={CITY_TAG: city.name},
            )
    if outdated:
        # Dagster remembers a failure that was looked at. One that nobody saw would be forgotten
        # when a later run is canceled, and the sequence would show as materialized again.
        sequence_statuses(instance, city)
    completed = [
        AssetMaterialization(asset_key(city, "image_files"), partition=sequence)
        for sequence in set(selected).difference(incomplete)
        if statuses.get(sequence) in (None, AssetPartitionStatus.FAILED)
    ]
    record_together(context, completed)


def _register(
    instance: DagsterInstance, city: City, selected: Sequence[str], incomplete: Collection[str]
) -> None:
    name, files = sequence_partitions_name(city), asset_key(city, "image_files")
    registered = list(instance.get_dynamic_partitions(name))
    materialized = instance.get_materialized_partitions(files)

    def absent() -> list[str]:
        """Return what is to be registered: what is complete, what was so, what is new."""
        return sorted(
            set(selected).difference(registered),
            key=lambda sequence: (sequence in incomplete, sequence not in materialized, sequence),
        )

    # Without its key a run dies, so those no longer selected stay until nothing runs.
    if not _is_materializing(instance, files):
        staying = set(selected)
        before, registered = registered, [key for key in registered if key in staying]
        # A run of a backfill covers keys that follow each other. Where incomplete ones are
        # scattered, a run for each would take longer than to put them together at the end.
        if len(list(_adjacent([*registered, *absent()], incomplete))) > 1:
            registered = [key for key in registered if key not in incomplete]
        for key in set(before).difference(registered):
            instance.delete_dynamic_partition(name, key)
    instance.add_dynamic_partitions(name, absent())


def _is_materializing(instance: DagsterInstance, key: AssetKey) -> bool:
    runs = instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.QUEUED, *UNFINISHED]))
    in_a_run = any(key in (run.asset_selection or ()) for run in runs)
    return in_a_run or is_in_a_backfill(instance, key)


def _adjacent(keys: Sequence[str], wanted: Collection[str]) -> Iterator[list[str]]:
    for is_wanted, group in groupby(keys, key=wanted.__contains__):
        if is_wanted:
            yield list(group)
