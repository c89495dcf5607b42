"""psycopg2cffi: psycopg2's interface on PyPy, and anywhere else.

https://github.com/chtd/psycopg2cffi
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

from zope.interface import implementer

from relstorage.interfaces import IDriver
from relstorage_postgresql.drivers.psycopg2 import Psycopg2Driver


@cache
def connection_class() -> Any:
    """Return psycopg2cffi's connection as it is used here; psycopg2cffi is imported when it is asked for."""
    from psycopg2cffi._impl.libpq import libpq
    from psycopg2cffi.extensions import POLL_OK, POLL_READ, STATUS_READY, connection

    class Connection(connection):  # type: ignore[misc, unused-ignore]
        """A connection that waits for all answers to a message.

        psycopg2cffi's own has the last one when the first is there, by blocking the thread until then. What that does
        is done here in the same way, but for the waiting. https://www.postgresql.org/docs/current/libpq-async.html
        """

        _async_cursor: Any
        _last: Any = None

        def poll(self) -> int:
            if self.status != STATUS_READY or self._async_cursor is None:
                state: int = super().poll()
                return state
            state = self._poll_query()
            while state == POLL_OK:
                result = libpq.PQgetResult(self._pgconn)
                if not result:
                    self._hand_over()
                    return POLL_OK
                if self._last:
                    libpq.PQclear(self._last)
                self._last = result
                if self._is_busy():
                    return int(POLL_READ)
            return int(state)

        def _hand_over(self) -> None:
            cursor = self._async_cursor()
            cursor._pgres, self._last = self._last, None
            try:
                cursor._pq_fetch()
            finally:
                self._async_cursor = None

    return Connection


@implementer(IDriver)
class Psycopg2cffiDriver(Psycopg2Driver):
    """psycopg2cffi."""

    name = "postgresql.psycopg2cffi"
    aliases = ("gevent psycopg2cffi",)
    distribution = "psycopg2cffi"
    module = "psycopg2cffi"

    def start_to_connect(self, parameters: Mapping[str, str]) -> Any:
        import psycopg2cffi

        # It has to be ASCII, which only this form of a connection string always is.
        uri = "postgresql://?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
        return psycopg2cffi.connect(uri, connection_factory=connection_class(), async_=1)


driver = Psycopg2cffiDriver()
