"""How fast to ask: as fast as the service allows, and no faster.

Limits documented at https://www.mapillary.com/developer/api-documentation#rate-limits:
60,000 entity requests a minute, 10,000 search requests a minute, 50,000 tiles a day.
"""

import fcntl
import json
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Protocol

from vsvi_assets.files import writing_in
from vsvi_assets.mapillary.errors import AddressBlockedError, StoppedError, TileBudgetError

TILES_PER_DAY = 50_000
LARGEST_GAP = 1.2
"""The largest random gap between two tile requests, compared with the smallest."""


@dataclass(frozen=True)
class TileState:
    """How many tiles may be requested, of all processes that share the count.

    Attributes
    ----------
    per_minute
        Most tile requests in any 60 seconds.
    per_day, left_today
        Most tile requests per day (UTC), and how many of today's are left.
    blocked_since, blocked_until, block_reason
        Of a block of this network address by Mapillary: when it was first seen, before when no
        tile is requested (UTC), and the answer that showed it. All None without a block.
    is_blocked
        Whether tiles may not be requested now. False for a block that is due: one request for
        a tile then shows whether it is over.
    """

    per_minute: int
    per_day: int
    left_today: int
    blocked_since: datetime | None = None
    blocked_until: datetime | None = None
    block_reason: str | None = None
    is_blocked: bool = False

    def minutes(self, tiles: int) -> float:
        """Return how many minutes so many tile requests take on average."""
        return tiles * mean_gap_seconds(self.per_minute) / 60


class TileGate(Protocol):
    """Decides when the next tile may be requested, for all processes together.

    Every request for a tile needs a turn. It is followed by `answered` or `blocked` where the
    tile server gave an answer from which its state can be seen.
    """

    def wait_turn(self, stop: threading.Event) -> None:
        """Wait until the next tile may be requested, and count the request.

        Raises
        ------
        AddressBlockedError
            When this address is blocked, at once.
        TileBudgetError
            When the day's requests are used up, at once.
        StoppedError
            When `stop` is set meanwhile, within a second.
        """

    def blocked(self, reason: str) -> AddressBlockedError:
        """Record that this address is blocked, and return the error to raise."""

    def answered(self) -> None:
        """Record that the tile server answers: a block, if there was one, is over."""

    def state(self) -> TileState:
        """Return how many requests are left, and whether there is a block."""


def random_gap_seconds(per_minute: int) -> float:
    """Return a random time between two tile requests.

    Never less than 60 / per_minute, so that no 60 seconds hold more requests.
    """
    return random.uniform(1.0, LARGEST_GAP) * 60 / per_minute


def mean_gap_seconds(per_minute: int) -> float:
    """Return the mean of `random_gap_seconds`."""
    return (1.0 + LARGEST_GAP) / 2 * 60 / per_minute


class Pacer:
    """Spaces out the requests of all threads that share it.

    The rate is reviewed every sixtieth of `recovery`: it falls by half the share of requests
    that were answered "too many requests", and otherwise rises by a sixtieth of the ceiling. So it
    halves while everything is refused, but a few refusals among many successes cost little
    (additive increase, and the decrease of Data Center TCP, RFC 8257).

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
        self._step, self._review_every = ceiling / 60, recovery / 60
        self._lock = threading.Lock()
        self._next_turn = self._resume = self._reviewed = time.monotonic()
        self._requests = self._refusals = 0

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
            if not self._requests:
                self._reviewed = now  # idle time is no sign of a slow service
            self._requests += 1
        while (wait := max(turn, self._resume) - time.monotonic()) > 0:
            if stop.wait(wait):
                break
        if stop.is_set():
            raise StoppedError("stopped while waiting for a turn")

    def succeeded(self) -> None:
        """Take note of a good answer."""
        with self._lock:
            self._review()

    def refused(self, pause: float | None = None) -> None:
        """Take note of "too many requests"; `pause` is how many seconds it asked to wait."""
        with self._lock:
            self._refusals += 1
            self._resume = max(self._resume, time.monotonic() + (pause or 0.0))
            self._next_turn = max(self._next_turn, self._resume)
            self._review()

    def _review(self) -> None:
        now = time.monotonic()
        elapsed = now - self._reviewed
        if elapsed < self._review_every:
            return
        if self._refusals:
            made = self._requests / elapsed
            share = min(self._refusals / max(self._requests, 1), 1.0)
            self._rate = min(self._rate, 2 * made) * (1 - share / 2)
        self._rate = min(max(self._rate, self._floor) + self._step, self._ceiling)
        self._reviewed, self._requests, self._refusals = now, 0, 0


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
        with writing_in(self.path.parent), os.fdopen(descriptor, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            today = self.today().isoformat()
            count = _count_of(file.read(), today) + requests
            if requests:
                file.seek(0)
                json.dump({"date": today, "tile_requests": count}, file)
                file.truncate()  # at last, lest a full disk or a kill leaves no count
        return count


def _count_of(text: str, today: str) -> int:
    """Return the count in the file's text, 0 where it is of another day or was cut off."""
    try:
        counted = json.loads(text)
        return int(counted["tile_requests"]) if counted["date"] == today else 0
    except (ValueError, TypeError, KeyError):
        return 0
