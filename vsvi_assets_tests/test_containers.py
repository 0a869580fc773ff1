"""What Dockerfile and compose.yaml promise, as far as it can be read from them."""

import fnmatch
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from vsvi_assets.cli import main

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
OURS = {
    name: service
    for name, service in COMPOSE["services"].items()
    if service.get("build") is not None
}


def test_all_services_are_there() -> None:
    assert {"code", "webserver", "daemon"} <= OURS.keys() < COMPOSE["services"].keys()


@pytest.mark.parametrize("name", OURS)
def test_no_container_may_do_more_than_it_needs(name: str) -> None:
    service = OURS[name]
    assert service["user"].endswith(":-1000:1000}")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_has_a_health_check_and_is_seen_by_this_machine_alone(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_secrets_are_files_alone(name: str) -> None:
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    for variable, value in COMPOSE["services"][name]["environment"].items():
        assert not re.search("//[^/@]*:[^/@]*@", value), variable  # a password in an address
        if re.search("password|token", variable, re.IGNORECASE):
            assert value.startswith("/run/secrets/"), variable


def test_only_the_code_server_has_the_token() -> None:
    has_token = {name for name, service in OURS.items() if "mapillary_token" in service["secrets"]}
    assert has_token == {"code"}


def test_no_secret_can_get_into_the_image() -> None:
    first, *others = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert first == "*"
    let_in = [line[1:] for line in others if line.startswith("!")]
    for private in (".env", "token.txt", "secrets", "data", "cities/delft.json", ".git"):
        assert not any(fnmatch.fnmatch(private, pattern) for pattern in let_in)
    assert all((ROOT / path).exists() for path in let_in)
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE) == ["1000:1000"]
    assert re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE) == ["BASE_IMAGE"]


@pytest.mark.parametrize("name", OURS)
def test_the_commands_are_those_of_this_version(name: str) -> None:
    program, *arguments = OURS[name]["command"]
    if program == "vsvi":
        command = main.commands[arguments[0]]
        assert command.make_context(arguments[0], list(arguments[1:]))


def test_webserver_and_daemon_find_the_code_server() -> None:
    [location] = _locations(ROOT / "deploy/workspace.yaml")
    [local] = _locations(ROOT / "workspace.yaml")
    _, _, host, _, port = OURS["code"]["command"]
    server = location["grpc_server"]
    assert (server["host"], server["port"]) == (host, int(port))
    assert host in OURS
    # Schedules that are switched on are known by it.
    assert server["location_name"] == local["python_module"]["location_name"]


def test_any_password_is_found_by_libpq(tmp_path: Path) -> None:
    script = (ROOT / "deploy/entrypoint.sh").read_text()
    secret, passfile = tmp_path / "secret", tmp_path / "pgpass"
    secret.write_text("a:b\\c'd e\n")
    script = script.replace("/run/secrets/postgres_password", str(secret))
    script = script.replace("/tmp/pgpass", str(passfile))

    printed = subprocess.run(
        ["sh", "-c", script, "sh", "echo", "started"], check=True, capture_output=True, text=True
    ).stdout

    assert printed == "started\n"
    assert passfile.read_text() == "*:*:*:*:a\\:b\\\\c'd e"
    assert passfile.stat().st_mode & 0o777 == 0o600


def _locations(path: Path) -> list[dict[str, Any]]:
    content: dict[str, list[dict[str, Any]]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content["load_from"]
