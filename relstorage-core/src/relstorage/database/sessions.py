"""A pool of store sessions: the one used last is handed out first, a lost one is closed instead of kept."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from relstorage.errors import DriverError


class SessionPool:
    """Sessions of one role, shared by the threads of a process."""

    def __init__(self, open_session: Callable[[], Any], keep: int = 8):
        self._open = open_session
        self._keep = keep
        self._idle: list[Any] = []
        # So that a database that is dropped without being closed leaves no connection behind.
        weakref.finalize(self, _close_all, self._idle)
        self._lock = threading.Lock()
        self._closed = False

    def take(self) -> Any:
        """Return a session that nobody else uses, opening one if none is idle."""
        while True:
            with self._lock:
                if self._closed:
                    raise DriverError("The database was closed in this process; open it again.")
                session = self._idle.pop() if self._idle else None
            if session is None:
                return self._open()
            # The server may have ended it while it was idle.
            if not session.lost:
                return session
            session.close()

    def give_back(self, session: Any) -> None:
        """Return a session, whose transaction is rolled back if it is still in one. Never raise."""
        session.rollback()
        # Not under the lock: it may read what the server has said.
        lost = session.lost
        with self._lock:
            if not lost and not self._closed and len(self._idle) < self._keep:
                self._idle.append(session)
                return
        session.close()

    @contextmanager
    def session(self) -> Iterator[Any]:
        """Use a session for the length of a block."""
        session = self.take()
        try:
            yield session
        finally:
            self.give_back(session)

    @contextmanager
    def snapshot(self) -> Iterator[Any]:
        """Use a session in a snapshot of its own, for what is to show the newest state rather than a storage's view."""
        with self.session() as session:
            session.begin_snapshot()
            yield session

    def close(self) -> None:
        """Close what is idle, and what is given back later."""
        with self._lock:
            self._closed = True
            idle = self._idle[:]
            self._idle.clear()
        _close_all(idle)


def _close_all(sessions: list[Any]) -> None:
    for session in sessions:
        session.close()
