"""Starts and stops what runs beside Dagster: PostGIS, the server of the reports, the sandbox.

Where they are reached is written into a block of `.env`, which Dagster's own commands read,
so that `dagster dev` finds them once `vsvi up` was run. Nothing here changes the environment of
this process: what starts something returns the environment under which it is reached.
"""

import fcntl
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile
from urllib.parse import urlsplit

import yaml
from dotenv import dotenv_values
from dotenv.parser import parse_stream

from vsvi_assets.city import City, PlaceNotLookedUpError
from vsvi_assets.database.locks import lock_holders
from vsvi_assets.database.server import LocalPostgis
from vsvi_assets.files import TextFileError, atomic_write, read_text
from vsvi_assets.settings import Settings

ENV_FILE = Path(".env")
_BEGIN = "# Written by `vsvi up`; what is set outside of this block wins."
_END = "# End of what `vsvi up` wrote."
# However an editor has left its lines: with \r, with spaces, the last one without an end.
_BLOCK = re.compile(rf"(?:\r?\n)?{re.escape(_BEGIN)}.*?{re.escape(_END)}[^\n]*(?:\n|\Z)", re.DOTALL)
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


class ServiceError(Exception):
    """A service cannot be started or stopped; the message says what to do."""


@dataclass
class Started:
    """What runs: the environment under which it is reached, and a line on each for people."""

    environment: dict[str, str]
    lines: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """The settings of that environment."""
        return Settings.from_environment(self.environment)


def user_environment() -> dict[str, str]:
    """Return the environment of this process, and what the user set in `.env` where it is silent.

    What `vsvi up` wrote into `.env` is left out: it may be of another time.

    Raises
    ------
    ServiceError
        When `.env` cannot be read, or has a line that is no setting.
    """
    text = _env_text()
    for line in parse_stream(StringIO(text)):
        # What the line says is not repeated: it may be a token.
        if line.error:
            raise ServiceError(
                f"{ENV_FILE.absolute()}: line {line.original.line} is no setting. Write it as "
                "NAME=value, with quotes around a value that has spaces, or begin it with #."
            )
    text = _BLOCK.sub("", text)
    in_file = {name: value for name, value in dotenv_values(stream=StringIO(text)).items() if value}
    return in_file | os.environ


def start_postgis(environment: Mapping[str, str]) -> Started:
    """Start the project's own PostGIS server, unless the environment names another database.

    Raises
    ------
    LocalPostgisError, ServiceError, SettingError
        When it does not start.
    """
    started = Started(dict(environment))
    settings = started.settings
    if settings.postgres_url is None:
        _start_cluster(settings.machine_dir)
    return started


def start_all(
    environment: Mapping[str, str], cities: Collection[City | PlaceNotLookedUpError]
) -> Started:
    """Start all that `dagster dev` and runs need, and write the addresses to `.env`.

    That is PostGIS, the server of the reports and, where one of the cities uses it, the
    sandbox; each only where the environment does not name another one.

    Raises
    ------
    LocalPostgisError, ServiceError, SettingError
        When a service does not start, DAGSTER_HOME is another project's, or
        DAGSTER_POSTGRES_URL is no address that Dagster can use.
    """
    home = str(dagster_home(environment))
    started = Started({**environment, "DAGSTER_HOME": home})
    settings = started.settings
    _check_address(environment.get("DAGSTER_POSTGRES_URL"))
    found = {"DAGSTER_HOME": home, "VSVI_DAGSTER_DIR": str(settings.machine_dir / "dagster")}
    if not (settings.postgres_url and "DAGSTER_POSTGRES_URL" in environment):
        cluster = _start_cluster(settings.machine_dir)
        found |= dagster_settings(cluster)
        started.lines.append(f"PostGIS: {cluster.version()} in {cluster.folder}")
    if settings.pages_url is None:
        found |= _Server("pages", settings.machine_dir).start(environment)
        started.lines.append(
            f"Reports: {found['VSVI_PAGES_URL']}, with links from the assets' pages"
        )
    on_sandbox = ", ".join(city.name for city in cities if city.services == "sandbox")
    if on_sandbox and settings.sandbox_url is None:
        found |= _Server("sandbox", settings.machine_dir).start(environment)
        started.lines.append(
            f"Sandbox: {found['VSVI_SANDBOX_URL']}, in place of Mapillary and OSM for {on_sandbox}"
        )
    found = {name: value for name, value in found.items() if not environment.get(name)}
    _write_block(found)
    started.environment |= found
    return started


def stop_all(environment: Mapping[str, str]) -> list[str]:
    """Stop what `start_all` started, and say what that was.

    Raises
    ------
    ServiceError
        When a process uses it to run a city.
    """
    machine_dir = Settings.from_environment(environment).machine_dir
    cluster = LocalPostgis(machine_dir)
    runs_postgis = cluster.is_running()
    if runs_postgis and (holders := lock_holders(cluster.database())):
        raise ServiceError(
            f"A city is being run by {' and '.join(holders)}. Wait until it has ended, or stop it "
            "with Ctrl-C in its terminal."
        )
    stopped = []
    if _Server("pages", machine_dir).stop():
        stopped.append("Reports")
    if _Server("sandbox", machine_dir).stop():
        stopped.append("Sandbox")
    if runs_postgis:
        cluster.stop()
        stopped.append("PostGIS")
    return stopped


def dagster_home(environment: Mapping[str, str]) -> Path:
    """Return the folder of the project's dagster.yaml: DAGSTER_HOME, or the one we are in.

    Raises
    ------
    ServiceError
        When no dagster.yaml is there, or one of another project.
    """
    named = environment.get("DAGSTER_HOME")
    home = Path(named or Path.cwd()).expanduser()
    if home.is_absolute() and _is_ours(home / "dagster.yaml"):
        return home
    advice = (
        f"DAGSTER_HOME = {named!r} has to be the whole path of the folder with this project's "
        "dagster.yaml: set it so, or unset it."
        if named
        else "Run vsvi in the project's folder, or set DAGSTER_HOME to it."
    )
    raise ServiceError(f"There is no dagster.yaml of this project in {home}. {advice}")


def _check_address(dagster_url: str | None) -> None:
    """Refuse an address for which Dagster would look for another driver, or fail to read."""
    try:
        parts = urlsplit(dagster_url or "postgresql+psycopg2://")
        is_readable = parts.scheme == "postgresql+psycopg2" and parts.port != 0
    except ValueError:
        is_readable = False
    if not is_readable:
        raise ServiceError(
            "DAGSTER_POSTGRES_URL is not the address of a database for Dagster, such as "
            "postgresql+psycopg2://user:password@host:5432/database (with % written as %25)."
        )


def _is_ours(dagster_yaml: Path) -> bool:
    try:
        storage = yaml.safe_load(read_text(dagster_yaml))["storage"]
        return bool(storage["postgres"]["postgres_url"]["env"] == "DAGSTER_POSTGRES_URL")
    except (TextFileError, yaml.YAMLError, KeyError, TypeError):
        return False


def dagster_settings(cluster: LocalPostgis) -> dict[str, str]:
    """Return where Dagster's records are kept, and how: see `kept_connections`.

    Materializations of one step are stored together, up to so many at a time.
    """
    return {
        "DAGSTER_POSTGRES_URL": f"{cluster.dagster_url}?plugin=vsvi",
        "DAGSTER_EVENT_BATCH_SIZE": "200",
    }


def env_lines(values: Mapping[str, str]) -> str:
    """Return lines of settings that python-dotenv reads back as they are."""
    quoted = {
        name: value.replace("\\", "\\\\").replace("'", "\\'") for name, value in values.items()
    }
    return "".join(f"{name}='{value}'\n" for name, value in quoted.items())


def _start_cluster(data_dir: Path) -> LocalPostgis:
    _require_writable(data_dir)
    cluster = LocalPostgis(data_dir)
    cluster.start()
    return cluster


def _require_writable(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=data_dir):
            return
    except OSError as error:
        raise ServiceError(
            f"The folder {data_dir} cannot be written: {error.strerror}. Set VSVI_DATA_DIR to a "
            "folder of your own."
        ) from error


def _env_text() -> str:
    if not ENV_FILE.exists():
        return ""
    try:
        return read_text(ENV_FILE.absolute())
    except TextFileError as error:
        raise ServiceError(str(error)) from error


def _write_block(settings: Mapping[str, str]) -> None:
    before = _env_text()
    text = _BLOCK.sub("", before)
    if not settings and text == before:
        return
    if text and not text.endswith("\n"):
        text += "\n"
    # Dagster reads no other file, so where it is a link, the file that it leads to is rewritten.
    path = ENV_FILE.resolve()
    try:
        with atomic_write(path) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"{text}\n{_BEGIN}\n{env_lines(settings)}{_END}\n".lstrip("\n").encode())
    except OSError as error:
        raise ServiceError(
            f"{path} cannot be written: {error.strerror}. `vsvi up` puts there where Dagster "
            "finds its services: run it in a folder of your own."
        ) from error


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

    def start(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Start the server unless it runs; return the settings under which it is reached."""
        _require_writable(self._folder)
        log_path = self._folder / f"{self.command}.log"
        with (self._folder / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._runs():
                command = [sys.executable, "-m", "vsvi_assets.cli", self.command]
                with log_path.open("ab") as log:
                    process = subprocess.Popen(
                        [*command, "--address-file", self._address],
                        env=dict(environment),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                deadline = time.monotonic() + _START_SECONDS
                while not self._runs():
                    if process.poll() is not None or time.monotonic() > deadline:
                        process.kill()
                        raise ServiceError(f"`vsvi {self.command}` does not start; see {log_path}.")
                    time.sleep(0.1)
            served = self._served()
        del served["PID"]
        return served

    def stop(self) -> bool:
        """Stop the server, by force if it takes too long; return whether it ran."""
        if not self._runs():
            return False
        pid = int(self._served()["PID"])
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while self._runs():
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        return True

    def _served(self) -> dict[str, str]:
        """Return what the server wrote of itself; nothing where that is damaged."""
        try:
            served = dotenv_values(stream=StringIO(read_text(self._address)))
            url, process_id = served.values()
            if urlsplit(url or "").port and int(process_id or "") > 0:
                return {name: value for name, value in served.items() if value}
        except ValueError:  # as TextFileError
            pass
        return {}

    def _runs(self) -> bool:
        served = self._served()
        if not served:
            return False
        address = urlsplit(next(iter(served.values())))
        # Not by requests, which would ask a proxy of the environment for it.
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=5)
        try:
            # Another program may have taken the port since, but not the process id too.
            os.kill(int(served["PID"]), 0)
            connection.request("HEAD", "/")
            connection.getresponse()
        except TimeoutError:
            return True
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True
