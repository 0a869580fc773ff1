"""What a sandbox was asked and what it answered."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stats:
    """Counts since the start; written by the server's thread, read by any.

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

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as they are given out as JSON."""
        return dict(vars(self))
