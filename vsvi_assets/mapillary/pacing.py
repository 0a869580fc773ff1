"""How fast to ask: constant limits within a process, and turns that processes share for tiles."""

import random
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from vsvi_assets.mapillary.errors import AddressBlockedError, StoppedError

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

    def summary(self, tiles: int) -> str:
        """Return in words what so many tile requests take, and whether they may be made."""
        words = (
            f"{tiles:,} tiles take {duration(self.minutes(tiles))} at {self.per_minute:,} per "
            f"minute; {self.left_today:,} of {self.per_day:,} requests are left today"
        )
        if self.is_blocked:
            assert self.blocked_since
            assert self.blocked_until
            words += (
                f"; blocked by Mapillary since {self.blocked_since.astimezone(UTC):%Y-%m-%d %H:%M} "
                f"UTC, none is requested until {self.blocked_until.astimezone(UTC):%Y-%m-%d %H:%M} "
                f"UTC ({self.block_reason})"
            )
        return words


def duration(minutes: float) -> str:
    """Say how long something takes that takes so many minutes on average."""
    return f"about {minutes:,.0f} minutes" if minutes >= 1.5 else "seconds"


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


class Pacing(Protocol):
    """Decides when the next request may be made to a service that documents a limit."""

    def wait_turn(self, stop: threading.Event) -> None:
        """Wait until the next request may be made.

        Raises
        ------
        StoppedError
            When `stop` is set meanwhile.
        """

    def pause(self, seconds: float) -> None:
        """Let nobody make a request for some seconds, after "too many requests"."""


class Pace(Pacing):
    """Spaces out the requests of all threads that share it, and lets them pause together.

    Parameters
    ----------
    per_second
        Requests per second, never exceeded.
    """

    def __init__(self, per_second: float) -> None:
        self._gap = 1.0 / per_second
        self._lock = threading.Lock()
        self._next_turn = self._resume = time.monotonic()

    def wait_turn(self, stop: threading.Event) -> None:
        with self._lock:
            turn = max(self._next_turn, time.monotonic())
            self._next_turn = turn + self._gap
        while (wait := max(turn, self._resume) - time.monotonic()) > 0:
            if stop.wait(wait):
                break
        if stop.is_set():
            raise StoppedError("stopped while waiting for a turn")

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._resume = max(self._resume, time.monotonic() + seconds)
            self._next_turn = max(self._next_turn, self._resume)
