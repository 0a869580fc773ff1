"""Mapillary, PostGIS and the settings, as Dagster resources.

None of them carries a secret in its configuration, which the UI shows: token and database
address are read from the environment when they are needed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from dagster import ConfigurableResource

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import LockHeldError
from vsvi_assets.database.locks import advisory_lock
from vsvi_assets.database.server import LocalPostgis
from vsvi_assets.database.tile_requests import PostgresTileGate
from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.settings import ServiceAddresses, Settings
from vsvi_assets.streets import Overpass


class MapillaryResource(ConfigurableResource):
    """Mapillary's tile, graph and image servers."""

    data_dir: str
    backoff: float = 1.0
    """Seconds, to the base of which the pauses between attempts grow."""

    @classmethod
    def from_settings(cls, settings: Settings) -> "MapillaryResource":
        """Return the resource for the cities of these settings."""
        return cls(data_dir=str(settings.data_dir))

    def client(self, city: City) -> Mapillary:
        """Return a client of the city's services, which tries as often as the city file says."""
        settings = Settings.from_environment()
        services = settings.services_of(city.services)
        postgis = PostgisResource(data_dir=self.data_dir).database()
        return Mapillary(
            services,
            tile_gate=tile_gate(settings, services, postgis),
            num_retries=city.num_retries,
            backoff=self.backoff,
        )


def tile_gate(settings: Settings, services: ServiceAddresses, postgis: Postgis) -> PostgresTileGate:
    """Return what gives the turns of the tile requests to these services."""
    return PostgresTileGate(
        postgis,
        services.tiles_url,
        per_minute=services.tiles_per_minute,
        per_day=settings.tiles_per_day,
        block_hours=settings.block_hours,
    )


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
        url = Settings.from_environment().postgres_url
        return Postgis(url) if url else LocalPostgis(Path(self.data_dir)).database()


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
