"""Pace of the Graph API's requests, shared by all processes of a database.

The documented limits are an application's, not a process's. Each Graph API has one row in
`vsvi.graph_requests`; times are those of the database's clock.
"""

import threading
import time

from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.shared_row import SharedRow
from vsvi_assets.mapillary.errors import StoppedError
from vsvi_assets.mapillary.pacing import Pacing

GRAPH_REQUESTS_PER_SECOND = 150.0
"""Most requests per second, of all processes together: below the 10,000 searches a minute of
https://www.mapillary.com/developer/api-documentation#rate-limits."""

BATCH = 10
"""How many turns a process takes at a time, with one statement."""

_CREATE = """
    CREATE TABLE IF NOT EXISTS vsvi.graph_requests (
        graph_url text PRIMARY KEY,
        next_turn timestamptz NOT NULL DEFAULT clock_timestamp()
    );
"""

_TAKE_TURNS = """
    UPDATE vsvi.graph_requests
    SET next_turn = greatest(next_turn, clock_timestamp()) + make_interval(secs => %(seconds)s)
    WHERE graph_url = %(key)s
    RETURNING extract(epoch FROM next_turn - clock_timestamp())::float - %(seconds)s
"""

_PAUSE = """
    UPDATE vsvi.graph_requests
    SET next_turn = greatest(next_turn, clock_timestamp() + make_interval(secs => %(seconds)s))
    WHERE graph_url = %(key)s
"""


class PostgresPace(Pacing):
    """Spaces out the requests of all processes, and lets them pause together.

    A process takes the turns of a short time for itself, and gives up those that it could not
    use within it. So any second holds the turns of that second, and those of a batch at each
    of its ends at most.

    Parameters
    ----------
    per_second
        Requests per second, never exceeded; above 2 * `BATCH`.
    """

    def __init__(self, postgis: Postgis, graph_url: str, per_second: float) -> None:
        self._row = SharedRow(postgis, "graph_requests", "graph_url", graph_url, _CREATE)
        self._gap = 1.0 / (per_second - 2 * BATCH)
        self._lock = threading.Lock()
        self._begin, self._used = 0.0, BATCH

    def wait_turn(self, stop: threading.Event) -> None:
        """As `Pacing` says; psycopg2.Error when the database cannot be used."""
        with self._lock:
            if self._used == BATCH or time.monotonic() > self._begin + BATCH * self._gap:
                [(wait,)] = self._row.run(_TAKE_TURNS, seconds=BATCH * self._gap)
                self._begin, self._used = time.monotonic() + wait, 0
            turn = self._begin + self._used * self._gap
            self._used += 1
        if stop.wait(max(turn - time.monotonic(), 0)):
            raise StoppedError("stopped while waiting for a turn")

    def pause(self, seconds: float) -> None:
        """As `Pacing` says; the few turns that are taken already are used."""
        self._row.run(_PAUSE, seconds=seconds)
        with self._lock:
            self._used = BATCH
