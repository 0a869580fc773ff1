"""Files that are either whole or absent, text from any editor, and the room that must stay free.

A path in the data folder is a `pathlib.Path`, or a `UPath` where the data folder is an object store
(see `vsvi_assets.store`). What differs between the two is here; all else is the same for both.
"""

import codecs
import errno
import fcntl
import mmap
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from vsvi_assets import store
from vsvi_assets.store import DataPath, in_store

STORE_READERS = 16
"""Objects that are read at a time where many are."""

Item = TypeVar("Item")
Result = TypeVar("Result")

PART_SUFFIX = ".part"
NO_LIMIT = "object store: no limit known"


class DiskFullError(Exception):
    """The disk has less free room than must stay free.

    `required` is None where a write found no room, whatever was to stay free.
    """

    def __init__(self, path: DataPath, free: int, required: int | None = None) -> None:
        wanted = "more" if required is None else f"{required / 1e9:.3f} GB"
        super().__init__(
            f"{path}: {free / 1e9:.3f} GB free, {wanted} required. "
            "Make room, or lower required_disk_space in the city file, and run again: "
            "what is on disk is kept."
        )


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


def machine_folder(data_dir: DataPath) -> Path:
    """Return the folder for what belongs to this machine, as its database and addresses.

    It is the data folder, or `data` in the current folder where that is an object store.
    """
    return Path("data").absolute() if in_store(data_dir) else data_dir


def free_bytes(folder: DataPath) -> int | None:
    """Return how many bytes a folder can take; None in an object store, which has no known limit.

    The folder need not exist yet.
    """
    if in_store(folder):
        return None
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


@dataclass(frozen=True)
class DiskGuard:
    """Keeps `required` bytes free on the disk that holds `folder`; an object store has no limit."""

    folder: DataPath
    required: int

    def check(self) -> None:
        """Raise `DiskFullError` when less than `required` bytes are free."""
        if in_store(self.folder):
            return
        free = shutil.disk_usage(self.folder).free
        if free < self.required:
            raise DiskFullError(self.folder, free, self.required)


@contextmanager
def writing_in(folder: DataPath) -> Iterator[None]:
    """Raise `DiskFullError` where a write in `folder` finds no room.

    What goes to an object store is first in a temporary file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if in_store(folder):
            folder = Path(tempfile.gettempdir())
        raise DiskFullError(folder, shutil.disk_usage(folder).free) from error


@contextmanager
def atomic_write(path: DataPath) -> Iterator[BinaryIO]:
    """Open a file to write that appears under `path` whole, or not at all.

    The bytes go to a temporary name in the same folder, are synced to the disk and then
    renamed, so neither a crash nor a power cut leaves half a file under `path`. The
    temporary file is locked for as long as it is written, by which
    `remove_abandoned_parts` knows a live one. In an object store they go to a temporary file
    without a name, and from there up as one object.

    Raises
    ------
    DiskFullError
        When the disk runs full meanwhile.
    StoreError, StoreRefusedError
        When the object store does not take it.
    """
    if in_store(path):
        with writing_in(path), tempfile.TemporaryFile() as unnamed:
            yield unnamed
            unnamed.flush()
            store.put(path, unnamed)
        return
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


def sync_folder(folder: DataPath) -> None:
    """Make the names in `folder` survive a power cut (fsync of the directory)."""
    if in_store(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned_parts(folder: DataPath) -> int:
    """Delete temporary files in `folder` that no process writes any more; return how many.

    Those of other users, and those that disappear meanwhile, are left alone. An object store has
    none.
    """
    if in_store(folder):
        return 0
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


class Entry(Protocol):
    """What a folder has under a name."""

    @property
    def name(self) -> str: ...
    def is_dir(self) -> bool: ...
    def stat(self) -> os.stat_result: ...


def entries_in(folder: DataPath) -> Mapping[str, Entry]:
    """Return what is in a folder, by name.

    Raises
    ------
    OSError
        When it cannot be listed. In an object store a folder that is not there is an empty one.
    """
    if in_store(folder):
        return {entry.name: entry for entry in store.entries_in(folder)}
    with os.scandir(folder) as entries:
        return {entry.name: entry for entry in entries}


def is_writable(folder: DataPath) -> bool:
    """Return whether files may be made in a folder; an object store says so when they are."""
    return in_store(folder) or os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def content_of(path: DataPath) -> Iterator[bytes | mmap.mmap]:
    """Give the content of a file; of a large one without reading it into memory.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    OSError
        When it cannot be read.
    """
    if in_store(path):
        with tempfile.TemporaryFile() as unnamed:
            store.get(path, unnamed)
            unnamed.flush()
            with mapped(unnamed) as content:
                yield content
        return
    with path.open("rb") as file, mapped(file) as content:
        yield content


@contextmanager
def mapped(file: BinaryIO) -> Iterator[bytes | mmap.mmap]:
    """Give the content of an open file without reading it into memory."""
    if os.fstat(file.fileno()).st_size == 0:
        yield b""
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


@contextmanager
def local_copy(path: DataPath) -> Iterator[Path]:
    """Give a file for programs that read no other: of an object a copy, which is then removed.

    Raises what `content_of` does where it has to copy.
    """
    if not in_store(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vsvi-") as folder:
        copy = Path(folder, path.name)
        with copy.open("wb") as file:
            store.get(path, file)
        yield copy


@contextmanager
def local_folder(folder: DataPath) -> Iterator[Path]:
    """Give a folder on this machine to work in: this one, or beside a store a passing one."""
    if not in_store(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="vsvi-") as passing:
        yield Path(passing)


def copy_files(source: DataPath, target: DataPath) -> None:
    """Copy all files of a folder, and of the folders in it, each whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    for name, entry in entries_in(source).items():
        if entry.is_dir():
            copy_files(source / name, target / name)
            continue
        copy_file(source / name, target / name)


def copy_file(source: DataPath, target: DataPath) -> None:
    """Copy a file, whole or not at all."""
    with content_of(source) as content, atomic_write(target) as file:
        file.write(content)


def remove_folder(folder: DataPath) -> None:
    """Delete a folder and all that is in it, if it is there."""
    if not in_store(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for name, _ in store.objects_below(folder):
        (folder / name).unlink()


def each_in_turn(
    folder: DataPath, work: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Yield what becomes of each item, in order: in an object store, whose answers take a while,
    several are at work at a time.
    """
    if not in_store(folder):
        yield from map(work, items)
        return
    remaining = iter(items)
    with ThreadPoolExecutor(STORE_READERS) as pool:
        while batch := list(islice(remaining, 10 * STORE_READERS)):
            yield from pool.map(work, batch)


def update_lines(path: DataPath, *, added: Iterable[str], removed: Iterable[str]) -> None:
    """Add lines to a sorted text file and remove others.

    The file is made where it is missing and there is something to add. Of several processes that
    do so, all must hold the same lock.
    """
    added, removed = set(added), set(removed)
    if not added and not path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text().split() if path.exists() else None
    lines = sorted({*(before or ())} - removed | added)
    if lines != before:
        with atomic_write(path) as file:
            file.writelines(f"{line}\n".encode() for line in lines)
