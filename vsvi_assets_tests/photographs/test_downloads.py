import io
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import chain
from mmap import mmap
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vsvi_assets.files import DiskFullError, DiskGuard
from vsvi_assets.mapillary.client import CHUNK_BYTES, IMAGES_PER_REQUEST, ImageLink
from vsvi_assets.mapillary.errors import (
    InvalidSequenceIdError,
    RefusedTokenError,
    UnavailableError,
)
from vsvi_assets.photographs.downloads import (
    SequenceJob,
    SequenceResult,
    download_sequences,
    utc_now,
)
from vsvi_assets.photographs.jpeg import JpegInfo, check_jpeg
from vsvi_assets.photographs.sidecar import (
    ImageRecord,
    Sidecar,
    photographs_of,
    read_sidecar,
    write_sidecar,
)
from vsvi_assets.photographs.states import Absence, State
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


NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")
    return file.getvalue()


def states_of(result: SequenceResult) -> dict[int, State]:
    """Return the states of the wanted images that are not stored."""
    return {
        photograph.image_id: photograph.state
        for photograph in photographs_of(result.sequence_id, result.found)
        if photograph.state != State.STORED
    }


def threads_at_work() -> list[threading.Thread]:
    """Return the threads of downloads that have not ended."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("vsvi-")]


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
    assert sum(len(result.found.images) for result in results.values()) == 2000
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


def test_one_request_per_image_and_one_per_fifty_links(tmp_path: Path) -> None:
    images = street_images(1000, per_sequence=7)
    with Sandbox(world_of(images)) as sandbox:
        results = download(client_of(sandbox), images, tmp_path)
        requests = sandbox.stats.requests
        assert requests["images"] == 1000
        assert requests["images"] + requests["graph"] <= 1050
        assert all(
            file.creator for result in results.values() for file in result.found.images.values()
        )
        assert sum(result.fetched_images for result in results.values()) == 1000
        again = download(client_of(sandbox), images, tmp_path)
        assert requests["images"] == 1000
        assert not any(result.fetched_images for result in again.values())


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
    assert result.found.images.keys() == {known.id, resized.id}
    assert result.fetched_images == 1
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
    for image in images:
        record = read_sidecar(tmp_path / whole.sequence_id).images[image.id]
        content = path_of(tmp_path, image).read_bytes()
        assert (record.bytes, record.sha256) == (len(content), sha256(content).hexdigest())
    assert len(result.found.images) == 4
    assert path_of(tmp_path, whole).read_bytes() == jpeg(7)
    assert not_whole(tmp_path, [half, empty, page]) == []


def test_an_image_that_is_not_available_does_not_stop_the_others(tmp_path: Path) -> None:
    images = street_images(40)
    broken, gone, vanished = images[3], images[4], images[25]
    faults = Faults(
        by_image={broken.id: Fault.TRUNCATED, vanished.id: Fault.NOT_FOUND},
        gone_ids=frozenset({gone.id}),
    )
    with Sandbox(world_of(images), faults=faults) as sandbox:
        results = download(client_of(sandbox, num_retries=3), images, tmp_path)
        assert sandbox.stats.images_asked[broken.id] == 4
        first, second = results[images[0].sequence_id], results[images[20].sequence_id]
        assert list(first.found.failed) == [broken.id]
        # Without the image's id, so that all that failed for one reason are counted as one.
        assert first.found.failed[broken.id].startswith("it ends within its headers")
        assert states_of(first) == {
            broken.id: State.FAILED,
            gone.id: State.NOT_ANSWERED,
        }
        assert states_of(second) == {vanished.id: State.NOT_ANSWERED}
        assert len(first.found.images) + len(second.found.images) == 37

        sandbox.faults = Faults(gone_ids=frozenset({gone.id}))
        asked = sandbox.stats.images_asked.copy()
        download(client_of(sandbox), images, tmp_path)
        assert (sandbox.stats.images_asked - asked).keys() == {broken.id}


# What the answers leave out


def test_an_image_is_unavailable_after_answers_20_hours_apart(tmp_path: Path) -> None:
    images = street_images(60)
    gone = images[7]
    faults = Faults(gone_ids=frozenset({gone.id}))
    with Sandbox(world_of(images), faults=faults) as sandbox:

        def asked_at(hours: float, **options: Any) -> tuple[State, int]:
            """Download at an hour of the year: what the image is then, and how often asked for."""
            now = NEW_YEAR + timedelta(hours=hours)
            before = sandbox.stats.graph_ids_asked[gone.id]
            results = download(client_of(sandbox), images, tmp_path, now=lambda: now, **options)
            (state,) = states_of(results[gone.sequence_id]).values()
            return state, sandbox.stats.graph_ids_asked[gone.id] - before

        assert asked_at(0) == (State.NOT_ANSWERED, 2)
        assert asked_at(19.9) == (State.NOT_ANSWERED, 0)
        witnesses = [images[0].id]
        assert asked_at(20, witnesses=witnesses) == (State.UNAVAILABLE, 2)
        assert asked_at(21) == (State.UNAVAILABLE, 0)
        assert read_sidecar(tmp_path / gone.sequence_id).absent == {
            gone.id: Absence(NEW_YEAR, NEW_YEAR + timedelta(hours=20), 2)
        }

        again = NEW_YEAR + timedelta(hours=22)
        recheck = {"asked_before": again, "witnesses": witnesses}
        assert asked_at(22, **recheck) == (State.UNAVAILABLE, 2)
        assert asked_at(23, **recheck) == (State.UNAVAILABLE, 0)  # by another attempt of the run

        sandbox.faults = Faults()
        results = download(client_of(sandbox), images, tmp_path, asked_before=utc_now())
        assert states_of(results[gone.sequence_id]) == {}
        assert read_sidecar(tmp_path / gone.sequence_id).absent == {}
    assert not_whole(tmp_path, images) == []


def test_an_outage_is_no_proof_that_images_are_gone(tmp_path: Path) -> None:
    images = street_images(60)
    nowhere = Faults(gone=1.0)
    with Sandbox(world_of(images), faults=nowhere) as sandbox:
        for witnesses in ([], [images[0].id + 1000]):
            results = download(client_of(sandbox), images, tmp_path, witnesses=witnesses)
            assert {*chain(*(states_of(result).values() for result in results.values()))} == {
                State.FAILED
            }
            assert all(
                "outage" in why
                for result in results.values()
                for why in result.found.failed.values()
            )
        assert all(not read_sidecar(tmp_path / sequence_id).absent for sequence_id in results)
        sandbox.faults = Faults()
        download(client_of(sandbox), images, tmp_path)
    assert not_whole(tmp_path, images) == []


def test_more_than_5_percent_of_100_images_left_out_is_an_outage(tmp_path: Path) -> None:
    images = street_images(200)
    for count, is_outage in ((10, False), (11, True)):
        seqdir = tmp_path / str(count)
        seqdir.mkdir()
        left_out = {image.id for image in images[:count]}
        with Sandbox(world_of(images), faults=Faults(gone_ids=frozenset(left_out))) as sandbox:
            results = download(client_of(sandbox), images, seqdir)
            states = {k: v for result in results.values() for k, v in states_of(result).items()}
            expected = State.FAILED if is_outage else State.NOT_ANSWERED
            assert states == dict.fromkeys(left_out, expected)
            assert sum(result.fetched_images for result in results.values()) == 200 - count


def test_images_that_are_asked_for_once_more_are_no_outage(tmp_path: Path) -> None:
    images = street_images(200)
    gone = frozenset(image.id for image in images[:40])
    with Sandbox(world_of(images), faults=Faults(gone_ids=gone)) as sandbox:
        download(
            client_of(sandbox),
            images[:60],  # too few for their share to count
            tmp_path,
            now=lambda: NEW_YEAR,
        )
        later = NEW_YEAR + timedelta(hours=30)
        results = download(client_of(sandbox), images, tmp_path, now=lambda: later)
    states = {k: v for result in results.values() for k, v in states_of(result).items()}
    assert states == dict.fromkeys(gone, State.UNAVAILABLE)


def test_an_outage_leaves_what_is_known_of_earlier_answers(tmp_path: Path) -> None:
    images = street_images(20)
    gone = images[7]
    with Sandbox(world_of(images), faults=Faults(gone_ids=frozenset({gone.id}))) as sandbox:
        download(client_of(sandbox), images, tmp_path, now=lambda: NEW_YEAR)
        sandbox.faults = Faults(gone=1.0)
        later = NEW_YEAR + timedelta(hours=30)
        results = download(
            client_of(sandbox), images, tmp_path, now=lambda: later, witnesses=[images[0].id]
        )
        assert states_of(results[gone.sequence_id]) == {gone.id: State.FAILED}
        assert read_sidecar(tmp_path / gone.sequence_id).absent == {
            gone.id: Absence(NEW_YEAR, NEW_YEAR)
        }


def test_a_404_of_the_image_server_is_not_believed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = street_images(48)
    with Sandbox(world_of(images)) as sandbox:
        client = client_of(sandbox)
        chunks, denied = client.image_chunks, set[str]()

        def not_found_once(link: ImageLink, stop: threading.Event) -> Iterator[bytes]:
            if link.url not in denied and len(denied) < len(images):
                denied.add(link.url)
                raise UnavailableError("404")
            return chunks(link, stop)

        monkeypatch.setattr(client, "image_chunks", not_found_once)
        results = download(client, images, tmp_path)
        assert len(denied) == len(images)
    assert [states_of(result) for result in results.values()] == [{}, {}, {}]
    assert not_whole(tmp_path, images) == []


# What no attempt can make usable


def test_another_format_is_refused_after_one_attempt(tmp_path: Path) -> None:
    images = street_images(2)
    refused, other = images
    world = world_of(images)
    world.picture = lambda image, size: png() if image.id == refused.id else jpeg(image.id)
    with Sandbox(world) as sandbox:
        for _ in range(2):
            (result,) = download(client_of(sandbox), images, tmp_path).values()
            assert states_of(result) == {refused.id: State.REFUSED}
            assert "PNG" in result.found.refused[refused.id].reason
            assert sandbox.stats.images_asked[refused.id] == 1
        overwriting = utc_now()
        for _ in range(2):
            download(client_of(sandbox), images, tmp_path, fetched_before=overwriting)
        assert sandbox.stats.images_asked[refused.id] == 2
    assert not path_of(tmp_path, refused).exists()
    assert path_of(tmp_path, other).exists()


# Files and folders of the user


def test_one_bad_file_or_folder_takes_no_other_down(tmp_path: Path) -> None:
    images = street_images(60)
    linked, folder, pipe = images[0], images[1], images[2]
    (tmp_path / linked.sequence_id).mkdir()
    path_of(tmp_path, linked).symlink_to("/not/mounted/1.jpg")
    path_of(tmp_path, folder).mkdir()
    os.mkfifo(path_of(tmp_path, pipe))
    in_the_way = tmp_path / images[20].sequence_id
    in_the_way.touch()
    with Sandbox(world_of(images)) as sandbox:
        results = download(client_of(sandbox), images, tmp_path)
        assert sandbox.stats.images_asked.keys() == {
            image.id for image in images[3:20] + images[40:]
        }
    assert {k: v for result in results.values() for k, v in states_of(result).items()} == (
        dict.fromkeys((image.id for image in [*images[:3], *images[20:40]]), State.FAILED)
    )
    failed = results[linked.sequence_id].found.failed
    assert failed.keys() == {linked.id, folder.id, pipe.id}
    assert "is a link to /not/mounted/1.jpg" in failed[linked.id]
    assert path_of(tmp_path, linked).is_symlink()
    assert str(in_the_way) in results[images[20].sequence_id].found.failed[images[20].id]
    assert in_the_way.is_file()
    assert not_whole(tmp_path, images[40:]) == []


def test_a_folder_that_is_not_writable_fails_alone(small_disk: Path, tmp_path: Path) -> None:
    images = street_images(60)
    fixed, part = images[0].sequence_id, images[20].sequence_id
    for sequence_id in (fixed, part):
        (small_disk / sequence_id).mkdir()
        (tmp_path / sequence_id).symlink_to(small_disk / sequence_id)
    for image in images[:30]:
        path_of(tmp_path, image).write_bytes(jpeg(image.id))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Sandbox(world_of(images)) as sandbox:
        results = download(client_of(sandbox), images, tmp_path)
        assert sandbox.stats.images_asked.keys() == {image.id for image in images[40:]}
        assert sandbox.stats.graph_ids_asked.keys() == {image.id for image in images[40:]}
    assert len(results[fixed].found.images) == 20
    assert len(results[part].found.images) == 10
    for sequence_id in (fixed, part):
        assert len(results[sequence_id].found.failed) == 20
        assert all(
            str(small_disk) in why or str(tmp_path) in why
            for why in results[sequence_id].found.failed.values()
        )
    assert not results[images[40].sequence_id].found.failed


def test_a_whole_panorama_above_the_limit_is_kept(tmp_path: Path) -> None:
    (image,) = images = street_images(1)
    (tmp_path / image.sequence_id).mkdir()
    whole = jpeg(image.id)
    frame = whole.index(b"\xff\xc0") + 5
    panorama = whole[:frame] + struct.pack(">HH", 10_000, 20_000) + whole[frame + 4 :]
    path_of(tmp_path, image).write_bytes(panorama)
    with Sandbox(world_of(images)) as sandbox:
        (result,) = download(client_of(sandbox), images, tmp_path).values()
        assert not sandbox.stats.graph_ids_asked
    assert path_of(tmp_path, image).read_bytes() == panorama
    assert (result.found.images[image.id].width, result.found.failed) == (20_000, {})


def test_folders_of_other_services_are_not_touched(tmp_path: Path) -> None:
    images = street_images(40)
    theirs, without_mark = images[0].sequence_id, images[20].sequence_id
    with Sandbox(world_of(images)) as sandbox:
        download(client_of(sandbox), images[:10], tmp_path, services="sandbox")
        (tmp_path / without_mark).mkdir()
        path_of(tmp_path, images[20]).write_bytes(jpeg(images[20].id))
        before = sorted(tmp_path.rglob("*")), read_sidecar(tmp_path / theirs)

        results = download(client_of(sandbox), images[:20], tmp_path, services="mapillary")
        (reason,) = {*results[theirs].found.failed.values()}
        assert len(results[theirs].found.failed) == 20
        assert "'sandbox'" in reason
        assert str(tmp_path / theirs) in reason
        results = download(client_of(sandbox), images[20:], tmp_path, services="sandbox")
        assert len(results[without_mark].found.failed) == 20
        assert (sorted(tmp_path.rglob("*")), read_sidecar(tmp_path / theirs)) == before

        results = download(client_of(sandbox), images[20:], tmp_path, services="mapillary")
        assert len(results[without_mark].found.images) == 20
        assert read_sidecar(tmp_path / without_mark).services == "mapillary"


def test_a_folder_says_where_it_is_from_before_its_first_photograph(tmp_path: Path) -> None:
    images = street_images(20)
    marks: list[str | None] = []

    def settled(bytes_: int) -> None:
        marks.append(read_sidecar(tmp_path / images[0].sequence_id).services)

    with Sandbox(world_of(images)) as sandbox:
        download(client_of(sandbox), images, tmp_path, services="sandbox", settled=settled)
    assert marks == ["sandbox"] * 20


def test_overwriting_fetches_each_image_once_over_all_attempts(tmp_path: Path) -> None:
    images = street_images(60)
    with Sandbox(world_of(images)) as sandbox:
        download(client_of(sandbox), images, tmp_path)
        sandbox.stats.images_asked.clear()
        run_began = utc_now() + timedelta(milliseconds=1)
        time.sleep(0.005)
        for attempt in range(3):
            faults = {images[9].id: Fault.RESET} if attempt < 2 else {}
            sandbox.faults = Faults(by_image=faults)
            results = download(
                client_of(sandbox, num_retries=0), images, tmp_path, fetched_before=run_began
            )
            failed = [id for result in results.values() for id in result.found.failed]
            assert failed == list(faults)
            assert sum(len(result.found.images) for result in results.values()) == 60
        asked = sandbox.stats.images_asked
    assert asked == Counter({image.id: 1 for image in images}) + Counter({images[9].id: 2})


def test_files_without_a_sidecar_get_the_creator_of_their_sequence(tmp_path: Path) -> None:
    images = [replace(image, creator_username="walker") for image in street_images(4)]
    (tmp_path / images[0].sequence_id).mkdir()
    for image in images[:3]:
        path_of(tmp_path, image).write_bytes(jpeg(image.id))
    with Sandbox(world_of(images)) as sandbox:
        (result,) = download(client_of(sandbox), images, tmp_path).values()
        assert sandbox.stats.images_asked.keys() == {images[3].id}
    assert [file.creator for file in result.found.images.values()] == ["walker"] * 4


def test_an_image_of_too_many_pixels_is_refused_at_once(tmp_path: Path) -> None:
    (image,) = images = street_images(1)
    whole = jpeg(image.id)
    frame = whole.index(b"\xff\xc0") + 5
    world = world_of(images)
    world.picture = lambda image, size: whole[:frame] + b"\xff\xff\xff\xff" + whole[frame + 4 :]
    with Sandbox(world) as sandbox:
        (result,) = download(client_of(sandbox), images, tmp_path).values()
        assert sandbox.stats.images_asked[image.id] == 1
    assert "65535 x 65535 pixels" in result.found.refused[image.id].reason
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
        client, in_a_second = client_of(sandbox, num_retries=1), utc_now() + timedelta(seconds=1)
        (result,) = download(client, images, tmp_path, fetched_before=in_a_second).values()
    assert list(result.found.failed) == [kept.id]
    assert not_whole(tmp_path, images) == [kept.id]
    assert path_of(tmp_path, kept).read_bytes() == jpeg(7)


def test_leaving_off_waits_for_no_thread_that_waits_for_a_silent_server(
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
            services="mapillary",
            guard=DiskGuard(tmp_path, NO_GUARD_BYTES),
        )
        assert next(results).sequence_id == images[0].sequence_id
        began = time.monotonic()
        results.close()
        assert time.monotonic() - began < 5
        waiting = threads_at_work()
        assert waiting
        assert all(thread.daemon for thread in waiting), "the end of the process waits for them"
    for thread in waiting:
        thread.join(10)
    assert leftovers(tmp_path) == []
    assert not_whole(tmp_path, images[:20]) == []


def test_leaving_off_leaves_no_half_file_of_images_that_are_waited_for(tmp_path: Path) -> None:
    images = street_images(40)
    with Sandbox(world_of(images), latency=2) as sandbox:

        def interrupt() -> None:
            while sandbox.stats.requests["images"] < len(images):
                time.sleep(0.02)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        results = download_sequences(
            client_of(sandbox),
            jobs_of(images),
            tmp_path,
            size="original",
            services="mapillary",
            guard=DiskGuard(tmp_path, NO_GUARD_BYTES),
        )
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            list(results)
        assert leftovers(tmp_path) == []
    for thread in threads_at_work():
        thread.join(10)


def test_leaving_off_stops_the_reading_of_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = street_images(200, per_sequence=100)
    (tmp_path / images[100].sequence_id).mkdir()
    for image in images[100:]:
        path_of(tmp_path, image).write_bytes(jpeg(image.id))
    read: list[mmap] = []

    def read_slowly(image: mmap) -> JpegInfo:
        read.append(image)
        time.sleep(0.05)
        return check_jpeg(image)

    monkeypatch.setattr("vsvi_assets.photographs.downloads.check_jpeg", read_slowly)
    with Sandbox(world_of(images)) as sandbox:
        results = download_sequences(
            client_of(sandbox),
            jobs_of(images),
            tmp_path,
            size="original",
            services="mapillary",
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
            client, jobs(), tmp_path, size="original", services="mapillary", guard=guard, workers=8
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
            [SequenceJob(sequence_id, street_images(1))],
            seqdir,
            size="original",
            services="mapillary",
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
            services="mapillary",
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
                client,
                jobs_of(images),
                small_disk,
                size="original",
                services="mapillary",
                guard=guard,
                workers=4,
            )
            return [len(result.found.images) for result in results]

        with pytest.raises(DiskFullError, match="required"):
            run()
        on_disk = list(small_disk.rglob("*.jpg"))
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
from vsvi_assets.sandbox import StreetImage
from vsvi_assets_tests.mapillary.parts import services_at

url, seqdir, token = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
jobs = (
    SequenceJob(line.split()[0], [StreetImage(int(id), 0, 0, "") for id in line.split()[1:]])
    for line in sys.stdin
)
client = Mapillary(services_at(url, token), backoff=0.01)
print("started", flush=True)
for result in download_sequences(
    client,
    jobs,
    seqdir,
    size="original",
    services="mapillary",
    guard=DiskGuard(seqdir, 1),
    workers=8,
):
    assert not result.found.failed
"""


def test_kills_at_any_moment_lose_nothing_that_was_whole(tmp_path: Path) -> None:
    images = street_images(400)
    world = world_of(images)
    lines = "".join(
        f"{job.sequence_id} {' '.join(str(image.id) for image in job.images)}\n"
        for job in jobs_of(images)
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
