"""What the assets of a city have in common."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from dagster import Any as DagsterAny
from dagster import (
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    Config,
    MetadataValue,
    TableRecord,
    TableSchema,
)
from pydantic import Field

from vsvi_assets.city import City
from vsvi_assets.views.pictures import markdown_picture

MAPILLARY_POOL = "mapillary"
"""The pool that bounds how many runs ask Mapillary at a time."""

OWNERS = "team:vsvi"

CITY_TAG = "vsvi/city"
"""The run tag by which dagster.yaml bounds the runs of each city."""

ORDER_TAG = "vsvi/order"
"""The run tag of runs after which the city's next steps follow by themselves."""

REFRESH_TAG = "vsvi/refresh"
"""The run tag of a scheduled refresh: tiles older than the tick are fetched again."""

REJECTED_TAG = "vsvi/rejected"
"""The run tag of runs with photographs that are not good enough: how many others are selected in
place of."""

RETRY_TAG = "dagster/retry_number"
"""The run tag by which Dagster's daemon marks a run that repeats one whose process died."""


class Fetch(Config):
    """How to treat what is known already."""

    overwrite: bool = Field(
        default=False,
        description=(
            "Fetch again what is on disk, each tile and each image once over all attempts of the "
            "run. A file is replaced only by a whole new one."
        ),
    )
    recheck_unavailable: bool = Field(
        default=False,
        description="Ask again for images that count as unavailable, and for refused ones.",
    )


def not_before(context: AssetExecutionContext, city: City, config: Fetch) -> datetime | None:
    """Return since when (UTC) what was fetched serves this run; None: whenever it was.

    A refresh takes nothing that is older than its tick, an overwriting run nothing that is older
    than the run. What it fetched itself it keeps, however often it is retried.
    """
    if config.overwrite:
        return began(context)
    return city.latest_tick(datetime.now(UTC)) if REFRESH_TAG in context.run.tags else None


def began(context: AssetExecutionContext) -> datetime:
    """Return when the run was created (UTC), which each of its attempts has in common.

    For a run that repeats another one whose process died it is when that one was created.
    """
    run = context.run
    while RETRY_TAG in run.tags and run.parent_run_id:
        parent = context.instance.get_run_by_id(run.parent_run_id)
        if parent is None:  # deleted meanwhile
            break
        run = parent
    record = context.instance.get_run_record_by_id(run.run_id)
    assert record
    return record.create_timestamp


def asset_key(city: City, name: str) -> AssetKey:
    """Return the key of one of the city's assets."""
    return AssetKey([city.name, name])


def identity(city: City, name: str, kinds: set[str]) -> dict[str, Any]:
    """Return what each asset of a city has: key, group, owners, kinds, tags."""
    return {
        "key": asset_key(city, name),
        "group_name": city.group,
        "owners": [OWNERS],
        "kinds": kinds,
        "tags": {CITY_TAG: city.name},
    }


def upstream(city: City, *names: str) -> dict[str, AssetIn]:
    """Return the inputs that come from other assets of the same city."""
    # Without a type of its own Dagster would take the annotation `Mapping` to mean `dict`.
    return {name: AssetIn(asset_key(city, name), dagster_type=DagsterAny) for name in names}


def table(rows: Iterable[Mapping[str, Any]], schema: TableSchema | None = None) -> MetadataValue:
    """Return rows, each by the names of its columns, as a table on an asset's page."""
    return MetadataValue.table([TableRecord(row) for row in rows], schema)


def picture(image: bytes, description: str) -> MetadataValue:
    """Return a PNG or JPEG as a picture on an asset's page."""
    return MetadataValue.md(markdown_picture(image, description))


def closing_assets(city: City) -> tuple[str, ...]:
    """Return the names of the assets that are made at the end, of the photographs then on disk."""
    return ("coverage_report", "dataset", *(["views"] if city.views else []))
