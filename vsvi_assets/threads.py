"""Threads that no interrupt has to wait for."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

GRACE_SECONDS = 1.0
"""How long threads have to end by themselves after an interrupt."""

T = TypeVar("T")


class DaemonThreads(Executor):
    """Runs tasks in threads for whose end the process does not wait.

    A thread that looks up a name, or waits for a server that is silent, cannot be woken, least
    of all behind a proxy. Those of `concurrent.futures.ThreadPoolExecutor` are waited for at
    the end of the process, so that one such request would hold an interrupt up.
    """

    def __init__(self, count: int) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._is_open = True
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"vsvi-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        """Run a task as soon as a thread is free; raise RuntimeError after `shutdown`."""
        future: Future[T] = Future()
        with self._lock:
            if not self._is_open:
                raise RuntimeError("the threads end, and take no task any more")
            self._tasks.put((future, partial(task, *arguments, **options)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end after the tasks that are waiting, or without them."""
        with self._lock:
            self._is_open = False
        with suppress(Empty):
            while cancel_futures:
                if task := self._tasks.get_nowait():
                    task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            self.join()

    def join(self, seconds: float = math.inf) -> None:
        """Wait until the threads have ended, for some seconds at most."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            left = deadline - time.monotonic()
            thread.join(None if math.isinf(left) else max(left, 0.0))

    def _work(self) -> None:
        while task := self._tasks.get():
            run_task(*task)


def run_task(future: Future[T], task: Callable[[], T]) -> None:
    """Run a task for those who wait for the future."""
    if future.set_running_or_notify_cancel():
        try:
            result = task()
        except BaseException as error:  # noqa: BLE001 - raised by result()
            future.set_exception(error)
        else:
            future.set_result(result)


@contextmanager
def interruptible_workers(count: int) -> Iterator[tuple[Executor, threading.Event]]:
    """Give threads to wait in, as for requests, and an event to hand to what can be stopped.

    When the block is left by an exception the event is set. Threads that are at work then have a
    second to end, and do nothing more once it is over; no others are left.
    """
    stop = threading.Event()
    pool = DaemonThreads(count)
    try:
        yield pool, stop
    except BaseException:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        pool.join(GRACE_SECONDS)
        raise
    pool.shutdown()
