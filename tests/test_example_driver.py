"""A driver that somebody else wrote for our SQLite backend keeps what the core promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relstorage.plugins import DRIVERS, Plugins
from relstorage.testing import *  # noqa: F403  a suite is star-imported
from relstorage.testing import Gap, Target

apsw = pytest.importorskip("apsw", reason="the example in tests/example_plugin is not installed")
pytest.importorskip("example_relstorage", reason="the example in tests/example_plugin is not installed")


class Connection:
    """As much of a DB-API connection as the suite needs. The module sqlite3 must not touch the files of a process in
    which APSW has them open: each library would release the other's locks. https://www.sqlite.org/howtocorrupt.html
    """

    def __init__(self, path: str):
        self._connection = apsw.Connection(path)
        self.description: Any = None

    def cursor(self) -> Connection:
        return self

    def execute(self, statement: str) -> None:
        self._rows = self._connection.execute(statement).fetchall()
        self.description = statement.lstrip().lower().startswith(("select", "pragma")) or None

    def fetchall(self) -> list[Any]:
        return self._rows

    def commit(self) -> None:
        """Every statement is a transaction of its own."""

    def close(self) -> None:
        self._connection.close()


class SqliteThroughApsw(Target):
    backend = "sqlite"
    drivers = ("apsw",)
    gaps = (
        Gap(
            "test_race_external_invalidate_vs_disconnect",
            "it takes longer than all the others together, and the suite of our own backend runs it",
        ),
    )

    def new_database(self, directory: Path) -> dict[str, Any]:
        return {"data_dir": str(directory)}

    def connect(self, options: dict[str, Any]) -> Connection:
        return Connection(f"{options['data_dir']}/main.sqlite3")

    def dump(self, options: dict[str, Any]) -> dict[str, Any]:
        connection = apsw.Connection(f"{options['data_dir']}/main.sqlite3")
        try:
            tables = dict(connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall())
            return {
                name: (sql, connection.execute(f'SELECT * FROM "{name}"').fetchall() if "TABLE" in (sql or "") else ())
                for name, sql in tables.items()
            }
        finally:
            connection.close()


TARGET = SqliteThroughApsw()


def test_it_is_used_only_when_asked_for():
    plugins = Plugins()
    backend = plugins.load("relstorage.backends", "sqlite")
    assert plugins.driver_for(backend).name == "sqlite.sqlite3"
    assert plugins.driver_for(backend, "APSW").name == "sqlite.apsw"
    assert "sqlite.apsw" in plugins.names(DRIVERS)


def test_the_storage_names_it(free):
    assert free.open().database.adapter.driver == "sqlite.apsw"
