"""Points every so many metres along every street of the box."""

import geopandas as gpd
from dagster import AssetExecutionContext, AssetsDefinition, MetadataValue, asset

from vsvi_assets import streets
from vsvi_assets.city import City
from vsvi_assets.orchestration.columns import STREET_POINTS_FILE
from vsvi_assets.orchestration.common import identity
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.settings import Settings
from vsvi_assets.views.pictures import markdown_picture, street_points_map


def build_street_points(city: City, settings: Settings) -> AssetsDefinition:
    @asset(
        **identity(city, "street_points", {"osmnx", "geojson"}),
        description=(
            f"Step 1. Points every {city.interval:g} m along every street of the bounding box "
            "(OpenStreetMap), as one GeoJSON file."
        ),
        metadata={"dagster/column_schema": STREET_POINTS_FILE},
        io_manager_key="street_points_file",
    )
    @retry_boundary()
    def street_points(context: AssetExecutionContext) -> gpd.GeoDataFrame:
        box = city.bounding_box.bounds
        if city.streets_path:
            network = streets.read_network(city.streets_path, city.network_type)
        else:
            network = streets.download_network(
                box,
                city.network_type,
                overpass_url=settings.services_of(city.services).overpass_url,
                cache_folder=settings.data_dir / "osmnx",
            )
        points = streets.street_points(network, box, city.projected_srid, city.interval)
        picture = street_points_map(
            streets.street_lines(network),
            points.geometry.x.to_numpy(),
            points.geometry.y.to_numpy(),
            city.bounding_box,
        )
        context.add_output_metadata(
            {
                "map": MetadataValue.md(markdown_picture(picture, "street points")),
                "dagster/row_count": len(points),
                "interval (m)": city.interval,
                "srid": city.projected_srid,
            }
        )
        return points

    return street_points
