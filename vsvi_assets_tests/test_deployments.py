"""What the deployments on many machines promise, as far as it can be read from their files."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vsvi_assets.cli import main

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "deploy/celery/compose.yaml").read_text(encoding="utf-8"))
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}


def instance_of(path: str) -> dict[str, Any]:
    instance: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return instance


def differences(one: object, other: object, path: str = "") -> set[str]:
    """Return the paths of the keys in which two nested settings differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            found
            for key in one.keys() | other.keys()
            for found in differences(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        }
    return set() if one == other else {path}


def test_only_launcher_logs_and_bounds_differ_between_one_machine_and_many() -> None:
    found = differences(instance_of("dagster.yaml"), instance_of("deploy/celery/dagster.yaml"))
    assert found == {
        "run_launcher.module",
        "run_launcher.class",
        "compute_logs.module",
        "compute_logs.class",
        *(f"compute_logs.config.{key}" for key in ("base_dir", "bucket", "local_dir", "prefix")),
        "concurrency.runs.tag_concurrency_limits",
        "concurrency.pools.default_limit",
        "run_monitoring.start_timeout_seconds",
        "run_monitoring.free_slots_after_run_end_seconds",
        "run_monitoring.poll_interval_seconds",
        "run_retries.max_retries",
    }


def test_no_more_runs_are_launched_than_there_are_workers() -> None:
    concurrency = instance_of("deploy/celery/dagster.yaml")["concurrency"]
    workers = COMPOSE["services"]["worker"]["deploy"]["replicas"]
    assert concurrency["runs"]["max_concurrent_runs"] == workers
    assert concurrency["pools"]["default_limit"] == workers
    [limit] = concurrency["runs"]["tag_concurrency_limits"]
    assert limit["limit"] == workers


@pytest.mark.parametrize("name", OURS)
def test_no_container_may_do_more_than_it_needs(name: str) -> None:
    service = OURS[name]
    assert service["user"].endswith(":-1000:1000}")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_workers_share_no_folder() -> None:
    mounted = {volume for service in OURS.values() for volume in service["volumes"]}
    assert mounted
    assert all(volume.endswith(":ro") for volume in mounted)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_has_a_health_check_and_is_seen_by_this_machine_alone(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["healthcheck"]["test"][0] == "CMD"
    this_machine = ("127.0.0.1:", "${VSVI_LISTEN:-127.0.0.1}:")
    assert all(port.startswith(this_machine) for port in service.get("ports", []))


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_secrets_are_files_alone(name: str) -> None:
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    for variable, value in COMPOSE["services"][name]["environment"].items():
        assert not re.search("//[^/@]*:[^/@]*@", value), variable  # a password in an address
        if re.search("password|token|credentials|secret|key", variable, re.IGNORECASE):
            assert value.startswith("/run/secrets/"), variable


def test_only_the_workers_have_the_token() -> None:
    has_token = {name for name, service in OURS.items() if "mapillary_token" in service["secrets"]}
    assert has_token == {"worker"}


@pytest.mark.parametrize("name", OURS)
def test_the_commands_are_those_of_this_version(name: str) -> None:
    program, *arguments = OURS[name]["command"]
    if program == "vsvi":
        command = main.commands[arguments[0]]
        assert command.make_context(arguments[0], list(arguments[1:]))
