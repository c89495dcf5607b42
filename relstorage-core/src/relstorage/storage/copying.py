"""Copy transactions from another storage, blobs included, and tell how far it is.

A *target* takes the transactions one after the other. ``BatchTarget`` writes many of them into one transaction of our
database; ``SingleTarget`` uses ZODB's interface and suits every storage that can restore. Either way they become
durable in the order of their tids, so that an interrupted copy goes on after the last.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, NamedTuple, Protocol

from ZODB.blob import is_blob_record
from ZODB.interfaces import IBlobStorage, IBlobStorageRestoreable
from ZODB.POSException import POSKeyError

from relstorage.database import Database
from relstorage.database.commit import Metadata
from relstorage.database.restoring import Restoration
from relstorage.errors import CopyError, UnreadableState
from relstorage.ids import to_int
from relstorage.references import untransformed

#: A batch ends when it has this many transactions, this many bytes, or has held the write lock for this many seconds.
BATCH_TRANSACTIONS = 2000
BATCH_BYTES = 32_000_000
BATCH_SECONDS = 2.0

_MISSING_REPORTED = 20


class CopyProgress(NamedTuple):
    """What has been copied until now. ``tid`` is that of the last transaction."""

    transactions: int
    records: int
    blobs: int
    size: int
    seconds: float
    tid: bytes
    missing_blobs: int = 0
    """Blobs whose record was copied, but whose file the source has lost."""
    missing: tuple[tuple[bytes, bytes], ...] = ()
    """The oid and tid of the first of them."""


class Target(Protocol):
    """Where transactions are copied to."""

    takes_blobs: bool

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep packs away for the length of a copy.

        What is restored is not checked for links to what a pack removes.
        """

    def begin(self, transaction: Any) -> None:
        """Begin a transaction with the tid and the description of another."""

    def put(self, record: Any, blob: str | None) -> None:
        """Add a record, and the file of a blob, which belongs to the target from now on."""

    def end(self) -> None:
        """End the transaction; a target may wait for others before it makes it durable."""

    def flush(self) -> None:
        """Make everything that has ended durable."""

    def abort(self) -> None:
        """Forget what is not durable."""

    def temporary_directory(self) -> str:
        """Return where to put a file that ``put`` is to take."""


class SingleTarget:
    """Any storage that provides ``IStorageRestoreable``. Each transaction is durable before the next one begins."""

    def __init__(self, storage: Any):
        self._storage = storage
        self._transaction: Any = None
        self.takes_blobs = IBlobStorageRestoreable.providedBy(storage)

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()

    def begin(self, transaction: Any) -> None:
        self._storage.tpc_begin(transaction, transaction.tid, transaction.status)
        self._transaction = transaction

    def put(self, record: Any, blob: str | None) -> None:
        previous = getattr(record, "data_txn", None)
        if blob is None:
            self._storage.restore(record.oid, record.tid, record.data, "", previous, self._transaction)
        else:
            self._storage.restoreBlob(record.oid, record.tid, record.data, blob, previous, self._transaction)

    def end(self) -> None:
        self._storage.tpc_vote(self._transaction)
        self._storage.tpc_finish(self._transaction)
        self._transaction = None

    def flush(self) -> None:
        """Do nothing: everything is durable already."""

    def abort(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            self._storage.tpc_abort(transaction)

    def temporary_directory(self) -> str:
        return self._storage.temporaryDirectory()


class BatchTarget:
    """A database of ours. A batch of transactions is flushed to disk together."""

    def __init__(self, database: Database):
        self._restoration = Restoration(database)
        self._adapter = database.adapter
        self._directory = database.blobs
        self.takes_blobs = database.blobs is not None
        self._transactions = 0
        self._bytes = 0
        self._since = 0.0

    def exclusive(self) -> AbstractContextManager[None]:
        lock: AbstractContextManager[None] = self._adapter.pack_lock(0.0)
        return lock

    def begin(self, transaction: Any) -> None:
        if self._transactions == 0:
            self._since = time.monotonic()
        extension = transaction.extension_bytes
        packed = transaction.status == "p"
        metadata = Metadata(transaction.user, transaction.description, extension, packed)
        self._restoration.begin(metadata, to_int(transaction.tid))

    def put(self, record: Any, blob: str | None) -> None:
        self._bytes += len(record.data or b"")
        if blob is not None:
            self._bytes += os.path.getsize(blob)
        self._restoration.put(to_int(record.oid), record.data, blob)

    def end(self) -> None:
        self._restoration.end()
        self._transactions += 1
        if (
            self._transactions >= BATCH_TRANSACTIONS
            or self._bytes >= BATCH_BYTES
            or time.monotonic() - self._since >= BATCH_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        self._transactions = self._bytes = 0
        self._restoration.commit()

    def abort(self) -> None:
        self._restoration.abort()

    def temporary_directory(self) -> str:
        path: str = self._directory.temporary_directory()
        return path


def go_on(progress: CopyProgress) -> bool:
    """Copy until the end."""
    return True


def copy_transactions(
    source: Any,
    target: Target,
    hooks: Any = None,
    *,
    start: bytes | None = None,
    proceed: Callable[[CopyProgress], bool] = go_on,
    skip_blobs: bool = False,
    iterator: Any = None,
) -> CopyProgress:
    """Copy the transactions of ``source`` from the tid ``start`` on, each with its own tid.

    ``proceed`` is called after each transaction; when it returns false, what was copied is made durable and the copy
    ends. ``iterator`` are the transactions themselves, for a caller who wants to watch it. Raise ``CopyError`` for a
    blob that source or target has no directory for, unless ``skip_blobs``.
    """
    copy = _Copy(source, target, skip_blobs)
    tell = hooks is not None and hooks.listens("relstorage_copy_progress")
    if iterator is None:
        iterator = source.iterator(start) if start is not None else source.iterator()
    try:
        with closing(iterator) if hasattr(iterator, "close") else nullcontext(), target.exclusive():
            for transaction in iterator:
                copy.transaction(transaction)
                progress = copy.progress()
                if tell:
                    hooks.relstorage_copy_progress(progress=progress)
                if not proceed(progress):
                    break
            target.flush()
    except BaseException:
        target.abort()
        raise
    return copy.progress()


def holds_blob(state: bytes | None) -> bool:
    """Tell whether a record, compressed or not, is that of a blob."""
    if not state:
        return False
    try:
        return bool(is_blob_record(untransformed(state)))
    except UnreadableState:
        return False


class _Copy:
    """The counters of one copy, and how one transaction is copied."""

    def __init__(self, source: Any, target: Target, skip_blobs: bool):
        self._source = source
        self._target = target
        self._skip_blobs = skip_blobs
        self._source_has_blobs = IBlobStorage.providedBy(source)
        self._began = time.perf_counter()
        self._transactions = self._records = self._blobs = self._bytes = self._missing = 0
        self._missing_first: list[tuple[bytes, bytes]] = []
        self._tid = b""

    def progress(self) -> CopyProgress:
        return CopyProgress(
            self._transactions,
            self._records,
            self._blobs,
            self._bytes,
            time.perf_counter() - self._began,
            self._tid,
            self._missing,
            tuple(self._missing_first),
        )

    def transaction(self, transaction: Any) -> None:
        target = self._target
        target.begin(transaction)
        for record in transaction:
            blob = self._blob_of(record) if holds_blob(record.data) else None
            target.put(record, blob)
            self._records += 1
            self._bytes += len(record.data or b"")
        target.end()
        self._tid = transaction.tid
        self._transactions += 1

    def _blob_of(self, record: Any) -> str | None:
        """Return a copy of a blob's file that the target may take, or None if the source has lost the file."""
        if self._skip_blobs:
            return None
        for side, able in (("source", self._source_has_blobs), ("destination", self._target.takes_blobs)):
            if not able:
                raise CopyError(
                    f"Copying object {to_int(record.oid):#x}: it is a blob, and the {side} has no blob directory. "
                    f"Give the {side} its 'blob-dir', or say that blobs are to be left behind."
                )
        try:
            original = self._source.openCommittedBlobFile(record.oid, record.tid)
        except POSKeyError:
            self._missing += 1
            if len(self._missing_first) < _MISSING_REPORTED:
                self._missing_first.append((record.oid, record.tid))
            return None
        directory = self._target.temporary_directory()
        with original, tempfile.NamedTemporaryFile(suffix=".tmp", dir=directory, delete=False) as copy:
            shutil.copyfileobj(original, copy, 1 << 20)
            self._bytes += copy.tell()
        self._blobs += 1
        return copy.name
