"""`relstorage verify` finds every kind of damage, and `relstorage info` shows what a database is."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import transaction
import ZODB
from click.testing import CliRunner
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.utils import u64

import relstorage
from relstorage.cli import main


class Damaged:
    """A sound database of two objects and two blobs below the root, and the means to damage it."""

    def __init__(self, path: Path, keep_history: bool, shared: bool):
        self.path = path
        self.keep_history = keep_history
        self.config = path / "storage.conf"
        self.config.write_text(
            f"%import relstorage\n<relstorage>\n  keep-history {str(keep_history).lower()}\n"
            f"  blob-dir {path}/blob-dir\n  shared-blob-dir {str(shared).lower()}\n"
            f"  <sqlite3>\n    data-dir {path}/data\n  </sqlite3>\n</relstorage>\n"
        )
        self.options = {
            "data_dir": str(path / "data"),
            "blob_dir": str(path / "blob-dir"),
            "keep_history": keep_history,
            "shared_blob_dir": shared,
        }
        with self.open() as database:
            with database.transaction() as connection:
                root = connection.root()
                root["a"], root["b"] = PersistentMapping(x=1), PersistentMapping(x=2)
                root["blob"], root["other"] = Blob(b"one"), Blob(b"other")
            with database.transaction() as connection:
                root = connection.root()
                root["a"]["x"] = 3
                self.a, self.blob = u64(root["a"]._p_oid), u64(root["blob"]._p_oid)

    def open(self):
        return closing(ZODB.DB(relstorage.open("sqlite", **self.options)))

    def damage(self, *statements, **values):
        with closing(sqlite3.connect(self.path / "data" / "main.sqlite3")) as connection:
            for statement in statements:
                changed = connection.execute(statement, {"a": self.a, "blob": self.blob, **values}).rowcount
                assert changed, f"nothing was damaged by {statement}"
            connection.commit()

    def verify(self, *options):
        return CliRunner().invoke(main, ["verify", *options, str(self.config)])

    def report(self):
        """Return the exit status, the kinds of problems with their numbers, and the whole report."""
        result = self.verify("--json")
        report = json.loads(result.stdout)["storages"][0]
        return result.exit_code, {kind: number for kind, number in report["counts"].items() if number}, report

    def found(self):
        status, kinds, _ = self.report()
        assert status == (1 if kinds else 0)
        return kinds


@pytest.fixture(params=[False, True], ids=["history-free", "history-preserving"])
def keep_history(request):
    return request.param


@pytest.fixture(autouse=True)
def no_transaction_is_left():
    yield
    transaction.abort()


@pytest.fixture
def damaged(tmp_path, keep_history):
    return Damaged(tmp_path, keep_history, shared=False)


@pytest.fixture
def sharing(tmp_path, keep_history):
    return Damaged(tmp_path, keep_history, shared=True)


def test_a_sound_database_has_no_problem(damaged):
    assert damaged.found() == {}
    result = damaged.verify()
    assert result.exit_code == 0
    assert "No problem was found" in result.stdout


def test_a_sound_shared_blob_directory_has_no_problem(sharing):
    status, kinds, report = sharing.report()
    assert (status, kinds, report["blobs"], report["stray_files"]) == (0, {}, 2, 0)


def test_a_record_that_is_no_pickle_is_found(damaged):
    damaged.damage("UPDATE object_state SET state = CAST(X'8003FFFF' || substr(state, 5) AS BLOB) WHERE zoid = :a")
    kinds = damaged.found()
    assert kinds.pop("checksum", 0) == (2 if damaged.keep_history else 0)
    assert kinds == {"unreadable": 2 if damaged.keep_history else 1}


def test_a_record_of_another_size_is_found(damaged):
    damaged.damage("UPDATE object_state SET state_size = state_size + 1 WHERE zoid = :a")
    assert damaged.found() == {"size": 2 if damaged.keep_history else 1}


def test_an_object_that_is_gone_is_found_where_it_is_referred_to(damaged):
    damaged.damage("DELETE FROM object_state WHERE zoid = :a")
    if damaged.keep_history:
        damaged.damage("DELETE FROM current_object WHERE zoid = :a")
    status, kinds, report = damaged.report()
    assert (status, kinds) == (1, {"dangling": 1})
    assert f"refers to object {damaged.a:#x}" in report["findings"][0]["detail"]


def test_a_missing_root_is_found(damaged):
    damaged.damage("DELETE FROM object_state WHERE zoid = 0")
    if damaged.keep_history:
        damaged.damage("DELETE FROM current_object WHERE zoid = 0")
    assert damaged.found() == {"root": 1}


def test_a_blob_without_data_is_found(damaged):
    damaged.damage("DELETE FROM blob_chunk WHERE zoid = :blob")
    assert damaged.found() == {"missing-blob": 1}
    assert damaged.verify("--no-blobs").exit_code == 0


@pytest.mark.parametrize("oid", [1, 10_000], ids=["in between", "at the end"])
def test_blob_data_without_a_record_are_found(damaged, oid):
    damaged.damage("INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk) VALUES (:oid, 1, 0, 'x')", oid=oid)
    assert damaged.found() == {"stray-blob": 1}


def test_a_blob_without_a_file_is_found_in_a_shared_directory(sharing):
    next((sharing.path / "blob-dir").rglob("*.blob")).unlink()
    assert sharing.found() == {"missing-blob": 1}


def test_a_file_without_a_record_is_counted_and_no_problem(sharing):
    file = next((sharing.path / "blob-dir").rglob("*.blob"))
    file.with_name(f"0x{1:016x}.blob").write_bytes(b"left by a crash")
    status, kinds, report = sharing.report()
    assert (status, kinds, report["stray_files"]) == (0, {}, 1)


def test_what_cannot_be_reached_is_counted_and_no_problem(damaged):
    with damaged.open() as database, database.transaction() as connection:
        del connection.root()["a"]
    status, kinds, report = damaged.report()
    assert (status, kinds, report["unreachable"]) == (0, {}, 1)


def test_blobs_are_looked_for_without_a_blob_directory_too(damaged):
    damaged.config.write_text(damaged.config.read_text().replace(f"  blob-dir {damaged.path}/blob-dir\n", ""))
    assert damaged.found() == {}
    damaged.damage("DELETE FROM blob_chunk WHERE zoid = :blob")
    assert damaged.found() == {"missing-blob": 1}


def test_nothing_is_changed(damaged):
    file = damaged.path / "data" / "main.sqlite3"
    before = file.read_bytes()
    damaged.verify()
    assert file.read_bytes() == before


def test_a_database_that_does_not_exist_is_not_made(damaged, tmp_path):
    damaged.config.write_text(damaged.config.read_text().replace("/data\n", "/nowhere\n"))
    result = damaged.verify()
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert not (tmp_path / "nowhere").exists()


class TestWithHistory:
    @pytest.fixture
    def keep_history(self):
        return True

    def test_a_record_with_another_checksum_is_found(self, damaged):
        damaged.damage("UPDATE object_state SET md5 = replace(md5, substr(md5, 1, 1), 'g') WHERE zoid = :a")
        assert damaged.found() == {"checksum": 2}

    def test_a_current_revision_that_does_not_exist_is_found(self, damaged):
        damaged.damage("UPDATE current_object SET tid = tid + 1 WHERE zoid = :a")
        assert damaged.found() == {"current": 1, "dangling": 1}

    def test_a_current_revision_that_is_not_the_newest_is_found(self, damaged):
        oldest = "SELECT min(tid) FROM object_state WHERE zoid = :a"
        damaged.damage(f"UPDATE current_object SET tid = ({oldest}) WHERE zoid = :a")
        assert damaged.found() == {"current": 1}

    def test_an_old_revision_may_refer_to_what_was_removed_since(self, damaged):
        with damaged.open() as database:
            with database.transaction() as connection:
                removed = connection.root()["a"]
                removed._p_activate()
                oid, serial = removed._p_oid, removed._p_serial
                del connection.root()["a"]
            storage = database.storage
            meta = TransactionMetaData()
            storage.tpc_begin(meta)
            storage.deleteObject(oid, serial, meta)
            storage.tpc_vote(meta)
            storage.tpc_finish(meta)
        assert damaged.found() == {}


def info(config, *options):
    return CliRunner().invoke(main, ["info", *options, str(config)])


def test_info_tells_what_a_database_is(damaged):
    result = info(damaged.config, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)["storages"][0]
    assert (facts["backend"], facts["driver"]) == ("sqlite", "sqlite.sqlite3")
    assert facts["keeps_history"] is damaged.keep_history
    assert (facts["objects"], facts["last_pack"], facts["cache"]["shared_blob_dir"]) == (5, None, False)
    with damaged.open() as database:
        assert facts["last_tid"] == f"{u64(database.storage.lastTransaction()):#018x}"


def test_info_tells_of_the_last_pack(damaged):
    packed = CliRunner().invoke(main, ["pack", "--days", "0", str(damaged.config)])
    assert packed.exit_code == 0, packed.output
    assert json.loads(info(damaged.config, "--json").stdout)["storages"][0]["last_pack"]["phase"] == "done"
    assert "last pack:        done" in info(damaged.config).stdout


def test_a_uri_is_understood(damaged):
    uri = f"sqlite://{damaged.path}/data?keep_history={str(damaged.keep_history).lower()}"
    assert info(uri).exit_code == 0


def test_the_wrong_history_mode_is_one_message(damaged):
    uri = f"sqlite://{damaged.path}/data?keep_history={str(not damaged.keep_history).lower()}"
    result = info(uri)
    assert result.exit_code == 1
    assert "Set keep-history to" in result.stderr
    assert "Traceback" not in result.output


def test_a_storage_below_a_wrapper_is_read_through_the_wrapper(damaged):
    pytest.importorskip("zc.zlibstorage")
    text = damaged.config.read_text().replace("<relstorage>", "<zlibstorage>\n<relstorage>") + "</zlibstorage>\n"
    damaged.config.write_text(f"%import zc.zlibstorage\n{text}")
    status, kinds, report = damaged.report()
    assert (status, kinds, report["objects"]) == (0, {}, 5)
