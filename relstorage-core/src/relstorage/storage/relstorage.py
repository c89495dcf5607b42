"""ZODB's storage contract on one relational database.

Reads go through a ``Reader``, each transaction is a ``Commit``, everything shared by the process is the ``Database``.
This module turns ZODB's bytes into integers and back, checks arguments, and says which part does the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import IO, Any

from ZODB import interfaces as zodb
from ZODB.mvccadapter import HistoricalStorageAdapter
from ZODB.POSException import POSKeyError, ReadOnlyError, StorageTransactionError, Unsupported
from ZODB.utils import maxtid, z64
from zope.interface import alsoProvides, implementer

from relstorage import packing
from relstorage.database import Database
from relstorage.database.commit import Kind, Metadata
from relstorage.ids import EVERYTHING, MAX_TID, seconds_at, to_bytes, to_int, unpack
from relstorage.storage import undo as undoing
from relstorage.storage.conflicts import Resolver
from relstorage.storage.copying import BatchTarget, copy_transactions
from relstorage.storage.iteration import CurrentRecords, TransactionIterator
from relstorage.storage.reading import Reader
from relstorage.storage.transactions import Commit
from relstorage.storage.transforming import TransformedInstance


def _unchanged(data: bytes) -> bytes:
    return data


@implementer(
    zodb.IMVCCAfterCompletionStorage,
    zodb.IMVCCPrefetchStorage,
    zodb.IMultiCommitStorage,
    zodb.IStorageRestoreable,
    zodb.IStorageIteration,
    zodb.IStorageCurrentRecordIteration,
    zodb.IExternalGC,
    zodb.ReadVerifyingStorage,
)
class RelStorage:
    """A ZODB storage. Make one with ``relstorage.open`` or ZConfig; ``new_instance`` makes more on the same database.

    It provides ``IStorageUndoable`` with history, and ``IBlobStorageRestoreable`` with a blob directory.
    """

    def __init__(self, database: Database):
        self._database = database
        self._statements = database.statements
        self._options = database.options
        self._reader = Reader(
            database.open_load_session,
            database.statements,
            database.hooks,
            database.lineage,
            database.options.revert_when_stale,
        )
        self._cache_lookup = self._reader.cache.lookup
        self._resolver = Resolver(self._reader.states_at_view, self._reader.load_revision)
        self._untransform: Callable[[bytes], bytes] = _unchanged
        self._wrapper: Any = None
        self._transformed = False
        # ZODB lets threads that share a raw storage wait for each other in tpc_begin.
        self._committing = threading.Lock()
        #: Not ours to use: DemoStorage takes it from the storage that holds its changes.
        self._lock = threading.RLock()
        self._commit: Commit | None = None
        self._current_records: CurrentRecords | None = None
        self._released = False
        #: Whether the connection polls again as soon as a transaction has ended, and whether one has just ended.
        self._polls_at_once = self._finished = False
        if database.adapter.keep_history:
            alsoProvides(self, zodb.IStorageUndoable)
        if database.blobs is not None:
            alsoProvides(self, zodb.IBlobStorageRestoreable)

    def __repr__(self) -> str:
        return f"<RelStorage {self.getName()}>"

    # --- about the storage

    def getName(self) -> str:
        """Return the name from the options, or what identifies the database."""
        return self._options.name or self._database.adapter.name

    def sortKey(self) -> str:
        """Return what orders storages within one transaction: the database's identity, the same in every process."""
        return f"relstorage:{self._database.identity.uuid}"

    def isReadOnly(self) -> bool:
        """Tell whether the options forbid writing."""
        return self._options.read_only

    def supportsUndo(self) -> bool:
        """Tell whether history is kept."""
        return self._database.adapter.keep_history

    def getSize(self) -> int:
        """Return the approximate size of the database in bytes."""
        return self._database.adapter.size()

    def __len__(self) -> int:
        with self._database.store_sessions.snapshot() as session:
            return session.row(self._statements.object_count)[0]

    def lastTransaction(self) -> bytes:
        """Return the newest tid in the view, or in the database without one."""
        if self._reader.view >= 0:
            return to_bytes(self._reader.view)
        with self._reader.snapshot() as snapshot:
            return to_bytes(snapshot.view)

    def getExtensionMethods(self) -> dict[str, None]:
        """Return no methods: nothing is offered to ZEO's clients beyond the interfaces."""
        return {}

    @property
    def cache(self) -> Any:
        """The state cache of this process, for statistics."""
        return self._database.cache

    @property
    def database(self) -> Database:
        """What the storages of this process share, for the command line and for packing."""
        return self._database

    # --- life of an instance

    def registerDB(self, wrapper: Any) -> None:
        """Take note of the database or wrapping storage, which knows how records were transformed."""
        self._wrapper = wrapper
        self._resolver.registerDB(wrapper)
        self._untransform = getattr(wrapper, "untransform_record_data", None) or _unchanged
        # A wrapper that leaves load alone is for a ZEO server, whose clients transform the records.
        self._transformed = getattr(wrapper, "base", None) is self and wrapper.load != self.load

    def new_instance(self) -> RelStorage | TransformedInstance:
        """Return another storage on the same database, with a view of its own."""
        # This is how a ZODB connection begins.
        self._database.expect_commits()
        instance = type(self)(self._database)
        if self._wrapper is not None:
            instance.registerDB(self._wrapper)
            instance._transformed = self._transformed
        return TransformedInstance(instance, self._wrapper) if self._transformed else instance

    def before_instance(self, before: bytes) -> HistoricalStorageAdapter:
        """Return a read-only storage that shows the database as it was before a tid."""
        return HistoricalStorageAdapter(self.new_instance(), before)

    def release(self) -> None:
        """Give up the connections of this instance."""
        if self._released:
            return
        self._released = True
        self._abort()
        self._close_current_records()
        self._reader.close()

    def close(self) -> None:
        """Release this instance and close the database for all of this process."""
        self.release()
        self._database.close()

    cleanup = close

    # --- snapshot

    def sync(self, force: bool = True) -> None:
        """Take note that a transaction begins. ``poll_invalidations``, which follows, moves the view.

        ZODB's connections whose transactions begin by themselves call it, without ``force``, as soon as they are opened
        and at the end of each transaction. Then nothing comes between ``tpc_finish`` and the next poll.
        """
        if not force:
            self._polls_at_once = True

    def poll_invalidations(self) -> list[bytes] | None:
        """Begin a new snapshot; return the oids that others changed since the last call, or None for all."""
        changed = self._reader.poll()
        self._cache_lookup = self._reader.cache.lookup
        return None if changed is None else [to_bytes(oid) for oid in changed if oid >= 0]

    def afterCompletion(self) -> None:
        """End the snapshot: between transactions the connection is idle."""
        if self._finished:
            # The next transaction begins now.
            self._finished = False
            return
        # The connection may be closed now, and be opened again to be used otherwise.
        self._polls_at_once = False
        self._reader.end()

    # --- reading

    def load(self, oid: bytes, version: str = "") -> tuple[bytes, bytes]:
        """Return the state and tid of an object in the view."""
        (number,) = unpack(oid)
        return self._cache_lookup(number, self._reader.view) or self._reader.load_missing(number)

    def loadBefore(self, oid: bytes, tid: bytes) -> tuple[bytes, bytes, bytes | None] | None:
        """Return the newest revision below a tid, and the tid that ended it. Without history only the current
        exists."""
        before = MAX_TID if tid == maxtid else min(to_int(tid), MAX_TID)
        return self._reader.load_before(to_int(oid), before)

    def loadSerial(self, oid: bytes, serial: bytes) -> bytes:
        """Return the state of one revision."""
        return self._reader.load_revision(to_int(oid), to_int(serial))

    def getTid(self, oid: bytes) -> bytes:
        """Return the tid of an object's current revision."""
        return self.load(oid)[1]

    def prefetch(self, oids: Iterable[bytes]) -> None:
        """Bring objects into the state cache in one query."""
        self._reader.prefetch([to_int(oid) for oid in oids])

    def history(self, oid: bytes, size: int = 1) -> list[dict[str, Any]]:
        """Return descriptions of the newest revisions of an object, newest first."""
        number = to_int(oid)
        with self._database.store_sessions.snapshot() as session:
            rows = session.rows(self._statements.history, (number, size))
        if not rows:
            raise POSKeyError(oid)
        return [_history_entry(number, *row) for row in rows]

    def iterator(self, start: bytes | None = None, stop: bytes | None = None) -> TransactionIterator:
        """Return the transactions from ``start`` to ``stop`` as they are now."""
        return TransactionIterator(self._database.open_load_session(), self._statements, start, stop)

    def record_iternext(self, next: bytes | None = None) -> tuple[bytes, bytes, bytes, bytes | None]:
        """Return oid, tid and state of the record at ``next`` or after it, and the next oid or None at the end."""
        wanted = to_int(next) if next is not None else 0
        records = self._current_records
        if records is None or next is None or records.position != wanted:
            self._close_current_records()
            records = CurrentRecords(self._database.open_load_session(), self._statements, wanted)
            self._current_records = records
        if records.position is None:
            self._close_current_records()
            raise StopIteration if next is None else POSKeyError(next)
        oid, state, tid = records.take()
        following = records.position
        if following is None:
            self._close_current_records()
        return to_bytes(oid), to_bytes(tid), state, None if following is None else to_bytes(following)

    def _close_current_records(self) -> None:
        records, self._current_records = self._current_records, None
        if records is not None:
            records.close()

    # --- writing

    def new_oid(self) -> bytes:
        """Return an object id that was never used."""
        self._refuse_if_read_only()
        return to_bytes(self._database.oids.new())

    def tpc_begin(self, transaction: Any, tid: bytes | None = None, status: str = " ") -> None:
        """Begin a transaction; with ``tid``, one that is copied from another storage and keeps its tid."""
        self._refuse_if_read_only()
        if self._commit is not None and self._commit.transaction is transaction:
            raise StorageTransactionError("Duplicate tpc_begin calls for the same transaction")
        # Before the lock: a description that cannot be pickled, or a tid that is none, must not keep it.
        number = None if tid is None else to_int(tid)
        metadata = Metadata(
            _as_bytes(transaction.user),
            _as_bytes(transaction.description),
            transaction.extension_bytes,
            packed=status == "p",
        )
        self._committing.acquire()
        reader = self._reader
        self._commit = Commit(self._database, transaction, metadata, reader.reported, number, reader.cache)

    def tpc_transaction(self) -> Any:
        """Return the transaction that is being committed, or None."""
        return None if self._commit is None else self._commit.transaction

    def _in(self, transaction: Any) -> Commit:
        commit = self._commit
        if commit is None or commit.transaction is not transaction:
            raise StorageTransactionError(self, transaction)
        return commit

    def store(self, oid: bytes, serial: bytes, data: bytes, version: str, transaction: Any) -> None:
        """Stage a new state of an object that was ``serial`` when it was read."""
        self._refuse_if_read_only()
        if data is None:
            raise TypeError(f"The state of object {to_int(oid):#x} must be bytes; deleteObject removes it.")
        self._in(transaction).put(to_int(oid), to_int(serial or z64), Kind.STORE, data)

    def restore(
        self, oid: bytes, serial: bytes, data: bytes | None, version: str, prev_txn: Any, transaction: Any
    ) -> None:
        """Stage a record that another storage committed; there is no check for conflicts."""
        self._refuse_if_read_only()
        self._in(transaction).put(to_int(oid), 0, Kind.RESTORE, data)

    def deleteObject(self, oid: bytes, oldserial: bytes, transaction: Any) -> None:
        """Stage the removal of an object whose current tid must be ``oldserial``."""
        self._refuse_if_read_only()
        self._in(transaction).put(to_int(oid), to_int(oldserial), Kind.DELETE, None)

    def checkCurrentSerialInTransaction(self, oid: bytes, serial: bytes, transaction: Any) -> None:
        """Have vote fail unless an object still has this tid, and keep it so until the transaction ends."""
        self._in(transaction).require_current(to_int(oid), to_int(serial))

    def tpc_vote(self, transaction: Any) -> list[bytes]:
        """Send everything to the database, lock, resolve conflicts; return the oids whose states that changed."""
        commit = self._in(transaction)
        tell = self._tell_conflict if self._database.hooks.listens("relstorage_conflict") else None
        return [to_bytes(oid) for oid in commit.vote(self._resolver, self._untransform, tell)]

    def _tell_conflict(self, oid: int, resolved: bool) -> None:
        self._database.hooks.relstorage_conflict(oid=oid, resolved=resolved)

    def tpc_finish(self, transaction: Any, func: Callable[[bytes], Any] | None = None) -> bytes:
        """Commit; return the tid once the transaction is durable. ``func`` gets the tid before others can see it."""
        commit = self._in(transaction)
        oids = commit.staged.records.oids()
        self._finished = self._polls_at_once
        with self._reader.held_back(poll_follows=self._finished):
            try:
                tid = commit.finish(func)
            finally:
                self._end_commit()
            if oids:
                # Without history nothing records an empty transaction, and another may get its tid.
                self._reader.note_own(tid, oids)
        return to_bytes(tid)

    def tpc_abort(self, transaction: Any) -> None:
        """Forget the transaction. Never fail, and ignore a transaction that is not being committed here."""
        if self._commit is not None and self._commit.transaction is transaction:
            self._abort()

    def _abort(self) -> None:
        commit = self._commit
        if commit is not None:
            try:
                commit.abort()
            finally:
                self._end_commit()

    def _end_commit(self) -> None:
        if self._commit is not None:
            self._commit = None
            self._committing.release()

    def _refuse_if_read_only(self) -> None:
        if self._options.read_only:
            raise ReadOnlyError()

    # --- history

    def undo(self, transaction_id: bytes, transaction: Any) -> tuple[None, list[bytes]]:
        """Stage the undo of a transaction of the undo log; return the oids it changes."""
        self._refuse_if_read_only()
        self._refuse_without_history()
        commit = self._in(transaction)
        blobs = self._database.blobs

        def undo_blob(oid: int, from_tid: int, tid: int) -> None:
            if blobs is not None and not blobs.kept_in_database:
                commit.stage_blobs().add_revision(oid, from_tid)

        with self._database.store_sessions.snapshot() as session:
            oids = undoing.undo(
                session,
                self._statements,
                commit,
                undoing.decode(transaction_id),
                self._resolver.tryToResolveConflict,
                undo_blob,
            )
        return None, [to_bytes(oid) for oid in oids]

    def undoLog(
        self, first: int = 0, last: int = -20, filter: Callable[[dict[str, Any]], Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return descriptions of undoable transactions, newest first."""
        with self._database.store_sessions.snapshot() as session:
            return undoing.undo_log(session, self._statements, first, last, filter)

    def undoInfo(
        self, first: int = 0, last: int = -20, specification: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return descriptions of undoable transactions that have all the items of ``specification``."""
        if not specification:
            return self.undoLog(first, last)
        wanted = specification.items()

        def accept(description: dict[str, Any]) -> bool:
            return all(name in description and description[name] == value for name, value in wanted)

        return self.undoLog(first, last, accept)

    def _refuse_without_history(self) -> None:
        if not self._database.adapter.keep_history:
            raise Unsupported("Undo needs history, and this database keeps none.")

    # --- blobs

    def storeBlob(
        self, oid: bytes, oldserial: bytes, data: bytes, blobfilename: str, version: str, transaction: Any
    ) -> None:
        """Stage a blob's record and take its file."""
        self.store(oid, oldserial, data, version, transaction)
        self._in(transaction).put_blob(to_int(oid), blobfilename)

    def restoreBlob(
        self, oid: bytes, serial: bytes, data: bytes, blobfilename: str, prev_txn: Any, transaction: Any
    ) -> None:
        """Stage a blob that another storage committed."""
        self.restore(oid, serial, data, "", prev_txn, transaction)
        self._in(transaction).put_blob(to_int(oid), blobfilename)

    def loadBlob(self, oid: bytes, serial: bytes) -> str:
        """Return the path of a blob's file."""
        number, tid = to_int(oid), to_int(serial)
        return self._blobs().load(number, tid, partial(self._download, number, tid))

    def openCommittedBlobFile(self, oid: bytes, serial: bytes, blob: Any = None) -> IO[bytes]:
        """Open a blob's file for reading."""
        number, tid = to_int(oid), to_int(serial)
        return self._blobs().open(number, tid, partial(self._download, number, tid), blob)

    def temporaryDirectory(self) -> str:
        """Return a directory for uncommitted blobs, on the file system of the committed ones."""
        return self._blobs().temporary_directory()

    def _blobs(self) -> Any:
        blobs = self._database.blobs
        if blobs is None:
            raise Unsupported("Blobs need the option blob-dir, which this storage does not have.")
        return blobs

    def _download(self, oid: int, tid: int, path: str) -> bool:
        with self._reader.snapshot() as (session, *_):
            return self._database.adapter.blob_store.get(session, oid, tid, path)

    # --- maintenance

    def pack(
        self,
        t: float | bytes | None,
        referencesf: Callable[..., Any],
        prepack_only: bool = False,
        skip_prepack: bool = False,
        gc: bool | None = None,
    ) -> None:
        """Remove what is not needed to show the database as of ``t`` and later; see ``relstorage.packing``.

        ``gc`` tells whether unreachable objects go, as with FileStorage; None leaves that to the option ``pack-gc``.
        """
        self._refuse_if_read_only()
        packing.pack(
            self._database,
            t,
            referencesf,
            prepack_only=prepack_only or self._options.pack_prepack_only,
            skip_prepack=skip_prepack or self._options.pack_skip_prepack,
            collect=gc,
        )

    def copyTransactionsFrom(self, other: Any) -> None:
        """Copy every transaction of another storage, blobs included, with their tids."""
        self._refuse_if_read_only()
        copy_transactions(other, BatchTarget(self._database), self._database.hooks)

    def zap_all(self, reset_oid: bool = True, slow: bool = False) -> None:
        """Remove every object and transaction. ``slow`` is accepted for the sake of RelStorage's callers."""
        self._refuse_if_read_only()
        database = self._database
        self._reader.end()
        with database.store_sessions.session() as session:
            # Who has voted may hold what is removed here, and would wait for the lock taken here.
            tid = database.adapter.commit_steps.lock_and_choose_tid(session, drained=True)
            database.adapter.schema.zap(session)
            session.run(self._statements.prune_removed, (tid,))
            session.run(self._statements.note_removed, (EVERYTHING, tid))
            if reset_oid:
                session.run(self._statements.set_meta, ("reserved_oid", "0"))
            session.commit()
        if reset_oid:
            database.oids.restart()
        if database.blobs is not None:
            database.blobs.clear()


def _as_bytes(text: str | bytes) -> bytes:
    # ZODB's metadata are bytes, but some callers assign a str.
    return text.encode() if isinstance(text, str) else text


def _history_entry(oid: int, tid: int, username: Any, description: Any, extension: Any, size: int) -> dict[str, Any]:
    entry = undoing.read_extension(extension)
    entry.update(
        tid=to_bytes(tid),
        version="",
        time=seconds_at(tid),
        user_name=bytes(username or b""),
        description=bytes(description or b""),
        size=size,
        rs_tid_int=tid,
        rs_oid_int=oid,
    )
    return entry
