"""One SQLite database as a process uses it: ``main.sqlite3`` in a data directory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zc.lockfile import LockError, LockFile
from zope.interface import implementer

from relstorage.database.blob_chunks import BlobChunks
from relstorage.database.commit import DirectCommit
from relstorage.errors import UnableToAcquirePackUndoLockError
from relstorage.interfaces import IAdapter
from relstorage_sqlite.drivers.settings import SessionSettings
from relstorage_sqlite.oids import OidRanges
from relstorage_sqlite.schema import SqliteSchema
from relstorage_sqlite.statements import statements

FILE = "main.sqlite3"
SHADOW = "oids.sqlite3"
PACK_LOCK = "pack.lock"


@implementer(IAdapter)
class SqliteAdapter:
    """Opens sessions on one file through one driver."""

    backend = "sqlite"
    uses_options = frozenset[str]()
    opens_ahead = False

    def __init__(self, data_dir: str, keep_history: bool, driver: Any, settings: SessionSettings, blob_chunk_size: int):
        self.name = f"sqlite:{data_dir}"
        self.driver = driver.name
        self.keep_history = keep_history
        self.statements = statements(keep_history)
        self.blob_store = BlobChunks(self.statements, blob_chunk_size)
        self.commit_steps = DirectCommit(self.statements, self.blob_store)
        self._data_dir = data_dir
        self._driver = driver
        self._settings = settings
        self._oids = OidRanges(os.path.join(data_dir, SHADOW))
        #: The session that prepared the schema, until another one is open.
        self._first: Any = None
        self.schema = SqliteSchema(
            settings.path, keep_history, self.open_session, settings.lock_timeout, self._keep_for_a_while
        )

    def open_session(self, role: str) -> Any:
        session = self._driver.open_session(self._settings, role)
        self._let_go_of_first()
        return session

    def _keep_for_a_while(self, session: Any) -> None:
        # When the last connection closes, SQLite removes the log, only to make it anew for the next.
        self._first = session

    def _let_go_of_first(self) -> None:
        session, self._first = self._first, None
        if session is not None:
            session.close()

    def reserve_oids(self, session: Any, count: int, at_least: int = 0) -> range:
        return self._oids.reserve(session, count, at_least)

    @contextmanager
    def pack_lock(self, timeout: float = 0.0) -> Iterator[None]:
        # A lock on a file of its own: the kernel drops it with the process that holds it.
        path = os.path.join(self._data_dir, PACK_LOCK)
        deadline = time.monotonic() + timeout
        while True:
            try:
                lock = LockFile(path)
                break
            except LockError as error:
                if time.monotonic() >= deadline:
                    raise UnableToAcquirePackUndoLockError(
                        f"Packing {self.name}: another process is packing it. Wait until that has ended."
                    ) from error
                time.sleep(0.05)
        try:
            yield
        finally:
            lock.close()

    def server(self) -> str:
        session = self.open_session("load")
        try:
            return f"SQLite {session.script('SELECT sqlite_version()')[0][0]}"
        finally:
            session.close()

    def size(self) -> int:
        total = 0
        for name in (FILE, f"{FILE}-wal"):
            try:
                total += os.stat(os.path.join(self._data_dir, name)).st_size
            except FileNotFoundError:
                continue
        return total

    def close(self) -> None:
        """Close the session that is left from opening; the others are closed by their users."""
        self._let_go_of_first()
