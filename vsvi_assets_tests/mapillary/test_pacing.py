import threading
import time

import pytest

from vsvi_assets.mapillary.errors import StoppedError
from vsvi_assets.mapillary.pacing import Pace, TileState


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def test_the_pace_holds_for_all_threads_together(stop: threading.Event) -> None:
    pace = Pace(per_second=200)
    began = time.monotonic()

    def take_ten_turns() -> None:
        for _ in range(10):
            pace.wait_turn(stop)

    threads = [threading.Thread(target=take_ten_turns) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began > 79 / 200


def test_everyone_pauses_for_as_long_as_the_service_asks(stop: threading.Event) -> None:
    pace = Pace(per_second=1000)
    pace.wait_turn(stop)
    pace.pause(0.3)
    pace.pause(0.1)
    began = time.monotonic()
    pace.wait_turn(stop)
    assert time.monotonic() - began > 0.25


def test_waiting_can_be_stopped(stop: threading.Event) -> None:
    pace = Pace(per_second=1)
    pace.pause(60)
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(StoppedError):
        pace.wait_turn(stop)


def test_the_minutes_that_tiles_take_are_those_of_the_mean_gap() -> None:
    state = TileState(per_minute=40, per_day=50_000, left_today=50_000)
    assert state.minutes(209) == pytest.approx(209 / 40 * 1.1)
