"""Street points and image metadata as tables in PostGIS."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from dagster import AssetExecutionContext, AssetsDefinition, Output, asset

from vsvi_assets.city import City
from vsvi_assets.database.replacement import NewTable
from vsvi_assets.database.schema import IMAGES, STREET_POINTS, STREETS
from vsvi_assets.database.tables import (
    corrections_table,
    images_table,
    street_points_table,
    streets_table,
)
from vsvi_assets.mapillary.corrections import Corrections
from vsvi_assets.mapillary.tiles import TileImages
from vsvi_assets.orchestration.columns import table_schema
from vsvi_assets.orchestration.common import identity, upstream
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.streets.points import StreetsAndPoints


def build_postgis_tables(city: City) -> AssetsDefinition:
    @asset(
        **identity(city, "postgis_tables", {"postgres"}),
        ins=upstream(city, "street_points", "tile_metadata"),
        description=(
            f"Step 3. The tables streets, street_points and images in the schema {city.name}, each "
            "with "
            f"`geometry` (EPSG:4326) and `geo` (EPSG:{city.projected_srid}, metres)."
        ),
        metadata={
            "dagster/column_schema": table_schema(IMAGES, city),
            "columns of street_points": table_schema(STREET_POINTS, city),
            "columns of streets": table_schema(STREETS, city),
        },
        io_manager_key="postgis_tables",
    )
    @retry_boundary()
    def postgis_tables(
        context: AssetExecutionContext,
        street_points: StreetsAndPoints,
        tile_metadata: Mapping[str, TileImages],
    ) -> Output:
        def store() -> Iterator[Sequence[NewTable]]:
            corrections = Corrections()

            def tiles() -> Iterator[pa.Table]:
                for tile in tile_metadata.values():
                    corrections.add(tile)
                    yield tile.images

            points, ways = street_points.points, street_points.streets
            # The points are made ready while the server indexes the images.
            tables = [
                streets_table(ways, city),
                images_table(tiles(), city),
                street_points_table(points, city, ways),
            ]
            if city.goes_by_corrections:
                tables.append(corrections_table(corrections, city))
            yield tables
            for sentence in corrections.sentences(city):
                context.log.warning(sentence)
            uncorrected = corrections.uncorrected(city).items()
            context.add_asset_metadata(
                {"images in the tiles": corrections.images}
                | {f"images without a corrected {what}": count for what, count in uncorrected}
            )

        return Output(store())

    return postgis_tables
