"""What must hold before anything long is begun, looked at one by one."""

import os
import secrets
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from itertools import islice
from zoneinfo import ZoneInfo

import mercantile
import psycopg2
import requests
from croniter import croniter
from dagster import DagsterInstance
from sqlalchemy.engine import make_url

from vsvi_assets.city import ZOOM, City, CityFileError, PlaceNotLookedUpError, load_cities
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.errors import PostgisError, ServerUnreachableError
from vsvi_assets.database.queries import usable_versions
from vsvi_assets.database.server import LocalPostgisError, project_database
from vsvi_assets.database.tile_requests import tile_gate
from vsvi_assets.files import NO_LIMIT, atomic_write, entries_in, free_bytes, in_store
from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.mapillary.connections import connection_error
from vsvi_assets.mapillary.errors import (
    AddressBlockedError,
    ConnectionSettingsError,
    MapillaryError,
    RefusedTokenError,
    TileBudgetError,
    TileNotFoundError,
)
from vsvi_assets.mapillary.pacing import TileGate
from vsvi_assets.proxies import proxies_for
from vsvi_assets.running.services import start_postgis, user_environment
from vsvi_assets.settings import (
    SandboxMissingError,
    ServiceAddresses,
    SettingError,
    Settings,
    TokenMissingError,
)
from vsvi_assets.store import DataPath, StoreError, StoreRefusedError, access_of, without_patience

TIMEOUT_SECONDS = 10
PROBED_IMAGE = 1
"""No image has this id, but whether the token is good is answered all the same."""

PROBED_TILE = mercantile.tile(0, 0, ZOOM)
"""In the Gulf of Guinea, where few take photographs, so that the answer is short."""

DAYS_AHEAD = 31
MOST_TICKS = 3000
"""Days, and ticks of one city's schedule, that are looked at for the busiest day."""


class Verdict(StrEnum):
    """How a finding is marked."""

    GOOD = "✓"
    NOTICE = "!"
    BAD = "✗"


@dataclass(frozen=True)
class Finding:
    """What was looked at, what it is like and, unless it is good, how to fix it."""

    verdict: Verdict
    subject: str
    text: str
    fix: str | None = None

    def __str__(self) -> str:
        lines = f"{self.text}\n→ {self.fix}" if self.fix else self.text
        return f"{self.verdict} {self.subject:<18} " + lines.replace("\n", "\n" + " " * 21)


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything a run needs, one thing after the other.

    Asks each service that a city uses once. The one tile counts for pace and budget, and is not
    asked for while Mapillary blocks this address. No finding holds the token.
    """
    try:
        cities, broken = load_cities(settings.cities_dir, settings.data_dir)
    except CityFileError as error:
        yield Finding(Verdict.BAD, "city files", str(error))
        cities, broken = [], []
    for city in cities:
        source = "Mapillary" if city.services == "mapillary" else "the sandbox"
        text = f"{len(city.tile_keys):,} tiles, EPSG:{city.projected_srid}, from {source}"
        yield Finding(Verdict.GOOD, f"city {city.name}", text)
        for warning in city.warnings:
            yield Finding(Verdict.NOTICE, f"city {city.name}", warning)
    for broken_city in broken:
        yield Finding(
            Verdict.BAD,
            f"city {broken_city.name}",
            str(broken_city.error),
            None
            if isinstance(broken_city.error, PlaceNotLookedUpError)  # which says what to do
            else "fix the file; the other cities run without it",
        )
    if in_store(settings.data_dir):
        yield _object_store(settings.data_dir)
    postgis = yield from _postgis(settings)
    on_sandbox = [city for city in cities if city.services == "sandbox"]
    if on_sandbox:
        yield _sandbox(settings)
    if not cities or len(on_sandbox) < len(cities):
        services = settings.services_of("mapillary")
        gate = tile_gate(services, settings, postgis) if postgis else None
        yield from _mapillary(services, gate)
        yield _overpass(services)
        if gate:
            yield from _tile_requests(gate, [each for each in cities if each not in on_sandbox])
    yield from _dagster()
    yield from map(_disk, cities)


def _object_store(data_dir: DataPath) -> Finding:
    """Try what a run does in the object store; leave nothing there."""
    probe = without_patience(data_dir) / f".doctor-{secrets.token_hex(6)}"
    endpoint = access_of(data_dir).endpoint or "Amazon S3"
    try:
        with atomic_write(probe) as file:
            file.write(b"vsvi doctor")
        listed = probe.name in entries_in(probe.parent)
        probe.unlink()
    except StoreRefusedError as error:
        return Finding(Verdict.BAD, "object store", error.reason, error.advice)
    except StoreError as error:
        return Finding(
            Verdict.BAD,
            "object store",
            f"{endpoint} cannot be reached: {error}",
            "check the connection, and AWS_ENDPOINT_URL if you set it",
        )
    if not listed:
        return Finding(
            Verdict.BAD,
            "object store",
            f"{data_dir} does not list what was written just before",
            "use a store that does, as Amazon S3 and SeaweedFS do",
        )
    return Finding(Verdict.GOOD, "object store", f"{data_dir}, at {endpoint}")


def _sandbox(settings: Settings) -> Finding:
    try:
        url = settings.services_of("sandbox").tiles_url
        requests.get(f"{url}/stats", timeout=TIMEOUT_SECONDS, proxies=proxies_for(url))
    except (SandboxMissingError, requests.RequestException):
        return Finding(Verdict.NOTICE, "sandbox", "does not run", "vsvi up")
    return Finding(Verdict.GOOD, "sandbox", url)


def _mapillary(services: ServiceAddresses, gate: TileGate | None) -> Iterator[Finding]:
    client = Mapillary(services, tile_gate=gate, num_retries=0, timeout=TIMEOUT_SECONDS)
    try:
        client.image_links([PROBED_IMAGE], "256")
    except (TokenMissingError, RefusedTokenError, SettingError) as error:
        text, _, fix = str(error).partition(". ")
        yield Finding(Verdict.BAD, "Mapillary token", text, fix or None)
        return
    except MapillaryError as error:
        yield Finding(
            Verdict.NOTICE, "Mapillary token", "not tested, because the Graph API gave no answer"
        )
        yield _silent("Graph API", error, services.graph_url, "MAPILLARY_GRAPH_URL")
    else:
        yield Finding(Verdict.GOOD, "Mapillary token", "accepted by the Graph API")
        yield Finding(Verdict.GOOD, "Graph API", services.graph_url)
    if gate is None:
        text = "not asked, because the pace of tile requests is kept in PostGIS"
        yield Finding(Verdict.NOTICE, "tile server", text, "fix PostGIS first")
    else:
        yield from _tile_server(client, services)


def _tile_server(client: Mapillary, services: ServiceAddresses) -> Iterator[Finding]:
    try:
        client.tile_images(PROBED_TILE)
    except TileBudgetError:
        return  # which is reported with the other tile requests
    except TileNotFoundError:
        pass
    except (AddressBlockedError, RefusedTokenError) as error:
        text, _, fix = str(error).partition(". ")
        yield Finding(Verdict.BAD, "tile server", text, fix)
        return
    except MapillaryError as error:
        yield _silent("tile server", error, services.tiles_url, "MAPILLARY_TILES_URL")
        return
    yield Finding(Verdict.GOOD, "tile server", services.tiles_url)


def _overpass(services: ServiceAddresses) -> Finding:
    url = services.overpass_url
    try:
        answer = requests.get(
            f"{url}/status",
            headers={"User-Agent": services.user_agent},
            timeout=TIMEOUT_SECONDS,
            proxies=proxies_for(url),
        )
    except (OSError, ValueError) as error:
        failure = connection_error(error, url, "its status")
        return _silent("Overpass", failure, url, "OVERPASS_URL")
    if not answer.ok:
        refusal = requests.HTTPError(f"HTTP {answer.status_code} {answer.reason}")
        return _silent("Overpass", refusal, url, "OVERPASS_URL")
    return Finding(Verdict.GOOD, "Overpass", url)


def _silent(subject: str, error: Exception, url: str, setting: str) -> Finding:
    if isinstance(error, ConnectionSettingsError):  # which says itself what to do
        return Finding(Verdict.BAD, subject, str(error))
    return Finding(
        Verdict.BAD,
        subject,
        f"{url} does not answer as it should: {error}",
        f"check the connection, and {setting} if you set it; else try again later",
    )


def _tile_requests(gate: TileGate, cities: Sequence[City]) -> Iterator[Finding]:
    state = gate.state()
    absent = sum(
        city.requests_for(len(city.tile_keys) - len(city.stored_tiles())) for city in cities
    )
    text = f"to fetch: {state.summary(absent)}"
    if state.is_blocked:
        yield Finding(Verdict.BAD, "tile requests", text, "wait until then")
    elif not state.left_today:
        yield Finding(Verdict.BAD, "tile requests", text, "run after midnight UTC")
    elif state.left_today < absent:
        fix = "the rest can be fetched after midnight UTC"
        yield Finding(Verdict.NOTICE, "tile requests", text, fix)
    else:
        yield Finding(Verdict.GOOD, "tile requests", text)
    day, needed = busiest_day(cities, datetime.now(UTC))
    possible = min(state.per_day, int(24 * 60 / state.minutes(1)))
    if needed > possible:
        yield Finding(
            Verdict.NOTICE,
            "schedules",
            f"together they need {needed:,} tile requests on {day:%Y-%m-%d}; pace and daily "
            f"budget allow {possible:,} per day",
            "spread the schedules over more days, or refresh less often",
        )


def busiest_day(cities: Sequence[City], now: datetime) -> tuple[date, int]:
    """Return the day (UTC) on which schedules need most tile requests, and how many.

    Each tick of a city's schedule asks for all of its tiles. The next 31 days are looked at, or
    3,000 ticks of a city.
    """
    requests_by_day = Counter({now.date(): 0})
    for city in cities:
        if city.schedule:
            ticks = croniter(city.schedule, now.astimezone(ZoneInfo(city.timezone)))
            for tick in islice(ticks.all_next(datetime), MOST_TICKS):
                if tick > now + timedelta(days=DAYS_AHEAD):
                    break
                requests_by_day[tick.astimezone(UTC).date()] += city.tile_requests
    return requests_by_day.most_common(1)[0]


def _postgis(settings: Settings) -> Generator[Finding, None, Postgis | None]:
    """Try what a run needs of the database; return the database where it can be used."""
    where = "VSVI_POSTGRES_URL" if settings.postgres_url else str(settings.machine_dir / "postgis")
    try:
        start_postgis(user_environment())
        postgis = project_database(settings)
        versions = usable_versions(postgis)
    except ServerUnreachableError as error:
        yield Finding(
            Verdict.BAD,
            "PostGIS",
            _first_line(error),
            f"start the server of {where}, or unset it to use the project's own",
        )
        return None
    except (LocalPostgisError, PostgisError) as error:
        yield Finding(Verdict.BAD, "PostGIS", str(error))
        return None
    yield Finding(Verdict.GOOD, "PostGIS", f"{versions} ({where})")
    return postgis


def _dagster() -> Iterator[Finding]:
    fix = "fix PostGIS first; then `vsvi up` sets what is not set"
    unset = [name for name in ("DAGSTER_HOME", "DAGSTER_POSTGRES_URL") if name not in os.environ]
    if unset:
        yield Finding(Verdict.BAD, "Dagster's storage", f"{' and '.join(unset)} not set", fix)
        return
    try:
        # Dagster itself tries for long before it gives up.
        url = make_url(os.environ["DAGSTER_POSTGRES_URL"]).difference_update_query(["plugin"])
        _, address = url.get_dialect()().create_connect_args(url)
        psycopg2.connect(**address, connect_timeout=TIMEOUT_SECONDS).close()
    except psycopg2.Error as error:
        fix = "start the server of DAGSTER_POSTGRES_URL, or unset it and run `vsvi up`"
        yield Finding(Verdict.BAD, "Dagster's storage", _first_line(error), fix)
        return
    with DagsterInstance.get() as instance:
        outdated = [
            type(storage).__name__
            for storage in (instance.run_storage, instance.event_log_storage)
            if (versions := storage.alembic_version()) and versions[0] != versions[1]
        ]
        if outdated:
            yield Finding(
                Verdict.BAD,
                "Dagster's storage",
                f"written by another version of Dagster ({', '.join(outdated)})",
                "dagster instance migrate",
            )
            return
        runs = instance.get_runs_count()
        yield Finding(Verdict.GOOD, "Dagster's storage", f"{runs:,} runs recorded")
        silent = [
            name for name, status in instance.get_daemon_statuses().items() if not status.healthy
        ]
    if silent:
        yield Finding(
            Verdict.NOTICE,
            "Dagster's daemon",
            "does not run, so neither do schedules and backfills",
            "dagster dev (`vsvi materialize` needs no daemon)",
        )
    else:
        yield Finding(Verdict.GOOD, "Dagster's daemon", "runs")


def _disk(city: City) -> Finding:
    folder, required = city.sequences_folder, city.required_free_bytes
    free = free_bytes(folder)
    if free is None:
        return Finding(Verdict.GOOD, f"disk for {city.name}", f"{NO_LIMIT} ({folder})")
    text = f"{free / 1e9:,.1f} GB free, {required / 1e9:,.1f} GB required ({folder})"
    if free < required:
        fix = "make room, or lower required_disk_space in the city file"
        return Finding(Verdict.BAD, f"disk for {city.name}", text, fix)
    return Finding(Verdict.GOOD, f"disk for {city.name}", text)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
