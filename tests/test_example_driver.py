"""A driver that somebody else wrote for our SQLite backend keeps what the core promises."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from relstorage.plugins import DRIVERS, Plugins
from relstorage.testing import *  # noqa: F403
from relstorage.testing import Gap, Target

pytest.importorskip("example_relstorage", reason="the example in tests/example_plugin is not installed")


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

    def connect(self, options: dict[str, Any]) -> sqlite3.Connection:
        return sqlite3.connect(f"{options['data_dir']}/main.sqlite3")

    def dump(self, options: dict[str, Any]) -> list[str]:
        connection = self.connect(options)
        try:
            return list(connection.iterdump())
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
