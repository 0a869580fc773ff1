"""What the deployment on Kubernetes promises: its manifests, and the jobs that runs become.

The manifests are made of Dagster's Helm chart, which is no part of this project. The tests that
render it need the chart, unpacked or packed (`helm pull dagster/dagster --version 1.13.27`), its
path in VSVI_DAGSTER_CHART, and `pip install helm-python-sdk kubernetes-validate`. The others need
no more than the extra [k8s].
"""

import copy
import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    QueuedRunCoordinator,
    Shape,
    instance_for_test,
)
from sqlalchemy import make_url

from vsvi_assets.orchestration.dagster_internals import LaunchRunContext, WorkerStatus
from vsvi_assets.orchestration.launcher import LOCK_TAG
from vsvi_assets.settings import Settings
from vsvi_assets_tests.dagster_internals import (
    JobPythonOrigin,
    ModuleCodePointer,
    RepositoryPythonOrigin,
    validate_config,
)
from vsvi_assets_tests.test_deployments import BOUNDS, ROOT, differences, instance_of

VALUES: dict[str, Any] = yaml.safe_load(
    (ROOT / "deploy/kubernetes/values.yaml").read_text(encoding="utf-8")
)
LAUNCHER = VALUES["runLauncher"]["config"]["customRunLauncher"]
[CODE] = VALUES["dagster-user-deployments"]["deployments"]
RELEASE, NAMESPACE = "vsvi", "streets"
SECRET = re.compile("password|token|credentials|secret|access_?key", re.IGNORECASE)
REFERENCE = re.compile("secret_?name$|_secret$", re.IGNORECASE)
"""Keys whose values are names of secrets."""


def literal_secrets(part: object, path: str = "") -> set[str]:
    """Return the paths of what may be a secret itself, in place of a reference to one.

    Texts that hold JSON or YAML are searched, too.
    """
    if isinstance(part, str) and part[:1] == "{":
        return literal_secrets(json.loads(part), path)
    if isinstance(part, str) and "\n" in part:
        return literal_secrets(yaml.safe_load(part), path)
    if isinstance(part, str):
        return {path} if re.search("//[^/@]*:[^/@]*@", part) else set()
    if isinstance(part, list):
        return {found for item in part for found in literal_secrets(item, f"{path}[{_name(item)}]")}
    if not isinstance(part, dict):
        return set()
    found = {
        f"{path}.{key}"
        for key, value in part.items()
        if SECRET.search(key) and not REFERENCE.search(key) and isinstance(value, str)
    }
    if SECRET.search(_name(part)) and not str(part.get("value") or "/secrets/").startswith(
        "/secrets/"
    ):
        found.add(path)
    return found.union(*(literal_secrets(value, f"{path}.{key}") for key, value in part.items()))


def _name(part: object) -> str:
    return str(part.get("name", "")) if isinstance(part, dict) else ""


def environment_of(container: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a container has in its environment: texts, and references to secrets."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def launcher_of(cluster: "Cluster") -> dict[str, Any]:
    """Return the launcher of values.yaml, outside of the cluster."""
    launcher = copy.deepcopy(LAUNCHER)
    launcher["config"] |= {
        "load_incluster_config": False,
        "kubeconfig_file": str(cluster.kubeconfig),
    }
    return launcher


def instance_of_values() -> dict[str, Any]:
    """Return what values.yaml says of Dagster's instance, as the chart writes it."""
    daemon, logs = VALUES["dagsterDaemon"], VALUES["computeLogManager"]["config"]
    monitoring, retries, retention = (
        daemon["runMonitoring"],
        daemon["runRetries"],
        VALUES["retention"],
    )
    s3 = logs["s3ComputeLogManager"]
    return {
        **VALUES["additionalInstanceConfig"],
        "run_launcher": LAUNCHER,
        "run_coordinator": daemon["runCoordinator"]["config"]["customRunCoordinator"],
        "compute_logs": {
            "module": "dagster_aws.s3.compute_log_manager",
            "class": VALUES["computeLogManager"]["type"],
            "config": {
                "bucket": s3["bucket"],
                "prefix": s3["prefix"],
                "local_dir": s3["localDir"],
                "region": s3["region"],
                "verify": True,
            },
        },
        "telemetry": VALUES["telemetry"],
        "retention": {
            "sensor": {"purge_after_days": retention["sensor"]["purgeAfterDays"]},
            "auto_materialize": {
                "purge_after_days": retention["autoMaterialize"]["purgeAfterDays"]
            },
        },
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "start_timeout_seconds": monitoring["startTimeoutSeconds"],
            "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
            "max_resume_run_attempts": monitoring["maxResumeRunAttempts"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
            "poll_interval_seconds": monitoring["pollIntervalSeconds"],
        },
        "run_retries": {
            "enabled": retries["enabled"],
            "max_retries": retries["maxRetries"],
            "retry_on_asset_or_op_failure": retries["retryOnAssetOrOpFailure"],
        },
        **{
            name: {
                "use_threads": daemon[name]["useThreads"],
                "num_workers": daemon[name]["numWorkers"],
            }
            for name in ("schedules", "sensors")
        },
    }


def context_of_runs() -> dict[str, Any]:
    """Return what the chart gives of the code server to its runs."""
    return {
        "k8s": {
            "env": CODE["env"],
            "env_config_maps": [f"{RELEASE}-dagster-user-deployments-{CODE['name']}-user-env"],
            "image_pull_policy": CODE["image"]["pullPolicy"],
            "namespace": NAMESPACE,
            "resources": CODE["resources"],
            "run_k8s_config": {"pod_spec_config": {"automount_service_account_token": True}},
            "service_account_name": VALUES["global"]["serviceAccountName"],
            "volume_mounts": CODE["volumeMounts"],
            "volumes": CODE["volumes"],
        }
    }


class Cluster:
    """As much of a cluster's API as a launcher asks for: jobs, which go on until they are ended."""

    def __init__(self, folder: Path) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.ended: set[str] = set()
        self.asked: list[str] = []
        self.is_forbidden = False
        self.kubeconfig = folder / "kubeconfig"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Api, self))
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def start(self) -> None:
        self._thread.start()
        here = {"server": f"http://127.0.0.1:{self._server.server_port}"}
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                    "clusters": [{"name": "here", "cluster": here}],
                    "users": [{"name": "me", "user": {}}],
                }
            )
        )

    def stop(self) -> None:
        """Refuse all further requests."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def end_job(self, run: DagsterRun) -> None:
        """Let a run's job end as that of a pod that was killed."""
        self.ended.add(self.job_of(run)["metadata"]["name"])

    def job_of(self, run: DagsterRun) -> dict[str, Any]:
        return self.jobs[f"dagster-run-{run.run_id}"]


class _Api(BaseHTTPRequestHandler):
    """One connection to a cluster."""

    def __init__(self, cluster: Cluster, *arguments: Any) -> None:
        self.cluster = cluster
        super().__init__(*arguments)

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.cluster.jobs[job["metadata"]["name"]] = job
        self._answer(201, job)

    def do_GET(self) -> None:
        self.cluster.asked.append(self.path)
        if self.cluster.is_forbidden:
            self._answer(403)
        elif self.path.startswith(f"/api/v1/namespaces/{NAMESPACE}/pods?"):
            self._answer(200, {"kind": "PodList", "items": []})
        elif job := self.cluster.jobs.get(self._name):
            ended = self._name in self.cluster.ended
            self._answer(200, {**job, "status": {"failed": 1} if ended else {"active": 1}})
        else:
            self._answer(404)

    def do_DELETE(self) -> None:
        self._answer(200 if self.cluster.jobs.pop(self._name, None) else 404)

    def log_message(self, *_: object) -> None:
        pass

    @property
    def _name(self) -> str:
        jobs = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/"
        return self.path.removeprefix(jobs).removesuffix("/status")

    def _answer(self, status: int, content: Mapping[str, Any] | None = None) -> None:
        body = json.dumps(content or {"kind": "Status"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def instance(cluster: Cluster) -> Iterator[DagsterInstance]:
    """An instance whose runs become jobs of that cluster."""
    pytest.importorskip("dagster_k8s", reason="the extra [k8s] is not installed")
    with instance_for_test(overrides={"run_launcher": launcher_of(cluster)}) as instance:
        yield instance


def launched_run(instance: DagsterInstance) -> DagsterRun:
    """Return a run of the code server, which was handed to the launcher and has started."""
    image = f"{CODE['image']['repository']}:{CODE['image']['tag']}"
    repository = RepositoryPythonOrigin(
        "python",
        ModuleCodePointer("vsvi_assets.definitions", "defs"),
        container_image=image,
        entry_point=["dagster"],
        container_context=context_of_runs(),
    )
    run = instance.add_run(
        DagsterRun(
            "job",
            status=DagsterRunStatus.STARTED,
            job_code_origin=JobPythonOrigin("job", repository),
        )
    )
    instance.run_launcher.launch_run(LaunchRunContext(run, None))
    return run


def manifests_of(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the manifests that the chart makes of values, by kind and name.

    The values are checked by the chart's own schema.
    """
    chart_path = os.environ.get("VSVI_DAGSTER_CHART")
    if not chart_path:
        pytest.skip("VSVI_DAGSTER_CHART is not set")
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
    with helm.Chart.load(chart_path) as chart:
        chart.validate_schema(dict(values))
        texts = chart.render(dict(values), name=RELEASE, namespace=NAMESPACE)
    return {
        f"{manifest['kind']}/{manifest['metadata']['name']}": manifest
        for path, text in texts.items()
        if not path.endswith("NOTES.txt")
        for manifest in yaml.safe_load_all(text)
        if manifest
    }


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    return manifests_of(VALUES)


def assert_valid(manifest: Mapping[str, Any]) -> None:
    """Check a manifest by Kubernetes' own schema, in which no other key may be."""
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    kubernetes_validate.validate(dict(manifest), kubernetes_validate.latest_version(), strict=True)


def assert_unprivileged(pod: Mapping[str, Any]) -> None:
    """Check a pod's specification by what the pod security standard "restricted" asks for."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


# What values.yaml itself says.


def test_values_name_secrets_and_hold_none() -> None:
    assert literal_secrets(VALUES) == set()
    assert VALUES["generatePostgresqlPasswordSecret"] is False
    for deployment in (CODE, VALUES["dagsterWebserver"], VALUES["dagsterDaemon"]):
        assert_unprivileged(
            {"securityContext": deployment["podSecurityContext"], "containers": [deployment]}
        )
        assert deployment["resources"].keys() == {"requests", "limits"}


def test_kubernetes_differs_from_one_machine_in_launcher_logs_and_bounds_alone() -> None:
    values = instance_of_values()
    assert differences(instance_of("dagster.yaml"), values) == {
        "storage",
        "run_coordinator",
        "run_launcher.module",
        "run_launcher.class",
        "run_launcher.config",
        "compute_logs.module",
        "compute_logs.class",
        *(
            f"compute_logs.config.{key}"
            for key in ("base_dir", "bucket", "local_dir", "prefix", "region", "verify")
        ),
        "concurrency.runs.max_concurrent_runs",
        "run_monitoring.max_resume_run_attempts",
        *BOUNDS,
    }
    assert values["run_coordinator"]["class"] == "QueuedRunCoordinator"  # as by default
    assert values["run_monitoring"]["max_resume_run_attempts"] == 0  # likewise


@pytest.mark.parametrize(
    "part",
    [
        {"postgresql": {"postgresqlPassword": "hunter2"}},
        {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "hunter2"}]},
        {"env": [{"name": "VSVI_POSTGRES_URL", "value": "postgresql://vsvi:hunter2@host/vsvi"}]},
        {"data": {"dagster.yaml": "storage:\n  password: hunter2\n"}},
        {"env": [{"name": "CONTEXT", "value": '{"env": [{"name": "TOKEN", "value": "hunter2"}]}'}]},
    ],
)
def test_a_literal_secret_is_found(part: dict[str, Any]) -> None:
    assert literal_secrets(part)


def test_settings_are_those_of_this_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore", reason="the extra [s3] is not installed")
    for name, value in environment_of(CODE).items():
        if isinstance(value, str):
            monkeypatch.setenv(name, value)
    credentials = tmp_path / "credentials"
    credentials.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    settings = Settings.from_environment()
    assert str(settings.data_dir) == "s3://vsvi/data"
    assert str(settings.cities_dir) == "/cities"
    assert str(settings.token_file) == "/secrets/mapillary_token"


def test_launcher_takes_its_settings() -> None:
    pytest.importorskip("dagster_k8s", reason="the extra [k8s] is not installed")
    launcher = getattr(importlib.import_module(LAUNCHER["module"]), LAUNCHER["class"])
    config = validate_config(Shape(launcher.config_type()), LAUNCHER["config"])
    assert config.success, config.errors


# The jobs that runs become.


def test_job_of_a_run_has_all_of_the_code_server_and_no_secret(
    instance: DagsterInstance, cluster: Cluster
) -> None:
    run = launched_run(instance)
    job = cluster.job_of(run)
    assert literal_secrets(job) == set()
    pod = job["spec"]["template"]["spec"]
    assert_unprivileged(pod)
    assert pod["serviceAccountName"] == VALUES["global"]["serviceAccountName"]
    assert pod["restartPolicy"] == "Never"
    assert job["spec"]["backoffLimit"] == 0  # run retries are Dagster's
    [container] = pod["containers"]
    assert container["image"] == "registry.example/vsvi-assets:0.1.0"
    assert container["args"][:3] == ["dagster", "api", "execute_run"]
    assert container["resources"] == CODE["resources"]
    assert environment_of(container).items() >= environment_of(CODE).items()
    assert environment_of(container)["DAGSTER_HOME"] == VALUES["global"]["dagsterHome"]
    assert container["volumeMounts"] == CODE["volumeMounts"]
    assert pod["volumes"] == CODE["volumes"]


def test_job_of_a_run_is_valid(instance: DagsterInstance, cluster: Cluster) -> None:
    assert_valid(cluster.job_of(launched_run(instance)))


def test_run_whose_pod_was_killed_is_lost(instance: DagsterInstance, cluster: Cluster) -> None:
    run = launched_run(instance)
    assert _health(instance, run) == WorkerStatus.RUNNING
    cluster.end_job(run)
    assert _health(instance, run) == WorkerStatus.FAILED


def test_run_whose_job_was_deleted_is_lost(instance: DagsterInstance, cluster: Cluster) -> None:
    run = launched_run(instance)
    cluster.jobs.clear()
    assert _health(instance, run) == WorkerStatus.NOT_FOUND


def test_run_is_not_lost_while_the_cluster_does_not_answer(
    instance: DagsterInstance, cluster: Cluster
) -> None:
    run = launched_run(instance)
    cluster.is_forbidden = True  # as when the service account loses its role for a moment
    assert _health(instance, run) == WorkerStatus.RUNNING
    cluster.stop()
    assert _health(instance, run) == WorkerStatus.RUNNING


def test_run_of_a_command_is_alive_though_it_has_no_job(
    instance: DagsterInstance, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = "vsvi_assets.orchestration.launcher._is_held"
    run = DagsterRun("job", status=DagsterRunStatus.STARTED, tags={LOCK_TAG: "city"})
    monkeypatch.setattr(lock, lambda lock: True)
    assert _health(instance, run) == WorkerStatus.RUNNING
    monkeypatch.setattr(lock, lambda lock: False)
    assert _health(instance, run) == WorkerStatus.NOT_FOUND
    assert cluster.asked == []


def test_terminated_run_is_canceling_and_its_job_is_gone(
    instance: DagsterInstance, cluster: Cluster
) -> None:
    run = launched_run(instance)
    assert instance.run_launcher.terminate(run.run_id)
    assert cluster.jobs == {}
    found = instance.get_run_by_id(run.run_id)
    assert found
    assert found.status == DagsterRunStatus.CANCELING


def _health(instance: DagsterInstance, run: DagsterRun) -> WorkerStatus:
    return instance.run_launcher.check_run_worker_health(run).status


# What the chart makes of values.yaml.


def test_manifests_are_valid(manifests: dict[str, dict[str, Any]]) -> None:
    kinds = [name.partition("/")[0] for name in manifests]
    assert kinds.count("Deployment") == 3
    for manifest in manifests.values():
        assert_valid(manifest)


def test_a_misspelled_value_is_refused() -> None:
    values = copy.deepcopy(VALUES)
    values["dagsterDaemon"]["runMonitorring"] = values["dagsterDaemon"].pop("runMonitoring")
    with pytest.raises(Exception, match="runMonitorring"):
        manifests_of(values)


def test_manifests_hold_no_secret(manifests: dict[str, dict[str, Any]]) -> None:
    assert literal_secrets(manifests) == set()
    assert not any(name.startswith("Secret/") for name in manifests)


def test_pods_are_unprivileged(manifests: dict[str, dict[str, Any]]) -> None:
    for pod in _pods(manifests).values():
        assert_unprivileged(pod)
        for container in pod["containers"]:
            assert environment_of(container).items() >= environment_of(CODE).items()
            # Below 1024 a port is for root.
            assert all(port["containerPort"] >= 1024 for port in container.get("ports", []))


def test_probes_ask_where_the_webserver_listens(manifests: dict[str, dict[str, Any]]) -> None:
    [webserver] = _pods(manifests)[f"Deployment/{RELEASE}-dagster-webserver"]["containers"]
    [port] = webserver["ports"]
    assert f"-p {port['containerPort']} " in webserver["command"][-1]
    assert webserver["readinessProbe"]["httpGet"]["port"] == port["containerPort"]


def test_names_of_values_are_those_of_the_chart(manifests: dict[str, dict[str, Any]]) -> None:
    config = LAUNCHER["config"]
    assert f"ConfigMap/{config['instance_config_map']}" in manifests
    assert f"ServiceAccount/{config['service_account_name']}" in manifests
    [code] = _pods(manifests)[f"Deployment/{RELEASE}-dagster-user-deployments-vsvi"]["containers"]
    assert json.loads(environment_of(code)["DAGSTER_CONTAINER_CONTEXT"]) == context_of_runs()
    assert manifests["Service/vsvi"]["spec"]["ports"][0]["port"] == CODE["port"]
    workspace = manifests[f"ConfigMap/{RELEASE}-dagster-workspace-yaml"]["data"]["workspace.yaml"]
    [server] = yaml.safe_load(workspace)["load_from"]
    [local] = instance_of("deploy/workspace.yaml")["load_from"]
    assert server["grpc_server"]["location_name"] == local["grpc_server"]["location_name"]


def test_dagster_yaml_of_the_chart_is_that_of_the_values(
    manifests: dict[str, dict[str, Any]],
) -> None:
    rendered = _dagster_yaml(manifests)
    assert differences(instance_of_values(), rendered) == {
        # Of the chart's own making: the database; Dagster's own scheduler, which is the default.
        "run_storage",
        "event_log_storage",
        "schedule_storage",
        "scheduler",
        # The chart's defaults are Dagster's.
        "retention.schedule",
        "retention.sensor.purge_after_days.started",
        "retention.auto_materialize.purge_after_days.started",
    }
    assert rendered["retention"]["schedule"] == {"purge_after_days": -1}


def test_dagster_takes_the_dagster_yaml_of_the_chart_with_its_queue_and_its_database(
    cluster: Cluster, postgis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dagster_k8s", reason="the extra [k8s] is not installed")
    url = make_url(postgis_url)
    values = copy.deepcopy(VALUES)
    values["postgresql"] |= {
        "postgresqlHost": url.host,
        "postgresqlUsername": url.username,
        "postgresqlDatabase": url.database,
        "service": {"port": url.port},
    }
    values["runLauncher"]["config"]["customRunLauncher"] = launcher_of(cluster)
    rendered = manifests_of(values)
    for name, value in environment_of(CODE).items():
        if isinstance(value, str):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("VSVI_DAGSTER_DIR", str(tmp_path / "dagster"))
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", str(url.password))
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(_dagster_yaml(rendered)))
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
        assert instance.get_concurrency_config().run_queue_config
        assert instance.get_runs() == []
        run = launched_run(instance)
        assert _health(instance, run) == WorkerStatus.RUNNING
        assert literal_secrets(cluster.job_of(run)) == set()


def _pods(manifests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: manifest["spec"]["template"]["spec"]
        for name, manifest in manifests.items()
        if manifest["kind"] == "Deployment"
    }


def _dagster_yaml(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    data = manifests[f"ConfigMap/{LAUNCHER['config']['instance_config_map']}"]["data"]
    instance: dict[str, Any] = yaml.safe_load(data["dagster.yaml"])
    return instance
