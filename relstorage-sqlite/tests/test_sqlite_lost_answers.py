"""A commit whose answer does not arrive: what happened is looked up before anything is reported or undone."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import transaction
import ZODB
from transaction.interfaces import TransientError
from ZODB.blob import Blob

import relstorage
from relstorage.errors import CommitOutcomeUnknown, Disconnected


class Steps:
    """The commit steps of a database, with an error before or after the commit."""

    def __init__(self, steps, *, before=None, after=None):
        self._steps = steps
        self._before = before
        self._after = after

    def __getattr__(self, name):
        return getattr(self._steps, name)

    def finish(self, session, commit, before_commit=None):
        if self._before is not None:
            if before_commit is not None:
                before_commit(commit.tid)
            raise self._before
        tid = self._steps.finish(session, commit, before_commit)
        if self._after is not None:
            raise self._after
        return tid


@pytest.fixture(params=[False, True], ids=["free", "history"])
def db(request, tmp_path):
    storage = relstorage.open(
        "sqlite",
        data_dir=tmp_path / "data",
        keep_history=request.param,
        blob_dir=tmp_path / "blobs",
        shared_blob_dir=True,
    )
    db = ZODB.DB(storage)
    yield db
    db.close()


@pytest.fixture
def connection(db):
    connection = db.open(transaction.TransactionManager())
    yield connection
    connection.transaction_manager.abort()
    connection.close()


def blob_files(db):
    blobs = db.storage.database.blobs
    return list(blobs.all_revisions())


def commit_a_blob(db, connection, **errors):
    adapter = db.storage.database.adapter
    steps = adapter.commit_steps
    adapter.commit_steps = Steps(steps, **errors)
    try:
        connection.root()["blob"] = Blob(b"what must not be lost")
        connection.transaction_manager.commit()
    finally:
        adapter.commit_steps = steps


def test_a_commit_that_happened_is_reported_as_one(db, connection):
    commit_a_blob(db, connection, after=Disconnected("the answer was lost"))
    with db.transaction() as other, other.root()["blob"].open() as file:
        assert file.read() == b"what must not be lost"


def test_ctrl_c_after_the_commit_leaves_it_complete(db, connection):
    with pytest.raises(KeyboardInterrupt):
        commit_a_blob(db, connection, after=KeyboardInterrupt())
    with db.transaction() as other, other.root()["blob"].open() as file:
        assert file.read() == b"what must not be lost"


def test_a_commit_that_did_not_happen_leaves_nothing(db, connection):
    with pytest.raises(Disconnected):
        commit_a_blob(db, connection, before=Disconnected("the request was lost"))
    connection.transaction_manager.abort()
    assert "blob" not in connection.root()
    assert blob_files(db) == []


def test_without_an_answer_to_the_question_no_file_is_removed(db, connection, monkeypatch):
    database = db.storage.database

    def unreachable(session, commit):
        raise Disconnected("nobody answers")

    monkeypatch.setattr(database.adapter.commit_steps, "committed_tid", unreachable)
    monkeypatch.setattr(database, "options", replace(database.options, commit_lock_timeout=0.3))
    with pytest.raises(CommitOutcomeUnknown) as caught:
        commit_a_blob(db, connection, after=Disconnected("the answer was lost"))
    assert not isinstance(caught.value, TransientError)
    monkeypatch.undo()
    connection.transaction_manager.abort()
    with db.transaction() as other, other.root()["blob"].open() as file:
        assert file.read() == b"what must not be lost"
    assert os.listdir(database.blobs.temporary_directory()) == []


def test_the_next_transaction_works(db, connection):
    with pytest.raises(KeyboardInterrupt):
        commit_a_blob(db, connection, after=KeyboardInterrupt())
    connection.transaction_manager.abort()
    connection.root()["next"] = 1
    connection.transaction_manager.commit()
    with db.transaction() as other:
        assert other.root()["next"] == 1
