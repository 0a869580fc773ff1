"""Objects in S3 as paths, for a data folder that is `s3://bucket/prefix`.

A `UPath` of such a folder reads, lists and deletes (see `vsvi_assets.bucket`); `put` writes. All of
it goes through one client of obstore for each bucket and process, which threads share. All of it
raises `StoreError` where the store does not answer, and `StoreRefusedError` where it refuses.

What is relied on, as `vsvi_assets_tests/test_store.py` shows it: an object appears whole or not at
all; obstore repeats what fails for the connection or with HTTP 5xx; a listing below a folder comes
in an order that S3 and SeaweedFS do not share (see `photographs.inventory`).

obstore is imported where it is first needed: its threads do not survive a fork.
"""

import configparser
import errno
import io
import logging
import math
import mmap
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

from vsvi_assets.proxies import is_loopback

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3Store
    from upath import UPath

DataPath: TypeAlias = Path
"""A path in the data folder: a `UPath` where that is an object store.

Type checkers take both for a `Path`, of which a `UPath` has all that is used of it: of a union of
the two they know no more than what their common base has.
"""

SCHEME = "s3://"
PATIENCE = timedelta(minutes=3)
"""For how long a request is repeated while the store does not answer."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
"""Seconds between such attempts."""

SILENT_SECONDS = 30.0
"""In which it is said at most once that a store does not answer."""

REQUEST_TIME = timedelta(minutes=5)
"""How long a request may take, with its object: a slow line sends many at a time."""

ONE_PUT_BYTES = 64_000_000
"""Larger files go up in parts, and appear when the last one is there."""

_PART_BYTES = 16_000_000
_KEYS_PER_REQUEST = 1000
LISTINGS = 4
"""How often a listing is begun at most."""

_CREDENTIALS_SERVE = timedelta(minutes=5)
"""After which a file of credentials is read again."""

log = logging.getLogger(__name__)

Value = TypeVar("Value")

_NO_ROUTE = "http://127.0.0.1:9"
_XML = re.compile(r"<(Code|Message)>([^<]*)</")


class StoreSettingsError(ValueError):
    """The address of an object store, or what is needed for it, is not as it should be."""


class StoreError(OSError):
    """The object store did not answer as it should, for as long as it was asked."""

    may_pass = True

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(errno.EIO, reason, url)

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class StoreRefusedError(Exception):
    """The object store refuses what is asked of it, however often: why, and what to do."""

    may_pass = False

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason} {advice}")
        self.reason, self.advice = reason, advice


@dataclass(frozen=True)
class Access:
    """How an object store is reached.

    Attributes
    ----------
    endpoint
        Address of the S3 server; None: Amazon's.
    keys
        Access key id, secret access key and, if there is one, session token.
    credentials_file, profile
        Where they are read where `keys` is None; None for both: obstore finds them, as by the role
        of a machine or container.
    patience
        For how long a request is repeated while the store does not answer.
    """

    endpoint: str | None
    region: str
    keys: tuple[str, str, str | None] | None = field(repr=False)
    credentials_file: Path | None
    profile: str
    patience: timedelta = PATIENCE


def in_store(path: DataPath) -> bool:
    """Return whether a path is in an object store."""
    return not isinstance(path, Path)


def access_from(environ: Mapping[str, str]) -> Access:
    """Return how the store is reached, as AWS's own variables say.

    These are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or
    AWS_SHARED_CREDENTIALS_FILE (default `~/.aws/credentials`) and AWS_PROFILE; AWS_REGION and
    AWS_ENDPOINT_URL.

    Raises
    ------
    StoreSettingsError
        When one of them is not as it should be.
    """
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None
    if endpoint and not (
        endpoint.startswith(("http://", "https://")) and urlsplit(endpoint).hostname
    ):
        raise StoreSettingsError(
            f"AWS_ENDPOINT_URL = {endpoint!r}: must begin with https:// or http://"
        )
    return Access(
        endpoint,
        environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        _keys(environ),
        _credentials_file(environ),
        environ.get("AWS_PROFILE") or "default",
    )


def access_of(path: DataPath) -> Access:
    """Return how the store of a path is reached."""
    return cast(Access, cast("UPath", path).storage_options["access"])


def address_of(path: DataPath) -> str:
    """Return bucket and key of a path, with a slash between."""
    return cast("UPath", path).path


def without_patience(path: DataPath) -> DataPath:
    """Return the same path, whose requests are made once each."""
    access = replace(access_of(path), patience=timedelta(0))
    return cast(DataPath, type(cast("UPath", path))(str(path), access=access))


def put(path: DataPath, file: IO[bytes]) -> None:
    """Store an open file's content, from its start, as one object: whole, or not at all."""
    client, key = client_of(access_of(path), address_of(path))
    size = file.seek(0, io.SEEK_END)

    def send(store: "S3Store") -> None:
        file.seek(0)
        if size > ONE_PUT_BYTES:
            store.put(key, file, use_multipart=True, chunk_size=_PART_BYTES)
        else:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            store.put(key, content, use_multipart=False)

    client.ask(key, send, missing=f"there is no bucket {client.bucket}")


def get(path: DataPath, file: IO[bytes]) -> None:
    """Copy an object into an empty open file, a part at a time.

    Raises
    ------
    FileNotFoundError
        When there is no such object.
    """
    client, key = client_of(access_of(path), address_of(path))

    def receive(store: "S3Store") -> None:
        file.seek(0)
        file.truncate()
        for chunk in store.get(key).stream(min_chunk_size=_PART_BYTES):
            file.write(chunk)

    client.ask(key, receive)


@dataclass(frozen=True)
class StoredEntry:
    """An object, or a folder of objects, as `os.DirEntry` has a file or a folder."""

    name: str
    size: int
    modified: float
    is_folder: bool = False

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.is_folder

    def stat(self) -> os.stat_result:
        """Return its size, and when it was stored."""
        kind = stat.S_IFDIR if self.is_folder else stat.S_IFREG
        return os.stat_result((kind, 0, 0, 1, 0, 0, self.size, 0, self.modified, 0))


def entries_in(folder: DataPath) -> Iterator[StoredEntry]:
    """Yield what is in a folder: a request is made for each 1,000."""
    client, key = client_of(access_of(folder), address_of(folder))
    return client.entries(key)


def objects_below(folder: DataPath) -> Iterator[tuple[str, int]]:
    """Yield name (relative to the folder) and size in bytes of all objects below a folder.

    A request is made for each 1,000 of them. A listing that breaks off is begun again, and goes on
    behind the last object that it had.
    """
    client, prefix = client_of(access_of(folder), address_of(folder))
    start = len(prefix) + 1 if prefix else 0

    def begin(store: "S3Store") -> tuple[Iterator[Any], Any]:
        pages = store.list(prefix or None, chunk_size=_KEYS_PER_REQUEST)
        return pages, next(pages, ())

    last: str | None = None
    for left in reversed(range(LISTINGS)):
        pages, page = client.ask_for_listing(prefix, begin)
        is_new = last is None
        try:
            while page:
                for found in page:
                    if is_new:
                        last = found["path"]
                        yield last[start:], found["size"]
                    else:
                        is_new = found["path"] == last
                with client.explained(prefix):
                    page = next(pages, ())
        except StoreError:
            if not left:
                raise
            continue
        if is_new:
            return
        raise StoreError(str(folder), f"{last} was deleted while the folder was listed.")


class Client:
    """Makes requests to a bucket, again and again while the store does not answer.

    obstore repeats a request by itself, but cannot be interrupted meanwhile: it does so for
    seconds, and between its attempts there is a pause here, which can.
    """

    def __init__(self, access: Access, bucket: str) -> None:
        self.bucket = bucket
        self._server = f"the object store ({access.endpoint or 'Amazon S3'})"
        self._store = _obstore(access, bucket)
        self._patience = access.patience.total_seconds()
        self._reported = -math.inf

    def ask(
        self, key: str, request: Callable[["S3Store"], Value], missing: str | None = None
    ) -> Value:
        """Return the answer to a request.

        Parameters
        ----------
        missing
            What it means that there is no such object, where that is no answer.

        Raises
        ------
        FileNotFoundError
            When there is no such object.
        """
        deadline = time.monotonic() + self._patience
        pause = FIRST_PAUSE
        while True:
            try:
                with self.explained(key, missing):
                    return request(self._store)
            except StoreError as error:
                if time.monotonic() + pause > deadline:
                    raise
                self._report(error)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def ask_for_listing(self, key: str, request: Callable[["S3Store"], Value]) -> Value:
        """Return the answer to a listing; a refusal is another error than a store that is silent.

        obstore has one error for both. A store that answers another question, but not this one
        twice, refuses it.
        """

        def listing(store: "S3Store") -> Value:
            try:
                with self.explained(key):
                    return request(store)
            except StoreError as error:
                with suppress(FileNotFoundError), self.explained(key):
                    store.head("vsvi")
                try:
                    with self.explained(key):
                        return request(store)
                except StoreError:
                    raise StoreRefusedError(
                        str(error),
                        f"Check that the bucket {self.bucket} exists, and that the keys may list "
                        "it.",
                    ) from None

        return self.ask(key, listing)

    def entries(self, key: str) -> Iterator[StoredEntry]:
        """Yield what is below a key, as in a folder."""
        found = self.ask_for_listing(key, lambda store: store.list_with_delimiter(key or None))
        for each in found["objects"]:
            modified = each["last_modified"].timestamp()
            yield StoredEntry(_name(each["path"]), each["size"], modified)
        for prefix in found["common_prefixes"]:
            yield StoredEntry(_name(prefix), 0, 0.0, is_folder=True)

    @contextmanager
    def explained(self, key: str, missing: str | None = None) -> Iterator[None]:
        """Turn obstore's errors into ours, without the server's answers, which may quote a key."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        url = f"{SCHEME}{self.bucket}/{key}"
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreRefusedError(
                f"{url}: {self._server} refuses the keys ({_said(error)}).",
                "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may read, write "
                "and list there.",
            ) from None
        except FileNotFoundError:
            if missing:
                raise StoreRefusedError(
                    f"{url}: {missing}.", "Make it, or correct VSVI_DATA_DIR."
                ) from None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from None
        except BaseError as error:
            raise StoreError(
                url, f"{self._server} does not answer as it should ({_said(error)})."
            ) from None

    def _report(self, error: StoreError) -> None:
        now = time.monotonic()
        if now - self._reported > SILENT_SECONDS:
            self._reported = now
            log.warning("%s It is asked again for up to %.0f seconds.", error, self._patience)


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def client_of(access: Access, address: str) -> tuple[Client, str]:
    """Return the client of an address's bucket, which all threads share, and the key in it."""
    bucket, _, key = address.partition("/")
    return _client(access, bucket, os.getpid()), key


@lru_cache
def _client(access: Access, bucket: str, process: int) -> Client:
    return Client(access, bucket)


def _obstore(access: Access, bucket: str) -> "S3Store":
    from obstore.store import S3Store

    is_plain = (access.endpoint or "").startswith("http://")
    is_here = access.endpoint is not None and is_loopback(access.endpoint)
    config: dict[str, Any] = {
        "region": access.region,
        # TLS finds damage on the way, and within a machine there is none.
        "unsigned_payload": is_here or not is_plain,
    }
    if access.endpoint:
        config["endpoint"] = access.endpoint
    provider: Callable[[], S3Credential] | None = None
    if access.keys:
        names = ("access_key_id", "secret_access_key", "session_token")
        config |= {name: key for name, key in zip(names, access.keys, strict=True) if key}
    elif access.credentials_file:
        provider = _FileOfCredentials(access.credentials_file, access.profile)
    return S3Store(
        bucket,
        config=config,  # type: ignore[arg-type]
        client_options={
            "allow_http": is_plain,
            "timeout": REQUEST_TIME,
            # A proxy of the environment cannot reach this machine; one that is named here is asked
            # in its place, and leaves this machine out.
            **(
                {
                    "proxy_url": _NO_ROUTE,
                    "proxy_excludes": urlsplit(access.endpoint or "").hostname or "",
                }
                if is_here
                else {}
            ),
        },
        retry_config={
            "max_retries": 3 if access.patience else 0,
            "retry_timeout": timedelta(seconds=2),
        },
        credential_provider=provider,
    )


@dataclass(frozen=True)
class _FileOfCredentials:
    """Reads keys from a file as AWS's own tools have it, again and again as they may change."""

    path: Path
    profile: str

    def __call__(self) -> "S3Credential":
        keys = _read_credentials(self.path, self.profile)
        return {
            "access_key_id": keys[0],
            "secret_access_key": keys[1],
            "token": keys[2],
            "expires_at": datetime.now(UTC) + _CREDENTIALS_SERVE,
        }


def _keys(environ: Mapping[str, str]) -> tuple[str, str, str | None] | None:
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if bool(key) != bool(secret):
        missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
        raise StoreSettingsError(f"{missing} is not set, and the other half of the keys is")
    return (key, secret, environ.get("AWS_SESSION_TOKEN") or None) if key and secret else None


def _credentials_file(environ: Mapping[str, str]) -> Path | None:
    named = environ.get("AWS_SHARED_CREDENTIALS_FILE")
    path = Path(named or "~/.aws/credentials").expanduser()
    if _keys(environ) or not (named or path.is_file()):
        return None
    _read_credentials(path, environ.get("AWS_PROFILE") or "default")
    return path


def _read_credentials(path: Path, profile: str) -> tuple[str, str, str | None]:
    content = configparser.RawConfigParser()
    try:
        content.read_string(path.read_text(encoding="utf-8"))
        section = content[profile]
        return (
            section["aws_access_key_id"],
            section["aws_secret_access_key"],
            section.get("aws_session_token"),
        )
    except OSError as error:
        raise StoreSettingsError(
            f"AWS_SHARED_CREDENTIALS_FILE = {str(path)!r}: cannot be read ({error.strerror})"
        ) from error
    except (configparser.Error, KeyError, UnicodeDecodeError):
        # Without what the parser says, which quotes the line.
        raise StoreSettingsError(
            f"AWS_SHARED_CREDENTIALS_FILE = {str(path)!r}: must hold aws_access_key_id and "
            f"aws_secret_access_key below [{profile}]"
        ) from None


def _said(error: Exception) -> str:
    """Return the gist of an error of obstore's: what failed, and the server's code and message."""
    text = str(error).partition("\n\nDebug source")[0]
    before, _, answer = text.partition("<")
    parts = [value for _, value in _XML.findall(answer)]
    return ": ".join([before.rpartition(" - ")[2].strip().removesuffix(":"), *parts])
