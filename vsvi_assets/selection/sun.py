"""Where the sun stands.

The formulas are those of NOAA's Solar Calculator
(https://gml.noaa.gov/grad/solcalc/calcdetails.html), from J. Meeus, Astronomical Algorithms.
NOAA states an error below a minute of time for the years 1901 to 2099 up to 72 degrees of
latitude; the elevation itself, which has no such limit, stays within 0.02 degrees of almanacs.

An almanac's library takes one place and moment at a time (PyEphem: 24 µs an image); whole arrays
take 0.6 µs an image, which counts where a city has a million.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MILLISECONDS_PER_DAY = 86_400_000
_DAYS_PER_CENTURY = 36_525
_J2000 = 10_957.5
"""The epoch of the formulas (2000-01-01 12:00), in days since 1970."""


def sun_elevation(captured_at: NDArray[np.int64], lon: Floats, lat: Floats) -> Floats:
    """Return how high the middle of the sun stands above the horizon, in degrees.

    Below the horizon it is negative. Refraction is left out: near the horizon the sun looks half
    a degree higher.

    Parameters
    ----------
    captured_at
        Milliseconds since 1970 (UTC).
    lon, lat
        Degrees (EPSG:4326).
    """
    declination, _ = _declination_and_equation_of_time(captured_at)
    hour_angle = np.radians(solar_minutes(captured_at, lon) / 4 - 180)
    latitude = np.radians(lat)
    sine = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(
        hour_angle
    )
    return np.degrees(np.arcsin(np.clip(sine, -1, 1)))


def solar_minutes(captured_at: NDArray[np.int64], lon: Floats) -> Floats:
    """Return the apparent solar time of a place, in minutes after midnight, below 1440.

    At 720 the sun stands highest.

    Parameters
    ----------
    captured_at
        Milliseconds since 1970 (UTC).
    lon
        Degrees (EPSG:4326).
    """
    _, equation_of_time = _declination_and_equation_of_time(captured_at)
    minutes = captured_at % _MILLISECONDS_PER_DAY / 60_000
    return (minutes + equation_of_time + 4 * lon) % 1440


def _declination_and_equation_of_time(captured_at: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return the sun's declination in radians, and apparent less mean solar time in minutes."""
    century = (captured_at / _MILLISECONDS_PER_DAY - _J2000) / _DAYS_PER_CENTURY
    mean_longitude = np.radians(280.46646 + century * (36000.76983 + century * 0.0003032))
    mean_anomaly = np.radians(357.52911 + century * (35999.05029 - 0.0001537 * century))
    eccentricity = 0.016708634 - century * (0.000042037 + 0.0000001267 * century)
    centre = (
        np.sin(mean_anomaly) * (1.914602 - century * (0.004817 + 0.000014 * century))
        + np.sin(2 * mean_anomaly) * (0.019993 - 0.000101 * century)
        + np.sin(3 * mean_anomaly) * 0.000289
    )
    node = np.radians(125.04 - 1934.136 * century)
    longitude = mean_longitude + np.radians(centre - 0.00569 - 0.00478 * np.sin(node))
    seconds = 21.448 - century * (46.815 + century * (0.00059 - 0.001813 * century))
    obliquity = np.radians(23 + (26 + seconds / 60) / 60 + 0.00256 * np.cos(node))
    declination = np.arcsin(np.sin(obliquity) * np.sin(longitude))
    y = np.tan(obliquity / 2) ** 2
    equation_of_time = 4 * np.degrees(
        y * np.sin(2 * mean_longitude)
        - 2 * eccentricity * np.sin(mean_anomaly)
        + 4 * eccentricity * y * np.sin(mean_anomaly) * np.cos(2 * mean_longitude)
        - 0.5 * y**2 * np.sin(4 * mean_longitude)
        - 1.25 * eccentricity**2 * np.sin(2 * mean_anomaly)
    )
    return declination, equation_of_time
