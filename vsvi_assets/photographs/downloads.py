"""Images on disk: many sequences at once, each image whole or not there.

One pool of threads serves all sequences. What has to wait (for a retry, for a fresh link)
waits in a queue and not in a thread. Links are asked for in full batches across sequences,
while other images are being fetched, and are used within seconds.
"""

import hashlib
import heapq
import itertools
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from vsvi_assets.files import DiskGuard, atomic_write, remove_abandoned_parts, sync_folder
from vsvi_assets.mapillary.client import (
    IMAGES_PER_REQUEST,
    ImageLink,
    ImageSize,
    Links,
    Mapillary,
)
from vsvi_assets.mapillary.errors import (
    InvalidImageError,
    OversizedImageError,
    RefusedRequestError,
    StaleLinkError,
    StoppedError,
    TransientError,
    UnavailableError,
)
from vsvi_assets.photographs.jpeg import MAX_BYTES, check_jpeg, check_jpeg_file
from vsvi_assets.photographs.sidecar import (
    ImageRecord,
    image_path,
    known_images,
    sequence_folder,
    sha256_of,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SequenceJob:
    """The images that are wanted of a sequence."""

    sequence_id: str
    image_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image that is on disk, whole. `fetched` tells whether this run brought it."""

    id: int
    bytes: int
    sha256: str
    width: int
    height: int
    creator: str | None
    fetched: bool


@dataclass
class SequenceResult:
    """What became of a sequence's images: on disk, gone from Mapillary, or failed and why."""

    sequence_id: str
    images: list[ImageFile] = field(default_factory=list)
    unavailable: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)


@dataclass(eq=False)
class _Sequence:
    job: SequenceJob
    folder: Path
    result: SequenceResult
    outstanding: int = 0


@dataclass(eq=False, slots=True)
class _Image:
    id: int
    sequence: _Sequence
    link: ImageLink | None = None
    troubles: Counter[type[Exception]] = field(default_factory=Counter)


def download_sequences(
    client: Mapillary,
    sequences: Iterable[SequenceJob],
    seqdir: Path,
    *,
    size: ImageSize,
    guard: DiskGuard,
    workers: int = 64,
    overwrite: bool = False,
    settled: Callable[[int], object] = lambda bytes_: None,
) -> Generator[SequenceResult, None, None]:
    """Download images to `<seqdir>/<sequence_id>/<image_id>.jpg`.

    Yields each sequence as soon as it is complete, in any order. Jobs are taken as they are
    needed, so memory does not grow with their number. Images already there and whole are
    neither asked for nor fetched: those that the sequence's sidecar lists are known by their
    size, others are read once. Closing the iterator stops everything.

    Parameters
    ----------
    size
        Which thumbnail: "original", or 2048, 1024 or 256 pixels wide.
    guard
        Checked as bytes arrive.
    workers
        How many images are fetched at a time.
    overwrite
        Fetch everything anew; a file is replaced only by a whole new one.
    settled
        Called for each image that the sidecar did not list: with its bytes where it was
        fetched, with 0 where it was there already or is given up.

    Raises
    ------
    RefusedTokenError, DiskFullError
        At once; nothing half is left behind. An image that cannot be had stops nothing: it
        is listed in its sequence's result.
    """
    with client.workers(workers) as (pool, stop):
        downloads = _Downloads(client, seqdir, size, guard, overwrite, workers, settled, pool, stop)
        yield from downloads.run(iter(sequences))


class _Downloads:
    """The queues between the steps of an image: inspected, link asked for, fetched.

    All of it runs in the thread that iterates, but for the three tasks given to the pool.
    """

    def __init__(
        self,
        client: Mapillary,
        seqdir: Path,
        size: ImageSize,
        guard: DiskGuard,
        overwrite: bool,
        workers: int,
        settled: Callable[[int], object],
        pool: ThreadPoolExecutor,
        stop: threading.Event,
    ) -> None:
        self._client, self._seqdir, self._size = client, seqdir, size
        self._guard, self._overwrite, self._settled = guard, overwrite, settled
        self._pool, self._stop = pool, stop
        self._max_running = 2 * workers
        self._max_queued = 4 * workers + 2 * IMAGES_PER_REQUEST
        self._max_retrying = 16 * workers
        self._finished: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._running = self._inspecting = 0
        self._jobs: Iterator[SequenceJob] | None = None
        self._without_link: deque[_Image] = deque()
        self._with_link: deque[_Image] = deque()
        self._later: list[tuple[float, int, _Image]] = []
        self._tickets = itertools.count()
        self._complete: list[SequenceResult] = []

    def run(self, jobs: Iterator[SequenceJob]) -> Iterator[SequenceResult]:
        self._jobs = jobs
        while True:
            while self._running < self._max_running and self._start_next():
                pass
            if not self._running and not self._later:
                return
            try:
                self._finished.get(timeout=self._seconds_to_next_retry())()
            except Empty:
                continue
            yield from self._complete
            self._complete.clear()

    def _start_next(self) -> bool:
        """Give the most urgent task to the pool; False when there is none for now."""
        if self._later and self._later[0][0] <= time.monotonic():
            image = heapq.heappop(self._later)[2]
            self._start(self._fetched, image, self._fetch, image)
        elif len(self._without_link) >= IMAGES_PER_REQUEST:
            self._start_batch()
        elif self._with_link:
            image = self._with_link.popleft()
            self._start(self._fetched, image, self._fetch, image)
        elif self._jobs and self._has_room():
            job = next(self._jobs, None)
            if job is None:
                self._jobs = None
                return True
            folder = sequence_folder(self._seqdir, job.sequence_id)
            sequence = _Sequence(job, folder, SequenceResult(job.sequence_id))
            self._inspecting += 1
            self._start(self._inspected, sequence, self._inspect, sequence)
        elif self._without_link and not self._jobs and not self._inspecting:
            self._start_batch()
        else:
            return False
        return True

    def _start_batch(self) -> None:
        count = min(IMAGES_PER_REQUEST, len(self._without_link))
        batch = [self._without_link.popleft() for _ in range(count)]
        ids = list(dict.fromkeys(image.id for image in batch))
        self._start(self._linked, batch, self._client.image_links, ids, self._size, self._stop)

    def _start(
        self,
        take_result: Callable[[Any, Future[Any]], None],
        subject: Any,
        task: Callable[..., Any],
        *arguments: Any,
    ) -> None:
        """Run a task in the pool, and `take_result` in the iterating thread afterwards."""

        def finish() -> None:
            self._running -= 1
            take_result(subject, future)

        future = self._pool.submit(task, *arguments)
        self._running += 1
        future.add_done_callback(lambda _: self._finished.put(finish))

    def _has_room(self) -> bool:
        """Return whether another sequence may be taken in; bounds the memory."""
        queued = len(self._without_link) + len(self._with_link)
        return queued < self._max_queued and len(self._later) < self._max_retrying

    def _seconds_to_next_retry(self) -> float | None:
        if not self._later:
            return None
        return max(self._later[0][0] - time.monotonic(), 0.0)

    # Tasks, in threads of the pool

    def _inspect(self, sequence: _Sequence) -> tuple[list[int], int]:
        """Add what is there to the sequence's result.

        Returns the ids of what is not there, and how many files the sidecar did not list.
        """
        sequence.folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned_parts(sequence.folder)
        ids = list(dict.fromkeys(sequence.job.image_ids))
        if self._overwrite:
            return ids, 0
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(sequence.folder)}
        known = known_images(sequence.folder)
        missing, adopted = [], 0
        for image_id in ids:
            if self._stop.is_set():
                raise StoppedError(f"sequence {sequence.job.sequence_id}: stopped")
            path = image_path(sequence.folder, image_id)
            size, record = sizes.get(path.name), known.images.get(image_id)
            if size is None and image_id in known.unavailable:
                sequence.result.unavailable.append(image_id)
            elif size is None:
                missing.append(image_id)
            elif record and record.bytes == size:
                sequence.result.images.append(_known_image(record))
            elif image := _image_on_disk(image_id, path):
                sequence.result.images.append(image)
                adopted += 1
            else:
                missing.append(image_id)
        return missing, adopted

    def _fetch(self, image: _Image) -> ImageFile:
        """Fetch an image once to its place."""
        assert image.link
        digest, size = hashlib.sha256(), 0
        with atomic_write(image_path(image.sequence.folder, image.id)) as file:
            for chunk in self._client.image_chunks(image.link, self._stop):
                self._guard.check()
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                if size > MAX_BYTES:
                    raise OversizedImageError(f"more than {MAX_BYTES:,} bytes")
            file.flush()
            info = check_jpeg_file(file.fileno())
        return ImageFile(
            image.id, size, digest.hexdigest(), info.width, info.height, image.link.creator, True
        )

    def _sync(self, sequence: _Sequence) -> None:
        sync_folder(sequence.folder)
        sync_folder(self._seqdir)

    # Their results, in the thread that iterates

    def _inspected(self, sequence: _Sequence, future: Future[tuple[list[int], int]]) -> None:
        self._inspecting -= 1
        missing, adopted = future.result()
        for _ in range(adopted):
            self._settled(0)
        sequence.outstanding = len(missing)
        self._without_link.extend(_Image(image_id, sequence) for image_id in missing)
        self._complete_if_done(sequence)

    def _linked(self, batch: list[_Image], future: Future[Links]) -> None:
        try:
            links = future.result()
        except (TransientError, RefusedRequestError) as refusal:
            for image in batch:
                self._fail(image, refusal)
            return
        for image in batch:
            image.link = links.found.get(image.id)
            if image.link:
                self._with_link.append(image)
            elif error := links.failed.get(image.id):
                self._fail(image, error)
            elif not image.troubles[UnavailableError]:
                # An answer without it may be a bad moment's; a second one is believed.
                image.troubles[UnavailableError] += 1
                self._without_link.append(image)
            else:
                image.sequence.result.unavailable.append(image.id)
                self._settle(image)

    def _fetched(self, image: _Image, future: Future[ImageFile]) -> None:
        try:
            file = future.result()
            image.sequence.result.images.append(file)
            self._settle(image, file.bytes)
        except UnavailableError:
            image.sequence.result.unavailable.append(image.id)
            self._settle(image)
        except (OversizedImageError, RefusedRequestError) as error:
            self._fail(image, error)
        except InvalidImageError as error:
            self._try_again(image, TransientError(f"image {image.id}: {error}"))
        except (TransientError, StaleLinkError) as error:
            self._try_again(image, error)

    def _try_again(self, image: _Image, error: TransientError | StaleLinkError) -> None:
        """Queue the image once more, unless it had as much of this kind of trouble as allowed.

        Each kind has its own count: a service that is busy, or a link that ran out, says
        nothing about the image.
        """
        image.troubles[type(error)] += 1
        times = image.troubles[type(error)]
        if times > self._client.num_retries:
            self._fail(image, error)
        elif isinstance(error, StaleLinkError):
            self._without_link.append(image)
        else:
            due = time.monotonic() + self._client.delay(times, error)
            heapq.heappush(self._later, (due, next(self._tickets), image))

    def _fail(self, image: _Image, error: Exception) -> None:
        image.sequence.result.failed[image.id] = str(error)
        self._settle(image)

    def _settle(self, image: _Image, bytes_: int = 0) -> None:
        self._settled(bytes_)
        image.sequence.outstanding -= 1
        self._complete_if_done(image.sequence)

    def _complete_if_done(self, sequence: _Sequence) -> None:
        if sequence.outstanding:
            return
        sequence.result.images = _with_creator(sequence.result.images)
        if any(image.fetched for image in sequence.result.images):
            self._start(self._synced, sequence, self._sync, sequence)
        else:
            self._complete.append(sequence.result)

    def _synced(self, sequence: _Sequence, future: Future[None]) -> None:
        future.result()
        self._complete.append(sequence.result)


def _with_creator(images: list[ImageFile]) -> list[ImageFile]:
    """Return a sequence's images by id, with their creator where one of them tells it.

    A sequence is of one creator (as the layer `sequence` of the tiles has it), whom files that
    are there already, as those of a run that was killed, do not tell.
    """
    creators = {image.creator for image in images if image.creator}
    creator = creators.pop() if len(creators) == 1 else None
    named = (image if image.creator else replace(image, creator=creator) for image in images)
    return sorted(named, key=lambda image: image.id)


def _known_image(record: ImageRecord) -> ImageFile:
    return ImageFile(
        record.id,
        record.bytes,
        record.sha256,
        record.width,
        record.height,
        record.creator,
        fetched=False,
    )


def _image_on_disk(image_id: int, path: Path) -> ImageFile | None:
    """Return the image in a file of unknown origin, None when it is not whole."""
    try:
        info = check_jpeg(path)
    except InvalidImageError as error:
        log.warning("%s: %s; it is fetched anew", path, error)
        return None
    return ImageFile(
        image_id,
        path.stat().st_size,
        sha256_of(path),
        info.width,
        info.height,
        creator=None,
        fetched=False,
    )
