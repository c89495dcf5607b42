"""Refuse to commit references to what a pack removes while the transaction runs.

A transaction may have read an object before it was removed. And what a sweep is going to remove may be half gone: an
object that is still there may refer to one that is not. So from the moment a sweep begins until it ends, nobody may
refer to what is on its list, or change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from relstorage.database.commit import Kind, StagedCommit
from relstorage.errors import RemovedReferenceError, UnreadableState
from relstorage.ids import EVERYTHING, MAX_OID, to_bytes
from relstorage.references import possible_references, references

#: How many oids one query is asked about.
CHUNK = 10_000


def refuse_links_to_removed(
    session: Any, sql: Any, staged: StagedCommit, untransform: Callable[[bytes], bytes]
) -> None:
    """Raise ``RemovedReferenceError`` if a staged record refers to an object that is gone or going.

    ``session`` is in the transaction of the vote, so that no sweep can begin before the end of it.
    """
    stored = {oid for oid, _, kind in staged.records.bases() if kind is not Kind.DELETE}
    # What is to stay as it was read is locked until this transaction ends, which the sweep must not have to wait for.
    linked = {oid: oid for oid in (*stored, *staged.read_current)}
    for record in staged.records:
        if record.state is not None:
            for target in _references(record.state, untransform):
                linked.setdefault(target, record.oid)
    anything = False
    for oids in _chunks(linked):
        for oid, final in session.rows(sql.removed_among, (staged.knows_removals_to, oids)):
            if oid == EVERYTHING:
                anything = True
            elif final or oid not in stored:
                raise _error(linked[oid], oid)
    if anything:
        for oids in _chunks(oid for oid in linked if oid not in stored):
            there = {oid for oid, _ in session.rows(sql.current_tids, (oids,))}
            for oid in oids:
                if oid not in there:
                    raise _error(linked[oid], oid)


def _references(state: bytes, untransform: Callable[[bytes], bytes]) -> list[int]:
    state = untransform(state)
    try:
        found = references(state)
    except UnreadableState:
        try:
            return possible_references(state, lambda oid: True)
        except UnreadableState:
            # Nobody can tell. A pack of such a database refuses to collect garbage.
            return []
    return [oid for oid in found if oid <= MAX_OID]


def _chunks(oids: Iterable[int]) -> Iterator[list[int]]:
    each = iter(oids)
    while chunk := list(islice(each, CHUNK)):
        yield chunk


def _error(oid: int, gone: int) -> RemovedReferenceError:
    what = "it" if oid == gone else f"it refers to object {gone:#x}, which"
    return RemovedReferenceError(
        f"Storing object {oid:#x}: {what} was unreachable when a pack began or was deleted, and is gone or will be. "
        "Run the transaction again.",
        oid=to_bytes(oid),
    )
