"""What is asked of a city's tables, each question a function."""

from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import PostgisMissingError, PrivilegeMissingError
from vsvi_assets.database.replacement import unreplaced
from vsvi_assets.database.schema import IMAGES, SELECTED_IMAGES, STREET_POINTS, STREETS, Table
from vsvi_assets.photographs.states import State

COVERAGE_SCHEMA = pa.schema(
    [
        pa.field("street_point_id", pa.int64(), nullable=False),
        pa.field("lon", pa.float64(), nullable=False),
        pa.field("lat", pa.float64(), nullable=False),
        *STREET_POINTS.arrow_schema("street", "highway", "metres", "place_id", "place"),
        pa.field("image_id", pa.int64()),
        *SELECTED_IMAGES.arrow_schema("distance"),
        pa.field("sequence_id", pa.string()),
        *IMAGES.arrow_schema("captured_at", "compass_angle", "is_pano"),
        pa.field("image_lon", pa.float64()),
        pa.field("image_lat", pa.float64()),
    ]
)


SEARCHES = 4
"""Connections that read tables, or look for nearest images, at a time. PostgreSQL has no parallel
plan for either."""


def in_shares(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of a query for each of its shares: `searches` is their number.

    The query takes the rows of the share `search`, such as those whose id has this remainder.
    """
    return [{**parameters, "searches": SEARCHES, "search": number} for number in range(SEARCHES)]


def usable_versions(postgis: Postgis) -> str:
    """Return the server's versions, such as "PostgreSQL 15.18, PostGIS 3.3.2".

    Raises
    ------
    PostgisError
        When the database cannot be used: there is no connection, no PostGIS that works, or no
        privilege to make a schema.
    """
    with postgis.transaction() as cursor:
        cursor.execute(
            """
            SELECT format('PostgreSQL %s, PostGIS %s',
                    split_part(current_setting('server_version'), ' ', 1), postgis_lib_version()),
                current_user::text, current_database()::text,
                format('GRANT CREATE ON DATABASE %I TO %I', current_database(), current_user),
                has_database_privilege(current_database(), 'CREATE'),
                abs(ST_X(ST_Transform(ST_Point(3, 52, 4326), 32631)) - 500000) < 0.001
            """
        )
        [(versions, role, database, grant, may_create, transforms)] = cursor.fetchall()
    if not may_create:
        raise PrivilegeMissingError(
            f"The role {role} may not create the cities' schemas in the database {database}. As "
            f"its administrator, run in it: {grant}"
        )
    if not transforms:
        raise PostgisMissingError(
            f"PostGIS in the database {database} transforms coordinates wrongly: its PROJ lacks "
            "its data, or spatial_ref_sys is not as PostGIS made it."
        )
    return str(versions)


def row_count(postgis: Postgis, city: City, table: Table) -> int | None:
    """Count the rows of a city's table; None where it is not made yet."""
    name = sql.Identifier(city.name, table.name)
    with postgis.transaction() as cursor:
        cursor.execute("SELECT to_regclass(%s)", [name.as_string(cursor)])
        if cursor.fetchone() == (None,):
            return None
        cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(name))
        [(count,)] = cursor.fetchall()
    return int(count)


def nearest_image(city: City, *, among: sql.Composable) -> sql.Composed:
    """Return a subquery for the image nearest to the row `point`, within `max_distance` metres.

    It has at most one row, of `image_id`, `sequence_id`, `compass_angle` and `distance` (metres);
    of images equally near it is the one with the lowest id. It takes the parameter `max_distance`.

    Parameters
    ----------
    among
        A condition on `image`, a row of the table `images`.
    """
    return sql.SQL(
        """
        SELECT image_id, sequence_id, compass_angle, distance FROM (
            -- By distance alone, since that is the order in which the index finds them.
            SELECT id AS image_id, sequence_id, compass_angle,
                image.geo <-> point.geo AS distance
            FROM {schema}.images AS image
            WHERE ST_DWithin(image.geo, point.geo, %(max_distance)s) AND {among}
            ORDER BY distance
            FETCH FIRST ROW WITH TIES
        ) AS equally_near
        ORDER BY image_id
        LIMIT 1
        """
    ).format(schema=sql.Identifier(city.name), among=among)


def rejected_images(city: City) -> sql.Composed:
    """Return a subquery for the ids of the photographs that are not good enough for the city."""
    return sql.SQL("SELECT image_id FROM {}.photographs WHERE state = {}").format(
        sql.Identifier(city.name), sql.Literal(State.REJECTED)
    )


def has_rejected_image_near(city: City) -> sql.Composable:
    """Return a condition on the row `point`: an image within `max_distance` is not good enough.

    It takes the parameter `max_distance`.
    """
    if city.quality is None:
        return sql.SQL("false")
    return _has_image_near(city, rejected_images(city))


def has_selected_image_near(city: City) -> sql.Composable:
    """Return a condition on the row `point`: a selected image is within `max_distance`.

    It takes the parameter `max_distance`.
    """
    selected = sql.Identifier(city.name, SELECTED_IMAGES.name)
    if city.chooses_for_points:
        return sql.SQL("EXISTS (SELECT FROM {} WHERE street_point_id = point.id)").format(selected)
    return _has_image_near(city, sql.SQL("SELECT image_id FROM {}").format(selected))


def _has_image_near(city: City, ids: sql.Composable) -> sql.Composed:
    return sql.SQL(
        """
        EXISTS (
            SELECT FROM {images} AS image
            WHERE ST_DWithin(image.geo, point.geo, %(max_distance)s) AND id IN ({ids})
        )
        """
    ).format(images=sql.Identifier(city.name, IMAGES.name), ids=ids)


def points_without_good_image(postgis: Postgis, city: City) -> pa.ChunkedArray:
    """Return the ids (int64) of the street points whose images near are not good enough."""
    query = sql.SQL(
        "SELECT id FROM {schema}.street_points AS point"
        " WHERE {rejected} AND NOT {selected} ORDER BY id"
    ).format(
        schema=sql.Identifier(city.name),
        rejected=has_rejected_image_near(city),
        selected=has_selected_image_near(city),
    )
    schema = STREET_POINTS.arrow_schema("id")
    return postgis.read(query, schema, {"max_distance": city.max_distance})["id"]


def nearest_selected_image(city: City) -> sql.Composed:
    """Return `nearest_image` among the selected ones, which the selection may have found."""
    schema = sql.Identifier(city.name)
    if city.chooses_for_points:
        return sql.SQL(
            "SELECT image_id, sequence_id, distance FROM {schema}.selected_images"
            " WHERE street_point_id = point.id ORDER BY distance, image_id LIMIT 1"
        ).format(schema=schema)
    among = sql.SQL("id IN (SELECT image_id FROM {schema}.selected_images)")
    return nearest_image(city, among=among.format(schema=schema))


CHOICE = SELECTED_IMAGES.arrow_schema(
    *("rule", "rank", "angle", "candidates", "year", "balanced", "twins")
)
"""The columns of `selected_images` that say how an image was chosen."""


def selected_images_near(city: City) -> sql.Composed:
    """Return a subquery for the images selected for the row `point`: with `per_year` several.

    It has `image_id`, `sequence_id`, `distance` (metres) and the columns of `CHOICE`, which are
    null where images are selected for themselves; then it has the one that is nearest. It takes
    the parameter `max_distance`.
    """
    if city.chooses_for_points:
        return sql.SQL(
            "SELECT image_id, sequence_id, distance, {choice} FROM {selected}"
            " WHERE street_point_id = point.id"
        ).format(
            choice=sql.SQL(", ").join(map(sql.Identifier, CHOICE.names)),
            selected=sql.Identifier(city.name, SELECTED_IMAGES.name),
        )
    return sql.SQL(
        "SELECT image_id, sequence_id, distance, {nulls} FROM ({nearest}) AS nearest"
    ).format(nulls=no_choice(), nearest=nearest_selected_image(city))


def no_choice() -> sql.Composed:
    """Return nulls in place of the columns of `CHOICE`, of their types."""
    types = {column.name: column.sql_type for column in SELECTED_IMAGES.columns}
    return sql.SQL(", ").join(
        sql.SQL("NULL::{} AS {}").format(sql.SQL(types[name]), sql.Identifier(name))
        for name in CHOICE.names
    )


def coverage(postgis: Postgis, city: City) -> pa.Table:
    """Return each street point with the nearest selected image within `max_distance`.

    Returns
    -------
    pyarrow.Table
        `COVERAGE_SCHEMA`: positions in degrees (EPSG:4326), distance in metres; the columns
        of the image are null where there is none. Ordered by the points' ids.
    """
    query = sql.SQL(
        """
        SELECT point.id, ST_X(point.geometry), ST_Y(point.geometry), point.street,
            point.highway, point.metres, point.place_id, point.place,
            nearest.image_id, nearest.distance, nearest.sequence_id, image.captured_at,
            image.compass_angle, image.is_pano, ST_X(image.geometry), ST_Y(image.geometry)
        FROM {schema}.street_points AS point
        LEFT JOIN LATERAL ({nearest}) AS nearest ON true
        LEFT JOIN {schema}.images AS image ON image.id = nearest.image_id
        WHERE point.id %% %(searches)s = %(search)s
        """
    ).format(schema=sql.Identifier(city.name), nearest=nearest_selected_image(city))
    with unreplaced(postgis, city.name):
        found = postgis.read_in_parallel(
            query, COVERAGE_SCHEMA, in_shares({"max_distance": city.max_distance})
        )
    return found.sort_by("street_point_id")


def points_of_years(postgis: Postgis, city: City) -> pa.Table:
    """Return `street_point_id` and `year` of the images of a selection with one per year."""
    query = sql.SQL(
        "SELECT street_point_id, year FROM {}.selected_images"
        " WHERE street_point_id IS NOT NULL ORDER BY 1, 2"
    ).format(sql.Identifier(city.name))
    return postgis.read(query, pa.schema({"street_point_id": pa.int64(), "year": pa.int64()}))


def street_lines(postgis: Postgis, city: City) -> pa.Table:
    """Return the streets for maps: `highway`, and `hex`, the line's WKB (degrees), to a metre.

    There are none where the city's tables were made by a version that kept no streets.
    """
    schema = pa.schema({"highway": pa.string(), "hex": pa.string()})
    if row_count(postgis, city, STREETS) is None:
        return schema.empty_table()
    query = sql.SQL(
        """
        SELECT highway, encode(ST_AsBinary(ST_Simplify(geometry, 1e-5, true)), 'hex')
        FROM {}.streets ORDER BY id
        """
    ).format(sql.Identifier(city.name))
    return postgis.read(query, schema)


def count_points_without_image(postgis: Postgis, city: City) -> int:
    """Count the street points that have no selected image within `max_distance`."""
    query = sql.SQL(
        "SELECT count(*) FROM {schema}.street_points AS point WHERE NOT {selected}"
    ).format(schema=sql.Identifier(city.name), selected=has_selected_image_near(city))
    with postgis.transaction() as cursor:
        cursor.execute(query, {"max_distance": city.max_distance})
        [(count,)] = cursor.fetchall()
    return int(count)


def selected_ids(postgis: Postgis, city: City) -> pa.ChunkedArray:
    """Return the ids (int64) of the selected images, each once, in their order."""
    query = sql.SQL("SELECT DISTINCT image_id FROM {}.selected_images ORDER BY 1").format(
        sql.Identifier(city.name)
    )
    return postgis.read(query, SELECTED_IMAGES.arrow_schema("image_id"))["image_id"]


def images_shuffled(postgis: Postgis, city: City, image_ids: Collection[int]) -> pa.Table:
    """Return `id` (int64) and `is_pano` (bool) of images of the table, as if at random.

    The order is that of a hash, so that a selection that changes a little keeps most of the
    images at its head. An image of unknown kind counts as flat.
    """
    query = sql.SQL(
        """
        SELECT id, is_pano IS TRUE FROM {}.images WHERE id = ANY(%(ids)s)
        ORDER BY md5(%(city)s || id)
        """
    ).format(sql.Identifier(city.name))
    schema = IMAGES.arrow_schema("id", "is_pano")
    return postgis.read(query, schema, {"city": city.name, "ids": sorted(image_ids)})
