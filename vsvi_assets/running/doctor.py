"""What must hold before anything long is begun, looked at one by one."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import mercantile
import psycopg2
import requests
from dagster import DagsterInstance
from sqlalchemy.engine import make_url

from vsvi_assets.city import ZOOM, City, CityFileError, load_cities
from vsvi_assets.database.errors import PostgisError
from vsvi_assets.database.server import LocalPostgisError
from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.mapillary.errors import (
    MapillaryError,
    RefusedRequestError,
    RefusedTokenError,
    TileBudgetError,
    TileNotFoundError,
)
from vsvi_assets.mapillary.pacing import TileBudget
from vsvi_assets.orchestration.resources import PostgisResource
from vsvi_assets.settings import Settings, TokenMissingError

TIMEOUT_SECONDS = 10
PROBED_IMAGE = 1
"""No image has this id, but whether the token is good is answered all the same."""

PROBED_TILE = mercantile.tile(0, 0, ZOOM)
"""In the Gulf of Guinea, where few take photographs, so that the answer is short."""


class Verdict(StrEnum):
    """How a finding is marked."""

    GOOD = "✓"
    NOTICE = "!"
    BAD = "✗"


@dataclass(frozen=True)
class Finding:
    """What was looked at, what it is like and, unless it is good, how to mend it."""

    verdict: Verdict
    subject: str
    told: str
    mend: str | None = None

    def __str__(self) -> str:
        lines = f"{self.told}\n→ {self.mend}" if self.mend else self.told
        return f"{self.verdict} {self.subject:<18} " + lines.replace("\n", "\n" + " " * 21)


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything a run needs, one thing after the other.

    Asks each service once; the one tile counts in the day's budget. No finding holds the token.
    """
    try:
        cities, broken = load_cities(settings.cities_dir, settings.data_dir)
    except CityFileError as error:
        yield Finding(Verdict.BAD, "city files", str(error))
        cities, broken = [], []
    for city in cities:
        told = f"{len(city.tile_keys):,} tiles, EPSG:{city.projected_srid}"
        yield Finding(Verdict.GOOD, f"city {city.name}", told)
        for warning in city.warnings:
            yield Finding(Verdict.NOTICE, f"city {city.name}", warning, "correct the list")
    for broken_city in broken:
        yield Finding(
            Verdict.BAD,
            f"city {broken_city.name}",
            str(broken_city.error),
            "mend the file; the other cities run without it",
        )
    budget = TileBudget(settings.data_dir / "tile_budget.json")
    yield from _mapillary(settings, budget)
    yield _overpass(settings)
    yield _tile_budget(budget, cities)
    yield _postgis(settings)
    yield from _dagster()
    yield from map(_disk, cities)


def _mapillary(settings: Settings, budget: TileBudget) -> Iterator[Finding]:
    client = Mapillary(
        settings.token,
        tiles_url=settings.tiles_url,
        graph_url=settings.graph_url,
        num_retries=0,
        timeout=TIMEOUT_SECONDS,
        tile_budget=budget,
    )
    try:
        client.image_links([PROBED_IMAGE], "256")
    except (TokenMissingError, RefusedTokenError) as error:
        told, _, mend = str(error).partition(". ")
        yield Finding(Verdict.BAD, "Mapillary token", told, mend)
        return
    except MapillaryError as error:
        # A request that is refused was understood, and so was its token.
        answers = isinstance(error, RefusedRequestError)
        if not answers:
            yield _silent("Graph API", str(error), settings.graph_url, "MAPILLARY_GRAPH_URL")
    else:
        answers = True
    if answers:
        yield Finding(Verdict.GOOD, "Mapillary token", "accepted")
        yield Finding(Verdict.GOOD, "Graph API", settings.graph_url)
    try:
        client.tile_images(PROBED_TILE)
    except TileBudgetError:
        return  # of which more is told elsewhere
    except MapillaryError as error:
        if not isinstance(error, TileNotFoundError):
            yield _silent("tile server", str(error), settings.tiles_url, "MAPILLARY_TILES_URL")
            return
    yield Finding(Verdict.GOOD, "tile server", settings.tiles_url)


def _overpass(settings: Settings) -> Finding:
    try:
        answer = requests.get(f"{settings.overpass_url}/status", timeout=TIMEOUT_SECONDS)
        answer.raise_for_status()
    except requests.RequestException as error:
        return _silent("Overpass", type(error).__name__, settings.overpass_url, "OVERPASS_URL")
    return Finding(Verdict.GOOD, "Overpass", settings.overpass_url)


def _silent(subject: str, why: str, url: str, setting: str) -> Finding:
    return Finding(
        Verdict.BAD,
        subject,
        f"{url} does not answer as it should: {why}",
        f"check the connection, and {setting} if you set it; else try again later",
    )


def _tile_budget(budget: TileBudget, cities: Sequence[City]) -> Finding:
    left = budget.left()
    absent = sum(not city.tile_path(key).exists() for city in cities for key in city.tile_keys)
    told = f"{left:,} of {budget.per_day:,} requests left today, {absent:,} tiles to fetch"
    if not left:
        return Finding(Verdict.BAD, "tile budget", told, "run after midnight UTC")
    if left < absent:
        return Finding(
            Verdict.NOTICE, "tile budget", told, "the rest can be fetched after midnight UTC"
        )
    return Finding(Verdict.GOOD, "tile budget", told)


def _postgis(settings: Settings) -> Finding:
    where = "VSVI_POSTGRES_URL" if settings.postgres_url else str(settings.data_dir / "postgis")
    try:
        database = PostgisResource(data_dir=str(settings.data_dir)).database()
        with database.transaction() as cursor:
            cursor.execute(
                """
                SELECT split_part(current_setting('server_version'), ' ', 1),
                    (SELECT extversion FROM pg_extension WHERE extname = 'postgis')
                """
            )
            [(version, postgis)] = cursor.fetchall()
    except LocalPostgisError as error:
        return Finding(Verdict.BAD, "PostGIS", str(error))
    except PostgisError as error:
        return Finding(
            Verdict.BAD,
            "PostGIS",
            _first_line(error),
            f"start the server of {where}, or unset it to use the project's own",
        )
    if postgis is None:
        return Finding(
            Verdict.BAD,
            "PostGIS",
            f"the database of {where} has no PostGIS",
            "as its administrator, run in it: CREATE EXTENSION postgis",
        )
    return Finding(Verdict.GOOD, "PostGIS", f"PostgreSQL {version}, PostGIS {postgis} ({where})")


def _dagster() -> Iterator[Finding]:
    mend = "mend PostGIS first; then `vsvi up` sets what is not set"
    unset = [name for name in ("DAGSTER_HOME", "DAGSTER_POSTGRES_URL") if name not in os.environ]
    if unset:
        yield Finding(Verdict.BAD, "Dagster's storage", f"{' and '.join(unset)} not set", mend)
        return
    try:
        # Dagster itself tries for long before it gives up.
        address = make_url(os.environ["DAGSTER_POSTGRES_URL"]).translate_connect_args(
            username="user"
        )
        psycopg2.connect(**address, connect_timeout=TIMEOUT_SECONDS).close()
    except psycopg2.Error as error:
        mend = "start the server of DAGSTER_POSTGRES_URL, or unset it and run `vsvi up`"
        yield Finding(Verdict.BAD, "Dagster's storage", _first_line(error), mend)
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
    folder = _existing(city.sequences_folder)
    free, required = shutil.disk_usage(folder).free, city.required_free_bytes
    told = f"{free / 1e9:,.1f} GB free, {required / 1e9:,.1f} GB required ({folder})"
    if free < required:
        mend = "make room, or lower required_disk_space in the city file"
        return Finding(Verdict.BAD, f"disk for {city.name}", told, mend)
    return Finding(Verdict.GOOD, f"disk for {city.name}", told)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
