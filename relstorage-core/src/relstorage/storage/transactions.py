"""One transaction of one storage, from tpc_begin to its end.

Records and blobs are staged without I/O on the database. They go there at vote and become current at finish. Whatever
was acquired on the way is registered with an ExitStack, which abort and the end unwind.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from ZODB.POSException import StorageError, UndoError

from relstorage.database import Database
from relstorage.database.commit import Kind, Metadata, StagedCommit
from relstorage.errors import CommitOutcomeUnknown, Disconnected, RelStorageError, ServerReplaced
from relstorage.ids import MAX_OID, to_bytes
from relstorage.storage.conflicts import Resolver
from relstorage.storage.removals import refuse_links_to_removed

log = logging.getLogger(__name__)

#: States of own commits up to this many bytes in all go into the state cache.
CACHED_PER_COMMIT = 4_000_000
#: While no server can be asked what became of a commit, try again after so many seconds.
ASK_EVERY = 0.1


class Commit:
    """What exists between ``tpc_begin`` and the end of a transaction."""

    def __init__(
        self,
        database: Database,
        transaction: Any,
        metadata: Metadata,
        view: int | None,
        tid: int | None = None,
        cache: Any = None,
    ):
        self.transaction = transaction
        self.staged = StagedCommit(metadata, view, tid)
        self.blobs: Any = None
        self.voted = False
        self._prepared = False
        #: The state cache of the server that the transaction has read from.
        self._cache = cache
        self._database = database
        self._session: Any = None
        self._started = time.perf_counter()
        self._end = ExitStack()
        self._end.callback(self.staged.close)

    # --- staging

    def put(self, oid: int, base: int, kind: Kind, state: bytes | None) -> None:
        """Stage one record."""
        self._must_not_have_voted()
        if oid > MAX_OID:
            raise StorageError(f"Object {oid:#x} cannot be stored: the largest object id is {MAX_OID:#x}.")
        known = self.staged.records.get(oid)
        if known is not None and (kind is Kind.DELETE) != (known.kind is Kind.DELETE):
            raise StorageError(f"Cannot both store and delete object {oid:#x} in one transaction.")
        self.staged.records.put(oid, base, kind, state)

    def put_blob(self, oid: int, path: str) -> None:
        """Stage the file of a blob, which belongs to the storage from now on."""
        self._must_not_have_voted()
        self.stage_blobs().add(oid, path)

    def forget_blob(self, oid: int) -> None:
        """Leave out the blob that an earlier undo of this transaction staged for an object."""
        self.staged.blob_copies.pop(oid, None)
        if self.blobs is not None:
            self.blobs.remove(oid)

    def stage_blobs(self) -> Any:
        """Return the staged blob files, beginning them first."""
        if self.blobs is None:
            self.blobs = self._database.blobs.begin()
            self._end.callback(self.blobs.aborted)
        return self.blobs

    def require_undoable(self, tid: int) -> None:
        """Have vote check that no pack has made this transaction final, which this one undoes."""
        self.staged.undone.append(tid)

    def require_current(self, oid: int, tid: int) -> None:
        """Have vote check that an object still has this tid."""
        self._must_not_have_voted()
        self.staged.read_current[oid] = tid

    def _must_not_have_voted(self) -> None:
        if self.voted:
            raise StorageError("This transaction has voted already; nothing can be added to it.")

    # --- the two phases

    def vote(
        self,
        resolver: Resolver,
        untransform: Callable[[bytes], bytes],
        tell: Callable[[int, bool], Any] | None,
    ) -> list[int]:
        """Send everything to the database and make sure that it can be committed.

        Return the oids whose states conflict resolution changed. After an error only ``abort`` makes sense.
        """
        self._must_not_have_voted()
        self.voted = True
        database, staged = self._database, self.staged
        if self.blobs is not None:
            self.blobs.prepare()
            if database.blobs.kept_in_database:
                staged.blobs = list(self.blobs)
        if len(staged.records):
            database.oids.raise_to(staged.records.oids()[-1])
        self._session = database.store_sessions.take()
        self._end.callback(self._give_session_back)
        steps = database.adapter.commit_steps
        verdict = steps.vote(self._session, staged)
        began_with, self._cache = self._cache, database.lineage.follow(self._session)
        if began_with is not self._cache and staged.view is not None:
            raise ServerReplaced(
                f"Committing to {database.adapter.name}: the server was restarted or replaced since the transaction "
                "began, and may lack what it read. Run the transaction again."
            )
        resolved = resolver.resolve(verdict.conflicts, staged.records, tell) if verdict.conflicts else []
        self._refuse_undo_of_packed()
        if verdict.removals:
            refuse_links_to_removed(self._session, database.statements, staged, untransform)
        steps.prepare(self._session, staged, resolved)
        self._prepared = True
        return resolved

    def _refuse_undo_of_packed(self) -> None:
        # A pack that has sealed them since may have removed what the undo goes back to.
        for tid in self.staged.undone:
            if self._session.row(self._database.statements.is_undoable, (tid,)) is None:
                raise UndoError("A pack has made the transaction final while it was being undone.")

    def finish(self, tell_tid: Callable[[bytes], Any] | None) -> int:
        """Commit and return the tid, once it is durable.

        If the answer to the commit is lost, find out whether it happened before anything is reported or undone.
        """
        if not self._prepared:
            self.abort()
            raise StorageError("tpc_finish was called without a tpc_vote that succeeded.")
        database, staged = self._database, self.staged
        blobs = self.blobs

        def before_commit(tid: int) -> None:
            if blobs is not None:
                blobs.place(tid)
            if tell_tid is not None:
                tell_tid(to_bytes(tid))

        # A database that keeps the blobs itself does not wait for their files to be placed.
        placing = blobs is not None and not database.blobs.kept_in_database
        interruption: BaseException | None = None
        try:
            tid = database.adapter.commit_steps.finish(
                self._session, staged, before_commit if placing or tell_tid is not None else None
            )
        except BaseException as error:
            # Any other error says that nothing was kept; another transaction may have the tid by now.
            uncertain = isinstance(error, Disconnected) or not isinstance(error, Exception)
            found = self._committed_tid() if uncertain else None
            if found is None:
                self.abort()
                raise
            tid = found
            if not isinstance(error, Exception):
                # Ctrl-C just after the commit: what was committed is complete first.
                interruption = error
        self._complete(tid, blobs)
        if interruption is not None:
            raise interruption
        return tid

    def _committed_tid(self) -> int | None:
        """Return the tid of the commit whose answer was lost, None if it did not happen."""
        if not self._session.lost and self._session.in_transaction:
            return None
        database = self._database
        deadline = time.monotonic() + database.options.commit_lock_timeout
        while True:
            try:
                with database.store_sessions.session() as session:
                    return database.adapter.commit_steps.committed_tid(session, self.staged)
            except RelStorageError as error:
                # The server may be restarting, or another one be about to take its place.
                if isinstance(error, Disconnected) and time.monotonic() < deadline:
                    time.sleep(ASK_EVERY)
                    continue
                objects = len(self.staged.records)
                self._leave()
                raise CommitOutcomeUnknown(
                    f"Committing to {database.adapter.name}: the connection was lost, and the database could not be "
                    f"asked whether the transaction of {objects} objects is there ({error}). "
                    "Look before you run it again."
                ) from error

    def _leave(self) -> None:
        """End without undoing anything: a blob file too many does no harm, a missing one would."""
        self._end.pop_all()
        self.staged.close()
        self._give_session_back()

    def _complete(self, tid: int, blobs: Any) -> None:
        database, staged = self._database, self.staged
        try:
            # First, so that abort below takes no blob back.
            if blobs is not None:
                blobs.committed(tid)
            self._remember(tid)
        except Exception:
            # The transaction is durable, whatever fails now.
            name = database.adapter.name
            log.exception("Transaction %#x of %s was committed; what follows a commit failed", tid, name)
        if database.hooks.listens("relstorage_committed"):
            database.hooks.relstorage_committed(
                tid=tid, oids_count=len(staged.records), seconds=time.perf_counter() - self._started
            )
        self.abort()

    def _remember(self, tid: int) -> None:
        if self.staged.restoring:
            return
        records = self.staged.records
        at_hand = records.at_hand(CACHED_PER_COMMIT)
        if at_hand is not None:
            self._cache.remember_commit(tid, [(oid, state) for oid, _, state in at_hand])
        else:
            self._cache.remember_commit(tid, _first_states(records, tid))

    def abort(self) -> None:
        """Undo everything. Never raise: the transaction that failed has an error of its own."""
        try:
            self._end.close()
        except Exception:
            name = self._database.adapter.name
            log.exception("Could not remove everything that a transaction on %s had staged", name)

    def _give_session_back(self) -> None:
        session, self._session = self._session, None
        self._database.store_sessions.give_back(session)


def _first_states(records: Any, tid: int) -> Iterator[tuple[int, bytes]]:
    room = CACHED_PER_COMMIT
    for oid, _, state in records.rows(tid, 3):
        room -= len(state)
        if room < 0:
            return
        yield oid, state
