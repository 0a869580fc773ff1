"""What a sandbox was asked and what it answered."""

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

_REQUESTS_KEPT = 200_000


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, and its answer.

    Attributes
    ----------
    at
        When it arrived, seconds since 1970 UTC.
    service
        `tiles`, `graph`, `images`, `overpass`, `nominatim` or `elsewhere`.
    what
        Path and query, without the token.
    status
        Of the answer; 0 where the connection was broken off.
    fault
        What the sandbox did wrong on purpose.
    address
        Where it came from.
    user_agent, token_in
        What it carried; `token_in` names where a token was: `header`, `query`.
    """

    at: float
    service: str
    what: str
    status: int
    fault: str | None
    address: str
    user_agent: str
    token_in: frozenset[str]


@dataclass
class Stats:
    """Counts since the start; written by the server's thread, read by any.

    `log` has the last 200,000 requests in the order in which they were answered.
    `images_served` counts the answers that were whole and right, `image_bytes` their bytes;
    `faults_by_image` lists the faults of an image's file in the order they were committed.
    A token leak is a token that came where none belongs: to the image server, or along a
    redirect.
    """

    requests: Counter[str] = field(default_factory=Counter)
    most_at_once: Counter[str] = field(default_factory=Counter)
    faults: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    faults_by_image: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    tiles_asked: Counter[str] = field(default_factory=Counter)
    graph_ids_asked: Counter[int] = field(default_factory=Counter)
    images_asked: Counter[int] = field(default_factory=Counter)
    images_served: Counter[int] = field(default_factory=Counter)
    image_bytes: int = 0
    token_leaks: int = 0
    redirects_followed: int = 0
    log: deque[Asked] = field(default_factory=lambda: deque(maxlen=_REQUESTS_KEPT))

    def asked(self, service: str) -> list[Asked]:
        """Return the requests of one service, in the order in which they arrived."""
        requests = [each for each in list(self.log) if each.service == service]
        return sorted(requests, key=lambda each: each.at)
