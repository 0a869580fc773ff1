"""Runs on Celery's workers, with a real Redis, and Dagster's own daemon and webserver."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from redis import StrictRedis

from vsvi_assets.city import City
from vsvi_assets.orchestration.common import MAPILLARY_POOL
from vsvi_assets.orchestration.dagster_internals import WorkerStatus
from vsvi_assets.orchestration.launcher import LOCK_TAG, end_lost_runs
from vsvi_assets.running.run_city import city_lock, only_process
from vsvi_assets.sandbox import Fault, Faults, Sandbox
from vsvi_assets.settings import SettingError
from vsvi_assets_tests.dagster_services import (
    DagsterServices,
    Run,
    free_port,
    is_listening,
    wait_until,
)
from vsvi_assets_tests.project import Project, small_world

pytest.importorskip("dagster_celery", reason="the extra [celery] is not installed")

from vsvi_assets.orchestration import celery_app, celery_launcher
from vsvi_assets.orchestration.celery_launcher import WatchedCeleryRunLauncher

ROOT = Path(__file__).parents[2]
DAGSTER_YAML = ROOT / "deploy/celery/dagster.yaml"


CONNECTIONS_OF_WHO_ASKS = 4
"""Those that a question costs the process that asks."""


@dataclass
class Redis:
    """A Redis server with a password, which can be stopped and started again."""

    folder: Path
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(8) + "/@:")
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        file = self.folder / "redis_password"
        file.write_text(self.password + "\n")
        return {
            "VSVI_BROKER_URL": f"redis://127.0.0.1:{self.port}/0",
            "VSVI_BROKER_PASSWORD_FILE": str(file),
        }

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert self.process.stdin
        self.process.stdin.write(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\nappendonly yes\n"
            f'requirepass "{self.password}"\n'.encode()
        )
        self.process.stdin.close()
        wait_until(lambda: is_listening(self.port), 10, "Redis listens")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    if not shutil.which("redis-server"):
        pytest.skip("there is no redis-server: apt-get install redis-server")
    redis = Redis(tmp_path)
    redis.start()
    yield redis
    redis.stop()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(small_world(sequences=12)) as sandbox:
        yield sandbox


@pytest.fixture
def services(
    project: Project,
    tmp_path: Path,
    postgis_url: str,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[DagsterServices]:
    environment = {
        **redis.environment,
        "DAGSTER_POSTGRES_URL": postgis_url,
        "VSVI_LOGS_BUCKET": "logs",
        "DAGSTER_HOME": str(tmp_path / "dagster"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    services = DagsterServices(tmp_path / "dagster", environment, DAGSTER_YAML)
    yield services
    services.stop()


@pytest.fixture
def instance(services: DagsterServices) -> Iterator[DagsterInstance]:
    with DagsterInstance.get() as instance:
        yield instance


@pytest.fixture
def slow_city(project: Project, instance: DagsterInstance) -> City:
    """A city whose photographs take some 10 seconds."""
    city = project.write_city("town", selection="all")
    Project(project.folder, project.sandbox, instance).materialize_metadata(city)
    project.sandbox.faults = Faults(images={Fault.SLOW: 1.0}, slow=8)
    return city


def files(city: City) -> dict[Path, tuple[int, int]]:
    paths = city.sequences_folder.glob("*/*.jpg")
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def launch_images(services: DagsterServices, instance: DagsterInstance, city: City) -> str:
    sequences = instance.get_dynamic_partitions(f"{city.name}_sequences")
    return services.launch(city.name, "image_files", partitions=sequences)


def run_of(services: DagsterServices, run_id: str) -> Run:
    [run] = [run for run in services.runs() if run.id == run_id]
    return run


def status_of(services: DagsterServices, run_id: str) -> str:
    return run_of(services, run_id).status


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(400)
def test_terminate_cancels_at_once_and_redis_may_go_away_for_a_while(
    project: Project,
    services: DagsterServices,
    instance: DagsterInstance,
    slow_city: City,
    redis: Redis,
) -> None:
    stats, city = project.sandbox.stats, slow_city
    services.start()
    services.start_worker("first worker")
    services.start_worker("second worker")
    run_id = launch_images(services, instance, city)
    wait_until(lambda: stats.images_asked, 100, "the run asks for images")

    pressed = time.monotonic()
    services.terminate(run_id)
    while status_of(services, run_id) != "CANCELED":
        assert time.monotonic() - pressed < 5
        time.sleep(0.1)
    print(f"canceled within {time.monotonic() - pressed:.1f} s")

    pool = instance.event_log_storage.get_concurrency_info(MAPILLARY_POOL)
    assert pool.active_slot_count == pool.pending_step_count == 0
    asked = stats.images_asked.total()
    time.sleep(10)
    assert stats.images_asked.total() == asked
    assert status_of(services, run_id) == "CANCELED"
    children = [run for run in services.runs() if "dagster/parent_run_id" in run.tags]
    assert children == []

    # A run that goes on, and one that is launched while Redis is away.
    first = launch_images(services, instance, city)
    wait_until(lambda: stats.images_asked.total() > asked, 100, "the next run asks for images")
    redis.stop()
    second = services.launch(city.name, "street_points")
    time.sleep(10)
    redis.start()
    wait_until(
        lambda: status_of(services, first) == status_of(services, second) == "SUCCESS",
        150,
        "both runs succeed",
    )
    assert not [run for run in services.runs() if "dagster/parent_run_id" in run.tags]


@pytest.mark.timeout(400)
def test_the_run_of_a_killed_worker_is_taken_up_by_another(
    project: Project, services: DagsterServices, instance: DagsterInstance, slow_city: City
) -> None:
    stats, city = project.sandbox.stats, slow_city
    services.start()
    worker = services.start_worker("first worker")
    run_id = launch_images(services, instance, city)
    wait_until(lambda: len(files(city)) > 5, 100, "images are on disk")
    process_id = services.worker_pid(run_id)
    assert process_id
    assert is_alive(process_id)
    services.start_worker("second worker")

    project.sandbox.faults = Faults(images={Fault.SLOW: 1.0}, slow=25)
    worker.kill()
    killed, whole = time.monotonic(), files(city)
    wait_until(lambda: not is_alive(process_id), 10, "the run's process ends with its worker")

    def retries(run_id: str) -> list[Run]:
        runs = services.runs()
        return [run for run in runs if run.tags.get("dagster/parent_run_id") == run_id]

    def is_taken_up(run_id: str) -> bool:
        return [run.status for run in retries(run_id)] == ["STARTED"]

    wait_until(lambda: is_taken_up(run_id), 90, "another takes it up")
    print(f"taken up after {time.monotonic() - killed:.0f} s")
    assert status_of(services, run_id) == "FAILURE"
    [second] = retries(run_id)
    assert second.tags["dagster/priority"] == "1"

    # A worker that answers, and does not name its run, need not be waited for.
    wait_until(lambda: services.worker_pid(second.id), 10, "the run has a process")
    # The daemon has asked once by then who executes it, and waited for all answers.
    time.sleep(celery_launcher.ANSWER_SECONDS + 2 * celery_launcher.SECONDS_BETWEEN_QUESTIONS)
    its_process = services.worker_pid(second.id)
    assert its_process
    os.kill(its_process, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: status_of(services, second.id) == "FAILURE", 90, "the loss is noticed")
    print(f"noticed after {time.monotonic() - killed:.0f} s")
    question = celery_launcher.ANSWER_SECONDS + celery_launcher.SECONDS_BETWEEN_QUESTIONS
    assert time.monotonic() - killed < celery_launcher.MISSES_OF_A_LOST_RUN * question
    wait_until(lambda: is_taken_up(second.id), 60, "the run is taken up again")

    project.sandbox.faults = Faults()
    wait_until(
        lambda: [run.status for run in retries(second.id)] == ["SUCCESS"], 100, "it succeeds"
    )
    assert files(city).items() >= whole.items()
    assert len(files(city)) == len(stats.images_served)


def test_only_who_asks_for_a_while_takes_a_run_for_lost(
    project: Project, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, busy = project.write_city("idle"), project.write_city("busy")
    launcher = instance.run_launcher
    assert isinstance(launcher, WatchedCeleryRunLauncher)
    tags = {
        "run of a worker": {"dagster-celery/task_id": "task"},
        "run of an unknown launcher": {},
        "run of a command": {LOCK_TAG: city_lock(busy)},
        "run of a killed command": {LOCK_TAG: city_lock(idle)},
    }
    runs = {
        name: instance.add_run(DagsterRun("job", status=DagsterRunStatus.STARTED, tags=run_tags))
        for name, run_tags in tags.items()
    }

    def lost() -> set[str]:
        healths = {name: launcher.check_run_worker_health(run).status for name, run in runs.items()}
        return {name for name, health in healths.items() if health == WorkerStatus.NOT_FOUND}

    monkeypatch.setattr(celery_launcher, "ANSWER_SECONDS", 0.5)
    with only_process(busy, project.postgis):
        end_lost_runs(instance, city_lock(project.write_city("ours")))
        unfinished = {run.run_id for run in instance.get_runs() if not run.is_finished}
        assert unfinished == {
            run.run_id for name, run in runs.items() if name != "run of a killed command"
        }
        assert lost() == {"run of a killed command"}
        assert lost() == {"run of a killed command"}  # so soon, the workers are not asked again
        monkeypatch.setattr(celery_launcher, "SECONDS_BETWEEN_QUESTIONS", 0.0)
        assert lost() == {"run of a killed command"}
        assert lost() == {"run of a killed command", "run of a worker"}


def test_no_run_is_lost_while_redis_is_away(
    instance: DagsterInstance, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {"dagster-celery/task_id": "task"}
    run = instance.add_run(DagsterRun("job", status=DagsterRunStatus.STARTED, tags=tags))
    monkeypatch.setattr(celery_launcher, "SECONDS_BETWEEN_QUESTIONS", 0.0)
    redis.stop()
    for _ in range(6):
        health = instance.run_launcher.check_run_worker_health(run)
        assert (health.status, health.transient) == (WorkerStatus.RUNNING, True)


def test_an_answer_of_a_worker_needs_no_new_connection(
    services: DagsterServices, instance: DagsterInstance, redis: Redis
) -> None:
    services.start_worker("worker")
    launcher = instance.run_launcher
    assert isinstance(launcher, WatchedCeleryRunLauncher)
    client = StrictRedis(port=redis.port, password=redis.password)

    def connections_of_a_question() -> int:
        before = client.info("stats")["total_connections_received"]
        assert launcher.celery.control.inspect(timeout=10, limit=1).active()
        return client.info("stats")["total_connections_received"] - before

    wait_until(lambda: launcher.celery.control.inspect(timeout=1).ping(), 60, "the worker answers")
    connections_of_a_question()  # the worker's first answer opens the connection of all others
    assert connections_of_a_question() <= CONNECTIONS_OF_WHO_ASKS


def test_a_worker_loads_nothing_whose_threads_a_run_would_miss(redis: Redis) -> None:
    script = """
import sys, threading
import vsvi_assets.orchestration.celery_worker
print(sorted({"obstore", "pyarrow", "geopandas", "osmnx"} & sys.modules.keys()))
print(threading.active_count())
"""
    environment = {**os.environ, **redis.environment}
    printed = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
    assert printed.split("\n")[:2] == ["[]", "1"]


@pytest.mark.parametrize("url", ["", "redis.example:6379", "amqp://redis.example"])
def test_a_wrong_address_of_redis_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSVI_BROKER_URL", url)
    with pytest.raises(SettingError, match="VSVI_BROKER_URL: must be an address as redis://"):
        celery_app.app_arguments()
