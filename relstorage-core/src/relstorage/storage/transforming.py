"""Instances below a wrapper that transforms records, such as zc.zlibstorage or cipher.encryptingstorage.

The wrapper passes ``new_instance`` on to the storage it wraps, so that ZODB's connections would read and write around
it. The instances they get therefore apply the wrapper's transformations themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zope.interface import directlyProvides, providedBy


class TransformedInstance:
    """A storage whose records pass through ``transform_record_data`` and back. The rest is the instance's own."""

    def __init__(self, instance: Any, wrapper: Any):
        self._instance = instance
        self._transform = wrapper.transform_record_data
        self._untransform = wrapper.untransform_record_data
        directlyProvides(self, providedBy(instance))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._instance, name)

    def __len__(self) -> int:
        return len(self._instance)

    def load(self, oid: bytes, version: str = "") -> tuple[bytes, bytes]:
        state, tid = self._instance.load(oid, version)
        return self._untransform(state), tid

    def loadBefore(self, oid: bytes, tid: bytes) -> tuple[bytes, bytes, bytes | None] | None:
        found = self._instance.loadBefore(oid, tid)
        return None if found is None else (self._untransform(found[0]), *found[1:])

    def loadSerial(self, oid: bytes, serial: bytes) -> bytes:
        return self._untransform(self._instance.loadSerial(oid, serial))

    def record_iternext(self, next: bytes | None = None) -> tuple[bytes, bytes, bytes, bytes | None]:
        oid, tid, state, following = self._instance.record_iternext(next)
        return oid, tid, self._untransform(state), following

    def iterator(self, start: bytes | None = None, stop: bytes | None = None) -> Iterator[Any]:
        for transaction in self._instance.iterator(start, stop):
            yield _Untransformed(transaction, self._untransform)

    def store(self, oid: bytes, serial: bytes, data: bytes, version: str, transaction: Any) -> None:
        self._instance.store(oid, serial, self._transform(data), version, transaction)

    def restore(
        self, oid: bytes, serial: bytes, data: bytes | None, version: str, prev_txn: Any, transaction: Any
    ) -> None:
        data = None if data is None else self._transform(data)
        self._instance.restore(oid, serial, data, version, prev_txn, transaction)

    def storeBlob(
        self, oid: bytes, oldserial: bytes, data: bytes, blobfilename: str, version: str, transaction: Any
    ) -> None:
        self._instance.storeBlob(oid, oldserial, self._transform(data), blobfilename, version, transaction)

    def restoreBlob(
        self, oid: bytes, serial: bytes, data: bytes, blobfilename: str, prev_txn: Any, transaction: Any
    ) -> None:
        self._instance.restoreBlob(oid, serial, self._transform(data), blobfilename, prev_txn, transaction)


class _Untransformed:
    """A transaction whose records are shown as they were before the wrapper transformed them."""

    def __init__(self, transaction: Any, untransform: Any):
        self._transaction = transaction
        self._untransform = untransform

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    def __iter__(self) -> Iterator[Any]:
        for record in self._transaction:
            if record.data is not None:
                record.data = self._untransform(record.data)
            yield record
