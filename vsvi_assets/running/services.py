"""What runs beside Dagster: the PostGIS cluster, the server of the coverage reports and,
without a token, the sandbox.

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
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import requests
from dotenv import dotenv_values

from vsvi_assets.database.server import LocalPostgis
from vsvi_assets.files import atomic_write
from vsvi_assets.settings import Settings, TokenMissingError

ENV_FILE = Path(".env")
_BEGIN = "# Written by `vsvi up`; what is set outside of this block wins."
_END = "# End of what `vsvi up` wrote."
_BLOCK = re.compile(rf"\n?{re.escape(_BEGIN)}.*?{re.escape(_END)}\n", re.DOTALL)
_START_SECONDS = 60


class ServiceError(Exception):
    """A service cannot be started or stopped; the message says what to do."""


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
    if settings.pages_url is None:
        found |= _Server("pages", settings.data_dir).start()
        lines.append(f"Reports: {found['VSVI_PAGES_URL']}, with links from the assets' pages")
    for_this_process = dict(found)
    if sandbox or (sandbox is None and _wants_sandbox(settings)):
        served = _Server("sandbox", settings.data_dir).start()
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
    if _Server("pages", data_dir).stop():
        stopped.append("Reports")
    if _Server("sandbox", data_dir).stop():
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


@dataclass(frozen=True)
class _Server:
    """A server of the project's own, which `vsvi` runs in the background.

    Attributes
    ----------
    command
        Of `vsvi`; also names the server's folder, with its log and its address, which it
        writes as lines of settings, the first of them an URL, once it answers.
    data_dir
        Holds the folder.
    """

    command: str
    data_dir: Path

    @property
    def _folder(self) -> Path:
        return self.data_dir / self.command

    @property
    def _address(self) -> Path:
        return self._folder / f"{self.command}.env"

    def start(self) -> dict[str, str]:
        """Start the server unless it runs; return the settings under which it is reached."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log_path = self._folder / f"{self.command}.log"
        with (self._folder / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._runs():
                command = [sys.executable, "-m", "vsvi_assets.cli", self.command]
                with log_path.open("ab") as log:
                    process = subprocess.Popen(
                        [*command, "--address-file", self._address],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                deadline = time.monotonic() + _START_SECONDS
                while not self._runs():
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise ServiceError(f"`vsvi {self.command}` does not start; see {log_path}.")
                    time.sleep(0.1)
            served = self._served()
        del served["PID"]
        return served

    def stop(self) -> bool:
        """Stop the server; return whether it ran."""
        if not self._runs():
            return False
        os.kill(int(self._served()["PID"]), signal.SIGTERM)
        while self._runs():
            time.sleep(0.05)
        return True

    def _served(self) -> dict[str, str]:
        served = dotenv_values(self._address) if self._address.is_file() else {}
        return {name: value for name, value in served.items() if value}

    def _runs(self) -> bool:
        served = self._served()
        if not served:
            return False
        try:
            # Another program may have taken the port since, but not the process id too.
            os.kill(int(served["PID"]), 0)
            requests.head(next(iter(served.values())), timeout=5)
        except (ProcessLookupError, PermissionError, requests.ConnectionError):
            return False
        return True
