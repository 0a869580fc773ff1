"""The Celery app that hands runs to workers, the same in the launcher and in each worker."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vsvi_assets.files import TextFileError, read_text
from vsvi_assets.settings import SettingError

BROKER_URL = "VSVI_BROKER_URL"
"""The setting with the address of Redis, such as redis://redis.example:6379/0."""

BROKER_PASSWORD_FILE = "VSVI_BROKER_PASSWORD_FILE"
"""The setting with the path of the file that holds the password of Redis, where it has one."""

QUEUE = "dagster"

CONNECT_SECONDS = 5

CONFIGURATION: dict[str, Any] = {
    # A worker executes one run at a time, in a process of its own, and takes the next from Redis
    # only then: a run that waits can be taken by any worker, and is not lost with one.
    "worker_concurrency": 1,
    "worker_max_tasks_per_child": 1,
    "worker_disable_prefetch": True,
    # What runs goes on while Redis is away, and the worker waits for Redis for ever.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_transport_options": {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": CONNECT_SECONDS,
        "socket_keepalive": True,
    },
    # Each question and each launch has a connection of its own: one that is kept is of no more
    # use once Redis was away, and to publish by it again does not always help.
    "broker_pool_limit": None,
    "task_publish_retry": False,
}


def app_arguments() -> dict[str, Any]:
    """Return the arguments of the Celery app, by the settings of the environment.

    Raises
    ------
    SettingError
        When VSVI_BROKER_URL is not the address of a Redis server, or the file of
        VSVI_BROKER_PASSWORD_FILE cannot be read.
    """
    url = os.environ.get(BROKER_URL, "")
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise SettingError(f"{BROKER_URL}: must be an address as redis://redis.example:6379/0")
    configuration = dict(CONFIGURATION)
    if path := os.environ.get(BROKER_PASSWORD_FILE):
        try:
            configuration["broker_password"] = read_text(Path(path)).strip()
        except TextFileError as error:
            raise SettingError(f"{BROKER_PASSWORD_FILE}: {error}") from error
    return {
        "broker": url,
        # Who asks a result backend for a run that it has not heard of gets the same answer as for
        # one that is lost. The workers know.
        "backend": "disabled://",
        "config_source": configuration,
    }
