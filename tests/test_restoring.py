"""Restoring many transactions of another storage in one transaction of the database."""

from __future__ import annotations

from contextlib import closing

import pytest
import ZODB
from ZODB.POSException import POSKeyError
from ZODB.utils import p64, u64

import relstorage
from relstorage.database.commit import Metadata
from relstorage.database.restoring import Restoration


@pytest.fixture(params=[False, True], ids=["history-free", "history-preserving"])
def storage(tmp_path, request):
    options = {"data_dir": str(tmp_path / "data"), "keep_history": request.param}
    with closing(relstorage.open("sqlite", blob_dir=str(tmp_path / "blobs"), **options)) as storage:
        yield storage


@pytest.fixture
def restoration(storage):
    return Restoration(storage.database)


def restore(restoration, tid, *records):
    restoration.begin(Metadata(b"user", b"description"), tid)
    for record in records:
        restoration.put(*record)
    restoration.end()


def tids(storage):
    with closing(storage.iterator()) as transactions:
        return [u64(each.tid) for each in transactions]


def test_nothing_is_seen_before_the_batch_is_committed(storage, restoration):
    restore(restoration, 10, (1, b"one"))
    restore(restoration, 20, (2, b"two"))
    assert tids(storage) == []
    restoration.commit()
    assert tids(storage) == [10, 20]
    assert storage.load(p64(2)) == (b"two", p64(20))


def test_nothing_is_left_of_a_batch_that_is_aborted(storage, restoration, tmp_path):
    restore(restoration, 10, (1, b"one"))
    restoration.commit()
    file = tmp_path / "blob"
    file.write_bytes(b"data")
    restore(restoration, 20, (2, b"two", str(file)))
    restoration.begin(Metadata(), 30)
    restoration.put(3, b"three")
    restoration.abort()
    assert tids(storage) == [10]
    assert not [path for path in (tmp_path / "blobs" / "tmp").rglob("*") if path.is_file() and path.stat().st_size]


def test_a_batch_can_follow_one_that_was_aborted(storage, restoration):
    restore(restoration, 10, (1, b"one"))
    restoration.abort()
    restore(restoration, 10, (1, b"other"))
    restoration.commit()
    assert storage.load(p64(1)) == (b"other", p64(10))


def test_the_last_of_several_records_of_an_object_in_one_transaction_counts(storage, restoration):
    restore(restoration, 10, (1, b"first"), (1, b"last"), (2, b"first"), (2, None), (3, None), (3, b"last"))
    restoration.commit()
    assert storage.load(p64(1))[0] == b"last"
    assert storage.load(p64(3))[0] == b"last"
    with pytest.raises(POSKeyError):
        storage.load(p64(2))


def test_a_record_without_a_state_removes_the_object(storage, restoration):
    restore(restoration, 10, (1, b"one"))
    restore(restoration, 20, (1, None))
    restoration.commit()
    with pytest.raises(POSKeyError):
        storage.load(p64(1))


def test_new_object_ids_are_larger_than_restored_ones(storage, restoration):
    first = u64(storage.new_oid())
    restore(restoration, 10, (first + 5000, b"one"))
    restoration.commit()
    assert u64(storage.new_oid()) > first + 5000


def test_open_storages_are_told_when_older_transactions_arrive(storage, restoration):
    database = ZODB.DB(storage)
    with database.transaction() as connection:
        connection.root()["a"] = 1
    other = storage.new_instance()
    other.poll_invalidations()
    restore(restoration, 10, (99, b"old"))
    restoration.commit()
    assert other.poll_invalidations() is None
    assert other.load(p64(99)) == (b"old", p64(10))
    other.release()


def test_open_storages_learn_of_newer_transactions_by_their_tids(storage, restoration):
    restore(restoration, 10, (1, b"one"))
    restoration.commit()
    other = storage.new_instance()
    other.poll_invalidations()
    restore(restoration, 20, (1, b"other"), (2, b"two"))
    restoration.commit()
    assert sorted(other.poll_invalidations()) == [p64(1), p64(2)]
    assert other.load(p64(1))[0] == b"other"
    other.release()


def test_a_generator_may_pass_the_transactions_on(storage, restoration):
    restore(restoration, 10, (1, b"one"))
    restoration.commit()

    def passed_on():
        yield from storage.iterator()

    assert [u64(each.tid) for each in passed_on()] == [10]
