"""What the work costs, in counts that hold on any machine: requests, rows, connections, memory."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy
from dagster import AssetKey, DagsterInstance, EventLogEntry

from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.tables import images_table, wanted_images
from vsvi_assets.files import DiskGuard
from vsvi_assets.mapillary.tiles import IMAGE_SCHEMA
from vsvi_assets.photographs.downloads import SequenceJob, download_sequences
from vsvi_assets.sandbox import Sandbox
from vsvi_assets_tests.mapillary.parts import client_of, jobs_of, street_images, world_of
from vsvi_assets_tests.project import BOX, Project

IMAGES_PER_TILE = 5000


def test_an_image_takes_hardly_more_than_one_request_and_none_the_second_time(
    tmp_path: Path,
) -> None:
    images = street_images(600, per_sequence=7)
    with Sandbox(world_of(images)) as sandbox:
        for requests in (len(images) * 1.05, 0):
            before = sandbox.stats.requests.total()
            results = list(
                download_sequences(
                    client_of(sandbox),
                    jobs_of(images),
                    tmp_path,
                    size="original",
                    services="mapillary",
                    guard=DiskGuard(tmp_path, 0),
                )
            )
            assert sum(len(result.found.images) for result in results) == len(images)
            assert sandbox.stats.requests.total() - before <= requests


def test_a_download_takes_sequences_as_it_needs_them(tmp_path: Path) -> None:
    images = street_images(1000, per_sequence=1)
    taken = 0

    def jobs() -> Iterator[SequenceJob]:
        nonlocal taken
        for job in jobs_of(images):
            taken += 1
            yield job

    with Sandbox(world_of(images)) as sandbox:
        complete, most_open = 0, 0
        for _ in download_sequences(
            client_of(sandbox),
            jobs(),
            tmp_path,
            size="original",
            services="mapillary",
            guard=DiskGuard(tmp_path, 0),
            workers=4,
        ):
            complete += 1
            most_open = max(most_open, taken - complete)
    assert complete == len(images)
    assert most_open < 200


def test_many_runs_look_into_each_folder_as_often_as_one(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a run nor its checks cost more where the rest of the city is larger."""
    listed: list[Path] = []
    scandir = os.scandir

    def counted(folder: str | Path | int) -> object:
        if not isinstance(folder, int):
            listed.append(Path(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", counted)
    runs, listings = [], []
    for sequences_per_run in (1, 12):
        city = project.write_city(f"town-{sequences_per_run}")
        listed.clear()
        run = project.run_city(city, sequences_per_run=sequences_per_run)
        assert run.success
        runs.append(run.image_runs)
        listings.append(sum(folder.is_relative_to(city.sequences_folder) for folder in listed))
    assert runs[0] > runs[1] == 1
    assert listings[0] == listings[1] > 0


@pytest.mark.parametrize("tiles", [5, 20])
def test_tables_are_loaded_with_one_tile_in_memory(project: Project, tiles: int) -> None:
    city = project.write_city()
    held = []

    def images() -> Iterator[pa.Table]:
        for number in range(tiles):
            yield _tile(number)
            held.append(pa.total_allocated_bytes())

    of_one_tile = wanted_images(_tile(0), city).nbytes
    before = pa.total_allocated_bytes()
    counts = replace_tables(
        Postgis(str(project.settings.postgres_url)), city.name, [images_table(images(), city)]
    )
    # Each tile shares its last image with the next.
    assert counts == {"images": tiles * IMAGES_PER_TILE - (tiles - 1)}
    assert max(held) - before < 6 * of_one_tile


def test_dagsters_storage_keeps_its_connection(tmp_path: Path, postgis_url: str) -> None:
    (tmp_path / "dagster.yaml").write_text(
        f"storage: {{postgres: {{postgres_url: '{postgis_url}?plugin=vsvi'}}}}\n"
    )
    opened = []

    def count(*_: object) -> None:
        opened.append(1)

    with DagsterInstance.from_config(str(tmp_path)) as instance:
        sqlalchemy.event.listen(sqlalchemy.pool.Pool, "connect", count)
        try:
            for number in range(50):
                instance.report_engine_event(f"{number}", run_id="a-run", job_name="a-job")
        finally:
            sqlalchemy.event.remove(sqlalchemy.pool.Pool, "connect", count)
        assert len(instance.all_logs("a-run")) == 50
    assert len(opened) <= 1


def test_a_run_does_not_read_all_keys_of_a_city_for_each_of_its_sequences(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    city = project.write_city()
    project.materialize_metadata(city)
    sequences = project.sequences(city)
    reads = []
    read = project.instance.event_log_storage.get_dynamic_partitions

    def counted(name: str) -> Sequence[str]:
        reads.append(name)
        return read(name)

    monkeypatch.setattr(project.instance.event_log_storage, "get_dynamic_partitions", counted)

    def reads_of_a_run(first: str, last: str) -> int:
        reads.clear()
        project.materialize(city, "image_files", partitions=[first, last])
        return len(reads)

    assert reads_of_a_run(sequences[0], sequences[-1]) == reads_of_a_run(*sequences[:2])


def test_sequences_of_an_adopted_folder_are_recorded_together(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    city = project.write_city()
    project.materialize_metadata(city)
    project.materialize_images(city)
    project.instance.wipe_assets([AssetKey([city.name, "image_files"])])
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "200")
    batches = []
    store = project.instance.event_log_storage.store_event_batch

    def counted(events: Sequence[EventLogEntry]) -> None:
        batches.append(len(events))
        store(events)

    monkeypatch.setattr(project.instance.event_log_storage, "store_event_batch", counted)
    project.materialize(city, "selected_image_ids")
    assert len(project.sequences(city)) in batches


def _tile(number: int) -> pa.Table:
    ids = np.arange(IMAGES_PER_TILE) + 1 + number * (IMAGES_PER_TILE - 1)
    share = (ids % 997) / 997
    columns = {
        "id": ids,
        "sequence_id": pa.array([f"sequence-{number}"] * IMAGES_PER_TILE),
        "captured_at": ids,
        "compass_angle": share,
        "is_pano": ids % 2 == 0,
        "creator_id": ids,
        "organization_id": ids,
        "lon": BOX["west"] + (BOX["east"] - BOX["west"]) * share,
        "lat": BOX["south"] + (BOX["north"] - BOX["south"]) * share,
    }
    return pa.table(columns).cast(IMAGE_SCHEMA)
