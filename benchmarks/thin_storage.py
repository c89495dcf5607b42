"""The thinnest storage that ZODB can run the workloads on: a row and a dictionary. It checks nothing, detects no
conflict and knows no other process, so nobody may use it. It shows how much of a figure is ZODB and the statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from subject import Subject
from ZODB.DB import DB
from ZODB.interfaces import IMVCCStorage
from ZODB.POSException import POSKeyError
from ZODB.utils import p64, u64
from zope.interface import implementer

SCHEMA = "CREATE TABLE IF NOT EXISTS object_state (zoid INTEGER PRIMARY KEY, tid INTEGER NOT NULL, state BLOB)"
TID_INDEX = "CREATE INDEX IF NOT EXISTS object_state_tid ON object_state (tid)"
SELECT = "SELECT state, tid FROM object_state WHERE zoid = ?"
UPSERT = (
    "INSERT INTO object_state (zoid, tid, state) VALUES (?, ?, ?) "
    "ON CONFLICT (zoid) DO UPDATE SET tid = excluded.tid, state = excluded.state"
)
LAST = "SELECT max(tid) FROM object_state"


def connect(path: str, synchronous: str) -> sqlite3.Connection:
    """Open a database with the durability to compare."""
    session = sqlite3.connect(path, isolation_level=None)
    session.execute("PRAGMA journal_mode = WAL")
    session.execute(f"PRAGMA synchronous = {synchronous}")
    return session


@implementer(IMVCCStorage)
class ThinStorage:
    """Store the current revision of each object; all instances of a process share one dictionary of states."""

    def __init__(self, path: str, synchronous: str, states: dict[bytes, tuple[bytes, bytes]]) -> None:
        self._arguments = path, synchronous, states
        self._states = states
        self._session = connect(path, synchronous)
        self._execute = self._session.cursor().execute
        self._session.execute(SCHEMA)
        self._session.execute(TID_INDEX)
        self._staged: list[tuple[bytes, bytes]] = []
        (self._oid,) = self._execute("SELECT coalesce(max(zoid), 0) FROM object_state").fetchone()

    def new_instance(self) -> ThinStorage:
        return ThinStorage(*self._arguments)

    def release(self) -> None:
        self._session.close()

    close = release

    def load(self, oid: bytes, version: str = "") -> tuple[bytes, bytes]:
        found = self._states.get(oid)
        if found is None:
            rows = self._execute(SELECT, (u64(oid),)).fetchall()
            if not rows:
                raise POSKeyError(oid)
            state, tid = rows[0]
            found = self._states[oid] = state, p64(tid)
        return found

    def poll_invalidations(self) -> list[bytes]:
        if self._session.in_transaction:
            self._execute("ROLLBACK")
        self._execute("BEGIN")
        self._execute(LAST).fetchall()
        return []

    def sync(self, force: bool = True) -> None:
        """Poll does all of it."""

    def new_oid(self) -> bytes:
        self._oid += 1
        return p64(self._oid)

    def tpc_begin(self, transaction: Any) -> None:
        self._staged = []

    def store(self, oid: bytes, serial: bytes, data: bytes, version: str, transaction: Any) -> None:
        self._staged.append((oid, data))

    def tpc_vote(self, transaction: Any) -> None:
        """Nothing is checked."""

    def tpc_finish(self, transaction: Any, func: Callable[[bytes], None] = lambda tid: None) -> bytes:
        if self._session.in_transaction:
            self._execute("ROLLBACK")
        self._execute("BEGIN IMMEDIATE")
        (last,) = self._execute(LAST).fetchone()
        tid = (last or 0) + 1
        self._session.executemany(UPSERT, [(u64(oid), tid, data) for oid, data in self._staged])
        self._execute("COMMIT")
        serial = p64(tid)
        for oid, data in self._staged:
            self._states[oid] = data, serial
        func(serial)
        return serial

    def tpc_abort(self, transaction: Any) -> None:
        self._staged = []

    def registerDB(self, wrapper: Any) -> None:
        """Nobody else writes, so nobody needs to be told."""

    def sortKey(self) -> str:
        return "thin"

    def isReadOnly(self) -> bool:
        return False

    def getName(self) -> str:
        return "thin"

    def lastTransaction(self) -> bytes:
        return p64(self._execute(LAST).fetchone()[0] or 0)

    def __len__(self) -> int:
        return self._execute("SELECT count(*) FROM object_state").fetchone()[0]

    def getSize(self) -> int:
        return 0

    def supportsUndo(self) -> bool:
        return False


class ThinSubject(Subject):
    """A subject whose database needs no configuration."""

    def __init__(self, synchronous: str, *arguments: Any) -> None:
        super().__init__("", *arguments)
        self._synchronous = synchronous

    def open_database(self) -> DB:
        return DB(ThinStorage(f"{self.directory}/thin.sqlite3", self._synchronous, {}), cache_size=100000)
