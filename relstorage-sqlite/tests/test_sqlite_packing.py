"""What SQLite itself can say about a database that was packed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import ZODB
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob

import relstorage


def _check(directory: Path) -> None:
    connection = sqlite3.connect(directory / "main.sqlite3")
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    finally:
        connection.close()


def _history(db: ZODB.DB) -> list[bytes]:
    """Make objects that stay, change, go, and come back; return the tid after each."""
    tids = []
    for number in range(6):
        with db.transaction() as connection:
            root = connection.root()
            root["kept"] = root.get("kept", PersistentMapping())
            root["kept"][f"{number}"] = PersistentMapping()
            root["kept"]["version"] = number
            root[f"gone{number % 2}"] = PersistentMapping(child=PersistentMapping())
            root["blob"] = Blob(b"%d" % number)
        tids.append(db.lastTransaction())
    with db.transaction() as connection:
        del connection.root()["gone0"], connection.root()["blob"]
    return tids


@pytest.mark.parametrize("keep_history", (False, True), ids=("free", "history"))
@pytest.mark.parametrize("until", (2, 4, None))
def test_a_packed_database_keeps_its_foreign_keys(tmp_path: Path, keep_history: bool, until: int | None) -> None:
    options: dict[str, Any] = {"data_dir": str(tmp_path / "data"), "blob_dir": str(tmp_path / "blobs")}
    (tmp_path / "data").mkdir()
    db = ZODB.DB(relstorage.open("sqlite", keep_history=keep_history, **options))
    try:
        tids = _history(db)
        db.storage.pack(None if until is None else tids[until], db.references)
        _check(tmp_path / "data")
        if keep_history and until is not None:
            db.undo(db.undoInfo()[0]["id"])
            with db.transaction() as connection:
                connection.root()["more"] = PersistentMapping()
            _check(tmp_path / "data")
        db.pack()
        _check(tmp_path / "data")
    finally:
        db.close()
