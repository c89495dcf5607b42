"""A record of what the cache was asked, in the format of ZEO's client cache (``ZEO_CACHE_TRACE``).

ZEO's ``cache_stats`` and ``cache_simul`` read the file. Each record is a big-endian header of 26 bytes, followed by the
oid: seconds since the epoch, size of the state shifted by 8 bits plus a code, length of the oid, tid, end tid.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from struct import Struct
from threading import Lock
from typing import Any

from ..ids import EVERYTHING, to_bytes, to_int
from .states import StateCache

_HEADER = Struct(">IiHQQ")
# The code and the size share a signed 32 bit integer.
_LARGEST_SIZE = 2**23 - 1


class Event(IntEnum):
    """The codes of ZEO's format that this cache has a use for: operation, then outcome."""

    START = 0x00
    INVALIDATE_MISS = 0x10
    INVALIDATE_HIT = 0x1C
    LOAD_MISS = 0x20
    LOAD_HIT = 0x22
    LOAD_OLD_HIT = 0x26
    STORE = 0x52


class Tracer:
    """Append trace records to a file; any number of threads may call it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "ab")  # noqa: SIM115  kept open until close()
        self._lock = Lock()
        self(Event.START)

    def __call__(self, event: Event, oid: int | None = None, tid: int = 0, end_tid: int = 0, size: int = 0) -> None:
        """Write one record; the first of a run has no oid."""
        name = b"" if oid is None else to_bytes(oid)
        coded = (min(size, _LARGEST_SIZE) << 8) + event
        record = _HEADER.pack(int(time.time()), coded, len(name), tid, end_tid) + name
        with self._lock:
            if not self._file.closed:
                self._file.write(record)

    def close(self) -> None:
        """Write out what is buffered; later records are ignored."""
        with self._lock:
            self._file.close()


class TracedStateCache(StateCache):
    """A state cache that reports lookups, stores and invalidations to ``trace``, a ``Tracer`` or alike."""

    def __init__(self, limit: int, *, trace: Callable[..., None], **options: Any) -> None:
        super().__init__(limit, **options)
        self._trace = trace

    def lookup(self, oid: int, view: int) -> tuple[bytes, bytes] | None:
        found = super().lookup(oid, view)
        if found is None:
            self._trace(Event.LOAD_MISS, oid, view)
        else:
            event = Event.LOAD_HIT if self.contains(oid, self.horizon) else Event.LOAD_OLD_HIT
            self._trace(event, oid, to_int(found[1]), size=len(found[0]))
        return found

    def learn(self, since: int | None, upto: int, changes: Sequence[tuple[int, int]]) -> None:
        known = self.horizon
        for oid, tid in changes:
            if oid != EVERYTHING and known < tid <= upto:
                self._trace(Event.INVALIDATE_HIT if self.contains(oid, known) else Event.INVALIDATE_MISS, oid, tid)
        super().learn(since, upto, changes)

    def remember(self, oid: int, tid: int, state: bytes, view: int) -> None:
        super().remember(oid, tid, state, view)
        if self.contains(oid, max(tid, view)):
            self._trace(Event.STORE, oid, tid, size=len(state))

    def remember_commit(self, tid: int, records: Iterable[tuple[int, bytes]]) -> None:
        for oid, state in records:
            self.remember(oid, tid, state, tid)

    def forget(self, oids: Iterable[int]) -> None:
        oids = list(oids)
        for oid in oids:
            self._trace(Event.INVALIDATE_MISS, oid)
        super().forget(oids)
