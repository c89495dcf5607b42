"""Undo: what it restores, what it refuses, and what the undo log tells."""

from __future__ import annotations

import pytest
from ZODB.POSException import ConflictError, POSKeyError, StorageError, UndoError, Unsupported
from ZODB.utils import z64

from relstorage.testing.records import (
    Counter,
    Node,
    add,
    change,
    commit,
    delete,
    grow,
    meta,
    newest_undo_id,
    state,
    undo,
)

__all__ = ["TestUndo", "TestUndoLog"]


def id_of(storage, tid):
    """Return the id of a transaction in the undo log, given its tid."""
    newest_first = [each.tid for each in storage.iterator()][::-1]
    return storage.undoLog(0, 1000)[newest_first.index(tid)]["id"]


class TestUndo:
    def test_it_restores_the_state_from_before(self, preserving):
        storage = preserving.open()
        oid, first = add(storage, 1)
        change(storage, oid, first, 2)
        undo(storage, newest_undo_id(storage))
        assert storage.load(oid)[0] == state(1)
        undo(storage, newest_undo_id(storage))
        assert storage.load(oid)[0] == state(2)

    def test_several_transactions_can_be_undone_in_one(self, preserving):
        storage = preserving.open()
        made = [add(storage, 0) for _ in range(3)]
        tids = [change(storage, oid, tid, 1) for oid, tid in made]
        tids.append(change(storage, made[0][0], tids[0], 2))
        ids = [id_of(storage, tid) for tid in reversed(tids)]
        undo(storage, *ids)
        assert [storage.load(oid)[0] for oid, _ in made] == [state(0)] * 3

    def test_undoing_a_creation_removes_the_object_and_can_be_undone(self, preserving):
        storage = preserving.open()
        oid, _ = add(storage, 1)
        undo(storage, newest_undo_id(storage))
        with pytest.raises(POSKeyError):
            storage.load(oid)
        undo(storage, newest_undo_id(storage))
        assert storage.load(oid)[0] == state(1)

    def test_undoing_a_deletion_brings_the_object_back(self, preserving):
        storage = preserving.open()
        oid, tid = add(storage, 1)
        delete(storage, oid, tid)
        undo(storage, newest_undo_id(storage))
        assert storage.load(oid)[0] == state(1)

    def test_a_change_before_a_deletion_cannot_be_undone(self, preserving):
        storage = preserving.open()
        oid, first = add(storage, 1)
        second = change(storage, oid, first, 2)
        delete(storage, oid, second)
        with pytest.raises(UndoError):
            undo(storage, id_of(storage, second))
        with pytest.raises(POSKeyError):
            storage.load(oid)

    def test_a_change_before_an_undone_creation_cannot_be_undone(self, preserving):
        storage = preserving.open()
        oid, first = add(storage, 1)
        second = change(storage, oid, first, 2)
        undo(storage, id_of(storage, second), id_of(storage, first))
        with pytest.raises(UndoError):
            undo(storage, id_of(storage, second))

    def test_what_was_changed_since_is_refused_and_nothing_is_undone(self, preserving):
        storage = preserving.open()
        (one, tid), (two, other_tid) = add(storage, 1), add(storage, 1)
        both = commit(storage, (one, tid, state(2)), (two, other_tid, state(2)))
        change(storage, two, both, 3)
        with pytest.raises(UndoError):
            undo(storage, id_of(storage, both))
        assert [storage.load(oid)[0] for oid in (one, two)] == [state(2), state(3)]

    def test_what_can_be_merged_is(self, preserving):
        db = preserving.zodb()
        connection = preserving.connection(db)
        grow(connection, counter=Counter())
        for amount in (1, 10):
            connection.root()["counter"].value += amount
            connection.transaction_manager.commit()
        db.undo(db.undoLog(1, 2)[0]["id"], connection.transaction_manager.get())
        connection.transaction_manager.commit()
        connection.sync()
        assert connection.root()["counter"].value == 10

    def test_a_change_between_undo_and_vote_is_a_conflict(self, preserving):
        storage, other = preserving.open(), preserving.open()
        oid, first = add(storage, 1)
        second = change(storage, oid, first, 2)
        described = meta()
        storage.tpc_begin(described)
        storage.undo(newest_undo_id(storage), described)
        change(other, oid, second, 3)
        with pytest.raises((ConflictError, UndoError)):
            storage.tpc_vote(described)
        storage.tpc_abort(described)
        assert storage.load(oid)[0] == state(3)

    def test_another_process_learns_of_it(self, preserving):
        storage, other = preserving.open(), preserving.open()
        oid, first = add(storage, 1)
        change(storage, oid, first, 2)
        other.poll_invalidations()
        assert other.load(oid)[0] == state(2)
        undo(storage, newest_undo_id(storage))
        assert other.poll_invalidations() == [oid]
        assert other.load(oid)[0] == state(1)

    def test_an_unknown_transaction_is_refused(self, preserving):
        storage = preserving.open()
        add(storage)
        for unknown in (b"\0" * 8, b"nonsense that is long"):
            with pytest.raises((UndoError, StorageError, ValueError)):
                undo(storage, unknown)

    def test_the_objects_are_named(self, preserving):
        storage = preserving.open()
        oids = sorted(storage.new_oid() for _ in range(3))
        commit(storage, *((oid, z64, state()) for oid in oids))
        described = meta()
        storage.tpc_begin(described)
        assert sorted(storage.undo(newest_undo_id(storage), described)[1]) == oids
        storage.tpc_abort(described)

    def test_without_history_it_is_not_supported(self, free):
        storage = free.open()
        add(storage)
        assert storage.undoLog() == []
        assert storage.undoInfo() == []
        described = meta()
        storage.tpc_begin(described)
        with pytest.raises(Unsupported):
            storage.undo(b"\0" * 8, described)
        storage.tpc_abort(described)


class TestUndoLog:
    @pytest.fixture
    def storage(self, preserving):
        storage = preserving.open()
        for number in range(5):
            described = meta("ann" if number % 2 else "bob", f"step {number}", number=number)
            commit(storage, (storage.new_oid(), z64, state()), described=described)
        return storage

    @staticmethod
    def numbers(entries):
        return [entry["number"] for entry in entries]

    def test_it_is_newest_first(self, storage):
        assert self.numbers(storage.undoLog()) == [4, 3, 2, 1, 0]

    @pytest.mark.parametrize(
        "first, last, expected",
        [(0, 2, [4, 3]), (1, 3, [3, 2]), (1, -2, [3, 2]), (3, 100, [1, 0]), (5, 10, []), (0, -1, [4]), (2, 2, [])],
    )
    def test_a_part_of_it_can_be_asked_for(self, storage, first, last, expected):
        assert self.numbers(storage.undoLog(first, last)) == expected

    def test_a_filter_counts_before_the_part_is_taken(self, storage):
        def by_bob(entry):
            return entry["user_name"].endswith(b"bob")

        assert self.numbers(storage.undoLog(1, 3, by_bob)) == [2, 0]

    def test_undo_info_finds_by_content(self, storage):
        assert self.numbers(storage.undoInfo(specification={"number": 3})) == [3]
        assert storage.undoInfo(specification={"number": 77}) == []

    def test_times_fall(self, storage):
        times = [entry["time"] for entry in storage.undoLog()]
        assert times == sorted(times, reverse=True)

    def test_nodes_of_a_zodb_are_undone_through_its_database(self, preserving):
        db = preserving.zodb()
        connection = preserving.connection(db)
        grow(connection, node=Node(1))
        connection.root()["node"].value = 2
        connection.transaction_manager.commit()
        db.undo(db.undoLog(0, 1)[0]["id"], connection.transaction_manager.get())
        connection.transaction_manager.commit()
        connection.sync()
        assert connection.root()["node"].value == 1
