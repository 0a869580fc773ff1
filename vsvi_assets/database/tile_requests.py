"""Pace, daily budget and block of the tile requests, shared by all processes of a database.

Each tile server has one row in `vsvi.tile_requests`. All times are those of the database's
clock, so that machines whose clocks differ keep one pace.
"""

import threading
from datetime import datetime
from typing import NamedTuple

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.graph_requests import GRAPH_REQUESTS_PER_SECOND, PostgresPace
from vsvi_assets.database.server import project_database
from vsvi_assets.database.shared_row import SharedRow
from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.mapillary.errors import AddressBlockedError, StoppedError, TileBudgetError
from vsvi_assets.mapillary.pacing import TileGate, TileState, random_gap_seconds
from vsvi_assets.settings import ServiceAddresses, Settings

PROBE_SECONDS = 120.0
"""For how long all others wait for the one request that shows whether a block is over."""

WAKE_SECONDS = 0.5
"""How often a thread that waits for another thread of its process looks whether to stop."""

PROBE_POLL_SECONDS = 1.0

_CREATE = """
    CREATE TABLE IF NOT EXISTS vsvi.tile_requests (
        tiles_url text PRIMARY KEY,
        next_turn timestamptz NOT NULL DEFAULT clock_timestamp(),
        day date NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC')::date,
        requests integer NOT NULL DEFAULT 0,
        blocked_since timestamptz,
        blocked_until timestamptz,
        block_reason text,
        probe_until timestamptz
    );
"""

_TAKE_TURN = """
    UPDATE vsvi.tile_requests SET
        next_turn = clock_timestamp() + make_interval(secs => %(gap)s),
        day = (clock_timestamp() AT TIME ZONE 'UTC')::date,
        requests = 1 + CASE
            WHEN day = (clock_timestamp() AT TIME ZONE 'UTC')::date THEN requests ELSE 0
        END,
        probe_until = CASE
            WHEN blocked_until IS NOT NULL
            THEN clock_timestamp() + make_interval(secs => %(probe_seconds)s)
        END
    WHERE tiles_url = %(key)s
        AND next_turn <= clock_timestamp()
        AND (requests < %(per_day)s OR day <> (clock_timestamp() AT TIME ZONE 'UTC')::date)
        AND (
            blocked_until IS NULL
            OR blocked_until <= clock_timestamp()
            AND (probe_until IS NULL OR probe_until <= clock_timestamp())
        )
    RETURNING probe_until IS NOT NULL
"""

_READ = """
    SELECT
        greatest(extract(epoch FROM next_turn - clock_timestamp()), 0)::float,
        CASE
            WHEN day = (clock_timestamp() AT TIME ZONE 'UTC')::date
            THEN greatest(%(per_day)s - requests, 0) ELSE %(per_day)s
        END,
        blocked_since, blocked_until, block_reason,
        blocked_until IS NOT NULL AND blocked_until > clock_timestamp(),
        blocked_until IS NOT NULL AND probe_until > clock_timestamp()
    FROM vsvi.tile_requests WHERE tiles_url = %(key)s
"""

_BLOCK = """
    UPDATE vsvi.tile_requests SET
        blocked_since = coalesce(blocked_since, statement_timestamp()),
        blocked_until = statement_timestamp() + make_interval(hours => %(block_hours)s),
        block_reason = %(reason)s,
        probe_until = NULL
    WHERE tiles_url = %(key)s
    RETURNING blocked_since, blocked_until
"""

# Not a block that was seen meanwhile: this answer may be older.
_UNBLOCK = """
    UPDATE vsvi.tile_requests SET
        blocked_since = NULL, blocked_until = NULL, block_reason = NULL, probe_until = NULL
    WHERE tiles_url = %(key)s AND blocked_until <= clock_timestamp()
"""


class _Row(NamedTuple):
    wait_seconds: float
    left_today: int
    blocked_since: datetime | None
    blocked_until: datetime | None
    block_reason: str | None
    is_blocked: bool
    is_probed: bool


class PostgresTileGate(TileGate):
    """Gives the turns of all processes that use a database.

    One connection is kept, which all threads of the process share. A turn is one statement of
    one row, in a transaction of its own.

    Parameters
    ----------
    tiles_url
        Address of the tile server: each has its own pace, budget and block.
    per_minute
        Most requests in any 60 seconds.
    per_day
        Most requests per day (UTC).
    block_hours
        How long no tile is requested after an answer that showed a block.
    """

    def __init__(
        self, postgis: Postgis, tiles_url: str, *, per_minute: int, per_day: int, block_hours: int
    ) -> None:
        self._row = SharedRow(postgis, "tile_requests", "tiles_url", tiles_url, _CREATE)
        self._per_minute, self._per_day, self._block_hours = per_minute, per_day, block_hours
        self._queue = threading.Lock()  # so that one thread of the process asks at a time
        self._is_probing = False

    def wait_turn(self, stop: threading.Event) -> None:
        """Wait until the next tile may be requested, and count the request.

        When a block is due, the first turn is that of one request, which shows whether the
        block is over; all others wait for its answer, at most `PROBE_SECONDS`. Raises what
        `TileGate` says, and PostgisError when the database cannot be used.
        """
        while not self._queue.acquire(timeout=WAKE_SECONDS):
            _check(stop)
        try:
            _check(stop)
            while wait_seconds := self._take_turn():
                stop.wait(wait_seconds)
                _check(stop)
        finally:
            self._queue.release()

    def blocked(self, reason: str) -> AddressBlockedError:
        """As `TileGate` says; one that is seen again keeps its beginning, and lasts from now."""
        self._is_probing = False
        [(since, until)] = self._run(_BLOCK, reason=reason, block_hours=self._block_hours)
        return AddressBlockedError(since, until, reason)

    def answered(self) -> None:
        if self._is_probing:
            self._run(_UNBLOCK)
            self._is_probing = False

    def state(self) -> TileState:
        row = self._read()
        return TileState(
            per_minute=self._per_minute,
            per_day=self._per_day,
            left_today=row.left_today,
            blocked_since=row.blocked_since,
            blocked_until=row.blocked_until,
            block_reason=row.block_reason,
            is_blocked=row.is_blocked,
        )

    def _take_turn(self) -> float:
        """Take the turn where there is one; return 0, or the seconds until the next attempt."""
        turn = self._run(
            _TAKE_TURN, gap=random_gap_seconds(self._per_minute), probe_seconds=PROBE_SECONDS
        )
        if turn:
            [(is_probe,)] = turn
            self._is_probing = self._is_probing or is_probe
            return 0.0
        row = self._read()
        if row.is_blocked:
            assert row.blocked_since
            assert row.blocked_until
            raise AddressBlockedError(row.blocked_since, row.blocked_until, row.block_reason or "")
        if not row.left_today:
            raise TileBudgetError(
                f"All {self._per_day:,} tile requests of today (UTC) are made. Run again after "
                "midnight UTC: tiles on disk are kept."
            )
        return max(row.wait_seconds, PROBE_POLL_SECONDS if row.is_probed else 0.001)

    def _read(self) -> _Row:
        [row] = self._run(_READ)
        return _Row(*row)

    def _run(self, statement: str, **values: object) -> list[tuple]:
        return self._row.run(statement, per_day=self._per_day, **values)


def tile_gate(services: ServiceAddresses, settings: Settings, postgis: Postgis) -> PostgresTileGate:
    """Return what gives the turns of the tile requests to these services."""
    return PostgresTileGate(
        postgis,
        services.tiles_url,
        per_minute=services.tiles_per_minute,
        per_day=settings.tiles_per_day,
        block_hours=settings.block_hours,
    )


def paced_client(city: City, settings: Settings, *, backoff: float = 1.0) -> Mapillary:
    """Return a client of the city's services, whose requests keep one pace with all others'.

    It tries as often as the city file says. `backoff` is in seconds: the base to which the
    pauses between attempts grow.
    """
    services, postgis = settings.services_of(city.services), project_database(settings)
    return Mapillary(
        services,
        tile_gate=tile_gate(services, settings, postgis),
        graph_pace=PostgresPace(postgis, services.graph_url, GRAPH_REQUESTS_PER_SECOND),
        num_retries=city.num_retries,
        backoff=backoff,
    )


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise StoppedError("stopped while waiting for the turn of a tile request")
