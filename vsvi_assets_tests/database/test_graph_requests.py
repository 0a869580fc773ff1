"""Requests to the Graph API: one pace for all processes of a database."""

import subprocess
import sys
import threading
import time

import pytest

from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.graph_requests import BATCH, PostgresPace
from vsvi_assets.mapillary.errors import StoppedError
from vsvi_assets_tests.database.test_tile_requests import most_within
from vsvi_assets_tests.project import Project

GRAPH_URL = "https://graph.example"

ASK = """
import sys, threading, time
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.graph_requests import PostgresPace
pace = PostgresPace(Postgis(sys.argv[1]), "https://graph.example", 100)
stop, until = threading.Event(), time.time() + 4
times = []
def ask():
    while time.time() < until:
        pace.wait_turn(stop)
        times.append(time.time())
threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*times)
"""


def pace_of(url: str, per_second: float = 2 * BATCH + 1000) -> PostgresPace:
    return PostgresPace(Postgis(url), GRAPH_URL, per_second)


def test_no_second_has_more_requests_than_the_ceiling_over_four_processes(postgis_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, postgis_url], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    times = sorted(
        float(each) for process in processes for each in process.communicate()[0].split()
    )
    assert most_within(times, 1.0) <= 100
    assert len(times) > 150, "the pace is used"


def test_all_processes_pause_together(postgis_url: str) -> None:
    one, other = pace_of(postgis_url), pace_of(postgis_url)
    stop = threading.Event()
    one.wait_turn(stop)
    other.wait_turn(stop)
    began = time.monotonic()
    one.pause(1.5)
    for _ in range(BATCH):  # those that it has taken
        other.wait_turn(stop)
    assert time.monotonic() - began >= 1.5


def test_waiting_for_a_turn_can_be_stopped(postgis_url: str) -> None:
    pace, stop = pace_of(postgis_url), threading.Event()
    pace.pause(60)
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    with pytest.raises(StoppedError):
        pace.wait_turn(stop)
    assert time.monotonic() - began < 5


def test_the_links_of_photographs_keep_the_shared_pace(project: Project) -> None:
    city = project.write_city()
    assert project.run_city(city).success
    with project.postgis.transaction() as cursor:
        cursor.execute("SELECT graph_url FROM vsvi.graph_requests")
        assert cursor.fetchall() == [(project.sandbox.url,)]
