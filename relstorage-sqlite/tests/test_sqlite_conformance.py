"""SQLite keeps what the core promises."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from relstorage.testing import *  # noqa: F403  a suite is star-imported
from relstorage.testing import Target


class Sqlite(Target):
    backend = "sqlite"
    drivers = ("sqlite3",)

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


TARGET = Sqlite()
