"""Compare two storages after a conversion: every transaction and record in tid order, or, where one of them keeps no
history, every current record in oid order. Both are read as streams; states and blobs are compared by checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from BTrees.LLBTree import LLBTree
from ZODB.interfaces import IBlobStorage
from ZODB.POSException import POSKeyError

from relstorage.ids import to_bytes, to_int
from relstorage.storage import RelStorage
from relstorage.storage.copying import holds_blob

#: How many differences are described.
DESCRIBED = 20

Update = Callable[[float], None]


@dataclass
class Comparison:
    """What was compared, and what was found."""

    transactions: int = 0
    records: int = 0
    blobs: int = 0
    bytes: int = 0
    differences: int = 0
    first: list[str] = field(default_factory=list)
    """Descriptions of the first differences."""

    def differ(self, description: str) -> None:
        """Count a difference."""
        self.differences += 1
        if len(self.first) < DESCRIBED:
            self.first.append(description)


def compare(source: Any, destination: Any, update: Update, *, with_blobs: bool = True) -> Comparison:
    """Return what is different in two storages."""
    comparison = Comparison()
    records = _Records(source, destination, comparison, with_blobs)
    if _keeps_history(source) and _keeps_history(destination):
        _compare_transactions(source, destination, records, update)
    else:
        _compare_current(source, destination, records, update)
    return comparison


def _keeps_history(storage: Any) -> bool:
    supports_undo = getattr(storage, "supportsUndo", None)
    return supports_undo is not None and bool(supports_undo())


class _Records:
    """Compares single records."""

    def __init__(self, source: Any, destination: Any, comparison: Comparison, with_blobs: bool):
        self.result = comparison
        self._source = source
        self._destination = destination
        self._blobs = with_blobs and IBlobStorage.providedBy(source) and IBlobStorage.providedBy(destination)

    def same_place(self, oid: int, tid: int, here: bytes, there: bytes, blob: bool) -> None:
        """Compare two checksums of the same revision, and its blob."""
        self.result.records += 1
        if here != there:
            self.result.differ(f"object {oid:#x}, transaction {tid:#018x}: the states differ")
        elif blob and self._blobs:
            self.result.blobs += 1
            if self._checksum(self._source, oid, tid) != self._checksum(self._destination, oid, tid):
                self.result.differ(f"object {oid:#x}, transaction {tid:#018x}: the blobs differ")

    def only(self, side: str, oid: int, tid: int) -> None:
        self.result.records += 1
        self.result.differ(f"object {oid:#x}, transaction {tid:#018x}: only the {side} has it")

    def digest(self, state: bytes | None) -> bytes:
        """Return the checksum of a state; no state has none."""
        if not state:
            return b""
        self.result.bytes += len(state)
        return hashlib.sha256(state).digest()

    def _checksum(self, storage: Any, oid: int, tid: int) -> bytes:
        """Return the checksum of a blob; what is missing has none."""
        checksum = hashlib.sha256()
        try:
            with storage.openCommittedBlobFile(to_bytes(oid), to_bytes(tid)) as file:
                while chunk := file.read(1 << 20):
                    checksum.update(chunk)
        except POSKeyError:
            return b""
        return checksum.digest()


def _compare_transactions(source: Any, destination: Any, records: _Records, update: Update) -> None:
    result = records.result
    with ExitStack() as end:
        for here, there in _side_by_side(_transactions(source, end), _transactions(destination, end)):
            result.transactions += 1
            if there is None or here is None:
                side, tid = ("source", here[0]) if there is None else ("destination", there[0])
                result.differ(f"transaction {tid:#018x}: only the {side} has it")
                continue
            tid = here[0]
            if _described(here[1]) != _described(there[1]):
                result.differ(f"transaction {tid:#018x}: the user, the description or the extension differs")
            ours, theirs = _digests(here[1], records), _digests(there[1], records)
            for oid in sorted(ours.keys() | theirs.keys()):
                if oid not in theirs:
                    records.only("source", oid, tid)
                elif oid not in ours:
                    records.only("destination", oid, tid)
                else:
                    records.same_place(oid, tid, ours[oid][0], theirs[oid][0], ours[oid][1])
            update(result.records)


def _transactions(storage: Any, end: ExitStack) -> Iterator[tuple[int, Any]]:
    iterator = storage.iterator()
    if hasattr(iterator, "close"):
        end.enter_context(closing(iterator))
    return ((to_int(transaction.tid), transaction) for transaction in iterator)


def _described(transaction: Any) -> tuple[bytes, bytes, dict[str, Any]]:
    return transaction.user, transaction.description, transaction.extension


def _digests(transaction: Any, records: _Records) -> dict[int, tuple[bytes, bool]]:
    return {to_int(each.oid): (records.digest(each.data), holds_blob(each.data)) for each in transaction}


def _compare_current(source: Any, destination: Any, records: _Records, update: Update) -> None:
    for here, there in _side_by_side(_current(source), _current(destination)):
        if there is None:
            records.only("source", here[0], here[1])
        elif here is None:
            records.only("destination", there[0], there[1])
        elif here[1] != there[1]:
            records.result.records += 1
            records.result.differ(
                f"object {here[0]:#x}: current since {here[1]:#018x} in the source, {there[1]:#018x} in the destination"
            )
        else:
            oid, tid, state = here
            records.same_place(oid, tid, records.digest(state), records.digest(there[2]), holds_blob(state))
        update(records.result.records)


def _current(storage: Any) -> Iterator[tuple[int, int, bytes]]:
    """Iterate over oid, tid and state of the current records in oid order."""
    return _current_of_ours(storage) if isinstance(storage, RelStorage) else _current_of_any(storage)


def _current_of_ours(storage: RelStorage) -> Iterator[tuple[int, int, bytes]]:
    following: bytes | None = None
    more = len(storage) > 0
    while more:
        oid, tid, state, following = storage.record_iternext(following)
        yield to_int(oid), to_int(tid), state
        more = following is not None


def _current_of_any(storage: Any) -> Iterator[tuple[int, int, bytes]]:
    newest = LLBTree()
    iterator = storage.iterator()
    with closing(iterator) if hasattr(iterator, "close") else ExitStack():
        for transaction in iterator:
            tid = to_int(transaction.tid)
            for record in transaction:
                if record.data:
                    newest[to_int(record.oid)] = tid
                else:
                    newest.pop(to_int(record.oid), None)
    for oid, tid in newest.items():
        try:
            yield oid, tid, storage.loadSerial(to_bytes(oid), to_bytes(tid))
        except POSKeyError:
            continue


def _side_by_side(left: Iterator[Any], right: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Merge two ascending sequences of tuples by their first items; None stands for what one of them lacks."""
    missing: Any = ()
    here, there = next(left, missing), next(right, missing)
    while here is not missing or there is not missing:
        if there is missing or (here is not missing and here[0] < there[0]):
            yield here, None
            here = next(left, missing)
        elif here is missing or there[0] < here[0]:
            yield None, there
            there = next(right, missing)
        else:
            yield here, there
            here, there = next(left, missing), next(right, missing)
