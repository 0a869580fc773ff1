"""What a city has on disk, compared with what is selected for it and with the records."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from vsvi_assets.mapillary.tiles import is_sequence_id
from vsvi_assets.photographs.sidecar import SIDECAR_NAME
from vsvi_assets.photographs.states import Absence, State

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


def compare_with_store(images: Iterable[tuple], seqdir: Path, now: datetime) -> Inventory:
    """Compare selected images, and their records, with the files in the sequences' folders.

    Each folder is listed once; one sequence is in memory at a time. `orphaned` stays empty.

    Parameters
    ----------
    images
        Rows as `SelectedPhotograph` has them, those of a sequence one after the other.
    now
        The time by which images are due, with timezone.
    """
    inventory = Inventory()
    for sequence_id, rows in groupby(images, key=itemgetter(0)):
        _compare_sequence(inventory, seqdir, sequence_id, rows, now)
    return inventory


def sequences_on_disk(seqdir: Path) -> list[str]:
    """Return the names of the folders that may be those of sequences, in order."""
    try:
        with os.scandir(seqdir) as entries:
            return sorted(
                entry.name for entry in entries if is_sequence_id(entry.name) and entry.is_dir()
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def holds_photographs(folder: Path) -> bool:
    """Return whether a folder has a sidecar or files with the names of photographs."""
    return any(name == SIDECAR_NAME or name.endswith(".jpg") for name in file_sizes(str(folder)))


def _compare_sequence(
    inventory: Inventory, seqdir: Path, sequence_id: str, rows: Iterable[tuple], now: datetime
) -> None:
    sizes = file_sizes(f"{seqdir}/{sequence_id}")
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


def file_sizes(folder: str) -> dict[str, int]:
    """Return the sizes of the files in a folder, in bytes; none where it cannot be listed."""
    sizes = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    sizes[entry.name] = entry.stat().st_size
                except OSError:  # renamed or deleted meanwhile, or a link to nothing
                    continue
    except OSError:
        return {}
    return sizes
