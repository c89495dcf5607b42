"""How far a long work is: a bar on a terminal, else a line in the log every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

#: Seconds between two lines in a log.
INTERVAL = 5.0

BYTES = "bytes"


def quantity(number: float, unit: str) -> str:
    """Return a number of things, bytes in a unit that suits them."""
    if unit != BYTES:
        return f"{number:,.0f} {unit}"
    for name in ("bytes", "kB", "MB", "GB"):
        if number < 1000 or name == "GB":
            break
        number /= 1000
    return f"{number:,.0f} {name}" if name == "bytes" else f"{number:,.1f} {name}"


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    minutes, whole = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{whole:02}"


class Meter:
    """Shows the progress of one piece of work. This one shows nothing."""

    def update(self, done: float, note: str = "") -> None:
        """Tell how much is done, and what else may be of interest."""


class LogMeter(Meter):
    """Writes lines to the log: done and total, rate, time left."""

    def __init__(self, title: str, unit: str, total: float | None, interval: float = INTERVAL):
        self._title = title
        self._unit = unit
        self._total = total
        self._interval = interval
        self._began = self._last = time.monotonic()

    def update(self, done: float, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        log.info("%s", self.line(done, note, now - self._began))

    def line(self, done: float, note: str, seconds: float) -> str:
        """Return the line for this much done in so many seconds."""
        text = f"{self._title}: {quantity(done, self._unit)}"
        rate = done / seconds if seconds > 0 else 0.0
        if self._total:
            text += f" of {quantity(self._total, self._unit)} ({min(100, 100 * done / self._total):.0f}%)"
        text += f", {quantity(rate, self._unit)}/s"
        if self._total and rate:
            text += f", {duration(max(0.0, self._total - done) / rate)} left"
        return f"{text}; {note}" if note else text


class BarMeter(Meter):
    """A bar of ``rich``."""

    def __init__(self, bars: Progress, title: str, unit: str, total: float | None):
        self._bars = bars
        self._unit = unit
        self._total = total
        self._began = time.monotonic()
        self._task = bars.add_task(title, total=total, note="", amount="")

    def update(self, done: float, note: str = "") -> None:
        seconds = time.monotonic() - self._began
        amount = quantity(done, self._unit)
        if self._total:
            amount += f" of {quantity(self._total, self._unit)}"
        if seconds > 0:
            amount += f", {quantity(done / seconds, self._unit)}/s"
        self._bars.update(self._task, completed=done, amount=amount, note=note)


@contextmanager
def meter(title: str, unit: str, total: float | None = None) -> Iterator[Meter]:
    """Show the progress of what happens in the block."""
    if not sys.stderr.isatty():
        log.info("%s", f"{title}: {quantity(total, unit)}" if total else title)
        yield LogMeter(title, unit, total)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bars:
        yield BarMeter(bars, title, unit, total)
