"""pg8000, which is written in Python alone. gevent's patched sockets make it cooperate.

https://codeberg.org/tlocke/pg8000
"""

from __future__ import annotations

import contextlib
import re
import socket
from functools import cache
from inspect import signature
from typing import Any

from zope.interface import implementer

from relstorage.errors import Disconnected, Failure
from relstorage.interfaces import IDriver, ISession
from relstorage_postgresql import dsn
from relstorage_postgresql.drivers.failures import meaning
from relstorage_postgresql.drivers.settings import SessionSettings
from relstorage_postgresql.drivers.text import TextSession
from relstorage_postgresql.drivers.waiting import is_readable
from relstorage_postgresql.without_libpq import for_pg8000, socket_options

_BYTEA = 17
_ESCAPED = re.compile(rb"\\(\\|[0-3][0-7]{2})")
#: https://www.postgresql.org/docs/current/protocol-message-formats.html, ReadyForQuery
_STATES = {b"I": "idle", b"T": "open", b"E": "failed"}


def decode_bytea(text: str) -> bytes:
    """Return the bytes that the server wrote in either of its formats.

    https://www.postgresql.org/docs/current/datatype-binary.html
    """
    if text.startswith(r"\x"):
        return bytes.fromhex(text[2:])
    return _ESCAPED.sub(lambda match: b"\\" if match[1] == b"\\" else bytes([int(match[1], 8)]), text.encode("ascii"))


@cache
def connection_class() -> Any:
    """Return pg8000's connection as it is used here; pg8000 is imported when it is asked for."""
    from pg8000.core import CoreConnection

    class Connection(CoreConnection):  # type: ignore[misc, unused-ignore]
        """A connection that keeps the last of several answers, where pg8000 adds them up."""

        state = "unknown"

        def handle_COMMAND_COMPLETE(self, data: bytes, context: Any) -> None:
            count = data[:-1].rpartition(b" ")[2]
            context.answer = (context.rows or [], int(count) if count.isdigit() else -1)
            context.rows = None

        def handle_READY_FOR_QUERY(self, data: bytes, context: Any) -> None:
            self.state = _STATES.get(bytes(data), "unknown")
            super().handle_READY_FOR_QUERY(data, context)

    return Connection


@implementer(ISession)
class Pg8000Session(TextSession):
    """A connection of pg8000."""

    def __init__(self, connection: Any, settings: SessionSettings, role: str):
        from pg8000.exceptions import Error

        super().__init__(settings, role)
        # What pg8000 does not expect of a connection that is gone ends in errors of Python's own.
        self.errors = (Error, OSError, EOFError)
        self._connection = connection

    def query(self, text: str) -> tuple[list[Any], int]:
        self._connection.state = "unknown"
        rows, count = self._connection.execute_simple(text).answer
        return list(map(tuple, rows)), count

    def explain(self, error: Exception) -> tuple[str | None, str]:
        return explain(error)

    def server_state(self) -> str:
        state: str = self._connection.state
        return state

    def _notice_end(self) -> None:
        # Between transactions nothing is expected from the server but the end.
        try:
            if is_readable(self._connection._usock.fileno()):
                self.close()
        except Exception:
            self.close()

    def _disconnect(self) -> None:
        # The socket stays open as long as the file that pg8000 has made of it, and leaves to the garbage collector.
        file = self._connection._sock
        with contextlib.suppress(Exception):
            self._connection.close()
        with contextlib.suppress(Exception):
            file.close()


def explain(error: BaseException) -> tuple[str | None, str]:
    """Return the SQLSTATE of an error of pg8000, if the server sent it, and the message."""
    fields = error.args[0] if error.args else None
    if isinstance(fields, dict):
        return fields.get("C"), str(fields.get("M", ""))
    cause = error.__cause__
    return None, f"{error} ({cause})" if cause is not None else str(error)


def _prepare_socket(connected: socket.socket, options: list[tuple[int, int]]) -> None:
    # The time to connect is over; an answer may take as long as it takes.
    connected.settimeout(None)
    if connected.family in (socket.AF_INET, socket.AF_INET6):
        # As libpq does: the end of a long message would else wait for the server to confirm its beginning.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option, value in options:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)


@implementer(IDriver)
class Pg8000Driver:
    """pg8000."""

    name = "postgresql.pg8000"
    backend = "postgresql"
    aliases = ("gevent pg8000",)
    distribution = "pg8000"

    def check(self) -> None:
        if "startup_params" not in signature(connection_class().__init__).parameters:
            raise ImportError("pg8000 is older than 1.31.3")

    def classify(self, exception: BaseException) -> Failure:
        from pg8000.exceptions import Error

        if isinstance(exception, Error):
            return meaning(explain(exception)[0])
        return Failure.DISCONNECTED if isinstance(exception, OSError) else Failure.OTHER

    def open_session(self, settings: SessionSettings, role: str) -> Pg8000Session:
        from pg8000.exceptions import Error

        parameters = settings.connection_parameters()
        keywords = for_pg8000(parameters)
        try:
            connection = connection_class()(**keywords)
            _prepare_socket(connection._usock, socket_options(parameters))
            connection.register_in_adapter(_BYTEA, decode_bytea)
        except (Error, OSError, AttributeError) as error:
            problem = " ".join(dsn.mask(explain(error)[1], settings.parameters).split())
            raise Disconnected(
                f"Connecting to {settings.name}: {problem}. Check that the server runs and that the dsn is right."
            ) from error
        return Pg8000Session(connection, settings, role)


driver = Pg8000Driver()
