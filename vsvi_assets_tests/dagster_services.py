"""Dagster's own processes, as `dagster dev` starts them, for a test that asks them by GraphQL."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import yaml

from vsvi_assets_tests import dagster_internals

REPOSITORY = {
    "repositoryLocationName": "vsvi",
    "repositoryName": "__repository__",
}

QUICK_DEFINITIONS = """
from vsvi_assets.orchestration import automation
automation.EVALUATION_SECONDS = 2
from vsvi_assets.orchestration.build import build_defs
from vsvi_assets.settings import Settings
defs = build_defs(Settings.from_environment())
"""


@dataclass(frozen=True)
class Run:
    """A run as the UI lists it."""

    id: str
    status: str
    assets: frozenset[str]
    tags: Mapping[str, str]
    materialized: frozenset[str]

    @property
    def city(self) -> str | None:
        return self.tags.get("vsvi/city")


@dataclass
class DagsterServices:
    """Code server, daemon and webserver on the instance of the project's dagster.yaml.

    Its bounds are the project's; only what is waited for is shorter.
    """

    folder: Path
    environment: dict[str, str]
    dagster_yaml: Path = Path("dagster.yaml")
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _code_port: int = field(default_factory=lambda: free_port())
    _web_port: int = field(default_factory=lambda: free_port())

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.environment = {**os.environ, **self.environment, "DAGSTER_HOME": str(self.folder)}
        self.settings = yaml.safe_load(self.dagster_yaml.read_text())
        self.settings["run_monitoring"] |= {
            "poll_interval_seconds": 2,
            "free_slots_after_run_end_seconds": 2,
        }
        local = yaml.safe_load(Path("dagster.yaml").read_text())
        self.settings["compute_logs"] = local["compute_logs"]
        for storage in ("local_artifact_storage", "compute_logs"):
            self.settings[storage]["config"]["base_dir"] = str(self.folder / storage)
        (self.folder / "dagster.yaml").write_text(yaml.safe_dump(self.settings))
        (self.folder / "days_passed").write_text("0")
        (self.folder / "quick_definitions.py").write_text(QUICK_DEFINITIONS)
        server = {"host": "127.0.0.1", "port": self._code_port, "location_name": "vsvi"}
        (self.folder / "workspace.yaml").write_text(
            yaml.safe_dump({"load_from": [{"grpc_server": server}]})
        )

    def start(self) -> None:
        self._start(
            "code server", "-m", "dagster", "api", "grpc", "-f", "quick_definitions.py",
            "--port", str(self._code_port), "--location-name", "vsvi",
        )  # fmt: skip
        wait_until(lambda: is_listening(self._code_port), 60, "the code server listens")
        self.start_daemon()
        self._start("webserver", "-m", "dagster_webserver", "-p", str(self._web_port))
        wait_until(lambda: is_listening(self._web_port), 60, "the webserver listens")

    def start_daemon(self) -> None:
        self._start("daemon", dagster_internals.__file__, "run", "-w", "workspace.yaml")

    def start_worker(self, name: str) -> subprocess.Popen[bytes]:
        """Start one more worker of Celery, as on another machine."""
        self._start(name, "-m", "vsvi_assets", "worker")
        return self.processes[name]

    def kill_daemon(self) -> None:
        daemon = self.processes.pop("daemon")
        daemon.kill()
        daemon.wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
            # Each leads a process group of its own, to which workers of its runs belong.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def let_days_pass(self, days: int) -> None:
        clock = self.folder / "days_passed"
        clock.write_text(str(int(clock.read_text()) + days))

    # What the UI asks

    def ask(self, query: str, **variables: object) -> Any:
        """Ask the webserver, as the UI does."""
        answer = requests.post(
            f"http://127.0.0.1:{self._web_port}/graphql",
            json={"query": query, "variables": variables},
            timeout=30,
        ).json()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def click(self, job: str) -> str:
        """Press *Materialize* on the page of a job; return the id of the run."""
        answer = self.ask(
            """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
                __typename ... on LaunchRunSuccess { run { runId } }
            } }""",
            params={
                "mode": "default",
                "executionMetadata": {"tags": [{"key": "dagster/from_ui", "value": "true"}]},
                "runConfigData": "{}",
                "selector": {**REPOSITORY, "pipelineName": job},
            },
        )
        return answer["launchRun"]["run"]["runId"]

    def launch(self, *asset_path: str, partitions: Sequence[str] = ()) -> str:
        """Materialize an asset, or a range of its partitions, in one run; return the run's id."""
        tags = [
            {"key": f"dagster/asset_partition_range_{end}", "value": partitions[position]}
            for end, position in (("start", 0), ("end", -1))
            if partitions
        ]
        answer = self.ask(
            """mutation($params: ExecutionParams!) { launchPipelineExecution(
                executionParams: $params
            ) { __typename
                ... on LaunchRunSuccess { run { runId } }
                ... on PythonError { message }
            } }""",
            params={
                "mode": "default",
                "executionMetadata": {"tags": tags},
                "runConfigData": "{}",
                "selector": {
                    **REPOSITORY,
                    "pipelineName": "__ASSET_JOB",
                    "assetSelection": [{"path": asset_path}],
                },
            },
        )["launchPipelineExecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def terminate(self, run_id: str) -> None:
        """Press *Terminate* on the page of a run."""
        answer = self.ask(
            """mutation($run: String!) { terminateRun(runId: $run) {
                __typename ... on PythonError { message } ... on TerminateRunFailure { message }
            } }""",
            run=run_id,
        )
        assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess", answer

    def cancel_backfill(self, backfill_id: str) -> None:
        """Press *Cancel* on the page of a backfill."""
        answer = self.ask(
            "mutation($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }",
            id=backfill_id,
        )
        assert answer["cancelPartitionBackfill"]["__typename"] == "CancelBackfillSuccess", answer

    def retry_backfill(self, backfill_id: str) -> str:
        """Choose *Re-execute*, *from failure* on the page of a backfill; return the new id."""
        answer = self.ask(
            """mutation($params: ReexecutionParams!) { reexecutePartitionBackfill(
                reexecutionParams: $params
            ) { __typename ... on LaunchBackfillSuccess { backfillId } } }""",
            params={"parentRunId": backfill_id, "strategy": "FROM_FAILURE"},
        )
        return answer["reexecutePartitionBackfill"]["backfillId"]

    def switch_on(self, schedule: str) -> None:
        """Switch a schedule of the Automation page on."""
        answer = self.ask(
            """mutation($schedule: ScheduleSelector!) {
                startSchedule(scheduleSelector: $schedule) { __typename }
            }""",
            schedule={**REPOSITORY, "scheduleName": schedule},
        )
        assert answer["startSchedule"]["__typename"] == "ScheduleStateResult", answer

    def evaluations(self, sensor: str) -> set[str]:
        """Return the sensor's finished ticks."""
        ticks = self._sensor_state(sensor)["ticks"]
        assert not [tick for tick in ticks if tick["status"] == "FAILURE"]
        return {tick["id"] for tick in ticks if tick["status"] != "STARTED"}

    def _sensor_state(self, sensor: str) -> dict[str, Any]:
        answer = self.ask(
            """query($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) {
                ... on Sensor { sensorState { id ticks(limit: 100) { id status } } }
            } }""",
            sensor={**REPOSITORY, "sensorName": sensor},
        )
        return answer["sensorOrError"]["sensorState"]

    def runs(self) -> list[Run]:
        """Return all runs, the newest first."""
        answer = self.ask(
            """{ runsOrError { ... on Runs { results {
                runId status assetSelection { path } tags { key value }
                assetMaterializations { partition }
            } } } }"""
        )
        return [
            Run(
                run["runId"],
                run["status"],
                frozenset(key["path"][-1] for key in run["assetSelection"] or ()),
                {tag["key"]: tag["value"] for tag in run["tags"]},
                frozenset(event["partition"] for event in run["assetMaterializations"]),
            )
            for run in answer["runsOrError"]["results"]
        ]

    def backfills(self) -> list[dict[str, Any]]:
        """Return all backfills, the newest first."""
        answer = self.ask(
            """{ partitionBackfillsOrError { ... on PartitionBackfills { results {
                id status assetSelection { path } tags { key value } partitionNames
            } } } }"""
        )
        return answer["partitionBackfillsOrError"]["results"]

    def partitions(self, *asset_path: str) -> dict[str, set[str]]:
        """Return an asset's partitions by their status."""
        answer = self.ask(
            """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
                partitionKeysByDimension { partitionKeys }
                assetPartitionStatuses { ... on DefaultPartitionStatuses {
                    materializedPartitions failedPartitions
                    materializingPartitions unmaterializedPartitions
                } }
            } } }""",
            key={"path": asset_path},
        )["assetNodeOrError"]
        statuses = {
            name.removesuffix("Partitions"): set(keys)
            for name, keys in answer["assetPartitionStatuses"].items()
        }
        [dimension] = answer["partitionKeysByDimension"]
        return {"all": set(dimension["partitionKeys"]), **statuses}

    def worker_pid(self, run_id: str) -> int | None:
        """Return the process id of a run's worker, as the run's log tells it."""
        answer = self.ask(
            """query($run: ID!) { logsForRun(runId: $run) { ... on EventConnection {
                events { ... on MessageEvent { message } }
            } } }""",
            run=run_id,
        )
        messages = "\n".join(event["message"] for event in answer["logsForRun"]["events"])
        found = re.search(r"process for run \(pid: (\d+)\)", messages)
        return int(found[1]) if found else None


@dataclass
class Bounds:
    """The most runs that were seen at a time: in all, and of each city."""

    in_all: int = 0
    of_city: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def watch(self, runs: list[Run]) -> None:
        cities = [run.city for run in runs if run.status in ("STARTING", "STARTED")]
        self.in_all = max(self.in_all, len(cities))
        for city in filter(None, cities):
            self.of_city[city] = max(self.of_city[city], cities.count(city))


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until something is so, and fail when that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"within {seconds} s: {what}"
        time.sleep(1)


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
