"""Launches runs as jobs of a Kubernetes cluster."""

from dagster import DagsterRun
from dagster_k8s import K8sRunLauncher

from vsvi_assets.orchestration.dagster_internals import CheckRunHealthResult
from vsvi_assets.orchestration.launcher import health_of_command


class WatchedK8sRunLauncher(K8sRunLauncher):
    """dagster-k8s' launcher, which does not take the runs of `vsvi materialize` for lost.

    They have no job, by which alone dagster-k8s knows that a run lives.
    """

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        return health_of_command(run) or super().check_run_worker_health(run)
