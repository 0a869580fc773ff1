"""What runs beside Dagster is found, started and stopped, and what is wrong is said in a line."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from tempfile import gettempdir

import pytest
from click.testing import CliRunner
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from vsvi_assets import cli
from vsvi_assets.database import server
from vsvi_assets.database.server import LocalPostgisError
from vsvi_assets.running import services
from vsvi_assets.running.services import ServiceError, start_all, stop_all, user_environment
from vsvi_assets.sandbox import Sandbox
from vsvi_assets_tests.dagster_internals import InstanceRef, get_env_var_dict
from vsvi_assets_tests.project import BOX, small_world

PROJECT = Path(__file__).parents[2]
ELSEWHERE = {
    "VSVI_POSTGRES_URL": "postgresql+psycopg2://127.0.0.1:9/tables",
    "DAGSTER_POSTGRES_URL": "postgresql+psycopg2://127.0.0.1:9/dagster",
    "VSVI_PAGES_URL": "http://127.0.0.1:9",
}
"""An environment in which nothing has to be started."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, which we are in, with an apostrophe in its path."""
    folder = tmp_path / "O'Brien"
    folder.mkdir()
    shutil.copy(PROJECT / "dagster.yaml", folder)
    monkeypatch.chdir(folder)
    for name in list(os.environ):
        if name.startswith(("VSVI_", "DAGSTER_", "MAPILLARY_", "OVERPASS_")):
            monkeypatch.delenv(name)
    return folder


def test_dagster_reads_what_is_written_to_env(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text("VSVI_CONTACT=me@example.org")
    before = dict(os.environ)
    environment = user_environment() | ELSEWHERE
    started = start_all(environment, [])
    assert started.environment["DAGSTER_HOME"] == str(folder)
    assert dict(os.environ) == before
    expected = {
        "VSVI_CONTACT": "me@example.org",
        "DAGSTER_HOME": str(folder),
        "VSVI_DAGSTER_DIR": str(folder / "data/dagster"),
    }
    assert get_env_var_dict(str(folder)) == expected
    assert "DAGSTER_HOME" not in user_environment()  # what `vsvi up` wrote is no setting of theirs
    start_all(environment | {"VSVI_DATA_DIR": str(folder / "elsewhere")}, [])
    monkeypatch.setenv("VSVI_DAGSTER_DIR", get_env_var_dict(str(folder))["VSVI_DAGSTER_DIR"])
    reference = InstanceRef.from_dir(str(folder))
    assert reference.local_artifact_storage.storage_dir == str(folder / "elsewhere/dagster/storage")


def test_the_users_own_settings_win(folder: Path) -> None:
    (folder / ".env").write_text("VSVI_DAGSTER_DIR=/logs\nVSVI_RETRY_DELAY=7\n")
    os.environ["VSVI_RETRY_DELAY"] = "8"
    try:
        started = start_all(user_environment() | ELSEWHERE, [])
    finally:
        del os.environ["VSVI_RETRY_DELAY"]
    assert started.settings.retry_delay == 8
    assert started.environment["VSVI_DAGSTER_DIR"] == "/logs"
    assert (folder / ".env").read_text().count("VSVI_DAGSTER_DIR") == 1


def test_an_env_file_that_is_a_link_stays_one(folder: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("MAPILLARY_TOKEN='MLY|1|x'\n")
    (folder / ".env").symlink_to(secrets)
    start_all(user_environment() | ELSEWHERE, [])
    assert (folder / ".env").is_symlink()
    assert dotenv_values(secrets)["MAPILLARY_TOKEN"] == "MLY|1|x"
    assert dotenv_values(secrets)["DAGSTER_HOME"] == str(folder)
    secrets.write_text("MAPILLARY_TOKEN='MLY|2|y'\n")
    assert user_environment()["MAPILLARY_TOKEN"] == "MLY|2|y"


def test_an_env_file_of_windows_is_read_or_named(folder: Path) -> None:
    (folder / ".env").write_bytes("VSVI_DATA_DIR=Zürich\r\n".encode("utf-16"))
    assert user_environment()["VSVI_DATA_DIR"] == "Zürich"
    (folder / ".env").write_bytes("VSVI_DATA_DIR=Zürich\r\n".encode("latin-1"))
    with pytest.raises(ServiceError, match=r"\.env is not in UTF-8.*Save it as UTF-8"):
        user_environment()


@pytest.mark.parametrize(("end", "last_end"), [("\r\n", "\r\n"), ("  \n", "  \n"), ("\n", "")])
def test_what_vsvi_wrote_is_known_again_after_any_editor(
    folder: Path, end: str, last_end: str
) -> None:
    (folder / ".env").write_text("VSVI_CONTACT=me@example.org\n")
    start_all(user_environment() | ELSEWHERE, [])
    lines = (folder / ".env").read_text().splitlines()
    (folder / ".env").write_bytes((end.join(lines) + last_end).encode())
    assert user_environment()["VSVI_CONTACT"] == "me@example.org"
    assert "DAGSTER_HOME" not in user_environment()
    start_all(user_environment() | ELSEWHERE, [])
    assert dotenv_values(folder / ".env")["VSVI_CONTACT"] == "me@example.org"
    assert (folder / ".env").read_text().count("DAGSTER_HOME") == 1


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z][A-Z_]{0,9}", fullmatch=True),
        st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1).filter(
            lambda value: "${" not in value
        ),
    )
)
def test_values_are_read_back_as_they_were(values: dict[str, str]) -> None:
    assert dotenv_values(stream=StringIO(services.env_lines(values))) == values


def test_dagster_home_of_another_project(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for home in (str(tmp_path / "gone"), "~/no-such-folder", "relative", str(other)):
        with pytest.raises(
            ServiceError, match=r"no dagster\.yaml of this project in .*DAGSTER_HOME = "
        ):
            start_all(ELSEWHERE | {"DAGSTER_HOME": home}, [])
    (other / "dagster.yaml").write_text("telemetry: {enabled: false}")
    with pytest.raises(
        ServiceError, match=r"no dagster\.yaml of this project in .*DAGSTER_HOME = "
    ):
        start_all(ELSEWHERE | {"DAGSTER_HOME": str(other)}, [])
    (folder / "dagster.yaml").unlink()
    with pytest.raises(ServiceError, match=r"no dagster\.yaml .*Run vsvi in the project's folder"):
        start_all(ELSEWHERE, [])


def test_the_home_folder_may_be_written_as_a_tilde(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    started = start_all(ELSEWHERE | {"DAGSTER_HOME": "~/O'Brien"}, [])
    assert started.environment["DAGSTER_HOME"] == str(folder)


def test_folders_that_cannot_be_used_are_named(folder: Path) -> None:
    """As root nothing is forbidden, so a file stands where the folder is to be."""
    (folder / "taken").write_text("")
    for data_dir in (folder / "taken", folder / "taken/data"):
        with pytest.raises(ServiceError, match=r"taken.* cannot be written: .*Set VSVI_DATA_DIR"):
            start_all({"VSVI_DATA_DIR": str(data_dir)}, [])
    (folder / ".env").mkdir()
    with pytest.raises(ServiceError, match=r"\.env cannot be read: Is a directory"):
        user_environment()


def open_to_all(folder: Path) -> None:
    """Let other users reach a folder below pytest's own."""
    for path in (folder, *folder.parents):
        if Path(gettempdir()) in path.parents:
            path.chmod(0o755)


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Be a user who may write nowhere here."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_folders_of_others_are_named(
    folder: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    open_to_all(folder)
    (folder / "data").mkdir()
    tmp_path.chmod(0o555)
    (folder / "data").chmod(0o555)
    folder.chmod(0o555)
    request.getfixturevalue("ordinary_user")
    for data_dir in (folder / "data", Path("/nowhere/vsvi"), tmp_path / "data"):
        with pytest.raises(
            ServiceError, match="Set VSVI_DATA_DIR to a folder of your own"
        ) as error:
            start_all({"VSVI_DATA_DIR": str(data_dir)}, [])
        assert f"The folder {data_dir} cannot be written: Permission denied" in str(error.value)
    with pytest.raises(ServiceError, match=r"\.env cannot be written: Permission denied"):
        start_all(ELSEWHERE, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_server_of_a_user_without_a_name_is_named_by_number(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    open_to_all(folder)
    (folder / "data/postgis").mkdir(parents=True)
    (folder / "data").chmod(0o777)
    os.chown(folder / "data/postgis", 424242, 424242)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(LocalPostgisError, match="was set up by user 424242: run as that user"):
        start_all({}, [])


STUBBORN = """
import http.server, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_a_server_that_ignores_a_signal_is_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_STOP_SECONDS", 0.5)
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    port = process.stdout.readline().strip()
    address = {"VSVI_PAGES_URL": f"http://127.0.0.1:{port}", "PID": str(process.pid)}
    (folder / "data/pages").mkdir(parents=True)
    (folder / "data/pages/pages.env").write_text(services.env_lines(address))
    began = time.monotonic()
    assert stop_all({}) == ["Reports"]
    assert time.monotonic() - began < 10
    assert process.wait(10) == -signal.SIGKILL
    process.stdout.close()


@pytest.mark.parametrize("line", ["MLY|a token without a name", "VSVI_CONTACT='me@example.org"])
def test_a_line_of_env_that_is_no_setting_is_named_and_not_repeated(
    folder: Path, line: str
) -> None:
    start_all(user_environment() | ELSEWHERE, [])
    with (folder / ".env").open("a") as file:
        file.write(f"VSVI_TILES_PER_MINUTE=20\n{line}\n")
    at = len((folder / ".env").read_text().splitlines())
    with pytest.raises(ServiceError, match=rf"\.env: line {at} is no setting") as raised:
        user_environment()
    assert line not in str(raised.value)


@pytest.mark.parametrize("command", ["pages", "sandbox"])
def test_a_server_comes_back_to_its_port_unless_that_is_taken(folder: Path, command: str) -> None:
    server = services._Server(command, folder / "data")
    environment = {**os.environ, "VSVI_DATA_DIR": str(folder / "data")}
    try:
        first = server.start(environment)
        assert server.stop()
        assert server.start(environment) == first
        assert server.stop()
        os.waitpid(int(server._served()["PID"]), 0)  # until then it seems to run
        (url,) = first.values()
        with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))):
            assert server.start(environment) != first
    finally:
        server.stop()


def test_servers_on_this_machine_are_found_behind_any_proxy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (folder / "data/sandbox").mkdir(parents=True)
    with Sandbox(small_world(), port=0) as sandbox:
        (folder / "data/sandbox/sandbox.env").write_text(
            services.env_lines({"VSVI_SANDBOX_URL": sandbox.url, "PID": str(os.getpid())})
        )
        server = services._Server("sandbox", folder / "data")
        assert server.start(os.environ) == {"VSVI_SANDBOX_URL": sandbox.url}


@pytest.mark.parametrize(
    "address",
    [
        "nonsense",
        "mysql://u:secret@127.0.0.1/d",
        "postgresql://u:secret@127.0.0.1/d",
        "postgresql+psycopg2://u:secret@127.0.0.1:port/d",
        "postgresql+psycopg2://u:secret@[::1/d",
    ],
)
def test_an_address_that_dagster_cannot_use_is_refused(folder: Path, address: str) -> None:
    with pytest.raises(ServiceError, match="DAGSTER_POSTGRES_URL is not the address") as refused:
        start_all(ELSEWHERE | {"DAGSTER_POSTGRES_URL": address}, [])
    assert "secret" not in str(refused.value)
    assert not (folder / ".env").exists()


@pytest.fixture
def project_by_env(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose `.env` names its folders, and a database that is away."""
    (folder / "mine").mkdir()
    (folder / "mine/town.json").write_text(json.dumps({"bounding_box": BOX, "services": "sandbox"}))
    (folder / ".env").write_text(
        "VSVI_CITIES_DIR=mine\nVSVI_DATA_DIR=there\nVSVI_POSTGRES_URL=postgresql://127.0.0.1:9/x\n"
    )
    for name in ("MAPILLARY_TILES_URL", "MAPILLARY_GRAPH_URL", "OVERPASS_URL", "VSVI_SANDBOX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return folder


@pytest.mark.parametrize("command", ["status", "qgis", "export", "freeze", "split --tiles 1"])
def test_each_command_finds_the_project_by_its_env_file(project_by_env: Path, command: str) -> None:
    before = dict(os.environ)
    result = CliRunner().invoke(cli.main, [*command.split(), "town"])
    if command.startswith("split"):
        assert result.exit_code == 0, result.output
        assert len(list((project_by_env / "mine").glob("town-*.json"))) == 4
    else:
        assert "No connection to PostGIS" in result.output
    assert dict(os.environ) == before
    assert not (project_by_env / "data").exists()


def test_the_doctor_finds_it_too_where_no_server_can_be_started(
    project_by_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_program_folders", lambda: iter(()))
    with (project_by_env / ".env").open("a") as file:
        file.write("VSVI_POSTGRES_URL=\n")
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert "city town" in result.output
    assert "No PostgreSQL server with PostGIS is" in result.output
    assert not (project_by_env / "data").exists()


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\xff\xfe\xff",
        b"nothing",
        b"PID=1\n",
        b"VSVI_PAGES_URL=http://127.0.0.1:9\n",
        b"VSVI_PAGES_URL=http://127.0.0.1:x\nPID=1\n",
        b"VSVI_PAGES_URL=http://127.0.0.1:9\nPID=x\n",
    ],
)
def test_a_damaged_file_of_a_server_is_that_of_none(folder: Path, damaged: bytes) -> None:
    (folder / "data/pages").mkdir(parents=True)
    (folder / "data/pages/pages.env").write_bytes(damaged)
    assert stop_all({}) == []
