"""A city's assets, one module each, in the order in which they follow from each other."""

import warnings

from dagster import AssetsDefinition, BetaWarning

from vsvi_assets.city import City
from vsvi_assets.orchestration.assets.coverage_report import build_coverage_report
from vsvi_assets.orchestration.assets.dataset import build_dataset
from vsvi_assets.orchestration.assets.download_plan import build_download_plan
from vsvi_assets.orchestration.assets.image_files import build_image_files
from vsvi_assets.orchestration.assets.postgis_tables import build_postgis_tables
from vsvi_assets.orchestration.assets.selected_image_ids import build_selected_image_ids
from vsvi_assets.orchestration.assets.street_points import build_street_points
from vsvi_assets.orchestration.assets.tile_metadata import build_tile_metadata
from vsvi_assets.orchestration.assets.views import build_views
from vsvi_assets.settings import Settings


def build_city_assets(city: City, settings: Settings) -> list[AssetsDefinition]:
    """Build the assets of a city, under the key prefix of its name."""
    with warnings.catch_warnings():
        # Backfill policies are in beta, about which users can do nothing.
        warnings.simplefilter("ignore", BetaWarning)
        return [
            build_street_points(city, settings),
            build_tile_metadata(city),
            build_postgis_tables(city),
            build_selected_image_ids(city),
            build_download_plan(city),
            build_image_files(city, settings),
            build_coverage_report(city, settings),
            build_dataset(city),
            *([build_views(city)] if city.views else []),
        ]
