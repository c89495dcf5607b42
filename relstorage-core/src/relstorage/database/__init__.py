"""One database as one process uses it: what its storages share.

Storages come and go with ZODB's connections. They share the adapter, the state cache, the blob directory, the pool of
store sessions and the supply of object ids, all of which this object owns.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from relstorage.database.lineage import Lineage
from relstorage.database.oids import OidSupply
from relstorage.database.sessions import SessionPool
from relstorage.errors import DriverError

log = logging.getLogger(__name__)


class Database:
    """The parts that the storages of one process share."""

    def __init__(
        self, adapter: Any, *, new_cache: Callable[[], Any], blobs: Any, hooks: Any, options: Any, identity: Any
    ):
        self.adapter = adapter
        self.statements = adapter.statements
        #: A ``relstorage.blobs`` directory, or None without ``blob-dir``.
        self.blobs = blobs
        self.hooks = hooks
        self.options = options
        self.identity = identity
        self.store_sessions = SessionPool(lambda: adapter.open_session("store"))
        self.oids = OidSupply(self._reserve_oids)
        self.lineage = Lineage(adapter.name, new_cache, self.oids.restart)
        self._lock = threading.Lock()
        self.closed = False
        #: What else to close with the database.
        self.closing = ExitStack()

    @property
    def cache(self) -> Any:
        """The state cache of the server's present incarnation."""
        return self.lineage.cache

    def _reserve_oids(self, count: int, at_least: int) -> range:
        with self.store_sessions.session() as session:
            return self.adapter.reserve_oids(session, count, at_least)

    def expect_commits(self) -> None:
        """Have a session to commit with before it is asked for, where that saves time."""
        if self.adapter.opens_ahead and not self.options.read_only:
            self.store_sessions.open_ahead(self._rehearse)

    def _rehearse(self, session: Any) -> None:
        self.adapter.commit_steps.rehearse(session)
        # As many object ids as nobody would miss.
        self.adapter.reserve_oids(session, 0)

    def open_load_session(self) -> Any:
        """Return a session that a storage reads with for as long as it lives."""
        if self.closed:
            raise DriverError(f"Reading from {self.adapter.name}: the database was closed in this process.")
        return self.adapter.open_session("load")

    def close(self) -> None:
        """Release everything. Storages that are still open can end what they have begun, and begin nothing new."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        with self.closing:
            self.store_sessions.close()
            if self.blobs is not None:
                self.blobs.close()
            self.adapter.close()
        log.debug("Closed %s", self.adapter.name)
