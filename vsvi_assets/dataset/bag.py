"""Bags: folders or zip files that carry the SHA-256 of all their files (BagIt 1.0, RFC 8493)."""

import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vsvi_assets.dataset.errors import FolderExistsError
from vsvi_assets.files import atomic_write, sync_folder

_CHUNK_BYTES = 1 << 20
_DECLARATION = "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
_FIRST_DAY_OF_ZIP = (1980, 1, 1, 0, 0, 0)


class Bag:
    """A bag that is being written: files are added to it one after the other.

    Memory does not grow with their number or size.
    """

    def __init__(self, open_file: Callable[[str], IO[bytes]]) -> None:
        self._open_file = open_file
        self._manifest = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `finish`
        self._bytes = self._files = 0

    def add(self, name: str, content: IO[bytes]) -> str:
        """Copy a file to `data/<name>` and return its SHA-256, in hexadecimal."""
        digest, size = self._write(f"data/{name}", content)
        self._manifest.write(f"{digest}  data/{name}\n".encode())
        self._bytes += size
        self._files += 1
        return digest

    def finish(self, info: Mapping[str, str]) -> None:
        """Write what makes it a bag; `info` goes to `bag-info.txt`."""
        self._manifest.seek(0)
        info = {**info, "Payload-Oxum": f"{self._bytes}.{self._files}"}
        lines = "".join(f"{label}: {value}\n" for label, value in info.items())
        tags: dict[str, IO[bytes]] = {
            "bagit.txt": io.BytesIO(_DECLARATION.encode()),
            "bag-info.txt": io.BytesIO(lines.encode()),
            "manifest-sha256.txt": self._manifest,
        }
        digests = {name: self._write(name, content)[0] for name, content in tags.items()}
        tag_manifest = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
        self._write("tagmanifest-sha256.txt", io.BytesIO(tag_manifest.encode()))
        self._manifest.close()

    def _write(self, name: str, content: IO[bytes]) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with self._open_file(name) as file:
            while chunk := content.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
        return digest.hexdigest(), size


@contextmanager
def new_bag(path: Path, info: Mapping[str, str]) -> Iterator[Bag]:
    """Write a bag that appears under `path` whole or not at all.

    Parameters
    ----------
    path
        The folder to make; a zip file where it ends in `.zip`. A zip file is replaced.
    info
        Lines of `bag-info.txt`, as `{"Source-Organization": …}`.

    Raises
    ------
    FolderExistsError
        When the folder is there already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:

            def member(name: str) -> IO[bytes]:
                # Photographs do not get smaller; the date would make each file another one.
                entry = zipfile.ZipInfo(f"{path.stem}/{name}", _FIRST_DAY_OF_ZIP)
                entry.external_attr = 0o644 << 16
                return archive.open(entry, "w", force_zip64=True)

            bag = Bag(member)
            yield bag
            bag.finish(info)
        return
    if path.exists():
        raise FolderExistsError(path)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:

        def file_in_folder(name: str) -> IO[bytes]:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            return target.open("xb")

        bag = Bag(file_in_folder)
        yield bag
        bag.finish(info)
        folder.chmod(0o755)
        os.sync()  # once for all: one sync per file takes hours for a city
        folder.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
