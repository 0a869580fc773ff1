"""Counts of a city's tables, as its pictures and its plan need them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis

GRID_CELLS = 160
"""Cells along the longer side of the density grid, so that no box makes it large."""


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
