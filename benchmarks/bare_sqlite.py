"""The bare statements of a storage on SQLite, through Python's ``sqlite3``, with no storage around them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from thin_storage import LAST, SCHEMA, SELECT, TID_INDEX, UPSERT, connect


class SqliteSession:
    """One connection."""

    def __init__(self, path: str, synchronous: str) -> None:
        self._session = connect(path, synchronous)
        self._execute = self._session.cursor().execute

    def begin(self) -> None:
        """Start a transaction that reads, and ask what is newest in it."""
        if self._session.in_transaction:
            self._execute("ROLLBACK")
        self._execute("BEGIN")
        self._execute(LAST).fetchall()

    def end(self) -> None:
        """End the transaction that reads."""
        self._execute("ROLLBACK")

    def load(self, oid: int) -> tuple[bytes, int]:
        return self._execute(SELECT, (oid,)).fetchall()[0]

    def commit(self, oids: Sequence[int], states: Sequence[bytes], serial: int | None = None) -> bool:
        """Write rows; return False if the only one is no longer of the revision *serial*."""
        if self._session.in_transaction:
            self._execute("ROLLBACK")
        self._execute("BEGIN IMMEDIATE")
        if serial is not None and self.load(oids[0])[1] != serial:
            self._execute("ROLLBACK")
            return False
        tid = (self._execute(LAST).fetchone()[0] or 0) + 1
        self._session.executemany(UPSERT, [(oid, tid, state) for oid, state in zip(oids, states, strict=True)])
        self._execute("COMMIT")
        return True

    def close(self) -> None:
        self._session.close()


class SqliteFloor:
    """Where the sessions of a floor ``sqlite3:SYNCHRONOUS`` connect to."""

    def __init__(self, synchronous: str, order: Mapping[str, str]) -> None:
        self._arguments = os.path.join(order["directory"], "floor.sqlite3"), synchronous

    def create(self) -> None:
        """Make an empty table."""
        session = connect(*self._arguments)
        session.execute(SCHEMA)
        session.execute(TID_INDEX)
        session.close()

    def remove(self) -> None:
        """The file goes with its directory."""

    def open(self) -> SqliteSession:
        return SqliteSession(*self._arguments)
