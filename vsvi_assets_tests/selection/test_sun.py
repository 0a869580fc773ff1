"""Where the sun stands, compared with an almanac of its own method (PyEphem's VSOP87)."""

import math
from datetime import UTC, datetime, timedelta

import ephem
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsvi_assets.selection.sun import solar_minutes, sun_elevation


def milliseconds(moment: datetime) -> np.ndarray:
    return np.array([round(moment.timestamp() * 1000)])


def elevation(moment: datetime, lon: float, lat: float) -> float:
    return float(sun_elevation(milliseconds(moment), np.array([lon]), np.array([lat]))[0])


@settings(deadline=None)
@given(
    st.datetimes(datetime(2004, 1, 1), datetime(2040, 1, 1)),
    st.floats(-180, 180),
    st.floats(-85.0511, 85.0511),
)
def test_the_elevation_is_that_of_an_almanac(moment: datetime, lon: float, lat: float) -> None:
    observer = ephem.Observer()
    observer.lon, observer.lat = str(lon), str(lat)
    observer.pressure, observer.date = 0, moment
    sun = ephem.Sun(observer)
    found = elevation(moment.replace(tzinfo=UTC), lon, lat)
    assert found == pytest.approx(math.degrees(sun.alt), abs=0.02)


def test_the_elevation_is_that_of_a_published_example() -> None:
    # I. Reda and A. Andreas, Solar Position Algorithm, NREL/TP-560-34302 (2008), table A5.1:
    # 2003-10-17 12:30:30 at UTC-7, zenith 50.11162° of which refraction is 0.01634°.
    found = elevation(datetime(2003, 10, 17, 19, 30, 30, tzinfo=UTC), -105.1786, 39.742476)
    assert found == pytest.approx(90 - 50.11162 - 0.01634, abs=0.02)


@pytest.mark.parametrize(
    ("lat", "month", "is_up"),
    [(78.2, 6, True), (78.2, 12, False), (-77.8, 12, True), (-77.8, 6, False)],
)
def test_polar_days_and_nights_last_all_day(lat: float, month: int, is_up: bool) -> None:
    start = datetime(2020, month, 21, tzinfo=UTC)
    hours = [elevation(start + timedelta(hours=hour), 15.6, lat) for hour in range(24)]
    assert all((height > 0) == is_up for height in hours)


@settings(deadline=None)
@given(st.datetimes(datetime(2004, 1, 1), datetime(2040, 1, 1)), st.floats(-85, 85))
def test_both_sides_of_the_antimeridian_have_the_same_sun(moment: datetime, lat: float) -> None:
    moment = moment.replace(tzinfo=UTC)
    assert elevation(moment, 180, lat) == pytest.approx(elevation(moment, -180, lat), abs=1e-9)
    east, west = (
        float(solar_minutes(milliseconds(moment), np.array([lon]))[0]) for lon in (180.0, -180.0)
    )
    assert east == pytest.approx(west, abs=1e-6)


@settings(deadline=None)
@given(st.datetimes(datetime(2004, 1, 1), datetime(2040, 1, 1)), st.floats(-180, 180))
def test_at_solar_noon_the_sun_stands_highest(moment: datetime, lon: float) -> None:
    observer = ephem.Observer()
    observer.lon, observer.lat, observer.pressure = str(lon), "0", 0
    observer.date = moment
    transit = observer.next_transit(ephem.Sun()).datetime().replace(tzinfo=UTC)
    [found] = solar_minutes(milliseconds(transit), np.array([lon]))
    assert found == pytest.approx(720, abs=0.2)
