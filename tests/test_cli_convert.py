"""`zodbconvert` into SQLite: what is copied, and what is there after it was stopped at any moment."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import transaction
import ZODB
from click.testing import CliRunner
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob
from ZODB.FileStorage import FileStorage

import relstorage
from relstorage.cli import main, zodbconvert
from relstorage.storage.copying import SingleTarget, copy_transactions

TRANSACTIONS = 40

KEEPS = pytest.mark.parametrize("keep_history", [False, True], ids=["history-free", "history-preserving"])
BLOBS = pytest.mark.parametrize("shared", [False, True], ids=["blobs in the database", "shared blob directory"])


class Place:
    """A FileStorage with blobs, and the configuration that copies it into SQLite."""

    def __init__(self, path: Path, keep_history: bool = True, shared: bool = False):
        self.path = path
        self.config = path / "convert.conf"
        self.options = {
            "data_dir": str(path / "data"),
            "blob_dir": str(path / "blob-dir"),
            "keep_history": keep_history,
            "shared_blob_dir": shared,
        }
        self.section = (
            f"  keep-history {str(keep_history).lower()}\n  blob-dir {path}/blob-dir\n"
            f"  shared-blob-dir {str(shared).lower()}\n"
            f"  <sqlite3>\n    data-dir {path}/data\n  </sqlite3>\n</relstorage>\n"
        )
        self.source_section = f"<filestorage source>\n  path {path}/Data.fs\n  blob-dir {path}/blobs\n</filestorage>\n"
        self.config.write_text(f"%import relstorage\n{self.source_section}<relstorage destination>\n{self.section}")
        self.storage = path / "storage.conf"
        self.storage.write_text(f"%import relstorage\n<relstorage>\n{self.section}")

    def source(self):
        return FileStorage(str(self.path / "Data.fs"), blob_dir=str(self.path / "blobs"))

    def destination(self):
        return closing(relstorage.open("sqlite", **self.options))

    def fill(self, first=0, last=TRANSACTIONS):
        """Make transactions that add and change objects, some with blobs, and undo the creation of one."""
        with closing(ZODB.DB(self.source())) as database:
            for number in range(first, last):
                with database.transaction(f"number {number}") as connection:
                    root = connection.root()
                    root[number % 7] = PersistentMapping(number=number)
                    if number % 4 == 0:
                        if "blob" not in root:
                            root["blob"] = Blob()
                        with root["blob"].open("w") as stream:
                            stream.write(b"%d" % number * 1000)
            with database.transaction("to be undone") as connection:
                connection.root()["undone"] = PersistentMapping(self="me")
            entry = next(each for each in database.undoInfo() if each["description"] == "to be undone")
            # A manager of its own: what another test left in the thread's must not be committed here.
            manager = transaction.TransactionManager()
            database.undo(entry["id"], manager.get())
            manager.commit()

    def convert(self, *options):
        return CliRunner().invoke(zodbconvert, [*options, str(self.config)])

    def run(self, program, *words):
        """Run a program in a process of its own, with small batches."""
        text = "import os, signal, sys\nfrom relstorage.storage import copying\ncopying.BATCH_TRANSACTIONS = 7\n"
        text += f"{program}\nfrom relstorage.cli import zodbconvert\nzodbconvert()\n"
        words = [sys.executable, "-c", text, *words, str(self.config)]
        return subprocess.run(words, capture_output=True, text=True, timeout=120)

    def tids(self, storage):
        with closing(storage.iterator()) as transactions:
            return [each.tid for each in transactions]


@pytest.fixture(autouse=True)
def quick_source(monkeypatch):
    monkeypatch.setattr(sys.modules["ZODB.FileStorage.FileStorage"], "fsync", None)
    yield
    transaction.abort()


@KEEPS
@BLOBS
def test_everything_arrives(tmp_path, keep_history, shared):
    place = Place(tmp_path, keep_history, shared)
    place.fill()
    result = place.convert("--verify", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["blobs"] == TRANSACTIONS / 4
    assert summary["verified"]["differences"] == 0
    with closing(place.source()) as source, place.destination() as destination:
        if keep_history:
            assert place.tids(destination) == place.tids(source)
        expected = content(source)
    with place.destination() as destination:
        assert content(destination) == expected
    assert CliRunner().invoke(main, ["verify", str(place.storage)]).exit_code == 0


def content(storage):
    """Return what an application finds."""
    database = ZODB.DB(storage)
    with database.transaction() as connection:
        root = dict(connection.root())
        with root.pop("blob").open() as stream:
            return {key: dict(value) for key, value in root.items()}, stream.read()


@KEEPS
def test_batches_leave_what_single_transactions_leave(tmp_path, keep_history):
    place = Place(tmp_path, keep_history)
    place.fill()
    assert place.convert().exit_code == 0
    options = {**place.options, "data_dir": str(tmp_path / "other"), "blob_dir": str(tmp_path / "other-blobs")}
    other = relstorage.open("sqlite", **options)
    with closing(place.source()) as source, place.destination() as destination, closing(other):
        copy_transactions(source, SingleTarget(other))
        assert dump(tmp_path / "data") == dump(tmp_path / "other")
        assert destination.lastTransaction() == other.lastTransaction()


def dump(data_dir):
    """Return the rows of every table but those that name the database."""
    with closing(sqlite3.connect(data_dir / "main.sqlite3")) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            table: sorted(connection.execute(f'SELECT * FROM "{table}"'))
            for table in tables
            if table not in ("rs_meta", "sqlite_stat1", "sqlite_sequence")
        }


def test_a_destination_with_data_is_refused_unchanged(tmp_path):
    place = Place(tmp_path)
    place.fill()
    place.convert()
    before = dump(tmp_path / "data")
    place.fill(100, 101)
    result = place.convert()
    assert result.exit_code == 1
    assert "has data already" in result.stderr
    assert dump(tmp_path / "data") == before


@KEEPS
@BLOBS
def test_clear_begins_again(tmp_path, keep_history, shared):
    place = Place(tmp_path, keep_history, shared)
    place.fill()
    place.convert()
    with closing(ZODB.DB(relstorage.open("sqlite", **place.options))) as database, database.transaction() as connection:
        connection.root()["own"] = Blob(b"own")
    result = place.convert("--clear", "--verify")
    assert result.exit_code == 0, result.output
    assert "the same in both" in result.stdout


@KEEPS
def test_after_a_clear_an_incremental_copy_goes_on_where_the_copy_ended(tmp_path, keep_history):
    place = Place(tmp_path, keep_history)
    place.fill()
    place.convert()
    place.convert("--clear")
    place.fill(100, 105)
    result = place.convert("--incremental", "--verify", "--json")
    assert result.exit_code == 0, result.output
    # Five, one that is undone, and the undo.
    assert json.loads(result.stdout)["transactions"] == 7


@KEEPS
def test_incremental_refuses_a_destination_that_was_used(tmp_path, keep_history):
    place = Place(tmp_path, keep_history)
    place.fill()
    place.convert()
    with closing(ZODB.DB(relstorage.open("sqlite", **place.options))) as database, database.transaction() as connection:
        connection.root()["own"] = 1
    place.fill(100, 101)
    result = place.convert("--incremental")
    assert result.exit_code == 1
    assert "the source does not have it" in result.stderr


def test_a_dry_run_creates_no_database(tmp_path):
    place = Place(tmp_path)
    place.fill()
    result = place.convert("--dry-run")
    assert result.exit_code == 0, result.output
    assert f"Would copy {TRANSACTIONS + 3} transactions" in result.stdout
    assert not (tmp_path / "data" / "main.sqlite3").exists()


def test_an_incremental_dry_run_counts_what_is_missing(tmp_path):
    place = Place(tmp_path)
    place.fill()
    place.convert()
    before = dump(tmp_path / "data")
    place.fill(100, 102)
    result = place.convert("--incremental", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["transactions"], summary["destination_was_empty"]) == (4, False)
    assert dump(tmp_path / "data") == before


def test_a_database_is_not_copied_into_itself(tmp_path):
    place = Place(tmp_path)
    place.fill()
    place.convert()
    place.config.write_text(
        f"%import relstorage\n<relstorage source>\n{place.section}<relstorage destination>\n{place.section}"
    )
    before = dump(tmp_path / "data")
    result = place.convert("--clear")
    assert result.exit_code == 1
    assert "the same database" in result.stderr
    assert dump(tmp_path / "data") == before


@KEEPS
def test_the_way_back_to_a_file_storage_works(tmp_path, keep_history):
    place = Place(tmp_path, keep_history)
    place.fill()
    place.convert()
    (tmp_path / "back").mkdir()
    place.config.write_text(
        f"%import relstorage\n<relstorage source>\n{place.section}"
        f"<filestorage destination>\n  path {tmp_path}/back/Data.fs\n  blob-dir {tmp_path}/back/blobs\n</filestorage>\n"
    )
    result = place.convert("--verify")
    assert result.exit_code == 0, result.output
    assert "the same in both" in result.stdout


# --- stopped in the middle

KILL = """
from relstorage.database.restoring import Restoration
moment, number = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
commit, begun = Restoration.commit, []
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
def commit_or_die(self):
    begun.append(self)
    if len(begun) != number:
        return commit(self)
    if moment == "before":
        kill()
    if moment == "blobs are placed":
        self._session.commit = kill
    commit(self)
    kill()
Restoration.commit = commit_or_die
"""

INTERRUPT = """
number = int(sys.argv[1])
del sys.argv[1:2]
transaction, begun = copying._Copy.transaction, []
def interrupt(self, each):
    begun.append(each)
    if len(begun) == number:
        os.kill(os.getpid(), signal.SIGINT)
    transaction(self, each)
copying._Copy.transaction = interrupt
"""


@KEEPS
@BLOBS
@pytest.mark.parametrize("moment", ["before", "blobs are placed", "after"])
def test_a_copy_that_is_killed_goes_on_incrementally(tmp_path, keep_history, shared, moment):
    place = Place(tmp_path, keep_history, shared)
    place.fill()
    killed = place.run(KILL, moment, "3")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    batches = 3 if moment == "after" else 2
    with closing(place.source()) as source, place.destination() as destination:
        if keep_history:
            assert place.tids(destination) == place.tids(source)[: 7 * batches]
    assert CliRunner().invoke(main, ["verify", str(place.storage)]).exit_code == 0
    assert place.convert().exit_code == 1
    result = place.convert("--incremental", "--verify")
    assert result.exit_code == 0, result.output
    assert "the same in both" in result.stdout


@KEEPS
def test_ctrl_c_stops_after_a_transaction_and_loses_nothing(tmp_path, keep_history):
    place = Place(tmp_path, keep_history)
    place.fill()
    stopped = place.run(INTERRUPT, "17")
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "--incremental" in stopped.stderr
    assert "Copied 17 transactions" in stopped.stdout
    with closing(place.source()) as source, place.destination() as destination:
        assert destination.lastTransaction() == place.tids(source)[16]
    result = place.convert("--incremental", "--verify")
    assert result.exit_code == 0, result.output


def test_an_error_in_the_middle_keeps_whole_batches_and_no_more(tmp_path):
    place = Place(tmp_path)
    place.fill()
    failing = INTERRUPT.replace("os.kill(os.getpid(), signal.SIGINT)", "raise OSError('the disk is gone')")
    failed = place.run(failing, "17")
    assert failed.returncode == 1
    assert failed.stderr.rstrip().endswith("Error: the disk is gone")
    with closing(place.source()) as source, place.destination() as destination:
        assert place.tids(destination) == place.tids(source)[:14]
    assert place.convert("--incremental", "--verify").exit_code == 0
    assert not [path for path in (tmp_path / "blob-dir" / "tmp").rglob("*") if path.is_file() and os.path.getsize(path)]
