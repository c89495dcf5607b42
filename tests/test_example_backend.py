"""A backend that somebody else wrote keeps what the core promises, and is found like ours."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import ZODB.config
import zodburi

from relstorage.testing import *  # noqa: F403  a suite is star-imported
from relstorage.testing import Gap, Target
from relstorage.testing.records import add

example = pytest.importorskip("example_relstorage", reason="the example in tests/example_plugin is not installed")


class ExampleFile(Target):
    backend = "examplefile"
    drivers = ("sqlite3",)
    gaps = (
        Gap(
            "test_race_external_invalidate_vs_disconnect",
            "it takes longer than all the others together, and the suite of our own backend runs it",
        ),
    )

    def new_database(self, directory: Path) -> dict[str, Any]:
        return {"file": str(directory / "zodb.sqlite3")}

    def connect(self, options: dict[str, Any]) -> sqlite3.Connection:
        return sqlite3.connect(options["file"])

    def dump(self, options: dict[str, Any]) -> list[str]:
        connection = self.connect(options)
        try:
            return list(connection.iterdump())
        finally:
            connection.close()


TARGET = ExampleFile()


def test_its_section_can_be_used_in_a_configuration_file(tmp_path):
    db = ZODB.config.databaseFromString(
        f"""
        %import relstorage
        <zodb>
          <relstorage>
            keep-history false
            <examplefile>
              file {tmp_path / "zodb.sqlite3"}
            </examplefile>
          </relstorage>
        </zodb>
        """
    )
    try:
        assert db.storage.database.adapter.backend == "examplefile"
        assert (tmp_path / "zodb.sqlite3").exists()
    finally:
        db.close()


def test_its_database_can_be_named_by_a_uri(tmp_path):
    open_storage, _ = zodburi.resolve_uri(f"examplefile://{tmp_path}/zodb.sqlite3?keep_history=false")
    open_storage().close()
    assert (tmp_path / "zodb.sqlite3").exists()


def test_its_hook_is_told_of_commits(free):
    from example_relstorage.commits import counter

    storage = free.open()
    transactions, objects = counter.transactions, counter.objects
    add(storage)
    assert (counter.transactions, counter.objects) == (transactions + 1, objects + 1)
