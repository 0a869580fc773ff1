"""The calendar and the clock of the place of an image."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from vsvi_assets.selection.local_time import local_time

AMSTERDAM = (4.9, 52.37)
SYDNEY = (151.2, -33.87)
KOLKATA = (88.36, 22.57)
TAVEUNI = (179.99, -16.85)
TAVEUNI_EAST = (-179.99, -16.85)
LONGYEARBYEN = (15.63, 78.22)


def local(moment: datetime, place: tuple[float, float], clock: str) -> tuple[int, int, float]:
    found = local_time(
        np.array([round(moment.timestamp() * 1000)]),
        np.array(place[:1]),
        np.array(place[1:]),
        clock,  # type: ignore[arg-type]
    )
    return int(found.year[0]), int(found.month[0]), float(found.minute[0])


@pytest.mark.parametrize(
    ("place", "zone"),
    [
        (AMSTERDAM, "Europe/Amsterdam"),
        (SYDNEY, "Australia/Sydney"),
        (KOLKATA, "Asia/Kolkata"),
        (TAVEUNI, "Pacific/Fiji"),
        (TAVEUNI_EAST, "Pacific/Fiji"),
        (LONGYEARBYEN, "Arctic/Longyearbyen"),
    ],
)
@pytest.mark.parametrize(
    "moment",
    [
        datetime(2019, 12, 31, 23, 30, tzinfo=UTC),
        datetime(2020, 3, 29, 0, 59, 59, tzinfo=UTC),
        datetime(2020, 3, 29, 1, 0, tzinfo=UTC),
        datetime(2020, 7, 1, 12, 0, tzinfo=UTC),
        datetime(2020, 10, 25, 0, 30, tzinfo=UTC),
        datetime(2020, 10, 25, 1, 30, tzinfo=UTC),
    ],
)
def test_civil_time_is_what_clocks_show_there(
    place: tuple[float, float], zone: str, moment: datetime
) -> None:
    there = moment.astimezone(ZoneInfo(zone))
    minute = there.hour * 60 + there.minute + there.second / 60
    assert local(moment, place, "civil") == (there.year, there.month, pytest.approx(minute))


def test_places_of_several_timezones_have_each_its_own() -> None:
    places = [AMSTERDAM, SYDNEY, KOLKATA, AMSTERDAM]
    moments = np.full(4, 1_593_604_800_000)  # 2020-07-01 12:00 UTC
    lon, lat = np.array(places).T
    assert local_time(moments, lon, lat, "civil").minute.tolist() == [840, 1320, 1050, 840]


@pytest.mark.parametrize(
    ("moment", "lon", "expected"),
    [
        # The Nautical Almanac's equation of time: -14 min 13 s on 11 February, +16 min 25 s on
        # 3 November, and next to nothing on 15 April.
        (datetime(2020, 2, 11, 12, 0, tzinfo=UTC), 0.0, (2020, 2, 720 - 14.22)),
        (datetime(2020, 11, 3, 12, 0, tzinfo=UTC), 0.0, (2020, 11, 720 + 16.42)),
        (datetime(2020, 4, 15, 12, 0, tzinfo=UTC), 90.0, (2020, 4, 1080)),
        (datetime(2019, 12, 31, 13, 0, tzinfo=UTC), 180.0, (2020, 1, 57.2)),
        (datetime(2020, 1, 1, 11, 0, tzinfo=UTC), -180.0, (2019, 12, 1376.6)),
    ],
)
def test_solar_time_follows_the_sun(
    moment: datetime, lon: float, expected: tuple[int, int, float]
) -> None:
    year, month, minute = local(moment, (lon, 50.0), "solar")
    assert (year, month) == expected[:2]
    assert minute == pytest.approx(expected[2], abs=0.3)


def test_nothing_has_no_time() -> None:
    for clock in ("civil", "solar"):
        none = local_time(np.empty(0, np.int64), np.empty(0), np.empty(0), clock)
        assert not len(none.year)
