"""The time of the place at which an image was taken."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import tzfpy
from numpy.typing import NDArray

from vsvi_assets.selection.sun import solar_minutes

_CELLS_PER_DEGREE = 200
"""Of the grid in which the timezone is looked up: cells of at most 560 m."""

_COLUMNS = 360 * _CELLS_PER_DEGREE + 1


@dataclass(frozen=True)
class LocalTime:
    """The local calendar and clock of images.

    Attributes
    ----------
    year, month
        Of the local date.
    minute
        Of the day, below 1440; of solar time a fraction.
    """

    year: NDArray[np.int64]
    month: NDArray[np.int64]
    minute: NDArray[np.float64]


def local_time(
    captured_at: NDArray[np.int64],
    lon: NDArray[np.float64],
    lat: NDArray[np.float64],
    clock: Literal["civil", "solar"],
) -> LocalTime:
    """Return the local time of moments at places.

    Parameters
    ----------
    captured_at
        Milliseconds since 1970 (UTC).
    lon, lat
        Degrees (EPSG:4326).
    clock
        "civil": the time that clocks show there, summer time included, by the timezones of
        OpenStreetMap (the library tzfpy) and the rules of the IANA database. Within
        1 / `_CELLS_PER_DEGREE` degrees of a border it may be that of the other side. "solar":
        apparent solar time, in which the sun stands highest at 12:00.
    """
    moments = captured_at.astype("datetime64[ms]")
    if clock == "civil":
        local = _civil(moments, lon, lat)
    else:
        # The date changes at the solar midnight. The difference to UTC is below 14 hours.
        ahead = solar_minutes(captured_at, lon) - captured_at % 86_400_000 / 60_000
        ahead = ahead + 1440 * np.round((4 * lon - ahead) / 1440)
        local = moments + np.round(ahead * 60_000).astype("timedelta64[ms]")
    months = local.astype("datetime64[M]").astype(np.int64)
    within_day = local - local.astype("datetime64[D]")
    return LocalTime(
        year=1970 + months // 12,
        month=months % 12 + 1,
        minute=within_day.astype(np.int64) / 60_000,
    )


def _civil(
    moments: NDArray[np.datetime64], lon: NDArray[np.float64], lat: NDArray[np.float64]
) -> NDArray[np.datetime64]:
    """Return what the clocks of the places show."""
    column, row = (
        np.floor((degrees + 180) * _CELLS_PER_DEGREE).astype(np.int64) for degrees in (lon, lat)
    )
    cells, cell = np.unique(row * _COLUMNS + column, return_inverse=True)
    middles = (np.stack([cells % _COLUMNS, cells // _COLUMNS]) + 0.5) / _CELLS_PER_DEGREE - 180
    middles[0] = np.minimum(middles[0], 180)
    names = np.array([tzfpy.get_tz(*middle) for middle in middles.T.tolist()], dtype=object)
    zones, zone = np.unique(names, return_inverse=True)
    zone_of_image = zone[cell]
    local = np.empty_like(moments)
    for number, name in enumerate(zones):
        of_zone = zone_of_image == number
        times = pd.DatetimeIndex(moments[of_zone], tz="UTC").tz_convert(name)
        local[of_zone] = times.tz_localize(None).to_numpy().astype("datetime64[ms]")
    return local
