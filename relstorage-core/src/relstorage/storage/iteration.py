"""Iterate over transactions and records in one snapshot, whatever is committed meanwhile."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from ZODB.BaseStorage import DataRecord
from ZODB.BaseStorage import TransactionRecord as BaseTransactionRecord
from ZODB.interfaces import IStorageTransactionInformation
from zope.interface import implementer

from relstorage.ids import MAX_TID, to_bytes, to_int


class Snapshot:
    """A session that lives as long as anything that still reads from it."""

    def __init__(self, session: Any):
        self.session = session
        session.begin_snapshot()
        self.close = weakref.finalize(self, session.close)


@implementer(IStorageTransactionInformation)
class TransactionRecord(BaseTransactionRecord):
    """One transaction. Iterating over it reads its records."""

    def __init__(self, snapshot: Snapshot, sql: Any, row: Any):
        tid, packed, username, description, extension = row
        self._snapshot = snapshot
        self._sql = sql
        self._tid = tid
        super().__init__(
            to_bytes(tid),
            "p" if packed else " ",
            bytes(username or b""),
            bytes(description or b""),
            bytes(extension or b""),
        )

    def __iter__(self) -> Iterator[DataRecord]:
        tid = to_bytes(self._tid)
        for oid, state in self._snapshot.session.rows(self._sql.records_of, (self._tid,)):
            yield DataRecord(to_bytes(oid), tid, state or None, None)


class TransactionIterator:
    """The transactions between two tids, both included, as they were when it was made."""

    def __init__(self, session: Any, sql: Any, start: bytes | None, stop: bytes | None):
        self._snapshot: Snapshot | None = Snapshot(session)
        self._sql = sql
        self._rows = session.stream(
            sql.transactions_between, (to_int(start) if start else 0, to_int(stop) if stop else MAX_TID)
        )
        # The snapshot begins with the first row read, which must not wait for the caller.
        self._next = next(self._rows, None)

    def __iter__(self) -> TransactionIterator:
        return self

    def __next__(self) -> TransactionRecord:
        if self._snapshot is None:
            # Not ZODB's StorageStopIteration: CPython crashes when `yield from` meets it.
            raise StopIteration
        if self._next is None:
            # Records that were handed out may still be read: the session goes with the last of them.
            self._snapshot = None
            raise StopIteration
        row, self._next = self._next, next(self._rows, None)
        return TransactionRecord(self._snapshot, self._sql, row)

    next = __next__

    def close(self) -> None:
        """Release the session. Records that were handed out cannot be read afterwards."""
        if self._snapshot is not None:
            self._rows.close()
            self._snapshot.close()
            self._snapshot = None


class CurrentRecords:
    """The state of ``record_iternext`` between two calls: a stream of current records in oid order."""

    def __init__(self, session: Any, sql: Any, start: int):
        self._snapshot = Snapshot(session)
        self._rows = session.stream(sql.current_records, (start,))
        self._next = self._live()

    def _live(self) -> Any:
        return next((row for row in self._rows if row[1]), None)

    @property
    def position(self) -> int | None:
        """The oid of the next record; None at the end."""
        return None if self._next is None else self._next[0]

    def take(self) -> tuple[int, bytes, int]:
        """Return oid, state and tid of the next record."""
        row, self._next = self._next, self._live()
        return row

    def close(self) -> None:
        """Release the session."""
        self._rows.close()
        self._snapshot.close()
