"""How far a long step is: one bar per asset in a terminal, a line now and then in a log."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from vsvi_assets.files import gigabytes

SECONDS_BETWEEN_LINES = 30.0

NARROWEST_TERMINAL = 40
"""Columns below which a terminal gets lines: some say that they have none."""

Report = Callable[[str], object]
"""Takes a line for people, as a logger's `info` does."""


class Advance(Protocol):
    """Counts one more, and the bytes that came with it."""

    def __call__(self, bytes_: int = 0) -> object: ...


class Progress(Protocol):
    """Where the steps of a run report how far they are.

    `asset` is the name of the step's asset, such as "demo/image_files".
    """

    def expect(self, asset: str, total: int) -> None:
        """Count over all runs of an asset, which have `total` to do together.

        Said again, so many more than was said before.
        """

    def started(self, asset: str) -> None:
        """Take note that a step begins."""

    def counting(self, asset: str, total: int, unit: str, log: Report) -> Advance:
        """Return what the step calls for each of `total` that it has done; `log` is its log."""

    def warned(self, message: str) -> None:
        """Take note of a warning in a step's log."""

    def finished(self, asset: str) -> None:
        """Take note that a step has succeeded."""


@contextmanager
def progress_on(file: TextIO) -> Iterator[Progress]:
    """Give bars where `file` is a terminal of some width, and lines where it is not."""
    if not file.isatty() or os.get_terminal_size(file.fileno()).columns < NARROWEST_TERMINAL:
        yield LogProgress(lambda line: print(line, file=file, flush=True))
        return
    terminal = TerminalProgress(file)
    try:
        yield terminal
    finally:
        terminal.close()


@dataclass
class _Count:
    total: int
    unit: str
    done: int = 0
    bytes: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, bytes_: int) -> None:
        self.done += 1
        self.bytes += bytes_

    def __str__(self) -> str:
        text = f"{self.done:,} of {self.total:,} {self.unit}"
        if self.bytes:
            text += f", {gigabytes(self.bytes)}"
        rate = self.done / max(time.monotonic() - self.began, 1e-3)
        if rate:
            text += f", {rate:,.1f} per second"
        if rate and self.done < self.total:
            text += f", {timedelta(seconds=round((self.total - self.done) / rate))} left"
        return text


class LogProgress:
    """Reports a line every so many seconds.

    Parameters
    ----------
    report
        Takes the lines, and one more at the beginning and the end of each step. None: they
        go to the step's own log, where Dagster notes beginning and end itself.
    every
        Seconds from line to line.
    """

    def __init__(self, report: Report | None = None, every: float = SECONDS_BETWEEN_LINES) -> None:
        self._report, self._every = report, every
        self._expected: dict[str, int] = {}
        self._counts: dict[str, _Count] = {}

    def expect(self, asset: str, total: int) -> None:
        self._expected[asset] = self._expected.get(asset, 0) + total

    def started(self, asset: str) -> None:
        if self._report:
            self._report(f"{asset}: started")

    def counting(self, asset: str, total: int, unit: str, log: Report) -> Advance:
        if asset not in self._counts or asset not in self._expected:
            self._counts[asset] = _Count(total, unit)
        count = self._counts[asset]
        count.total = self._expected.get(asset, total)
        report = self._report or log
        next_line = time.monotonic() + self._every

        def advance(bytes_: int = 0) -> None:
            nonlocal next_line
            count.add(bytes_)
            if time.monotonic() >= next_line or count.done == count.total:
                report(f"{asset}: {count}")
                next_line = time.monotonic() + self._every

        return advance

    def warned(self, message: str) -> None:
        if self._report:
            self._report(message)

    def finished(self, asset: str) -> None:
        if self._report:
            self._report(f"{asset}: done")


class TerminalProgress:
    """Draws one bar per asset, one below the other."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        # One column less than there are: in the last one, terminals begin a new line.
        self._columns = os.get_terminal_size(file.fileno()).columns - 1
        self._expected: dict[str, int] = {}
        self._bars: dict[str, _Bar] = {}
        self._bytes = 0

    def expect(self, asset: str, total: int) -> None:
        self._expected[asset] = self._expected.get(asset, 0) + total

    def started(self, asset: str) -> None:
        self._bar(asset)

    def counting(self, asset: str, total: int, unit: str, log: Report) -> Advance:
        bar = self._bar(asset)
        total = self._expected.get(asset, total)
        # As long as it becomes: the figures are to be whole, and the bar takes what they leave.
        longest = len(f"{total:,} of {total:,} {unit}, 999.9 MB, 999.99/s, 00:00 left")
        if total and not bar.n:
            bar.bar_format = self._format(
                "{n:,} of {total:,} " + unit + "{postfix}, {rate_noinv_fmt}, {remaining} left",
                longest,
            )
            bar.reset(total)
        elif total:
            bar.total = total

        def advance(bytes_: int = 0) -> None:
            self._bytes += bytes_
            if self._bytes:
                bar.set_postfix_str(gigabytes(self._bytes), refresh=False)
            if bar.n + 1 == bar.total:
                bar.bar_format = self._format(
                    "{n:,} " + unit + "{postfix}, {rate_noinv_fmt}, {elapsed}", longest
                )
            bar.update()

        return advance

    def warned(self, message: str) -> None:
        tqdm.write(message, file=self._file)

    def finished(self, asset: str) -> None:
        bar = self._bars[asset]
        if bar.total == 1 and not bar.n:
            bar.update()
        bar.refresh()

    def close(self) -> None:
        """Leave the bars as they are, and the cursor below them."""
        for bar in self._bars.values():
            bar.close()

    def _bar(self, asset: str) -> "_Bar":
        if asset not in self._bars:
            self.close()
            self._bytes = 0
            self._bars[asset] = _Bar(
                desc=f"{asset.rpartition('/')[2]:<18}",
                total=1,
                unit="",
                bar_format=self._format("{elapsed}"),
                file=self._file,
                ncols=self._columns,
                mininterval=0.2,
            )
        return self._bars[asset]

    def _format(self, text: str, longest: int = 48) -> str:
        width = min(self._columns - 25 - longest, 20)
        bar = "{bar:" + str(width) + "} " if width > 0 else ""
        return "{desc} {percentage:3.0f}% " + bar + text


class _Bar(tqdm):
    @staticmethod
    def format_meter(*args: Any, **kwargs: Any) -> str:
        # Rates below ten come with a space in front.
        return str(tqdm.format_meter(*args, **kwargs)).replace(",  ", ", ")
