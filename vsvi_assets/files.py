"""Files that are either whole or absent, text from any editor, and the room that must stay free."""

import codecs
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PART_SUFFIX = ".part"


class DiskFullError(Exception):
    """The disk has less free room than must stay free.

    `required` is None where a write found no room, whatever was to stay free.
    """

    def __init__(self, path: Path, free: int, required: int | None = None) -> None:
        wanted = "more" if required is None else f"{required / 1e9:.3f} GB"
        super().__init__(
            f"{path}: {free / 1e9:.3f} GB free, {wanted} required. "
            "Make room, or lower required_disk_space in the city file, and run again: "
            "what is on disk is kept."
        )
        self.path, self.free, self.required = path, free, required


class TextFileError(ValueError):
    """A text file that cannot be read; the message names it and says what to do."""


def read_text(path: Path) -> str:
    """Read a text file: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Windows' editors write either mark, and PowerShell's `>` writes UTF-16.

    Raises
    ------
    TextFileError
        When the file cannot be opened, or is in another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TextFileError(f"{path} cannot be read: {error.strerror}.") from error
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "UTF-16" if is_utf16 else "UTF-8"
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextFileError(
            f"{path} is not in {encoding}: byte {error.start + 1:,} is {data[error.start]:#04x}. "
            "Save it as UTF-8."
        ) from error


def gigabytes(bytes_: int) -> str:
    """Return a number of bytes with its unit, at most GB or TB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if bytes_ >= limit:
            return f"{bytes_ / limit:,.1f} {unit}"
    return f"{bytes_ / 1e3:,.1f} kB"


@dataclass(frozen=True)
class DiskGuard:
    """Keeps `required` bytes free on the disk that holds `folder`."""

    folder: Path
    required: int

    def check(self) -> None:
        """Raise `DiskFullError` when less than `required` bytes are free."""
        free = shutil.disk_usage(self.folder).free
        if free < self.required:
            raise DiskFullError(self.folder, free, self.required)


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Raise `DiskFullError` where a write in `folder` finds no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(folder, shutil.disk_usage(folder).free) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that appears under `path` whole, or not at all.

    The bytes go to a temporary name in the same folder, are synced to the disk and then
    renamed, so neither a crash nor a power cut leaves half a file under `path`. The
    temporary file is locked for as long as it is written, by which
    `remove_abandoned_parts` knows a live one.

    Raises
    ------
    DiskFullError
        When the disk runs full meanwhile.
    """
    part = path.with_name(f".{path.name[:80]}.{secrets.token_hex(6)}{PART_SUFFIX}")
    try:
        with writing_in(path.parent), _locked(part) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _locked(part: Path) -> BinaryIO:
    """Make a file and lock it; another process may take it for abandoned in between."""
    while True:
        file = part.open("x+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut (fsync of the directory)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned_parts(folder: Path) -> int:
    """Delete temporary files in `folder` that no process writes any more; return how many.

    Those of other users, and those that disappear meanwhile, are left alone.
    """
    removed = 0
    for part in folder.glob(f".*{PART_SUFFIX}"):
        try:
            with part.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
        except (BlockingIOError, FileNotFoundError, PermissionError):
            continue
        removed += 1
    return removed


def update_lines(path: Path, *, added: Iterable[str], removed: Iterable[str]) -> None:
    """Add lines to a sorted text file and remove others, in one step for all processes.

    The file is made where it is missing and there is something to add.
    """
    added, removed = set(added), set(removed)
    if not added and not path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = path.read_text().split() if path.exists() else None
        lines = sorted({*(before or ())} - removed | added)
        if lines != before:
            with atomic_write(path) as file:
                file.writelines(f"{line}\n".encode() for line in lines)
