import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from vsvi_assets.database import server as local_postgis
from vsvi_assets.database.server import LocalPostgis, LocalPostgisError
from vsvi_assets_tests.conftest import temporary_postgis

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user; the other tests ran as ordinary"
)


@pytest.fixture(scope="module")
def module_server() -> Iterator[LocalPostgis]:
    with temporary_postgis() as server:
        yield server


@pytest.fixture
def server(module_server: LocalPostgis) -> LocalPostgis:
    """A server that runs, of this module's own: its tests kill it."""
    module_server.start()
    return module_server


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def postmaster(server: LocalPostgis) -> int:
    return int((server.folder / "cluster" / "postmaster.pid").read_text().split()[0])


def in_process(function: Callable[[], None], user: str | None = None) -> multiprocessing.Process:
    """Start a function in a process of its own, as the given user."""

    def run() -> None:
        if user is not None:
            entry = pwd.getpwnam(user)
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
        function()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process  # type: ignore[return-value]


def succeeded(process: multiprocessing.Process) -> bool:
    process.join(120)
    return process.exitcode == 0


def test_both_databases_are_there_and_starting_again_changes_nothing(server: LocalPostgis) -> None:
    url, pid = server.vsvi_url, postmaster(server)

    server.start()

    assert server.is_running()
    assert (server.vsvi_url, postmaster(server)) == (url, pid)
    assert query(server.vsvi_url, "SELECT ST_AsText(ST_Point(1, 2))") == [("POINT(1 2)",)]
    assert query(server.dagster_url, "SELECT current_database()") == [("dagster",)]
    assert server.version().startswith("PostgreSQL ")
    assert "PostGIS 3" in server.version()


def test_two_processes_may_start_it_at_once() -> None:
    with temporary_postgis() as server:
        processes = [in_process(server.start) for _ in range(3)]

        assert {succeeded(process) for process in processes} == {True}
        assert query(server.vsvi_url, "SELECT 1") == [(1,)]


def test_stopping_ends_it_and_stopping_again_is_harmless(server: LocalPostgis) -> None:
    server.stop()
    server.stop()

    assert not server.is_running()
    with pytest.raises(psycopg2.OperationalError):
        query(server.vsvi_url, "SELECT 1")


def test_a_server_that_was_killed_comes_back_with_its_rows(server: LocalPostgis) -> None:
    query(server.vsvi_url, "CREATE TABLE kept AS SELECT 42 AS answer")
    query(server.vsvi_url, "CHECKPOINT")
    os.kill(postmaster(server), signal.SIGKILL)

    server.start()

    assert query(server.vsvi_url, "SELECT answer FROM kept") == [(42,)]


def test_a_process_id_in_use_again_is_not_taken_for_the_server(server: LocalPostgis) -> None:
    pid_file = server.folder / "cluster" / "postmaster.pid"
    stale = pid_file.read_text().splitlines()
    server.stop()
    with subprocess.Popen(["sleep", "60"], user=pid_file.parent.stat().st_uid) as bystander:
        pid_file.write_text("\n".join([str(bystander.pid), *stale[1:], ""]))
        os.chown(pid_file, pid_file.parent.stat().st_uid, -1)
        try:
            assert not server.is_running()
            server.start()
            assert query(server.vsvi_url, "SELECT 1") == [(1,)]
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_a_server_that_reacts_to_no_signal_is_stopped_and_comes_back(
    server: LocalPostgis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_postgis, "STOP_TIMEOUT_SECONDS", 2)
    query(server.vsvi_url, "CREATE TABLE survived AS SELECT 42 AS answer")
    query(server.vsvi_url, "CHECKPOINT")
    os.kill(postmaster(server), signal.SIGSTOP)

    server.stop()

    assert not server.is_running()
    server.start()
    assert query(server.vsvi_url, "SELECT answer FROM survived") == [(42,)]


def test_the_port_is_kept_and_another_is_chosen_where_it_is_taken(server: LocalPostgis) -> None:
    url = server.vsvi_url
    server.stop()
    server.start()
    assert server.vsvi_url == url

    server.stop()
    with socket.create_server(("127.0.0.1", int(url.split(":")[-1].split("/")[0]))):
        server.start()
        assert server.vsvi_url != url
        assert query(server.vsvi_url, "SELECT 1") == [(1,)]


def test_it_listens_on_loopback_alone(server: LocalPostgis) -> None:
    assert query(server.vsvi_url, "SHOW listen_addresses") == [("127.0.0.1",)]


def test_the_password_is_needed_and_only_in_the_file_of_its_owner(server: LocalPostgis) -> None:
    password = server.vsvi_url.split(":")[2].split("@")[0]
    holders = [
        path.name
        for path in server.folder.resolve().rglob("*")
        if path.is_file() and password.encode() in path.read_bytes()
    ]
    command_lines = b"".join(
        path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()
    )

    assert len(password) >= 40
    assert holders == ["pg_service.conf"]
    assert stat.S_IMODE((server.folder / "pg_service.conf").stat().st_mode) == 0o600
    assert password.encode() not in command_lines
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        query(server.vsvi_url.replace(password, "guess"), "SELECT 1")


def test_a_copy_of_the_data_folder_has_a_server_of_its_own(
    server: LocalPostgis, tmp_path: Path
) -> None:
    shutil.copytree(server.data_dir, tmp_path / "copy", symlinks=True)
    copy = LocalPostgis(tmp_path / "copy")
    try:
        copy.start()
        query(copy.vsvi_url, "CREATE TABLE only_in_the_copy (id int)")

        assert query(server.vsvi_url, "SELECT to_regclass('only_in_the_copy')") == [(None,)]
    finally:
        copy.stop()
        shutil.rmtree(copy.folder.resolve())


def test_a_moved_data_folder_keeps_its_server(tmp_path: Path) -> None:
    with temporary_postgis() as server:
        server.start()
        query(server.vsvi_url, "CREATE TABLE moved_along (id int)")
        server.stop()
        server.data_dir.rename(tmp_path / "moved")
        moved = LocalPostgis(tmp_path / "moved")
        try:
            moved.start()
            assert query(moved.vsvi_url, "SELECT to_regclass('moved_along')::text") == [
                ("moved_along",)
            ]
        finally:
            moved.stop()
            shutil.rmtree(moved.folder.resolve())


@needs_root
def test_as_root_it_runs_as_another_user_wherever_the_project_lies(server: LocalPostgis) -> None:
    # tempfile makes folders that nobody but root can pass through.
    assert stat.S_IMODE(server.data_dir.parent.stat().st_mode) == 0o700
    assert Path(f"/proc/{postmaster(server)}").stat().st_uid != 0


@needs_root
def test_a_strict_umask_does_not_keep_the_servers_user_out() -> None:
    with temporary_postgis() as server:
        before = os.umask(0o077)
        try:
            server.start()
        finally:
            os.umask(before)


@needs_root
def test_an_ordinary_user_has_it_in_the_data_folder(tmp_path: Path) -> None:
    base = Path("/tmp", f"vsvi-{tmp_path.name}-{os.getpid()}")
    data_dir = base / "Köln & 'Ümland' $HOME" / ("x" * 100)
    data_dir.mkdir(parents=True)
    shutil.chown(base, "nobody")
    shutil.chown(data_dir, "nobody")
    server = LocalPostgis(data_dir)

    def use() -> None:
        server.start()
        server.start()
        assert query(server.vsvi_url, "SELECT ST_SRID(ST_Point(1, 2, 4326))") == [(4326,)]
        assert not (data_dir / "postgis").is_symlink()
        assert Path(f"/proc/{postmaster(server)}").owner() == "nobody"
        server.stop()

    def use_as_root() -> None:
        server.start()
        assert Path(f"/proc/{postmaster(server)}").owner() == "nobody"

    try:
        assert succeeded(in_process(use, user="nobody"))
        # Root, who may have to help once, leaves it usable for its owner.
        assert succeeded(in_process(use_as_root))
        assert succeeded(in_process(use, user="nobody"))
    finally:
        server.stop()
        shutil.rmtree(base)


@needs_root
def test_another_users_server_is_refused(server: LocalPostgis) -> None:
    def use() -> None:
        with pytest.raises(LocalPostgisError, match="set up by user root: run as that user"):
            server.start()

    server.data_dir.parent.chmod(0o755)
    try:
        assert succeeded(in_process(use, user="nobody"))
    finally:
        server.data_dir.parent.chmod(0o700)


@needs_root
def test_a_folder_of_a_user_without_a_name_is_refused_by_number(tmp_path: Path) -> None:
    base = Path("/tmp", f"vsvi-{tmp_path.name}-{os.getpid()}")
    folder = base / "data" / "postgis"
    folder.mkdir(parents=True)
    shutil.chown(folder, 424242)
    server = LocalPostgis(base / "data")

    def use() -> None:
        for command in (server.start, server.is_running, server.stop):
            with pytest.raises(LocalPostgisError, match="set up by user 424242: run as"):
                command()

    try:
        shutil.chown(base / "data", "nobody")
        assert succeeded(in_process(use, user="nobody"))
        (folder / "file").touch()
        with pytest.raises(LocalPostgisError, match="postgis holds files, but no PostGIS server"):
            server.start()  # by root
    finally:
        shutil.rmtree(base)


@needs_root
def test_a_data_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    base = Path("/tmp", f"vsvi-{tmp_path.name}-{os.getpid()}")
    (base / "closed").mkdir(parents=True)
    closed = [base / "closed", base / "closed" / "data", Path("/nowhere/vsvi")]

    def use() -> None:
        for folder in closed:
            with pytest.raises(LocalPostgisError, match=f"{folder} cannot be written .*VSVI_DATA"):
                LocalPostgis(folder).start()

    try:
        assert succeeded(in_process(use, user="nobody"))
    finally:
        shutil.rmtree(base)


def test_a_failing_start_shows_the_end_of_the_servers_log(server: LocalPostgis) -> None:
    query(server.vsvi_url, "ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'")
    server.stop()
    settings = server.folder / "cluster" / "postgresql.auto.conf"
    try:
        with pytest.raises(LocalPostgisError, match="no_such_library"):
            server.start()
    finally:
        settings.write_text("")


def test_a_cluster_of_another_postgresql_is_refused(server: LocalPostgis) -> None:
    server.stop()
    version = server.folder / "cluster" / "PG_VERSION"
    installed = version.read_text()
    version.write_text("9\n")
    try:
        with pytest.raises(LocalPostgisError, match="Install PostgreSQL 9 with PostGIS, or move"):
            LocalPostgis(server.data_dir).start()
    finally:
        version.write_text(installed)


def test_without_server_programs_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local_postgis, "_program_folders", lambda: iter([tmp_path]))
    with pytest.raises(LocalPostgisError, match=r"No PostgreSQL server with PostGIS .* install"):
        LocalPostgis(tmp_path / "data").start()
