"""Launches runs as jobs of a Kubernetes cluster."""

from dagster import DagsterRun
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import get_job_name_from_run_id
from kubernetes.client import ApiException, BatchV1Api
from urllib3.exceptions import HTTPError

from vsvi_assets.orchestration.dagster_internals import CheckRunHealthResult, WorkerStatus
from vsvi_assets.orchestration.launcher import health_of_command

ANSWER_SECONDS = 10
"""For how long the cluster's answer is waited for."""


class WatchedK8sRunLauncher(K8sRunLauncher):
    """dagster-k8s' launcher, which takes no run for lost that may be alive.

    dagster-k8s knows by a run's job alone that the run lives, and runs of `vsvi materialize` have
    none. And it says UNKNOWN of a job that is gone as well as when the cluster does not answer.
    Dagster then starts the run again, while its pod goes on.
    """

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        health = health_of_command(run) or super().check_run_worker_health(run)
        if health.status != WorkerStatus.UNKNOWN:
            return health
        if self._has_no_job(run):
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "The run's job was deleted")
        return CheckRunHealthResult(WorkerStatus.RUNNING, "The cluster does not say otherwise")

    def _has_no_job(self, run: DagsterRun) -> bool:
        name = get_job_name_from_run_id(run.run_id)
        namespace = self.get_container_context_for_run(run).namespace
        try:
            BatchV1Api().read_namespaced_job(name, namespace, _request_timeout=ANSWER_SECONDS)
        except ApiException as error:
            return bool(error.status == 404)
        except HTTPError:
            return False
        return False
