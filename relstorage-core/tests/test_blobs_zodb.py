"""ZODB's blobs over both kinds of directory, with a storage as small as can be."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import pytest
import transaction
from ZODB import DB
from ZODB.blob import Blob, BlobFile
from ZODB.interfaces import BlobError, IBlobStorage
from ZODB.MappingStorage import MappingStorage
from zope.interface import implementer

from relstorage.blobs import CachedBlobs, SharedBlobs
from relstorage.ids import to_int


@implementer(IBlobStorage)
class SmallStorage(MappingStorage):
    """Records in memory, blobs in a directory, and in ``database`` if the directory is a cache."""

    def __init__(self, blobs):
        super().__init__()
        self.blobs = blobs
        self.database: dict[tuple[int, int], bytes] = {}
        self.downloads = 0
        self.staged = blobs.begin()

    def storeBlob(self, oid, serial, data, filename, version, transaction):
        self.store(oid, serial, data, version, transaction)
        self.staged.add(to_int(oid), filename)

    def tpc_vote(self, transaction):
        self.staged.prepare()
        return super().tpc_vote(transaction)

    def tpc_finish(self, transaction, func=lambda tid: None):
        tid = to_int(self._tid)
        if self.blobs.kept_in_database:
            self.database.update({(oid, tid): Path(path).read_bytes() for oid, path in self.staged})
        self.staged.place(tid)
        result = super().tpc_finish(transaction, func)
        self.staged.committed(tid)
        return result

    def tpc_abort(self, transaction):
        super().tpc_abort(transaction)
        self.staged.aborted()

    def download(self, oid, tid):
        def write(path):
            self.downloads += 1
            content = self.database.get((oid, tid))
            if content is None:
                return False
            Path(path).write_bytes(content)
            return True

        return write

    def loadBlob(self, oid, serial):
        oid, tid = to_int(oid), to_int(serial)
        return self.blobs.load(oid, tid, self.download(oid, tid))

    def openCommittedBlobFile(self, oid, serial, blob=None):
        oid, tid = to_int(oid), to_int(serial)
        return self.blobs.open(oid, tid, self.download(oid, tid), blob)

    def temporaryDirectory(self):
        return self.blobs.temporary_directory()


@pytest.fixture(params=[SharedBlobs, CachedBlobs])
def storage(tmp_path, request):
    storage = SmallStorage(request.param(str(tmp_path / "blobs")))
    yield storage
    storage.blobs.close()


@pytest.fixture
def db(storage):
    db = DB(storage)
    yield db
    transaction.abort()
    db.close()


@pytest.fixture
def connection(db):
    return db.open()


@pytest.fixture
def blob(connection):
    """A committed blob."""
    connection.root()["blob"] = blob = Blob(b"first")
    transaction.commit()
    return blob


def content(blob) -> bytes:
    with blob.open() as file:
        return file.read()


def test_a_committed_blob_is_read_with_a_blob_file(blob):
    with blob.open() as file:
        assert isinstance(file, BlobFile)
        assert file.read() == b"first"
        assert blob.opened()
    assert not blob.opened()


def test_a_committed_blob_can_be_opened_beside_its_writers(blob):
    with blob.open("c") as committed, blob.open("r") as file:
        assert committed.read() == file.read() == b"first"


def test_a_blob_can_be_rewritten_and_extended(blob):
    with blob.open("w") as file:
        file.write(b"second")
    transaction.commit()
    with blob.open("a") as file:
        file.write(b" and more")
    transaction.commit()
    with blob.open("r+") as file:
        file.write(b"SEC")
    transaction.commit()
    assert content(blob) == b"SECond and more"


def test_an_abort_brings_the_committed_content_back(blob, storage):
    with blob.open("w") as file:
        file.write(b"aborted")
    transaction.abort()
    assert content(blob) == b"first"
    assert os.listdir(storage.temporaryDirectory()) == []


def test_an_empty_blob_is_committed(connection):
    connection.root()["empty"] = Blob()
    transaction.commit()
    assert content(connection.root()["empty"]) == b""


def test_an_older_view_reads_the_older_revision(db, blob):
    older = db.open(transaction_manager=transaction.TransactionManager())
    seen = older.root()["blob"]
    with blob.open("w") as file:
        file.write(b"second")
    transaction.commit()
    assert content(seen) == b"first"
    assert content(blob) == b"second"
    older.close()


def test_savepoints_keep_and_roll_back_content(blob, storage):
    with blob.open("w") as file:
        file.write(b"saved")
    savepoint = transaction.savepoint()
    with blob.open("w") as file:
        file.write(b"rolled back")
    savepoint.rollback()
    assert content(blob) == b"saved"
    transaction.commit()
    assert content(blob) == b"saved"
    assert os.listdir(storage.temporaryDirectory()) == []


def test_a_file_can_be_consumed(connection, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"consumed")
    connection.root()["blob"] = blob = Blob()
    blob.consumeFile(str(source))
    transaction.commit()
    assert content(blob) == b"consumed"
    assert not source.exists()


def test_the_committed_path_exists_and_uncommitted_changes_have_none(blob):
    blob._p_activate()
    assert Path(blob.committed()).read_bytes() == b"first"
    with blob.open("w") as file:
        file.write(b"second")
    with pytest.raises(BlobError):
        blob.committed()


def test_a_blob_survives_export_and_import(connection, blob):
    connection.root()["holder"] = holder = type(connection.root())()
    holder["blob"] = blob
    transaction.commit()
    exported = BytesIO()
    connection.exportFile(holder._p_oid, exported)
    exported.seek(0)
    connection.root()["copy"] = connection.importFile(exported)
    transaction.commit()
    assert content(connection.root()["copy"]["blob"]) == b"first"


@pytest.mark.parametrize("storage", [CachedBlobs], indirect=True)
def test_a_blob_that_left_the_cache_is_downloaded_again_also_while_its_object_is_loaded(connection, blob, storage):
    blob._p_activate()
    assert storage.downloads == 0
    storage.blobs.clear()
    assert content(blob) == b"first"
    storage.blobs.clear()
    assert Path(blob.committed()).read_bytes() == b"first"
    assert storage.downloads == 2
