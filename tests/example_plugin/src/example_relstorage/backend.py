"""The backend ``examplefile``: a ZODB in one SQLite file, wherever you like and whatever its name.

It is made of parts of ``relstorage_sqlite``: statements, tables and the session of the standard library. Its own are
the option, the object ids, which need no second file, and the pack lock.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, unquote

from zc.lockfile import LockError, LockFile
from zope.interface import implementer

from relstorage.database.blob_chunks import BlobChunks
from relstorage.database.commit import DirectCommit
from relstorage.errors import UnableToAcquirePackUndoLockError
from relstorage.interfaces import IAdapter, IBackend, IDriver
from relstorage.options import PATH, BackendOptions, Options, option, options_class
from relstorage_sqlite.drivers.settings import SessionSettings
from relstorage_sqlite.drivers.stdlib import StdlibDriver
from relstorage_sqlite.schema import SqliteSchema
from relstorage_sqlite.statements import statements


@options_class
class FileOptions(BackendOptions):
    """The options of an ``examplefile`` database."""

    file: str = option(PATH, None, "The file of the database.", required=True)

    @classmethod
    def from_uri(cls, parts: SplitResult, arguments: dict[str, str]) -> dict[str, str]:
        """Return the file, which is the path of the URI: ``examplefile:///srv/zodb.sqlite3``."""
        return {"file": unquote(parts.path)} if parts.path.strip("/") else {}


@implementer(IAdapter)
class FileAdapter:
    """One file."""

    backend = "examplefile"
    uses_options = frozenset[str]()
    opens_ahead = False

    def __init__(self, path: str, keep_history: bool, driver: Any, settings: SessionSettings, blob_chunk_size: int):
        self.name = f"examplefile:{path}"
        self.driver = driver.name
        self.keep_history = keep_history
        self.statements = statements(keep_history)
        self.blob_store = BlobChunks(self.statements, blob_chunk_size)
        self.commit_steps = DirectCommit(self.statements, self.blob_store)
        self.schema = SqliteSchema(
            path, keep_history, self.open_session, settings.lock_timeout, lambda session: session.close()
        )
        self._path = path
        self._driver = driver
        self._settings = settings

    def open_session(self, role: str) -> Any:
        return self._driver.open_session(self._settings, role)

    def reserve_oids(self, session: Any, count: int, at_least: int = 0) -> range:
        session.begin_write()
        try:
            reserved = session.row(self.statements.get_meta, ("reserved_oid",))
            stored = session.script("SELECT coalesce(max(zoid), 0) FROM object_state")[0][0]
            start = max(int(reserved[0]) if reserved else 0, stored, at_least) + 1
            session.run(self.statements.set_meta, ("reserved_oid", str(start + count - 1)))
            session.commit()
        except BaseException:
            session.rollback()
            raise
        return range(start, start + count)

    @contextmanager
    def pack_lock(self, timeout: float = 0.0) -> Iterator[None]:
        deadline = time.monotonic() + timeout
        while True:
            try:
                lock = LockFile(f"{self._path}.pack")
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
        return f"SQLite {sqlite3.sqlite_version}"

    def size(self) -> int:
        files = (self._path, f"{self._path}-wal")
        return sum(os.path.getsize(each) for each in files if os.path.exists(each))

    def close(self) -> None:
        """Nothing is kept beside the sessions."""


@implementer(IBackend)
class FileBackend:
    """A ZODB in one file."""

    name = "examplefile"
    title = "Example file"
    sections = ("examplefile",)
    schemes = ("examplefile",)
    options_class = FileOptions
    drivers = ("examplefile.sqlite3",)
    requires = "example-relstorage"

    def adapter(self, options: FileOptions, storage_options: Options, driver: Any) -> FileAdapter:
        settings = SessionSettings(path=options.file, lock_timeout=storage_options.commit_lock_timeout)
        return FileAdapter(
            options.file, storage_options.keep_history, driver, settings, storage_options.blob_chunk_size
        )


@implementer(IDriver)
class FileDriver(StdlibDriver):
    """The standard library's driver, under the name that this backend needs."""

    name = "examplefile.sqlite3"
    backend = "examplefile"
    aliases = ("sqlite3",)
    distribution = "example-relstorage"


backend = FileBackend()
driver = FileDriver()
