"""What runs beside Dagster: the PostGIS cluster and, without a token, the sandbox.

Where they are reached is written into a block of `.env`, which Dagster's own commands read,
so that `dagster dev` finds them once `vsvi up` was run.
"""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import requests
from dotenv import dotenv_values

from vsvi_assets.city import City
from vsvi_assets.files import atomic_write
from vsvi_assets.local_postgis import LocalPostgis
from vsvi_assets.settings import Settings, TokenMissingError

ENV_FILE = Path(".env")
_BEGIN = "# Written by `vsvi up`; what is set outside of this block wins."
_END = "# End of what `vsvi up` wrote."
_BLOCK = re.compile(rf"\n?{re.escape(_BEGIN)}.*?{re.escape(_END)}\n", re.DOTALL)
_SANDBOX_START_SECONDS = 60


class ServiceError(Exception):
    """A service cannot be started or stopped; the message says what to do."""


class CityBusyError(ServiceError):
    """Another process is materializing the city."""


def lock_path(city: City) -> Path:
    """Return the file that `only_process` locks."""
    return city.folder / ".materialize.lock"


@contextmanager
def only_process(city: City) -> Iterator[None]:
    """Make sure that no other `vsvi` materializes the city meanwhile.

    Raises
    ------
    CityBusyError
        When one does.
    """
    path = lock_path(city)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CityBusyError(
                f"{city.name} is being materialized by another vsvi; wait for it, or stop it."
            ) from error
        yield


@dataclass(frozen=True)
class Services:
    """What runs: a line on each for people, and the settings under which it is reached."""

    lines: list[str]
    environment: dict[str, str]


def load_environment() -> None:
    """Take the user's own settings of `.env` into the environment, which wins over them."""
    for name, value in _users_settings().items():
        os.environ.setdefault(name, value)


def up(*, sandbox: bool | None = None) -> Services:
    """Start what is missing, set the environment of this process, and write it to `.env`.

    Parameters
    ----------
    sandbox
        Whether to run on the sandbox. None: where no Mapillary token is set and the services'
        addresses are Mapillary's own. True only holds for this process, not for `.env`.

    Raises
    ------
    LocalPostgisError, ServiceError
        When a service does not start.
    """
    load_environment()
    if "DAGSTER_HOME" not in os.environ and not Path("dagster.yaml").is_file():
        raise ServiceError(
            "There is no dagster.yaml here: run vsvi in the project's folder, or set DAGSTER_HOME."
        )
    settings = Settings.from_environment()
    found: dict[str, str] = {"DAGSTER_HOME": str(Path.cwd())}
    lines = []
    if not (settings.postgres_url and "DAGSTER_POSTGRES_URL" in os.environ):
        cluster = LocalPostgis(settings.data_dir)
        cluster.start()
        found |= dagster_settings(cluster)
        lines.append(f"PostGIS: {cluster.version()} in {cluster.folder}")
    for_this_process = dict(found)
    if sandbox or (sandbox is None and _wants_sandbox(settings)):
        served = _start_sandbox(settings.data_dir)
        for_this_process |= served
        if not sandbox:
            found |= served
        lines.append(f"Sandbox: {served['MAPILLARY_TILES_URL']}, in place of Mapillary and OSM")
    if sandbox:
        os.environ.update(for_this_process)
    for name, value in for_this_process.items():
        os.environ.setdefault(name, value)
    _write_block({name: value for name, value in found.items() if os.environ[name] == value})
    return Services(lines, for_this_process)


def down() -> list[str]:
    """Stop what `up` started, and say what that was."""
    load_environment()
    data_dir = Settings.from_environment().data_dir
    stopped = []
    if _stop_sandbox(data_dir):
        stopped.append("Sandbox")
    cluster = LocalPostgis(data_dir)
    if cluster.is_running():
        cluster.stop()
        stopped.append("PostGIS")
    return stopped


def dagster_settings(cluster: LocalPostgis) -> dict[str, str]:
    """Return where Dagster's records are kept, and how: see `kept_connections`.

    Materializations of one step are stored together, up to so many at a time.
    """
    return {
        "DAGSTER_POSTGRES_URL": f"{cluster.dagster_url}?plugin=vsvi",
        "DAGSTER_EVENT_BATCH_SIZE": "200",
    }


def _wants_sandbox(settings: Settings) -> bool:
    if any(os.environ.get(name) for name in ("MAPILLARY_TILES_URL", "MAPILLARY_GRAPH_URL")):
        return False
    try:
        settings.token()
    except TokenMissingError:
        return True
    return False


def _users_settings() -> dict[str, str]:
    if not ENV_FILE.is_file():
        return {}
    text = _BLOCK.sub("", ENV_FILE.read_text(encoding="utf-8"))
    return {name: value for name, value in dotenv_values(stream=StringIO(text)).items() if value}


def _write_block(settings: Mapping[str, str]) -> None:
    text = ENV_FILE.read_text(encoding="utf-8") if ENV_FILE.is_file() else ""
    text = _BLOCK.sub("", text)
    if text and not text.endswith("\n"):
        text += "\n"
    block = "".join(f"{name}='{value}'\n" for name, value in settings.items())
    with atomic_write(ENV_FILE.absolute()) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(f"{text}\n{_BEGIN}\n{block}{_END}\n".lstrip("\n").encode())


def _sandbox_folder(data_dir: Path) -> Path:
    return data_dir / "sandbox"


def _start_sandbox(data_dir: Path) -> dict[str, str]:
    """Start the sandbox in the background unless it runs; return where it is reached."""
    folder = _sandbox_folder(data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    address = folder / "sandbox.env"
    with (folder / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _sandbox_answers(address):
            address.unlink(missing_ok=True)
            with (folder / "sandbox.log").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "vsvi_assets.cli", "sandbox", "--address-file", address],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            deadline = time.monotonic() + _SANDBOX_START_SECONDS
            while not _sandbox_answers(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ServiceError(f"The sandbox does not start; see {folder}/sandbox.log.")
                time.sleep(0.1)
    served = {name: value for name, value in dotenv_values(address).items() if value}
    del served["PID"]
    return served


def _sandbox_answers(address: Path) -> bool:
    url = dotenv_values(address).get("MAPILLARY_TILES_URL") if address.is_file() else None
    if not url:
        return False
    try:
        return requests.get(f"{url}/stats", timeout=5).ok
    except requests.ConnectionError:
        return False


def _stop_sandbox(data_dir: Path) -> bool:
    address = _sandbox_folder(data_dir) / "sandbox.env"
    running = _sandbox_answers(address)
    if running:
        os.kill(int(dotenv_values(address)["PID"] or 0), signal.SIGTERM)
    address.unlink(missing_ok=True)
    return running
