"""A bucket of an object store as fsspec's file system, for the paths of `universal-pathlib`.

obstore has one too, which answers in a thread of its own, asks twice for what it opens, and from
whose errors a caller learns nothing. This one has what the data folder needs.
"""

import io
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, cast

import fsspec
from fsspec.spec import AbstractFileSystem
from upath import UPath

from vsvi_assets.store import (
    SCHEME,
    Access,
    DataPath,
    StoreSettingsError,
    access_from,
    client_of,
)


def store_path(url: str, environ: Mapping[str, str]) -> DataPath:
    """Return the path of `s3://bucket/prefix`, reached as `access_from` says; contact nothing.

    Raises
    ------
    StoreSettingsError
        When the address or a variable is not as it should be, or obstore is not installed.
    """
    bucket, *folders = url.removeprefix(SCHEME).rstrip("/").split("/")
    if not url.startswith(SCHEME) or not bucket or not all(folders):
        raise StoreSettingsError(f"{url!r}: must be a folder, or written as s3://bucket/prefix")
    access = access_from(environ)
    if find_spec("obstore") is None:
        raise StoreSettingsError(f"{url!r}: pip install 'vsvi-assets[s3]' to keep data there")
    fsspec.register_implementation("s3", Bucket, clobber=True)
    path = UPath("/".join([SCHEME + bucket, *folders]), access=access)
    return cast(DataPath, path)


class Bucket(AbstractFileSystem):
    """What a `UPath` does in an object store: reading whole objects, looking, listing, deleting.

    Unlike fsspec's own answers, "is not there" is never said where the store did not answer.
    """

    protocol = "s3"
    cachable = False  # The clients are shared, and hold all that takes time to make.

    def __init__(self, access: Access) -> None:
        super().__init__()
        self._access = access

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        try:
            found = self._head(path)
        except FileNotFoundError:
            if self.isdir(path):
                return {"name": path, "size": 0, "type": "directory"}
            raise
        modified = found["last_modified"].timestamp()
        return {"name": path, "size": found["size"], "type": "file", "mtime": modified}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        client, key = client_of(self._access, path)
        entries = [
            {
                "name": f"{path}/{entry.name}",
                "size": entry.size,
                "type": "directory" if entry.is_dir() else "file",
                "mtime": entry.modified,
            }
            for entry in client.entries(key)
        ]
        return entries if detail else [entry["name"] for entry in entries]

    def exists(self, path: str, **_: Any) -> bool:
        return self.isfile(path) or self.isdir(path)

    def isfile(self, path: str) -> bool:
        try:
            self._head(path)
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path: str) -> bool:
        return bool(self.ls(path))

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        client, key = client_of(self._access, path)
        client.ask(key, lambda store: store.delete(key))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        if mode != "rb":
            raise ValueError("objects are written by vsvi_assets.files.atomic_write")
        client, key = client_of(self._access, path)
        return io.BytesIO(client.ask(key, lambda store: store.get(key).bytes()))

    def _head(self, path: str) -> Mapping[str, Any]:
        client, key = client_of(self._access, path)
        return client.ask(key, lambda store: store.head(key))
