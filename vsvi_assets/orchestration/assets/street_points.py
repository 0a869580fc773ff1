"""Points every so many metres along every street of a city."""

from datetime import UTC, datetime
from typing import Any

import geopandas as gpd
from dagster import AssetExecutionContext, AssetsDefinition, MetadataValue, asset

from vsvi_assets.city import City
from vsvi_assets.orchestration.columns import STREET_POINTS_FILE
from vsvi_assets.orchestration.common import REFRESH_TAG, Fetch, identity
from vsvi_assets.orchestration.resources import OverpassResource, PostgisResource
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.settings import Settings
from vsvi_assets.streets.networks import read_streets
from vsvi_assets.streets.overpass import download_streets
from vsvi_assets.streets.points import street_points as place_points
from vsvi_assets.views.pictures import markdown_picture, street_points_map


def build_street_points(city: City, settings: Settings) -> AssetsDefinition:
    @asset(
        **identity(city, "street_points", {"osmnx", "geojson"}),
        description=(
            f"Step 1. Points every {city.interval:g} m along every street of the {city.area_name} "
            "(OpenStreetMap), as one GeoJSON file."
        ),
        metadata={"dagster/column_schema": STREET_POINTS_FILE},
        io_manager_key="street_points_file",
    )
    @retry_boundary()
    def street_points(
        context: AssetExecutionContext,
        config: Fetch,
        overpass: OverpassResource,
        postgis: PostgisResource,
    ) -> gpd.GeoDataFrame:
        box = city.area.bounds
        if city.streets_path:
            lines = read_streets(city.streets_path, city.network_type)
            source: dict[str, Any] = {"streets": MetadataValue.path(city.streets_path)}
        else:
            download = download_streets(
                box,
                city.network_type,
                overpass=overpass.server(city, postgis, context.log.warning),
                cache_folder=settings.data_dir / "osmnx",
                not_before=_not_before(context, city, config),
                report=context.log.warning,
            )
            lines = download.streets
            asked_at = f"{download.asked_at:%Y-%m-%d %H:%M} UTC"
            if download.from_cache:
                context.log.info(
                    f"Streets as Overpass gave them on {asked_at}, kept in {download.folder}. "
                    "Overwrite, or the city's refresh, asks again."
                )
            source = {
                "streets": MetadataValue.path(download.folder),
                "streets of": asked_at,
                "streets from cache": download.from_cache,
            }
        points = place_points(
            lines, box, city.projected_srid, city.interval, within=city.area.polygons
        )
        picture = street_points_map(
            lines.geometry.to_numpy(),
            points.geometry.x.to_numpy(),
            points.geometry.y.to_numpy(),
            city.area,
        )
        context.add_output_metadata(
            {
                "map": MetadataValue.md(markdown_picture(picture, "street points")),
                "dagster/row_count": len(points),
                "interval (m)": city.interval,
                "srid": city.projected_srid,
                **source,
            }
        )
        return points

    return street_points


def _not_before(context: AssetExecutionContext, city: City, config: Fetch) -> datetime | None:
    """Return from when an answer of Overpass serves this run; None: whenever it came.

    An answer that the run itself asked for serves all of its attempts.
    """
    if config.overwrite:
        record = context.instance.get_run_record_by_id(context.run.run_id)
        return record.create_timestamp if record else datetime.now(UTC)
    return city.latest_tick(datetime.now(UTC)) if REFRESH_TAG in context.run.tags else None
