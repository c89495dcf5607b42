"""Blobs, in a shared directory and in the database with a local cache: stored, found elsewhere, undone, copied and
removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from ZODB.blob import Blob
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSKeyError, Unsupported
from ZODB.serialize import referencesf

from relstorage.testing.records import delete, grow, newest_undo_id

__all__ = ["TestBlobs"]


def content(connection, name="blob"):
    with connection.root()[name].open() as file:
        return file.read()


def serial(connection, name="blob"):
    blob = connection.root()[name]
    blob._p_activate()
    return blob._p_serial


def rewrite(connection, data, name="blob"):
    with connection.root()[name].open("w") as file:
        file.write(data)
    connection.transaction_manager.commit()


class TestBlobs:
    @pytest.fixture(params=["shared", "cached"])
    def blobs(self, request, tmp_path):
        """The options of one process. The cache of another process is a directory of its own."""
        if request.param == "shared":
            return lambda process: {"blob_dir": str(tmp_path / "blobs"), "shared_blob_dir": True}
        return lambda process: {"blob_dir": str(tmp_path / f"blobs-{process}"), "blob_chunk_size": 1000}

    @pytest.mark.parametrize("size", [0, 1, 1000, 1001, 123_456])
    def test_another_process_reads_what_was_stored(self, database, blobs, size):
        data = os.urandom(size)
        mine = database.connection(database.zodb(**blobs(1)))
        grow(mine, blob=Blob(data))
        theirs = database.connection(database.zodb(**blobs(2)))
        assert content(mine) == content(theirs) == data

    def test_a_new_content_is_seen_after_the_next_poll(self, database, blobs):
        mine = database.connection(database.zodb(**blobs(1)))
        grow(mine, blob=Blob(b"one"))
        theirs = database.connection(database.zodb(**blobs(2)))
        assert content(theirs) == b"one"
        rewrite(mine, b"two")
        assert content(theirs) == b"one"
        theirs.sync()
        assert content(theirs) == b"two"

    def test_an_aborted_transaction_leaves_no_file(self, database, blobs):
        connection = database.connection(database.zodb(**blobs(1)))
        grow(connection, blob=Blob(b"one"))
        before = files_in(Path(blobs(1)["blob_dir"]))
        with connection.root()["blob"].open("w") as file:
            file.write(b"two")
        connection.root()["other"] = Blob(b"three")
        connection.transaction_manager.savepoint()
        connection.transaction_manager.abort()
        assert content(connection) == b"one"
        assert files_in(Path(blobs(1)["blob_dir"])) == before

    def test_a_file_can_be_handed_over(self, database, blobs, tmp_path):
        connection = database.connection(database.zodb(**blobs(1)))
        source = tmp_path / "upload"
        source.write_bytes(b"uploaded")
        blob = Blob()
        blob.consumeFile(str(source))
        grow(connection, blob=blob)
        assert not source.exists()
        assert content(database.connection(database.zodb(**blobs(2)))) == b"uploaded"

    def test_old_revisions_are_kept_with_history(self, preserving, blobs):
        db = preserving.zodb(**blobs(1))
        connection = preserving.connection(db)
        grow(connection, blob=Blob(b"one"))
        first = serial(connection)
        rewrite(connection, b"two")
        for process in (1, 2):
            then = preserving.zodb(**blobs(process)).open(at=first)
            assert content(then) == b"one"
            then.close()

    def test_the_old_revision_goes_without_history(self, free, blobs):
        db = free.zodb(**blobs(1))
        connection = free.connection(db)
        grow(connection, blob=Blob(b"one" * 1000))
        blob = connection.root()["blob"]
        first = serial(connection)
        rewrite(connection, b"two")
        db.storage.pack(time.time() + 1, referencesf)
        with pytest.raises(POSKeyError):
            free.open(**blobs(2)).loadBlob(blob._p_oid, first)
        assert content(free.connection(free.zodb(**blobs(2)))) == b"two"

    def test_undo_brings_the_content_back(self, preserving, blobs):
        db = preserving.zodb(**blobs(1))
        connection = preserving.connection(db)
        grow(connection, blob=Blob(b"one"))
        rewrite(connection, b"two")
        db.undo(newest_undo_id(db), connection.transaction_manager.get())
        connection.transaction_manager.commit()
        connection.sync()
        assert content(connection) == b"one"
        assert content(preserving.connection(preserving.zodb(**blobs(2)))) == b"one"

    def test_a_pack_removes_what_the_garbage_had(self, database, blobs):
        db = database.zodb(**blobs(1))
        connection = database.connection(db)
        grow(connection, blob=Blob(b"kept"), other=Blob(b"garbage"))
        other = connection.root()["other"]
        oid, tid = other._p_oid, serial(connection, "other")
        del connection.root()["other"]
        connection.transaction_manager.commit()
        db.storage.pack(time.time() + 1, referencesf)
        assert content(connection) == b"kept"
        for process in (1, 2):
            with pytest.raises(POSKeyError):
                database.open(**blobs(process)).loadBlob(oid, tid)

    def test_a_pack_removes_old_revisions_one_by_one(self, preserving, blobs):
        db = preserving.zodb(**blobs(1))
        connection = preserving.connection(db)
        grow(connection, blob=Blob(b"0"))
        blob = connection.root()["blob"]
        tids = [serial(connection)]
        for number in range(1, 4):
            rewrite(connection, b"%d" % number)
            tids.append(serial(connection))
        for kept in range(4):
            db.storage.pack(tids[kept], referencesf)
            # A process that has none of them cached.
            storage = preserving.open(**blobs(2 + kept))
            for number, tid in enumerate(tids):
                if number < kept:
                    with pytest.raises(POSKeyError):
                        storage.loadBlob(blob._p_oid, tid)
                else:
                    assert Path(storage.loadBlob(blob._p_oid, tid)).read_bytes() == b"%d" % number

    def test_an_unknown_blob_is_a_key_error(self, database, blobs):
        connection = database.connection(database.zodb(**blobs(1)))
        grow(connection, value=1)
        storage = database.open(**blobs(1))
        for read in (storage.loadBlob, storage.openCommittedBlobFile):
            with pytest.raises(POSKeyError):
                read(connection.root()._p_oid, connection.root()._p_serial)

    def test_a_deleted_blob_is_gone(self, free, blobs):
        connection = free.connection(free.zodb(**blobs(1)))
        grow(connection, blob=Blob(b"data"))
        blob = connection.root()["blob"]
        storage = free.open(**blobs(1))
        delete(storage, blob._p_oid, serial(connection))
        storage.pack(time.time() + 1, referencesf)
        with pytest.raises(POSKeyError):
            free.open(**blobs(2)).loadBlob(blob._p_oid, serial(connection))

    def test_zap_removes_blobs(self, database, blobs):
        connection = database.connection(database.zodb(**blobs(1)))
        grow(connection, blob=Blob(b"data"))
        oid, tid = connection.root()["blob"]._p_oid, serial(connection)
        storage = database.open(**blobs(1))
        storage.zap_all()
        with pytest.raises(POSKeyError):
            storage.loadBlob(oid, tid)

    def test_blobs_are_copied_from_and_to_other_storages(self, database, blobs, tmp_path):
        from_file = FileStorage(str(tmp_path / "from.fs"), blob_dir=str(tmp_path / "from-blobs"))
        connection = database.connection(database.zodb_on(from_file))
        grow(connection, blob=Blob(b"one"), other=Blob(b"other"))
        rewrite(connection, b"two")
        connection.transaction_manager.abort()
        storage = database.open(**blobs(1))
        storage.copyTransactionsFrom(from_file)
        assert content(database.connection(database.zodb(**blobs(2)))) == b"two"
        to_file = FileStorage(str(tmp_path / "to.fs"), blob_dir=str(tmp_path / "to-blobs"))
        to_file.copyTransactionsFrom(storage)
        copied = database.connection(database.zodb_on(to_file))
        assert (content(copied), content(copied, "other")) == (b"two", b"other")

    def test_without_a_directory_blobs_are_refused(self, database):
        storage = database.open()
        with pytest.raises(Unsupported):
            storage.temporaryDirectory()


def files_in(directory: Path) -> list[str]:
    return sorted(name for _, _, names in os.walk(directory) for name in names if name.endswith(".blob"))
