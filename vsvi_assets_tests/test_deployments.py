"""What the deployments on many machines promise, as far as it can be read from their files."""

import json
import runpy
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "deploy/celery/compose.yaml").read_text(encoding="utf-8"))
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
BOUNDS = {
    "concurrency.runs.tag_concurrency_limits",
    "concurrency.pools.default_limit",
    "run_monitoring.start_timeout_seconds",
    "run_monitoring.free_slots_after_run_end_seconds",
    "run_monitoring.poll_interval_seconds",
    "run_retries.max_retries",
}
"""The keys of dagster.yaml that differ from one machine to many."""


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
        *BOUNDS,
    }


def test_no_more_runs_are_launched_than_there_are_workers() -> None:
    concurrency = instance_of("deploy/celery/dagster.yaml")["concurrency"]
    workers = COMPOSE["services"]["worker"]["scale"]
    assert concurrency["runs"]["max_concurrent_runs"] == workers
    assert concurrency["pools"]["default_limit"] == workers
    [limit] = concurrency["runs"]["tag_concurrency_limits"]
    assert limit["limit"] == workers


def test_workers_share_no_folder() -> None:
    mounted = {volume for service in OURS.values() for volume in service["volumes"]}
    assert mounted
    assert all(volume.endswith(":ro") for volume in mounted)


def test_keys_of_the_store_are_the_same_for_store_and_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = runpy.run_path(str(ROOT / "deploy/celery/store_keys.py"))["main"]
    monkeypatch.setitem(keys.__globals__, "FOLDER", tmp_path)
    keys()
    [identity] = json.loads((tmp_path / "store_keys.json").read_text())["identities"]
    [pair] = identity["credentials"]
    credentials = ConfigParser()
    credentials.read(tmp_path / "aws_credentials")
    assert dict(credentials["default"]) == {
        "aws_access_key_id": pair["accessKey"],
        "aws_secret_access_key": pair["secretKey"],
    }
    with pytest.raises(FileExistsError):
        keys()
