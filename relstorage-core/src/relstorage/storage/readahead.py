"""Guess what will be read next: objects that were made together have neighbouring oids and are often read in that
order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from relstorage.sql.contract import READ_AHEAD_BYTES

#: A miss this close above the one before counts as reading in order.
_NEAR = 4
#: How many oids a read-ahead covers at first and at most, and how many bytes of states it may bring.
_FIRST_SPAN, _LARGEST_SPAN = 8, 64
_MOST_BYTES = READ_AHEAD_BYTES


class ReadAhead:
    """Objects that were made together have neighbouring oids and are often read in that order.

    After the second miss in a row, the objects behind it are read with it in one query. They wait here, for this view
    only, and enter the state cache when they are asked for. A miss elsewhere ends it, so that random reads cost nothing
    more.
    """

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[bytes, int]] = {}
        self._last = -_NEAR - 1
        self._span = _FIRST_SPAN
        self._in_order = False

    def span(self, oid: int) -> int:
        """Return how many oids to read for this miss: 1 for it alone."""
        near = 0 < oid - self._last <= _NEAR
        ahead = near and self._in_order
        self._in_order = near
        self._last = oid
        if not near:
            self._span = _FIRST_SPAN
        return self._span if ahead else 1

    def took(self, oid: int) -> None:
        """Note that an object that waited here was asked for."""
        self._last = oid

    def fill(self, rows: Iterator[Any]) -> None:
        """Keep what a query brought, and choose the next span."""
        self.waiting = {}
        size = 0
        for oid, state, tid in rows:
            if state:
                self.waiting[oid] = (state, tid)
                size += len(state)
                if size >= _MOST_BYTES:
                    break
        self._span = min(self._span * 2, _LARGEST_SPAN) if size < _MOST_BYTES // 2 else max(self._span // 4, 2)

    def clear(self) -> None:
        """Forget what belongs to a view that ended."""
        self.waiting.clear()
        self._last = -_NEAR - 1
