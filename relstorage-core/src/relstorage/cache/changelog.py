"""What changed recently: every (oid, tid) after ``floor``, oldest first.

Polls append to it, storages read from it what changed since their last view, and the cache asks it for the last known
change of an oid. It is bounded: when it grows beyond its limit, it forgets whole transactions, oldest first, and
raises the floor.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class ChangeLog:
    """A bounded, ordered log of changes. It has no lock; its owner serialises every call."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.floor = -1
        #: The last logged change of each oid. An oid that is not here did not change after ``floor``.
        self.changed: dict[int, int] = {}
        # 16 bytes for each change, where a list of tuples takes about 150.
        self._tids = array("q")
        self._oids = array("q")

    def __len__(self) -> int:
        return len(self._tids)

    def append(self, changes: Iterable[tuple[int, int]]) -> None:
        """Log (tid, oid) pairs that are in order and newer than all that are logged."""
        for tid, oid in changes:
            self._tids.append(tid)
            self._oids.append(oid)
            self.changed[oid] = tid
        self._trim()

    def merge(self, changes: Iterable[tuple[int, int]]) -> None:
        """Log those of the (tid, oid) pairs that are not older than the floor and not logged yet, where they belong."""
        for tid, oid in changes:
            start = bisect_left(self._tids, tid)
            end = bisect_right(self._tids, tid, start)
            if tid > self.floor and oid not in self._oids[start:end]:
                self._tids.insert(end, tid)
                self._oids.insert(end, oid)
                self.changed[oid] = max(tid, self.changed.get(oid, tid))
        self._trim()

    def _trim(self) -> None:
        excess = len(self._tids) - self.limit
        if excess <= 0:
            return
        # Never half of a transaction: the floor promises that all that is newer is here.
        self.floor = self._tids[excess - 1]
        end = bisect_right(self._tids, self.floor)
        for oid in self._oids[:end]:
            if self.changed.get(oid, self.floor + 1) <= self.floor:
                del self.changed[oid]
        del self._tids[:end]
        del self._oids[:end]

    def between(self, since: int, upto: int) -> list[tuple[int, int]]:
        """Return the (oid, tid) pairs with ``since < tid <= upto``; ``since`` is not below the floor."""
        start = bisect_right(self._tids, since)
        end = bisect_right(self._tids, upto, start)
        return list(zip(self._oids[start:end], self._tids[start:end], strict=True))

    def start_over(self, floor: int) -> None:
        """Forget everything; what changes after ``floor`` will be logged."""
        del self._tids[:]
        del self._oids[:]
        self.changed.clear()
        self.floor = floor
