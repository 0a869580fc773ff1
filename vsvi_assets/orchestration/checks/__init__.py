"""What a city's users rely on, checked after every run: errors, and what deserves a look.

The checks of `tile_metadata` are part of the asset, which has the tiles in memory; so are those of
`download_plan`, which hold the photographs back, and those of `coverage_report`, which has the
inventory of all photographs.
"""

from dagster import AssetChecksDefinition

from vsvi_assets.city import City
from vsvi_assets.orchestration.checks.postgis_tables import build_postgis_tables_checks
from vsvi_assets.orchestration.checks.selected_image_ids import build_selected_image_ids_checks
from vsvi_assets.orchestration.checks.street_points import build_street_points_checks


def build_city_checks(city: City) -> list[AssetChecksDefinition]:
    """Build the checks of a city's assets that are steps of their own, one for each asset."""
    return [
        build_street_points_checks(city),
        build_postgis_tables_checks(city),
        build_selected_image_ids_checks(city),
    ]
