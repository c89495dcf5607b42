"""The driver that comes with Python: sessions over the ``sqlite3`` module."""

from __future__ import annotations

import contextlib
import hashlib
import random
import sqlite3
import time
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from zope.interface import implementer

from relstorage.errors import (
    CorruptDatabase,
    Disconnected,
    DriverError,
    Failure,
    OutOfSpace,
    ReadOnlyDatabase,
    RelStorageError,
    UnableToAcquireCommitLockError,
)
from relstorage.interfaces import IDriver, ISession
from relstorage.sql import Statement
from relstorage_sqlite.drivers.settings import SessionSettings

#: Set before those of the options. The log is copied into the main file every 8000 pages: SQLite's default of 1000
#: makes a commit about a fifth slower. It is cut to 64 MB after a long reader, or a large transaction, made it grow.
WRITER_PRAGMAS = {"wal_autocheckpoint": "8000", "journal_size_limit": str(64 << 20)}

# Primary result codes, https://www.sqlite.org/rescode.html
_FAILURES = {
    5: Failure.LOCK_TIMEOUT,  # BUSY
    6: Failure.LOCK_TIMEOUT,  # LOCKED
    8: Failure.READ_ONLY,  # READONLY
    11: Failure.CORRUPT,  # CORRUPT
    13: Failure.OUT_OF_SPACE,  # FULL
    26: Failure.CORRUPT,  # NOTADB
}
# Python 3.10 does not tell the code. sqlite3_errstr() gives one fixed text for each, which is not localised.
_TEXTS = {
    "database is locked": 5,
    "database table is locked": 6,
    "attempt to write a readonly database": 8,
    "database disk image is malformed": 11,
    "database or disk is full": 13,
    "file is not a database": 26,
}


def classify(exception: BaseException) -> Failure:
    """Return what an exception of ``sqlite3`` means."""
    if isinstance(exception, sqlite3.ProgrammingError):
        # The module's own complaint about a closed connection has no code.
        return Failure.DISCONNECTED if not hasattr(exception, "sqlite_errorcode") else Failure.OTHER
    code = getattr(exception, "sqlite_errorcode", None)
    if code is None:
        code = _TEXTS.get(str(exception), 0)
    return _FAILURES.get(code & 0xFF, Failure.OTHER)


def _md5_hex(state: bytes | None) -> str | None:
    return None if state is None else hashlib.md5(state, usedforsecurity=False).hexdigest()


@implementer(ISession)
class SqliteSession:
    """One connection in autocommit mode; transactions begin and end where we say so."""

    may_lag = False

    def __init__(self, connection: sqlite3.Connection, settings: SessionSettings, role: str):
        self.role = role
        self.lost = False
        self._connection = connection
        self._path = settings.path
        self._lock_timeout = settings.lock_timeout
        self._execute = connection.execute

    @property
    def in_transaction(self) -> bool:
        try:
            return not self.lost and self._connection.in_transaction
        except sqlite3.ProgrammingError:
            # It was closed under us.
            self.lost = True
            return False

    def incarnation(self) -> None:
        return None

    # --- transactions

    def begin_snapshot(self) -> None:
        self.rollback()
        try:
            self._execute("BEGIN DEFERRED")
        except sqlite3.Error as error:
            raise self._translate(error, "beginning to read") from error

    def begin_write(self, timeout: float | None = None) -> None:
        """Take the write lock of the file.

        SQLite's own busy handler sleeps up to 100 ms at a time, so that a queue of writers moves slowly. Here the
        pauses stay short, and random so that waiting processes do not march in step. Who has waited for long asks more
        often, or newcomers would always be faster.
        """
        limit = self._lock_timeout if timeout is None else timeout
        started = time.monotonic()
        pause = 0.0001
        while True:
            try:
                self._execute("BEGIN IMMEDIATE")
                return
            except sqlite3.Error as error:
                waited = time.monotonic() - started
                if classify(error) is not Failure.LOCK_TIMEOUT:
                    raise self._translate(error, "taking the write lock") from error
                if waited >= limit:
                    raise UnableToAcquireCommitLockError(
                        f"Committing to {self._path}: another process has held the write lock for {waited:.1f} "
                        "seconds. Raise commit-lock-timeout, or look for a process that commits large transactions.",
                        waited=waited,
                    ) from error
            time.sleep(min(pause * random.uniform(0.5, 1.5), max(0.0, limit - waited)))
            pause = min(pause * 1.5, 0.004 / max(1.0, waited))

    def commit(self) -> None:
        try:
            self._execute("COMMIT")
        except sqlite3.Error as error:
            failure = self._translate(error, "committing")
            self.rollback()
            raise failure from error

    def rollback(self, another_follows: bool = False) -> None:
        try:
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
        except sqlite3.Error:
            self.lost = True

    # --- statements

    def _arguments(self, statement: Statement, parameters: tuple[Any, ...]) -> tuple[Any, ...]:
        # The text of a list of integers is the JSON of it.
        return tuple(str(p) if n in statement.arrays else p for n, p in enumerate(parameters))

    def row(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> Any:
        try:
            if statement.arrays:
                parameters = self._arguments(statement, parameters)
            return self._execute(statement.text, parameters).fetchone()
        except sqlite3.Error as error:
            raise self._translate(error, statement.name) from error

    def rows(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> list[Any]:
        try:
            if statement.arrays:
                parameters = self._arguments(statement, parameters)
            return self._execute(statement.text, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error, statement.name) from error

    def stream(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> Iterator[Any]:
        try:
            if statement.arrays:
                parameters = self._arguments(statement, parameters)
            cursor = self._execute(statement.text, parameters)
            try:
                # Not "yield from", which would close the cursor before the line below can.
                for row in cursor:  # noqa: UP028 (see above)
                    yield row
            finally:
                # A session that was closed before its stream has closed the cursor already.
                with contextlib.suppress(sqlite3.Error):
                    cursor.close()
        except sqlite3.Error as error:
            raise self._translate(error, statement.name) from error

    def run(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> int:
        try:
            if statement.arrays:
                parameters = self._arguments(statement, parameters)
            return self._execute(statement.text, parameters).rowcount
        except sqlite3.Error as error:
            raise self._translate(error, statement.name) from error

    def run_many(self, statement: Statement, many: Iterable[tuple[Any, ...]]) -> None:
        try:
            self._connection.executemany(statement.text, many)
        except sqlite3.Error as error:
            raise self._translate(error, statement.name) from error

    def script(self, *texts: str) -> list[Any]:
        """Execute statements that are no part of the contract (schema, pragmas); return the last one's rows."""
        rows: list[Any] = []
        try:
            for text in texts:
                rows = self._execute(text).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error, "preparing the database") from error
        return rows

    def close(self) -> None:
        self.lost = True
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _translate(self, error: sqlite3.Error, attempt: str) -> RelStorageError:
        failure = classify(error)
        where = f"SQLite file {self._path} ({attempt})"
        if failure is Failure.OUT_OF_SPACE:
            return OutOfSpace(
                f"{where}: the disk is full. Nothing of the transaction was kept. Make room, then try again."
            )
        if failure is Failure.READ_ONLY:
            return ReadOnlyDatabase(
                f"{where}: the file or its directory cannot be written. SQLite needs to write both; "
                "check owner and permissions."
            )
        if failure is Failure.CORRUPT:
            return CorruptDatabase(
                f"{where}: {error}. The file is damaged or is no SQLite database. "
                "Restore it from a backup, and run 'relstorage verify'."
            )
        if failure is Failure.LOCK_TIMEOUT:
            return UnableToAcquireCommitLockError(
                f"{where}: another process holds the lock.", waited=self._lock_timeout
            )
        if failure is Failure.DISCONNECTED:
            self.lost = True
            return Disconnected(f"{where}: the connection was closed.")
        return DriverError(f"{where}: {error}")


@implementer(IDriver)
class StdlibDriver:
    """Python's own ``sqlite3``."""

    name = "sqlite.sqlite3"
    backend = "sqlite"
    aliases = ("sqlite3", "stdlib")
    distribution = "relstorage-sqlite"

    #: json_each without a compile option, UPSERT and RETURNING are there from this version on.
    oldest = (3, 35, 0)

    def check(self) -> None:
        if sqlite3.sqlite_version_info < self.oldest:
            raise ImportError(
                f"Python's sqlite3 module is linked with SQLite {sqlite3.sqlite_version}; 3.35 or newer is needed"
            )

    def classify(self, exception: BaseException) -> Failure:
        return classify(exception)

    def connect(self, settings: SessionSettings, role: str) -> sqlite3.Connection:
        """Return a configured connection. The file must exist, except in the role 'schema'."""
        mode = "rwc" if role == "schema" else "rw"
        connection = sqlite3.connect(
            f"file:{quote(settings.path)}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
            # A lock is met here while another connection recovers or closes the log.
            timeout=settings.lock_timeout,
        )
        if role != "schema":
            for name, value in WRITER_PRAGMAS.items() if role != "load" else ():
                connection.execute(f"PRAGMA {name} = {value}").close()
            for name, value in settings.pragmas.items():
                connection.execute(f"PRAGMA {name} = {value}").close()
            connection.execute(f"PRAGMA synchronous = {settings.synchronous_for(role)}").close()
            if role == "load":
                connection.execute("PRAGMA query_only = 1").close()
            else:
                connection.create_function("md5_hex", 1, _md5_hex, deterministic=True)
                # From now on begin_write does the waiting.
                connection.execute("PRAGMA busy_timeout = 0").close()
        return connection

    def open_session(self, settings: SessionSettings, role: str) -> SqliteSession:
        """Open a session in the role 'load', 'store', 'pack', or 'schema' (which may create the file)."""
        try:
            connection = self.connect(settings, role)
        except sqlite3.Error as error:
            failure = classify(error)
            kind = {Failure.CORRUPT: CorruptDatabase, Failure.READ_ONLY: ReadOnlyDatabase}.get(failure, DriverError)
            raise kind(
                f"Opening SQLite file {settings.path}: {error}. Check that the directory exists and can be written, "
                "and that the file is an SQLite database."
            ) from error
        return SqliteSession(connection, settings, role)


driver = StdlibDriver()
