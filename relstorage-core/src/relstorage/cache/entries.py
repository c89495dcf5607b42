"""The entries of the state cache, and what each of them weighs.

An entry is one revision of one object. A reader needs no lock for it: ``until`` only ever falls, from OPEN to one
above every view in use, and the rest of a revision never changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ids import to_bytes

#: ``until`` of a revision that nothing is known to have superseded; above every tid.
OPEN = 2**64

# What CPython 3.11 (64 bit) takes for an entry besides the bytes of its state. By sys.getsizeof:
#   88       the entry: headers for objects and the garbage collector (32), seven slots
#   56       the record, a tuple of two
#   33 + 41  the headers of two bytes objects, the 8 bytes of the tid
#   32 + 36  oid and tid as int; 28 the weight
#   30       what the allocator adds to these by rounding up to 16
#   30-110   a slot of the dict, depending on how long ago it grew
#   12       a slot of a queue, tombstones included
#   60       at most one ghost for each entry: its oid, a slot of a dict
# In all 450 to 530, which is also what tracemalloc finds for 1,000 to 100,000 entries.
OVERHEAD = 480


def weigh(kept: bytes) -> int:
    """Return the bytes that an entry with this state, as it is kept, counts for; nothing else in the cache says so."""
    return len(kept) + OVERHEAD


class Entry:
    """One revision: at every view with ``tid <= view < until`` this is the object's state."""

    __slots__ = ("hits", "oid", "queue", "record", "tid", "until", "weight")

    def __init__(self, oid: int, tid: int, state: bytes) -> None:
        self.oid = oid
        self.tid = tid
        self.until = OPEN
        self.hits = 0
        self.weight = weigh(state)
        #: The queue that the entry stands in, None once it was dropped.
        self.queue: Any = None
        #: What a lookup returns: the state, and the tid as 8 bytes. None once the entry was dropped.
        self.record: tuple[bytes, bytes] | None = (state, to_bytes(tid))

    def release(self) -> None:
        """Give up the state: a queue may hold the entry for a while after it was dropped."""
        self.record = None


class CompressedEntry:
    """A revision like ``Entry`` whose state is kept compressed; reading ``record`` decompresses it."""

    __slots__ = ("_decompress", "_kept", "_tid_bytes", "hits", "oid", "queue", "tid", "until", "weight")

    def __init__(self, oid: int, tid: int, kept: bytes, decompress: Callable[[bytes], bytes]) -> None:
        self.oid = oid
        self.tid = tid
        self.until = OPEN
        self.hits = 0
        self.weight = weigh(kept)
        self.queue: Any = None
        self._kept: bytes | None = kept
        self._tid_bytes = to_bytes(tid)
        self._decompress = decompress

    @property
    def record(self) -> tuple[bytes, bytes] | None:
        """Return the state and the tid as 8 bytes, or None once the entry was dropped."""
        kept = self._kept
        return None if kept is None else (self._decompress(kept), self._tid_bytes)

    def release(self) -> None:
        """Give up the state: a queue may hold the entry for a while after it was dropped."""
        self._kept = None


AnyEntry = Entry | CompressedEntry
