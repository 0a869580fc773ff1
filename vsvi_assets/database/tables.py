"""A city's tables: streets, street points, images, and the images selected for the points."""

import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import orjson
import pandas as pd
import psycopg2.errors
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.city.buckets import hashes_of, sequence_hash
from vsvi_assets.city.places import PREFIX, columns_of_user
from vsvi_assets.database.binary_copy import ewkb_points
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import SelectionOutdatedError
from vsvi_assets.database.replacement import NewTable
from vsvi_assets.database.schema import (
    CORRECTIONS,
    IMAGES,
    SELECTED_IMAGES,
    SELECTED_IMAGES_HASHED,
    STREET_POINTS,
    STREETS,
)
from vsvi_assets.mapillary.corrections import Corrections
from vsvi_assets.mapillary.tiles import POSITION
from vsvi_assets.streets.points import metres_of_points

FIRST_CAPTURE = datetime(2004, 1, 1, tzinfo=UTC)
"""No photograph is older, as far as its capture time is known: the cameras that Mapillary's images
come from are younger, and the times before are those of clocks that were never set."""

SEQUENCES_AT_A_TIME = 100
"""Whose selected images are in memory together."""

SELECTION_SCHEMA = SELECTED_IMAGES.arrow_schema()


class SelectedImage(NamedTuple):
    """An image that is to be downloaded, with what its tile says of it.

    `captured_at` is in milliseconds since 1970 (UTC), `compass_angle` in degrees clockwise
    from north, `lon` and `lat` in degrees (EPSG:4326). All but the ids are None where the
    image has left the table `images` since it was selected.
    """

    id: int
    sequence_id: str
    captured_at: int | None
    compass_angle: float | None
    is_pano: bool | None
    creator_id: int | None
    lon: float | None
    lat: float | None


def streets_table(streets: gpd.GeoDataFrame, city: City) -> NewTable:
    """Describe the table `streets`, of streets as `streets.streets_within` returns them."""
    lines = shapely.set_srid(streets.geometry.to_numpy(), 4326)
    rows = pa.table(
        {
            "id": pa.array(range(1, len(streets) + 1), pa.int64()),
            "osmid": pa.array(streets["osmid"], pa.int64()),
            "name": pa.array(streets["name"], pa.string(), from_pandas=True),
            "highway": pa.array(streets["highway"], pa.string(), from_pandas=True),
            "metres": pa.array(streets["metres"], pa.float64()),
            "geometry": pa.array(shapely.to_wkb(lines, include_srid=True), pa.binary()),
        }
    )
    return NewTable(STREETS, city, [rows])


def street_points_table(
    points: gpd.GeoDataFrame, city: City, streets: gpd.GeoDataFrame | None = None
) -> NewTable:
    """Describe the table `street_points`, of points and streets as `streets` returns them.

    Without streets it is not known how many metres of street a point stands for. A column that
    the points do not have, such as those of the user's places, is null.
    """

    def column(name: str, type_: pa.DataType) -> pa.Array:
        values = points[name] if name in points else [None] * len(points)
        return pa.array(values, type_, from_pandas=True)

    given = STREET_POINTS.arrow_schema(*("id", "osmid", "street", "bearing", "highway", "place_id"))

    def rows() -> Iterator[pa.Table]:
        metres = None
        if streets is not None and len(streets):
            metres = metres_of_points(points, streets, city.projected_srid)
        yield _placed(
            pa.table(
                {
                    **{field.name: column(field.name, field.type) for field in given},
                    "place": pa.array(_places_as_json(points), pa.string()),
                    "metres": pa.array(
                        [None] * len(points) if metres is None else metres, pa.float64()
                    ),
                    "lon": points.geometry.x.to_numpy(),
                    "lat": points.geometry.y.to_numpy(),
                }
            )
        )

    return NewTable(STREET_POINTS, city, rows())


def _places_as_json(points: gpd.GeoDataFrame) -> list[str | None]:
    """Return the user's own columns of each point, by their own names."""
    names = columns_of_user(points)
    if not names:
        return [None] * len(points)
    values = points[names].rename(columns=lambda name: name.removeprefix(PREFIX))
    return [
        orjson.dumps(
            {name: None if pd.isna(value) else value for name, value in row.items()},
            default=str,
            option=orjson.OPT_SERIALIZE_NUMPY,
        ).decode()
        for row in values.to_dict("records")
    ]


def images_table(tiles: Iterable[pa.Table], city: City) -> NewTable:
    """Describe the table `images`, made of the images of `tiles` that the city asks for.

    Images outside the city's area, and those that the city's filters leave out, are cut before they
    reach the database. An image that several tiles hold is kept once.
    """
    return NewTable(IMAGES, city, (_placed(wanted_images(tile, city)) for tile in tiles))


def corrections_table(corrections: Corrections, city: City) -> NewTable:
    """Describe the table `corrections`, of what is counted by the time it is stored."""

    def rows() -> Iterator[pa.Table]:
        yield pa.Table.from_pylist([vars(corrections)], CORRECTIONS.arrow_schema())

    return NewTable(CORRECTIONS, city, rows())


def _placed(rows: pa.Table) -> pa.Table:
    """Sort rows by their places, so that neighbours share pages, and give them a `geometry`.

    The order is that of the Z-order curve (G. M. Morton, 1966) through the cells of a grid of
    2^32 rows and columns over the earth.
    """
    lon, lat = (rows[name].to_numpy() for name in POSITION)
    column, row = ((degrees + 180) / 360 * 2**32 for degrees in (lon, lat))
    order = np.argsort(_every_other_bit(column) | _every_other_bit(row) << np.uint64(1))
    return rows.append_column("geometry", [ewkb_points(lon, lat, 4326)]).take(order)


def _every_other_bit(numbers: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return whole numbers below 2^32 with a zero before each of their bits."""
    spread = numbers.astype(np.uint64)
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        spread = (spread | spread << np.uint64(shift)) & np.uint64(mask)
    return spread


def wanted_images(tile: pa.Table, city: City) -> pa.Table:
    """Return the images of a tile that lie in the city's area and pass its filters.

    A capture time that cannot be (before `FIRST_CAPTURE`, or after tomorrow) is unknown, and
    null in the result. An image whose capture time is unknown passes no filter of dates.
    """
    tile = _with_possible_times(tile)
    west, south, east, north = city.area.bounds
    conditions = [
        pc.field("lon") >= west,
        pc.field("lon") <= east,
        pc.field("lat") >= south,
        pc.field("lat") <= north,
    ]
    if city.panorama != "any":
        conditions.append(pc.field("is_pano") == (city.panorama == "only"))
    if city.captured_after:
        conditions.append(pc.field("captured_at") >= city.captured_after.timestamp() * 1000)
    if city.captured_before:
        conditions.append(pc.field("captured_at") < city.captured_before.timestamp() * 1000)
    if city.creator_ids:
        conditions.append(pc.field("creator_id").isin(list(city.creator_ids)))
    wanted_images = tile.filter(functools.reduce(operator.and_, conditions))
    if city.area.polygons is None:
        return wanted_images
    lon, lat = (wanted_images[name].to_numpy() for name in POSITION)
    return wanted_images.filter(city.area.covers(lon, lat))


def _with_possible_times(images: pa.Table) -> pa.Table:
    """Make null of the capture times that cannot be."""
    latest = datetime.now(UTC) + timedelta(days=1)
    times = images["captured_at"]
    earliest_ms, latest_ms = (int(time.timestamp() * 1000) for time in (FIRST_CAPTURE, latest))
    possible = pc.and_(pc.greater_equal(times, earliest_ms), pc.less_equal(times, latest_ms))
    column = images.column_names.index("captured_at")
    known = pc.if_else(possible, times, None)
    return images.set_column(column, images.schema.field(column), known)


def selected_images_table(selection: pa.Table, city: City) -> NewTable:
    """Describe the table `selected_images` of rows as `selection.select_images` returns them."""
    rows = selection.sort_by([("sequence_id", "ascending"), ("image_id", "ascending")])
    if city.sequence_buckets is None:
        return NewTable(SELECTED_IMAGES, city, [rows])
    ids = rows["sequence_id"].combine_chunks().dictionary_encode()
    hashes = pa.array(map(sequence_hash, ids.dictionary.to_pylist()), pa.int64())
    rows = rows.append_column("sequence_hash", hashes.take(ids.indices))
    return NewTable(SELECTED_IMAGES_HASHED, city, [rows])


def sequences_of_buckets(postgis: Postgis, city: City, keys: Sequence[str]) -> list[str]:
    """Return the sequences of which images are selected in buckets of the city, in order.

    Raises
    ------
    SelectionOutdatedError
        When the selection was made before the city file had `sequence_buckets`.
    """
    assert city.sequence_buckets
    hashes = [hashes_of(key, city.sequence_buckets) for key in keys]
    query = sql.SQL(
        """
        SELECT DISTINCT sequence_id COLLATE "C"
        FROM unnest(%(first)s::bigint[], %(last)s::bigint[]) AS bucket (first, last)
        JOIN {} ON sequence_hash BETWEEN first AND last
        ORDER BY 1
        """
    ).format(sql.Identifier(city.name, "selected_images"))
    bounds = {"first": [each[0] for each in hashes], "last": [each[-1] for each in hashes]}
    try:
        return [sequence_id for (sequence_id,) in postgis.stream(query, bounds)]
    except psycopg2.errors.UndefinedColumn as error:
        raise SelectionOutdatedError(
            f"The images of {city.name} were selected before its file had sequence_buckets: "
            "materialize selected_image_ids again."
        ) from error


def selected_sequences(postgis: Postgis, city: City) -> list[str]:
    """Return the sequences of which images are selected, in order."""
    query = sql.SQL('SELECT DISTINCT sequence_id COLLATE "C" FROM {} ORDER BY 1').format(
        sql.Identifier(city.name, "selected_images")
    )
    return [sequence_id for (sequence_id,) in postgis.stream(query)]


def selected_images_of(
    postgis: Postgis, city_name: str, sequence_ids: Sequence[str]
) -> Iterator[tuple[str, list[SelectedImage]]]:
    """Yield each of the sequences with its selected images, in the order of their ids.

    The sequences come in the order of their ids, some of them in memory at a time, each time of
    the tables as they are then. A sequence of which no image is selected is left out.
    """
    query = sql.SQL(
        """
        SELECT selected.image_id, selected.sequence_id, captured_at, compass_angle, is_pano,
            creator_id, ST_X(geometry), ST_Y(geometry)
        FROM (
            SELECT DISTINCT image_id, sequence_id FROM {schema}.selected_images
            WHERE sequence_id = ANY(%(sequences)s)
        ) AS selected
        LEFT JOIN {schema}.images ON images.id = selected.image_id
        ORDER BY selected.sequence_id COLLATE "C", selected.image_id
        """
    ).format(schema=sql.Identifier(city_name))
    wanted = sorted(sequence_ids)
    for start in range(0, len(wanted), SEQUENCES_AT_A_TIME):
        with postgis.transaction() as cursor:
            cursor.execute(query, {"sequences": wanted[start : start + SEQUENCES_AT_A_TIME]})
            images = [SelectedImage(*row) for row in cursor.fetchall()]
        for sequence_id, group in groupby(images, key=operator.attrgetter("sequence_id")):
            yield sequence_id, list(group)
