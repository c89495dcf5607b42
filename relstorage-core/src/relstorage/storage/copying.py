"""Copy transactions from another storage, blobs included, and tell how far it is."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from typing import Any, NamedTuple

from ZODB.blob import is_blob_record
from ZODB.interfaces import IBlobStorage, IBlobStorageRestoreable
from ZODB.POSException import POSKeyError


class CopyProgress(NamedTuple):
    """What has been copied until now. ``tid`` is that of the last transaction."""

    transactions: int
    records: int
    blobs: int
    bytes: int
    seconds: float
    tid: bytes


def copy_transactions(source: Any, destination: Any, hooks: Any, start: bytes | None = None) -> CopyProgress:
    """Copy the transactions of ``source`` from the tid ``start`` on, each with its own tid.

    Every transaction is durable before the next one begins, so that an interrupted copy can go on after the last.
    """
    blobs_too = IBlobStorage.providedBy(source) and IBlobStorageRestoreable.providedBy(destination)
    tell = hooks.listens("relstorage_copy_progress")
    began = time.perf_counter()
    transactions = records = blobs = size = 0
    tid = b""
    iterator = source.iterator(start) if start is not None else source.iterator()
    try:
        for transaction in iterator:
            tid = transaction.tid
            destination.tpc_begin(transaction, tid, transaction.status)
            try:
                for record in transaction:
                    blob = None
                    if blobs_too and record.data is not None and is_blob_record(record.data):
                        blob = _private_copy(source, record, destination.temporaryDirectory())
                    previous = getattr(record, "data_txn", None)
                    if blob is not None:
                        size += os.path.getsize(blob)
                        blobs += 1
                        destination.restoreBlob(record.oid, record.tid, record.data, blob, previous, transaction)
                    else:
                        destination.restore(record.oid, record.tid, record.data, "", previous, transaction)
                    records += 1
                    size += len(record.data or b"")
                destination.tpc_vote(transaction)
                destination.tpc_finish(transaction)
            except BaseException:
                destination.tpc_abort(transaction)
                raise
            transactions += 1
            if tell:
                seconds = time.perf_counter() - began
                hooks.relstorage_copy_progress(
                    progress=CopyProgress(transactions, records, blobs, size, seconds, tid)
                )
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
    return CopyProgress(transactions, records, blobs, size, time.perf_counter() - began, tid)


def _private_copy(source: Any, record: Any, directory: str) -> str | None:
    """Return a copy of a blob's file that the destination may take, or None if the source has lost the file."""
    try:
        original = source.openCommittedBlobFile(record.oid, record.tid)
    except POSKeyError:
        return None
    with original, tempfile.NamedTemporaryFile(suffix=".tmp", dir=directory, delete=False) as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
    return copy.name
