"""How work is measured: in a process of its own, for its time and its memory."""

import importlib
import multiprocessing
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

_spawning = multiprocessing.get_context("spawn")


@dataclass
class Clock:
    """Measures what happens within `with clock:`; what comes before is preparation."""

    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> None:
        # The kernel's highest mark of this process's memory is reset (proc(5)).
        Path("/proc/self/clear_refs").write_text("5")
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started


@dataclass(frozen=True)
class Measured:
    """Seconds, the highest memory (MB) of the process that worked and of what it started, and
    whatever else it found out."""

    seconds: float
    memory: float
    facts: dict[str, Any]


Work = Callable[..., None]


def measure(work: Work, *arguments: object) -> Measured:
    """Run `work(clock, *arguments)` in a new process."""
    [results, sender] = _spawning.Pipe(duplex=False)
    process = _spawning.Process(
        target=_work, args=(sender, work.__module__, work.__name__, arguments)
    )
    process.start()
    sender.close()
    try:
        measured: Measured = results.recv()
    except EOFError:
        raise SystemExit(f"{work.__module__}.{work.__name__} failed; see above.") from None
    finally:
        process.join()
    return measured


def in_turn(repeat: int, *sides: Callable[[], Measured]) -> list[Measured]:
    """Measure each side so many times, one after the other in turn; return their medians."""
    rounds = [[side() for side in sides] for _ in range(repeat)]
    return [middle(runs) for runs in zip(*rounds, strict=True)]


def middle(runs: Sequence[Measured]) -> Measured:
    """Return the median of the times, with the highest memory and the last facts."""
    return Measured(
        median(run.seconds for run in runs), max(run.memory for run in runs), runs[-1].facts
    )


def _work(sender: Connection, module: str, name: str, arguments: Sequence[object]) -> None:
    clock = Clock()
    getattr(importlib.import_module(module), name)(clock, *arguments)
    own = _status_kilobytes("self", "VmHWM")
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    sender.send(Measured(clock.seconds, max(own, started) / 1024, clock.facts))


@contextmanager
def server_memory(postmaster: int) -> Iterator[list[float]]:
    """Watch a PostgreSQL server; the list gets its highest memory in MB, shared parts once."""
    highest = [0.0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            highest[0] = max(highest[0], _server_megabytes(postmaster))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield highest
    finally:
        over.set()
        thread.join()


def _server_megabytes(postmaster: int) -> float:
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    private, shared = 0, 0
    for pid in (str(postmaster), *children):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            private += _status_kilobytes(pid, "RssAnon")
            shared = max(shared, _status_kilobytes(pid, "RssShmem"))
    return (private + shared) / 1024


def _status_kilobytes(process: str, name: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
