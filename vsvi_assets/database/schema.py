"""Every table of a city, written once: DDL, COPY, results, Dagster's columns derive from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.mapillary.tiles import IMAGE_SCHEMA, POSITION

_TIME = pa.timestamp("us", "UTC")
_SQL_TYPES = {
    pa.bool_(): "boolean",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float64(): "double precision",
    pa.string(): "text",
    _TIME: "timestamptz",
}
DESCRIPTION = b"description"
"""The key of a field's description in its Arrow metadata."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name, description
        As people read them.
    arrow_type
        In Arrow; of a geometry EWKB in binary.
    nullable
        Whether it may be null.
    sql_type
        In PostgreSQL, `{srid}` standing for the city's projected CRS.
    made_of
        The SQL expression that the server makes the column of, in the same way; empty where its
        values are given.
    """

    name: str
    arrow_type: pa.DataType
    description: str
    nullable: bool = True
    sql_type: str = ""
    made_of: str = ""

    def __post_init__(self) -> None:
        if not self.sql_type:
            object.__setattr__(self, "sql_type", _SQL_TYPES[self.arrow_type])

    @classmethod
    def of(cls, field: pa.Field) -> "Column":
        """Return the column of an Arrow field that carries its description as metadata."""
        description = field.metadata[DESCRIPTION].decode()
        return cls(field.name, field.type, description, field.nullable)

    def sql_type_in(self, city: City) -> str:
        """Return the column's type in a city's table."""
        return self.sql_type.format(srid=city.projected_srid)


@dataclass(frozen=True)
class Table:
    """A table of a city's schema.

    Attributes
    ----------
    name, description
        As people read them.
    columns
        In the order of the table.
    primary_key
        The names of the columns that identify its rows; none where nothing has to.
    indexes
        Further indexes, as method and column: `("gist", "geo")`.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()
    indexes: tuple[tuple[str, str], ...] = ()

    def definition(self, city: City) -> sql.Composed:
        """Return the columns as CREATE TABLE takes them, in parentheses."""
        columns = [
            sql.SQL("{} {}{}{}").format(
                sql.Identifier(column.name),
                sql.SQL(column.sql_type_in(city)),
                sql.SQL("" if column.nullable else " NOT NULL"),
                sql.SQL(
                    f" GENERATED ALWAYS AS ({column.made_of}) STORED" if column.made_of else ""
                ).format(srid=sql.Literal(city.projected_srid)),
            )
            for column in self.columns
        ]
        return sql.SQL("({})").format(sql.SQL(", ").join(columns))

    def arrow_schema(self, *names: str) -> pa.Schema:
        """Return the Arrow types of the named columns, in this order; without names of all."""
        columns = {column.name: column for column in self.columns}
        return pa.schema(
            [
                pa.field(name, columns[name].arrow_type, columns[name].nullable)
                for name in names or columns
            ]
        )


def _geometries(of_what: str, kind: str = "Point") -> Sequence[Column]:
    binary: Any = {"arrow_type": pa.binary(), "nullable": False}
    return (
        Column(
            "geometry",
            description=f"Longitude and latitude of the {of_what}.",
            sql_type=f"geometry({kind}, 4326)",
            **binary,
        ),
        Column(
            "geo",
            description="The same place in metres, indexed for searches.",
            sql_type=f"geometry({kind}, {{srid}})",
            made_of="ST_Transform(geometry, {srid})",
            **binary,
        ),
    )


STREET_POINTS = Table(
    "street_points",
    "Points every so many metres along the streets of the city (OpenStreetMap).",
    (
        Column(
            "id",
            pa.int64(),
            "Made from the position alone, so that it is the same at every run.",
            nullable=False,
        ),
        Column("osmid", pa.int64(), "The way of OpenStreetMap; null for a place of the user's."),
        Column("street", pa.string(), "Name of the street, where it has one."),
        Column(
            "bearing",
            pa.float64(),
            "Direction of the street, degrees clockwise from north, below 180.",
        ),
        Column("highway", pa.string(), "Class of the street (OpenStreetMap's tag highway)."),
        Column("metres", pa.float64(), "Metres of street that are nearer to it than to others."),
        Column("place_id", pa.string(), "The user's own id of the place."),
        Column(
            "place", pa.string(), "The other columns of the user's place, as JSON.", sql_type="json"
        ),
        *_geometries("point"),
    ),
    primary_key=("id",),
    indexes=(("gist", "geometry"), ("gist", "geo")),
)

STREETS = Table(
    "streets",
    "The streets of the city, on which its points stand.",
    (
        Column("id", pa.int64(), "Number, from the longest street on.", nullable=False),
        Column("osmid", pa.int64(), "The way of OpenStreetMap.", nullable=False),
        Column("name", pa.string(), "Name of the street, where it has one."),
        Column("highway", pa.string(), "Its class (OpenStreetMap's tag highway)."),
        Column("metres", pa.float64(), "Its length inside the city.", nullable=False),
        *_geometries("street", "LineString"),
    ),
    primary_key=("id",),
    indexes=(("gist", "geo"), ("btree", "osmid")),
)

IMAGES = Table(
    "images",
    "The Mapillary images in the city's area that pass its filters.",
    (
        *(Column.of(field) for field in IMAGE_SCHEMA if field.name not in POSITION),
        *_geometries("image"),
    ),
    primary_key=("id",),
    indexes=(("gist", "geometry"), ("gist", "geo")),
)

CORRECTIONS = Table(
    "corrections",
    "What Mapillary corrected of the images in the tiles, in a city that goes by that.",
    (
        Column("images", pa.int64(), "How many there are in the tiles.", nullable=False),
        Column(
            "without_position",
            pa.int64(),
            "How many have no corrected position, and keep the camera's own.",
            nullable=False,
        ),
        Column(
            "without_heading",
            pa.int64(),
            "How many have no corrected heading, and keep the camera's own.",
            nullable=False,
        ),
        Column(
            "heading_requests",
            pa.int64(),
            "Requests to the Graph API that the headings of all tiles take.",
            nullable=False,
        ),
    ),
)

SELECTED_IMAGES = Table(
    "selected_images",
    "The images to download, and the street points they are selected for.",
    (
        Column(
            "street_point_id",
            pa.int64(),
            "The street point; null where the image is not selected for a point.",
        ),
        Column("image_id", pa.int64(), "The image.", nullable=False),
        Column("sequence_id", pa.string(), "The image's sequence.", nullable=False),
        Column("distance", pa.float64(), "Metres between the two."),
        Column("rule", pa.string(), "By which of several the image is chosen."),
        Column("rank", pa.int32(), "Of the image among the point's candidates; 1 is the first."),
        Column(
            "angle",
            pa.float64(),
            "Degrees between the image's heading and the line of the street, 0 to 90.",
        ),
        Column(
            "candidates",
            pa.int32(),
            "How many images the rules leave to choose from; null in a city without rules.",
        ),
        Column("year", pa.int32(), "Of the local date of capture, where one is chosen per year."),
        Column(
            "balanced", pa.bool_(), "Whether the point has an image in every year of the selection."
        ),
        Column("twins", pa.string(), "Ids of the same photograph, which the image stands for."),
    ),
    indexes=(("btree", "sequence_id"), ("btree", "street_point_id"), ("btree", "image_id")),
)

SELECTED_IMAGES_HASHED = replace(
    SELECTED_IMAGES,
    columns=(
        *SELECTED_IMAGES.columns,
        Column(
            "sequence_hash",
            pa.int64(),
            "CRC-32 of the sequence's id, by which sequence_buckets puts it into a partition.",
            nullable=False,
        ),
    ),
    indexes=(*SELECTED_IMAGES.indexes, ("btree", "sequence_hash")),
)
"""The table `selected_images` of cities with `sequence_buckets`."""

SELECTION_RULES = Table(
    "selection_rules",
    "What each rule of the city file left out when the images were selected.",
    (
        Column("number", pa.int32(), "In the order in which they are applied.", nullable=False),
        Column("rule", pa.string(), "The key of the city file.", nullable=False),
        Column("setting", pa.string(), "Its value.", nullable=False),
        Column("of", pa.string(), "What it is applied to: images or candidates.", nullable=False),
        Column("before", pa.int64(), "How many there were.", nullable=False),
        Column("removed", pa.int64(), "How many of them it left out.", nullable=False),
    ),
    primary_key=("number",),
)

PHOTOGRAPHS = Table(
    "photographs",
    "What is known of each image that was wanted; kept when the other tables are replaced.",
    (
        Column(
            "sequence_id",
            pa.string(),
            "The image's sequence, and the folder of its file.",
            nullable=False,
            sql_type='text COLLATE "C"',
        ),
        Column("image_id", pa.int64(), "The image.", nullable=False),
        Column(
            "state",
            pa.string(),
            "stored, rejected, not_answered, unavailable, refused or failed.",
            nullable=False,
        ),
        Column("bytes", pa.int64(), "Size of the file."),
        Column("sha256", pa.string(), "Of the file, in hexadecimal."),
        Column("width", pa.int32(), "Pixels."),
        Column("height", pa.int32(), "Pixels."),
        Column("image_size", pa.string(), "The city file's when it was fetched."),
        Column("creator", pa.string(), "Name of who took it, to be attributed."),
        Column("reason", pa.string(), "Why it is not stored, or not stored again."),
        Column("first_asked", _TIME, "When Mapillary first left it out of an answer."),
        Column("last_asked", _TIME, "When it last did, or when the image was refused."),
        Column("answers", pa.int32(), "How many runs got such an answer."),
        Column("stored_at", _TIME, "When the file was written."),
        Column(
            "sharpness", pa.float64(), "Low where the photograph is blurred; null: not measured."
        ),
        Column("brightness", pa.float64(), "0 (black) to 1 (white)."),
        Column("contrast", pa.float64(), "0 to 0.5, the standard deviation of the brightness."),
        Column("over_exposure", pa.float64(), "Share of the photograph that is white, 0 to 1."),
        Column("night", pa.bool_(), "Whether its upper half is dark."),
    ),
    primary_key=("sequence_id", "image_id"),
)
