"""What is relied on of obstore and of object stores, and what is made of their errors."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsvi_assets.bucket import store_path
from vsvi_assets.files import (
    DataPath,
    atomic_write,
    content_of,
    entries_in,
    free_bytes,
    local_copy,
)
from vsvi_assets.photographs import inventory
from vsvi_assets.photographs.inventory import SequenceFolders
from vsvi_assets.settings import SettingError, Settings
from vsvi_assets.store import (
    ONE_PUT_BYTES,
    StoreError,
    StoreRefusedError,
    objects_below,
    without_patience,
)
from vsvi_assets_tests.object_store import (
    KEY,
    READER,
    READERS_SECRET,
    SECRET,
    ObjectStore,
)


@pytest.fixture
def folder(object_store: ObjectStore) -> DataPath:
    """A folder in the store that nothing is in yet."""
    return object_store.new_folder()


def write(path: DataPath, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def test_a_path_reads_what_was_written(folder: DataPath) -> None:
    path = folder / "town" / "ü ñ?%.txt"
    assert not path.exists()
    assert not folder.exists()
    before = time.time()
    write(path, b"one")
    write(path, b"two")
    assert path.read_text() == "two"
    assert path.stat().st_size == 3
    assert before - 2 < path.stat().st_mtime < time.time() + 2
    assert (path.is_file(), path.is_dir(), path.parent.is_dir()) == (True, False, True)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert entries_in(folder)["town"].is_dir()
    assert entries_in(path.parent)[path.name].stat().st_size == 3
    with content_of(path) as content, local_copy(path) as copy:
        assert bytes(content) == copy.read_bytes() == b"two"
        assert copy.name == path.name
    assert not copy.exists()
    path.unlink()
    path.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"town/ü ñ\?%\.txt"):
        path.read_bytes()
    assert free_bytes(folder) is None


def test_an_object_is_whole_or_not_there(folder: DataPath) -> None:
    path = folder / "file"

    def interrupted(content: bytes) -> None:
        with suppress(KeyboardInterrupt), atomic_write(path) as file:
            file.write(content)
            raise KeyboardInterrupt

    interrupted(b"half")
    assert not path.exists()
    write(path, b"whole")
    interrupted(b"half")
    assert path.read_bytes() == b"whole"
    write(path, b"")
    assert path.read_bytes() == b""


KILLED = """
import sys
from vsvi_assets.files import atomic_write
from vsvi_assets.settings import Settings

path = Settings.from_environment().data_dir / "file"
with atomic_write(path) as file:
    file.write(b"new" * int(sys.argv[1]))
    file.flush()
    print("now", flush=True)
"""


@pytest.mark.parametrize("bytes_", [30_000_000, ONE_PUT_BYTES + 3_000_000])
def test_a_killed_upload_leaves_the_old_object(
    object_store: ObjectStore, folder: DataPath, bytes_: int
) -> None:
    write(folder / "file", b"old")
    environment = {**os.environ, **object_store.environ, "VSVI_DATA_DIR": str(folder)}
    whole = hashlib.sha256(b"new" * (bytes_ // 3)).digest()
    for seconds in (0.0, 0.05, 0.1):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(bytes_ // 3)],
            env=environment,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        found = (folder / "file").read_bytes()
        assert found == b"old" or hashlib.sha256(found).digest() == whole
    assert [name for name, _ in objects_below(folder)] == ["file"]


def test_large_files_go_up_in_parts_and_come_back(folder: DataPath, tmp_path: Path) -> None:
    size = ONE_PUT_BYTES + 1
    block = os.urandom(1_000_003)
    digest = hashlib.sha256()
    with atomic_write(folder / "large") as file:
        for start in range(0, size, len(block)):
            part = block[: size - start]
            file.write(part)
            digest.update(part)
        assert entries_in(folder) == {}
    with content_of(folder / "large") as content:
        assert len(content) == size
        assert hashlib.sha256(content).digest() == digest.digest()


def test_folders_are_listed_in_requests_of_a_thousand(
    object_store: ObjectStore, folder: DataPath
) -> None:
    names = [f"s{number % 7}/{number}.jpg" for number in range(2_345)]
    for name in names[:2_345]:
        write(folder / name, b"x")
    before = object_store.requests("LIST")
    assert dict(objects_below(folder)) == dict.fromkeys(names, 1)
    assert object_store.requests("LIST") - before == 3


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, StoreRefusedError, "Check AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "unknown"}, StoreRefusedError, "Check AWS_ACCESS_KEY_ID"),
        (
            {"AWS_ACCESS_KEY_ID": READER, "AWS_SECRET_ACCESS_KEY": READERS_SECRET},
            StoreRefusedError,
            "may .*list",
        ),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, StoreError, "does not answer"),
    ],
)
def test_errors_say_what_to_do_and_hold_no_key(
    object_store: ObjectStore,
    folder: DataPath,
    changed: dict[str, str],
    error: type[Exception],
    message: str,
) -> None:
    path = without_patience(store_path(str(folder), {**object_store.environ, **changed}))
    attempts: list[Callable[[], object]] = [
        lambda: write(path / "x", b"x"),
        lambda: list(objects_below(path)),
    ]
    if changed.get("AWS_ACCESS_KEY_ID") != READER:
        attempts += [lambda: (path / "x").exists(), lambda: (path / "x").read_bytes()]
    for attempt in attempts:
        with pytest.raises(error, match=message) as raised:
            attempt()
        assert str(folder) in str(raised.value)
        shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
        for secret in (KEY, SECRET, READER, READERS_SECRET):
            assert secret not in shown
        assert raised.value.may_pass == (error is StoreError)  # type: ignore[attr-defined]


def test_a_bucket_that_is_not_there_is_named(object_store: ObjectStore) -> None:
    path = without_patience(store_path("s3://no-such-bucket/data", object_store.environ))
    with pytest.raises(StoreRefusedError, match="bucket no-such-bucket"):
        list(objects_below(path))
    with pytest.raises(StoreRefusedError, match="bucket no-such-bucket"):
        (path / "x").exists()


def test_no_key_is_shown(object_store: ObjectStore, folder: DataPath) -> None:
    path = folder / "x"
    access = path.storage_options["access"]  # type: ignore[attr-defined]
    settings = Settings.from_environment({**object_store.environ, "VSVI_DATA_DIR": str(folder)})
    shown = f"{path}{path!r}{access}{settings}{path.fs}{path.storage_options}"  # type: ignore[attr-defined]
    assert KEY not in shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"VSVI_DATA_DIR": "s3://"}, "s3://bucket/prefix"),
        ({"VSVI_DATA_DIR": "s3://bucket//x"}, "s3://bucket/prefix"),
        ({"VSVI_DATA_DIR": "gs://bucket/x"}, "s3://bucket/prefix"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:9000"}, "AWS_ENDPOINT_URL = '127.0.0.1:9000'"),
        ({"AWS_ACCESS_KEY_ID": "half"}, "AWS_SECRET_ACCESS_KEY is not set"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}, "cannot be read"),
    ],
)
def test_wrong_settings_are_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Settings.from_environment({"VSVI_DATA_DIR": "s3://bucket/data"} | environment)


def test_without_the_extra_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vsvi_assets.bucket.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'vsvi-assets\[s3\]'"):
        Settings.from_environment({"VSVI_DATA_DIR": "s3://bucket/data"})


def test_keys_are_read_from_a_file(
    object_store: ObjectStore, folder: DataPath, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        "[default]\naws_access_key_id = other\naws_secret_access_key = x\n"
        f"[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    environment = {
        "AWS_ENDPOINT_URL": object_store.endpoint,
        "AWS_SHARED_CREDENTIALS_FILE": str(file),
        "AWS_PROFILE": "lab",
    }
    path = store_path(str(folder), environment) / "x"
    write(path, b"x")
    assert path.read_bytes() == b"x"
    with pytest.raises(SettingError, match=r"below \[nobody\]"):
        Settings.from_environment(
            environment | {"AWS_PROFILE": "nobody", "VSVI_DATA_DIR": str(folder)}
        )


def test_no_proxy_is_asked_for_this_machine(
    object_store: ObjectStore, folder: DataPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    # Another region, so that the client is a new one.
    environment = {**object_store.environ, "AWS_REGION": "eu-central-1"}
    write(store_path(str(folder), environment) / "x", b"x")


class _Busy(BaseHTTPRequestHandler):
    """A store that is busy for a while."""

    answers: list[int]

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.answers.pop(0))
        self.send_header("ETag", '"x"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_what_a_busy_store_refuses_is_sent_again() -> None:
    pytest.importorskip("obstore")
    _Busy.answers = [503, 500, 503, 200]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
    }
    write(store_path("s3://bucket/data", environment) / "x", b"x")
    assert _Busy.answers == []
    _Busy.answers = [503]
    with pytest.raises(StoreError, match="503"):
        write(without_patience(store_path("s3://bucket/data", environment)) / "x", b"x")
    server.shutdown()
    server.server_close()


# Folders and what is asked of them, in either order


@given(
    st.sets(st.text("ab-_", min_size=1, max_size=4), max_size=12),
    st.data(),
    st.booleans(),
    st.booleans(),
)
def test_folders_are_found_in_whatever_order_a_store_lists_them(
    present: set[str], data: st.DataObject, by_key: bool, asked_by_key: bool
) -> None:
    def order(names: set[str], is_by_key: bool) -> list[str]:
        return sorted(names, key=lambda name: f"{name}/" if is_by_key else name)

    strangers = data.draw(st.sets(st.text("ab-_", min_size=1, max_size=4), max_size=6))
    chosen = data.draw(st.sets(st.sampled_from(sorted(present)))) if present else set()
    wanted = chosen | strangers
    listed = [
        (f"{name}/{file}", len(name))
        for name in order(present, by_key)
        for file in ("1.jpg", "images.geojson")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inventory, "objects_below", lambda folder: iter(listed))
        patch.setattr(inventory, "in_store", lambda folder: True)
        patch.setattr(inventory, "is_sequence_id", lambda name: True)
        folders = SequenceFolders(Path("anywhere"), all_of_them=True)
        for name in order(wanted, asked_by_key):
            expected = {"1.jpg": len(name), "images.geojson": len(name)} if name in present else {}
            assert folders.sizes(name) == expected
        assert sorted(folders.others()) == sorted(present - wanted)
