"""The supply of new object ids: ranges are reserved in the database, ids are handed out from memory.

Ranges grow while the demand lasts, so that a bulk import asks the database rarely and an idle process wastes little.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SMALLEST_RANGE = 64
LARGEST_RANGE = 4096
#: A range that lasted shorter than this, in seconds, is followed by one four times as large.
BUSY = 1.0


class OidSupply:
    """New object ids of one process. ``reserve(count, at_least)`` returns a ``range`` that nobody else gets."""

    def __init__(self, reserve: Callable[[int, int], range]):
        self._reserve = reserve
        self._lock = threading.Lock()
        self._ids = iter(range(0))
        self._size = SMALLEST_RANGE
        self._reserved_at = 0.0
        self._floor = 0

    def new(self) -> int:
        """Return an id that was never used."""
        with self._lock:
            for oid in self._ids:
                if oid > self._floor:
                    return oid
            now = time.monotonic()
            if now - self._reserved_at < BUSY:
                self._size = min(self._size * 4, LARGEST_RANGE)
            else:
                self._size = SMALLEST_RANGE
            self._reserved_at = now
            self._ids = iter(self._reserve(self._size, self._floor))
            return next(self._ids)

    def raise_to(self, oid: int) -> None:
        """Hand out no id up to this one any more: somebody stored it without asking here."""
        with self._lock:
            self._floor = max(self._floor, oid)

    def restart(self) -> None:
        """Forget the reserved range, after the database was emptied."""
        with self._lock:
            self._ids = iter(range(0))
            self._floor = 0
