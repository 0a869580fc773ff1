"""Perspective views of a city's panoramas."""

import os

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    MaterializeResult,
    MetadataValue,
    ResourceParam,
    asset,
)

from vsvi_assets.city import City
from vsvi_assets.dataset.manifest import count_photographs
from vsvi_assets.dataset.views import ViewsMade, write_views
from vsvi_assets.files import DiskGuard, local_copy
from vsvi_assets.orchestration.common import asset_key, identity
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.progress import Progress


def build_views(city: City) -> AssetsDefinition:
    assert city.views
    rules = city.views

    @asset(
        **identity(city, "views", {"jpeg"}),
        deps=[asset_key(city, "dataset")],
        description=(
            "After step 5. Perspective views of the panoramas, as the city file asks for them, "
            "and the flat photographs: `views/<sequence_id>/`, with a `views.geojson` that says "
            "where each of them looks."
        ),
    )
    @retry_boundary()
    def views(
        context: AssetExecutionContext, progress: ResourceParam[Progress]
    ) -> MaterializeResult:
        folder = city.views_folder
        folder.mkdir(parents=True, exist_ok=True)
        guard = DiskGuard(folder, city.required_free_bytes)
        made = ViewsMade()
        with local_copy(city.dataset_path) as table:
            advance = progress.counting(
                context.asset_key.to_user_string(),
                count_photographs(table),
                "images",
                context.log.info,
            )
            for part in write_views(
                table, city.sequences_folder, folder, rules, os.cpu_count() or 1
            ):
                guard.check()
                made.add(part)
                for _ in range(part.photographs):
                    advance(0)
        return MaterializeResult(
            metadata={
                "folder": MetadataValue.path(str(folder)),
                "views": made.views,
                "flat photographs": made.flat,
                "there already": made.kept,
                "panoramas without views": len(made.skipped),
            }
        )

    return views
