"""The columns of the assets, as the UI shows them and the catalog searches them."""

from dagster import TableColumn, TableColumnConstraints, TableSchema

from vsvi_assets.city import City
from vsvi_assets.database.dataset import DATASET_SCHEMA
from vsvi_assets.database.schema import (
    DESCRIPTION,
    IMAGES,
    PHOTOGRAPHS,
    SELECTED_IMAGES,
    STREET_POINTS,
    Table,
)
from vsvi_assets.photographs.quality import Quality

_KEY = TableColumnConstraints(nullable=False, unique=True)
_REQUIRED = TableColumnConstraints(nullable=False)


def table_schema(table: Table, city: City) -> TableSchema:
    """Return the columns of a city's table."""
    return TableSchema(
        [_column(table, column.name, column.sql_type_in(city)) for column in table.columns]
    )


def _column(table: Table, name: str, sql_type: str | None = None) -> TableColumn:
    column = next(column for column in table.columns if column.name == name)
    constraints = TableColumnConstraints(column.nullable, table.primary_key == (name,))
    return TableColumn(name, sql_type or column.sql_type, column.description, constraints)


def _in_file(table: Table) -> TableSchema:
    """Return the columns of a table's file, whose positions are degrees alone."""
    names = [column.name for column in table.columns if column.name != "geo"]
    return TableSchema([_column(table, name) for name in names])


STREET_POINTS_FILE = _in_file(STREET_POINTS)
TILE_FILE = _in_file(IMAGES)
SELECTED_IMAGES_TABLE = _in_file(SELECTED_IMAGES)

DOWNLOAD_PLAN = TableSchema(
    [
        TableColumn("what", "text", "What the photographs take: room, time, requests.", _KEY),
        TableColumn("how much", "text", "The estimate.", _REQUIRED),
        TableColumn("note", "text", "Its range, or what it is compared with."),
    ]
)

_CREATOR = TableColumn("creator", "text", "Name of who took it, to be attributed.")

SIDECAR_FILE = TableSchema(
    [
        TableColumn("id", "bigint", "Mapillary's id, and the name of the image's file.", _KEY),
        TableColumn("captured_at", "text", "ISO 8601, UTC."),
        _column(IMAGES, "compass_angle"),
        _column(IMAGES, "is_pano"),
        _CREATOR,
        TableColumn("width", "integer", "Pixels.", _REQUIRED),
        TableColumn("height", "integer", "Pixels.", _REQUIRED),
        TableColumn("bytes", "bigint", "Size of the file.", _REQUIRED),
        TableColumn("sha256", "text", "Of the file, in hexadecimal.", _REQUIRED),
        *(_column(PHOTOGRAPHS, name) for name in Quality._fields),
        TableColumn("url", "text", "The image's page at mapillary.com.", _REQUIRED),
        TableColumn("geometry", "geometry(Point, 4326)", "Longitude and latitude."),
    ]
)

COVERAGE_REPORT = TableSchema(
    [
        _column(STREET_POINTS, "geometry"),
        _column(STREET_POINTS, "street"),
        TableColumn(
            "state", "text", "On disk, a gap, yet to come, or gone from Mapillary.", _REQUIRED
        ),
        TableColumn("image_id", "bigint", "The image nearest to it; null for a gap."),
        _column(SELECTED_IMAGES, "distance"),
        _column(IMAGES, "captured_at"),
        _column(IMAGES, "compass_angle"),
        _column(IMAGES, "is_pano"),
        _CREATOR,
    ]
)

DATASET = TableSchema(
    [
        TableColumn(field.name, str(field.type), field.metadata[DESCRIPTION].decode())
        for field in DATASET_SCHEMA
    ]
)
