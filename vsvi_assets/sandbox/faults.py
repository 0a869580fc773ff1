"""Faults that the sandbox commits on purpose, decided by a seed and not by chance."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Lock
from typing import Any


class Fault(StrEnum):
    """What may go wrong with an answer."""

    RATE_LIMITED = "rate_limited"
    """429, Graph error code 4, Retry-After in seconds"""
    RATE_LIMITED_DATE = "rate_limited_date"
    """429, Graph error code 4, Retry-After as an HTTP date"""
    RATE_LIMITED_BARE = "rate_limited_bare"
    """429, Graph error code 4, no Retry-After"""
    RATE_LIMITED_XML = "rate_limited_xml"
    """429 with an XML body"""
    APPLICATION_LIMIT = "application_limit"
    """400, Graph error code 4, is_transient true"""
    UNKNOWN_ERROR = "unknown_error"
    """500, Graph error code 1: "Please reduce the amount of data" """
    SERVER_ERROR = "server_error"
    """500, Graph error code 2, is_transient true"""
    TIMEOUT = "timeout"
    """400, Graph error code -2, is_transient false"""
    UNAVAILABLE = "unavailable"
    """503, an HTML page"""
    GATEWAY_TIMEOUT = "gateway_timeout"
    """504, an HTML page"""
    NO_DATA = "no_data"
    """200, `{"data": []}`, as for three days in 2021 (mapillary/mapillary-js#460)"""
    TOO_BUSY = "too_busy"
    """504, Overpass's page that the server is probably too busy (tyrasd/overpass-turbo#815)"""
    OUT_OF_MEMORY = "out_of_memory"
    """200, an Overpass answer without elements, with the remark that memory ran out"""
    TIMED_OUT = "timed_out"
    """200, an Overpass answer without elements, with the remark that the query timed out"""
    HTML_PAGE = "html_page"
    """200, an HTML page"""
    EMPTY = "empty"
    """200, no body"""
    NOT_FOUND = "not_found"
    """404"""
    EXPIRED = "expired"
    """403, as for an image link that is too old"""
    REFUSED_TOKEN = "refused_token"
    """401, Graph error code 190"""
    BLOCKED = "blocked"
    """302 to a login page, which answers 200: what a blocked address gets from the tile server"""
    REDIRECT_TO_FILE = "redirect_to_file"
    """302 to file:///etc/hostname"""
    REDIRECT_TO_HOST = "redirect_to_host"
    """302 to another host name"""
    RESET = "reset"
    """the connection is aborted before the answer"""
    CUT_OFF = "cut_off"
    """half of the announced body, then the connection is closed"""
    STALL = "stall"
    """half of the announced body, then nothing for `Faults.stall` seconds"""
    SLOW = "slow"
    """the right answer, `Faults.slow` seconds late"""
    TRUNCATED = "truncated"
    """half of the body, with a Content-Length that fits it"""
    MALFORMED = "malformed"
    """200, the right length and noise for a body"""
    HOSTILE_IDS = "hostile_ids"
    """a tile some of whose images have ids that are none, or that lead out of any folder"""
    ODD_COLUMNS = "odd_columns"
    """a tile with columns that nobody knows, or whose values are of other types than usual"""
    ODD_TIMES = "odd_times"
    """a tile whose capture times lie at the ends of int64 and beyond, and in the year 318857"""
    BROKEN_FEATURES = "broken_features"
    """a tile some of whose images lack what they are found by"""


TILE_CHANGES: dict[Fault, tuple[dict[str, Any], ...]] = {
    Fault.HOSTILE_IDS: (
        {"sequence_id": "../../../../tmp/escaped"},
        {"sequence_id": "/etc/passwd"},
        {"id": "../../escaped"},
        {"sequence_id": ".."},
        {"sequence_id": "a/b"},
        {"sequence_id": "nul\0l"},
        {"sequence_id": "x" * 300},
        {"sequence_id": ""},
        {"id": -1},
    ),
    Fault.ODD_COLUMNS: (
        {"quality_score": "high"},
        {"quality_score": 0.5, "foot": 3},
        {"quality_score": True, "foot": "yes"},
        {"organization_id": 2**64 - 1},
        {"creator_id": "nobody"},
        {"compass_angle": "north"},
    ),
    Fault.ODD_TIMES: tuple(
        {"captured_at": time}
        for time in (0, -1, 10_000_000_000_000_000, 2**63 - 1, -(2**63), 2**64 - 1, 1.5e12, "1500")
    ),
    Fault.BROKEN_FEATURES: (
        {"sequence_id": None},
        {"id": None},
        {"id": "none"},
        {"sequence_id": 7},
    ),
}
"""What a fault changes in the first images of a tile, one each; None: the property is absent."""


@dataclass
class Faults:
    """Which faults to commit, and how often; every field may be changed while it runs.

    `tiles`, `graph`, `images`, `overpass` and `nominatim` give each fault's probability for a
    request of that service, as in `Faults(images={Fault.RESET: 0.05})`. Whether a request fails
    depends only on the seed, the service, what is asked, and how often that has been asked before,
    so it is the same however the requests of several threads are interleaved.

    Parameters
    ----------
    by_image, by_tile
        Images (ids) and tiles (`14/x/y`) that are answered with one and the same fault, always.
    failing_ids
        Images (ids) for which the graph answers 500, code 2, always, to every request that
        names one of them among others.
    most_ids
        Image ids in one request of the graph above which it answers code 1.
    gone
        Share of the images that are in the tiles but no more in the graph.
    gone_ids
        Further such images, by id.
    most
        At most this many faults for one and the same question; None: no limit.
    retry_after, slow, stall
        Seconds.
    """

    seed: int = 0
    tiles: Mapping[Fault, float] = field(default_factory=dict)
    graph: Mapping[Fault, float] = field(default_factory=dict)
    images: Mapping[Fault, float] = field(default_factory=dict)
    overpass: Mapping[Fault, float] = field(default_factory=dict)
    nominatim: Mapping[Fault, float] = field(default_factory=dict)
    by_image: Mapping[int, Fault] = field(default_factory=dict)
    by_tile: Mapping[str, Fault] = field(default_factory=dict)
    failing_ids: frozenset[int] = frozenset()
    most_ids: int | None = None
    gone: float = 0.0
    gone_ids: frozenset[int] = frozenset()
    most: int | None = None
    retry_after: int = 1
    slow: float = 1.0
    stall: float = 3600.0

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._asked: Counter[tuple[str, str]] = Counter()
        self._committed: Counter[tuple[str, str]] = Counter()

    def decide(
        self, service: str, question: str, image_id: int | None = None, tile: str | None = None
    ) -> Fault | None:
        """Return the fault to commit on this request of a service, or None."""
        if image_id is not None and image_id in self.by_image:
            return Fault(self.by_image[image_id])
        if tile is not None and tile in self.by_tile:
            return Fault(self.by_tile[tile])
        key = (service, question)
        with self._lock:
            self._asked[key] += 1
            if self.most is not None and self._committed[key] >= self.most:
                return None
            share = self._share(service, question, self._asked[key])
            probabilities: Mapping[Fault, float] = getattr(self, service, {})
            for fault, probability in probabilities.items():
                if share < probability:
                    self._committed[key] += 1
                    return Fault(fault)
                share -= probability
        return None

    def is_gone(self, image_id: int) -> bool:
        """Return whether the graph and the image server deny that there is this image."""
        return image_id in self.gone_ids or self._share("gone", str(image_id)) < self.gone

    def _share(self, *what: object) -> float:
        """Return a number in [0, 1), evenly spread and always the same for the same `what`."""
        text = "\n".join(map(str, (self.seed, *what)))
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64
