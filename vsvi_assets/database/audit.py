"""What must hold in a city's tables, each rule a search for the rows that break it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.queries import has_selected_image_near
from vsvi_assets.database.schema import IMAGES, SELECTED_IMAGES, STREET_POINTS, Table

EXAMPLES = 10
"""How many of the wrong rows are returned."""


@dataclass(frozen=True)
class WrongRows:
    """The rows that break a rule.

    Attributes
    ----------
    count, of
        How many there are, and how many rows were looked at.
    examples
        The first of them, by names of columns.
    """

    count: int
    of: int
    examples: Sequence[Mapping[str, object]] = ()


def wrong_geometries(postgis: Postgis, city: City) -> WrongRows:
    """Find images and street points that are no valid point of the right SRID in the area.

    A street along the area's edge may have its points outside by what coordinates are rounded,
    and places of the user's may lie anywhere.
    """
    return _wrong_rows(
        postgis,
        city,
        IMAGES,
        """
        SELECT kind AS table, id, ST_AsText(geometry) AS geometry,
            ST_SRID(geometry) AS srid, ST_SRID(geo) AS geo_srid
        FROM (
            SELECT 'images' AS kind, id, geometry, geo FROM {schema}.images
            UNION ALL
            SELECT 'street_points', id, geometry, geo FROM {schema}.street_points
        ) AS row
        WHERE (
            ST_IsValid(geometry) AND ST_IsValid(geo) AND NOT ST_IsEmpty(geo)
            AND (%(places)s AND kind = 'street_points' OR (
                ST_X(geometry) BETWEEN %(west)s AND %(east)s
                AND ST_Y(geometry) BETWEEN %(south)s AND %(north)s
                AND (
                    %(polygons)s::bytea IS NULL
                    OR ST_Intersects(geometry, ST_GeomFromWKB(%(polygons)s, 4326))
                    OR ST_DWithin(geometry, ST_GeomFromWKB(%(polygons)s, 4326), 1e-7)
                )
            ))
        ) IS NOT TRUE
        """,
        **city.area.box.model_dump(),
        places=city.places is not None,
        polygons=None if city.area.polygons is None else city.area.polygons.wkb,
    )


def wrong_compass_angles(postgis: Postgis, city: City) -> WrongRows:
    """Find images whose compass angle is less than 0 or not less than 360 degrees."""
    return _wrong_rows(
        postgis,
        city,
        IMAGES,
        """
        SELECT id AS image, sequence_id AS sequence, compass_angle FROM {schema}.images
        WHERE NOT (compass_angle >= 0 AND compass_angle < 360)
        """,
    )


def unknown_capture_times(postgis: Postgis, city: City) -> WrongRows:
    """Find images of which it is not known when they were captured."""
    return _wrong_rows(
        postgis,
        city,
        IMAGES,
        """
        SELECT id AS image, sequence_id AS sequence FROM {schema}.images
        WHERE captured_at IS NULL
        """,
    )


def selected_but_not_in_the_tables(postgis: Postgis, city: City) -> WrongRows:
    """Find selected images that are not in `images`, or whose point is not in `street_points`."""
    return _wrong_rows(
        postgis,
        city,
        SELECTED_IMAGES,
        """
        SELECT image_id AS image, street_point_id AS "street point",
            selected.sequence_id AS sequence
        FROM {schema}.selected_images AS selected
        LEFT JOIN {schema}.images ON images.id = image_id
        LEFT JOIN {schema}.street_points ON street_points.id = street_point_id
        WHERE images.id IS NULL
            OR images.sequence_id IS DISTINCT FROM selected.sequence_id
            OR (street_point_id IS NOT NULL AND street_points.id IS NULL)
        """,
    )


def selected_and_old(postgis: Postgis, city: City, years: int) -> WrongRows:
    """Find selected images that were captured more than so many years ago."""
    return _wrong_rows(
        postgis,
        city,
        SELECTED_IMAGES,
        """
        SELECT image_id AS image, selected.sequence_id AS sequence,
            (to_timestamp(captured_at / 1000) AT TIME ZONE 'UTC')::date AS captured
        FROM {schema}.selected_images AS selected
        JOIN {schema}.images ON images.id = image_id
        WHERE captured_at < 1000 * extract(epoch FROM now() - make_interval(years => %(years)s))
        """,
        years=years,
    )


def wrong_distances(postgis: Postgis, city: City) -> WrongRows:
    """Find selected images that are too far from their point, or not as far as the table says."""
    return _wrong_rows(
        postgis,
        city,
        SELECTED_IMAGES,
        """
        SELECT street_point_id AS "street point", image_id AS image, distance,
            ST_Distance(point.geo, image.geo) AS measured
        FROM {schema}.selected_images
        JOIN {schema}.street_points AS point ON point.id = street_point_id
        JOIN {schema}.images AS image ON image.id = image_id
        WHERE (
            distance <= %(max_distance)s
            AND abs(distance - ST_Distance(point.geo, image.geo)) < 0.001
        ) IS NOT TRUE
        """,
        max_distance=city.max_distance,
    )


def points_without_image(postgis: Postgis, city: City) -> WrongRows:
    """Find street points that have no selected image within `max_distance`."""
    return _wrong_rows(
        postgis,
        city,
        STREET_POINTS,
        """
        SELECT id AS "street point", street, ST_X(geometry) AS lon, ST_Y(geometry) AS lat
        FROM {schema}.street_points AS point WHERE NOT {selected}
        """,
        max_distance=city.max_distance,
    )


def _wrong_rows(
    postgis: Postgis, city: City, table: Table, query: str, **parameters: object
) -> WrongRows:
    """Return the rows of `query`, compared with the number of rows of `table`."""
    schema = sql.Identifier(city.name)
    wrong = sql.SQL(query).format(schema=schema, selected=has_selected_image_near(city))
    with postgis.transaction() as cursor:
        cursor.execute(
            sql.SQL(
                "WITH wrong AS MATERIALIZED ({wrong}) "
                "SELECT (SELECT count(*) FROM wrong), row_to_json(wrong) FROM wrong LIMIT {}"
            ).format(sql.Literal(EXAMPLES), wrong=wrong),
            parameters,
        )
        rows = cursor.fetchall()
        cursor.execute(
            sql.SQL("SELECT count(*) FROM {}.{}").format(schema, sql.Identifier(table.name))
        )
        [(of,)] = cursor.fetchall()
    return WrongRows(rows[0][0] if rows else 0, of, [example for _, example in rows])
