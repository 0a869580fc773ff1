"""What the work needs around it: a sandbox, a PostGIS server and a Dagster home of its own."""

import gc
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from benchmarks.measure import Clock
from vsvi_assets.city import City, load_city
from vsvi_assets.database.server import LocalPostgis
from vsvi_assets.running.services import dagster_settings
from vsvi_assets.sandbox import Sandbox, World

if TYPE_CHECKING:
    from vsvi_assets.running.run_city import CityRun

PROJECT = Path(__file__).parent.parent
_spawning = multiprocessing.get_context("spawn")


class MissingProgramError(Exception):
    """A program that the reference's way needs is not installed."""


def require(program: str, package: str) -> None:
    """Refuse to go on without a program."""
    if not shutil.which(program):
        raise MissingProgramError(
            f"{program} is not installed; people do this work with it today. On Debian and Ubuntu: "
            f"sudo apt-get install --no-install-recommends {package}"
        )


@contextmanager
def serving(
    world: Callable[..., World], *arguments: object, latency: float = 0.0
) -> Iterator[dict[str, str]]:
    """Serve `world(*arguments)` in a process of its own; give the settings that lead to it."""
    ours, theirs = _spawning.Pipe()
    process = _spawning.Process(target=_serve, args=(theirs, world, arguments, latency))
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        ours.close()
        process.join()


def _serve(
    parent: Connection, world: Callable[..., World], arguments: tuple[Any, ...], latency: float
) -> None:
    made = world(*arguments)
    # A collector that goes through a million images would take the time of who is measured.
    gc.freeze()
    with Sandbox(made, latency=latency) as sandbox:
        parent.send(sandbox.environment())
        parent.poll(None)  # until the other end is closed


def requests_made(environment: Mapping[str, str]) -> dict[str, int]:
    """Ask a sandbox how many requests were made of each service."""
    answer = requests.get(f"{environment['MAPILLARY_TILES_URL']}/stats", timeout=30)
    counts: dict[str, int] = answer.json()["requests"]
    return counts


@dataclass(frozen=True)
class Home:
    """A folder with cities, data, a PostGIS server that runs, and a Dagster instance."""

    folder: Path
    postgis: LocalPostgis

    @property
    def environment(self) -> dict[str, str]:
        """The settings of the project here."""
        return {
            "VSVI_CITIES_DIR": str(self.folder / "cities"),
            "VSVI_DATA_DIR": str(self.folder / "data"),
            "VSVI_POSTGRES_URL": self.postgis.vsvi_url,
            "DAGSTER_HOME": str(self.folder),
            "VSVI_DAGSTER_DIR": str(self.folder / "data" / "dagster"),
            **dagster_settings(self.postgis),
        }

    def city(self, name: str) -> City:
        return load_city(self.folder / "cities" / f"{name}.json", self.folder / "data")

    @property
    def database_url(self) -> str:
        return self.postgis.vsvi_url.replace("+psycopg2", "")

    @property
    def postmaster(self) -> int:
        """The process id of the server."""
        pid_file = self.postgis.folder.resolve() / "cluster" / "postmaster.pid"
        return int(pid_file.read_text().split()[0])


@contextmanager
def home(folder: Path) -> Iterator[Home]:
    """Make a home in a new folder; nothing of it stays."""
    (folder / "cities").mkdir(parents=True)
    shutil.copy(PROJECT / "dagster.yaml", folder)
    postgis = LocalPostgis(folder / "data")
    try:
        postgis.start()
        yield Home(folder, postgis)
    finally:
        postgis.stop()
        # As root, the server's folder lies outside the data folder.
        shutil.rmtree(postgis.folder.resolve(), ignore_errors=True)
        shutil.rmtree(folder)


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """Give a folder that is not there, and remove it afterwards."""
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settle(environment: Mapping[str, str]) -> None:
    """Take settings into this process, where relative folders of dagster.yaml lie at home."""
    os.environ.update(environment)
    if "DAGSTER_HOME" in environment:
        os.chdir(environment["DAGSTER_HOME"])


def run(
    clock: Clock,
    home: Home,
    environment: Mapping[str, str],
    city_name: str,
    *,
    plan_only: bool = False,
    **changes: Any,
) -> "CityRun":
    """Run a city as `vsvi materialize` does, or `vsvi plan`; loading the modules is not measured.

    `changes` are of the settings.
    """
    settle({**home.environment, **environment})
    from dagster import DagsterInstance

    from vsvi_assets.progress import LogProgress
    from vsvi_assets.running.run_city import run_city
    from vsvi_assets.settings import Settings

    settings = replace(Settings.from_environment(), **changes)
    city = home.city(city_name)
    with DagsterInstance.get() as instance, clock:
        done = run_city(city, settings, instance, progress=LogProgress(), plan_only=plan_only)
    assert done.success, done.failures
    return done
