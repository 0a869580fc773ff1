"""Limits that are states of an address: tiles are blocked for a day, Overpass asks for pauses.

Evidence: jonfroehlich/streetscape-tracker, docs/provider-access.md (the block, measured three
times in 2026) and streetscape_metadata_tracker/overpass_retry.py (Overpass's operators, quoted);
drolbr/Overpass-API#791 (the rules of overpass-api.de).
"""

import math
import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_STOCK_AGENTS = re.compile(
    r"(python|urllib3|httpx|aiohttp|curl|wget|go-http-client|okhttp|java|jakarta|apache-httpclient"
    r"|axios|node|undici|ruby|libwww-perl|php|guzzle|osmnx|overpy|mozilla)\b",
    re.IGNORECASE,
)


def names_its_maker(user_agent: str) -> bool:
    """Return whether Overpass serves a User-Agent: a program's own, with a way to reach its maker.

    overpass-api.de answers 406 to what libraries send by default since April 2026. That an
    address or a page is required is stricter than what was seen.
    """
    has_contact = "@" in user_agent or "://" in user_agent
    return has_contact and not _STOCK_AGENTS.match(user_agent)


@dataclass
class AddressBlock:
    """The tile server's limit per address, whatever the token; every field may be changed.

    Attributes
    ----------
    after
        Tile requests of one address within `within` seconds that the server serves; the next
        one blocks the address. None: only `block` does.
    within, lasts
        Seconds. A request from a blocked address makes the block last that long from then on.
    """

    after: int | None = None
    within: float = 60.0
    lasts: float = 86_400.0
    _times: dict[str, deque[float]] = field(default_factory=dict, repr=False)
    _until: dict[str, float] = field(default_factory=dict, repr=False)

    def block(self, address: str = "127.0.0.1") -> None:
        """Block an address from now on."""
        self._until[address] = time.monotonic() + self.lasts

    def lift(self) -> None:
        """End all blocks now."""
        self._until.clear()
        self._times.clear()

    def is_blocked(self, address: str = "127.0.0.1") -> bool:
        """Return whether an address is blocked, without a request of it."""
        return time.monotonic() < self._until.get(address, 0.0)

    def refuses(self, address: str) -> bool:
        """Count one tile request; return whether it meets a block."""
        now = time.monotonic()
        times = self._times.setdefault(address, deque())
        times.append(now)
        while times[0] < now - self.within:
            times.popleft()
        if self.is_blocked(address) or (self.after is not None and len(times) > self.after):
            self.block(address)
        return self.is_blocked(address)


@dataclass
class NominatimLimits:
    """One request per second and address.

    Evidence: the usage policy (operations.osmfoundation.org/policies/nominatim), and
    osm-search/Nominatim#466, #906: 429 for those who ask faster. That a single request too
    early is refused is stricter than what was seen, that it is no block for hours is milder.
    """

    gap: float = 1.0
    _last: dict[str, float] = field(default_factory=dict, repr=False)

    def serves(self, address: str) -> bool:
        """Take note of a request; return whether it is answered."""
        now = time.monotonic()
        is_early = now - self._last.get(address, -math.inf) < self.gap
        self._last[address] = now
        return not is_early


class TooManyQueriesError(Exception):
    """Overpass answers 429."""


class BannedError(Exception):
    """Overpass takes no connection of this address any more."""


@dataclass
class OverpassLimits:
    """One query per address at a time, and a pause after each 429; fields may be changed.

    Attributes
    ----------
    pause
        Seconds without a query that a 429 asks for. A query before that is another 429.
    patience
        Queries within pauses after which the address is banned.
    ignored
        Queries within pauses, by address.
    """

    pause: float = 30.0
    patience: int = 3
    ignored: Counter[str] = field(default_factory=Counter)
    _until: dict[str, float] = field(default_factory=dict, repr=False)
    _running: set[str] = field(default_factory=set, repr=False)

    def seconds_left(self, address: str) -> float:
        """Return the seconds until an address may send the next query."""
        return max(0.0, self._until.get(address, 0.0) - time.monotonic())

    def refuse(self, address: str) -> None:
        """Ask an address for a pause."""
        self._until[address] = time.monotonic() + self.pause

    @contextmanager
    def query(self, address: str) -> Iterator[None]:
        """Run one query of an address.

        Raises
        ------
        BannedError, TooManyQueriesError
            When it may not be served.
        """
        if self.seconds_left(address):
            self.ignored[address] += 1
        if self.ignored[address] > self.patience:
            raise BannedError
        if self.seconds_left(address) or address in self._running:
            self.refuse(address)
            raise TooManyQueriesError
        self._running.add(address)
        try:
            yield
        finally:
            self._running.discard(address)
