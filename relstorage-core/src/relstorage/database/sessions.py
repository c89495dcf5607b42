"""A pool of store sessions: the one used last is handed out first, a lost one is closed instead of kept."""

from __future__ import annotations

import _thread
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from relstorage.errors import DriverError, RelStorageError

log = logging.getLogger(__name__)

#: A session is opened ahead after so many seconds: whoever opens a database wants to read first.
AHEAD_AFTER = 0.005
#: How long who takes a session, and who closes the pool, waits for the one that is just being opened.
TAKE_WITHIN, CLOSE_WITHIN = 10.0, 1.0


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
        #: Set when the session that is opened ahead is here, is not wanted any more, or could not be had.
        self._ahead: threading.Event | None = None
        #: Whether that is being opened now, and whether it is not wanted.
        self._opening = False
        self._unwanted = threading.Event()

    def open_ahead(self, rehearse: Callable[[Any], None]) -> None:
        """Open a session in the background and rehearse with it, once in the pool's life and unless there is one."""
        with self._lock:
            if self._ahead is not None or self._closed or self._idle:
                return
            self._ahead = threading.Event()
        # Thread.start would wait until the thread runs, which takes longer than much else of opening a database.
        _thread.start_new_thread(self._open_one, (rehearse, self._ahead))

    def _open_one(self, rehearse: Callable[[Any], None], done: threading.Event) -> None:
        try:
            self._unwanted.wait(AHEAD_AFTER)
            with self._lock:
                self._opening = not self._unwanted.is_set()
            if self._opening:
                self._open_and_rehearse(rehearse)
        finally:
            self._opening = False
            done.set()

    def _open_and_rehearse(self, rehearse: Callable[[Any], None]) -> None:
        try:
            session = self._open()
            try:
                rehearse(session)
            except BaseException:
                session.close()
                raise
        except RelStorageError as error:
            # Whoever commits will be told what is wrong.
            log.debug("No session could be opened ahead: %s", error)
            return
        self.give_back(session)

    def take(self) -> Any:
        """Return a session that nobody else uses, opening one if none is idle."""
        while True:
            with self._lock:
                if self._closed:
                    raise DriverError("The database was closed in this process; open it again.")
                session = self._idle.pop() if self._idle else None
                ahead = self._ahead if self._opening else None
                if session is None and ahead is None:
                    self._unwanted.set()
            if session is None:
                if ahead is not None and ahead.wait(TAKE_WITHIN):
                    continue
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
            self._unwanted.set()
            idle = self._idle[:]
            self._idle.clear()
            ahead = self._ahead
        if ahead is not None:
            # Mostly it has ended long ago; a server that does not answer is not waited for.
            ahead.wait(CLOSE_WITHIN)
        _close_all(idle)


def _close_all(sessions: list[Any]) -> None:
    for session in sessions:
        session.close()
