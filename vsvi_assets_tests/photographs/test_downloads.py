import math
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from vsvi_assets.files import DiskFullError, DiskGuard
from vsvi_assets.mapillary.client import CHUNK_BYTES, IMAGES_PER_REQUEST, Links
from vsvi_assets.mapillary.errors import InvalidSequenceIdError, RefusedTokenError
from vsvi_assets.photographs.downloads import SequenceJob, download_sequences
from vsvi_assets.photographs.jpeg import JpegInfo, check_jpeg
from vsvi_assets.photographs.sidecar import ImageRecord, Sidecar, write_sidecar
from vsvi_assets.sandbox import Fault, Faults, Sandbox
from vsvi_assets_tests.mapillary.parts import (
    NO_GUARD_BYTES,
    client_of,
    download,
    jobs_of,
    jpeg,
    leftovers,
    not_whole,
    path_of,
    street_images,
    world_of,
)

ALL_FAULTS_OF_IMAGES = {
    Fault.RATE_LIMITED_BARE: 0.05,
    Fault.RATE_LIMITED_XML: 0.05,
    Fault.SERVER_ERROR: 0.05,
    Fault.UNAVAILABLE: 0.05,
    Fault.TRUNCATED: 0.025,
    Fault.CUT_OFF: 0.025,
    Fault.HTML_PAGE: 0.05,
    Fault.EXPIRED: 0.05,
    Fault.RESET: 0.05,
}
ALL_FAULTS_OF_THE_GRAPH = {
    Fault.APPLICATION_LIMIT: 0.1,
    Fault.TIMEOUT: 0.05,
    Fault.UNKNOWN_ERROR: 0.05,
    Fault.HTML_PAGE: 0.05,
    Fault.TRUNCATED: 0.05,
    Fault.RESET: 0.05,
}


@pytest.fixture(autouse=True)
def _no_thread_outlives_a_test() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert [thread.name for thread in threading.enumerate() if thread not in before] == []


def test_all_images_arrive_whole_through_all_faults_at_once(tmp_path: Path) -> None:
    images = street_images(2000)
    faults = Faults(seed=1, images=ALL_FAULTS_OF_IMAGES, graph=ALL_FAULTS_OF_THE_GRAPH)
    with Sandbox(world_of(images), faults=faults) as sandbox:
        results = download(client_of(sandbox), images, tmp_path)
    assert sum(len(result.images) for result in results.values()) == 2000
    assert not_whole(tmp_path, images) == []
    assert leftovers(tmp_path) == []
    stats = sandbox.stats
    assert set(stats.faults["images"]) == set(ALL_FAULTS_OF_IMAGES)
    asked_more_often_than_faults_explain = [
        image.id
        for image in images
        if stats.images_asked[image.id] != 1 + len(stats.faults_by_image[image.id])
    ]
    assert asked_more_often_than_faults_explain == []
    expired = sum(faults.count(Fault.EXPIRED) for faults in stats.faults_by_image.values())
    batches = math.ceil(len(images) / IMAGES_PER_REQUEST) + stats.faults["graph"].total()
    assert batches <= stats.requests["graph"] <= batches + expired
    assert stats.token_leaks == 0
    print(stats.requests, stats.faults, stats.image_bytes)


def test_one_request_an_image_and_one_for_fifty_links(tmp_path: Path) -> None:
    images = street_images(1000, per_sequence=7)
    with Sandbox(world_of(images)) as sandbox:
        results = download(client_of(sandbox), images, tmp_path)
        requests = sandbox.stats.requests
        assert requests["images"] == 1000
        assert requests["images"] + requests["graph"] <= 1050
        assert all(
            file.fetched and file.creator for result in results.values() for file in result.images
        )
        again = download(client_of(sandbox), images, tmp_path)
        assert requests["images"] == 1000
        assert not any(file.fetched for result in again.values() for file in result.images)


def test_what_the_sidecar_lists_is_known_by_its_size_alone(tmp_path: Path) -> None:
    images = street_images(2, per_sequence=2)
    known, resized = images
    folder = tmp_path / known.sequence_id
    folder.mkdir()
    records = {image.id: _record(image.id, size=1000) for image in images}
    write_sidecar(folder, Sidecar(records))
    path_of(tmp_path, known).write_bytes(bytes(1000))
    path_of(tmp_path, resized).write_bytes(jpeg(resized.id)[:-10])
    with Sandbox(world_of(images)) as sandbox:
        (result,) = download(client_of(sandbox), images, tmp_path).values()
        assert sandbox.stats.graph_ids_asked.keys() == {resized.id}
    assert [(file.id, file.fetched) for file in result.images] == [
        (known.id, False),
        (resized.id, True),
    ]
    assert path_of(tmp_path, resized).read_bytes() == jpeg(resized.id)


def test_files_of_unknown_origin_are_adopted_when_whole(tmp_path: Path) -> None:
    images = street_images(4, per_sequence=4)
    whole, half, empty, page = images
    (tmp_path / whole.sequence_id).mkdir()
    path_of(tmp_path, whole).write_bytes(jpeg(7))
    path_of(tmp_path, half).write_bytes(jpeg(half.id)[:100])
    path_of(tmp_path, empty).touch()
    path_of(tmp_path, page).write_text("<html>Sorry</html>")
    with Sandbox(world_of(images)) as sandbox:
        (result,) = download(client_of(sandbox), images, tmp_path).values()
        assert sandbox.stats.images_asked.keys() == {half.id, empty.id, page.id}
    assert len(result.images) == 4
    assert path_of(tmp_path, whole).read_bytes() == jpeg(7)
    assert not_whole(tmp_path, [half, empty, page]) == []


def test_an_image_that_cannot_be_had_does_not_stop_the_others(tmp_path: Path) -> None:
    images = street_images(40)
    broken, gone, vanished = images[3], images[4], images[25]
    faults = Faults(
        by_image={broken.id: Fault.TRUNCATED, vanished.id: Fault.NOT_FOUND},
        gone_ids=frozenset({gone.id}),
    )
    with Sandbox(world_of(images), faults=faults) as sandbox:
        results = download(client_of(sandbox, num_retries=3), images, tmp_path)
        assert sandbox.stats.images_asked[broken.id] == 4
        assert sandbox.stats.images_asked[vanished.id] == 1
        assert sandbox.stats.requests["graph"] == 2  # once more for the one that was left out
        first, second = results[images[0].sequence_id], results[images[20].sequence_id]
        assert list(first.failed) == [broken.id]
        assert "it ends within its headers" in first.failed[broken.id]
        assert first.unavailable == [gone.id]
        assert second.unavailable == [vanished.id]
        assert len(first.images) + len(second.images) == 37

        sandbox.faults = Faults(gone_ids=frozenset({gone.id}))
        asked = sandbox.stats.images_asked.copy()
        download(client_of(sandbox), images, tmp_path)
        assert (sandbox.stats.images_asked - asked).keys() == {broken.id, vanished.id}


def test_an_answer_that_forgets_images_is_no_proof_that_they_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = street_images(60)
    with Sandbox(world_of(images)) as sandbox:
        client = client_of(sandbox)
        image_links = client.image_links
        answers = [Links(absent=frozenset(image.id for image in images[:50]))]
        monkeypatch.setattr(
            client,
            "image_links",
            lambda *asked: answers.pop() if answers else image_links(*asked),
        )
        results = download(client, images, tmp_path)
        assert sandbox.stats.requests["graph"] <= 3
    assert [result.unavailable for result in results.values()] == [[], [], []]
    assert not_whole(tmp_path, images) == []


def test_files_without_a_sidecar_get_the_creator_of_their_sequence(tmp_path: Path) -> None:
    images = [replace(image, creator_username="walker") for image in street_images(4)]
    (tmp_path / images[0].sequence_id).mkdir()
    for image in images[:3]:
        path_of(tmp_path, image).write_bytes(jpeg(image.id))
    with Sandbox(world_of(images)) as sandbox:
        (result,) = download(client_of(sandbox), images, tmp_path).values()
        assert sandbox.stats.images_asked.keys() == {images[3].id}
    assert [file.creator for file in result.images] == ["walker"] * 4


def test_an_image_of_too_many_pixels_is_refused_at_once(tmp_path: Path) -> None:
    (image,) = images = street_images(1)
    whole = jpeg(image.id)
    frame = whole.index(b"\xff\xc0") + 5
    world = world_of(images)
    world.picture = lambda image, size: whole[:frame] + b"\xff\xff\xff\xff" + whole[frame + 4 :]
    with Sandbox(world) as sandbox:
        (result,) = download(client_of(sandbox), images, tmp_path).values()
        assert sandbox.stats.images_asked[image.id] == 1
    assert "65535 x 65535 pixels" in result.failed[image.id]
    assert not path_of(tmp_path, image).exists()


def test_a_refused_token_stops_everything_at_once(tmp_path: Path) -> None:
    images = street_images(500)
    with Sandbox(world_of(images)) as sandbox:
        client = client_of(sandbox, token="MLY|no|token")
        with pytest.raises(RefusedTokenError, match="MAPILLARY_TOKEN") as refusal:
            download(client, images, tmp_path)
        assert sandbox.stats.requests["graph"] < 10
    assert "no|token" not in str(refusal.value)
    assert leftovers(tmp_path) == []


def test_overwriting_replaces_a_file_only_by_a_whole_one(tmp_path: Path) -> None:
    images = street_images(20)
    kept = images[5]
    (tmp_path / kept.sequence_id).mkdir()
    for image in images:
        path_of(tmp_path, image).write_bytes(jpeg(7))
    faults = Faults(by_image={kept.id: Fault.TRUNCATED})
    with Sandbox(world_of(images), faults=faults) as sandbox:
        client = client_of(sandbox, num_retries=1)
        (result,) = download(client, images, tmp_path, overwrite=True).values()
    assert list(result.failed) == [kept.id]
    assert not_whole(tmp_path, images) == [kept.id]
    assert path_of(tmp_path, kept).read_bytes() == jpeg(7)


def test_leaving_off_stops_all_threads_even_those_that_wait_for_a_silent_server(
    tmp_path: Path,
) -> None:
    images = street_images(60)
    stalled = {image.id: Fault.STALL for image in images[20:40]}
    slow = {image.id: Fault.SLOW for image in images[40:]}
    faults = Faults(by_image=stalled | slow, stall=60, slow=60)
    with Sandbox(world_of(images), faults=faults) as sandbox:
        results = download_sequences(
            client_of(sandbox),
            jobs_of(images),
            tmp_path,
            size="original",
            guard=DiskGuard(tmp_path, NO_GUARD_BYTES),
        )
        assert next(results).sequence_id == images[0].sequence_id
        began = time.monotonic()
        results.close()
        assert time.monotonic() - began < 5
        assert not [thread for thread in threading.enumerate() if "mapillary" in thread.name]
    assert leftovers(tmp_path) == []
    assert not_whole(tmp_path, images[:20]) == []


def test_leaving_off_stops_the_reading_of_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = street_images(200, per_sequence=100)
    (tmp_path / images[100].sequence_id).mkdir()
    for image in images[100:]:
        path_of(tmp_path, image).write_bytes(jpeg(image.id))
    read: list[Path] = []

    def read_slowly(path: Path) -> JpegInfo:
        read.append(path)
        time.sleep(0.05)
        return check_jpeg(path)

    monkeypatch.setattr("vsvi_assets.photographs.downloads.check_jpeg", read_slowly)
    with Sandbox(world_of(images)) as sandbox:
        results = download_sequences(
            client_of(sandbox),
            jobs_of(images),
            tmp_path,
            size="original",
            guard=DiskGuard(tmp_path, shutil.disk_usage(tmp_path).total),
        )
        with pytest.raises(DiskFullError):
            list(results)
    assert len(read) < 90


def test_jobs_are_taken_only_as_they_are_needed_even_while_all_images_wait(tmp_path: Path) -> None:
    images = street_images(2000, per_sequence=1)
    taken = []

    def jobs() -> Iterator[SequenceJob]:
        for job in jobs_of(images):
            taken.append(job)
            yield job

    slow = {images[0].id: Fault.SLOW}
    faults = Faults(by_image=slow, slow=2.0, images={Fault.UNAVAILABLE: 1.0})
    with Sandbox(world_of(images), faults=faults) as sandbox:
        client = client_of(sandbox, backoff=600)
        guard = DiskGuard(tmp_path, NO_GUARD_BYTES)
        results = download_sequences(
            client, jobs(), tmp_path, size="original", guard=guard, workers=8
        )
        with closing(results):
            assert next(results).sequence_id == images[0].sequence_id
            assert len(taken) < 300


@pytest.mark.parametrize("sequence_id", ["../outside", "/etc", "", ".", "a/b", "x" * 10_000_000])
def test_nothing_is_written_outside_the_folder(tmp_path: Path, sequence_id: str) -> None:
    seqdir = tmp_path / "seqdir"
    seqdir.mkdir()
    with Sandbox(world_of([])) as sandbox:
        results = download_sequences(
            client_of(sandbox),
            [SequenceJob(sequence_id, [1])],
            seqdir,
            size="original",
            guard=DiskGuard(tmp_path, NO_GUARD_BYTES),
        )
        with pytest.raises(InvalidSequenceIdError) as refusal:
            list(results)
    assert len(str(refusal.value)) < 200
    assert list(tmp_path.rglob("*")) == [seqdir]


def test_too_little_room_stops_before_anything_is_written(tmp_path: Path) -> None:
    images = street_images(100)
    required = shutil.disk_usage(tmp_path).total + 1
    with Sandbox(world_of(images)) as sandbox:
        results = download_sequences(
            client_of(sandbox),
            jobs_of(images),
            tmp_path,
            size="original",
            guard=DiskGuard(tmp_path, required),
        )
        with pytest.raises(DiskFullError, match=str(tmp_path)):
            list(results)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("required", [0, 4_000_000], ids=["full", "guarded"])
def test_a_full_disk_stops_cleanly_and_room_completes_it(small_disk: Path, required: int) -> None:
    images = street_images(60, per_sequence=10)
    world = world_of(images)
    world.picture = lambda image, size: jpeg(image.id) + bytes(200_000)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(10_000_000))
    guard = DiskGuard(small_disk, required)
    with Sandbox(world) as sandbox:
        client = client_of(sandbox)

        def run() -> list[int]:
            results = download_sequences(
                client, jobs_of(images), small_disk, size="original", guard=guard, workers=4
            )
            return [len(result.images) for result in results]

        with pytest.raises(DiskFullError, match="required"):
            run()
        on_disk = [path for path in small_disk.rglob("*") if path.is_file()]
        assert all(path.stat().st_size > 200_000 for path in on_disk)
        assert not list(small_disk.rglob("*.part"))
        if required:
            assert shutil.disk_usage(small_disk).free > required - 4 * 2 * CHUNK_BYTES
        ballast.unlink()
        if required:
            guard = DiskGuard(small_disk, 1_000_000)
        assert sum(run()) == 60


KILLED = """
import sys
from pathlib import Path
from vsvi_assets.files import DiskGuard
from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.photographs.downloads import SequenceJob, download_sequences

url, seqdir, token = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
jobs = (SequenceJob(line.split()[0], list(map(int, line.split()[1:]))) for line in sys.stdin)
client = Mapillary(lambda: token, tiles_url=url, graph_url=url, backoff=0.01)
print("started", flush=True)
for result in download_sequences(
    client, jobs, seqdir, size="original", guard=DiskGuard(seqdir, 1), workers=8
):
    assert not result.failed
"""


def test_kills_at_any_moment_lose_nothing_that_was_whole(tmp_path: Path) -> None:
    images = street_images(400)
    world = world_of(images)
    lines = "".join(
        f"{job.sequence_id} {' '.join(map(str, job.image_ids))}\n" for job in jobs_of(images)
    )
    moments = random.Random(4)
    kills, workers = 8, 8
    with Sandbox(world, latency=0.02) as sandbox:
        command = [sys.executable, "-c", KILLED, sandbox.url, str(tmp_path), "MLY|sandbox|x"]
        for kill in range(kills + 1):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert process.stdin
            assert process.stdout
            process.stdin.write(lines)
            process.stdin.close()
            assert process.stdout.readline() == "started\n"
            if kill < kills:
                time.sleep(moments.uniform(0.05, 0.25))
                process.send_signal(signal.SIGKILL)
            process.stdout.close()
            process.wait()
        assert process.returncode == 0
        fetched = sum(sandbox.stats.images_served.values())
    assert not_whole(tmp_path, images) == []
    assert leftovers(tmp_path) == []
    assert fetched - len(images) <= kills * workers


def _record(image_id: int, size: int) -> ImageRecord:
    return ImageRecord(image_id, 4.9, 52.4, None, None, None, None, 10, 10, size, "0" * 64)
