"""Which entries stay within the cache's limit: S3-FIFO, weighed in bytes.

Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. A new entry goes to the end of the *small*
queue. From its front it moves to the *main* queue if it was hit in the meantime, and leaves otherwise: so objects that
are read once, as by a scan, never displace those that are read often. From the front of main, an entry that was hit
goes round again. The oids that left small are remembered for a while (*ghosts*), and one that returns goes straight to
main.

A hit only increments a counter on the entry, so that a reader needs no lock. All else happens under the owner's lock.
"""

from __future__ import annotations

from collections import deque

from .entries import OPEN, AnyEntry

#: The part of the limit that is the small queue's.
SMALL_SHARE = 0.1
#: Hits beyond this many do not keep an entry in the main queue for longer.
MOST_ROUNDS = 3


class Queue:
    """Entries in the order they came, with their summed weight.

    An entry that is dropped from the middle leaves a tombstone. The queue is rebuilt before tombstones outnumber the
    living, so that it stays proportional to these and a drop costs constant time on average.
    """

    def __init__(self) -> None:
        self.weight = 0
        self._slots: deque[AnyEntry] = deque()
        self._tombstones = 0

    def __len__(self) -> int:
        return len(self._slots) - self._tombstones

    def slots(self) -> int:
        """Return the number of entries and tombstones."""
        return len(self._slots)

    def append(self, entry: AnyEntry) -> None:
        entry.queue = self
        self._slots.append(entry)
        self.weight += entry.weight

    def popleft(self) -> AnyEntry:
        """Take out the oldest entry; there must be one."""
        entry = self._slots.popleft()
        while entry.queue is None:
            self._tombstones -= 1
            entry = self._slots.popleft()
        self.weight -= entry.weight
        entry.queue = None
        return entry

    def drop(self, entry: AnyEntry) -> None:
        """Take out an entry, wherever it stands."""
        self.weight -= entry.weight
        entry.queue = None
        entry.release()
        self._tombstones += 1
        if self._tombstones > 16 and self._tombstones * 2 > len(self._slots):
            self._slots = deque(entry for entry in self._slots if entry.queue is not None)
            self._tombstones = 0

    def clear(self) -> None:
        for entry in self._slots:
            entry.queue = None
            entry.release()
        self._slots.clear()
        self._tombstones = 0
        self.weight = 0


class Ghosts:
    """Oids of entries that were evicted not long ago: the last half as many as the limit, or up to the limit."""

    def __init__(self) -> None:
        # Two generations in place of a queue. Dicts, because they take less memory than sets.
        self._young: dict[int, None] = {}
        self._old: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def add(self, oid: int, limit: int) -> None:
        if len(self._young) * 2 >= limit:
            self._old = self._young
            self._young = {}
        self._young[oid] = None

    def take(self, oid: int) -> bool:
        """Forget the oid and return whether it was here."""
        for generation in (self._young, self._old):
            if oid in generation:
                del generation[oid]
                return True
        return False

    def clear(self) -> None:
        self._young = {}
        self._old = {}


class Residents:
    """The entries that the cache holds, one for each oid, within a limit of bytes.

    ``entries`` is always the same dict; a reader may look into it without the lock.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: dict[int, AnyEntry] = {}
        self.evictions = 0
        #: Hits that are no longer counted on an entry.
        self.past_hits = 0
        self._small = Queue()
        self._small_limit = int(limit * SMALL_SHARE)
        self._main = Queue()
        self._ghosts = Ghosts()

    @property
    def weight(self) -> int:
        """Return the bytes of all entries together."""
        return self._small.weight + self._main.weight

    def hits(self) -> int:
        """Return the number of hits so far; its cost is proportional to the number of entries."""
        return self.past_hits + sum(entry.hits for entry in self.entries.values())

    def slots(self) -> int:
        """Return how many places the queues and ghosts take, tombstones included."""
        return self._small.slots() + self._main.slots() + len(self._ghosts)

    def add(self, entry: AnyEntry) -> None:
        """Insert an entry, in the place of the oid's older one, and evict what is too much; it must fit the limit."""
        older = self.entries.get(entry.oid)
        if older is not None:
            queue = older.queue
            # The object stays as popular as it was, and its hits are counted on.
            entry.hits = older.hits
            queue.drop(older)
        elif self._ghosts.take(entry.oid):
            queue = self._main
        else:
            queue = self._small
        self.entries[entry.oid] = entry
        queue.append(entry)
        small, main = self._small, self._main
        while small.weight + main.weight > self.limit:
            if small.weight > self._small_limit or not main.weight:
                self._evict_from_small()
            else:
                self._evict_from_main()

    def drop(self, entry: AnyEntry) -> None:
        """Remove an entry that is here."""
        del self.entries[entry.oid]
        self._count_hits_of(entry)
        entry.queue.drop(entry)

    def clear(self) -> None:
        """Remove every entry."""
        self.past_hits = self.hits()
        self.entries.clear()
        self._small.clear()
        self._main.clear()
        self._ghosts.clear()

    def _evict_from_small(self) -> None:
        entry = self._small.popleft()
        if entry.hits and entry.until == OPEN:
            self._count_hits_of(entry)
            entry.hits = 0
            self._main.append(entry)
        else:
            self._evict(entry)
            self._ghosts.add(entry.oid, len(self.entries))

    def _evict_from_main(self) -> None:
        entry = self._main.popleft()
        if entry.hits and entry.until == OPEN:
            rounds = min(entry.hits, MOST_ROUNDS) - 1
            self.past_hits += entry.hits - rounds
            entry.hits = rounds
            self._main.append(entry)
            return
        self._evict(entry)
        if entry.hits:
            # Superseded but in use: its next revision belongs here.
            self._ghosts.add(entry.oid, len(self.entries))

    def _evict(self, entry: AnyEntry) -> None:
        del self.entries[entry.oid]
        self._count_hits_of(entry)
        self.evictions += 1

    def _count_hits_of(self, entry: AnyEntry) -> None:
        self.past_hits += entry.hits
