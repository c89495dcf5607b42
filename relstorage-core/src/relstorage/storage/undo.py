"""Undo of a transaction: stage, for each object it changed, the state from before it.

An object that was changed again since is merged by conflict resolution, or the undo is refused. What is staged is
checked again at vote like any other record, so that no lock is needed here.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Iterator
from typing import Any

from ZODB.POSException import ConflictError, UndoError

from relstorage.database.commit import Kind
from relstorage.ids import MAX_TID, seconds_at, to_bytes, to_int
from relstorage.storage.transactions import Commit

#: How many transactions of the undo log are read at once.
PAGE = 100


def encode(tid: int) -> bytes:
    """Return the id of a transaction as the undo log shows it."""
    return base64.encodebytes(to_bytes(tid)).rstrip()


def decode(transaction_id: bytes) -> int:
    """Return the tid that an id of the undo log stands for."""
    raw = transaction_id if len(transaction_id) == 8 else base64.decodebytes(transaction_id + b"\n")
    if len(raw) != 8:
        raise UndoError(f"{transaction_id!r} is not the id of a transaction.")
    return to_int(raw)


def read_extension(extension: bytes | None) -> dict[str, Any]:
    """Return the extension of a transaction; {} where it cannot be read."""
    if not extension:
        return {}
    try:
        found = pickle.loads(extension)
    except Exception:  # any class may fail to load, and the log must be shown all the same
        return {}
    return found if isinstance(found, dict) else {}


def undo_log(
    session: Any, sql: Any, first: int, last: int, accept: Callable[[dict[str, Any]], Any] | None
) -> list[dict[str, Any]]:
    """Return the descriptions of undoable transactions, newest first; see ``IStorageUndoable.undoLog``."""
    wanted = last - first if last >= 0 else -last
    descriptions: list[dict[str, Any]] = []
    skip = first
    for description in _descriptions(session, sql):
        if len(descriptions) >= wanted:
            break
        if accept is not None and not accept(description):
            continue
        if skip:
            skip -= 1
            continue
        descriptions.append(description)
    return descriptions


def _descriptions(session: Any, sql: Any) -> Iterator[dict[str, Any]]:
    below = MAX_TID
    while rows := session.rows(sql.undoable_transactions, (below, PAGE)):
        for tid, username, description, extension in rows:
            found = read_extension(extension)
            found.update(
                id=encode(tid),
                time=seconds_at(tid),
                user_name=bytes(username or b""),
                description=bytes(description or b""),
            )
            yield found
        below = rows[-1][0]


def undo(
    session: Any, sql: Any, commit: Commit, tid: int, resolve: Any, undo_blob: Callable[[int, int, int], None]
) -> list[int]:
    """Stage the undo of a transaction in ``commit`` and return the oids.

    ``resolve(oid, committed, old, new, committed_state)`` is ZODB's ``tryToResolveConflict``. ``undo_blob(oid,
    from_tid, tid)`` stages the blob of the older revision. Raise ``UndoError`` if it cannot be undone; nothing is
    staged then.
    """
    if session.row(sql.is_undoable, (tid,)) is None:
        raise UndoError("The transaction does not exist, or a pack has made it final.")
    commit.require_undoable(tid)
    staged = []
    for oid, undone in session.rows(sql.records_of, (tid,)):
        before = session.row(sql.state_before, (oid, tid))
        old_state, old_tid = before if before is not None else (None, 0)
        base, current = _current(session, sql, commit, oid)
        if base != tid and current != undone:
            old_state = _merge(oid, base, tid, old_state, current, resolve)
            old_tid = 0
        staged.append((oid, base, old_state, old_tid))
    for oid, base, state, old_tid in staged:
        commit.put(oid, base, Kind.UNDO, state)
        commit.forget_blob(oid)
        if old_tid and session.row(sql.has_blob, (oid, old_tid)) is not None:
            commit.staged.blob_copies[oid] = old_tid
        elif old_tid:
            undo_blob(oid, old_tid, tid)
    return [each[0] for each in staged]


def _current(session: Any, sql: Any, commit: Commit, oid: int) -> tuple[int, bytes | None]:
    """Return the tid and state that the undo starts from; an earlier undo in the same transaction counts."""
    staged = commit.staged.records.get(oid)
    if staged is not None:
        return staged.base, staged.state
    row = session.row(sql.current_state, (oid,))
    if row is None:
        return 0, None
    return row[1], row[0]


def _merge(oid: int, base: int, tid: int, old_state: bytes | None, current: bytes | None, resolve: Any) -> bytes:
    if old_state is None or current is None:
        raise UndoError("The object was changed, made or removed by a later transaction.", to_bytes(oid))
    try:
        return resolve(to_bytes(oid), to_bytes(base), to_bytes(tid), old_state, current)
    except ConflictError as error:
        reason = "A later transaction changed the object, and the changes cannot be merged."
        raise UndoError(reason, to_bytes(oid)) from error
