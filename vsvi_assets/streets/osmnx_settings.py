"""osmnx's settings, which are those of the whole process, set for a while."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import osmnx

_lock = threading.Lock()


@contextmanager
def osmnx_configured(user_agent: str, **settings: Any) -> Iterator[None]:
    """Set osmnx's settings for a while, during which no other thread can.

    It names this program to each service, asks nobody but the service for its address, and
    keeps no log.
    """
    settings |= {
        "http_user_agent": user_agent,
        "http_referer": user_agent,
        "doh_url_template": None,
        "log_console": False,
        "log_file": False,
    }
    with _lock:
        before = {name: getattr(osmnx.settings, name) for name in settings}
        try:
            for name, value in settings.items():
                setattr(osmnx.settings, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(osmnx.settings, name, value)
