"""Storages around ours, as they come from PyPI and from ZODB: zc.zlibstorage, zc.beforestorage, DemoStorage."""

from __future__ import annotations

import time

import pytest
from ZODB.blob import Blob
from ZODB.DemoStorage import DemoStorage
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ReadOnlyError
from ZODB.utils import p64, u64

from relstorage.testing.records import Counter, Node, grow, newest_undo_id

__all__ = ["TestBeforestorage", "TestDemoStorage", "TestZlibstorage"]

LONG = "compressible " * 1000


class TestZlibstorage:
    @pytest.fixture
    def wrap(self):
        return pytest.importorskip("zc.zlibstorage").ZlibStorage

    @pytest.fixture
    def db(self, database, wrap, tmp_path):
        return database.zodb_on(wrap(database.open(blob_dir=str(tmp_path / "blobs"))))

    def test_records_are_compressed_in_the_database_and_read_back(self, database, db, wrap):
        connection = database.connection(db)
        grow(connection, node=Node(LONG))
        raw, _ = database.open().load(connection.root()["node"]._p_oid)
        assert raw.startswith(b".z")
        assert len(raw) < len(LONG) // 2
        for other in (database.connection(db), database.connection(database.zodb_on(wrap(database.open())))):
            assert other.root()["node"].value == LONG

    def test_changes_are_merged(self, database, db):
        mine, theirs = database.connection(db), database.connection(db)
        counter = Counter()
        counter.filler = LONG
        grow(mine, counter=counter)
        theirs.sync()
        theirs.root()["counter"].value += 10
        theirs.transaction_manager.commit()
        mine.root()["counter"].value += 1
        mine.transaction_manager.commit()
        mine.sync()
        assert mine.root()["counter"].value == 11
        assert database.open().load(counter._p_oid)[0].startswith(b".z")

    def test_a_pack_finds_references_in_compressed_records(self, database, db):
        connection = database.connection(db)
        grow(connection, node=Node(LONG, link=Node("linked " * 100)), garbage=Node(LONG))
        del connection.root()["garbage"]
        connection.transaction_manager.commit()
        db.pack(time.time() + 1)
        assert len(db.storage) == 3
        connection.cacheMinimize()
        assert connection.root()["node"].link.value.startswith("linked")

    def test_blobs_pass(self, database, db):
        connection = database.connection(db)
        grow(connection, blob=Blob(b"content"))
        with database.connection(db).root()["blob"].open() as file:
            assert file.read() == b"content"

    def test_undo_works(self, preserving, wrap):
        db = preserving.zodb_on(wrap(preserving.open()))
        connection = preserving.connection(db)
        grow(connection, node=Node(LONG))
        connection.root()["node"].value = "short"
        connection.transaction_manager.commit()
        db.undo(newest_undo_id(db), connection.transaction_manager.get())
        connection.transaction_manager.commit()
        connection.sync()
        assert connection.root()["node"].value == LONG

    def test_historical_connections_work(self, preserving, wrap):
        db = preserving.zodb_on(wrap(preserving.open()))
        connection = preserving.connection(db)
        grow(connection, node=Node(LONG))
        tid = connection.root()._p_serial
        grow(connection, node=Node("later"))
        then = db.open(at=tid)
        assert then.root()["node"].value == LONG
        then.close()

    def test_records_of_a_plain_storage_can_be_copied_in(self, database, wrap):
        source = database.another()
        connection = source.connection(source.zodb())
        grow(connection, node=Node(LONG))
        wrapped = wrap(database.open())
        wrapped.copyTransactionsFrom(source.open())
        assert database.open().load(connection.root()["node"]._p_oid)[0].startswith(b".z")
        assert database.connection(database.zodb_on(wrapped)).root()["node"].value == LONG

    def test_compression_can_be_left_off(self, database, wrap):
        db = database.zodb_on(wrap(database.open(), compress=False))
        connection = database.connection(db)
        grow(connection, node=Node(LONG))
        assert not database.open().load(connection.root()["node"]._p_oid)[0].startswith(b".z")


class TestBeforestorage:
    @pytest.fixture
    def before(self):
        return pytest.importorskip("zc.beforestorage").Before

    def test_it_shows_the_database_before_a_moment_and_refuses_to_write(self, preserving, before):
        connection = preserving.connection(preserving.zodb())
        grow(connection, node=Node(1))
        tid = connection.root()._p_serial
        connection.root()["node"].value = 2
        connection.transaction_manager.commit()
        shown = preserving.connection(preserving.zodb_on(before(preserving.open(), p64(u64(tid) + 1))))
        assert shown.root()["node"].value == 1
        connection.root()["node"].value = 3
        connection.transaction_manager.commit()
        shown.sync()
        assert shown.root()["node"].value == 1
        shown.root()["node"].value = 4
        with pytest.raises(ReadOnlyError):
            shown.transaction_manager.commit()
        shown.transaction_manager.abort()

    def test_it_shows_blobs(self, preserving, before, tmp_path):
        options = {"blob_dir": str(tmp_path / "blobs")}
        connection = preserving.connection(preserving.zodb(**options))
        grow(connection, blob=Blob(b"one"))
        tid = connection.root()._p_serial
        with connection.root()["blob"].open("w") as file:
            file.write(b"two")
        connection.transaction_manager.commit()
        shown = preserving.connection(preserving.zodb_on(before(preserving.open(**options), p64(u64(tid) + 1))))
        with shown.root()["blob"].open() as file:
            assert file.read() == b"one"


class TestDemoStorage:
    def test_over_ours_it_keeps_changes_to_itself(self, database, tmp_path):
        options = {"blob_dir": str(tmp_path / "blobs")}
        connection = database.connection(database.zodb(**options))
        grow(connection, node=Node(1), blob=Blob(b"base"))
        demo = database.connection(database.zodb_on(DemoStorage(base=database.open(**options))))
        assert demo.root()["node"].value == 1
        demo.root()["node"].value = 2
        demo.root()["new"] = Node(3)
        demo.transaction_manager.commit()
        with demo.root()["blob"].open() as file:
            assert file.read() == b"base"
        connection.sync()
        assert connection.root()["node"].value == 1
        assert "new" not in connection.root()

    def test_below_it_ours_takes_the_changes(self, database):
        base = MappingStorage()
        grow(database.connection(database.zodb_on(base)), node=Node(1), other=Node(10))
        demo = database.connection(
            database.zodb_on(DemoStorage(base=base, changes=database.open(), close_base_on_close=False))
        )
        demo.root()["node"].value = 2
        demo.root()["new"] = Node(3)
        demo.transaction_manager.commit()
        assert len(database.open()) == 3
        again = database.connection(
            database.zodb_on(DemoStorage(base=base, changes=database.open(), close_base_on_close=False))
        )
        root = again.root()
        assert [root[name].value for name in ("node", "other", "new")] == [2, 10, 3]

    def test_two_of_ours_are_base_and_changes(self, database, tmp_path):
        other = database.another()
        connection = database.connection(database.zodb(blob_dir=str(tmp_path / "base")))
        grow(connection, blob=Blob(b"base"), counter=Counter())
        storage = DemoStorage(
            base=database.open(blob_dir=str(tmp_path / "base")), changes=other.open(blob_dir=str(tmp_path / "changes"))
        )
        db = database.zodb_on(storage)
        mine, theirs = database.connection(db), database.connection(db)
        assert theirs.root()["counter"].value == 0
        with mine.root()["blob"].open("w") as file:
            file.write(b"changed")
        mine.root()["counter"].value += 1
        mine.transaction_manager.commit()
        theirs.root()["counter"].value += 10
        theirs.transaction_manager.commit()
        theirs.sync()
        assert theirs.root()["counter"].value == 11
        with theirs.root()["blob"].open() as file:
            assert file.read() == b"changed"
        connection.sync()
        with connection.root()["blob"].open() as file:
            assert file.read() == b"base"
        theirs.transaction_manager.abort()

    def test_changes_in_ours_can_be_undone(self, preserving):
        db = preserving.zodb_on(DemoStorage(changes=preserving.open()))
        connection = preserving.connection(db)
        grow(connection, value=1)
        grow(connection, value=2)
        db.undo(newest_undo_id(db), connection.transaction_manager.get())
        connection.transaction_manager.commit()
        connection.sync()
        assert connection.root()["value"] == 1
