"""A private PostgreSQL + PostGIS server with nothing to administer.

It runs from the server programs that are installed on the machine (Debian and Ubuntu
packages, Homebrew, conda or PATH), under the user who starts it, keeps everything in one
folder beside the rest of the project's data, and listens on 127.0.0.1 alone, with a random
password. It has two databases: `vsvi` for the cities' tables, with PostGIS, and `dagster`
for Dagster's runs, events and schedules.

As root, PostgreSQL refuses to run. The server then runs as the user `postgres` (or
`nobody`), from a folder under /var/lib/vsvi which that user can reach wherever the project
lies; `<data>/postgis` is a symbolic link to it.

`<data>/postgis/pg_service.conf` holds address and password in libpq's own format, readable
by its owner alone. psql, ogr2ogr and QGIS connect with it when PGSERVICEFILE names it and
the service is `vsvi`.
"""

import configparser
import fcntl
import hashlib
import hmac
import os
import pwd
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql

from vsvi_assets.database.connection import Postgis, without_libpq_variables
from vsvi_assets.database.debian import UNPACKED, library_path
from vsvi_assets.database.queries import usable_versions
from vsvi_assets.files import atomic_write, sync_folder
from vsvi_assets.settings import Settings

ROOT_FOLDER = Path("/var/lib/vsvi")
SERVICE = "vsvi"
SUPERUSER = "vsvi"
# Below the ports that Linux and macOS hand out to outgoing connections, so that the one
# chosen at first is very likely still free at the next start.
PORTS = range(20_000, 30_000)
# Long enough for crash recovery to replay max_wal_size of a bulk load on a slow disk.
START_TIMEOUT_SECONDS = 600
START_ATTEMPTS = 5
STOP_TIMEOUT_SECONDS = 60
_PROC = Path("/proc")
"""Linux's list of processes."""

SETTINGS = """\
# Written again at each start of the server. To change a setting for good, use ALTER SYSTEM.
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 200                   # Dagster opens several per process

shared_buffers = 1GB
effective_cache_size = 4GB
work_mem = 64MB
maintenance_work_mem = 512MB
# Parallel queries share memory through files of the cluster: /dev/shm is 64 MB in a container,
# and systemd empties it of what a user has there who logs out.
dynamic_shared_memory_type = mmap
random_page_cost = 1.1                  # solid state disks
jit = off                               # compiles longer than these queries run

# Nothing replicates from here, so a table that is loaded in the transaction that created it
# needs no write-ahead log.
wal_level = minimal
max_wal_senders = 0
max_wal_size = 4GB
checkpoint_timeout = 15min
# A crash can lose the last half second of commits, in the order in which they were made,
# and never damages what was committed before. Files are on disk before Dagster's event that
# says so, and both databases share one log, so an event that survives is always true; a lost
# one is made up by the next run, which finds the file and fetches nothing.
synchronous_commit = off

log_checkpoints = off
timezone = 'UTC'
log_timezone = 'UTC'
"""


class LocalPostgisError(Exception):
    """The private PostGIS server cannot be used; the message says what to do."""


@dataclass(frozen=True)
class ServerPrograms:
    """The folder of one installation's server programs, and its version, such as "15.20"."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        return int(re.findall(r"\d+", self.version)[0])


class LocalPostgis:
    """The private server of one data folder.

    Parameters
    ----------
    data_dir : Path
        The project's data folder (VSVI_DATA_DIR). The server's own folder is
        `<data_dir>/postgis`.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.absolute()
        self.folder = self.data_dir / "postgis"

    def is_installed(self) -> bool:
        """Return whether this machine has the programs of a server with PostGIS."""
        return any(map(self._inspect, _program_folders()))

    def start(self) -> None:
        """Make the server accept connections, with its databases in place.

        Sets the server up where there is none and starts it where it does not run. Several
        processes may call this at the same time.

        Raises
        ------
        LocalPostgisError
            Where no server programs are installed, those installed cannot read the
            folder's data, the folder belongs to another user, or the server fails to
            start. The message says what to do, with the end of the server's log.
        """
        self._refuse_other_owner()
        with self._lock():
            if self._is_link_of_a_copy() or not self._cluster.exists():
                self._initialize()
            self._start_and_wait()
            self._create_databases()

    def stop(self) -> None:
        """Stop the server, ending its connections; do nothing where it does not run."""
        if not self.is_running():
            return
        with self._lock():
            for mode in ("fast", "immediate"):
                wait = ("-m", mode, "-t", STOP_TIMEOUT_SECONDS)
                if self._run("pg_ctl", "stop", "-D", "cluster", *wait).returncode == 0:
                    break
            else:
                self._kill()
        if self.is_running():
            raise LocalPostgisError(f"The PostGIS server does not stop.{self._end_of_log()}")

    def _kill(self) -> None:
        """End a server that reacts to no signal, which loses nothing that was committed."""
        try:
            pid = int(self._pid_file.read_text().split()[0])
        except FileNotFoundError:
            return
        if self._is_here(_PROC / str(pid)):
            self._run("pg_ctl", "kill", "KILL", pid)
            self._wait_for_the_last_process()

    def is_running(self) -> bool:
        """Return whether this folder's server runs (it may still be starting up)."""
        self._refuse_other_owner()
        if not self._cluster.exists():
            return False
        status = self._run("pg_ctl", "status", "-D", "cluster")
        return status.returncode == 0 and self._has_processes()

    def database(self) -> Postgis:
        """Return the database of the cities' tables."""
        return Postgis(self.vsvi_url, is_own=True)

    @property
    def vsvi_url(self) -> str:
        """SQLAlchemy address, with the password, of the database of the cities' tables."""
        return self._url("vsvi")

    @property
    def dagster_url(self) -> str:
        """SQLAlchemy address, with the password, of the database of Dagster's storage."""
        return self._url("dagster")

    @property
    def service_file(self) -> Path:
        """Where libpq finds address and password of the service `vsvi`."""
        return self.folder / "pg_service.conf"

    def version(self) -> str:
        """Return the running server's versions: "PostgreSQL 15.20, PostGIS 3.3.2"."""
        return usable_versions(self.database())

    # Set-up

    def _initialize(self) -> None:
        initdb = self._programs.folder / "initdb"
        if os.geteuid() == 0:
            self._link_folder_for_root()
        self.folder.mkdir(mode=0o700, exist_ok=True)

        # initdb works under another name, so that an interrupted one is not taken for a cluster.
        unfinished = self._cluster.with_name("cluster.unfinished")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        password = secrets.token_urlsafe(32)
        with tempfile.NamedTemporaryFile("w", dir=self.folder.resolve()) as password_file:
            password_file.write(_scram_verifier(password))
            password_file.flush()
            if os.geteuid() == 0:
                for path in (unfinished, password_file.name):
                    os.chown(path, self._privileges["user"], self._privileges["group"])
            made = self._execute(
                initdb, "-D", unfinished, "--username", SUPERUSER,
                "--pwfile", password_file.name, "--auth", "scram-sha-256",
                "--encoding", "UTF8", "--no-locale",
            )  # fmt: skip
        if made.returncode:
            raise LocalPostgisError(
                f"PostgreSQL's initdb failed in {self.folder}:\n{made.stderr.strip()}"
            )
        self._write_service(free_port(), password)
        unfinished.rename(self._cluster)
        sync_folder(self._cluster.parent)

    def _link_folder_for_root(self) -> None:
        """Make `folder` a link to a new folder which the server's user can reach."""
        if self.folder.is_dir() and not self.folder.is_symlink():
            try:
                self.folder.rmdir()
            except OSError as error:
                raise LocalPostgisError(
                    f"{self.folder} holds files, but no PostGIS server. Move it away, or set "
                    "VSVI_DATA_DIR to another folder."
                ) from error
        target = ROOT_FOLDER / secrets.token_hex(8)
        for folder in (ROOT_FOLDER, target):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        (target / "data_dir").write_text(str(self.data_dir), encoding="utf-8")
        self.folder.unlink(missing_ok=True)
        self.folder.symlink_to(target)

    def _is_link_of_a_copy(self) -> bool:
        """Return whether `folder` links to the server of the data folder this is a copy of.

        A data folder that was moved keeps its server.
        """
        if not (self.folder.is_symlink() and (self.folder / "data_dir").exists()):
            return False
        original = Path((self.folder / "data_dir").read_text(encoding="utf-8"))
        return (
            (original / "postgis").exists()
            and (original / "postgis").samefile(self.folder)
            and not original.samefile(self.data_dir)
        )

    def _create_databases(self) -> None:
        with closing(self._connect("postgres")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT datname FROM pg_database")
                present = {name for (name,) in cursor.fetchall()}
                for database in {"vsvi", "dagster"} - present:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        with closing(self._connect("vsvi")) as connection, connection:
            connection.cursor().execute("CREATE EXTENSION IF NOT EXISTS postgis")

    # Start

    def _start_and_wait(self) -> None:
        """Return as soon as the server accepts connections, whoever started it."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            if not self.is_running():
                self._start_server()
            # It may have been killed just now, or be starting up after that.
            ready = self._run("pg_isready", "-h", "127.0.0.1", "-p", self._service()["port"])
            if ready.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise LocalPostgisError(
                    f"The PostGIS server does not accept connections.{self._end_of_log()}"
                )
            time.sleep(0.1)

    def _start_server(self) -> None:
        service = self._service()
        port = int(service["port"])
        for _ in range(START_ATTEMPTS):
            # Those of a server that was killed end by themselves.
            self._wait_for_the_last_process()
            if not self._has_processes():
                # PostgreSQL itself discards the file of a process that is gone, but not where
                # that process id is in use again, as after a reboot or in another container.
                self._pid_file.unlink(missing_ok=True)
            if not _is_free(port):
                port = free_port()
                self._write_service(port, service["password"])
            self._write("server.conf", SETTINGS.format(port=port), mode=0o644)
            if self._log.exists():
                self._log.replace(self._log.with_suffix(".previous.log"))
            # Relative, since pg_ctl hands the paths to a shell.
            started = self._run(
                "pg_ctl", "start", "-D", "cluster", "-l", "cluster/server.log",
                "-o", "-c config_file=server.conf", "-w", "-t", START_TIMEOUT_SECONDS,
            )  # fmt: skip
            if started.returncode == 0:
                return
            # Another program can take the port just now: that passes.
            if _is_free(port):
                break
        raise LocalPostgisError(f"The PostGIS server does not start.{self._end_of_log()}")

    def _wait_for_the_last_process(self) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        while _PROC.is_dir() and self._has_processes() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _has_processes(self) -> bool:
        """Return whether a process of this server is there; True where that cannot be seen.

        All of them, and no others, have the cluster as their working directory. The process ids
        in postmaster.pid prove nothing: they may be in use again, or be those of another machine
        from which the folder was copied, or of a process that has ended and nobody reaped.
        """
        if not _PROC.is_dir():
            return True
        owner = self._cluster.stat().st_uid
        processes = []
        for process in _PROC.glob("[0-9]*"):
            with suppress(FileNotFoundError):
                if process.stat().st_uid == owner:
                    processes.append(process)
        return self._is_here(*processes)

    def _is_here(self, *processes: Path) -> bool:
        """Return whether one of these folders of /proc is of a process of this server."""
        # By the server's user, since root in a container may not read it.
        places = self._execute("readlink", *(process / "cwd" for process in processes))
        return str(self._cluster) in places.stdout.splitlines()

    def _end_of_log(self) -> str:
        if not self._log.exists():
            return ""
        lines = self._log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f" The end of {self._log}:", *lines])

    # Connections

    def _service(self) -> configparser.SectionProxy:
        parser = configparser.ConfigParser(interpolation=None)
        if not parser.read(self.service_file):
            raise LocalPostgisError(
                f"There is no PostGIS server in {self.folder} yet: run `vsvi up`, or set "
                "VSVI_POSTGRES_URL."
            )
        return parser[SERVICE]

    def _write_service(self, port: int, password: str) -> None:
        text = (
            f"[{SERVICE}]\nhost=127.0.0.1\nport={port}\ndbname=vsvi\n"
            f"user={SUPERUSER}\npassword={password}\n"
        )
        self._write(self.service_file.name, text, mode=0o600)

    def _url(self, database: str) -> str:
        service = self._service()
        return (
            f"postgresql+psycopg2://{service['user']}:{service['password']}"
            f"@{service['host']}:{service['port']}/{database}"
        )

    def _connect(self, database: str) -> psycopg2.extensions.connection:
        options: dict[str, Any] = {**self._service(), "dbname": database}
        with without_libpq_variables():
            return psycopg2.connect(**options)

    # Files and processes

    @property
    def _cluster(self) -> Path:
        # Without the link, which need not lie where the server's user can reach it.
        return self.folder.resolve() / "cluster"

    @property
    def _log(self) -> Path:
        return self._cluster / "server.log"

    @property
    def _pid_file(self) -> Path:
        return self._cluster / "postmaster.pid"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            lock = (self.data_dir / ".postgis.lock").open("w")
        except OSError as error:
            raise LocalPostgisError(
                f"The data folder {self.data_dir} cannot be written ({error.strerror}). Set "
                "VSVI_DATA_DIR to a folder of your own."
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, name: str, text: str, mode: int) -> None:
        owner = self.folder.stat()
        with atomic_write(self.folder / name) as file:
            os.fchmod(file.fileno(), mode)
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(text.encode())

    def _refuse_other_owner(self) -> None:
        if not self.folder.exists() or os.geteuid() in (0, self.folder.stat().st_uid):
            return
        try:
            owner = self.folder.owner()
        except KeyError:  # as in a container, or on a network's disk
            owner = str(self.folder.stat().st_uid)
        raise LocalPostgisError(
            f"The PostGIS server in {self.folder} was set up by user {owner}: "
            "run as that user, or set VSVI_DATA_DIR to a folder of your own."
        )

    @cached_property
    def _privileges(self) -> dict[str, Any]:
        """Whom the server's programs run as: root hands over to the owner of the cluster."""
        if os.geteuid() != 0:
            return {}
        if self._cluster.exists() and self._cluster.stat().st_uid != 0:
            owner = self._cluster.stat()
            uid, gid = owner.st_uid, owner.st_gid
        else:
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                user = pwd.getpwnam("nobody")
            uid, gid = user.pw_uid, user.pw_gid
        return {"user": uid, "group": gid, "extra_groups": []}

    @cached_property
    def _programs(self) -> ServerPrograms:
        found = [programs for folder in _program_folders() if (programs := self._inspect(folder))]
        if not found:
            raise LocalPostgisError(
                f"No PostgreSQL server with PostGIS is installed. {_how_to_install()}"
            )
        if not self._cluster.exists():
            return max(found, key=lambda programs: programs.major)
        major = int((self._cluster / "PG_VERSION").read_text())
        for programs in found:
            if programs.major == major:
                return programs
        raise LocalPostgisError(
            f"{self.folder} was made by PostgreSQL {major}, and the servers with PostGIS on this "
            f"machine are {', '.join(programs.version for programs in found)}. Install PostgreSQL "
            f"{major} with PostGIS, or move {self.folder} away to start with an empty server."
        )

    def _inspect(self, folder: Path) -> ServerPrograms | None:
        """Return the server in `folder` if it is whole, has PostGIS and can be run."""
        if not all((folder / name).exists() for name in ("initdb", "pg_ctl", "pg_config")):
            return None
        try:
            version = self._execute(folder / "postgres", "--version")
            sharedir = self._execute(folder / "pg_config", "--sharedir")
        except (FileNotFoundError, PermissionError):
            return None
        number = re.search(r"\d[\w.]*", version.stdout)
        if not number or not Path(sharedir.stdout.strip(), "extension/postgis.control").exists():
            return None
        return ServerPrograms(folder, number[0])

    def _run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run one of the server's programs in `folder`."""
        return self._execute(self._programs.folder / program, *arguments, cwd=self.folder.resolve())

    def _execute(
        self, program: Path | str, *arguments: object, cwd: Path = Path("/")
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as the server's user, in an environment that holds no secrets."""
        libraries = library_path(UNPACKED) if Path(program).is_relative_to(UNPACKED) else {}
        return subprocess.run(
            [str(program), *map(str, arguments)],
            cwd=cwd,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"} | libraries,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            umask=0o077,
            **self._privileges,
        )


def project_database(settings: Settings) -> Postgis:
    """Return the database of VSVI_POSTGRES_URL, or else that of the project's own server.

    It starts nothing: the server has to run already.

    Raises
    ------
    LocalPostgisError
        When the project has no server yet.
    """
    url = settings.postgres_url
    return Postgis(url) if url else LocalPostgis(settings.machine_dir).database()


def _program_folders() -> Iterator[Path]:
    """Yield the folders in which PostgreSQL's server programs may lie."""
    if conda := os.environ.get("CONDA_PREFIX"):
        yield Path(conda, "bin")
    yield from UNPACKED.glob("usr/lib/postgresql/*/bin")
    for pattern in (
        "usr/lib/postgresql/*/bin",
        "usr/pgsql-*/bin",
        "opt/homebrew/opt/postgresql@*/bin",
        "usr/local/opt/postgresql@*/bin",
    ):
        yield from Path("/").glob(pattern)
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent


def _how_to_install() -> str:
    if os.environ.get("CONDA_PREFIX"):
        return "Install one with: conda install -c conda-forge postgis"
    if sys.platform == "darwin":
        return "Install one with: brew install postgis"
    if shutil.which("apt-get"):
        return "Install one with: sudo apt-get install --no-install-recommends postgresql-postgis"
    return "Install PostgreSQL's server and its PostGIS extension with your package manager."


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As PostgreSQL itself does: connections that are being closed do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(before: int | None = None) -> int:
    """Return the port of before where it is free, else one that will likely be so for long."""
    if before and _is_free(before):
        return before
    return next(port for port in random.sample(PORTS, len(PORTS)) if _is_free(port))


def _scram_verifier(password: str) -> str:
    """Return what PostgreSQL stores of a password (RFC 5802), so that it never sees it.

    One iteration in place of 4096: iterations make guessing slow, which 256 random bits do
    not need, and every new connection would pay for them.
    """
    salt, iterations = secrets.token_bytes(16), 1
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"
