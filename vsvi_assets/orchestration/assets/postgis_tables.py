"""Street points and image metadata as tables in PostGIS."""

from collections.abc import Mapping

import geopandas as gpd
from dagster import AssetsDefinition, asset

from vsvi_assets.city import City
from vsvi_assets.database.connection import NewTable
from vsvi_assets.database.schema import IMAGES, STREET_POINTS
from vsvi_assets.database.tables import images_table, street_points_table
from vsvi_assets.mapillary.tiles import TileImages
from vsvi_assets.orchestration.columns import table_schema
from vsvi_assets.orchestration.common import identity, upstream
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.settings import Settings


def build_postgis_tables(city: City, settings: Settings) -> AssetsDefinition:
    @asset(
        **identity(city, "postgis_tables", {"postgres"}),
        ins=upstream(city, "street_points", "tile_metadata"),
        description=(
            f"Step 3. The tables street_points and images in the schema {city.name}, each with "
            f"`geometry` (EPSG:4326) and `geo` (EPSG:{city.projected_srid}, metres)."
        ),
        metadata={
            "dagster/column_schema": table_schema(IMAGES, city),
            "columns of street_points": table_schema(STREET_POINTS, city),
        },
        io_manager_key="postgis_tables",
    )
    @retry_boundary()
    def postgis_tables(
        street_points: gpd.GeoDataFrame, tile_metadata: Mapping[str, TileImages]
    ) -> list[NewTable]:
        return [
            street_points_table(street_points, city),
            images_table((tile.images for tile in tile_metadata.values()), city),
        ]

    return postgis_tables
