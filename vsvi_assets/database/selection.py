"""The selection of a city: made of its tables by its rules, and asked for what comes next."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import StreetsNotKeptError
from vsvi_assets.database.photographs import apply_quality_rules
from vsvi_assets.database.queries import in_shares, nearest_image, rejected_images, row_count
from vsvi_assets.database.replacement import NewTable, unreplaced
from vsvi_assets.database.schema import IMAGES, SELECTION_RULES, STREET_POINTS
from vsvi_assets.database.tables import SELECTION_SCHEMA
from vsvi_assets.selection.choice import choose
from vsvi_assets.selection.rules import Removal, usable_images
from vsvi_assets.selection.streets import NO_STREET, streets_of_images

_STREET_SCHEMA = pa.schema({"key": pa.string(), "line": pa.string()})
_POINT_SCHEMA = pa.schema(
    [
        *STREET_POINTS.arrow_schema("id", "bearing"),
        pa.field("key", pa.string()),
        pa.field("x", pa.float64()),
        pa.field("y", pa.float64()),
    ]
)
_IMAGE_COLUMNS = ("id", "captured_at", "compass_angle", "is_pano", "creator_id")
_IMAGE_SCHEMA = pa.schema(
    [
        # Each sequence's id is in memory once.
        pa.field("sequence_id", pa.dictionary(pa.int32(), pa.string())),
        *IMAGES.arrow_schema(*_IMAGE_COLUMNS),
        *(pa.field(name, pa.float64()) for name in ("lon", "lat", "x", "y")),
        pa.field("is_rejected", pa.bool_()),
    ]
)


def select_images(postgis: Postgis, city: City, removals: list[Removal] | None = None) -> pa.Table:
    """Choose the images to download, of the city's tables in PostGIS.

    With `imgid_file` they are the listed ones; with `selection: all` every image of the
    table; else, for each street point, the nearest image within `max_distance` metres, of
    several equally near the one with the lowest id. The rules of the city file leave images out,
    or choose others. Photographs on disk are judged anew by its limits of quality.

    Parameters
    ----------
    removals
        Gets what each rule left out, in the order in which they are applied.

    Returns
    -------
    pyarrow.Table
        `SELECTION_SCHEMA`. `street_point_id` and what describes a choice are null where no point
        asked for the image. In a city without rules `candidates` is null.

    Raises
    ------
    CityFileError
        When `imgid_file` cannot be used.
    """
    listed = city.read_image_ids()
    removals = [] if removals is None else removals
    apply_quality_rules(postgis, city)
    if not city.rules:
        if city.chooses_for_points:
            return _nearest_images(postgis, city)
        return _images_themselves(postgis, city, listed)
    with unreplaced(postgis, city.name):
        points = _read_points(postgis, city) if city.chooses_for_points else None
        images = _read_images(postgis, city, listed)
        streets = _read_streets(postgis, city) if city.same_street else None
    if points is not None and streets is not None:
        points, images = _with_streets(points, images, streets, city)
    images, of_images = usable_images(images, city)
    removals += of_images
    if points is None:
        images = images.filter(pc.invert(images["is_rejected"]))
        nothing = {
            name: pa.nulls(len(images), SELECTION_SCHEMA.field(name).type)
            for name in SELECTION_SCHEMA.names
        }
        return pa.table(
            nothing
            | {
                "image_id": images["id"],
                "sequence_id": images["sequence_id"],
                "twins": images["twins"],
            },
            SELECTION_SCHEMA,
        )
    rows, of_candidates = choose(points, images, city)
    removals += of_candidates
    return rows.cast(SELECTION_SCHEMA)


def selection_rules_table(removals: Sequence[Removal], city: City) -> NewTable:
    """Describe the table `selection_rules`, of what `select_images` reports."""
    rows = pa.Table.from_pylist(
        [{"number": number, **vars(removal)} for number, removal in enumerate(removals, 1)],
        SELECTION_RULES.arrow_schema(),
    )
    return NewTable(SELECTION_RULES, city, [rows])


def read_removals(postgis: Postgis, city: City) -> list[Removal]:
    """Return what each rule left out at the latest selection; nothing in a city without rules."""
    if not row_count(postgis, city, SELECTION_RULES):
        return []
    query = sql.SQL("SELECT rule, setting, of, before, removed FROM {} ORDER BY number").format(
        sql.Identifier(city.name, SELECTION_RULES.name)
    )
    return [Removal(*row) for row in postgis.stream(query)]


def _nearest_images(postgis: Postgis, city: City) -> pa.Table:
    query = sql.SQL(
        """
        SELECT point.id, nearest.image_id, nearest.sequence_id, nearest.distance, 'nearest', 1,
            90 - abs(90 - (turn - 180 * floor(turn / 180))), NULL, NULL, NULL, NULL
        FROM {schema}.street_points AS point CROSS JOIN LATERAL ({nearest}) AS nearest
        CROSS JOIN LATERAL (SELECT nearest.compass_angle - point.bearing AS turn) AS between_them
        WHERE point.id %% %(searches)s = %(search)s
        """
    ).format(schema=sql.Identifier(city.name), nearest=nearest_image(city, among=sql.SQL("true")))
    with unreplaced(postgis, city.name):
        shares = in_shares({"max_distance": city.max_distance})
        found = postgis.read_in_parallel(query, SELECTION_SCHEMA, shares)
    return found.sort_by("street_point_id")


def _images_themselves(postgis: Postgis, city: City, listed: Sequence[int] | None) -> pa.Table:
    query = sql.SQL(
        """
        SELECT NULL, id, sequence_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
        FROM {images}{condition} ORDER BY id
        """
    ).format(
        images=sql.Identifier(city.name, IMAGES.name),
        condition=sql.SQL("" if listed is None else " WHERE id = ANY(%(ids)s)"),
    )
    return postgis.read(query, SELECTION_SCHEMA, {"ids": listed})


def _read_points(postgis: Postgis, city: City) -> pa.Table:
    query = sql.SQL(
        """
        SELECT id, bearing, coalesce('name ' || street, 'way ' || osmid), ST_X(geo), ST_Y(geo)
        FROM {}.street_points
        """
    ).format(sql.Identifier(city.name))
    return postgis.read(query, _POINT_SCHEMA)


def _read_streets(postgis: Postgis, city: City) -> pa.Table:
    """Read the streets' lines, each with the key of its street.

    The ways of OpenStreetMap that have a name are one street with all others of that name; a
    way without a name is one by itself.
    """
    query = sql.SQL(
        """
        SELECT coalesce('name ' || name, 'way ' || osmid), encode(ST_AsBinary(geo), 'hex')
        FROM {}.streets
        """
    ).format(sql.Identifier(city.name))
    return postgis.read(query, _STREET_SCHEMA)


def _with_streets(
    points: pa.Table, images: pa.Table, streets: pa.Table, city: City
) -> tuple[pa.Table, pa.Table]:
    """Give points and images the numbers of their streets, as the column `street`.

    Raises StreetsNotKeptError when there are none.
    """
    if len(points) and not len(streets):
        raise StreetsNotKeptError(
            f"The streets of {city.name} are not in its tables, and same_street asks for them: run "
            f"`vsvi materialize {city.name} --overwrite`, which fetches them again."
        )
    keys = streets["key"].unique()
    street = pc.index_in(streets["key"], keys).to_numpy().astype(np.int64)
    lines = shapely.from_wkb(streets["line"].to_numpy())
    of_images = streets_of_images(images, lines, street, city.max_distance)
    of_points = pc.index_in(points["key"], keys).fill_null(NO_STREET).cast(pa.int64())
    return (
        points.append_column("street", of_points),
        images.append_column("street", pa.array(of_images, pa.int64())),
    )


def _read_images(postgis: Postgis, city: City, listed: Sequence[int] | None) -> pa.Table:
    """Read the images of these ids, or all."""
    query = sql.SQL(
        """
        SELECT sequence_id, {columns}, ST_X(geometry), ST_Y(geometry), ST_X(geo), ST_Y(geo),
            id IN ({rejected})
        FROM {images} WHERE id %% %(searches)s = %(search)s AND {condition}
        """
    ).format(
        columns=sql.SQL(", ").join(map(sql.Identifier, _IMAGE_COLUMNS)),
        rejected=rejected_images(city),
        images=sql.Identifier(city.name, IMAGES.name),
        condition=sql.SQL("true" if listed is None else "id = ANY(%(ids)s)"),
    )
    shares = in_shares({"ids": listed})
    return postgis.read_in_parallel(query, _IMAGE_SCHEMA, shares).unify_dictionaries()
