"""A city whose photographs are partitioned by buckets of sequences."""

import pytest
from dagster import AssetPartitionStatus

from vsvi_assets.city import City
from vsvi_assets.city.buckets import bucket_keys, bucket_of
from vsvi_assets.orchestration import sequence_partitions
from vsvi_assets.orchestration.assets import selected_image_ids
from vsvi_assets.orchestration.common import asset_key
from vsvi_assets.orchestration.retries import reason
from vsvi_assets.orchestration.sequence_partitions import sequence_statuses
from vsvi_assets.running.run_city import partition_ranges
from vsvi_assets_tests.project import Project

BUCKETS = 7


def photographs(city: City) -> dict[str, bytes]:
    folder = city.sequences_folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def statuses(project: Project, city: City) -> dict[str, AssetPartitionStatus | None]:
    return dict(sequence_statuses(project.instance, city))


def test_buckets_bring_the_same_photographs_and_count_as_done(project: Project) -> None:
    plain, city = project.write_city("plain"), project.write_city(sequence_buckets=BUCKETS)

    assert project.run_city(plain).success
    assert project.run_city(city).success

    assert photographs(city) == photographs(plain) != {}
    assert statuses(project, city) == dict.fromkeys(
        bucket_keys(BUCKETS), AssetPartitionStatus.MATERIALIZED
    )
    assert project.instance.get_dynamic_partitions("town_sequences") == []
    again = project.run_city(city)
    assert (again.success, again.images, again.image_runs) == (True, 0, 0)


def test_a_bucket_that_lost_a_file_fails_until_it_is_there_again(project: Project) -> None:
    city = project.write_city(sequence_buckets=BUCKETS)
    project.run_city(city)
    before = photographs(city)
    lost = next(city.sequences_folder.rglob("*.jpg"))
    lost.unlink()
    bucket = bucket_of(lost.parent.name, BUCKETS)

    project.materialize_metadata(city)

    found = statuses(project, city)
    assert found.pop(bucket) == AssetPartitionStatus.FAILED
    assert set(found.values()) == {AssetPartitionStatus.MATERIALIZED}
    run = project.run_city(city)
    assert (run.images, run.image_runs) == (1, 1)
    assert photographs(city) == before
    assert set(statuses(project, city).values()) == {AssetPartitionStatus.MATERIALIZED}


@pytest.mark.parametrize("number", [3, 20])
def test_another_number_of_buckets_fetches_nothing_again(project: Project, number: int) -> None:
    project.run_city(project.write_city(sequence_buckets=BUCKETS))
    city = project.write_city(sequence_buckets=number)

    run = project.run_city(city)

    assert (run.success, run.images, run.image_runs) == (True, 0, 0)
    assert len(statuses(project, city)) == number
    assert set(statuses(project, city).values()) == {AssetPartitionStatus.MATERIALIZED}


def test_the_photographs_of_one_bucket_can_be_materialized(project: Project) -> None:
    city = project.write_city(sequence_buckets=BUCKETS)
    project.materialize_metadata(city)
    bucket = bucket_keys(BUCKETS)[2]

    project.materialize(city, "image_files", partitions=[bucket])

    assert {bucket_of(name.split("/")[0], BUCKETS) for name in photographs(city)} == {bucket}
    records = project.instance.fetch_materializations(asset_key(city, "image_files"), limit=100)
    images = {
        str(record.partition_key): record.asset_materialization.metadata["images"].value
        for record in records.records
        if record.asset_materialization and record.asset_materialization.metadata
    }
    assert images.pop(bucket) == len(photographs(city)) > 0
    assert set(images.values()) <= {0}


def test_a_selection_from_before_the_buckets_is_made_again(project: Project) -> None:
    project.materialize_metadata(project.write_city())
    city = project.write_city(sequence_buckets=BUCKETS)

    result = project.materialize(
        city, "image_files", partitions=bucket_keys(BUCKETS)[:1], raise_on_error=False
    )

    assert not result.success
    [failure] = result.filter_events(lambda event: event.is_step_failure)
    assert "materialize selected_image_ids again" in reason(failure)
    assert project.run_city(city).success


def test_more_sequences_than_dagster_keeps_need_buckets(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sequence_partitions, selected_image_ids):
        monkeypatch.setattr(module, "MAX_SEQUENCES", 3)
    city = project.write_city()

    run = project.run_city(city)

    assert not run.success
    assert 'Add "sequence_buckets": 1024 to the city file' in "\n".join(run.failures)
    assert project.sequences(city) == []
    assert project.run_city(project.write_city(sequence_buckets=BUCKETS)).success


@pytest.mark.parametrize("number", [1, 7, 128, 129, 1024, 10_000])
def test_a_backfill_of_all_buckets_is_few_runs(project: Project, number: int) -> None:
    city = project.write_city(sequence_buckets=number)
    size = sequence_partitions.partitions_per_run(city, project.settings)
    assert len(list(partition_ranges(bucket_keys(number), bucket_keys(number), size))) <= 128
