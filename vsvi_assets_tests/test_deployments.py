"""What the deployments on many machines promise, as far as it can be read from their files."""

import importlib
import json
import re
import runpy
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import Shape
from dagster._config import validate_config

from vsvi_assets.settings import Settings

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "deploy/celery/compose.yaml").read_text(encoding="utf-8"))
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
VALUES = yaml.safe_load((ROOT / "deploy/kubernetes/values.yaml").read_text(encoding="utf-8"))
BOUNDS = {
    "concurrency.runs.tag_concurrency_limits",
    "concurrency.pools.default_limit",
    "run_monitoring.start_timeout_seconds",
    "run_monitoring.free_slots_after_run_end_seconds",
    "run_monitoring.poll_interval_seconds",
    "run_retries.max_retries",
}
"""The keys of dagster.yaml that differ from one machine to many."""


def environment_of_kubernetes() -> dict[str, Any]:
    """Return what the containers have in their environment: texts, and references to secrets."""
    return {
        each["name"]: each.get("value", each.get("valueFrom")) for each in VALUES["x-environment"]
    }


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
    workers = COMPOSE["services"]["worker"]["deploy"]["replicas"]
    assert concurrency["runs"]["max_concurrent_runs"] == workers
    assert concurrency["pools"]["default_limit"] == workers
    [limit] = concurrency["runs"]["tag_concurrency_limits"]
    assert limit["limit"] == workers


def test_kubernetes_differs_from_them_in_launcher_logs_and_bounds_alone() -> None:
    local, daemon = instance_of("dagster.yaml"), VALUES["dagsterDaemon"]
    # As the chart writes it into its dagster.yaml.
    monitoring = daemon["runMonitoring"]
    rendered = {
        **VALUES["additionalInstanceConfig"],
        "telemetry": VALUES["telemetry"],
        "retention": {
            "sensor": {"purge_after_days": VALUES["retention"]["sensor"]["purgeAfterDays"]},
            "auto_materialize": {
                "purge_after_days": VALUES["retention"]["autoMaterialize"]["purgeAfterDays"]
            },
        },
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "start_timeout_seconds": monitoring["startTimeoutSeconds"],
            "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
            "poll_interval_seconds": monitoring["pollIntervalSeconds"],
        },
        **{
            name: {
                "use_threads": daemon[name]["useThreads"],
                "num_workers": daemon[name]["numWorkers"],
            }
            for name in ("schedules", "sensors")
        },
    }
    assert monitoring["maxResumeRunAttempts"] == 0
    assert daemon["runCoordinator"]["enabled"] is daemon["runRetries"]["enabled"] is False
    assert differences(local, rendered) == {
        # Of the chart's own making.
        "storage",
        "local_artifact_storage",
        "compute_logs",
        "run_launcher",
        "concurrency.runs.max_concurrent_runs",
        *BOUNDS,
    }


def test_values_of_kubernetes_name_secrets_and_hold_none() -> None:
    for name, value in environment_of_kubernetes().items():
        if isinstance(value, str):
            assert not re.search("//[^/@]*:[^/@]*@", value), name  # a password in an address
        if re.search("password|token|credentials|secret|key", name, re.IGNORECASE):
            assert isinstance(value, dict) or value.startswith("/secrets/"), name
    assert VALUES["generatePostgresqlPasswordSecret"] is False
    assert "postgresqlPassword" not in VALUES["postgresql"]
    [code] = VALUES["dagster-user-deployments"]["deployments"]
    for deployment in (code, VALUES["dagsterWebserver"], VALUES["dagsterDaemon"]):
        assert deployment["podSecurityContext"]["runAsNonRoot"] is True
        assert deployment["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert deployment["resources"].keys() == {"requests", "limits"}


def test_settings_of_kubernetes_are_those_of_this_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore", reason="the extra [s3] is not installed")
    for name, value in environment_of_kubernetes().items():
        if isinstance(value, str):
            monkeypatch.setenv(name, value)
    credentials = tmp_path / "credentials"
    credentials.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    settings = Settings.from_environment()
    assert str(settings.data_dir) == "s3://vsvi/data"
    assert str(settings.cities_dir) == "/cities"
    assert str(settings.token_file) == "/secrets/mapillary_token"


def test_the_launcher_of_kubernetes_takes_its_settings() -> None:
    pytest.importorskip("dagster_k8s", reason="the extra [k8s] is not installed")
    custom = VALUES["runLauncher"]["config"]["customRunLauncher"]
    launcher = getattr(importlib.import_module(custom["module"]), custom["class"])
    config = validate_config(Shape(launcher.config_type()), custom["config"])
    assert config.success, config.errors


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
