"""Judge a database by its raw records, without ZODB's object layer.

``Records`` reads everything through the storage's iterators, and tells what can be reached and which references lead
nowhere.
"""

from __future__ import annotations

from typing import Any

from relstorage.errors import UnreadableState
from relstorage.ids import ROOT_OID, to_int
from relstorage.references import references


class Records:
    """All records of a storage as they are now."""

    def __init__(self, storage: Any):
        #: oid -> (tid, state) of what is current.
        self.current: dict[int, tuple[int, bytes]] = {}
        following: bytes | None = None
        while len(storage):
            oid, tid, state, following = storage.record_iternext(following)
            self.current[to_int(oid)] = (to_int(tid), state)
            if following is None:
                break
        #: (oid, tid, state) of every revision; no state where it removes the object.
        self.revisions: list[tuple[int, int, bytes | None]] = []
        self.transactions: list[int] = []
        for transaction in storage.iterator():
            self.transactions.append(to_int(transaction.tid))
            for record in transaction:
                self.revisions.append((to_int(record.oid), to_int(record.tid), record.data))

    def reachable(self) -> dict[int, list[int]]:
        """Walk from the root; return the missing oids that each object refers to, for all that can be reached."""
        found: dict[int, list[int]] = {}
        pending = [ROOT_OID] if self.current else []
        while pending:
            oid = pending.pop()
            if oid in found:
                continue
            targets = _references(self.current[oid][1])
            found[oid] = [target for target in targets if target not in self.current]
            pending.extend(target for target in targets if target in self.current)
        return found

    def dangling(self) -> list[tuple[int, int]]:
        """Return (oid, missing oid) of what can be reached from the root."""
        return [(oid, target) for oid, missing in self.reachable().items() for target in missing]

    def dangling_revisions(self) -> list[tuple[int, int, int]]:
        """Return (oid, tid, missing oid) of references in any revision to what is not there in any."""
        there = {oid for oid, _, _ in self.revisions}
        return [
            (oid, tid, target)
            for oid, tid, state in self.revisions
            if state
            for target in _references(state)
            if target not in there
        ]


def _references(state: bytes) -> list[int]:
    try:
        return references(state)
    except UnreadableState:
        return []


def assert_nothing_dangles(storage: Any, every_revision: bool = True) -> Records:
    """Fail if a reference from the root on leads nowhere, or one in any revision that was kept; return the records."""
    records = Records(storage)
    assert not records.dangling()
    if every_revision:
        assert not records.dangling_revisions()
    return records
