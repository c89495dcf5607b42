"""One ZODB in one schema of a PostgreSQL database, as a process uses it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zope.interface import implementer

from relstorage.errors import UnableToAcquirePackUndoLockError
from relstorage.ids import seconds_at, tid_at
from relstorage.interfaces import IAdapter
from relstorage_postgresql.commits import PostgresCommit
from relstorage_postgresql.drivers.settings import SessionSettings, milliseconds
from relstorage_postgresql.functions import LOCK_CLASS, PACK, functions
from relstorage_postgresql.large_objects import LargeObjects
from relstorage_postgresql.schema import PostgresSchema
from relstorage_postgresql.servers import Servers
from relstorage_postgresql.statements import call, statements

_SIZE = """
    SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
    WHERE relkind IN ('r', 'p') AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"""
#: How long, in seconds, the server may take to notice that a client was killed.
_NOTICE_WITHIN = 2.0
#: Who lost a connection asks within this time, in seconds, what became of a commit.
_ASK_WITHIN = 7 * 24 * 3600


@implementer(IAdapter)
class PostgresAdapter:
    """Opens sessions on one schema through one driver."""

    backend = "postgresql"
    uses_options = frozenset({"replica_conf", "replica_timeout", "revert_when_stale", "ro_replica_conf"})
    opens_ahead = True

    def __init__(
        self, keep_history: bool, driver: Any, settings: SessionSettings, servers: Servers, early_lock_release: bool
    ):
        self.name = settings.name
        self.driver = driver.name
        self.keep_history = keep_history
        self.statements = statements(keep_history)
        made = functions(keep_history)
        self.blob_store = LargeObjects(self.statements)
        self.commit_steps = PostgresCommit(
            self.name,
            self.statements,
            made,
            self.blob_store,
            current="current_object" if keep_history else "object_state",
            schema=settings.search_path(),
            lock_timeout=settings.lock_timeout,
            early_lock_release=early_lock_release,
        )
        self._servers = servers
        self._timeout = milliseconds(settings.lock_timeout)
        self._reserve = call(
            "reserve oids",
            f"SELECT {made.reserve_oids.name}(:count, :least, :timeout::int)",
            "count least timeout",
            "first",
        )
        #: The session that prepared the schema, until one is asked for.
        self._first: Any = None
        self._lock = threading.Lock()
        self.schema = PostgresSchema(
            self.name, keep_history, made, self.open_session, self._keep_for_a_while, settings.schema
        )

    def open_session(self, role: str) -> Any:
        with self._lock:
            first = self._first
            if first is None or not self._servers.are_alike(first.role, role):
                first = None
            else:
                self._first = None
        if first is not None and not first.lost:
            first.role = role
            return first
        return self._servers.open_session(role)

    def _keep_for_a_while(self, session: Any) -> None:
        # To connect takes longer than anything else that opening does.
        self._first = session

    def reserve_oids(self, session: Any, count: int, at_least: int = 0) -> range:
        first = session.row(self._reserve, (count, at_least, self._timeout))[0]
        return range(first, first + (count + 15) // 16 * 16)

    @contextmanager
    def pack_lock(self, timeout: float = 0.0) -> Iterator[None]:
        # A lock of a transaction on a session of its own, which stays open as long as the pack takes: it holds no
        # snapshot, and ends with its process.
        session = self._servers.open_session("pack")
        try:
            # Nobody will ask any more how the last commits of ended sessions went.
            newest = session.row(self.statements.newest_tid)[0]
            if newest:
                session.script(f"DELETE FROM rs_commit WHERE tid < {tid_at(seconds_at(newest) - _ASK_WITHIN)}")
            self._take_pack_lock(session, timeout)
            yield
        finally:
            session.close()

    def _take_pack_lock(self, session: Any, timeout: float) -> None:
        deadline = time.monotonic() + max(timeout, _NOTICE_WITHIN)
        while True:
            session.begin_write()
            taken = session.script(
                "SET LOCAL idle_in_transaction_session_timeout = 0",
                f"SELECT pg_try_advisory_xact_lock({LOCK_CLASS}, {PACK})",
            )[0][0]
            if taken:
                return
            session.rollback()
            if time.monotonic() >= deadline:
                raise UnableToAcquirePackUndoLockError(
                    f"Packing {self.name}: another process is packing it. Wait until that has ended."
                )
            time.sleep(0.05)

    def server(self) -> str:
        session = self.open_session("load")
        try:
            return f"PostgreSQL {session.script('SHOW server_version')[0][0]}"
        finally:
            session.close()

    def size(self) -> int:
        session = self.open_session("load")
        try:
            size: int = session.script(_SIZE)[0][0]
            return size
        finally:
            session.close()

    def close(self) -> None:
        """Close the session that is left from opening; the others are closed by their users."""
        with self._lock:
            first, self._first = self._first, None
        if first is not None:
            first.close()

