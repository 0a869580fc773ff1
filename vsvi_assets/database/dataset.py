"""A city's dataset: one row per street point and image, gaps included."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import orjson
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.city.places import PREFIX, columns_of_user
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import PostgisError
from vsvi_assets.database.photographs import ensure_photographs
from vsvi_assets.database.queries import (
    CHOICE,
    has_rejected_image_near,
    no_choice,
    row_count,
    selected_images_near,
)
from vsvi_assets.database.schema import (
    IMAGES,
    PHOTOGRAPHS,
    SELECTED_IMAGES,
    STREET_POINTS,
    Column,
    Table,
)
from vsvi_assets.files import DataPath
from vsvi_assets.photographs.attribution import LICENCE
from vsvi_assets.photographs.inventory import SequenceFolders
from vsvi_assets.photographs.sidecar import IMAGE_PAGE
from vsvi_assets.photographs.states import State

GAP, MISSING = "gap", "missing"
"""States of rows beyond those of photographs: no image near, and one not downloaded yet."""


class NothingSelectedError(PostgisError):
    """A city has no selection yet."""


class OldTablesError(PostgisError):
    """A city's tables are those of an earlier version."""


@dataclass(frozen=True)
class _Queried:
    """A column of the dataset, and the SQL expression that it is selected by."""

    expression: sql.Composable
    column: Column


def _lon_lat(table: str, prefix: str, what: str) -> Iterator[_Queried]:
    for name, function, meaning in (("lon", "ST_X", "Longitude"), ("lat", "ST_Y", "Latitude")):
        expression = sql.SQL("{}({})").format(sql.SQL(function), sql.Identifier(table, "geometry"))
        description = f"{meaning} of the {what}, degrees (EPSG:4326)."
        yield _Queried(expression, Column(f"{prefix}{name}", pa.float64(), description))


def _columns(alias: str, table: Table, *left_out: str) -> Iterator[_Queried]:
    """Yield the columns of a table but for those left out and for geometries."""
    for column in table.columns:
        if column.name not in left_out and column.name not in ("geometry", "geo"):
            yield _Queried(sql.Identifier(alias, column.name), column)


_REASON = sql.SQL(
    """
    CASE WHEN pair.rejected_near
        THEN 'no image near the point is good enough' ELSE photograph.reason END
    """
)

_QUERIED = (
    _Queried(
        sql.Identifier("pair", "street_point_id"),
        Column(
            "street_point_id",
            pa.int64(),
            "The street point; null for an image that is near to none.",
        ),
    ),
    *_lon_lat("point", "", "street point"),
    *_columns("point", STREET_POINTS, "id"),
    _Queried(
        sql.Identifier("pair", "distance"),
        Column("distance", pa.float64(), "Metres from the point to the image."),
    ),
    _Queried(
        sql.Identifier("pair", "image_id"),
        Column("image_id", pa.int64(), "The image; null for a gap."),
    ),
    _Queried(
        sql.Identifier("pair", "sequence_id"),
        Column("sequence_id", pa.string(), "The image's sequence."),
    ),
    *(
        _Queried(sql.Identifier("pair", column.name), column)
        for column in SELECTED_IMAGES.columns
        if column.name in CHOICE.names
    ),
    *_lon_lat("image", "image_", "image"),
    *_columns("image", IMAGES, "id", "sequence_id"),
    *(
        replace(queried, expression=_REASON) if queried.column.name == "reason" else queried
        for queried in _columns("photograph", PHOTOGRAPHS, "image_id", "sequence_id")
    ),
)

_ADDED = (
    Column(
        "file",
        pa.string(),
        "The photograph, below the folder of the sequences; null where it is not on disk.",
    ),
    Column("licence", pa.string(), "The photograph's."),
    Column("page", pa.string(), "The image's page at mapillary.com."),
)


def _field(column: Column) -> pa.Field:
    type_, description = column.arrow_type, column.description
    if column.name == "captured_at":
        type_, description = pa.timestamp("ms", "UTC"), "When it was taken (UTC)."
    if column.name == "state":
        description += f" {MISSING}: not downloaded yet. {GAP}: no image near the point."
    return pa.field(column.name, type_, metadata={"description": description})


DATASET_SCHEMA = pa.schema(
    [
        *(
            _field(each.column)
            for each in _QUERIED
            if each.column.name not in ("place_id", "place")
        ),
        *map(_field, _ADDED),
    ]
)
"""The columns of the dataset, each with its description as metadata."""


def dataset_schema(city: City) -> pa.Schema:
    """Return the columns of a city's dataset: with places of the user's, theirs come last."""
    if city.places is None:
        return DATASET_SCHEMA
    types = {
        name: pa.Schema.from_pandas(city.places[[name]], preserve_index=False).field(0).type
        for name in columns_of_user(city.places)
    }
    simple = (pa.int64(), pa.float64(), pa.bool_())
    own = [Column("place_id", pa.string(), "The user's own id of the place.")] + [
        Column(name, type_ if type_ in simple else pa.string(), "As the user's file has it.")
        for name, type_ in types.items()
    ]
    return pa.schema([*DATASET_SCHEMA, *map(_field, own)])


def require_selection(postgis: Postgis, city: City) -> None:
    """Raise a `NothingSelectedError` where a city has no selection yet."""
    if row_count(postgis, city, SELECTED_IMAGES) is None:
        raise NothingSelectedError(
            f"Nothing is selected for {city.name} yet: run `vsvi materialize {city.name}` first."
        )


def dataset(postgis: Postgis, city: City) -> pa.RecordBatchReader:
    """Return a city's dataset in batches: each street point with its images, or as a gap.

    Selected images that are near to no point have rows without a point. Rows are ordered by
    sequence, image and point, gaps at the end. A photograph counts as stored only where its
    file is on disk and as long as its record says; so the counts are those of `vsvi status`.

    Raises
    ------
    NothingSelectedError
        When the city has no selection yet.
    OldTablesError
        When its tables lack columns; raised as the rows are read.
    """
    require_selection(postgis, city)
    ensure_photographs(postgis, city)
    query = sql.SQL(
        """
        WITH near AS MATERIALIZED (
            SELECT point.id AS street_point_id, nearest.*,
                image_id IS NULL AND {rejected_near} AS rejected_near
            FROM {schema}.street_points AS point LEFT JOIN LATERAL ({nearest}) AS nearest ON true
        ), pair AS (
            SELECT * FROM near
            UNION ALL
            SELECT DISTINCT NULL::bigint, image_id, sequence_id, NULL::float, {no_choice}, false
            FROM {schema}.selected_images AS selected
            WHERE street_point_id IS NULL
                AND NOT EXISTS (SELECT FROM near WHERE near.image_id = selected.image_id)
        )
        SELECT {columns}
        FROM pair
        LEFT JOIN {schema}.street_points AS point ON point.id = pair.street_point_id
        LEFT JOIN {schema}.images AS image ON image.id = pair.image_id
        LEFT JOIN {schema}.photographs AS photograph
            ON (photograph.sequence_id, photograph.image_id) = (pair.sequence_id, pair.image_id)
        ORDER BY pair.sequence_id COLLATE "C" NULLS LAST, pair.image_id, pair.street_point_id
        """
    ).format(
        schema=sql.Identifier(city.name),
        nearest=selected_images_near(city),
        no_choice=no_choice(),
        rejected_near=has_rejected_image_near(city),
        columns=sql.SQL(", ").join(queried.expression for queried in _QUERIED),
    )
    return pa.RecordBatchReader.from_batches(dataset_schema(city), _batches(postgis, city, query))


def _batches(postgis: Postgis, city: City, query: sql.Composed) -> Iterator[pa.RecordBatch]:
    files, schema = _Files(city.sequences_folder), dataset_schema(city)
    try:
        for batch in postgis.stream_batches(
            query, _QUERIED_SCHEMA, {"max_distance": city.max_distance}
        ):
            yield _completed(batch, files, city, schema)
    except psycopg2.errors.UndefinedColumn as error:
        raise OldTablesError(
            f"The tables of {city.name} were made by an earlier version: run "
            f"`vsvi materialize {city.name}`, which makes them again. Photographs are kept."
        ) from error


class _Files:
    """The sizes of the files of one sequence at a time, by name."""

    def __init__(self, sequences_folder: DataPath) -> None:
        self._folders = SequenceFolders(sequences_folder, all_of_them=True)
        self._sequence_id: str | None = None
        self._sizes: Mapping[str, int] = {}

    def size(self, sequence_id: str, name: str) -> int | None:
        if sequence_id != self._sequence_id:
            self._sequence_id = sequence_id
            self._sizes = self._folders.sizes(sequence_id)
        return self._sizes.get(name)


def _completed(
    batch: pa.RecordBatch, files: _Files, city: City, schema: pa.Schema
) -> pa.RecordBatch:
    """Return rows with state and the added columns, as the files on disk are now."""
    states: list[str] = []
    names: list[str | None] = []
    known = ("sequence_id", "image_id", "state", "bytes")
    for sequence_id, image_id, state, bytes_ in zip(
        *(batch[name].to_pylist() for name in known), strict=True
    ):
        file = None
        if image_id is None:
            state = GAP
        elif state == State.STORED:
            name = f"{image_id}.jpg"
            if files.size(sequence_id, name) == bytes_:
                file = f"{sequence_id}/{name}"
            else:
                state = MISSING
        states.append(state or MISSING)
        names.append(file)
    ids = batch["image_id"]
    before, after = IMAGE_PAGE.split("{id}")
    columns = {name: batch[name] for name in batch.schema.names}
    columns |= {
        "state": pa.array(states, pa.string()),
        "file": pa.array(names, pa.string()),
        "licence": pc.if_else(pc.is_valid(ids), LICENCE, pa.scalar(None, pa.string())),
        "page": pc.binary_join_element_wise(before, ids.cast(pa.string()), after, ""),
    }
    if city.places is not None:
        columns |= _of_places(batch, states, city, schema)
    arrays = [columns[field.name].cast(field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _of_places(
    batch: pa.RecordBatch, states: Sequence[str], city: City, schema: pa.Schema
) -> dict[str, pa.Array]:
    """Return the user's own columns of each row, and why a place has no image."""
    rows = [orjson.loads(text) if text else {} for text in batch["place"].to_pylist()]
    own = {
        field.name: pa.array(
            [_as(field.type, row.get(field.name.removeprefix(PREFIX))) for row in rows], field.type
        )
        for field in schema
        if field.name.startswith(PREFIX) and field.name != "place_id"
    }
    inside = city.area.covers(*(pc.fill_null(batch[name], 0).to_numpy() for name in ("lon", "lat")))
    near = f"No image within {city.max_distance:g} m passes the city's rules."
    outside = f"The place lies outside the {city.area_name}."
    reasons = [
        reason if state != GAP else near if is_inside else outside
        for reason, state, is_inside in zip(
            batch["reason"].to_pylist(), states, inside, strict=True
        )
    ]
    return own | {"reason": pa.array(reasons, pa.string())}


def _as(type_: pa.DataType, value: object) -> object:
    is_other = type_ == pa.string() and value is not None and not isinstance(value, str)
    return orjson.dumps(value).decode() if is_other else value


_QUERIED_SCHEMA = pa.schema(
    [pa.field(queried.column.name, queried.column.arrow_type) for queried in _QUERIED]
)
