"""What must hold for a city's tables of street points and images."""

from collections.abc import Iterator

from dagster import AssetCheckResult, AssetChecksDefinition, AssetCheckSeverity, multi_asset_check

from vsvi_assets.city import City
from vsvi_assets.database import audit
from vsvi_assets.orchestration.checks.rules import Rule
from vsvi_assets.orchestration.common import asset_key
from vsvi_assets.orchestration.resources import PostgisResource
from vsvi_assets.orchestration.retries import retry_boundary


def build_postgis_tables_checks(city: City) -> AssetChecksDefinition:
    asset = asset_key(city, "postgis_tables")
    geometries = Rule(
        asset, "geometries", "Every geometry is a valid point inside the bounding box."
    )
    compass_angles = Rule(
        asset,
        "compass_angles",
        "Compass angles are at least 0 and less than 360 degrees.",
        AssetCheckSeverity.WARN,
    )
    capture_times = Rule(
        asset,
        "capture_times",
        "Every image has a time of capture.",
        AssetCheckSeverity.WARN,
    )

    @multi_asset_check(
        name=f"{city.group}__postgis_tables_checks",
        specs=[geometries.spec, compass_angles.spec, capture_times.spec],
    )
    def postgis_tables_checks(postgis: PostgisResource) -> Iterator[AssetCheckResult]:
        with retry_boundary():
            tables = postgis.database()
            yield geometries.result(audit.wrong_geometries(tables, city))
            yield compass_angles.result(audit.wrong_compass_angles(tables, city))
            yield capture_times.result(audit.unknown_capture_times(tables, city))

    return postgis_tables_checks
