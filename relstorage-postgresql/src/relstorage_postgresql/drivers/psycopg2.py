"""psycopg2, with the waiting left to us: the thread can be interrupted, and under gevent other greenlets run.

A connection of psycopg2 that is opened as asynchronous never waits by itself. So the callback that psycopg2 has for
greenlets, one for the whole process, is left to whoever wants it.

https://www.psycopg.org/docs/advanced.html#asynchronous-support
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Mapping
from typing import Any

from zope.interface import implementer

from relstorage.errors import Disconnected, Failure
from relstorage.interfaces import IDriver, ISession
from relstorage_postgresql import dsn
from relstorage_postgresql.drivers.failures import meaning
from relstorage_postgresql.drivers.settings import SessionSettings
from relstorage_postgresql.drivers.text import TextSession
from relstorage_postgresql.drivers.waiting import Wait, is_readable, single_addresses, wait_here

# What `poll` returns: https://www.psycopg.org/docs/extensions.html#poll-constants
_DONE, _WRITE = 0, 2
#: https://www.psycopg.org/docs/extensions.html#transaction-status-constants
_STATES = {0: "idle", 2: "open", 3: "failed"}


@implementer(ISession)
class Psycopg2Session(TextSession):
    """A connection of psycopg2, or of what has the same interface."""

    def __init__(self, connection: Any, error: type[Exception], wait: Wait, settings: SessionSettings, role: str):
        super().__init__(settings, role)
        self.errors = (error, OSError)
        self._connection = connection
        self._wait = wait
        #: What the answer to a ROLLBACK is still to be read from.
        self._unread: Any = None

    def query(self, text: str) -> tuple[list[Any], int]:
        self._drain()
        cursor = self._connection.cursor()
        cursor.execute(text)
        poll_until_done(self._connection, self._wait)
        if cursor.description is None:
            return [], cursor.rowcount
        return [tuple([_plain(cell) for cell in row]) for row in cursor.fetchall()], cursor.rowcount

    def _end(self, text: str) -> None:
        if text == "COMMIT":
            super()._end(text)
            return
        # Nobody waits for the answer; it is read when there is something else to say.
        try:
            self._drain()
            self._unread = self._connection.cursor()
            self._unread.execute(text)
        except self.errors as error:
            self._fail(error, "rolling back")
        except BaseException:
            self.close()
            raise

    def _drain(self) -> None:
        if self._unread is not None:
            poll_until_done(self._connection, self._wait)
            self._unread = None

    def explain(self, error: Exception) -> tuple[str | None, str]:
        diagnostics = getattr(error, "diag", None)
        return getattr(error, "pgcode", None), getattr(diagnostics, "message_primary", None) or str(error)

    def server_state(self) -> str:
        if self._connection.closed:
            return "unknown"
        if self._unread is not None:
            return "idle"
        return _STATES.get(self._connection.get_transaction_status(), "unknown")

    def _notice_end(self) -> None:
        # Between transactions nothing is expected from the server but the answer to a ROLLBACK, and the end.
        try:
            if not self._connection.closed and is_readable(self._connection.fileno()):
                self._drain()
                self._connection.poll()
            if self._connection.closed:
                self.close()
        except Exception:
            self.close()
        except BaseException:
            # Interrupted: something may be left unread.
            self.close()
            raise

    def _disconnect(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()


def _plain(value: Any) -> Any:
    return bytes(value) if type(value) is memoryview else value


def poll_until_done(connection: Any, wait: Wait, deadline: float | None = None) -> None:
    """Wait until a connection is open, or has the whole answer."""
    while (state := connection.poll()) != _DONE:
        wait(connection.fileno(), state == _WRITE, None if deadline is None else deadline - time.monotonic())


@implementer(IDriver)
class Psycopg2Driver:
    """psycopg2."""

    name = "postgresql.psycopg2"
    backend = "postgresql"
    aliases: tuple[str, ...] = ("gevent psycopg2",)
    distribution = "psycopg2-binary"
    #: What has the interface.
    module = "psycopg2"

    def check(self) -> None:
        importlib.import_module(self.module)

    def classify(self, exception: BaseException) -> Failure:
        if isinstance(exception, importlib.import_module(self.module).Error):
            return meaning(getattr(exception, "pgcode", None))
        return Failure.DISCONNECTED if isinstance(exception, OSError) else Failure.OTHER

    def open_session(self, settings: SessionSettings, role: str) -> Psycopg2Session:
        error_class = importlib.import_module(self.module).Error
        wait = wait_here()
        problems: list[str] = []
        for parameters in single_addresses(settings.connection_parameters()):
            try:
                connection = self._connect(parameters, wait)
            except (error_class, OSError) as error:
                problems.append(" ".join(dsn.mask(str(error), settings.parameters).split()))
            else:
                return Psycopg2Session(connection, error_class, wait, settings, role)
        raise Disconnected(
            f"Connecting to {settings.name}: {'; '.join(dict.fromkeys(problems))}. "
            "Check that the server runs and that the dsn is right."
        )

    def _connect(self, parameters: Mapping[str, str], wait: Wait) -> Any:
        patience = float(parameters.get("connect_timeout") or 0)
        connection = self.start_to_connect(parameters)
        try:
            poll_until_done(connection, wait, time.monotonic() + patience if patience > 0 else None)
        except BaseException:
            connection.close()
            raise
        return connection

    def start_to_connect(self, parameters: Mapping[str, str]) -> Any:
        """Return an asynchronous connection, which is open when ``poll`` says so."""
        import psycopg2

        return psycopg2.connect(dsn.format(parameters), async_=1)


driver = Psycopg2Driver()
