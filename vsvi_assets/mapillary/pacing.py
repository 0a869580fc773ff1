"""How fast to ask: as fast as the service allows, and no faster.

Limits documented at https://www.mapillary.com/developer/api-documentation#rate-limits:
60,000 entity requests a minute, 10,000 search requests a minute, 50,000 tiles a day.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from vsvi_assets.mapillary.errors import StoppedError, TileBudgetError

TILES_PER_DAY = 50_000


class Pacer:
    """Spaces out the requests of all threads that share it.

    Additive increase, multiplicative decrease: each second in which the service answers "too
    many requests" halves the rate, and success brings back the ceiling within `recovery`.

    Parameters
    ----------
    ceiling
        Requests a second, never exceeded.
    recovery
        Seconds from standstill back to the ceiling.
    """

    def __init__(self, ceiling: float, recovery: float = 60.0) -> None:
        self._ceiling = self._rate = ceiling
        self._floor = min(1.0, ceiling)
        self._recovery = recovery
        self._lock = threading.Lock()
        self._next_turn = self._changed = time.monotonic()
        self._turns_since_change = 0

    @property
    def rate(self) -> float:
        """Requests a second that are allowed now."""
        return self._rate

    def wait_turn(self, stop: threading.Event) -> None:
        """Wait until the next request may be made.

        Raises
        ------
        StoppedError
            When `stop` is set meanwhile.
        """
        with self._lock:
            now = time.monotonic()
            turn = max(self._next_turn, now)
            self._next_turn = turn + 1.0 / self._rate
            self._turns_since_change += 1
        if stop.wait(turn - now) if turn > now else stop.is_set():
            raise StoppedError("stopped while waiting for a turn")

    def slow_down(self, pause: float | None = None) -> None:
        """Take note of a refusal; `pause` is how many seconds the service asked for."""
        with self._lock:
            now = time.monotonic()
            elapsed = now - self._changed
            if elapsed >= self._recovery / 60:
                made = self._turns_since_change / elapsed
                self._rate = max(min(self._rate, made) / 2, self._floor)
                self._changed, self._turns_since_change = now, 0
            self._next_turn = max(self._next_turn, now + (pause or 0.0))

    def speed_up(self) -> None:
        """Take note of a success."""
        if self._rate == self._ceiling:
            return
        with self._lock:
            now = time.monotonic()
            gain = self._ceiling * (now - self._changed) / self._recovery
            self._rate = min(self._rate + gain, self._ceiling)
            self._changed, self._turns_since_change = now, 0


def _today() -> date:
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class TileBudget:
    """The tile requests of a day (UTC), counted over all runs and processes in a file."""

    path: Path
    per_day: int = TILES_PER_DAY
    today: Callable[[], date] = field(default=_today)

    def left(self) -> int:
        """Return how many tiles may still be asked for today."""
        return self.per_day - self._add(0)

    def spend(self) -> None:
        """Count one request.

        Raises
        ------
        TileBudgetError
            When it would be one too many.
        """
        if self._add(1) > self.per_day:
            self._add(-1)
            raise TileBudgetError(
                f"All {self.per_day:,} tile requests that Mapillary allows a day are made "
                f"(counted in {self.path}). Run again after midnight UTC: tiles on disk are kept."
            )

    def _add(self, requests: int) -> int:
        """Add to today's count, in one step for all processes, and return it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            today = self.today().isoformat()
            count = _count_of(file.read(), today) + requests
            if requests:
                file.seek(0)
                file.truncate()
                json.dump({"date": today, "tile_requests": count}, file)
        return count


def _count_of(text: str, today: str) -> int:
    """Return the count in the file's text, 0 where it is of another day or was cut off."""
    try:
        counted = json.loads(text)
    except ValueError:
        return 0
    return int(counted["tile_requests"]) if counted["date"] == today else 0
