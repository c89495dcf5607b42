"""The driver ``sqlite.apsw``: our backend ``sqlite`` through APSW, another binding of SQLite.

A driver opens sessions, runs statements, and translates what goes wrong; that is all it has to know. APSW brings an
SQLite of its own: one process must not open the same file through it and through the module ``sqlite3``.
"""

from __future__ import annotations

import hashlib
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

# https://www.sqlite.org/rescode.html
_FAILURES = {
    5: Failure.LOCK_TIMEOUT,
    6: Failure.LOCK_TIMEOUT,
    8: Failure.READ_ONLY,
    11: Failure.CORRUPT,
    13: Failure.OUT_OF_SPACE,
    26: Failure.CORRUPT,
}
_ERRORS = {
    Failure.OUT_OF_SPACE: (OutOfSpace, "the disk is full"),
    Failure.READ_ONLY: (ReadOnlyDatabase, "the file or its directory cannot be written"),
    Failure.CORRUPT: (CorruptDatabase, "the file is damaged or is no SQLite database"),
    Failure.LOCK_TIMEOUT: (UnableToAcquireCommitLockError, "another process holds the lock"),
    Failure.DISCONNECTED: (Disconnected, "the connection was closed"),
}


def _md5_hex(state: bytes | None) -> str | None:
    return None if state is None else hashlib.md5(state, usedforsecurity=False).hexdigest()


@implementer(ISession)
class ApswSession:
    """One APSW connection."""

    may_lag = False

    def __init__(self, connection: Any, settings: SessionSettings, role: str, driver: ApswDriver):
        self.role = role
        self.lost = False
        self._connection = connection
        self._settings = settings
        self._driver = driver

    @property
    def in_transaction(self) -> bool:
        return not self.lost and self._connection.in_transaction

    def incarnation(self) -> None:
        return None

    def begin_snapshot(self) -> None:
        self.rollback()
        self._execute("BEGIN DEFERRED")

    def begin_write(self, timeout: float | None = None) -> None:
        limit = self._settings.lock_timeout if timeout is None else timeout
        started = time.monotonic()
        while True:
            try:
                self._execute("BEGIN IMMEDIATE")
                return
            except UnableToAcquireCommitLockError as error:
                waited = time.monotonic() - started
                if waited >= limit:
                    raise UnableToAcquireCommitLockError(
                        f"Committing to {self._settings.path}: another process holds the write lock "
                        f"since {waited:.1f} seconds.",
                        waited=waited,
                    ) from error
            time.sleep(0.001)

    def commit(self) -> None:
        try:
            self._execute("COMMIT")
        except RelStorageError:
            self.rollback()
            raise

    def rollback(self, another_follows: bool = False) -> None:
        if self.in_transaction:
            try:
                self._execute("ROLLBACK")
            except RelStorageError:
                self.lost = True

    def row(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> Any:
        rows = self.rows(statement, parameters)
        return rows[0] if rows else None

    def rows(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> list[Any]:
        return self._execute(statement.text, self._bindings(statement, parameters), statement.name)

    def stream(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> Iterator[Any]:
        try:
            cursor = self._connection.execute(statement.text, self._bindings(statement, parameters))
            try:
                yield from cursor
            finally:
                cursor.close(True)
        except self._driver.error as error:
            raise self._translate(error, statement.name) from error

    def run(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> int:
        self.rows(statement, parameters)
        return self._connection.changes()

    def run_many(self, statement: Statement, many: Iterable[tuple[Any, ...]]) -> None:
        try:
            self._connection.executemany(statement.text, many)
        except self._driver.error as error:
            raise self._translate(error, statement.name) from error

    def script(self, *texts: str) -> list[Any]:
        rows: list[Any] = []
        for text in texts:
            rows = self._execute(text, (), "preparing the database")
        return rows

    def close(self) -> None:
        self.lost = True
        self._connection.close(True)

    @staticmethod
    def _bindings(statement: Statement, parameters: tuple[Any, ...]) -> tuple[Any, ...]:
        # The statements of the backend want a list as JSON.
        return tuple(str(each) if n in statement.arrays else each for n, each in enumerate(parameters))

    def _execute(self, text: str, bindings: tuple[Any, ...] = (), attempt: str | None = None) -> list[Any]:
        try:
            return self._connection.execute(text, bindings).fetchall()
        except self._driver.error as error:
            raise self._translate(error, attempt or text) from error

    def _translate(self, error: Exception, attempt: str) -> RelStorageError:
        failure = self._driver.classify(error)
        if failure is Failure.DISCONNECTED:
            self.lost = True
        kind, what = _ERRORS.get(failure, (DriverError, str(error)))
        return kind(f"SQLite file {self._settings.path} ({attempt}): {what}.")


@implementer(IDriver)
class ApswDriver:
    """Another Python SQLite Wrapper."""

    name = "sqlite.apsw"
    backend = "sqlite"
    aliases = ("apsw",)
    distribution = "apsw"

    def check(self) -> None:
        import apsw  # noqa: F401  only whether it imports

    @property
    def error(self) -> type[Exception]:
        """The base of the module's exceptions, which is imported only where the driver is used."""
        import apsw

        return apsw.Error

    def classify(self, exception: BaseException) -> Failure:
        import apsw

        if isinstance(exception, apsw.ConnectionClosedError):
            return Failure.DISCONNECTED
        return _FAILURES.get(getattr(exception, "result", 0), Failure.OTHER)

    def open_session(self, settings: SessionSettings, role: str) -> ApswSession:
        import apsw

        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
        if role == "schema":
            flags |= apsw.SQLITE_OPEN_CREATE
        try:
            connection = apsw.Connection(f"file:{quote(settings.path)}", flags=flags)
        except apsw.Error as error:
            raise DriverError(
                f"Opening SQLite file {settings.path}: {error}. Check that the directory exists and can be written."
            ) from error
        session = ApswSession(connection, settings, role, self)
        connection.set_busy_timeout(int(settings.lock_timeout * 1000))
        if role != "schema":
            pragmas = {**settings.pragmas, "synchronous": settings.synchronous_for(role)}
            session.script(*(f"PRAGMA {name} = {value}" for name, value in pragmas.items()))
            if role == "load":
                session.script("PRAGMA query_only = 1")
            else:
                connection.create_scalar_function("md5_hex", _md5_hex, 1, deterministic=True)
                connection.set_busy_timeout(0)
        return session


driver = ApswDriver()
