"""How far a pack is, told to a callback and to the hooks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple


class PackProgress(NamedTuple):
    """One report. ``total`` is None where it is not known; ``seconds`` passed since the phase began."""

    phase: str
    done: int
    total: int | None
    seconds: float


class Reporter:
    """Reports at most so often as anybody wants to read it."""

    def __init__(self, hooks: Any, callback: Callable[[PackProgress], None] | None, interval: float = 0.2):
        self._callback = callback
        self._hooks = hooks if hooks.listens("relstorage_pack_progress") else None
        self._interval = interval
        self._phase = ""
        self._total: int | None = None
        self._began = self._next = 0.0

    def begin(self, phase: str, total: int | None) -> None:
        """Enter a phase."""
        self._phase, self._total = phase, total
        self._began = self._next = time.monotonic()
        self.report(0)

    def report(self, done: int, final: bool = False) -> None:
        """Tell how much is done, unless that was told just now."""
        now = time.monotonic()
        if now < self._next and not final:
            return
        self._next = now + self._interval
        progress = PackProgress(self._phase, done, self._total, now - self._began)
        if self._callback is not None:
            self._callback(progress)
        if self._hooks is not None:
            self._hooks.relstorage_pack_progress(progress=progress)
