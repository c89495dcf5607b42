"""How a storage reads: a view, a snapshot of the database that belongs to it, and the state cache in front.

``poll`` ends the old snapshot, begins a new one and says what changed in between. Until the next poll, or ``end``,
every load answers as of that moment. Without a snapshot, each call reads the newest state in a short one of its own.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from operator import itemgetter
from typing import Any, NamedTuple

from ZODB.POSException import POSKeyError

from relstorage.errors import RelStorageError, SnapshotLost, StaleConnectionError
from relstorage.ids import EVERYTHING, MAX_OID, to_bytes
from relstorage.sql.contract import FEW_CHANGES
from relstorage.storage.readahead import ReadAhead

log = logging.getLogger(__name__)

#: After so many seconds of polls in a row, a session gets the chance to say that it is not to be used any more.
LOOK_AFTER = 1.0


class _Snapshot(NamedTuple):
    """What a snapshot shows."""

    session: Any
    view: int
    #: (oid, tid) of what changed since the view that was asked about; None if anything may have.
    changes: list[tuple[int, int]] | None
    #: The state cache that belongs to the server.
    cache: Any


class Reader:
    """The reading half of one storage."""

    def __init__(
        self,
        open_session: Callable[[], Any],
        statements: Any,
        hooks: Any,
        lineage: Any,
        revert_when_stale: bool = False,
    ):
        self._open_session = open_session
        self._sql = statements
        self._hooks = hooks
        self._lineage = lineage
        self._revert_when_stale = revert_when_stale
        #: The state cache of the server that the last poll was answered by.
        self.cache = lineage.cache
        self._tell_poll = hooks.listens("relstorage_polled")
        self._session: Any = None
        #: The session, for the end of this object: a storage that is dropped leaves no connection behind.
        self._held: list[Any] = []
        weakref.finalize(self, _close_all, self._held)
        #: When to look next whether the session is still the one to use.
        self._look_at = 0.0
        #: The tid at which loads answer; -1 without a snapshot, so that no cache entry fits.
        self.view = -1
        #: The view that the last poll reported; changes after it are still to be told.
        self.reported: int | None = None
        self._ahead = ReadAhead()
        #: Whether the end of the last snapshot is left to the beginning of the next.
        self._ends_later = False
        #: Own commits since the last poll, whose changes are no news here: what each has stored.
        self._own: dict[int, list[int]] = {}
        #: The newest own commit since the last poll.
        self._newest_own = 0
        # Only reads without a snapshot take it: with one, a storage is used by one thread at a time.
        self._lock = threading.RLock()

    # --- snapshot

    def poll(self) -> list[int] | None:
        """Move to the newest view; return the oids that others changed since the last poll, None if any may have."""
        previous = self.reported
        _, view, changes, self.cache = self._begin(previous)
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
        self._newest_own = 0
        if self._tell_poll:
            self._hooks.relstorage_polled(view=view, changed=None if changed is None else len(changed))
        return changed

    def _begin(self, previous: int | None) -> _Snapshot:
        """Begin a snapshot and teach the cache what it did not know."""
        self.view = -1
        self._ahead.clear()
        session = self._current_session()
        cache, sql, lineage = self.cache, self._sql, self._lineage
        # Read before the snapshot begins: the snapshot of the database itself then contains everything up to it.
        horizon = cache.horizon
        own = self._newest_own if horizon < self._newest_own in self._own else 0
        try:
            session.begin_snapshot()
            self._ends_later = False
            rows = self._changes_since(session, horizon, own) if horizon >= 0 else []
            present = lineage.follow(session)
            if present is not cache:
                return self._begin_anew(session, present)
            # A copy may be behind what this process has seen; and the database behind a copy, which may show a commit
            # before the database does.
            uncertain = session.may_lag or lineage.has_copies
            if own and uncertain and horizon >= 0:
                # The copy may lack what was committed here.
                rows = session.rows(sql.changes_since, (horizon,))
            if horizon < 0:
                view = session.row(sql.newest_tid)[0]
                cache.learn(None, view, ())
            elif rows:
                view = rows[-1][1]
                cache.learn(horizon, view, [row for row in rows if row[0] is not None])
            else:
                view = min(horizon, session.row(sql.newest_tid)[0]) if uncertain else horizon
            if uncertain and self._goes_back(view):
                return _Snapshot(session, view, None, cache)
            if previous is None or previous == view:
                return _Snapshot(session, view, [], cache)
            # The log may leave out a change that another one followed before the horizon.
            changes = cache.changes(previous, view) if view >= horizon else None
            if changes is None:
                changes = [row for row in session.rows(sql.changes_since, (previous,)) if row[0] is not None]
            if any(oid == EVERYTHING for oid, _ in changes):
                changes = None
            return _Snapshot(session, view, changes, cache)
        except RelStorageError:
            self.end()
            raise

    def _changes_since(self, session: Any, tid: int, own: int) -> list[Any]:
        """Return (oid, tid) of what has changed after a tid, in tid order. ``own`` is a commit that the snapshot has,
        or 0."""
        for first in self._sql.few_changes_since:
            rows: list[Any] = session.rows(first, (tid, own))
            if len(rows) < FEW_CHANGES:
                if own:
                    rows += [(oid, own) for oid in self._own[own]]
                rows.sort(key=itemgetter(1))
                return rows
        changes: list[Any] = session.rows(self._sql.changes_since, (tid,))
        return changes

    def _current_session(self) -> Any:
        now = time.monotonic()
        if now >= self._look_at:
            # A session tells between transactions only that it is to be left.
            self._look_at = now + LOOK_AFTER
            self.end()
        session = self._session
        if session is None or session.lost:
            self.close()
            session = self._session = self._open_session()
            self._held.append(session)
        return session

    def _begin_anew(self, session: Any, cache: Any) -> _Snapshot:
        """Go on with a server that may lack what the last one had."""
        view: int = session.row(self._sql.newest_tid)[0]
        if view > cache.horizon:
            cache.learn(None, view, ())
        if session.may_lag:
            self._goes_back(view)
        return _Snapshot(session, view, None, cache)

    def _goes_back(self, view: int) -> bool:
        """Return False if this storage has seen nothing that the snapshot lacks; else raise, or return True where the
        options want to go back in time rather than fail."""
        seen = max(self.reported or 0, self._newest_own)
        if view >= seen:
            return False
        if not self._revert_when_stale:
            raise StaleConnectionError(
                "Reading from a replica: it has not received yet what this storage has seen or committed. "
                "Run the transaction again."
            )
        log.warning("Reading goes back in time, from transaction %#x to %#x: the replica is behind", seen, view)
        return True

    def end(self, poll_follows: bool = False) -> None:
        """End the snapshot; the connection holds no transaction afterwards, unless a poll follows at once."""
        self.view = -1
        self._ahead.clear()
        session = self._session
        if session is not None and (session.in_transaction or self._ends_later):
            session.rollback(poll_follows)
        self._ends_later = poll_follows

    def note_own(self, tid: int, oids: list[int]) -> None:
        """Leave the changes of this commit out of the next poll."""
        self._newest_own = tid
        if self.reported is not None:
            self._own[tid] = oids

    @contextmanager
    def snapshot(self) -> Iterator[_Snapshot]:
        """Give the session within a snapshot: the storage's own, or a short one of the newest state."""
        if self.view >= 0:
            yield _Snapshot(self._usable(), self.view, None, self.cache)
            return
        with self._lock:
            # The view of a short snapshot is not set: other threads would take the snapshot for theirs.
            snapshot = self._begin(None)
            if self.reported is None:
                self.cache = snapshot.cache
            try:
                yield snapshot
            finally:
                self.end()

    @contextmanager
    def held_back(self, poll_follows: bool) -> Iterator[None]:
        """Let the reads of other threads that have no snapshot wait, and end the snapshot afterwards."""
        with self._lock:
            try:
                yield
            finally:
                self.end(poll_follows)

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
        self._session = None
        _close_all(self._held)

    # --- loads

    def load_missing(self, oid: int) -> tuple[bytes, bytes]:
        """Read the current revision, which the cache does not have, and remember it there."""
        if oid > MAX_OID:
            raise POSKeyError(to_bytes(oid))
        if self.view >= 0:
            ahead = self._ahead
            found = ahead.waiting.pop(oid, None)
            if found is None:
                session = self._usable()
                span = ahead.span(oid)
                if span > 1:
                    with closing(session.stream(self._sql.current_range, (oid, oid + span))) as rows:
                        ahead.fill(rows)
                    found = ahead.waiting.pop(oid, None)
                if found is None:
                    return self._load_row(oid, session, self.view, None, self.cache)
            ahead.took(oid)
            state, tid = found
            self.cache.remember(oid, tid, state, self.view)
            return state, to_bytes(tid)
        with self.snapshot() as snapshot:
            return snapshot.cache.lookup(oid, snapshot.view) or self._load_row(oid, *snapshot)

    def _load_row(self, oid: int, session: Any, view: int, _: Any, cache: Any) -> tuple[bytes, bytes]:
        row = session.row(self._sql.current_state, (oid,))
        if row is None or not row[0]:
            raise POSKeyError(to_bytes(oid))
        state, tid = row
        cache.remember(oid, tid, state, view)
        return state, to_bytes(tid)

    def load_before(self, oid: int, before: int) -> tuple[bytes, bytes, bytes | None] | None:
        """Return state, tid and following tid of the newest revision below ``before``; None if all are newer."""
        with self.snapshot() as (session, *_):
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
            record = self.cache.lookup(oid, self.view)
            if record is not None and record[1] == to_bytes(tid):
                return record[0]
        with self.snapshot() as (session, *_):
            row = session.row(self._sql.revision_state, (oid, tid))
        if row is None or not row[0]:
            raise POSKeyError(to_bytes(oid))
        return row[0]

    def prefetch(self, oids: Iterable[int]) -> None:
        """Bring the current revisions that the cache lacks into it, in one query."""
        if self.view < 0:
            return
        view, cache = self.view, self.cache
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
            record = self.cache.lookup(oid, self.view)
            if record is None:
                missing.append(oid)
            else:
                found[oid] = (int.from_bytes(record[1], "big"), record[0])
        if missing:
            for oid, state, tid in self._usable().rows(self._sql.current_states, (missing,)):
                found[oid] = (tid, state)
        return found


def _close_all(sessions: list[Any]) -> None:
    while sessions:
        sessions.pop().close()
