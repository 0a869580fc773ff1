"""What the Dockerfile and the compose files promise, as far as it can be read from them."""

import fnmatch
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from vsvi_assets.cli import main

ROOT = Path(__file__).parents[1]
COMPOSE = {
    path: yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    for path in ("compose.yaml", "deploy/celery/compose.yaml")
}
SERVICES = {
    (path, name): service
    for path, compose in COMPOSE.items()
    for name, service in compose["services"].items()
}
OURS = {key: service for key, service in SERVICES.items() if "build" in service}

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=map(" ".join, SERVICES))
each_of_ours = pytest.mark.parametrize("service", OURS.values(), ids=map(" ".join, OURS))


@pytest.mark.parametrize("path", COMPOSE)
def test_all_services_are_there(path: str) -> None:
    ours = {name for of, name in OURS if of == path}
    assert {"code", "webserver", "daemon"} <= ours < COMPOSE[path]["services"].keys()


@each_of_ours
def test_no_container_may_do_more_than_it_needs(service: dict[str, Any]) -> None:
    assert service["user"].endswith(":-1000:1000}")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize(("path", "name"), SERVICES)
def test_every_container_has_a_health_check_and_is_seen_by_this_machine_alone(
    path: str, name: str
) -> None:
    service = SERVICES[path, name]
    assert service["healthcheck"]["test"][0] == "CMD"
    this_machine = ["127.0.0.1:"]
    if path != "compose.yaml":  # which opens to other machines where the user says so
        this_machine.append("${VSVI_LISTEN:-127.0.0.1}:")
    assert all(port.startswith(tuple(this_machine)) for port in service.get("ports", []))


@each_service
def test_secrets_are_files_alone(service: dict[str, Any]) -> None:
    for variable, value in service["environment"].items():
        assert not re.search("//[^/@]*:[^/@]*@", value), variable  # a password in an address
        if re.search("password|token|credentials|secret|key", variable, re.IGNORECASE):
            assert value.startswith("/run/secrets/"), variable


@pytest.mark.parametrize("compose", COMPOSE.values(), ids=COMPOSE)
def test_secrets_come_from_files(compose: dict[str, Any]) -> None:
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())


def test_only_what_asks_mapillary_has_the_token() -> None:
    has_token = {key for key, service in OURS.items() if "mapillary_token" in service["secrets"]}
    assert has_token == {("compose.yaml", "code"), ("deploy/celery/compose.yaml", "worker")}


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


@each_of_ours
def test_the_commands_are_those_of_this_version(service: dict[str, Any]) -> None:
    program, *arguments = service["command"]
    if program == "vsvi":
        command = main.commands[arguments[0]]
        assert command.make_context(arguments[0], list(arguments[1:]))


def test_webserver_and_daemon_find_the_code_server() -> None:
    [location] = _locations(ROOT / "deploy/workspace.yaml")
    [local] = _locations(ROOT / "workspace.yaml")
    server = location["grpc_server"]
    for path in COMPOSE:
        _, _, host, _, port = OURS[path, "code"]["command"]
        assert (server["host"], server["port"]) == (host, int(port))
        assert (path, host) in OURS
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
