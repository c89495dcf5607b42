"""The stdlib driver under gevent: a long query lets other greenlets run every so many instructions."""

from __future__ import annotations

import sqlite3
import sys

from zope.interface import implementer

from relstorage.interfaces import IDriver
from relstorage_sqlite.drivers.settings import SessionSettings
from relstorage_sqlite.drivers.stdlib import StdlibDriver


@implementer(IDriver)
class GeventDriver(StdlibDriver):
    """``sqlite3`` that yields to gevent's hub while it reads."""

    name = "sqlite.gevent"
    aliases = ("gevent sqlite3", "gevent")
    distribution = "gevent"

    def check(self) -> None:
        super().check()
        import gevent.monkey

        if not gevent.monkey.is_module_patched("threading"):
            raise ImportError("this process is not monkey-patched by gevent; use the driver sqlite3")

    def connect(self, settings: SessionSettings, role: str) -> sqlite3.Connection:
        connection = super().connect(settings, role)
        # A session that holds the write lock must not give the processor away.
        if role == "load":
            connection.set_progress_handler(sys.modules["gevent"].sleep, settings.yield_interval)
        return connection


driver = GeventDriver()
