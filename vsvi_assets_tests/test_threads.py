"""An interrupt waits for no request, however many are under way and whatever holds them up."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from vsvi_assets.mapillary.errors import StoppedError
from vsvi_assets.threads import DaemonThreads, interruptible_workers

TILES = """
import mercantile
from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.mapillary.coverage import fetch_tiles
from vsvi_assets_tests.mapillary.parts import OpenGate, services_at

client = Mapillary(services_at("{url}"), tile_gate=OpenGate())
tiles = (mercantile.Tile(8000 + number, 5000, 14) for number in range(1000))
print("started", flush=True)
list(fetch_tiles(client, tiles))
"""
IMAGES = """
import sys
from pathlib import Path
from vsvi_assets.files import DiskGuard
from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.photographs.downloads import SequenceJob, download_sequences
from vsvi_assets.sandbox import StreetImage
from vsvi_assets_tests.mapillary.parts import services_at

images = [StreetImage(number, 0, 0, "") for number in range(1, 101)]
jobs = [SequenceJob(f"sequence{{number}}", images) for number in range(100)]
folder = Path("{folder}")
print("started", flush=True)
client = Mapillary(services_at("{url}"))
list(download_sequences(
    client, jobs, folder, size="original", services="mapillary", guard=DiskGuard(folder, 1)
))
"""


@contextmanager
def silence() -> Iterator[tuple[str, list[socket.socket]]]:
    """Take connections and never answer; give the address and the connections."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:

        def take() -> None:
            try:
                while True:
                    taken.append(server.accept()[0])
            except OSError:
                pass  # closed at the end

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in taken:
        connection.close()


@pytest.mark.parametrize("script", [TILES, IMAGES], ids=["tiles", "images"])
@pytest.mark.parametrize("place", ["directly", "http proxy", "https through a proxy"])
def test_an_interrupt_ends_the_process_within_seconds(
    script: str, place: str, tmp_path: object
) -> None:
    environment = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    with silence() as (silent, taken):
        url = silent
        if place != "directly":
            # Names that nobody can look up: the proxy is asked for them.
            url = "https://maps.invalid" if "https" in place else "http://maps.invalid"
            environment |= {"HTTP_PROXY": silent, "HTTPS_PROXY": silent}
        process = subprocess.Popen(
            [sys.executable, "-c", script.format(url=url, folder=tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout
        assert process.stdout.readline() == b"started\n"
        deadline = time.monotonic() + 20
        while len(taken) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        assert taken, "requests are under way"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=30)
        assert time.monotonic() - began < 3
        assert b"KeyboardInterrupt" in printed.splitlines()[-1]


def test_threads_run_tasks_at_the_same_time_and_hand_errors_over() -> None:
    together = threading.Barrier(8)
    with DaemonThreads(8) as pool:
        futures = [pool.submit(together.wait, 5) for _ in range(8)]
        assert sorted(future.result() for future in futures) == list(range(8))
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 // 0).result()
        assert list(pool.map(abs, range(-100, 0))) == list(range(100, 0, -1))


def test_leaving_by_an_exception_sets_the_event_and_drops_what_waits() -> None:
    ran = []

    def wait_to_be_stopped(stop: threading.Event) -> None:
        ran.append(1)
        stop.wait()
        raise StoppedError("stopped")

    futures: list[Future[None]] = []

    def leave() -> None:
        with interruptible_workers(3) as (pool, stop):
            futures.extend(pool.submit(wait_to_be_stopped, stop) for _ in range(100))
            while len(ran) < 3:
                time.sleep(0.01)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        leave()
    assert len(ran) == 3
    assert sum(future.cancelled() for future in futures) == 97
    assert all(isinstance(future.exception(), StoppedError) for future in futures[:3])


def test_threads_that_end_take_no_task_that_nobody_would_run() -> None:
    with DaemonThreads(1) as pool:
        pass
    with pytest.raises(RuntimeError, match="take no task any more"):
        pool.submit(print)
