"""All of a city in one table, for others to use."""

from dagster import AssetsDefinition, Output, asset

from vsvi_assets.city import City
from vsvi_assets.database.dataset import dataset as city_dataset
from vsvi_assets.orchestration.columns import DATASET
from vsvi_assets.orchestration.common import asset_key, identity, upstream
from vsvi_assets.orchestration.io_managers.postgis import PostgisSchema
from vsvi_assets.orchestration.retries import retry_boundary


def build_dataset(city: City) -> AssetsDefinition:
    @asset(
        **identity(city, "dataset", {"geoparquet"}),
        ins=upstream(city, "selected_image_ids"),
        deps=[asset_key(city, "image_files")],
        description=(
            "After step 5. One row per street point and image, points without an image included: "
            "what is known of both, and where the photograph is. GeoParquet; `vsvi export` "
            "writes other formats."
        ),
        metadata={"dagster/column_schema": DATASET},
        io_manager_key="dataset_file",
    )
    @retry_boundary()
    def dataset(selected_image_ids: PostgisSchema) -> Output:
        return Output(city_dataset(selected_image_ids.postgis, city))

    return dataset
