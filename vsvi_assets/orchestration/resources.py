"""Mapillary, PostGIS and the settings, as Dagster resources.

None of them carries a secret in its configuration, which the UI shows: token and database
address are read from the environment when they are needed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from dagster import ConfigurableResource

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import LockHeldError
from vsvi_assets.database.locks import advisory_lock
from vsvi_assets.database.server import project_database
from vsvi_assets.database.tile_requests import paced_client
from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.settings import Settings
from vsvi_assets.streets.overpass import Overpass


class MapillaryResource(ConfigurableResource):
    """Mapillary's tile, graph and image servers."""

    data_dir: str
    backoff: float = 1.0
    """Seconds, to the base of which the pauses between attempts grow."""

    def client(self, city: City) -> Mapillary:
        """Return a client of the city's services, which tries as often as the city file says."""
        return paced_client(city, _settings(self.data_dir), backoff=self.backoff)


class PostgisResource(ConfigurableResource):
    """The database of VSVI_POSTGRES_URL, or where that is not set the project's own server.

    It starts nothing: `vsvi up` does, and so does each command that needs the database.
    """

    data_dir: str

    def database(self) -> Postgis:
        """Return the database, whose server has to run already.

        Raises
        ------
        LocalPostgisError
            When the project has no server yet.
        """
        return project_database(_settings(self.data_dir))


class OverpassResource(ConfigurableResource):
    """OpenStreetMap's Overpass, which all processes ask one after the other."""

    pause: float = 30.0
    """Seconds without a query after an answer that the server is busy, at first."""

    def server(
        self, city: City, postgis: PostgisResource, report: Callable[[str], None]
    ) -> Overpass:
        """Return the server of the city's services; `report` receives that it waits its turn."""
        settings = Settings.from_environment()
        url = settings.services_of(city.services).overpass_url

        @contextmanager
        def turn() -> Iterator[None]:
            database = postgis.database()
            name = f"Overpass ({urlsplit(url).hostname})"
            with ExitStack() as held:
                try:
                    held.enter_context(advisory_lock(database, name, wait=False))
                except LockHeldError as error:
                    report(f"{error} Waiting for it: one query at a time.")
                    held.enter_context(advisory_lock(database, name, wait=True))
                yield

        return Overpass(
            url=url,
            user_agent=settings.user_agent,
            turn=turn,
            memory=settings.overpass_memory,
            area=settings.overpass_area,
            pause=self.pause,
        )


def _settings(data_dir: str) -> Settings:
    return replace(Settings.from_environment(), data_dir=Path(data_dir))
