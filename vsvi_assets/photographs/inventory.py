"""What a city has on disk, compared with what is selected for it and with the records."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from vsvi_assets.files import DataPath, entries_in, in_store
from vsvi_assets.mapillary.tiles import is_sequence_id
from vsvi_assets.photographs.sidecar import SIDECAR_NAME
from vsvi_assets.photographs.states import Absence, State
from vsvi_assets.store import StoreError, objects_below

_WITH_FILE = frozenset({State.STORED, State.REJECTED})


@dataclass
class Inventory:
    """The selected images of a city, by what became of them.

    Attributes
    ----------
    selected
        Number of selected images.
    on_disk
        Number of selected images on disk, as long as their record says.
    bytes
        The room these take.
    missing
        Selected images that the next run downloads, by sequence.
    unread
        Missing images of which there is a file that no record describes, as
        percept-vsvi-filter leaves them. The next run reads it, and downloads the image where
        the file is not whole.
    failed
        Why missing images were not stored at the last attempt, by id.
    not_answered
        Selected images that Mapillary's answers left out, not for long enough to believe it.
    due
        Those of them that the next run asks for again, by sequence.
    unavailable
        Selected images that Mapillary does not have any more.
    refused
        Why selected images cannot be used, by id.
    rejected
        Selected images on disk that are not good enough for the city file; the next selection
        has others in their place.
    unmeasured
        Selected images on disk whose quality the next run measures, by sequence.
    orphaned
        Sequences on disk of which no image is selected any more; they are kept.
    """

    selected: int = 0
    on_disk: int = 0
    bytes: int = 0
    missing: dict[str, list[int]] = field(default_factory=dict)
    unread: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    not_answered: dict[int, Absence] = field(default_factory=dict)
    due: dict[str, list[int]] = field(default_factory=dict)
    unavailable: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    rejected: list[int] = field(default_factory=list)
    unmeasured: dict[str, list[int]] = field(default_factory=dict)
    orphaned: list[str] = field(default_factory=list)

    @property
    def without_file(self) -> int:
        """Number of selected images that have no file, whatever the reason."""
        return self.selected - self.on_disk - len(self.rejected) - len(self.unread)

    @property
    def pending_sequences(self) -> set[str]:
        """The sequences that the next run has something to do in."""
        return {*self.missing, *self.due, *self.unmeasured}

    @property
    def pending_images(self) -> int:
        """Number of images that the next run reads, downloads or asks for."""
        pending = (self.missing, self.due, self.unmeasured)
        return sum(len(ids) for by_sequence in pending for ids in by_sequence.values())


class SelectedPhotograph(NamedTuple):
    """A selected image, and what its record says; None where there is no record.

    All are as in `Photograph`; `to_measure` says whether its quality is asked for and unknown.
    """

    sequence_id: str
    image_id: int
    state: str | None
    bytes: int | None
    reason: str | None
    first_asked: datetime | None
    last_asked: datetime | None
    answers: int | None
    to_measure: bool | None


def compare_with_store(
    images: Iterable[tuple], seqdir: DataPath, now: datetime, *, all_of_them: bool
) -> Inventory:
    """Compare selected images, and their records, with the files in the sequences' folders.

    Each folder is listed once; one sequence is in memory at a time.

    Parameters
    ----------
    images
        Rows as `SelectedPhotograph` has them, ordered by the bytes of their sequence ids.
    now
        The time by which images are due, with timezone.
    all_of_them
        Whether the images are all that are selected, so that other sequences are orphaned. An
        object store is then listed as a whole, by a request for each 1,000 objects.

    Raises
    ------
    StoreError, StoreRefusedError
        When an object store cannot be listed.
    """
    inventory = Inventory()
    folders = SequenceFolders(seqdir, all_of_them=all_of_them)
    for sequence_id, rows in groupby(images, key=itemgetter(0)):
        _compare_sequence(inventory, folders.sizes(sequence_id), sequence_id, rows, now)
    if all_of_them:
        inventory.orphaned = sorted(folders.others())
    return inventory


class SequenceFolders:
    """The sizes of the files in sequences' folders, asked for in the order of their names.

    Parameters
    ----------
    seqdir
        Holds the folders.
    all_of_them
        Whether nearly all folders will be asked for, so that an object store is listed as a whole.
    """

    def __init__(self, seqdir: DataPath, *, all_of_them: bool) -> None:
        self._seqdir = seqdir
        self._listed = _listed_folders(seqdir) if all_of_them else None
        self._ahead: dict[str, Mapping[str, int]] = {}
        self._others: list[str] = []

    def sizes(self, sequence_id: str) -> Mapping[str, int]:
        """Return the size of each file of a sequence in bytes, by name."""
        if self._listed is None:
            return file_sizes(self._seqdir / sequence_id)
        while sequence_id not in self._ahead:
            name, sizes = next(self._listed, (None, {}))
            if name is None:
                break
            self._ahead[name] = sizes
            if _is_behind(sequence_id, name):
                break
        found = self._ahead.pop(sequence_id, {})
        passed = [name for name in self._ahead if _is_behind(name, sequence_id)]
        self._set_aside(passed)
        return found

    def others(self) -> list[str]:
        """Return the sequences that hold photographs, and were not asked for."""
        self._set_aside(list(self._ahead))
        for name, sizes in self._listed or ():
            self._ahead[name] = sizes
            self._set_aside([name])
        return self._others

    def _set_aside(self, names: Iterable[str]) -> None:
        for name in names:
            sizes = self._ahead.pop(name)
            if any(file == SIDECAR_NAME or file.endswith(".jpg") for file in sizes):
                self._others.append(name)


def _is_behind(name: str, other: str) -> bool:
    """Return whether a folder comes before another one wherever folders are listed.

    S3 orders the keys, so that "a-b/" comes before "a/"; servers that keep folders, as SeaweedFS,
    order these, so that "a" comes before "a-b".
    """
    return name < other and f"{name}/" < f"{other}/"


def _listed_folders(seqdir: DataPath) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Yield the names of all folders that may be those of sequences, and their files' sizes."""
    if not in_store(seqdir):
        for name in sequences_on_disk(seqdir):
            yield name, file_sizes(seqdir / name)
        return
    found = ((key.partition("/"), size) for key, size in objects_below(seqdir))
    for name, objects in groupby(found, key=lambda each: each[0][0]):
        if is_sequence_id(name):
            yield name, {key[2]: size for key, size in objects if key[2]}


def sequences_on_disk(seqdir: DataPath) -> list[str]:
    """Return the names of the folders that may be those of sequences, in order."""
    try:
        return sorted(
            name
            for name, entry in entries_in(seqdir).items()
            if is_sequence_id(name) and entry.is_dir()
        )
    except (FileNotFoundError, NotADirectoryError):
        return []


def _compare_sequence(
    inventory: Inventory,
    sizes: Mapping[str, int],
    sequence_id: str,
    rows: Iterable[tuple],
    now: datetime,
) -> None:
    missing, due, unmeasured = [], [], []
    for row in rows:
        inventory.selected += 1
        size = sizes.get(f"{row[1]}.jpg")
        if size is not None and row[2] in _WITH_FILE and row[3] == size:
            if row[2] == State.REJECTED:
                inventory.rejected.append(row[1])
                continue
            inventory.on_disk += 1
            inventory.bytes += size
            if row[8]:
                unmeasured.append(row[1])
            continue
        image = SelectedPhotograph(*row)
        if size and image.state != State.FAILED:
            missing.append(image.image_id)
            inventory.unread.append(image.image_id)
        elif image.state == State.UNAVAILABLE:
            inventory.unavailable.append(image.image_id)
        elif image.state == State.NOT_ANSWERED:
            assert image.first_asked
            assert image.last_asked
            absence = Absence(image.first_asked, image.last_asked, image.answers or 1)
            inventory.not_answered[image.image_id] = absence
            if absence.is_due(now):
                due.append(image.image_id)
        elif image.state == State.REFUSED:
            inventory.refused[image.image_id] = image.reason or ""
        else:
            missing.append(image.image_id)
            if image.state == State.FAILED:
                inventory.failed[image.image_id] = image.reason or ""
    if missing:
        inventory.missing[sequence_id] = missing
    if due:
        inventory.due[sequence_id] = due
    if unmeasured:
        inventory.unmeasured[sequence_id] = unmeasured


def file_sizes(folder: DataPath) -> dict[str, int]:
    """Return the sizes of the files in a folder, in bytes; none where it cannot be listed.

    Raises
    ------
    StoreError, StoreRefusedError
        When an object store cannot be listed.
    """
    sizes = {}
    try:
        entries = entries_in(folder)
    except StoreError:
        raise
    except OSError:
        return {}
    for name, entry in entries.items():
        try:
            sizes[name] = entry.stat().st_size
        except OSError:  # renamed or deleted meanwhile, or a link to nothing
            continue
    return sizes
