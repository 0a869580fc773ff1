"""The Celery worker of `vsvi worker`: executes one run at a time, each in a new process.

Only what Celery itself needs is imported here. The process of a run is a fork of the worker's,
in which the threads of libraries that are loaded before would be missing.
"""

import ctypes
import signal
import sys
from typing import Any

from celery.signals import worker_process_init
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task

from vsvi_assets.orchestration.celery_app import QUEUE, app_arguments

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent ends."""

app = make_app({**app_arguments(), "task_default_queue": QUEUE})
# Answers go over the connection by which the question came. A new one for each takes several round
# trips, of which each lasts a second where photographs fill the link.
app.control.mailbox.producer_pool = None
execute_job = create_execute_job_task(app)


@worker_process_init.connect
def end_with_the_worker(**_: Any) -> None:
    """Let the process of a run end with its worker, after which the run starts again elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
