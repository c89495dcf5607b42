"""Restore what another storage committed, many of its transactions in one transaction of the database.

Each keeps its tid and its records. Together they are flushed to disk once, and if the process dies before that,
nothing of them is there. The write lock is held from the first ``begin`` to ``commit``.
"""

from __future__ import annotations

import time
from typing import Any

from relstorage.database import Database
from relstorage.database.commit import Metadata
from relstorage.errors import Disconnected
from relstorage.ids import EVERYTHING

#: States of one transaction are sent together, up to about this many bytes.
_TOGETHER = 1 << 20


class Restoration:
    """A batch of transactions being restored, in ascending order of their tids. It is used again after ``commit``."""

    def __init__(self, database: Database):
        self._database = database
        self._sql = database.statements
        self._session: Any = None
        self._newest = 0
        self._chosen = 0
        self._told_readers = False
        self._tid = 0
        self._states: dict[int, bytes] = {}
        self._held = 0
        self._highest_oid = 0
        self._records = 0
        self._began = 0.0
        self._blobs: Any = None
        # What to do for each transaction once the batch is durable: its tid, its blob files, its number of records.
        self._ended: list[tuple[int, Any, int, float]] = []

    def begin(self, metadata: Metadata, tid: int) -> None:
        """Begin the next transaction, taking the write lock if it is the first of its batch."""
        if self._session is None:
            self._lock()
        self._tid = tid
        self._blobs = None
        self._records = 0
        self._began = time.perf_counter()
        for step in self._sql.begin_transaction:
            self._session.run(
                step, (tid, metadata.packed, metadata.username, metadata.description, metadata.extension)
            )

    def put(self, oid: int, state: bytes | None, blob: str | None = None) -> None:
        """Add a record; without a state it removes the object. The file ``blob`` belongs to the storage from now on."""
        self._records += 1
        self._highest_oid = max(self._highest_oid, oid)
        if state is None:
            self._send_states()
            for step in self._sql.remove:
                self._session.run(step, step.fit((oid, self._tid)))
            return
        self._states[oid] = state
        self._held += len(state)
        if blob is not None:
            self._send_states()
            self._put_blob(oid, blob)
        elif self._held > _TOGETHER:
            self._send_states()

    def end(self) -> None:
        """End the transaction. It becomes visible and durable with ``commit``."""
        self._send_states()
        if self._tid <= self._newest and not self._told_readers:
            # Polls ask for larger tids only, so they would never see this one: tell them that all may have changed.
            self._session.run(self._sql.note_removed, (EVERYTHING, self._chosen))
            self._told_readers = True
        self._ended.append((self._tid, self._blobs, self._records, time.perf_counter() - self._began))
        self._blobs = None

    def commit(self) -> None:
        """Make the transactions of the batch durable. Do nothing if there are none."""
        if self._session is None:
            return
        ended, self._ended = self._ended, []
        try:
            for tid, blobs, _, _ in ended:
                if blobs is not None:
                    blobs.place(tid)
            self._session.commit()
        except Disconnected:
            # It may have been committed. A file too many does no harm, a missing one would.
            raise
        except Exception:
            self._ended = ended
            raise
        self._give_session_back()
        self._database.oids.raise_to(self._highest_oid)
        hooks = self._database.hooks
        tell = hooks.listens("relstorage_committed")
        for tid, blobs, records, seconds in ended:
            if blobs is not None:
                blobs.committed(tid)
            if tell:
                hooks.relstorage_committed(tid=tid, oids_count=records, seconds=seconds)

    def abort(self) -> None:
        """Forget the batch. Harmless after ``commit`` and when repeated."""
        ended, self._ended = self._ended, []
        self._states.clear()
        self._held = 0
        unfinished, self._blobs = self._blobs, None
        try:
            for blobs in (unfinished, *(blobs for _, blobs, _, _ in ended)):
                if blobs is not None:
                    blobs.aborted()
        finally:
            self._give_session_back()

    # ---

    def _lock(self) -> None:
        self._session = self._database.store_sessions.take()
        try:
            # A transaction that has voted may hold rows that are restored here, and would wait for the lock taken here.
            self._chosen = self._database.adapter.commit_steps.lock_and_choose_tid(self._session, drained=True)
            self._newest = self._session.row(self._sql.newest_tid)[0]
        except BaseException:
            self._give_session_back()
            raise
        self._told_readers = False

    def _give_session_back(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._database.store_sessions.give_back(session)

    def _send_states(self) -> None:
        if not self._states:
            return
        session, sql, tid = self._session, self._sql, self._tid
        for step in sql.clear_blobs:
            session.run_many(step, [(oid, tid) for oid in self._states])
        for step in sql.put_revision:
            count = len(step.parameters)
            session.run_many(step, ((oid, tid, state)[:count] for oid, state in sorted(self._states.items())))
        self._states.clear()
        self._held = 0

    def _put_blob(self, oid: int, path: str) -> None:
        directory = self._database.blobs
        if self._blobs is None:
            self._blobs = directory.begin()
        path = self._blobs.add(oid, path)
        if directory.kept_in_database:
            self._database.adapter.blob_store.put(self._session, oid, self._tid, path)
