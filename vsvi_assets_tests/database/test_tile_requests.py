"""Tile requests: one pace, one budget and one block for all processes of a database."""

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsvi_assets.database import tile_requests
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import PostgisError
from vsvi_assets.database.tile_requests import PostgresTileGate
from vsvi_assets.mapillary.errors import AddressBlockedError, StoppedError, TileBudgetError
from vsvi_assets.mapillary.pacing import random_gap_seconds
from vsvi_assets.sandbox import Sandbox
from vsvi_assets.sandbox.limits import AddressBlock
from vsvi_assets_tests.mapillary.parts import street_images, world_of

TILES_URL = "https://tiles.example"
FAST = 6_000_000


def gate_of(
    url: str, *, tiles_url: str = TILES_URL, per_minute: int = FAST, per_day: int = 50_000
) -> PostgresTileGate:
    return PostgresTileGate(
        Postgis(url), tiles_url, per_minute=per_minute, per_day=per_day, block_hours=24
    )


def take(gate: PostgresTileGate) -> None:
    gate.wait_turn(threading.Event())


def change(url: str, assignment: str) -> None:
    """Change the row of the tile server, as time or another process would."""
    with Postgis(url).transaction() as cursor:
        cursor.execute(f"UPDATE vsvi.tile_requests SET {assignment}")  # noqa: S608


def in_processes(
    count: int, url: str, script: str, *arguments: str, **values: Any
) -> list[subprocess.Popen[str]]:
    """Run a script in processes, each with a gate of its own made of the values."""
    header = f"""
import threading, time
from vsvi_assets.mapillary.errors import AddressBlockedError, TileBudgetError
from vsvi_assets_tests.database.test_tile_requests import gate_of, take
gate = gate_of({url!r}, **{values!r})
"""
    return [
        subprocess.Popen(
            [sys.executable, "-c", header + script, *arguments], stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]


def most_within(times: Sequence[float], seconds: float) -> int:
    """Return the largest number of times in any period of `seconds`."""
    return max(sum(start <= time < start + seconds for time in times) for start in times)


def test_the_budget_of_a_day_is_spent_exactly_by_several_processes(postgis_url: str) -> None:
    script = """
spent = 0
try:
    for _ in range(125):
        take(gate)
        spent += 1
except TileBudgetError:
    pass
print(spent)
"""
    processes = in_processes(4, postgis_url, script, per_day=300)
    assert sum(int(process.communicate()[0]) for process in processes) == 300
    gate = gate_of(postgis_url, per_day=300)
    assert gate.state().left_today == 0
    with pytest.raises(TileBudgetError, match=r"All 300 tile requests of today .* midnight UTC"):
        take(gate)


def test_no_period_has_more_requests_than_the_pace_over_several_processes(
    postgis_url: str,
) -> None:
    script = """
stop, times = threading.Event(), []
def ask():
    for _ in range(10):
        gate.wait_turn(stop)
        times.append(time.time())
threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*times)
"""
    per_minute = 1500
    processes = in_processes(3, postgis_url, script, per_minute=per_minute)
    times = sorted(
        float(each) for process in processes for each in process.communicate()[0].split()
    )
    assert len(times) == 120
    assert most_within(times, 40 * 60 / per_minute) <= 40
    gaps = {round(later - earlier, 3) for earlier, later in itertools.pairwise(times)}
    assert len(gaps) > 5, "the gaps are not random"


@given(st.integers(1, 100_000))
def test_gaps_are_random_and_never_shorter_than_the_pace_allows(per_minute: int) -> None:
    gaps = {random_gap_seconds(per_minute) for _ in range(50)}
    assert len(gaps) > 40
    assert 60 / per_minute <= min(gaps)
    assert max(gaps) <= 1.2 * 60 / per_minute


def test_each_tile_server_has_a_pace_of_its_own(postgis_url: str) -> None:
    take(gate_of(postgis_url, per_minute=1))
    began = time.monotonic()
    other = gate_of(postgis_url, tiles_url="http://127.0.0.1:1")
    for _ in range(200):
        take(other)
    assert time.monotonic() - began < 4
    assert gate_of(postgis_url).state().left_today == 49_999


def test_a_new_day_has_a_new_budget(postgis_url: str) -> None:
    gate = gate_of(postgis_url, per_day=2)
    take(gate)
    take(gate)
    with pytest.raises(TileBudgetError):
        take(gate)
    change(postgis_url, "day = day - 1")
    assert gate.state().left_today == 2
    take(gate)
    assert gate.state().left_today == 1


def test_waiting_for_a_turn_can_be_stopped(postgis_url: str) -> None:
    gate = gate_of(postgis_url, per_minute=1)
    take(gate)
    stop, ended = threading.Event(), []

    def wait() -> None:
        with pytest.raises(StoppedError):
            gate.wait_turn(stop)
        ended.append(time.monotonic())

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    stopped = time.monotonic()
    stop.set()
    for thread in threads:
        thread.join()
    assert max(ended) - stopped < 1.0


def test_a_block_is_known_to_all_processes_until_it_is_due(postgis_url: str) -> None:
    gate = gate_of(postgis_url)
    take(gate)
    error = gate.blocked("tile 14/1/2: tile server answered 302")
    assert error.until - error.since == timedelta(hours=24)
    reported = str(error)
    assert (
        f"since {error.since:%Y-%m-%d %H:%M} UTC (tile 14/1/2: tile server answered 302)"
        in reported
    )
    assert f"No tile is requested until {error.until:%Y-%m-%d %H:%M} UTC" in reported
    assert "photographs whose tiles are on disk can still be downloaded" in reported

    script = """
try:
    take(gate)
except AddressBlockedError as error:
    print(error)
"""
    processes = in_processes(3, postgis_url, script)
    assert [process.communicate()[0].strip() for process in processes] == [reported] * 3
    state = gate_of(postgis_url).state()
    assert state.is_blocked
    assert (state.blocked_since, state.blocked_until) == (error.since, error.until)
    assert state.left_today == 49_999, "turns that were not given are not counted"


def due_block(url: str) -> PostgresTileGate:
    """Return a gate whose block is due."""
    gate = gate_of(url)
    take(gate)
    gate.blocked("seen")
    change(url, "blocked_until = clock_timestamp()")
    assert not gate.state().is_blocked
    return gate


def test_one_tile_shows_whether_a_due_block_is_over_while_all_others_wait(
    postgis_url: str,
) -> None:
    due_block(postgis_url)
    gates = [gate_of(postgis_url) for _ in range(6)]
    through: list[PostgresTileGate] = []

    def ask(gate: PostgresTileGate) -> None:
        take(gate)
        through.append(gate)

    threads = [threading.Thread(target=ask, args=[gate]) for gate in gates]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    assert len(through) == 1
    through[0].answered()
    for thread in threads:
        thread.join()
    assert len(through) == 6
    assert gates[0].state().blocked_since is None


def test_a_due_block_that_is_seen_again_lasts_on(postgis_url: str) -> None:
    gate = due_block(postgis_url)
    since = gate.state().blocked_since
    take(gate)
    error = gate.blocked("seen again")
    assert error.since == since
    assert error.until - error.since > timedelta(hours=23)
    with pytest.raises(AddressBlockedError, match="seen again"):
        take(gate_of(postgis_url))


def test_the_probe_of_a_process_that_died_times_out(
    postgis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_requests, "PROBE_SECONDS", 1.5)
    take(due_block(postgis_url))
    began = time.monotonic()
    take(gate_of(postgis_url))
    assert 1.0 < time.monotonic() - began < 5


def test_an_answer_to_an_earlier_request_does_not_end_a_block(postgis_url: str) -> None:
    probing, other = due_block(postgis_url), gate_of(postgis_url)
    take(probing)
    other.blocked("seen by another")
    probing.answered()
    with pytest.raises(AddressBlockedError):
        take(other)


def test_a_connection_that_the_server_closed_is_opened_again(postgis_url: str) -> None:
    gate = gate_of(postgis_url)
    take(gate)
    with Postgis(postgis_url).transaction() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'vsvi tile requests' AND datname = current_database()"
        )
    take(gate)
    assert gate.state().left_today == 49_998


def test_a_role_that_may_not_create_the_schema_learns_what_to_do(postgis_url: str) -> None:
    guest = "guest_of_the_tiles"
    with Postgis(postgis_url).transaction() as cursor:
        cursor.execute(f"CREATE ROLE {guest} LOGIN PASSWORD 'g'")
        database = cursor.connection.info.dbname
    try:
        port = psycopg2.extensions.parse_dsn(postgis_url.replace("+psycopg2", ""))["port"]
        gate = gate_of(f"postgresql://{guest}:g@127.0.0.1:{port}/{database}")
        with pytest.raises(
            PostgisError, match=f'GRANT CREATE ON DATABASE "{database}" TO "{guest}"'
        ):
            take(gate)
    finally:
        with Postgis(postgis_url).transaction() as cursor:
            cursor.execute(f"DROP ROLE {guest}")


FETCH = """
from mercantile import Tile
from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.mapillary.coverage import fetch_tiles
from vsvi_assets_tests.mapillary.parts import services_at
import sys
client = Mapillary(services_at(sys.argv[1]), tile_gate=gate, num_retries=3, backoff=0.1)
tiles = [Tile(8000 + number, 5000, 14) for number in range(200)]
try:
    for _ in fetch_tiles(client, tiles):
        print("fetched", flush=True)
except AddressBlockedError as error:
    print("blocked")
"""


def test_three_processes_and_two_later_runs_ask_a_blocked_address_for_nothing_more(
    postgis_url: str,
) -> None:
    limit = AddressBlock(after=40)
    with Sandbox(world_of(street_images(3)), block=limit, latency=0.05) as sandbox:
        of_sandbox = {"tiles_url": sandbox.url, "per_minute": 1200}
        processes = in_processes(3, postgis_url, FETCH, sandbox.url, **of_sandbox)
        printed = [process.communicate()[0].split() for process in processes]
        assert [lines[-1] for lines in printed] == ["blocked"] * 3
        fetched = sum(lines.count("fetched") for lines in printed)
        assert fetched == 40
        into_the_block = sandbox.stats.requests["tiles"] - fetched
        assert 1 <= into_the_block <= 3, "at most one of each process, already under way"
        for _ in range(2):
            [process] = in_processes(1, postgis_url, FETCH, sandbox.url, **of_sandbox)
            assert process.communicate()[0].split() == ["blocked"]
        assert sandbox.stats.requests["tiles"] - fetched == into_the_block
        assert sandbox.stats.redirects_followed == 0
        times = [asked.at for asked in sandbox.stats.asked("tiles")]
        assert most_within(times, 40 * 60 / 1200) <= 41
