"""Photographs in an object store beside photographs on disk."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.downloads import (
    LATENCY,
    PHOTOGRAPH_BYTES,
    ids_of,
    jobs,
    project_downloads,
    world,
)
from benchmarks.measure import Clock, Measured, in_turn, measure
from benchmarks.surroundings import emptied, serving
from benchmarks.table import Row, megabytes, seconds
from vsvi_assets.bucket import store_path
from vsvi_assets.files import atomic_write
from vsvi_assets.photographs.inventory import compare_with_store
from vsvi_assets.photographs.states import State
from vsvi_assets_tests.object_store import running_object_store

# In processes of their own


def store_downloads(
    clock: Clock,
    environment: Mapping[str, str],
    store: Mapping[str, str],
    url: str,
    sequences: int,
    per_sequence: int,
) -> None:
    folder = store_path(url, store)
    folder.exists()  # so that the client is made
    project_downloads(clock, environment, folder, sequences, per_sequence)


def store_inventory(
    clock: Clock, store: Mapping[str, str], url: str, sequences: int, per_sequence: int
) -> None:
    rows = [
        (job.sequence_id, image_id, State.STORED, 1, None, None, None, None, False)
        for job in jobs(sequences, per_sequence)
        for image_id in ids_of(job)
    ]
    folder = store_path(url, store)
    with clock:
        found = compare_with_store(rows, folder, datetime.now(UTC), all_of_them=True)
    clock.facts = {"present": found.on_disk}


# The lines of the table


def object_store(folder: Path, images: int, objects: int, repeat: int) -> Iterator[Row]:
    """Downloads into SeaweedFS on the same machine, and the inventory of many objects."""
    sequences = max(images // 50, 1)
    with (
        running_object_store() as store,
        serving(world, sequences, 50, PHOTOGRAPH_BYTES, latency=LATENCY) as environment,
    ):
        environ = dict(store.environ)

        def on_disk() -> Measured:
            with emptied(folder / "photographs") as target:
                return measure(project_downloads, environment, target, sequences, 50)

        def in_store() -> Measured:
            url = str(store.new_folder())
            return measure(store_downloads, environment, environ, url, sequences, 50)

        disk, stored = in_turn(repeat, on_disk, in_store)
        assert stored.facts["fetched"] == sequences * 50
        disk_rate, rate = (sequences * 50 / side.seconds for side in (disk, stored))
        yield Row(
            f"download of {sequences * 50:,} images into an object store on the same machine",
            f"{disk_rate:.0f} images/s (to disk)",
            f"{rate:.0f} images/s",
            f"{rate / disk_rate:.2f}",
            megabytes(stored.memory),
            ">= 0.6; under 450 MB",
            rate >= 0.6 * disk_rate and stored.memory < 450,
        )
        many = store.new_folder()

        def put(job_and_id: tuple[str, int]) -> None:
            with atomic_write(many / job_and_id[0] / f"{job_and_id[1]}.jpg") as file:
                file.write(b"x")

        each = [(job.sequence_id, id_) for job in jobs(objects // 50, 50) for id_ in ids_of(job)]
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(put, each))
        before = store.requests("LIST")
        [counted] = in_turn(
            repeat, lambda: measure(store_inventory, environ, str(many), objects // 50, 50)
        )
        requests = (store.requests("LIST") - before) // repeat
    assert counted.facts["present"] == len(each)
    yield Row(
        f"{len(each):,} objects of {objects // 50:,} sequences, compared with their records",
        "–",
        f"{seconds(counted.seconds)}, {requests} requests",
        "",
        megabytes(counted.memory),
        "10 s, 110 requests",
        counted.seconds <= 10 and requests <= 110,
    )
