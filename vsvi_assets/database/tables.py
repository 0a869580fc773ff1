"""A city's three tables: street points, images, and the images selected for the points."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import geopandas as gpd
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database.connection import NewTable, Postgis
from vsvi_assets.database.queries import nearest_image
from vsvi_assets.database.schema import SELECTED_IMAGES

SEARCHES = 4
"""Connections that look for nearest images at a time. PostgreSQL has no parallel plan for it."""

SELECTION_SCHEMA = SELECTED_IMAGES.arrow_schema()


class SelectedImage(NamedTuple):
    """An image that is to be downloaded, with what its tile tells of it.

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


def _geometries(city: City) -> sql.Composable:
    """Select `geometry` (EPSG:4326) and `geo` (the city's CRS) of a staged lon and lat."""
    return sql.SQL(
        """position::geometry(Point, 4326) AS geometry,
           ST_Transform(position, {srid})::geometry(Point, {srid}) AS geo"""
    ).format(srid=sql.Literal(city.projected_srid))


def street_points_table(points: gpd.GeoDataFrame, city: City) -> NewTable:
    """Describe the table `street_points`, made of points as `streets.street_points` gives them."""
    rows = pa.table(
        {
            "id": points["id"].to_numpy(),
            "osmid": points["osmid"].to_numpy(),
            "street": pa.array(points["street"], pa.string(), from_pandas=True),
            # A file of an earlier version does not have it.
            "bearing": pa.array(
                points["bearing"] if "bearing" in points else [None] * len(points), pa.float64()
            ),
            "lon": points.geometry.x.to_numpy(),
            "lat": points.geometry.y.to_numpy(),
        }
    )
    return NewTable(
        name="street_points",
        columns={
            "id": "bigint",
            "osmid": "bigint",
            "street": "text",
            "bearing": "double precision",
            "lon": "double precision",
            "lat": "double precision",
        },
        rows=[rows],
        query=sql.SQL(
            """
            SELECT id, osmid, street, bearing, {geometries}
            FROM (
                SELECT *, ST_SetSRID(ST_MakePoint(lon, lat), 4326) AS position
                FROM pg_temp.staging
            ) AS point
            ORDER BY position
            """
        ).format(geometries=_geometries(city)),
        constraints=[sql.SQL("ADD PRIMARY KEY (id)")],
        indexes=[sql.SQL("gist (geometry)"), sql.SQL("gist (geo)")],
    )


def images_table(tiles: Iterable[pa.Table], city: City) -> NewTable:
    """Describe the table `images`, made of the images of `tiles` that the city asks for.

    Images outside the box, and those that the city's filters leave out, are cut before they
    reach the database. An image that several tiles hold is kept once.
    """
    return NewTable(
        name="images",
        columns={
            "id": "bigint",
            "sequence_id": "text",
            "captured_at": "bigint",
            "compass_angle": "double precision",
            "is_pano": "boolean",
            "creator_id": "bigint",
            "organization_id": "bigint",
            "lon": "double precision",
            "lat": "double precision",
        },
        rows=(wanted_images(tile, city) for tile in tiles),
        query=sql.SQL(
            """
            SELECT id, sequence_id, captured_at, compass_angle, is_pano, creator_id,
                organization_id, {geometries}
            FROM (
                SELECT DISTINCT ON (id)
                    *, ST_SetSRID(ST_MakePoint(lon, lat), 4326) AS position
                FROM pg_temp.staging
                ORDER BY id, lon, lat
            ) AS image
            ORDER BY position
            """
        ).format(geometries=_geometries(city)),
        constraints=[sql.SQL("ADD PRIMARY KEY (id)")],
        indexes=[sql.SQL("gist (geometry)"), sql.SQL("gist (geo)")],
    )


def wanted_images(tile: pa.Table, city: City) -> pa.Table:
    """Return the images of a tile that lie in the city's box and pass its filters.

    An image whose date is unknown (`captured_at` null or 0) passes no filter of dates.
    """
    box = city.bounding_box
    conditions = [
        pc.field("lon") >= box.west,
        pc.field("lon") <= box.east,
        pc.field("lat") >= box.south,
        pc.field("lat") <= box.north,
    ]
    if city.panorama != "any":
        conditions.append(pc.field("is_pano") == (city.panorama == "only"))
    if city.captured_after or city.captured_before:
        conditions.append(pc.field("captured_at") > 0)
    if city.captured_after:
        conditions.append(pc.field("captured_at") >= city.captured_after.timestamp() * 1000)
    if city.captured_before:
        conditions.append(pc.field("captured_at") < city.captured_before.timestamp() * 1000)
    if city.creator_ids:
        conditions.append(pc.field("creator_id").isin(list(city.creator_ids)))
    wanted = conditions[0]
    for condition in conditions[1:]:
        wanted &= condition
    return tile.filter(wanted)


def select_images(postgis: Postgis, city: City) -> pa.Table:
    """Choose the images to download, of the city's tables in PostGIS.

    With `imgid_file` they are the listed ones; with `selection: all` every image of the
    table; else, for each street point, the nearest image within `max_distance` metres, of
    several equally near the one with the lowest id.

    Returns
    -------
    pyarrow.Table
        street_point_id (int64, null where no point asked for the image), image_id (int64),
        sequence_id (string), distance (float64, metres; null like street_point_id).

    Raises
    ------
    CityFileError
        When `imgid_file` cannot be used.
    """
    images = sql.Identifier(city.name, "images")
    listed = city.read_image_ids()
    if listed is None and city.selection == "nearest":
        return _nearest_images(postgis, city)
    query = sql.SQL("SELECT NULL, id, sequence_id, NULL FROM {images}{condition} ORDER BY id")
    condition = sql.SQL("" if listed is None else " WHERE id = ANY(%(ids)s)")
    return postgis.read(
        query.format(images=images, condition=condition), SELECTION_SCHEMA, {"ids": listed}
    )


def _nearest_images(postgis: Postgis, city: City) -> pa.Table:
    query = sql.SQL(
        """
        SELECT point.id, nearest.image_id, nearest.sequence_id, nearest.distance
        FROM {schema}.street_points AS point CROSS JOIN LATERAL ({nearest}) AS nearest
        WHERE point.id %% %(searches)s = %(search)s
        """
    ).format(schema=sql.Identifier(city.name), nearest=nearest_image(city, among=sql.SQL("true")))

    def search(number: int) -> pa.Table:
        parameters = {
            "max_distance": city.max_distance,
            "searches": SEARCHES,
            "search": number,
        }
        return postgis.read(query, SELECTION_SCHEMA, parameters)

    with postgis.unreplaced(city.name), ThreadPoolExecutor(SEARCHES) as pool:
        found = pa.concat_tables(pool.map(search, range(SEARCHES)))
    return found.sort_by("street_point_id")


def selected_images_table(selection: pa.Table) -> NewTable:
    """Describe the table `selected_images` of rows as `select_images` returns them."""
    return NewTable(
        name="selected_images",
        columns={
            "street_point_id": "bigint",
            "image_id": "bigint",
            "sequence_id": "text",
            "distance": "double precision",
        },
        rows=[selection],
        query=sql.SQL("SELECT * FROM pg_temp.staging ORDER BY sequence_id, image_id"),
        indexes=[
            sql.SQL("btree (sequence_id)"),
            sql.SQL("btree (street_point_id)"),
            sql.SQL("btree (image_id)"),
        ],
    )


def selected_images_of(
    postgis: Postgis, city_name: str, sequence_ids: Sequence[str]
) -> Iterator[tuple[str, list[SelectedImage]]]:
    """Yield each of the sequences with its selected images, in the order of their ids.

    The rows are streamed: one sequence is in memory at a time. A sequence of which no image
    is selected is left out.
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
    rows = postgis.stream(query, {"sequences": list(sequence_ids)})
    images = (SelectedImage(*row) for row in rows)
    for sequence_id, group in groupby(images, key=attrgetter("sequence_id")):
        yield sequence_id, list(group)
