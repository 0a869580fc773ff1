"""Launches runs on workers on other machines, by Celery and Redis."""

import math
import time
from collections.abc import Mapping
from typing import Any, Self

from dagster import DagsterRun, DagsterRunStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from vsvi_assets.orchestration.celery_app import QUEUE, app_arguments
from vsvi_assets.orchestration.dagster_internals import (
    CheckRunHealthResult,
    ConfigurableClassData,
    LaunchRunContext,
    WorkerStatus,
)
from vsvi_assets.orchestration.launcher import end_runs, health_of_command

ANSWER_SECONDS = 2.0
"""For how long a worker's answer is waited for."""

SECONDS_BETWEEN_QUESTIONS = 5.0
"""The daemon checks all runs one after the other, for which the workers are asked once."""

PATIENCE_SECONDS = 40.0
"""For how long no worker may know a run before it counts as lost.

A worker that lost Redis tries to come back every 30 seconds at the latest, and its run goes on
meanwhile (https://docs.celeryq.dev/projects/kombu, `Connection.ensure_connection`).
"""

LAUNCH_SECONDS = 50.0
"""For how long a launch waits for Redis: less than `start_timeout_seconds` in dagster.yaml."""

END_SECONDS = 2.0
"""For how long *Terminate* waits for a run to end by itself."""


class WatchedCeleryRunLauncher(CeleryRunLauncher):
    """dagster-celery's launcher, without a result backend: it asks the workers themselves.

    dagster-celery's own launcher never reports that a run is being canceled, so that a run
    ends as failed, and is started again. And it does not notice that a worker is lost, or with
    a result backend takes a living run for lost, which is then executed twice.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(default_queue=QUEUE, inst_data=inst_data, **app_arguments())
        self._executed: set[str] = set()
        """The ids of the tasks that the workers execute, as they answered at `_asked_at`."""
        self._asked_at = -math.inf
        self._unknown_since: dict[str, float] = {}
        """Since when no worker knows a task, by the task's id. Both on the monotonic clock."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> Self:
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Hand a run to the workers; wait for Redis where it is away, for a minute at most."""
        with self.celery.connection_for_write() as connection:
            connection.ensure_connection(timeout=LAUNCH_SECONDS)
        super().launch_run(context)

    def terminate(self, run_id: str) -> bool:
        """End a run as canceled; return whether it is a run of a worker, and had not ended.

        Raises
        ------
        kombu.exceptions.OperationalError
            When Redis does not answer; the run goes on as before.
        """
        run = self._instance.get_run_by_id(run_id)
        task = run and run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        if not run or run.is_finished or not task:
            return False
        with self.celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1)
            # First, so that the interrupted run sees that it is meant to end.
            self._instance.report_run_canceling(run)
            self.celery.control.revoke(task, terminate=True, connection=connection)
        deadline = time.monotonic() + END_SECONDS
        while run and not run.is_finished:
            # Who has not begun, was only being loaded, or is lost, does not report its own end.
            if run.status == DagsterRunStatus.STARTING or time.monotonic() > deadline:
                end_runs(self._instance, [run_id])  # which frees its place in the pool too
            time.sleep(0.1)
            run = self._instance.get_run_by_id(run_id)
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return whether a worker executes the run.

        A run counts as lost once the workers have been asked for `PATIENCE_SECONDS`, at each
        poll of the daemon, and none knew it. Who asks for the first time hears that it runs.
        """
        if health := health_of_command(run):
            return health
        task = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        if task is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "It was launched by another launcher")
        try:
            is_executed = task in self._executed_tasks()
        except (OperationalError, RedisError) as error:
            self._unknown_since.clear()
            return CheckRunHealthResult(
                WorkerStatus.RUNNING, f"Redis does not answer: {error}", transient=True
            )
        if is_executed:
            self._unknown_since.pop(task, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        since = self._unknown_since.setdefault(task, time.monotonic())
        if time.monotonic() - since < PATIENCE_SECONDS:
            return CheckRunHealthResult(
                WorkerStatus.RUNNING, "No worker answers that it executes the run", transient=True
            )
        del self._unknown_since[task]
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND, "No worker executes the run any more: its worker was lost"
        )

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> None:
        """Return nothing: what dagster-celery says here, it asks of a result backend."""

    def _executed_tasks(self) -> set[str]:
        """Return the ids of the tasks that the workers execute, asked a moment ago at most."""
        if time.monotonic() - self._asked_at > SECONDS_BETWEEN_QUESTIONS:
            answers = self.celery.control.inspect(timeout=ANSWER_SECONDS).active() or {}
            self._executed = {task["id"] for tasks in answers.values() for task in tasks}
            self._asked_at = time.monotonic()
        return self._executed
