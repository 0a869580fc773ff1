"""All cities' assets, with what they need: what `dagster dev` loads."""

import logging
from collections.abc import Mapping, Sequence

from dagster import AssetKey, AssetSpec, Definitions, in_process_executor

from vsvi_assets.city import BrokenCity, load_cities
from vsvi_assets.orchestration.assets import build_city_assets
from vsvi_assets.orchestration.automation import build_refresh_sensor, with_conditions
from vsvi_assets.orchestration.checks import build_city_checks
from vsvi_assets.orchestration.io_managers.filesystem import (
    CoverageReportFile,
    SequenceFolders,
    StreetPointsFile,
    TileFiles,
)
from vsvi_assets.orchestration.io_managers.postgis import PostgisIOManager
from vsvi_assets.orchestration.resources import MapillaryResource, PostgisResource
from vsvi_assets.progress import LogProgress
from vsvi_assets.settings import Settings


def build_defs(
    settings: Settings | None = None, resource_overrides: Mapping[str, object] | None = None
) -> Definitions:
    """Assemble the assets of every city file with their resources and IO managers.

    Tests put resources of their own in place of some by `resource_overrides`.

    A city whose file cannot be used appears as one asset, `<city>/city_file`, whose
    description says what to mend; the others load without it.
    """
    settings = settings or Settings.from_environment()
    cities, broken = load_cities(settings.cities_dir, settings.data_dir)
    by_name = {city.name: city for city in cities}
    postgis = PostgisResource(data_dir=str(settings.data_dir))
    return Definitions(
        assets=[
            *(
                asset
                for city in cities
                for asset in with_conditions(city, build_city_assets(city, settings))
            ),
            *_broken_city_files(broken),
        ],
        asset_checks=[check for city in cities for check in build_city_checks(city)],
        sensors=[build_refresh_sensor(city) for city in cities if city.schedule],
        resources={
            "mapillary": MapillaryResource.from_settings(settings),
            "progress": LogProgress(),
            "postgis": postgis,
            "street_points_file": StreetPointsFile(by_name),
            "tile_files": TileFiles(by_name),
            "postgis_tables": PostgisIOManager(postgis),
            "sequence_folders": SequenceFolders(by_name),
            "coverage_report_file": CoverageReportFile(by_name),
            **(resource_overrides or {}),
        },
        # A run's steps follow from each other, so a process for each would only cost time.
        executor=in_process_executor,
    )


def _broken_city_files(broken: Sequence[BrokenCity]) -> list[AssetSpec]:
    errors: dict[str, list[str]] = {}
    for city in broken:
        logging.getLogger(__name__).error("City left out: %s", city.error)
        errors.setdefault(city.name, []).append(str(city.error))
    return [
        AssetSpec(
            key=AssetKey([name, "city_file"]),
            group_name="broken_city_files",
            description="\n\n".join(
                ["**This city is left out until its file is mended.**", *errors[name]]
            ),
        )
        for name in errors
    ]


defs = build_defs()
