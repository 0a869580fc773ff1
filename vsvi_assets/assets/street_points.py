"""Points every so many metres along every street of the box."""

import geopandas as gpd
from dagster import AssetExecutionContext, AssetsDefinition, asset

from vsvi_assets import streets
from vsvi_assets.assets.common import identity, service_retry
from vsvi_assets.city import City
from vsvi_assets.failures import explained
from vsvi_assets.settings import Settings


def build_street_points(city: City, settings: Settings) -> AssetsDefinition:
    @asset(
        **identity(city, "street_points", {"osmnx", "geojson"}),
        description=f"Points every {city.interval:g} m along every street of the bounding box.",
        io_manager_key="street_points_file",
        retry_policy=service_retry(settings),
    )
    def street_points(context: AssetExecutionContext) -> gpd.GeoDataFrame:
        box = city.bounding_box.bounds
        with explained(city):
            if city.streets_path:
                network = streets.read_network(city.streets_path, city.network_type)
            else:
                network = streets.download_network(
                    box,
                    city.network_type,
                    overpass_url=settings.overpass_url,
                    cache_folder=settings.data_dir / "osmnx",
                )
            points = streets.street_points(network, box, city.projected_srid, city.interval)
        context.add_output_metadata(
            {"points": len(points), "interval (m)": city.interval, "srid": city.projected_srid}
        )
        return points

    return street_points
