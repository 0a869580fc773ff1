"""Launches runs on workers on other machines, by Celery and Redis."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
    instance_of,
)
from vsvi_assets.orchestration.launcher import end_runs, health_of_command

ANSWER_SECONDS = 10.0
"""For how long a worker's answer is waited for: it shares the worker's link with photographs."""

SECONDS_BETWEEN_QUESTIONS = 5.0
"""The daemon checks all runs one after the other, for which the workers are asked once."""

MISSES_OF_A_LOST_RUN = 3
"""Questions in a row to which no worker named a run, after which the run counts as lost.

To a worker that is silent the last is put after 30 seconds. One that lost Redis tries to come back
every 30 seconds at the latest, and its run goes on meanwhile
(https://docs.celeryq.dev/projects/kombu, `Connection.ensure_connection`).
"""

MISSES_OF_AN_ENDED_RUN = 6
"""The same, after which a run is asked for no more: the daemon checks it no more either."""

BEFORE_THOSE_THAT_WAIT = {"dagster/priority": "1"}
"""The tag of a lost run, which the run that takes it up inherits; others have priority 0."""

LAUNCH_SECONDS = 50.0
"""For how long a launch waits for Redis: less than `start_timeout_seconds` in dagster.yaml."""

END_SECONDS = 2.0
"""For how long *Terminate* waits for a run to end by itself."""


@dataclass
class Watched:
    """What the workers answered about a run: which one named it last, and what followed."""

    worker: str | None = None
    misses: int = 0
    """Questions since, to which no worker named it."""


class WatchedCeleryRunLauncher(CeleryRunLauncher):
    """dagster-celery's launcher, without a result backend: it asks the workers themselves.

    dagster-celery's own launcher never reports that a run is being canceled, so that a run
    ends as failed, and is started again. And it does not notice that a worker is lost, or with
    a result backend takes a living run for lost, which is then executed twice.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(default_queue=QUEUE, inst_data=inst_data, **app_arguments())
        self._watched: dict[str, Watched] = {}
        """By the id of the run's task."""
        self._asked_at = -math.inf

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
        run = instance_of(self).get_run_by_id(run_id)
        task = run and run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        if not run or run.is_finished or not task:
            return False
        with self.celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1)
            # First, so that the interrupted run sees that it is meant to end.
            instance_of(self).report_run_canceling(run)
            self.celery.control.revoke(task, terminate=True, connection=connection)
        deadline = time.monotonic() + END_SECONDS
        while run and not run.is_finished:
            # Who has not begun, was only being loaded, or is lost, does not report its own end.
            if run.status == DagsterRunStatus.STARTING or time.monotonic() > deadline:
                end_runs(instance_of(self), [run_id])  # which frees its place in the pool too
            time.sleep(0.1)
            run = instance_of(self).get_run_by_id(run_id)
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return whether a worker executes the run.

        A run counts as lost once no worker has named it in answer to `MISSES_OF_A_LOST_RUN`
        questions in a row: within seconds where its worker answers, which was started anew then,
        and within a minute where it is silent. Who asks for the first time is answered that the
        run goes on.
        """
        if health := health_of_command(run):
            return health
        task = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        if task is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "It was launched by another launcher")
        watched = self._watched.get(task)
        if watched is None:
            self._watched[task] = Watched()
            return CheckRunHealthResult(WorkerStatus.RUNNING, "Not asked yet", transient=True)
        try:
            self._ask_workers()
        except (OperationalError, RedisError) as error:
            self._watched.clear()
            return CheckRunHealthResult(
                WorkerStatus.RUNNING, f"Redis does not answer: {error}", transient=True
            )
        if watched.misses < MISSES_OF_A_LOST_RUN:
            return CheckRunHealthResult(WorkerStatus.RUNNING, transient=watched.misses > 0)
        self._watched.pop(task, None)  # its worker need not be waited for any more
        instance_of(self).add_run_tags(run.run_id, BEFORE_THOSE_THAT_WAIT)
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND, "No worker executes the run any more: its worker was lost"
        )

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> None:
        """Return nothing: what dagster-celery says here, it asks of a result backend."""

    def _ask_workers(self) -> None:
        """Ask the workers which tasks they execute, unless they were asked a moment ago."""
        if time.monotonic() - self._asked_at < SECONDS_BETWEEN_QUESTIONS:
            return
        workers = {watched.worker for watched in self._watched.values()}
        # All are asked, and waited for, only where it is not known who executes a run.
        whom = {} if None in workers else {"destination": [*workers], "limit": len(workers)}
        answers = self.celery.control.inspect(timeout=ANSWER_SECONDS, **whom).active() or {}
        self._asked_at = time.monotonic()
        worker_of = {task["id"]: worker for worker, tasks in answers.items() for task in tasks}
        for task, watched in list(self._watched.items()):
            if task in worker_of:
                watched.worker, watched.misses = worker_of[task], 0
            elif watched.misses < MISSES_OF_AN_ENDED_RUN:
                watched.misses += 1
            else:
                del self._watched[task]
