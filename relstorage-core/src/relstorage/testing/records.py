"""What tests put into databases: records, the transactions that carry them, and objects that can or cannot be
merged."""

from __future__ import annotations

from typing import Any

from persistent import Persistent
from persistent.mapping import PersistentMapping
from transaction import TransactionManager
from ZODB.Connection import TransactionMetaData
from ZODB.serialize import ObjectWriter
from ZODB.utils import z64


class Node(Persistent):
    """An object with a value and links."""

    def __init__(self, value: Any = None, **links: Any):
        self.value = value
        self.__dict__.update(links)


class Counter(Persistent):
    """A number whose concurrent changes add up."""

    value = 0

    def _p_resolveConflict(self, old: dict, saved: dict, new: dict) -> dict:
        merged = dict(saved)
        merged["value"] = saved.get("value", 0) + new.get("value", 0) - old.get("value", 0)
        return merged


def state(value: Any = None, kind: type[Persistent] = Node) -> bytes:
    """Return the record of an object with this value and no references."""
    made = kind()
    made.value = value
    return ObjectWriter().serialize(made)


def meta(user: str = "", description: str = "", **extension: Any) -> TransactionMetaData:
    """Return the description of a transaction."""
    return TransactionMetaData(user, description, extension)


def commit(storage: Any, *records: tuple[bytes, bytes, bytes], described: Any = None) -> bytes:
    """Commit records, each an oid, the tid it was made from, and a state; return the tid. Abort if that fails."""
    transaction = described or meta()
    storage.tpc_begin(transaction)
    try:
        for oid, base, data in records:
            storage.store(oid, base, data, "", transaction)
        storage.tpc_vote(transaction)
        return storage.tpc_finish(transaction)
    except BaseException:
        storage.tpc_abort(transaction)
        raise


def add(storage: Any, value: Any = None, kind: type[Persistent] = Node) -> tuple[bytes, bytes]:
    """Commit a new object; return its oid and tid."""
    oid = storage.new_oid()
    return oid, commit(storage, (oid, z64, state(value, kind)))


def change(storage: Any, oid: bytes, base: bytes, value: Any = None, kind: type[Persistent] = Node) -> bytes:
    """Commit a new value of an object and return the tid."""
    return commit(storage, (oid, base, state(value, kind)))


def delete(storage: Any, oid: bytes, base: bytes) -> bytes:
    """Delete an object and return the tid."""
    transaction = meta()
    storage.tpc_begin(transaction)
    try:
        storage.deleteObject(oid, base, transaction)
        storage.tpc_vote(transaction)
        return storage.tpc_finish(transaction)
    except BaseException:
        storage.tpc_abort(transaction)
        raise


def undo(storage: Any, *transaction_ids: bytes) -> bytes:
    """Undo transactions of the undo log in one and return the tid."""
    transaction = meta()
    storage.tpc_begin(transaction)
    try:
        for each in transaction_ids:
            storage.undo(each, transaction)
        storage.tpc_vote(transaction)
        return storage.tpc_finish(transaction)
    except BaseException:
        storage.tpc_abort(transaction)
        raise


def newest_undo_id(storage: Any) -> bytes:
    """Return the id of the newest transaction in the undo log."""
    return storage.undoLog(0, 1)[0]["id"]


def restore(storage: Any, tid: bytes, *records: tuple[bytes, bytes | None]) -> bytes:
    """Commit records with a tid of the caller's choice, as copying does."""
    transaction = meta()
    storage.tpc_begin(transaction, tid)
    try:
        for oid, data in records:
            storage.restore(oid, tid, data, "", None, transaction)
        storage.tpc_vote(transaction)
        return storage.tpc_finish(transaction)
    except BaseException:
        storage.tpc_abort(transaction)
        raise


def everything(storage: Any) -> list[tuple[bytes, list[tuple[bytes, bytes | None]]]]:
    """Return all transactions with all their records."""
    return [(each.tid, [(record.oid, record.data) for record in each]) for each in storage.iterator()]


def grow(connection: Any, **values: Any) -> None:
    """Set items of a ZODB connection's root and commit."""
    manager: TransactionManager = connection.transaction_manager
    manager.begin()
    root: PersistentMapping = connection.root()
    for name, value in values.items():
        root[name] = value
    manager.commit()
