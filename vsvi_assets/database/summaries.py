"""Counts of a city's tables, as its pictures and its plan need them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.queries import row_count
from vsvi_assets.database.schema import CORRECTIONS, PHOTOGRAPHS
from vsvi_assets.mapillary.corrections import Corrections
from vsvi_assets.photographs.states import State

GRID_CELLS = 160
"""Cells along the longer side of the density grid, so that no box makes it large."""


@dataclass(frozen=True)
class MeasuredQuality:
    """What was measured of a city's photographs, whether they are selected or rejected.

    Attributes
    ----------
    photographs, rejected
        How many were measured, and how many of these are not good enough for the city file.
    reasons
        How many are rejected for each reason, or combination of them.
    sharpness, brightness, over_exposure
        The values below which 10 %, 50 % and 90 % of the photographs are.
    nights
        How many were taken at night.
    """

    photographs: int
    rejected: int
    reasons: Mapping[str, int]
    sharpness: Sequence[float]
    brightness: Sequence[float]
    over_exposure: Sequence[float]
    nights: int

    def summary(self) -> str:
        """Say what values the photographs have, for those who look for a limit."""
        values = (
            ("sharpness", self.sharpness, "{:.0f}"),
            ("brightness", self.brightness, "{:.2f}"),
            ("over-exposure", self.over_exposure, "{:.2f}"),
        )
        texts = [
            f"{name} {' / '.join(pattern.format(value) for value in percentiles)}"
            for name, percentiles, pattern in values
        ]
        return f"{', '.join(texts)} (10 / 50 / 90 % are below), {self.nights:,} at night"

    @property
    def share_range(self) -> tuple[float, float]:
        """The range that holds the share of rejected photographs in 9 of 10 cases.

        E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
        Journal of the American Statistical Association 22, 1927.
        """
        z, n, share = 1.645, self.photographs, self.rejected / self.photographs
        middle = share + z * z / (2 * n)
        reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        low, high = (max(middle + side, 0) / (1 + z * z / n) for side in (-reach, reach))
        return low, high


@dataclass(frozen=True)
class CaptureYears:
    """Numbers of images by year of capture (UTC), and of those whose time is unknown."""

    flat: Mapping[int, int]
    panoramas: Mapping[int, int]
    unknown: int

    @property
    def totals(self) -> dict[str, int]:
        """Numbers of images of both kinds, by year in order, those of unknown time at the end."""
        years = sorted({*self.flat, *self.panoramas})
        totals = {str(year): self.flat.get(year, 0) + self.panoramas.get(year, 0) for year in years}
        return totals | ({"unknown": self.unknown} if self.unknown else {})


def read_corrections(postgis: Postgis, city: City) -> Corrections | None:
    """Return what is corrected of the images in the tiles; None where it was not counted."""
    if not row_count(postgis, city, CORRECTIONS):
        return None
    columns = CORRECTIONS.arrow_schema()
    query = sql.SQL("SELECT {} FROM {}").format(
        sql.SQL(", ").join(map(sql.Identifier, columns.names)),
        sql.Identifier(city.name, CORRECTIONS.name),
    )
    [row] = postgis.read(query, columns).to_pylist()
    return Corrections(**row)


def image_density(postgis: Postgis, city: City) -> NDArray[np.int64]:
    """Count the images of the table `images` in a grid over the box.

    Returns
    -------
    counts
        Rows from south to north, columns from west to east, at most `GRID_CELLS` of both; the
        cells are about square.
    """
    box = city.area.box
    height = (box.north - box.south) / math.cos(math.radians(box.south))
    width = box.east - box.west
    rows, columns = (
        max(1, round(GRID_CELLS * side / max(height, width))) for side in (height, width)
    )
    query = sql.SQL(
        """
        SELECT width_bucket(ST_Y(geometry), %(south)s, %(north)s, %(rows)s),
            width_bucket(ST_X(geometry), %(west)s, %(east)s, %(columns)s), count(*)
        FROM {}.images GROUP BY 1, 2
        """
    ).format(sql.Identifier(city.name))
    cells = postgis.read(
        query,
        pa.schema({"row": pa.int64(), "column": pa.int64(), "images": pa.int64()}),
        {**box.model_dump(), "rows": rows, "columns": columns},
    )
    counts = np.zeros((rows, columns), np.int64)
    # An image on the northern or eastern edge is past the last cell.
    row = np.minimum(cells["row"].to_numpy(), rows) - 1
    column = np.minimum(cells["column"].to_numpy(), columns) - 1
    np.add.at(counts, (row, column), cells["images"].to_numpy())
    return counts


def street_point_positions(postgis: Postgis, city: City) -> pa.Table:
    """Return `id`, `lon` and `lat` (degrees, EPSG:4326) of the street points, ordered by id."""
    query = sql.SQL(
        "SELECT id, ST_X(geometry), ST_Y(geometry) FROM {}.street_points ORDER BY id"
    ).format(sql.Identifier(city.name))
    return postgis.read(
        query, pa.schema({"id": pa.int64(), "lon": pa.float64(), "lat": pa.float64()})
    )


def selected_capture_years(postgis: Postgis, city: City) -> CaptureYears:
    """Count the selected images by year of capture."""
    query = sql.SQL(
        """
        SELECT extract(year FROM to_timestamp(captured_at / 1000.0) AT TIME ZONE 'UTC')::bigint,
            is_pano IS TRUE, count(*)
        FROM (
            SELECT nullif(captured_at, 0) AS captured_at, is_pano FROM {schema}.images
            WHERE id IN (SELECT image_id FROM {schema}.selected_images)
        ) AS image
        GROUP BY 1, 2 ORDER BY 1
        """
    ).format(schema=sql.Identifier(city.name))
    rows = postgis.read(
        query, pa.schema({"year": pa.int64(), "is_pano": pa.bool_(), "images": pa.int64()})
    )
    flat: dict[int, int] = {}
    panoramas: dict[int, int] = {}
    unknown = 0
    for row in rows.to_pylist():
        if row["year"] is None:
            unknown += row["images"]
        else:
            (panoramas if row["is_pano"] else flat)[row["year"]] = row["images"]
    return CaptureYears(flat, panoramas, unknown)


def measured_quality(postgis: Postgis, city: City) -> MeasuredQuality | None:
    """Summarize what was measured of the photographs in store; None where nothing was."""
    table = sql.Identifier(city.name, PHOTOGRAPHS.name)
    percentiles = sql.SQL(", ").join(
        sql.SQL("percentile_cont(ARRAY[0.1, 0.5, 0.9]) WITHIN GROUP (ORDER BY {})").format(
            sql.Identifier(name)
        )
        for name in ("sharpness", "brightness", "over_exposure")
    )
    counts = sql.SQL(
        "SELECT count(*), {}, count(*) FILTER (WHERE night) FROM {} WHERE sharpness IS NOT NULL"
    ).format(percentiles, table)
    reasons = sql.SQL(
        "SELECT reason, count(*) FROM {} WHERE state = %(rejected)s GROUP BY 1 ORDER BY 2 DESC, 1"
    ).format(table)
    with postgis.transaction() as cursor:
        cursor.execute(counts)
        [(photographs, sharpness, brightness, over_exposure, nights)] = cursor.fetchall()
        cursor.execute(reasons, {"rejected": State.REJECTED})
        by_reason = dict(cursor.fetchall())
    if not photographs:
        return None
    return MeasuredQuality(
        photographs=photographs,
        rejected=sum(by_reason.values()),
        reasons=by_reason,
        sharpness=sharpness,
        brightness=brightness,
        over_exposure=over_exposure,
        nights=nights,
    )
