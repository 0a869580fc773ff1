"""Images on disk: many sequences at once, each image whole or not there.

One pool of threads serves all sequences. What has to wait (for a retry, for a fresh link)
waits in a queue and not in a thread. Links are asked for in full batches across sequences,
while other images are being fetched, and are used within seconds.

An image that an answer leaves out is asked for once more, at the end, together with one that
the service knows. What both answers leave out is absent, and gone only after many hours (see
`states`). An answer without the known image too, or many absent images, are an outage: the
images then count as failed, and nothing is recorded against them.
"""

import errno
import hashlib
import heapq
import itertools
import logging
import mmap
import stat
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import Any

from vsvi_assets.files import (
    PART_SUFFIX,
    DataPath,
    DiskGuard,
    Entry,
    atomic_write,
    content_of,
    entries_in,
    is_writable,
    mapped,
    remove_abandoned_parts,
    sync_folder,
    writing_in,
)
from vsvi_assets.mapillary.client import IMAGES_PER_REQUEST, ImageLink, ImageSize, Links, Mapillary
from vsvi_assets.mapillary.errors import (
    RefusedRequestError,
    StaleLinkError,
    StoppedError,
    TransientError,
    UnavailableError,
)
from vsvi_assets.photographs.errors import (
    InvalidImageError,
    OtherFormatError,
    OversizedImageError,
    UnusableFolderError,
)
from vsvi_assets.photographs.jpeg import MAX_BYTES, MAX_PIXELS, JpegInfo, check_jpeg
from vsvi_assets.photographs.quality import Quality, measure_quality
from vsvi_assets.photographs.sidecar import (
    SERVICES_WITHOUT_MARK,
    SIDECAR_NAME,
    Description,
    ImageRecord,
    Sidecar,
    image_name,
    image_path,
    known_images,
    sequence_folder,
    with_creator,
    write_sidecar,
)
from vsvi_assets.photographs.states import Absence, Refusal
from vsvi_assets.threads import interruptible_workers

log = logging.getLogger(__name__)

MAX_INSPECTING = 8
"""Folders that are looked into at a time. That is mostly Python, so more threads are slower."""

MAX_WITNESSES = 5
"""Known images that are asked for together with those that an answer left out."""

MIN_ASKED, MAX_ABSENT_SHARE = 100, 0.05
"""More absent images than this share, of at least so many, are an outage of the service."""

RETRIES_AFTER_NOT_FOUND = 2
"""How often an image is asked for again that the image server does not find."""


@dataclass(frozen=True)
class SequenceJob:
    """The images that are wanted of a sequence, as its tiles describe them."""

    sequence_id: str
    images: Sequence[Description]


@dataclass
class SequenceResult:
    """What became of the images that were wanted of a sequence.

    Attributes
    ----------
    found
        What is now known of the wanted images.
    sidecar
        What is now known of all images of the sequence.
    fetched_images, fetched_bytes
        What was fetched just now.
    may_pass
        Whether what failed may succeed minutes later, with nothing changed.
    """

    sequence_id: str
    found: Sidecar = field(default_factory=Sidecar)
    sidecar: Sidecar = field(default_factory=Sidecar)
    fetched_images: int = 0
    fetched_bytes: int = 0
    may_pass: bool = True


@dataclass(eq=False)
class _Sequence:
    job: SequenceJob
    folder: DataPath
    result: SequenceResult
    known: Sidecar = field(default_factory=Sidecar)
    is_new: bool = False
    outstanding: int = 0


@dataclass(eq=False, slots=True)
class _Image:
    """An image that is asked for; `before` is what earlier runs got in place of an answer."""

    sequence: _Sequence
    description: Description
    before: Absence | None
    link: ImageLink | None = None
    was_asked: bool = False
    troubles: Counter[type[Exception]] = field(default_factory=Counter)

    @property
    def id(self) -> int:
        return self.description.id


def utc_now() -> datetime:
    """Return the time of day in UTC, to the millisecond."""
    return _to_the_millisecond(datetime.now(UTC))


def download_sequences(
    client: Mapillary,
    sequences: Iterable[SequenceJob],
    seqdir: DataPath,
    *,
    size: ImageSize,
    services: str,
    guard: DiskGuard,
    workers: int = 64,
    fetched_before: datetime | None = None,
    asked_before: datetime | None = None,
    witnesses: Sequence[int] = (),
    measures_quality: bool = False,
    settled: Callable[[int], object] = lambda bytes_: None,
    now: Callable[[], datetime] = utc_now,
) -> Generator[SequenceResult, None, None]:
    """Download images to `<seqdir>/<sequence_id>/<image_id>.jpg`, with a sidecar beside them.

    Yields each sequence as soon as it is complete, in any order; those with an image that the
    service left out come last. Jobs are taken as they are needed, so memory does not grow with
    their number. Images already there and whole are neither asked for nor fetched: those that
    the sequence's sidecar lists are known by their size, others are read once. Closing the
    iterator stops everything.

    Parameters
    ----------
    size
        Which thumbnail: "original", or 2048, 1024 or 256 pixels wide.
    services
        The name of the services that the client asks. Folders of other services are not
        touched: all their images count as failed.
    guard
        Checked as bytes arrive.
    workers
        How many images are fetched at a time.
    fetched_before
        Fetch again what was fetched before this time; a file is replaced only by a whole new
        one. None: keep whatever is whole.
    asked_before
        Ask again for unavailable and refused images that were last asked for before this time.
    witnesses
        Images that the service knows, such as the latest in store. Without any, and where it
        answers nothing in this call, an image that it leaves out counts as failed.
    measures_quality
        Measure each photograph as it comes, and those in store that are not measured yet, of
        which a file that cannot be decoded is fetched again.
    settled
        Called for each image that the sidecar did not list or that was measured: with its bytes
        where it was fetched, with 0 where it was there already or is given up.
    now
        Returns the time, with timezone.

    Raises
    ------
    RefusedTokenError, DiskFullError
        At once; nothing half is left behind. An image that is not available stops nothing: it
        is listed in its sequence's result.
    """
    with interruptible_workers(workers) as (pool, stop):
        downloads = _Downloads(
            client,
            seqdir,
            pool,
            stop,
            size=size,
            services=services,
            guard=guard,
            workers=workers,
            fetched_before=fetched_before,
            asked_before=asked_before,
            witnesses=witnesses,
            measures_quality=measures_quality,
            settled=settled,
            now=now,
        )
        yield from downloads.run(iter(sequences))


@dataclass(eq=False)
class _Downloads:
    """The queues between the steps of an image: inspected, link asked for, fetched.

    All of it runs in the thread that iterates, but for the tasks given to the pool.
    """

    client: Mapillary
    seqdir: DataPath
    pool: Executor
    stop: threading.Event
    size: ImageSize
    services: str
    guard: DiskGuard
    workers: int
    fetched_before: datetime | None
    asked_before: datetime | None
    witnesses: Sequence[int]
    measures_quality: bool
    settled: Callable[[int], object]
    now: Callable[[], datetime]

    def __post_init__(self) -> None:
        self.witnesses = list(self.witnesses[:MAX_WITNESSES])
        self._max_running = 2 * self.workers
        self._max_queued = 4 * self.workers + 2 * IMAGES_PER_REQUEST
        self._max_retrying = 16 * self.workers
        self._finished: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._running = self._inspecting = self._asking = 0
        self._jobs: Iterator[SequenceJob] | None = None
        self._without_link: deque[_Image] = deque()
        self._with_link: deque[_Image] = deque()
        self._left_out: deque[_Image] = deque()
        self._absent: list[_Image] = []
        self._asked = 0
        self._later: list[tuple[float, int, _Image]] = []
        self._tickets = itertools.count()
        self._complete: list[SequenceResult] = []

    def run(self, jobs: Iterator[SequenceJob]) -> Iterator[SequenceResult]:
        self._jobs = jobs
        while True:
            while self._running < self._max_running and self._start_next():
                pass
            if not self._running and not self._later:
                if not self._absent:
                    return
                self._judge_absent_images()
                continue
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
            (self._with_link if image.link else self._without_link).appendleft(image)
        elif len(self._without_link) >= IMAGES_PER_REQUEST:
            self._ask_for_links()
        elif self._with_link:
            image = self._with_link.popleft()
            self._start(self._fetched, image, self._fetch, image)
        elif self._jobs and self._has_room() and self._inspecting < MAX_INSPECTING:
            job = next(self._jobs, None)
            if job is None:
                self._jobs = None
                return True
            folder = sequence_folder(self.seqdir, job.sequence_id)
            sequence = _Sequence(job, folder, SequenceResult(job.sequence_id))
            self._inspecting += 1
            self._start(self._inspected, sequence, self._inspect, sequence)
        elif self._jobs or self._inspecting:
            return False
        elif self._without_link:
            self._ask_for_links()
        elif self._left_out and not self._asking:
            self._ask_again()
        else:
            return False
        return True

    def _ask_for_links(self) -> None:
        count = min(IMAGES_PER_REQUEST, len(self._without_link))
        batch = [self._without_link.popleft() for _ in range(count)]
        self._asking += 1
        self._start_links(self._linked, batch, [image.id for image in batch])

    def _ask_again(self) -> None:
        """Ask once more for images that an answer left out, together with some it knows."""
        if not self.witnesses:
            while self._left_out:
                self._fail(self._left_out.popleft(), _OUTAGE)
            return
        count = min(IMAGES_PER_REQUEST - len(self.witnesses), len(self._left_out))
        batch = [self._left_out.popleft() for _ in range(count)]
        asked_for = (batch, self.witnesses)
        ids = [*(image.id for image in batch), *self.witnesses]
        self._start_links(self._linked_again, asked_for, ids)

    def _start_links(
        self, take_result: Callable[[Any, Future[Links]], None], subject: Any, ids: list[int]
    ) -> None:
        ids = list(dict.fromkeys(ids))
        self._start(take_result, subject, self.client.image_links, ids, self.size, self.stop)

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

        future = self.pool.submit(task, *arguments)
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

    def _inspect(self, sequence: _Sequence) -> tuple[list[_Image], int]:
        """Add what is known of the images to the sequence's result.

        Returns the images to ask for, and how many files were read. Raises UnusableFolderError when
        nothing can be done in the folder.
        """
        try:
            with writing_in(sequence.folder):
                return self._look_into(sequence)
        except OSError as error:
            raise UnusableFolderError(_message(sequence.folder, error), error) from error

    def _look_into(self, sequence: _Sequence) -> tuple[list[_Image], int]:
        folder, found = sequence.folder, sequence.result.found
        sequence.is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        files = entries_in(folder)
        if any(name.endswith(PART_SUFFIX) for name in files):
            remove_abandoned_parts(folder)
        known = sequence.known = known_images(folder)
        self._check_services(folder, known, files)
        wanted, read = [], 0
        for description in {image.id: image for image in sequence.job.images}.values():
            if self.stop.is_set():
                raise StoppedError(f"sequence {sequence.job.sequence_id}: stopped")
            image_id = description.id
            record, is_old = None, True
            if entry := files.get(image_name(image_id)):
                path = image_path(folder, image_id)
                try:
                    record, is_old = self._in_store(
                        path, entry, known.images.get(image_id), description
                    )
                except (OSError, OversizedImageError) as error:
                    found.failed[image_id] = _printable(_message(path, error))
                    continue
                before = known.images.get(image_id)
                read += record is not None and (not before or before.quality != record.quality)
            if record:
                found.images[image_id] = record
            absence, refusal = known.absent.get(image_id), known.refused.get(image_id)
            if record and not is_old:
                continue
            if refusal and not self._is_to_be_repeated(refusal.asked):
                found.refused[image_id] = refusal
            elif absence and not (
                absence.is_due(self.now()) or self._is_to_be_repeated(absence.last_asked)
            ):
                found.absent[image_id] = absence
            else:
                wanted.append(_Image(sequence, description, absence))
        if wanted and not is_writable(folder):
            raise PermissionError(errno.EACCES, "no permission to write")
        if wanted and SIDECAR_NAME not in files:
            # From the first photograph on the folder says where it is from.
            self.guard.check()
            write_sidecar(folder, Sidecar(services=self.services))
        return wanted, read

    def _in_store(
        self,
        path: DataPath,
        entry: Entry,
        record: ImageRecord | None,
        description: Description,
    ) -> tuple[ImageRecord | None, bool]:
        """Return the image in a file, None when it is not whole; and whether to fetch it again."""
        try:
            status = entry.stat()
        except FileNotFoundError:
            if path.is_symlink():
                raise
            return None, True
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        written = _moment(status.st_mtime)
        if record and record.bytes == status.st_size:
            is_old = _is_before(record.stored_at or written, self.fetched_before)
            record = replace(record, **_place(description))
            if record.quality or is_old or not self.measures_quality:
                return record, is_old
            read = self._read_image(path, description, written)
            return read and replace(record, quality=read.quality), False
        if _is_before(written, self.fetched_before):
            return None, True
        return self._read_image(path, description, written), False

    def _check_services(self, folder: DataPath, known: Sidecar, names: Iterable[str]) -> None:
        services = known.services
        if services is None and any(name.endswith((".jpg", SIDECAR_NAME)) for name in names):
            services = SERVICES_WITHOUT_MARK
        if services not in (None, self.services):
            raise UnusableFolderError(
                f"{folder} holds photographs of the services {services!r}, and the city file says "
                f"{self.services!r}. They are left as they are: give the city a seqdir of its "
                "own, or move that folder away."
            )

    def _is_to_be_repeated(self, asked: datetime) -> bool:
        return _is_before(asked, self.fetched_before) or _is_before(asked, self.asked_before)

    def _fetch(self, image: _Image) -> ImageRecord:
        """Fetch an image once to its place."""
        assert image.link
        digest, size = hashlib.sha256(), 0
        chunks = self.client.image_chunks(image.link, self.stop)
        # A thread that waits for a silent server may be left behind: it has no file open.
        first = next(chunks, b"")
        with atomic_write(image_path(image.sequence.folder, image.id)) as file:
            for chunk in itertools.chain([first], chunks):
                self.guard.check()
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                if size > MAX_BYTES:
                    raise OversizedImageError(f"more than {MAX_BYTES:,} bytes")
            file.flush()
            with mapped(file) as fetched:
                info = check_jpeg(fetched)
                if info.is_oversized:
                    raise OversizedImageError(
                        f"{info.width} x {info.height} pixels, more than {MAX_PIXELS:,}"
                    )
                quality = self._quality(fetched, info)
        return ImageRecord(
            **_place(image.description),
            creator=_printable(image.link.creator or "") or None,
            width=info.width,
            height=info.height,
            bytes=size,
            sha256=digest.hexdigest(),
            image_size=self.size,
            stored_at=self.now(),
            quality=quality,
        )

    def _read_image(
        self, path: DataPath, description: Description, written: datetime
    ) -> ImageRecord | None:
        """Return the image in a file of unknown origin, None when it is not whole."""
        try:
            with content_of(path) as image:
                info = check_jpeg(image)
                return ImageRecord(
                    **_place(description),
                    creator=None,
                    width=info.width,
                    height=info.height,
                    bytes=len(image),
                    sha256=hashlib.sha256(image).hexdigest(),
                    stored_at=written,
                    quality=self._quality(image, info),
                )
        except OversizedImageError:
            raise
        except InvalidImageError as error:
            log.warning("%s: %s; it is fetched again", path, error)
            return None

    def _quality(self, image: bytes | mmap.mmap, info: JpegInfo) -> Quality | None:
        if info.is_oversized or not self.measures_quality:
            return None
        return measure_quality(image, info)

    def _finish(self, sequence: _Sequence) -> None:
        """Write what became of the sequence into its sidecar."""
        result = sequence.result
        result.found.services = self.services
        result.found.images = with_creator(result.found.images)
        result.sidecar = sequence.known.updated(result.found)
        try:
            with writing_in(sequence.folder):
                if result.sidecar != sequence.known:
                    write_sidecar(sequence.folder, result.sidecar)
                if result.fetched_images:
                    sync_folder(sequence.folder)
                if sequence.is_new:
                    sync_folder(self.seqdir)
        except OSError as error:
            self._fail_all(sequence, _message(sequence.folder / SIDECAR_NAME, error))

    # Their results, in the thread that iterates

    def _inspected(self, sequence: _Sequence, future: Future[tuple[list[_Image], int]]) -> None:
        self._inspecting -= 1
        try:
            wanted, adopted = future.result()
        except UnusableFolderError as error:
            sequence.result.may_pass = error.may_pass
            self._fail_all(sequence, str(error))
            self._complete.append(sequence.result)
            return
        for _ in range(adopted):
            self.settled(0)
        sequence.outstanding = len(wanted)
        self._without_link.extend(wanted)
        self._finish_if_done(sequence)

    def _linked(self, batch: list[_Image], future: Future[Links]) -> None:
        self._asking -= 1
        links = self._take_links(batch, future)
        if links is None:
            return
        for image in batch:
            self._asked += not image.was_asked and image.before is None
            image.was_asked = True
            if image.id in links.absent:
                self._left_out.append(image)
        # Those that the service has just answered are the best.
        self.witnesses = [*links.found][:MAX_WITNESSES] or self.witnesses

    def _linked_again(
        self, asked_for: tuple[list[_Image], list[int]], future: Future[Links]
    ) -> None:
        batch, witnesses = asked_for
        links = self._take_links(batch, future)
        if links is None:
            return
        is_known = not links.found.keys().isdisjoint(witnesses)
        for image in batch:
            if image.id in links.absent and is_known:
                self._absent.append(image)
            elif image.id in links.absent:
                self._fail(image, _OUTAGE)

    def _take_links(self, batch: list[_Image], future: Future[Links]) -> Links | None:
        """Queue the images whose link came; None where the request failed as a whole."""
        try:
            links = future.result()
        except (TransientError, RefusedRequestError) as error:
            for image in batch:
                self._fail(image, str(error))
            return None
        for image in batch:
            image.link = links.found.get(image.id)
            if image.link:
                self._with_link.append(image)
            elif image.id in links.failed:
                self._fail(image, str(links.failed[image.id]))
        return links

    def _fetched(self, image: _Image, future: Future[ImageRecord]) -> None:
        result = image.sequence.result
        try:
            record = future.result()
        except UnavailableError:
            image.troubles[UnavailableError] += 1
            if image.troubles[UnavailableError] > RETRIES_AFTER_NOT_FOUND:
                self._absent.append(image)
            else:
                self._put_off(image, TransientError("not found"), UnavailableError)
                image.link = None
        except (OversizedImageError, OtherFormatError) as error:
            result.found.refused[image.id] = Refusal(_printable(str(error)), self.now())
            self._settle(image)
        except RefusedRequestError as error:
            self._fail(image, str(error))
        except OSError as error:
            self._fail(image, _message(image_path(image.sequence.folder, image.id), error))
        except InvalidImageError as error:
            self._try_again(image, TransientError(f"image {image.id}: {error}"))
        except (TransientError, StaleLinkError) as error:
            self._try_again(image, error)
        else:
            result.found.images[image.id] = record
            result.fetched_images += 1
            result.fetched_bytes += record.bytes
            self._settle(image, record.bytes)

    def _try_again(self, image: _Image, error: TransientError | StaleLinkError) -> None:
        """Queue the image once more, unless it had as much of this kind of trouble as allowed.

        Each kind has its own count: a service that is busy, or a link that ran out, says
        nothing about the image.
        """
        image.troubles[type(error)] += 1
        if image.troubles[type(error)] > self.client.num_retries:
            self._fail(image, str(error))
        elif isinstance(error, StaleLinkError):
            image.link = None
            self._without_link.append(image)
        else:
            self._put_off(image, error, type(error))

    def _put_off(self, image: _Image, error: TransientError, trouble: type[Exception]) -> None:
        due = time.monotonic() + self.client.delay(image.troubles[trouble], error)
        heapq.heappush(self._later, (due, next(self._tickets), image))

    def _judge_absent_images(self) -> None:
        """Record the absent images, unless there are so many that it is an outage."""
        absent, self._absent = self._absent, []
        new = sum(image.before is None for image in absent)
        is_outage = self._asked >= MIN_ASKED and new > MAX_ABSENT_SHARE * self._asked
        now = self.now()
        for image in absent:
            if is_outage:
                self._fail(
                    image,
                    f"{new:,} of {self._asked:,} images are not available, which is taken for an "
                    "outage of the service and not recorded: run it again later. Where that does "
                    "not help, the tiles are out of date: fetch them again with --overwrite.",
                )
                continue
            found = image.sequence.result.found
            if image.id not in found.images:
                found.absent[image.id] = (
                    image.before.repeated(now) if image.before else Absence(now, now)
                )
            self._settle(image)

    def _fail(self, image: _Image, reason: str) -> None:
        found = image.sequence.result.found
        # Not with its id, by which no two images would have the same reason.
        found.failed[image.id] = _printable(reason.removeprefix(f"image {image.id}: "))
        if image.before and not image.link:
            found.absent[image.id] = image.before
        self._settle(image)

    def _fail_all(self, sequence: _Sequence, reason: str) -> None:
        found = sequence.result.found
        found.failed |= {image.id: _printable(reason) for image in sequence.job.images}
        sequence.result.sidecar = found

    def _settle(self, image: _Image, bytes_: int = 0) -> None:
        self.settled(bytes_)
        image.sequence.outstanding -= 1
        self._finish_if_done(image.sequence)

    def _finish_if_done(self, sequence: _Sequence) -> None:
        if not sequence.outstanding:
            self._start(self._synced, sequence, self._finish, sequence)

    def _synced(self, sequence: _Sequence, future: Future[None]) -> None:
        future.result()
        self._complete.append(sequence.result)


_OUTAGE = (
    "the Graph API leaves it out of its answers, and images that it knows as well, which is "
    "taken for an outage and not recorded: run it again later"
)


def _place(description: Description) -> dict[str, Any]:
    """Return what the tiles say of an image, as an `ImageRecord` has it."""
    return {
        "id": description.id,
        "lon": description.lon,
        "lat": description.lat,
        "captured_at": description.captured_at,
        "compass_angle": description.compass_angle,
        "is_pano": description.is_pano,
    }


def _message(path: DataPath, error: Exception) -> str:
    """Return what is wrong with a file or a folder."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which is not there: mount that disk"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{path}: {reason}"


def _moment(seconds: float) -> datetime:
    """Return the time of a file's last change; of one that no calendar has the earliest."""
    try:
        return _to_the_millisecond(datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def _to_the_millisecond(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _is_before(moment: datetime, limit: datetime | None) -> bool:
    return limit is not None and moment < limit


def _printable(text: str) -> str:
    """Return a text without the characters that JSON or PostgreSQL cannot hold."""
    return "".join(filter(str.isprintable, text))
