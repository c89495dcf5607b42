"""How a storage reads: a view, a snapshot of the database that belongs to it, and the state cache in front.

``poll`` ends the old snapshot, begins a new one and says what changed in between. Until the next poll, or ``end``,
every load answers as of that moment. Without a snapshot, each call reads the newest state in a short one of its own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ZODB.POSException import POSKeyError

from relstorage.errors import RelStorageError, SnapshotLost, StaleConnectionError
from relstorage.ids import EVERYTHING, MAX_OID, to_bytes
from relstorage.storage.readahead import ReadAhead


class Reader:
    """The reading half of one storage."""

    def __init__(
        self,
        open_session: Callable[[], Any],
        statements: Any,
        cache: Any,
        hooks: Any,
        lineage: Any,
        revert_when_stale: bool = False,
    ):
        self._open_session = open_session
        self._sql = statements
        self._cache = cache
        self._hooks = hooks
        self._lineage = lineage
        self._revert_when_stale = revert_when_stale
        #: The generation of the server that the last poll was answered by.
        self.generation = lineage.generation
        self._tell_poll = hooks.listens("relstorage_polled")
        self._session: Any = None
        #: The tid at which loads answer; -1 without a snapshot, so that no cache entry fits.
        self.view = -1
        #: The view that the last poll reported; changes after it are still to be told.
        self.reported: int | None = None
        self._ahead = ReadAhead()
        #: The tids of own commits, whose changes are no news here.
        self._own: set[int] = set()
        # Only reads without a snapshot take it: with one, a storage is used by one thread at a time.
        self._lock = threading.RLock()

    # --- snapshot

    def poll(self) -> list[int] | None:
        """Move to the newest view; return the oids that others changed since the last poll, None if any may have."""
        previous = self.reported
        view, changes = self._begin(previous)
        self.view = self.reported = view
        changed: list[int] | None
        if previous is None:
            changed = []
        elif changes is None:
            changed = None
        else:
            own = self._own
            changed = list({oid for oid, tid in changes if tid not in own})
        self._own.clear()
        if self._tell_poll:
            self._hooks.relstorage_polled(view=view, changed=None if changed is None else len(changed))
        return changed

    def _begin(self, previous: int | None) -> tuple[int, list[tuple[int, int]] | None]:
        """Begin a snapshot, teach the cache what it did not know; return the view and the changes since
        ``previous``."""
        self.view = -1
        self._ahead.clear()
        session = self._session
        if session is None or session.lost:
            session = self._session = self._open_session()
            # A storage that is dropped without being released leaves no connection behind.
            weakref.finalize(self, session.close)
        cache, sql = self._cache, self._sql
        # Read before the snapshot begins: the snapshot then contains everything up to it.
        horizon = cache.horizon
        try:
            session.begin_snapshot()
            rows = session.rows(sql.changes_since, (horizon,)) if horizon >= 0 else []
            generation = self._lineage.follow(session)
            if generation != self.generation:
                # The horizon may be one that this server never reached.
                self.generation = generation
                return self._begin_anew(session), None
            if horizon < 0:
                view = session.row(sql.newest_tid)[0]
                cache.learn(None, view, ())
                self._refuse_if_stale(session, view)
                return view, [] if previous == view else None
            if rows:
                view = rows[-1][1]
                cache.learn(horizon, view, [row for row in rows if row[0] is not None])
            elif session.may_lag:
                view = min(horizon, session.row(sql.newest_tid)[0])
            else:
                view = horizon
            if self._refuse_if_stale(session, view):
                return view, None
            if previous is None or previous == view:
                return view, []
            changes = cache.changes(previous, view)
            if changes is None:
                changes = [row for row in session.rows(sql.changes_since, (previous,)) if row[0] is not None]
            if any(oid == EVERYTHING for oid, _ in changes):
                return view, None
            return view, changes
        except RelStorageError:
            self.end()
            raise

    def _begin_anew(self, session: Any) -> int:
        view: int = session.row(self._sql.newest_tid)[0]
        if self._cache.horizon < 0 or view > self._cache.horizon:
            self._cache.learn(None, view, ())
        return view

    def _refuse_if_stale(self, session: Any, view: int) -> bool:
        """Return False if this storage has seen nothing that the snapshot lacks; else raise, or return True where the
        options want to go back in time rather than fail."""
        if not session.may_lag or view >= max((self.reported or 0, *self._own)):
            return False
        if not self._revert_when_stale:
            raise StaleConnectionError(
                "Reading from a replica: it has not received yet what this storage has seen or committed. "
                "Run the transaction again."
            )
        return True

    def end(self) -> None:
        """End the snapshot; the connection holds no transaction afterwards."""
        self.view = -1
        self._ahead.clear()
        session = self._session
        if session is not None and session.in_transaction:
            session.rollback()

    def note_own(self, tid: int) -> None:
        """Leave the changes of this commit out of the next poll."""
        if self.reported is not None:
            self._own.add(tid)

    @contextmanager
    def snapshot(self) -> Iterator[tuple[Any, int]]:
        """Give the session within a snapshot, and the view: the storage's own, or a short one of the newest state."""
        if self.view >= 0:
            yield self._usable(), self.view
            return
        with self._lock:
            # The view of a short snapshot is not set: other threads would take the snapshot for theirs.
            view, _ = self._begin(None)
            try:
                yield self._session, view
            finally:
                self.end()

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Let the reads of other threads that have no snapshot wait, and end the snapshot afterwards."""
        with self._lock:
            try:
                yield
            finally:
                self.end()

    def _usable(self) -> Any:
        session = self._session
        if session.lost or not session.in_transaction:
            # Reading on in a new snapshot would mix two moments.
            self._hooks.relstorage_snapshot_lost(reason="the connection was lost")
            raise SnapshotLost(
                "Reading: the connection on which this transaction's snapshot lived is lost. Run the transaction again."
            )
        return session

    def close(self) -> None:
        """Give the connection up."""
        self.view = -1
        session, self._session = self._session, None
        if session is not None:
            session.close()

    # --- loads

    def load_missing(self, oid: int) -> tuple[bytes, bytes]:
        """Read the current revision, which the cache does not have, and remember it there."""
        if oid > MAX_OID:
            raise POSKeyError(to_bytes(oid))
        if self.view >= 0:
            ahead = self._ahead
            found = ahead.waiting.pop(oid, None)
            if found is not None:
                ahead.took(oid)
                state, tid = found
                self._cache.remember(oid, tid, state, self.view)
                return state, to_bytes(tid)
            session = self._usable()
            span = ahead.span(oid)
            if span > 1:
                ahead.fill(session.stream(self._sql.current_range, (oid + 1, oid + span)))
            return self._load_row(session, oid, self.view)
        with self.snapshot() as (session, view):
            return self._cache.lookup(oid, view) or self._load_row(session, oid, view)

    def _load_row(self, session: Any, oid: int, view: int) -> tuple[bytes, bytes]:
        row = session.row(self._sql.current_state, (oid,))
        if row is None or not row[0]:
            raise POSKeyError(to_bytes(oid))
        state, tid = row
        self._cache.remember(oid, tid, state, view)
        return state, to_bytes(tid)

    def load_before(self, oid: int, before: int) -> tuple[bytes, bytes, bytes | None] | None:
        """Return state, tid and following tid of the newest revision below ``before``; None if all are newer."""
        with self.snapshot() as (session, _):
            row = session.row(self._sql.state_before, (oid, before))
            if row is None:
                if session.row(self._sql.current_tid, (oid,)) is None:
                    raise POSKeyError(to_bytes(oid))
                return None
            state, tid = row
            if not state:
                raise POSKeyError(to_bytes(oid))
            following = session.row(self._sql.following_tid, (oid, tid))
            end = following[0] if following else None
            return state, to_bytes(tid), None if end is None else to_bytes(end)

    def load_revision(self, oid: int, tid: int) -> bytes:
        """Return the state of one revision."""
        if self.view >= 0:
            record = self._cache.lookup(oid, self.view)
            if record is not None and record[1] == to_bytes(tid):
                return record[0]
        with self.snapshot() as (session, _):
            row = session.row(self._sql.revision_state, (oid, tid))
        if row is None or not row[0]:
            raise POSKeyError(to_bytes(oid))
        return row[0]

    def prefetch(self, oids: Iterable[int]) -> None:
        """Bring the current revisions that the cache lacks into it, in one query."""
        if self.view < 0:
            return
        view, cache = self.view, self._cache
        missing = [oid for oid in oids if not cache.contains(oid, view)]
        if not missing:
            return
        for oid, state, tid in self._usable().rows(self._sql.current_states, (missing,)):
            if state:
                cache.remember(oid, tid, state, view)

    def states_at_view(self, oids: list[int]) -> dict[int, tuple[int, bytes]]:
        """Return (tid, state) of many objects as the view shows them, for conflict resolution."""
        found: dict[int, tuple[int, bytes]] = {}
        if self.view < 0:
            return found
        missing = []
        for oid in oids:
            record = self._cache.lookup(oid, self.view)
            if record is None:
                missing.append(oid)
            else:
                found[oid] = (int.from_bytes(record[1], "big"), record[0])
        if missing:
            for oid, state, tid in self._usable().rows(self._sql.current_states, (missing,)):
                found[oid] = (tid, state)
        return found
