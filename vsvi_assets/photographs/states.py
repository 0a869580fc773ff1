"""What is known of an image: whether it is in store, and if not, why."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

BELIEVED_AFTER = timedelta(hours=20)
"""How far apart two answers must be that leave an image out before it counts as unavailable.

Mapillary has answered for three days as if images did not exist that did
(https://github.com/mapillary/mapillary-js/issues/460), so that one answer proves nothing.
"""


class State(StrEnum):
    """What became of a wanted image."""

    STORED = "stored"
    """On disk, whole."""
    REJECTED = "rejected"
    """On disk, whole, and not good enough for the city file: another image takes its place."""
    NOT_ANSWERED = "not_answered"
    """Mapillary's answers leave it out, but not for long enough to believe them."""
    UNAVAILABLE = "unavailable"
    """Mapillary's answers have left it out for long enough: it is not asked for any more."""
    REFUSED = "refused"
    """It was fetched, and no further attempt can make it usable."""
    FAILED = "failed"
    """The last attempt failed; the next run tries again."""


@dataclass(frozen=True, slots=True)
class Absence:
    """Answers of the service that left an image out.

    Attributes
    ----------
    first_asked, last_asked
        When the first and the last of them came (with timezone).
    answers
        How many runs got such an answer.
    """

    first_asked: datetime
    last_asked: datetime
    answers: int = 1

    @property
    def state(self) -> State:
        """`UNAVAILABLE` once the answers lie `BELIEVED_AFTER` apart."""
        is_believed = self.last_asked - self.first_asked >= BELIEVED_AFTER
        return State.UNAVAILABLE if is_believed else State.NOT_ANSWERED

    def is_due(self, now: datetime) -> bool:
        """Return whether to ask once more: the answer decides whether it is unavailable."""
        return self.state == State.NOT_ANSWERED and now - self.first_asked >= BELIEVED_AFTER

    def repeated(self, now: datetime) -> "Absence":
        """Return what is known after one more such answer."""
        return Absence(self.first_asked, now, self.answers + 1)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an image is not usable however often it is fetched, and when that was found."""

    reason: str
    asked: datetime


class Photograph(NamedTuple):
    """What is known of one image, flat: a row of the table `photographs`.

    `sha256` is hexadecimal, `width` and `height` are pixels, `image_size` is as in the city
    file; these and `creator` are None where they are unknown. `stored_at` is when the file was
    written, None for other states. `first_asked`, `last_asked` and `answers` are those of an
    `Absence`; `last_asked` alone is that of a `Refusal`. `sharpness` to `night` are those of
    `quality.Quality`, None where they are not measured.
    """

    sequence_id: str
    image_id: int
    state: State
    bytes: int | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    image_size: str | None = None
    creator: str | None = None
    reason: str | None = None
    first_asked: datetime | None = None
    last_asked: datetime | None = None
    answers: int | None = None
    stored_at: datetime | None = None
    sharpness: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    over_exposure: float | None = None
    night: bool | None = None
