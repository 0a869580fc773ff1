"""Puts the assets of cities together with the resources and IO managers that they need."""

import logging
from collections.abc import Mapping, Sequence

from dagster import AssetKey, AssetSpec, Definitions, LoggerDefinition

from vsvi_assets.city import BrokenCity, City, load_cities
from vsvi_assets.orchestration.assets import build_city_assets
from vsvi_assets.orchestration.automation import build_city_automation, with_conditions
from vsvi_assets.orchestration.checks import build_city_checks
from vsvi_assets.orchestration.dagster_internals import interruptible_executor
from vsvi_assets.orchestration.io_managers.filesystem import (
    CoverageReportFile,
    DatasetFile,
    SequenceFolders,
    StreetPointsFile,
    TileFiles,
)
from vsvi_assets.orchestration.io_managers.postgis import PostgisIOManager
from vsvi_assets.orchestration.notifications import build_notification_sensors
from vsvi_assets.orchestration.resources import (
    MapillaryResource,
    OverpassResource,
    PostgisResource,
)
from vsvi_assets.orchestration.retries import RetriedIOManager
from vsvi_assets.progress import LogProgress
from vsvi_assets.settings import Settings


def build_defs(
    settings: Settings, resource_overrides: Mapping[str, object] | None = None
) -> Definitions:
    """Build the definitions of all city files.

    A city whose file cannot be used appears as one asset, `<city>/city_file`, whose
    description says what to fix; the others load without it.

    Parameters
    ----------
    settings
        Folders and services.
    resource_overrides
        Resources to use in place of the project's own, by their keys.
    """
    cities, broken = load_cities(settings.cities_dir, settings.data_dir)
    return Definitions.merge(
        build_cities_defs(cities, settings, resource_overrides),
        Definitions(assets=_broken_city_files(broken)),
    )


def build_cities_defs(
    cities: Sequence[City],
    settings: Settings,
    resource_overrides: Mapping[str, object] | None = None,
    loggers: Mapping[str, LoggerDefinition] | None = None,
) -> Definitions:
    """Build the definitions of the given cities; see `build_defs`."""
    by_name = {city.name: city for city in cities}
    postgis = PostgisResource(data_dir=str(settings.machine_dir))
    return Definitions.merge(
        *map(build_city_automation, cities),
        Definitions(
            assets=[
                asset
                for city in cities
                for asset in with_conditions(city, build_city_assets(city, settings))
            ],
            asset_checks=[check for city in cities for check in build_city_checks(city)],
            sensors=build_notification_sensors(settings),
            resources={
                "mapillary": MapillaryResource(data_dir=str(settings.machine_dir)),
                "progress": LogProgress(),
                "postgis": postgis,
                "overpass": OverpassResource(),
                "street_points_file": RetriedIOManager(StreetPointsFile(by_name)),
                "tile_files": RetriedIOManager(TileFiles(by_name)),
                "postgis_tables": RetriedIOManager(PostgisIOManager(postgis)),
                "sequence_folders": RetriedIOManager(SequenceFolders(by_name)),
                "coverage_report_file": RetriedIOManager(CoverageReportFile(by_name)),
                "dataset_file": RetriedIOManager(DatasetFile(by_name)),
                **(resource_overrides or {}),
            },
            loggers=loggers,
            # A run's steps follow from each other, so a process for each would only cost time.
            executor=interruptible_executor,
        ),
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
                ["**This city is left out until its file is fixed.**", *errors[name]]
            ),
        )
        for name in errors
    ]
