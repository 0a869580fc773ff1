"""The project in this folder: its cities by name, and the services that they need.

The command line and the Python API begin here.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vsvi_assets.city import City, CityFileError, PlaceNotLookedUpError, load_cities
from vsvi_assets.database.photographs import rebuild_photographs
from vsvi_assets.database.server import project_database
from vsvi_assets.database.tile_requests import tile_gate
from vsvi_assets.mapillary.pacing import TileState
from vsvi_assets.progress import progress_on
from vsvi_assets.running import services
from vsvi_assets.settings import Settings
from vsvi_assets.views.status import CityStatus, city_status, status_lines

if TYPE_CHECKING:
    from vsvi_assets.running.run_city import CityRun


@dataclass(frozen=True)
class Outcome:
    """What became of a city: its run, and where photographs were part of it what it has now."""

    city: City
    run: "CityRun"
    status: CityStatus | None

    def lines(self) -> list[str]:
        """Say it in lines for people, but for the failures."""
        if self.run.plan:
            # Here, since what a plan needs takes a while to load, which a status need not wait for.
            from vsvi_assets.views.plan import plan_lines

            return [*plan_lines(self.city, self.run.plan), *self.run.lines()]
        if self.status:
            return [*status_lines(self.city, self.status), *self.run.lines()]
        return self.run.lines()


@dataclass(frozen=True)
class CurrentStatus:
    """What a city has now, and whether tiles can be requested (None: of the sandbox, always)."""

    city: City
    status: CityStatus
    tile_state: TileState | None

    def lines(self) -> list[str]:
        """Say it in lines for people."""
        return status_lines(self.city, self.status, self.tile_state)


def project_settings() -> Settings:
    """Return the settings of this process, and of the project's `.env` where it is silent."""
    return Settings.from_environment(services.user_environment())


def find_city(name: str, environment: Mapping[str, str] | None = None) -> City:
    """Return the city of that name, by default of the project that we are in.

    Raises
    ------
    CityFileError
        When there is none, or its file is wrong.
    """
    settings = project_settings() if environment is None else Settings.from_environment(environment)
    cities, broken = load_cities(settings.cities_dir, settings.data_dir)
    for city in cities:
        if city.name == name:
            return city
    for broken_city in broken:
        if broken_city.name == name:
            raise broken_city.error
    known = ", ".join(city.name for city in cities) or "none"
    raise CityFileError(
        f"There is no city {name!r} in {settings.cities_dir}; the cities are: {known}."
    )


def find_city_with_its_region(name: str, environment: Mapping[str, str]) -> City:
    """Return the city of that name, whose place is looked up now if it never was.

    Raises
    ------
    CityFileError
        When there is no such city, or its file is wrong.
    PlaceError
        When Nominatim does not give the place.
    """
    try:
        return find_city(name, environment)
    except PlaceNotLookedUpError as missing:
        # osmnx takes a second to load, which other commands need not.
        from vsvi_assets.running.places import look_up_region

        # The sandbox, if the city is on it, has to run.
        print(look_up_region(missing, start_all().settings), file=sys.stderr)
        return find_city(name, environment)


def start_postgis() -> Settings:
    """Start PostGIS alone, for what reads from it; return the settings under which it is found."""
    return services.start_postgis(services.user_environment()).settings


def start_all() -> services.Started:
    """Start all services, and let Dagster, which reads this process's environment, find them."""
    environment = services.user_environment()
    settings = Settings.from_environment(environment)
    try:
        cities, broken = load_cities(settings.cities_dir, settings.data_dir)
    except CityFileError:
        cities, broken = [], []  # of which more is said where a city is asked for
    places = [each.error for each in broken if isinstance(each.error, PlaceNotLookedUpError)]
    started = services.start_all(environment, [*cities, *places])
    os.environ.update(started.environment)
    return started


def status_of(name: str, *, from_sidecars: bool = False) -> CurrentStatus:
    """Start PostGIS and count what a city has.

    Parameters
    ----------
    from_sidecars
        Make the table of photographs anew from the sidecars first.
    """
    settings = start_postgis()
    city = find_city(name)
    postgis = project_database(settings)
    if from_sidecars:
        rebuild_photographs(postgis, city)
    # The sandbox, which needs not run now, blocks nobody for a day.
    tile_state = (
        tile_gate(settings.services_of(city.services), settings, postgis).state()
        if city.services == "mapillary"
        else None
    )
    return CurrentStatus(city, city_status(city, postgis), tile_state)


def run_named_city(
    name: str,
    *,
    on_start: Callable[[services.Started], object] | None = None,
    tiles_only: bool = False,
    plan_only: bool = False,
    overwrite: bool = False,
    recheck_unavailable: bool = False,
) -> Outcome:
    """Start the services and run a city by `run_city`, with its progress on standard error.

    Parameters
    ----------
    on_start
        Receives the services that run, before the city does.
    """
    environment = services.user_environment()
    city = find_city_with_its_region(name, environment)
    if city.services == "mapillary":
        # Before anything is started or written.
        Settings.from_environment(environment).services_of(city.services).token()
    # The assets take seconds to load, which other commands need not.
    from vsvi_assets.orchestration.dagster_internals import instance_for_a_terminal
    from vsvi_assets.running.run_city import run_city

    started = start_all()
    if on_start:
        on_start(started)
    with (
        instance_for_a_terminal(Path(os.environ["DAGSTER_HOME"])) as instance,
        progress_on(sys.stderr) as progress,
    ):
        run = run_city(
            city,
            started.settings,
            instance,
            progress=progress,
            tiles_only=tiles_only,
            plan_only=plan_only,
            overwrite=overwrite,
            recheck_unavailable=recheck_unavailable,
        )
    if run.selected is None:
        return Outcome(city, run, None)
    postgis = project_database(started.settings)
    return Outcome(city, run, city_status(city, postgis))
