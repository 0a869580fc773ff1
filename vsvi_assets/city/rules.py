"""The keys of a city file that say when images may be taken, and which of several is chosen."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

_TIME_OF_DAY = r"([01]?\d|2[0-3]):([0-5]\d)|(24):(00)"
_HOURS = re.compile(rf"\s*(?:{_TIME_OF_DAY})\s*-\s*(?:{_TIME_OF_DAY})\s*")


class Hours(BaseModel):
    """A part of the day, in minutes after midnight: from `start` on, before `end`.

    It lies across midnight where `end` is less than `start`.
    """

    model_config = ConfigDict(frozen=True)

    start: int
    end: int

    def __str__(self) -> str:
        times = (f"{time // 60:02}:{time % 60:02}" for time in (self.start, self.end))
        return "-".join(times)


def _hours(value: object) -> Any:
    if isinstance(value, Hours):
        return value
    matched = _HOURS.fullmatch(value) if isinstance(value, str) else None
    if not matched:
        raise ValueError('must be two times of the day, such as "09:00-17:30" or "22:00-05:00"')
    hour, minute, hour_to, minute_to = (int(part) for part in matched.groups() if part)
    start, end = 60 * hour + minute, 60 * hour_to + minute_to
    if start == end or (start, end) == (1440, 0):
        raise ValueError("must have two different times of the day")
    return Hours(start=start % 1440, end=end)


class NearTwins(BaseModel):
    """What counts as the same photograph, besides exact twins.

    Attributes
    ----------
    metres, seconds
        At most so far apart, and at most so long after each other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    metres: float = Field(gt=0, le=100)
    seconds: float = Field(ge=0, le=86_400)

    def __str__(self) -> str:
        return f"within {self.metres:g} m and {self.seconds:g} s"


def _kind_of_duplicates(value: object) -> str | None:
    if isinstance(value, dict | NearTwins):
        return "near"
    return "name" if value in ("keep", "exact") else None


def _months(value: object) -> object:
    """Return the months in their order, each once."""
    months = [value] if isinstance(value, int) and not isinstance(value, bool) else value
    if (
        not isinstance(months, list | tuple)
        or not months
        or not all(type(month) is int and 1 <= month <= 12 for month in months)
    ):
        raise ValueError("must be a list of months from 1 to 12, such as [6, 7, 8]")
    return tuple(sorted(set(months)))


def _elevation(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number: degrees of the sun above the horizon, such as 6")
    return value


Elevation = Annotated[float, BeforeValidator(_elevation), Field(ge=-90, lt=90)]
MonthList = Annotated[tuple[int, ...], BeforeValidator(_months)]
DayHours = Annotated[Hours, BeforeValidator(_hours)]
Duplicates = Annotated[
    Annotated[Literal["keep", "exact"], Tag("name")] | Annotated[NearTwins, Tag("near")],
    Discriminator(
        _kind_of_duplicates,
        custom_error_type="duplicates",
        custom_error_message='must be "keep", "exact", or an object such as '
        '{"metres": 3, "seconds": 10}',
    ),
]
