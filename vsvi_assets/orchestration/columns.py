"""What the columns of the assets mean, as the UI shows it and the catalog searches it."""

from dagster import TableColumn, TableColumnConstraints, TableSchema

from vsvi_assets.city import City

_KEY = TableColumnConstraints(nullable=False, unique=True)
_REQUIRED = TableColumnConstraints(nullable=False)


def _column(
    name: str, type_: str, description: str, constraints: TableColumnConstraints | None = None
) -> TableColumn:
    return TableColumn(name, type_, description, constraints)


_POINT_ID = _column("id", "bigint", "Told by the position alone: the same at every run.", _KEY)
_OSMID = _column("osmid", "bigint", "The way of OpenStreetMap.", _REQUIRED)
_STREET = _column("street", "text", "Name of the street, where it has one.")
_CAPTURED_AT = _column("captured_at", "bigint", "Milliseconds since 1970 (UTC); 0 where unknown.")
_COMPASS_ANGLE = _column("compass_angle", "double precision", "Degrees clockwise from north.")
_IS_PANO = _column("is_pano", "boolean", "Whether it is a panorama.")
_CREATOR = _column("creator", "text", "Name of who took it, to be attributed.")
_IMAGE_PROPERTIES = [
    _column("id", "bigint", "Mapillary's id of the image.", _KEY),
    _column("sequence_id", "text", "Mapillary's id of the sequence it belongs to.", _REQUIRED),
    _CAPTURED_AT,
    _COMPASS_ANGLE,
    _IS_PANO,
    _column("creator_id", "bigint", "Who took it."),
    _column("organization_id", "bigint", "For which organization it was taken."),
]
_POSITION = _column("geometry", "geometry(Point, 4326)", "Longitude and latitude.", _REQUIRED)


def _positions(city: City) -> list[TableColumn]:
    projected = f"geometry(Point, {city.projected_srid})"
    return [
        _POSITION,
        _column("geo", projected, "The same place in metres, indexed for searches.", _REQUIRED),
    ]


STREET_POINTS_FILE = TableSchema([_POINT_ID, _OSMID, _STREET, _POSITION])
TILE_FILE = TableSchema([*_IMAGE_PROPERTIES, _POSITION])


def street_points_table(city: City) -> TableSchema:
    """Return the columns of the table `street_points`."""
    return TableSchema([_POINT_ID, _OSMID, _STREET, *_positions(city)])


def images_table(city: City) -> TableSchema:
    """Return the columns of the table `images`."""
    return TableSchema([*_IMAGE_PROPERTIES, *_positions(city)])


_DISTANCE = _column("distance", "double precision", "Metres between the two.")

SELECTED_IMAGES_TABLE = TableSchema(
    [
        _column("street_point_id", "bigint", "The street point; null where none asked for it."),
        _column("image_id", "bigint", "The image selected for it.", _REQUIRED),
        _column("sequence_id", "text", "The image's sequence.", _REQUIRED),
        _DISTANCE,
    ]
)

DOWNLOAD_PLAN = TableSchema(
    [
        _column("what", "text", "What the photographs take: room, time, requests.", _KEY),
        _column("how much", "text", "The estimate.", _REQUIRED),
        _column("note", "text", "Its range, or what it is to be held against."),
    ]
)

SIDECAR_FILE = TableSchema(
    [
        _column("id", "bigint", "Mapillary's id of the image, and the name of its file.", _KEY),
        _column("captured_at", "text", "ISO 8601, UTC."),
        _COMPASS_ANGLE,
        _IS_PANO,
        _CREATOR,
        _column("width", "integer", "Pixels.", _REQUIRED),
        _column("height", "integer", "Pixels.", _REQUIRED),
        _column("bytes", "bigint", "Size of the file.", _REQUIRED),
        _column("sha256", "text", "Of the file, in hexadecimal.", _REQUIRED),
        _column("url", "text", "The image's page at mapillary.com.", _REQUIRED),
        _column("geometry", "geometry(Point, 4326)", "Longitude and latitude."),
    ]
)

COVERAGE_REPORT = TableSchema(
    [
        _column("geometry", "geometry(Point, 4326)", "The street point.", _REQUIRED),
        _STREET,
        _column("state", "text", "On disk, a gap, yet to come, or gone from Mapillary.", _REQUIRED),
        _column("image_id", "bigint", "The image nearest to it; null for a gap."),
        _DISTANCE,
        _CAPTURED_AT,
        _COMPASS_ANGLE,
        _IS_PANO,
        _CREATOR,
    ]
)
