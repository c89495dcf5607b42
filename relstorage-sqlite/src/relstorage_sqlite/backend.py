"""The plug-in: what the entry point ``sqlite`` names."""

from __future__ import annotations

import os
from typing import Any

from zope.interface import implementer

from relstorage.interfaces import IBackend
from relstorage.options import Options
from relstorage_sqlite.adapter import FILE, SqliteAdapter
from relstorage_sqlite.drivers.settings import SessionSettings
from relstorage_sqlite.options import SqliteOptions


@implementer(IBackend)
class SqliteBackend:
    """SQLite, embedded in the process: no server, one file."""

    name = "sqlite"
    title = "SQLite"
    sections = ("sqlite3", "sqlite")
    schemes = ("sqlite",)
    options_class = SqliteOptions
    drivers = ("sqlite.sqlite3", "sqlite.gevent")
    requires = "relstorage-sqlite"

    def adapter(self, options: SqliteOptions, storage_options: Options, driver: Any) -> SqliteAdapter:
        settings = SessionSettings(
            path=os.path.join(options.data_dir, FILE),
            lock_timeout=storage_options.commit_lock_timeout,
            synchronous=options.synchronous,
            pragmas=options.pragmas,
            yield_interval=options.gevent_yield_interval,
        )
        return SqliteAdapter(
            options.data_dir, storage_options.keep_history, driver, settings, storage_options.blob_chunk_size
        )


backend = SqliteBackend()
