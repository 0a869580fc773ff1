"""The table `photographs` of a city: what is known of each image, for queries.

The sidecars beside the photographs are the portable record, and the table can be rebuilt from
them. It is kept when the city's other tables are replaced.
"""

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Self

import psycopg2.extensions
import pyarrow as pa
import pyarrow.csv
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.locks import advisory_lock
from vsvi_assets.database.replacement import finish, own_table
from vsvi_assets.database.schema import PHOTOGRAPHS
from vsvi_assets.files import each_in_turn, update_lines
from vsvi_assets.photographs.inventory import (
    Inventory,
    compare_with_store,
    sequences_on_disk,
)
from vsvi_assets.photographs.jpeg import MAX_PIXELS
from vsvi_assets.photographs.quality import Quality
from vsvi_assets.photographs.sidecar import (
    SERVICES_WITHOUT_MARK,
    Sidecar,
    known_images,
    photographs_of,
    sequence_folder,
)
from vsvi_assets.photographs.states import Photograph, State
from vsvi_assets.store import StoreError

log = logging.getLogger(__name__)

BATCH_ROWS = 10_000
LATEST = 200
PAUSE_SECONDS = 60


class PhotographRecords:
    """Keeps the table `photographs` up to date with the sidecars, in batches.

    To be used as a context: at its end what is left is stored, after an error too.
    """

    def __init__(self, postgis: Postgis, city: City) -> None:
        self._postgis, self._city = postgis, city
        self._rows: list[Photograph] = []
        self._failed, self._others = set[int](), set[int]()

    def __enter__(self) -> Self:
        ensure_photographs(self._postgis, self._city)
        return self

    def __exit__(self, *exception: object) -> None:
        self.store()

    def add(self, sequence_id: str, sidecar: Sidecar) -> None:
        """Take note of what a sequence's sidecar says."""
        self._rows += photographs_of(sequence_id, sidecar)
        self._failed |= sidecar.failed.keys()
        self._others |= sidecar.ids - sidecar.failed.keys()
        if len(self._rows) >= BATCH_ROWS:
            self.store()

    def store(self) -> None:
        """Store what was added until now, in one transaction, and note what failed."""
        if self._rows:
            with self._postgis.transaction() as cursor:
                _upsert(cursor, self._city, self._rows)
            self._note_failed_ids()
            for noted in (self._rows, self._failed, self._others):
                noted.clear()

    def _note_failed_ids(self) -> None:
        """Keep the `failed_imgid_file`, which other processes may keep at the same time."""
        path = self._city.failed_image_ids_path
        if path is None:
            return
        with advisory_lock(self._postgis, f"failed images of {self._city.name}", wait=True):
            update_lines(path, added=map(str, self._failed), removed=map(str, self._others))


def ensure_photographs(postgis: Postgis, city: City) -> None:
    """Create the table where it is missing, of what the sidecars say.

    One of an earlier version gets the columns that it has not.
    """
    with postgis.transaction() as cursor:
        if _exists(cursor, city):
            _add_columns(cursor, city)
            return
        _lock(cursor, city)
        if _exists(cursor, city):
            return
        cursor.execute(
            sql.SQL("CREATE SCHEMA IF NOT EXISTS {}; CREATE TABLE {} {}").format(
                sql.Identifier(city.name), _table(city), PHOTOGRAPHS.definition(city)
            )
        )
        finish(cursor, _table(city), PHOTOGRAPHS)
        _fill(cursor, city)


def _add_columns(cursor: psycopg2.extensions.cursor, city: City) -> None:
    cursor.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(_table(city)))
    present = {column.name for column in cursor.description or ()}
    for column in PHOTOGRAPHS.columns:
        if column.name not in present:
            cursor.execute(
                sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}").format(
                    _table(city), sql.Identifier(column.name), sql.SQL(column.sql_type_in(city))
                )
            )


def rebuild_photographs(postgis: Postgis, city: City) -> None:
    """Replace the table's content by what the sidecars say."""
    ensure_photographs(postgis, city)
    with postgis.transaction() as cursor:
        _lock(cursor, city)
        cursor.execute(sql.SQL("DELETE FROM {}").format(_table(city)))
        _fill(cursor, city)


def apply_quality_rules(postgis: Postgis, city: City) -> None:
    """Mark all photographs as stored or rejected, by the limits that the city file has now."""
    ensure_photographs(postgis, city)
    with postgis.transaction() as cursor:
        _judge(cursor, city, _table(city))


def take_inventory(
    city: City,
    postgis: Postgis,
    sequence_ids: Sequence[str] | None = None,
    *,
    now: datetime | None = None,
) -> Inventory:
    """Compare a city's selection with its records and with its files on disk.

    With `sequence_ids` only these sequences are looked at, and none for being orphaned.

    Parameters
    ----------
    now
        By which images are due to be asked for again; default: the present.

    Raises
    ------
    psycopg2.errors.UndefinedTable
        When nothing is selected yet.
    """
    ensure_photographs(postgis, city)
    condition = sql.SQL("" if sequence_ids is None else "WHERE sequence_id = ANY(%(sequences)s)")
    query = sql.SQL(
        """
        SELECT sequence_id, image_id, state, bytes, reason, first_asked, last_asked, answers,
            {to_measure}
        FROM (
            SELECT DISTINCT sequence_id COLLATE "C" AS sequence_id, image_id
            FROM {selected} {condition}
        ) AS selected
        LEFT JOIN {photographs} USING (sequence_id, image_id)
        ORDER BY sequence_id, image_id
        """
    ).format(
        selected=sql.Identifier(city.name, "selected_images"),
        condition=condition,
        photographs=_table(city),
        to_measure=sql.SQL(
            "sharpness IS NULL AND width::bigint * height <= {}" if city.quality else "false"
        ).format(sql.Literal(MAX_PIXELS)),
    )
    parameters = {"sequences": None if sequence_ids is None else list(sequence_ids)}
    rows = postgis.stream(query, parameters)
    return compare_with_store(
        rows,
        city.sequences_folder,
        now or datetime.now(UTC),
        all_of_them=sequence_ids is None,
    )


def forget_lost(postgis: Postgis, city: City, missing: Mapping[str, Sequence[int]]) -> None:
    """Remove the records of photographs that are not on disk any more, by sequence.

    Without that, a photograph that comes again in a run that is killed before it writes the
    sidecar would have its old record, and no run would put it into the sidecar.
    """
    query = sql.SQL(
        "DELETE FROM {} WHERE sequence_id = ANY(%(sequences)s) AND image_id = ANY(%(images)s)"
        " AND state = ANY(%(with_file)s)"
    ).format(_table(city))
    parameters = {
        "sequences": list(missing),
        "images": [image_id for ids in missing.values() for image_id in ids],
        "with_file": [State.STORED, State.REJECTED],
    }
    with postgis.transaction() as cursor:
        cursor.execute(query, parameters)


def sequences_in_state(postgis: Postgis, city: City, *states: State) -> set[str]:
    """Return the sequences with an image in one of these states."""
    query = sql.SQL("SELECT DISTINCT sequence_id FROM {} WHERE state = ANY(%(states)s)").format(
        _table(city)
    )
    return {sequence_id for (sequence_id,) in postgis.stream(query, {"states": list(states)})}


def latest_stored(postgis: Postgis, city: City, count: int) -> list[int]:
    """Return the ids of the images that were stored last."""
    query = sql.SQL(
        "SELECT image_id FROM {} WHERE state = %(state)s "
        "ORDER BY stored_at DESC NULLS LAST LIMIT %(count)s"
    ).format(_table(city))
    rows = postgis.stream(query, {"state": State.STORED, "count": count})
    return [image_id for (image_id,) in rows]


def latest_rate(postgis: Postgis, city: City) -> float | None:
    """Return how many bytes per second came in the latest download; None where it is unknown.

    It is that of the last `LATEST` images, up to the last pause of `PAUSE_SECONDS`. Images that
    were there already have no part in it.
    """
    query = sql.SQL(
        """
        SELECT extract(epoch FROM stored_at)::float, bytes FROM {}
        WHERE stored_at IS NOT NULL AND image_size IS NOT NULL
        ORDER BY stored_at DESC LIMIT %(latest)s
        """
    ).format(_table(city))
    latest = earliest = None
    arrived = first = 0
    for moment, bytes_ in postgis.stream(query, {"latest": LATEST}):
        latest = latest or moment
        if earliest and earliest - moment > PAUSE_SECONDS:
            break
        earliest, first, arrived = moment, bytes_, arrived + bytes_
    if latest is None or earliest is None or latest == earliest:
        return None
    return float((arrived - first) / (latest - earliest))


def selected_sizes_shuffled(postgis: Postgis, city: City) -> pa.Table:
    """Return `is_pano` (bool) and `bytes` (int64) of selected images that were asked for.

    The bytes are those of the city's `image_size`, 0 where there is no file. The order is that
    of `images_shuffled`.
    """
    query = sql.SQL(
        """
        SELECT is_pano IS TRUE, coalesce(bytes, 0)
        FROM {photographs} JOIN {images} ON id = image_id
        WHERE image_id IN (SELECT image_id FROM {selected}) AND (
            state = ANY(%(without_file)s)
            OR state = ANY(%(with_file)s) AND image_size = %(image_size)s
        )
        ORDER BY md5(%(city)s || id)
        """
    ).format(
        photographs=_table(city),
        images=sql.Identifier(city.name, "images"),
        selected=sql.Identifier(city.name, "selected_images"),
    )
    schema = pa.schema({"is_pano": pa.bool_(), "bytes": pa.int64()})
    parameters = {
        "without_file": [State.NOT_ANSWERED, State.UNAVAILABLE, State.REFUSED],
        "with_file": [State.STORED, State.REJECTED],
        "image_size": city.image_size,
        "city": city.name,
    }
    return postgis.read(query, schema, parameters)


def count_oversized(postgis: Postgis, city: City) -> int:
    """Count the images in store that Pillow opens only when its limit of pixels is raised."""
    query = sql.SQL(
        "SELECT count(*) FROM {} WHERE state = %(stored)s"
        " AND width::bigint * height > %(max_pixels)s"
    ).format(_table(city))
    parameters = {"stored": State.STORED, "max_pixels": MAX_PIXELS}
    [(count,)] = postgis.stream(query, parameters)
    return int(count)


def stored_since(postgis: Postgis, city: City, moment: datetime) -> tuple[int, int]:
    """Return how many images were stored since a moment, and their bytes."""
    query = sql.SQL(
        "SELECT count(*), coalesce(sum(bytes), 0)::bigint FROM {} WHERE stored_at >= %(moment)s"
    ).format(_table(city))
    [(images, bytes_)] = postgis.stream(query, {"moment": moment})
    return images, bytes_


def creators_of_selected(postgis: Postgis, city: City) -> dict[int, str]:
    """Return who took the selected images, as far as that is known, by image id."""
    query = sql.SQL(
        """
        SELECT image_id, creator FROM {}
        WHERE creator IS NOT NULL AND image_id IN (SELECT image_id FROM {})
        """
    ).format(_table(city), sql.Identifier(city.name, "selected_images"))
    return dict(postgis.stream(query))


def quality_of_selected(postgis: Postgis, city: City) -> pa.Table:
    """Return `image_id` and what `photographs.quality.Quality` measures of the selected images."""
    names = ("image_id", *Quality._fields)
    query = sql.SQL(
        "SELECT {} FROM {} WHERE sharpness IS NOT NULL AND image_id IN (SELECT image_id FROM {})"
    ).format(_names(names), _table(city), sql.Identifier(city.name, "selected_images"))
    return postgis.read(query, PHOTOGRAPHS.arrow_schema(*names))


def _fill(cursor: psycopg2.extensions.cursor, city: City) -> None:
    rows: list[Photograph] = []
    folder = city.sequences_folder

    def read(sequence_id: str) -> tuple[str, Sidecar]:
        try:
            return sequence_id, known_images(sequence_folder(folder, sequence_id))
        except StoreError:
            raise
        except OSError as error:  # the next run reports it, of that sequence alone
            log.warning("%s: its sidecar cannot be read (%s)", sequence_id, error.strerror)
            return sequence_id, Sidecar()

    for sequence_id, sidecar in each_in_turn(folder, read, sequences_on_disk(folder)):
        if (sidecar.services or SERVICES_WITHOUT_MARK) == city.services:
            rows += photographs_of(sequence_id, sidecar)
        if len(rows) >= BATCH_ROWS:
            _upsert(cursor, city, rows)
            rows.clear()
    _upsert(cursor, city, rows)


def _upsert(cursor: psycopg2.extensions.cursor, city: City, rows: Sequence[Photograph]) -> None:
    """Insert rows, or update those that are there."""
    # The latest of each image; in order, so that two writers do not wait for each other.
    latest = sorted({(row.sequence_id, row.image_id): row for row in rows}.values())
    if not latest:
        return
    schema = PHOTOGRAPHS.arrow_schema(*Photograph._fields)
    columns = zip(schema, zip(*latest, strict=True), strict=True)
    table = pa.table([pa.array(values, column.type) for column, values in columns], schema)
    buffer = io.BytesIO()
    pa.csv.write_csv(table, buffer, pa.csv.WriteOptions(include_header=False))
    buffer.seek(0)
    cursor.execute(
        sql.SQL("CREATE TEMPORARY TABLE upserted (LIKE {}) ON COMMIT DROP").format(_table(city))
    )
    cursor.copy_expert("COPY pg_temp.upserted FROM STDIN (FORMAT csv)", buffer)
    _judge(cursor, city, sql.Identifier("pg_temp", "upserted"))
    cursor.execute(
        sql.SQL(
            """
            INSERT INTO {} SELECT * FROM pg_temp.upserted
            ON CONFLICT (sequence_id, image_id) DO UPDATE SET ({}) = ROW (EXCLUDED.*)
            """
        ).format(_table(city), _names(Photograph._fields))
    )
    cursor.execute("DROP TABLE pg_temp.upserted")


def _judge(cursor: psycopg2.extensions.cursor, city: City, table: sql.Identifier) -> None:
    """Mark the photographs in a table as stored or rejected, by the limits of the city file."""
    reasons = [
        sql.SQL("CASE WHEN {} {} {} THEN {} END").format(
            sql.Identifier(limit.column),
            sql.SQL(limit.operator),
            sql.Literal(limit.value),
            sql.Literal(limit.reason),
        )
        for limit in (city.quality.limits if city.quality else ())
    ]
    cursor.execute(
        sql.SQL(
            """
            UPDATE {table}
            SET state = CASE WHEN {why} IS NULL THEN {stored} ELSE {rejected} END, reason = {why}
            WHERE state = {rejected} AND reason IS DISTINCT FROM {why}
                OR state = {stored} AND {why} IS NOT NULL
            """
        ).format(
            table=table,
            stored=sql.Literal(State.STORED),
            rejected=sql.Literal(State.REJECTED),
            why=sql.SQL("nullif(concat_ws(', ', {}), '')").format(sql.SQL(", ").join(reasons))
            if reasons
            else sql.SQL("NULL::text"),
        )
    )


def _table(city: City) -> sql.Identifier:
    return sql.Identifier(city.name, PHOTOGRAPHS.name)


def _names(columns: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _exists(cursor: psycopg2.extensions.cursor, city: City) -> bool:
    return own_table(cursor, city.name, PHOTOGRAPHS) is not None


def _lock(cursor: psycopg2.extensions.cursor, city: City) -> None:
    name = f"vsvi {city.name} {PHOTOGRAPHS.name}"
    cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [name])
