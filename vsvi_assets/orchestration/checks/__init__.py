"""What a city's users rely on, looked at after every run: errors, and what deserves a look."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import geopandas as gpd
import mercantile
import numpy as np
import pyarrow as pa
import shapely
from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    DagsterInstance,
    MetadataValue,
    TableColumn,
    TableRecord,
    TableSchema,
    multi_asset_check,
)
from numpy.typing import NDArray
from psycopg2 import sql

from vsvi_assets.city import City, parse_tile_key
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.database.tables import wanted_images
from vsvi_assets.mapillary.tile_files import read_tile
from vsvi_assets.orchestration.common import asset_key
from vsvi_assets.orchestration.resources import PostgisResource
from vsvi_assets.photographs.inventory import Inventory
from vsvi_assets.photographs.sidecar import image_path, known_images
from vsvi_assets.views.pictures import contact_sheet, markdown_picture, tiles_map

EXAMPLES = 10
"""How many of the wrong ones a check shows."""

NOTABLE_SHARE = 0.1
"""The share of points without an image, or of old images, above which a check warns."""

OLD_YEARS = 10

THUMBNAILS = 20
"""How many photographs a contact sheet shows at most."""

TILE_TOLERANCE = 0.01
"""How far outside its tile an image may lie, in widths of the tile."""

Record = Mapping[str, object]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes
    ----------
    wrong, of
        How many are wrong, and how many were looked at.
    examples
        The first of the wrong ones, and where they are.
    numbers
        Further counts that tell how it came to that.
    pictures
        PNG or JPEG, by what they show. Of partitioned assets they appear here, once a run,
        and not in the metadata of each partition.
    """

    wrong: int
    of: int
    examples: Sequence[Record] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class TileSurvey:
    """What all tiles on disk hold, seen in one pass.

    Attributes
    ----------
    outside
        The images that lie outside their tile.
    repeated
        The images that a tile holds more than once.
    wanted
        How many distinct images the city asks for.
    not_wanted
        How many lie outside the box or do not pass the city's filters.
    in_several_tiles
        How many wanted ones came up again.
    """

    outside: Finding
    repeated: Finding
    wanted: int
    not_wanted: int
    in_several_tiles: int


@dataclass(frozen=True)
class Evidence:
    """What the checks of one asset look at, each part read once."""

    city: City
    postgis: Postgis
    instance: DagsterInstance

    @cached_property
    def street_points(self) -> gpd.GeoDataFrame:
        return gpd.read_file(self.city.street_points_path)

    @cached_property
    def tiles(self) -> TileSurvey:
        paths = {key: self.city.tile_path(key) for key in self.city.tile_keys}
        present = {key: path.stat() for key, path in paths.items() if path.exists()}
        return _survey_tiles(
            self.city,
            tuple((key, paths[key], stat.st_mtime_ns) for key, stat in present.items()),
        )

    @cached_property
    def inventory(self) -> Inventory:
        return take_inventory(self.city, self.postgis)


@dataclass(frozen=True)
class Rule:
    """Something that holds in a city whose data are sound.

    Attributes
    ----------
    name, description
        Of the asset check.
    find
        Counts what breaks the rule.
    severity
        ERROR for what must not be, WARN for what deserves a look.
    tolerated
        The share that may break the rule.
    """

    name: str
    description: str
    find: Callable[[Evidence], Finding]
    severity: AssetCheckSeverity = AssetCheckSeverity.ERROR
    tolerated: float = 0.0

    def result(self, city: City, asset: str, evidence: Evidence) -> AssetCheckResult:
        """Apply the rule."""
        finding = self.find(evidence)
        metadata: dict[str, Any] = {"wrong": finding.wrong, "of": finding.of, **finding.numbers}
        for name, picture in finding.pictures.items():
            metadata[name] = MetadataValue.md(markdown_picture(picture, name))
        if finding.examples:
            metadata["the first of them"] = _table(finding.examples[:EXAMPLES])
        return AssetCheckResult(
            asset_key=asset_key(city, asset),
            check_name=self.name,
            passed=finding.wrong <= self.tolerated * finding.of,
            severity=self.severity,
            description=f"{self.description} Wrong: {finding.wrong:,} of {finding.of:,}.",
            metadata=metadata,
        )


def build_city_checks(city: City) -> list[AssetChecksDefinition]:
    """Build the checks of a city's assets: one step an asset, which applies all its rules."""
    return [
        _build_asset_checks(city, "street_points", _street_point_rules(city)),
        _build_asset_checks(city, "tile_metadata", TILE_RULES),
        _build_asset_checks(city, "postgis_tables", _table_rules(city)),
        _build_asset_checks(city, "selected_image_ids", _selection_rules(city)),
        _build_asset_checks(city, "image_files", IMAGE_FILE_RULES),
    ]


def _build_asset_checks(city: City, asset: str, rules: Sequence[Rule]) -> AssetChecksDefinition:
    @multi_asset_check(
        name=f"{city.group}__{asset}_checks",
        specs=[
            AssetCheckSpec(rule.name, asset=asset_key(city, asset), description=rule.description)
            for rule in rules
        ],
        can_subset=True,
    )
    def checks(
        context: AssetCheckExecutionContext, postgis: PostgisResource
    ) -> Iterator[AssetCheckResult]:
        asked_for = {key.name for key in context.selected_asset_check_keys}
        evidence = Evidence(city, postgis.database(), context.instance)
        for rule in rules:
            if rule.name in asked_for:
                yield rule.result(city, asset, evidence)

    return checks


def _table(records: Sequence[Record]) -> MetadataValue:
    # As text: the browser's numbers hold no more than 53 bits of an image's id.
    rows = [
        {name: "" if value is None else str(value) for name, value in record.items()}
        for record in records
    ]
    return MetadataValue.table(
        records=[TableRecord(row) for row in rows],
        schema=TableSchema([TableColumn(name, "string") for name in rows[0]]),
    )


def _wrong_rows(table: str, query: str, **parameters: object) -> Callable[[Evidence], Finding]:
    """Return the search for the rows of `query`, held against the number of rows of `table`."""

    def find(evidence: Evidence) -> Finding:
        schema = sql.Identifier(evidence.city.name)
        wrong = sql.SQL(query).format(schema=schema)
        with evidence.postgis.transaction() as cursor:
            cursor.execute(
                sql.SQL(
                    "WITH wrong AS MATERIALIZED ({wrong}) "
                    "SELECT (SELECT count(*) FROM wrong), row_to_json(wrong) FROM wrong LIMIT {}"
                ).format(sql.Literal(EXAMPLES), wrong=wrong),
                parameters,
            )
            rows = cursor.fetchall()
            cursor.execute(
                sql.SQL("SELECT count(*) FROM {}.{}").format(schema, sql.Identifier(table))
            )
            [(of,)] = cursor.fetchall()
        return Finding(rows[0][0] if rows else 0, of, [example for _, example in rows])

    return find


# Street points


def _street_point_rules(city: City) -> list[Rule]:
    return [
        Rule("in_the_box", "Every street point lies in the bounding box.", _points_outside),
        Rule(
            "spacing",
            f"No two street points are closer than {city.interval / 2:g} m, half the interval.",
            _crowded_points,
        ),
        Rule("unique_ids", "Every street point has an id of its own.", _repeated_point_ids),
    ]


def _points_outside(evidence: Evidence) -> Finding:
    points, box = evidence.street_points, evidence.city.bounding_box
    inside = points.geometry.x.between(box.west, box.east) & points.geometry.y.between(
        box.south, box.north
    )
    wrong = points[~inside]
    return Finding(len(wrong), len(points), _point_records(wrong))


def _crowded_points(evidence: Evidence) -> Finding:
    points, city = evidence.street_points, evidence.city
    # A millimetre less, for what the way through two coordinate systems rounds.
    distance = city.interval / 2 - 0.001
    places = points.geometry.to_crs(city.projected_srid).to_numpy()
    one, other = shapely.STRtree(places).query(places, "dwithin", distance)
    one, other = one[one < other], other[one < other]
    ids = points["id"].to_numpy()
    examples = [
        {"street point": ids[a], "other": ids[b], "metres": places[a].distance(places[b])}
        for a, b in zip(one[:EXAMPLES], other[:EXAMPLES], strict=True)
    ]
    return Finding(len(one), len(points), examples)


def _repeated_point_ids(evidence: Evidence) -> Finding:
    points = evidence.street_points
    wrong = points[points["id"].duplicated()]
    return Finding(len(wrong), len(points), _point_records(wrong))


def _point_records(points: gpd.GeoDataFrame) -> list[Record]:
    return [
        {"street point": point.id, "lon": point.geometry.x, "lat": point.geometry.y}
        for point in points.head(EXAMPLES).itertuples()
    ]


# Tiles

TILE_RULES = [
    Rule(
        "inside_their_tile",
        f"Every image lies inside its tile, give or take {TILE_TOLERANCE:.0%} of the tile.",
        lambda evidence: evidence.tiles.outside,
    ),
    Rule(
        "unique_ids",
        "No tile holds an image twice (the table keeps one).",
        lambda evidence: evidence.tiles.repeated,
        AssetCheckSeverity.WARN,
    ),
]


@lru_cache(maxsize=1)
def _survey_tiles(city: City, files: tuple[tuple[str, Path, int], ...]) -> TileSurvey:
    """Read the tiles at the given paths, once for all checks of a run as long as none is replaced.

    `files` holds partition key, path and time of the last change of each tile on disk.
    """
    outside = repeated = 0
    counts: dict[mercantile.Tile, int] = {}
    examples_outside: list[Record] = []
    examples_repeated: list[Record] = []
    wanted = [np.empty(0, np.int64)]
    for key, path, _ in files:
        tile = read_tile(path, city.services).images
        wrong = tile.filter(_is_outside(tile, key))
        again = tile.filter(_is_repeated(tile))
        outside, repeated = outside + len(wrong), repeated + len(again)
        counts[parse_tile_key(key)] = len(tile)
        examples_outside += _tile_records(key, wrong, EXAMPLES - len(examples_outside))
        examples_repeated += _tile_records(key, again, EXAMPLES - len(examples_repeated))
        wanted.append(wanted_images(tile, city)["id"].to_numpy())
    ids = np.concatenate(wanted)
    images, distinct = sum(counts.values()), len(np.unique(ids))
    numbers = {"tiles": len(counts), "tiles without an image": list(counts.values()).count(0)}
    pictures = {"map": tiles_map(counts, city.bounding_box)} if counts else {}
    return TileSurvey(
        outside=Finding(outside, images, examples_outside, numbers, pictures),
        repeated=Finding(repeated, images, examples_repeated),
        wanted=distinct,
        not_wanted=images - len(ids),
        in_several_tiles=len(ids) - distinct,
    )


def _is_outside(tile: pa.Table, key: str) -> NDArray[np.bool_]:
    bounds = mercantile.bounds(parse_tile_key(key))
    margin_x = TILE_TOLERANCE * (bounds.east - bounds.west)
    margin_y = TILE_TOLERANCE * (bounds.north - bounds.south)
    lon, lat = tile["lon"].to_numpy(), tile["lat"].to_numpy()
    inside = (lon >= bounds.west - margin_x) & (lon <= bounds.east + margin_x)
    return ~(inside & (lat >= bounds.south - margin_y) & (lat <= bounds.north + margin_y))


def _is_repeated(tile: pa.Table) -> NDArray[np.bool_]:
    repeated = np.ones(len(tile), dtype=bool)
    repeated[np.unique(tile["id"].to_numpy(), return_index=True)[1]] = False
    return repeated


def _tile_records(key: str, images: pa.Table, count: int) -> list[Record]:
    rows = images.slice(0, count).select(["id", "lon", "lat"]).to_pylist()
    return [{"tile": key, "image": row["id"], "lon": row["lon"], "lat": row["lat"]} for row in rows]


# Tables


def _table_rules(city: City) -> list[Rule]:
    box = dict(zip(("west", "south", "east", "north"), city.bounding_box.bounds, strict=True))
    return [
        Rule(
            "row_counts",
            "Every street point of the file, and every image that the city asks for of the "
            "tiles, is one row.",
            _row_counts,
        ),
        Rule(
            "unique_ids",
            "No image is there twice.",
            _wrong_rows(
                "images",
                "SELECT id AS image, count(*) AS rows FROM {schema}.images "
                "GROUP BY id HAVING count(*) > 1",
            ),
        ),
        Rule(
            "geometries",
            "Every geometry is a valid point of the right SRID, inside the bounding box.",
            _wrong_rows(
                "images",
                """
                SELECT kind AS table, id, ST_AsText(geometry) AS geometry,
                    ST_SRID(geometry) AS srid, ST_SRID(geo) AS geo_srid
                FROM (
                    SELECT 'images' AS kind, id, geometry, geo FROM {schema}.images
                    UNION ALL
                    SELECT 'street_points', id, geometry, geo FROM {schema}.street_points
                ) AS row
                WHERE (
                    ST_SRID(geometry) = 4326 AND ST_SRID(geo) = %(srid)s
                    AND ST_IsValid(geometry) AND ST_IsValid(geo) AND NOT ST_IsEmpty(geo)
                    AND ST_X(geometry) BETWEEN %(west)s AND %(east)s
                    AND ST_Y(geometry) BETWEEN %(south)s AND %(north)s
                ) IS NOT TRUE
                """,
                srid=city.projected_srid,
                **box,
            ),
        ),
        Rule("indexed", "Ids and geometries are indexed.", _missing_indexes),
        Rule(
            "compass_angles",
            "Compass angles are at least 0 and less than 360 degrees.",
            _wrong_rows(
                "images",
                """
                SELECT id AS image, sequence_id AS sequence, compass_angle FROM {schema}.images
                WHERE NOT (compass_angle >= 0 AND compass_angle < 360)
                """,
            ),
            AssetCheckSeverity.WARN,
        ),
        Rule(
            "capture_times",
            "Every image has a time of capture, and it is past.",
            _wrong_rows(
                "images",
                """
                SELECT id AS image, sequence_id AS sequence, captured_at FROM {schema}.images
                WHERE (captured_at > 0 AND captured_at < 1000 * extract(epoch FROM now()))
                    IS NOT TRUE
                """,
            ),
            AssetCheckSeverity.WARN,
        ),
    ]


def _row_counts(evidence: Evidence) -> Finding:
    tiles, schema = evidence.tiles, sql.Identifier(evidence.city.name)
    expected = {"street_points": len(evidence.street_points), "images": tiles.wanted}
    with evidence.postgis.transaction() as cursor:
        cursor.execute(
            sql.SQL(
                "SELECT (SELECT count(*) FROM {0}.street_points), (SELECT count(*) FROM {0}.images)"
            ).format(schema)
        )
        [rows] = cursor.fetchall()
    counts = dict(zip(expected, rows, strict=True))
    wrong = [
        {"table": name, "rows": counts[name], "expected": expected[name]}
        for name in expected
        if counts[name] != expected[name]
    ]
    numbers = {
        "rows of street_points": counts["street_points"],
        "rows of images": counts["images"],
        "images in the tiles": tiles.outside.of,
        "outside the box or filtered out": tiles.not_wanted,
        "in more than one tile": tiles.in_several_tiles,
    }
    return Finding(len(wrong), len(expected), wrong, numbers)


INDEXES = [
    (table, column, method)
    for table in ("street_points", "images")
    for column, method in (("id", "btree"), ("geometry", "gist"), ("geo", "gist"))
]


def _missing_indexes(evidence: Evidence) -> Finding:
    with evidence.postgis.transaction() as cursor:
        cursor.execute(
            """
            SELECT indexed.relname, attname, amname
            FROM pg_index
            JOIN pg_class AS indexed ON indexed.oid = indrelid
            JOIN pg_namespace ON pg_namespace.oid = indexed.relnamespace
            JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
            JOIN pg_class AS index ON index.oid = indexrelid
            JOIN pg_am ON pg_am.oid = index.relam
            WHERE nspname = %s AND indisvalid
            """,
            [evidence.city.name],
        )
        present = set(cursor.fetchall())
    missing = [index for index in INDEXES if index not in present]
    examples = [
        {"table": table, "column": column, "index": kind} for table, column, kind in missing
    ]
    return Finding(len(missing), len(INDEXES), examples)


# Selection


def _selection_rules(city: City) -> list[Rule]:
    rules = [
        Rule(
            "in_the_tables",
            "Every selected image, and the street point it is selected for, is in the tables.",
            _wrong_rows(
                "selected_images",
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
            ),
        ),
        Rule(
            "ids_file",
            "The file of selected image ids lists the table's images, no more and no less.",
            _ids_file_differences,
        ),
        Rule(
            "recent",
            f"At most {NOTABLE_SHARE:.0%} of the selection is older than {OLD_YEARS} years.",
            _wrong_rows(
                "selected_images",
                """
                SELECT image_id AS image, selected.sequence_id AS sequence,
                    to_timestamp(captured_at / 1000)::date AS captured
                FROM {schema}.selected_images AS selected
                JOIN {schema}.images ON images.id = image_id
                WHERE captured_at > 0 AND captured_at
                    < 1000 * extract(epoch FROM now() - make_interval(years => %(years)s))
                """,
                years=OLD_YEARS,
            ),
            AssetCheckSeverity.WARN,
            tolerated=NOTABLE_SHARE,
        ),
    ]
    if city.selection == "nearest" and not city.imgid_file:
        rules += _nearest_rules(city)
    return rules


def _nearest_rules(city: City) -> list[Rule]:
    return [
        Rule(
            "distances",
            f"Every selected image lies within {city.max_distance:g} m of its street point, "
            "at the distance that the table gives.",
            _wrong_rows(
                "selected_images",
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
            ),
        ),
        Rule(
            "one_image_a_point",
            "For no street point more than one image is selected.",
            _wrong_rows(
                "selected_images",
                """
                SELECT street_point_id AS "street point", count(*) AS images
                FROM {schema}.selected_images GROUP BY street_point_id HAVING count(*) > 1
                """,
            ),
        ),
        Rule(
            "points_with_image",
            f"At most {NOTABLE_SHARE:.0%} of the street points have no image within "
            f"{city.max_distance:g} m.",
            _wrong_rows(
                "street_points",
                """
                SELECT id AS "street point", street, ST_X(geometry) AS lon, ST_Y(geometry) AS lat
                FROM {schema}.street_points AS point
                WHERE NOT EXISTS (
                    SELECT FROM {schema}.selected_images WHERE street_point_id = point.id
                )
                """,
            ),
            AssetCheckSeverity.WARN,
            tolerated=NOTABLE_SHARE,
        ),
    ]


def _ids_file_differences(evidence: Evidence) -> Finding:
    query = sql.SQL("SELECT DISTINCT image_id FROM {}.selected_images ORDER BY 1").format(
        sql.Identifier(evidence.city.name)
    )
    wrong = lines = 0
    examples: list[Record] = []
    with evidence.city.selected_image_ids_path.open() as file:
        listed = (line.rstrip("\n") for line in file)
        selected = (str(image_id) for (image_id,) in evidence.postgis.stream(query))
        for lines, (line, image_id) in enumerate(zip_longest(listed, selected), 1):
            if line != image_id:
                wrong += 1
                if len(examples) < EXAMPLES:
                    examples.append({"line": lines, "file": line, "table": image_id})
    return Finding(wrong, lines, examples)


# Photographs


def _not_on_disk(evidence: Evidence) -> Finding:
    """Find what is missing of the sequences that count as materialized."""
    inventory = evidence.inventory
    complete = evidence.instance.get_materialized_partitions(
        asset_key(evidence.city, "image_files")
    )
    wrong = [
        (sequence_id, image_id)
        for sequence_id, image_ids in inventory.missing.items()
        if sequence_id in complete
        for image_id in image_ids
    ]
    numbers = {
        "selected": inventory.selected,
        "on disk": inventory.on_disk,
        "bytes on disk": inventory.bytes,
        "not answered": len(inventory.not_answered),
        "unavailable": len(inventory.unavailable),
        "refused": len(inventory.refused),
        "missing": sum(map(len, inventory.missing.values())),
        "failed at the last try": len(inventory.failed),
    }
    examples = [
        {"sequence": sequence_id, "image": image_id} for sequence_id, image_id in wrong[:EXAMPLES]
    ]
    shown = _photographs(evidence.city, sorted(complete - inventory.missing.keys()))
    pictures = {"contact sheet": contact_sheet(shown)} if shown else {}
    return Finding(len(wrong), inventory.selected, examples, numbers, pictures)


def _photographs(city: City, sequence_ids: Sequence[str]) -> list[Path]:
    """Return an image of each of some sequences, evenly taken from all."""
    chosen = sequence_ids[:: math.ceil(len(sequence_ids) / THUMBNAILS) or 1]
    files = (next((city.sequences_folder / name).glob("*.jpg"), None) for name in chosen)
    return [file for file in files if file]


def _not_whole(evidence: Evidence) -> Finding:
    """Find the files that are there with another size than their sidecar says."""
    inventory, wrong = evidence.inventory, []
    for sequence_id, image_ids in inventory.missing.items():
        folder = evidence.city.sequences_folder / sequence_id
        records = known_images(folder).images
        for image_id in records.keys() & image_ids:
            path = image_path(folder, image_id)
            if path.exists():
                expected, size = records[image_id].bytes, path.stat().st_size
                wrong.append({"file": path, "bytes": size, "expected": expected})
    return Finding(len(wrong), inventory.on_disk + len(wrong), wrong)


IMAGE_FILE_RULES = [
    Rule(
        "on_disk",
        "Every selected image of the sequences downloaded so far is on disk, or Mapillary has "
        "it no longer.",
        _not_on_disk,
    ),
    Rule(
        "whole",
        "Every file is as long as when it was found to be whole "
        "(`vsvi status CITY --verify` reads them all).",
        _not_whole,
    ),
]
