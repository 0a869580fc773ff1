"""What a city's users rely on, checked after every run: errors, and what deserves a look.

The checks of `tile_metadata` are part of the asset, which has the tiles in memory. Those of
`download_plan` too: they hold the photographs back. The photographs are checked all together,
once the coverage report is made.
"""

from dagster import AssetChecksDefinition

from vsvi_assets.city import City
from vsvi_assets.orchestration.checks.coverage_report import build_coverage_report_checks
from vsvi_assets.orchestration.checks.postgis_tables import build_postgis_tables_checks
from vsvi_assets.orchestration.checks.selected_image_ids import build_selected_image_ids_checks
from vsvi_assets.orchestration.checks.street_points import build_street_points_checks


def build_city_checks(city: City) -> list[AssetChecksDefinition]:
    """Build the checks of a city's assets that are steps of their own, one for each asset."""
    return [
        build_street_points_checks(city),
        build_postgis_tables_checks(city),
        build_selected_image_ids_checks(city),
        build_coverage_report_checks(city),
    ]
