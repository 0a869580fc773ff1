import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path

import pytest

from vsvi_assets.mapillary.errors import StoppedError, TileBudgetError
from vsvi_assets.mapillary.pacing import Pacer, TileBudget


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def test_the_ceiling_holds_for_all_threads_together(stop: threading.Event) -> None:
    pacer = Pacer(ceiling=200)
    began = time.monotonic()

    def take_ten_turns() -> None:
        for _ in range(10):
            pacer.wait_turn(stop)

    threads = [threading.Thread(target=take_ten_turns) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began > 79 / 200


def test_refusals_slow_down_by_their_share_and_success_brings_the_speed_back(
    stop: threading.Event,
) -> None:
    pacer = Pacer(ceiling=1000, recovery=6.0)

    def answers(refused_of_ten: int, seconds: float) -> float:
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            pacer.wait_turn(stop)
            number += 1
            if number % 10 < refused_of_ten:
                pacer.refused()
            else:
                pacer.succeeded()
        return pacer.rate

    assert answers(refused_of_ten=0, seconds=0.3) == 1000
    assert answers(refused_of_ten=10, seconds=1.2) < 150
    slow = pacer.rate
    for _ in range(10):
        if answers(refused_of_ten=0, seconds=0.5) > slow + 100:
            return
    pytest.fail(f"{pacer.rate} after seconds of success, and {slow} before")


def test_everyone_pauses_for_as_long_as_the_service_asks(stop: threading.Event) -> None:
    pacer = Pacer(ceiling=1000)
    pacer.wait_turn(stop)
    pacer.refused(pause=0.3)
    began = time.monotonic()
    pacer.wait_turn(stop)
    assert time.monotonic() - began > 0.25


def test_waiting_can_be_stopped(stop: threading.Event) -> None:
    pacer = Pacer(ceiling=1)
    pacer.refused(pause=60)
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(StoppedError):
        pacer.wait_turn(stop)


def test_the_budget_is_counted_over_processes_and_never_exceeded(tmp_path: Path) -> None:
    path = tmp_path / "data" / "tile_budget.json"
    spend = """
import sys
from pathlib import Path
from vsvi_assets.mapillary.errors import TileBudgetError
from vsvi_assets.mapillary.pacing import TileBudget

budget, spent = TileBudget(Path(sys.argv[1]), per_day=100), 0
try:
    while True:
        budget.spend()
        spent += 1
except TileBudgetError:
    print(spent)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", spend, str(path)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert sum(int(process.communicate()[0]) for process in processes) == 100
    budget = TileBudget(path, per_day=100)
    assert budget.left() == 0
    with pytest.raises(TileBudgetError, match=r"All 100 .* midnight UTC"):
        budget.spend()


def test_a_new_day_has_a_new_budget(tmp_path: Path) -> None:
    day = date(2026, 3, 1)
    budget = TileBudget(tmp_path / "tile_budget.json", per_day=2, today=lambda: day)
    budget.spend()
    budget.spend()
    assert budget.left() == 0
    day = date(2026, 3, 2)
    assert budget.left() == 2
    budget.spend()
    assert budget.left() == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"date": "20', '{"date": 1, "tile_requests": {}}']
)
def test_a_count_that_was_cut_off_starts_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tile_budget.json"
    path.write_text(text)
    budget = TileBudget(path, per_day=2)
    budget.spend()
    assert budget.left() == 1
