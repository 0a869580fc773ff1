"""Locks between processes, on a real server."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import LockHeldError, ServerUnreachableError
from vsvi_assets.database.locks import advisory_lock, is_locked


def hold(url: str, name: str, held: threading.Event) -> None:
    with advisory_lock(Postgis(url), name, wait=True):
        held.set()
        time.sleep(60)


def test_a_lock_that_is_held_is_refused_and_says_by_whom(postgis_url: str) -> None:
    postgis = Postgis(postgis_url)
    assert not is_locked(postgis, "city town")
    with advisory_lock(postgis, "city town", wait=False):
        assert is_locked(postgis, "city town")
        assert not is_locked(postgis, "city another")
        with advisory_lock(postgis, "city another", wait=False):
            pass
        with (
            pytest.raises(LockHeldError, match=f"city town .* process {os.getpid()} ") as refused,
            advisory_lock(postgis, "city town", wait=False),
        ):
            pass
    assert refused.value.since
    assert datetime.now(UTC) - refused.value.since < timedelta(minutes=1)
    with advisory_lock(postgis, "city town", wait=False):
        pass


def test_a_lock_is_free_as_soon_as_it_is_left(postgis_url: str) -> None:
    postgis = Postgis(postgis_url)
    for _ in range(300):
        with advisory_lock(postgis, "city town", wait=False):
            pass


def test_a_lock_ends_with_the_process_that_held_it(postgis_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(postgis_url, "city town", held))
    process.start()
    try:
        assert held.wait(60)
        with (
            pytest.raises(LockHeldError, match=f"process {process.pid}"),
            advisory_lock(Postgis(postgis_url), "city town", wait=False),
        ):
            pass
    finally:
        process.kill()
        process.join()
    with advisory_lock(Postgis(postgis_url), "city town", wait=True):
        pass


WAIT_FOR_THE_LOCK = """
import sys
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.locks import advisory_lock, is_locked
print("waits", flush=True)
with advisory_lock(Postgis(sys.argv[1]), "city town", wait=True):
    print("has it", flush=True)
"""


def test_an_interrupt_ends_the_wait_for_a_lock(postgis_url: str) -> None:
    with (
        advisory_lock(Postgis(postgis_url), "city town", wait=False),
        subprocess.Popen(
            [sys.executable, "-c", WAIT_FOR_THE_LOCK, postgis_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as waiting,
    ):
        assert waiting.stdout
        assert waiting.stdout.readline() == "waits\n"
        time.sleep(1)
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=10)
    assert "has it" not in out
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_a_server_that_is_away_is_one_sentence() -> None:
    with (
        pytest.raises(ServerUnreachableError, match=r"No connection .* port 9 failed"),
        advisory_lock(Postgis("postgresql://me:secret@127.0.0.1:9/none"), "city", wait=False),
    ):
        pass
