"""The state cache: which revision a reader at a view may use, kept right while other threads poll, load and commit.

``horizon`` is the newest tid up to which this process knows every change, and no view is above it. An entry is a
revision and ``until``, the first tid at which it is not known to be current; at a view it may be used iff
``tid <= view < until``.
``learn`` closes entries and raises the horizon; ``remember`` inserts what was read at a view, unless a change after
that view is known, or might have been forgotten. This holds for any order in which threads arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock

from ..ids import EVERYTHING
from .changelog import ChangeLog
from .codecs import Codec
from .entries import AnyEntry, CompressedEntry, Entry
from .eviction import Residents


@dataclass(frozen=True)
class CacheStatistics:
    """What the cache did since the counters were last reset, and what it holds.

    ``hits`` and ``misses`` are counted without a lock, so threads that count at the same moment may lose one.
    """

    hits: int
    misses: int
    stores: int
    evictions: int
    #: Revisions that were offered and not kept: superseded, read too long ago, or too large.
    discarded: int
    entries: int
    bytes: int
    limit: int
    horizon: int
    floor: int
    log_length: int

    @property
    def ratio(self) -> float:
        """Return hits per lookup, 0.0 before the first."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0


class StateCache:
    """Keep the newest known revision of recently used objects, for all connections of one process.

    ``limit`` is in bytes; 0 keeps no states, and the log of changes still works. States that are ``object_max`` bytes
    or more as kept are not stored; 0 means no bound. ``log_limit`` is a number of changes.
    """

    def __init__(
        self, limit: int, *, object_max: int = 16384, log_limit: int = 100_000, codec: Codec | None = None
    ) -> None:
        #: The newest tid up to which every change is known; -1 before the first ``learn``.
        self.horizon = -1
        self.limit = limit
        self._object_max = object_max
        self._codec = codec
        self._lock = Lock()
        self._log = ChangeLog(log_limit)
        self._residents = Residents(limit)
        self._find = self._residents.entries.get
        self._misses = 0
        self._stores = 0
        self._discarded = 0

    @property
    def floor(self) -> int:
        """Return the oldest tid after which the log has every change up to the horizon."""
        return self._log.floor

    # --- reading

    def lookup(self, oid: int, view: int) -> tuple[bytes, bytes] | None:
        """Return the state and the tid (8 bytes) of the object at a view that is not above the horizon, or None.

        None means that the cache does not know; the object may exist.
        """
        entry = self._find(oid)
        if entry is not None and entry.tid <= view < entry.until:
            entry.hits += 1
            return entry.record
        self._misses += 1
        return None

    def contains(self, oid: int, view: int) -> bool:
        """Return whether ``lookup`` would find the object, without counting as a use of it."""
        entry = self._find(oid)
        return entry is not None and entry.tid <= view < entry.until

    # --- what changed

    def learn(self, since: int | None, upto: int, changes: Sequence[tuple[int, int]]) -> None:
        """Take in the answer of a poll: ``changes`` are all (oid, tid) with ``since < tid <= upto``.

        ``since`` is None in a first poll, which asked for no changes. The oid ``EVERYTHING`` says that no older state
        may be used. Polls of several threads may overlap and arrive in any order. If one begins above the horizon,
        what happened between is unknown, and the cache starts over.

        Of an object that changed several times, ``changes`` may have the last alone, because that is what a table of
        current revisions tells. A poll that arrives when the horizon has passed it thus still adds to the log.
        """
        with self._lock:
            horizon = self.horizon
            if upto <= horizon:
                if upto < horizon and since is not None:
                    self._log.merge((tid, oid) for oid, tid in changes if since < tid <= upto)
                return
            if since is None or since > horizon:
                self._residents.clear()
                self._log.start_over(upto)
            else:
                fresh = sorted((tid, oid) for oid, tid in changes if horizon < tid <= upto)
                self._close(fresh)
                self._log.append(fresh)
            # Last: a reader may take the horizon as its view as soon as it is set.
            self.horizon = upto

    def _close(self, changes: list[tuple[int, int]]) -> None:
        # Not at the tid of the change: between the horizon and it there may have been others, which the poll left out.
        until = self.horizon + 1
        for tid, oid in changes:
            if oid == EVERYTHING:
                self._residents.clear()
                continue
            entry = self._find(oid)
            if entry is not None and entry.tid < tid and until < entry.until:
                entry.until = until

    def changes(self, since: int, upto: int) -> list[tuple[int, int]] | None:
        """Return all (oid, tid) with ``since < tid <= upto``, oldest first, or None if the log does not cover that."""
        if since == upto and self._log.floor <= upto <= self.horizon:
            return []
        with self._lock:
            if since < self._log.floor or upto > self.horizon:
                return None
            return self._log.between(since, upto)

    # --- filling

    def remember(self, oid: int, tid: int, state: bytes, view: int) -> None:
        """Offer a revision: at ``view``, the object's current revision was the one of ``tid``."""
        entry = self._entry(oid, tid, state)
        with self._lock:
            self._offer(entry, oid, tid, view)

    def remember_commit(self, tid: int, records: Iterable[tuple[int, bytes]]) -> None:
        """Offer what a commit has made current: (oid, state). It is so at its own tid, whether or not the horizon has
        reached that."""
        # A bulk commit has thousands of them.
        make, offer = self._entry, self._offer
        with self._lock:
            for oid, state in records:
                offer(make(oid, tid, state), oid, tid, tid)

    def _offer(self, entry: AnyEntry | None, oid: int, tid: int, view: int) -> None:
        if entry is None or self._may_be_superseded(oid, tid, view):
            self._discarded += 1
            return
        known = self._find(oid)
        if known is not None and known.tid >= tid:
            self._discarded += known.tid > tid
            return
        self._residents.add(entry)
        self._stores += 1

    def _entry(self, oid: int, tid: int, state: bytes) -> AnyEntry | None:
        """Return a new entry, or None if it is too large to be kept."""
        if not self.limit:
            return None
        entry: AnyEntry
        kept = state
        if self._codec is not None:
            compressed = self._codec.compress(state)
            kept = compressed if len(compressed) < len(state) else state
        if 0 < self._object_max <= len(kept):
            return None
        if self._codec is None or kept is state:
            entry = Entry(oid, tid, state)
        else:
            entry = CompressedEntry(oid, tid, kept, self._codec.decompress)
        return entry if entry.weight <= self.limit else None

    def _may_be_superseded(self, oid: int, tid: int, view: int) -> bool:
        changed = self._log.changed
        # Below the floor, a change after the view may have been logged and forgotten.
        return view < self._log.floor or changed.get(oid, -1) > tid or changed.get(EVERYTHING, -1) > view

    def forget(self, oids: Iterable[int]) -> None:
        """Drop the states of these objects."""
        with self._lock:
            for oid in oids:
                entry = self._find(oid)
                if entry is not None:
                    self._residents.drop(entry)

    def clear(self) -> None:
        """Drop all states and the log; the next ``learn`` is a first one.

        No reader may keep a view from before.
        """
        with self._lock:
            self.horizon = -1
            self._residents.clear()
            self._log.start_over(-1)

    def drop_states(self) -> None:
        """Drop all states. Readers go on with what is known of changes, and new entries."""
        with self._lock:
            self._residents.clear()

    # --- statistics

    def statistics(self) -> CacheStatistics:
        """Return the counters; the cost is proportional to the number of entries."""
        with self._lock:
            residents = self._residents
            return CacheStatistics(
                hits=residents.hits(),
                misses=self._misses,
                stores=self._stores,
                evictions=residents.evictions,
                discarded=self._discarded,
                entries=len(residents.entries),
                bytes=residents.weight,
                limit=self.limit,
                horizon=self.horizon,
                floor=self._log.floor,
                log_length=len(self._log),
            )
