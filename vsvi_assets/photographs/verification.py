"""Are the photographs as they were downloaded? Read byte by byte, compared with the sidecars."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from vsvi_assets.files import PART_SUFFIX, DataPath, Entry, each_in_turn, entries_in
from vsvi_assets.photographs.errors import InvalidSidecarError
from vsvi_assets.photographs.inventory import sequences_on_disk
from vsvi_assets.photographs.sidecar import SIDECAR_NAME, image_path, read_sidecar, sha256_of
from vsvi_assets.store import StoreError

_PHOTOGRAPH = re.compile(r"[0-9]+\.jpg")
_OF_FILE_MANAGERS = re.compile(r"[.@#$~].*|Thumbs\.db|ehthumbs\.db|desktop\.ini", re.IGNORECASE)
"""Names that file managers, desktops and NAS use: .DS_Store, Thumbs.db, @eaDir, .nfs0000…"""


@dataclass
class Verification:
    """What was found in the folders of a city's sequences.

    Attributes
    ----------
    photographs
        How many were read and are as they were downloaded.
    differences
        What is not as it was downloaded, a line each.
    unlisted
        Photographs and unfinished downloads that no sidecar lists, as `<sequence>/<file>`.
    others
        How many files of other programs there are, by ending.
    """

    photographs: int = 0
    differences: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Verification") -> None:
        """Add what was found in another folder."""
        self.photographs += other.photographs
        self.differences += other.differences
        self.unlisted += other.unlisted
        self.others += other.others


def verify_photographs(seqdir: DataPath) -> Verification:
    """Read every photograph below `seqdir` that a sidecar lists, and compare its SHA-256.

    Raises
    ------
    StoreError, StoreRefusedError
        When an object store does not give what it has.
    """
    found = Verification()
    sequence_ids = sequences_on_disk(seqdir)
    for part in each_in_turn(seqdir, lambda name: _verify_folder(seqdir / name), sequence_ids):
        found.add(part)
    return found


def _verify_folder(folder: DataPath) -> Verification:
    found = Verification()
    try:
        _verify_photographs(found, folder)
    except InvalidSidecarError as error:
        found.differences.append(str(error))
    except StoreError:
        raise
    except OSError as error:
        found.differences.append(f"{folder.name}: cannot be read ({error.strerror})")
    return found


def _verify_photographs(found: Verification, folder: DataPath) -> None:
    listed, entries = read_sidecar(folder).images, entries_in(folder)
    for image in listed.values():
        path = image_path(folder, image.id)
        if wrong := _difference(path, entries.get(path.name), image.bytes, image.sha256):
            found.differences.append(f"{folder.name}/{path.name}: {wrong}")
        else:
            found.photographs += 1
    known = {SIDECAR_NAME, *(image_path(folder, image_id).name for image_id in listed)}
    for name in sorted(entries):
        if name in known:
            continue
        if _PHOTOGRAPH.fullmatch(name) or name.endswith(PART_SUFFIX):
            found.unlisted.append(f"{folder.name}/{name}")
        elif not _OF_FILE_MANAGERS.fullmatch(name):
            found.others[Path(name).suffix or name] += 1


def _difference(path: DataPath, entry: Entry | None, bytes_: int, sha256: str) -> str | None:
    """Return in what a file differs from its record; None where it does not."""
    if entry is None:
        return "missing"
    try:
        size = entry.stat().st_size
        if size != bytes_:
            return f"{size:,} bytes instead of {bytes_:,}"
        if sha256_of(path) != sha256:
            return "other bytes than were downloaded"
    except FileNotFoundError:
        return "missing"
    except StoreError:
        raise
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
