"""Committing: conflicts and their resolution, objects that must stay current, deletion, failures on the way, new
oids."""

from __future__ import annotations

import threading

import pytest
import transaction
from transaction.interfaces import TransientError
from ZODB.POSException import ConflictError, POSKeyError, ReadConflictError, StorageError, StorageTransactionError
from ZODB.utils import p64, u64, z64

from relstorage.errors import Disconnected, LockError, SnapshotLost
from relstorage.testing.observed import observe
from relstorage.testing.records import (
    Counter,
    Node,
    add,
    change,
    commit,
    delete,
    everything,
    grow,
    meta,
    restore,
    state,
)

__all__ = ["TestCommit", "TestConflicts", "TestDeletion", "TestLostConnections", "TestNewOids", "TestReadCurrent"]


class TestCommit:
    def test_tids_grow_whoever_commits(self, database):
        storages = [database.open(), database.open()]
        storages.append(storages[0].new_instance())
        tids = [add(storages[number % 3])[1] for number in range(9)]
        assert tids == sorted(set(tids))

    def test_the_callback_gets_the_tid_before_others_see_it(self, database):
        storage, other = database.open(), database.open()
        seen = []

        def callback(tid):
            seen.append((tid, other.lastTransaction()))

        described = meta()
        storage.tpc_begin(described)
        storage.store(storage.new_oid(), z64, state(), "", described)
        storage.tpc_vote(described)
        tid = storage.tpc_finish(described, callback)
        assert seen == [(tid, z64)]
        assert other.lastTransaction() == tid

    def test_nothing_is_kept_if_the_callback_fails(self, database):
        storage = database.open()
        oid = storage.new_oid()
        described = meta()
        storage.tpc_begin(described)
        storage.store(oid, z64, state(), "", described)
        storage.tpc_vote(described)

        def fail(tid):
            raise RuntimeError("no")

        with pytest.raises(RuntimeError):
            storage.tpc_finish(described, fail)
        assert everything(storage) == []
        assert add(storage)

    @pytest.mark.parametrize("voted", [False, True])
    def test_an_aborted_transaction_leaves_nothing(self, database, voted):
        storage = database.open()
        described = meta()
        storage.tpc_begin(described)
        storage.store(storage.new_oid(), z64, state(), "", described)
        if voted:
            storage.tpc_vote(described)
        storage.tpc_abort(described)
        assert everything(storage) == []
        assert everything(database.open()) == []
        assert add(database.open())
        assert add(storage)

    def test_aborting_another_transaction_changes_nothing(self, database):
        storage = database.open()
        described = meta()
        storage.tpc_begin(described)
        storage.tpc_abort(meta())
        storage.store(storage.new_oid(), z64, state(), "", described)
        storage.tpc_vote(described)
        storage.tpc_finish(described)
        storage.tpc_abort(described)
        assert len(storage) == 1

    def test_nothing_can_be_added_after_the_vote(self, database):
        storage = database.open()
        oid = storage.new_oid()
        described = meta()
        storage.tpc_begin(described)
        storage.tpc_vote(described)
        for step in (
            lambda: storage.store(oid, z64, state(), "", described),
            lambda: storage.restore(oid, z64, state(), "", None, described),
            lambda: storage.deleteObject(oid, z64, described),
            lambda: storage.checkCurrentSerialInTransaction(oid, z64, described),
            lambda: storage.tpc_vote(described),
        ):
            with pytest.raises(StorageError, match="voted already"):
                step()
        storage.tpc_abort(described)

    def test_each_step_wants_its_own_transaction(self, database):
        storage = database.open()
        oid = storage.new_oid()
        mine, other = meta(), meta()
        storage.tpc_begin(mine)
        for step in (
            lambda: storage.tpc_begin(mine),
            lambda: storage.store(oid, z64, state(), "", other),
            lambda: storage.restore(oid, z64, state(), "", None, other),
            lambda: storage.deleteObject(oid, z64, other),
            lambda: storage.checkCurrentSerialInTransaction(oid, z64, other),
            lambda: storage.tpc_vote(other),
            lambda: storage.tpc_finish(other),
        ):
            with pytest.raises(StorageTransactionError):
                step()
        storage.tpc_abort(mine)

    def test_finishing_needs_a_vote(self, database):
        storage = database.open()
        described = meta()
        storage.tpc_begin(described)
        with pytest.raises(StorageError):
            storage.tpc_finish(described)
        storage.tpc_abort(described)

    def test_a_transaction_of_many_objects_commits_and_can_be_changed_as_a_whole(self, database):
        # A server-wide table of locks would be full.
        storage = database.open()
        oids = [storage.new_oid() for _ in range(17_000)]
        data = state("first")
        tid = commit(storage, *((oid, z64, data) for oid in oids))
        data = state("second")
        commit(storage, *((oid, tid, data) for oid in oids))
        assert len(storage) == len(oids)
        assert storage.load(oids[-1])[0] == data

    def test_large_states_come_back_whole(self, database):
        storage = database.open()
        values = [str(number) * 4_000_000 for number in range(4)]
        oids = [storage.new_oid() for _ in values]
        commit(storage, *((oid, z64, state(value)) for oid, value in zip(oids, values, strict=True)))
        assert [database.open().load(oid)[0] for oid in oids] == [state(value) for value in values]

    def test_the_last_state_of_an_object_counts(self, database):
        storage = database.open()
        oid = storage.new_oid()
        commit(storage, (oid, z64, state(1)), (oid, z64, state(2)))
        assert storage.load(oid)[0] == state(2)

    def test_user_description_and_extension_are_kept(self, preserving):
        storage = preserving.open()
        described = transaction.Transaction()
        described.user = "ann"
        described.description = "caf\xe9"
        commit(storage, (storage.new_oid(), z64, state()), described=meta("ann", "caf\xe9", number=1))
        (found,) = preserving.open().iterator()
        assert (found.user, found.description, found.extension) == (b"ann", "caf\xe9".encode(), {"number": 1})
        (entry,) = storage.undoLog()
        assert (entry["user_name"], entry["description"], entry["number"]) == (b"ann", "caf\xe9".encode(), 1)

    def test_a_restore_keeps_its_tid_and_the_next_commit_has_a_larger_one(self, database):
        storage = database.open()
        oid = storage.new_oid()
        future = p64(u64(add(storage)[1]) + (60 * 24 << 32))
        assert restore(storage, future, (oid, state(1))) == future
        assert storage.load(oid) == (state(1), future)
        assert change(database.open(), oid, future, 2) > future

    def test_who_waits_too_long_for_a_lock_may_try_again(self, database):
        holder, other = database.open(), database.open(commit_lock_timeout=0.3)
        oid, tid = add(holder)
        described = meta()
        holder.tpc_begin(described)
        holder.store(oid, tid, state(1), "", described)
        holder.tpc_vote(described)
        with pytest.raises(LockError) as caught:
            change(other, oid, tid, 2)
        assert isinstance(caught.value, TransientError)
        assert caught.value.waited >= 0.2
        new = holder.tpc_finish(described)
        assert change(other, oid, new, 2) > new

    def test_vote_takes_no_lock_of_those_who_only_began(self, database):
        idle, other = database.open(), database.open(commit_lock_timeout=0.3)
        oid, tid = add(idle)
        described = meta()
        idle.tpc_begin(described)
        idle.store(oid, tid, state(1), "", described)
        assert change(other, oid, tid, 2)
        idle.tpc_abort(described)


class TestConflicts:
    def test_a_change_of_an_old_revision_is_refused(self, database):
        one, two = database.open(), database.open()
        oid, first = add(one, 1)
        second = change(one, oid, first, 2)
        with pytest.raises(ConflictError) as caught:
            change(two, oid, first, 3)
        assert caught.value.oid == oid
        assert caught.value.serials == (second, first)
        assert two.load(oid) == (state(2), second)

    def test_a_first_store_of_an_object_that_exists_is_refused(self, database):
        one, two = database.open(), database.open()
        oid, _ = add(one, 1)
        with pytest.raises(ConflictError):
            change(two, oid, z64, 2)
        assert two.load(oid)[0] == state(1)

    def test_a_first_store_of_the_same_state_is_none(self, database):
        one, two = database.open(), database.open()
        oid, _ = add(one, 1)
        assert change(two, oid, z64, 1)

    def test_a_change_of_a_deleted_object_is_refused(self, database):
        one, two = database.open(), database.open()
        oid, tid = add(one, 1)
        one.poll_invalidations()
        delete(two, oid, tid)
        with pytest.raises(ConflictError):
            change(one, oid, tid, 2)
        with pytest.raises(POSKeyError):
            two.load(oid)

    def test_a_change_of_an_object_that_never_was_is_refused(self, database):
        storage = database.open()
        _, tid = add(storage)
        storage.poll_invalidations()
        with pytest.raises(ConflictError):
            change(storage, storage.new_oid(), tid, 2)

    @pytest.mark.parametrize("shared_memory", [True, False], ids=["one-process", "apart"])
    def test_changes_that_can_be_merged_are(self, database, shared_memory):
        first = database.zodb()
        mine, theirs = database.connection(first), database.connection(first if shared_memory else database.zodb())
        grow(mine, **{f"counter{number}": Counter() for number in range(20)})
        theirs.sync()
        for number in range(20):
            mine.root()[f"counter{number}"].value += 1
            theirs.root()[f"counter{number}"].value += 10
        theirs.transaction_manager.commit()
        mine.transaction_manager.commit()
        theirs.sync()
        for connection in (mine, theirs):
            assert [connection.root()[f"counter{number}"].value for number in range(20)] == [11] * 20

    def test_the_old_states_of_all_conflicts_are_read_in_one_query(self, database):
        one, two = database.open(), database.open(cache_local_mb=0)
        read: list[str] = []
        observe(two, lambda role, call, statement, done: read.append(statement) if done and role == "load" else None)
        two = two.new_instance()
        oids = [two.new_oid() for _ in range(10)]
        first = commit(one, *((oid, z64, state(1, Counter)) for oid in oids))
        two.poll_invalidations()
        commit(one, *((oid, first, state(5, Counter)) for oid in oids))
        del read[:]
        commit(two, *((oid, first, state(3, Counter)) for oid in oids))
        assert [name for name in read if name] == ["current_states"]
        assert [one.load(oid)[0] for oid in oids] == [state(7, Counter)] * 10
        two.release()

    def test_the_vote_tells_whose_state_was_merged(self, database):
        one, two = database.open(), database.open()
        oid, first = add(one, 1, Counter)
        other, other_tid = add(one)
        two.poll_invalidations()
        two.load(oid)
        change(one, oid, first, 5, Counter)
        described = meta()
        two.tpc_begin(described)
        two.store(oid, first, state(3, Counter), "", described)
        two.store(other, other_tid, state(1), "", described)
        assert two.tpc_vote(described) == [oid]
        two.tpc_finish(described)
        assert two.load(oid)[0] == state(7, Counter)

    def test_what_cannot_be_merged_aborts_the_whole_transaction(self, database):
        db = database.zodb()
        mine, theirs = database.connection(db), database.connection(db)
        grow(mine, counter=Counter(), node=Node(0))
        theirs.sync()
        for connection, amount in ((theirs, 10), (mine, 1)):
            connection.root()["counter"].value += amount
            connection.root()["node"].value = amount
        theirs.transaction_manager.commit()
        with pytest.raises(ConflictError):
            mine.transaction_manager.commit()
        mine.transaction_manager.abort()
        assert (mine.root()["counter"].value, mine.root()["node"].value) == (10, 10)


class TestReadCurrent:
    @staticmethod
    def commit_if_current(storage, oid, tid):
        described = meta()
        storage.tpc_begin(described)
        try:
            storage.store(storage.new_oid(), z64, state(), "", described)
            storage.checkCurrentSerialInTransaction(oid, tid, described)
            storage.tpc_vote(described)
            return storage.tpc_finish(described)
        finally:
            storage.tpc_abort(described)

    def test_an_unchanged_object_is_no_obstacle(self, database):
        storage = database.open()
        assert self.commit_if_current(storage, *add(storage))

    def test_a_changed_object_is_a_read_conflict(self, database):
        one, two = database.open(), database.open()
        oid, first = add(one)
        second = change(two, oid, first)
        with pytest.raises(ReadConflictError) as caught:
            self.commit_if_current(one, oid, first)
        assert (caught.value.oid, caught.value.serials) == (oid, (second, first))
        assert len(one) == 1

    def test_a_deleted_object_is_a_read_conflict(self, database):
        one, two = database.open(), database.open()
        oid, tid = add(one)
        delete(two, oid, tid)
        with pytest.raises(ReadConflictError):
            self.commit_if_current(one, oid, tid)

    def test_an_object_that_never_was_is_a_read_conflict(self, database):
        storage = database.open()
        _, tid = add(storage)
        with pytest.raises(ReadConflictError):
            self.commit_if_current(storage, storage.new_oid(), tid)

    def test_it_stays_current_until_the_end(self, database):
        one, two = database.open(), database.open(commit_lock_timeout=20)
        oid, tid = add(one)
        described = meta()
        one.tpc_begin(described)
        one.store(one.new_oid(), z64, state(), "", described)
        one.checkCurrentSerialInTransaction(oid, tid, described)
        one.tpc_vote(described)
        changed = []
        thread = threading.Thread(target=lambda: changed.append(change(two, oid, tid)))
        thread.start()
        mine = one.tpc_finish(described)
        thread.join(30)
        assert changed[0] > mine

    def test_a_zodb_connection_can_require_it(self, database):
        db = database.zodb()
        mine, theirs = database.connection(db), database.connection(db)
        grow(mine, read=Node(1), written=Node(1))
        theirs.sync()
        mine.readCurrent(mine.root()["read"])
        assert mine.root()["read"].value == 1
        mine.root()["written"].value = 2
        theirs.root()["read"].value = 3
        theirs.transaction_manager.commit()
        with pytest.raises(ReadConflictError):
            mine.transaction_manager.commit()
        mine.transaction_manager.abort()


class TestDeletion:
    def test_a_deleted_object_is_gone(self, database):
        storage = database.open()
        oid, tid = add(storage)
        other, _ = add(storage)
        deleted = delete(storage, oid, tid)
        assert storage.lastTransaction() == deleted
        for each in (storage, database.open()):
            with pytest.raises(POSKeyError):
                each.load(oid)
            assert each.load(other)

    def test_its_history_stays(self, preserving):
        storage = preserving.open()
        oid, tid = add(storage, 1)
        deleted = delete(storage, oid, tid)
        assert storage.loadBefore(oid, deleted) == (state(1), tid, deleted)
        assert storage.loadSerial(oid, tid) == state(1)

    def test_an_old_tid_is_a_conflict(self, database):
        storage = database.open()
        oid, tid = add(storage, 1)
        change(storage, oid, tid, 2)
        with pytest.raises(ConflictError):
            delete(storage, oid, tid)
        assert storage.load(oid)[0] == state(2)

    def test_an_unknown_object_is_a_conflict(self, database):
        storage = database.open()
        _, tid = add(storage)
        with pytest.raises(ConflictError):
            delete(storage, p64(4711), tid)

    @pytest.mark.parametrize("delete_first", [True, False])
    def test_storing_and_deleting_in_one_transaction_is_refused(self, database, delete_first):
        storage = database.open()
        oid, tid = add(storage)
        described = meta()
        storage.tpc_begin(described)
        steps = [
            lambda: storage.deleteObject(oid, tid, described),
            lambda: storage.store(oid, tid, state(2), "", described),
        ]
        first, second = steps if delete_first else reversed(steps)
        first()
        with pytest.raises(StorageError):
            second()
        storage.tpc_abort(described)
        assert storage.load(oid)[1] == tid

    def test_a_deletion_that_is_aborted_deletes_nothing(self, database):
        storage = database.open()
        oid, tid = add(storage)
        described = meta()
        storage.tpc_begin(described)
        storage.deleteObject(oid, tid, described)
        storage.tpc_vote(described)
        storage.tpc_abort(described)
        assert storage.load(oid)[1] == tid

    def test_a_deleted_object_can_be_stored_again(self, database):
        storage = database.open()
        oid, tid = add(storage, 1)
        deleted = delete(storage, oid, tid)
        base = deleted if database.keep_history else z64
        change(storage, oid, base, 2)
        assert storage.load(oid)[0] == state(2)

    def test_zap_removes_everything_and_leaves_a_usable_database(self, database):
        storage = database.open()
        for _ in range(3):
            add(storage)
        uuid = storage.sortKey()
        storage.zap_all()
        assert len(storage) == 0
        assert everything(storage) == []
        oid, tid = add(storage, 1)
        again = database.open()
        assert again.load(oid) == (state(1), tid)
        assert again.sortKey() == uuid


class TestNewOids:
    def test_they_never_repeat(self, database):
        storages = [database.open(), database.open()]
        storages.append(storages[0].new_instance())
        oids = [storages[number % 3].new_oid() for number in range(300)]
        assert len(set(oids)) == 300
        assert z64 not in oids

    def test_they_begin_above_after_a_restart(self, database):
        first = database.open()
        used = {first.new_oid() for _ in range(100)}
        first.close()
        second = database.open()
        assert min(second.new_oid() for _ in range(100)) > max(used)

    def test_they_begin_above_an_oid_that_somebody_stored(self, database):
        writer, other = database.open(), database.open()
        other.new_oid()
        commit(writer, (p64(1_000_000), z64, state()))
        assert u64(writer.new_oid()) > 1_000_000
        assert u64(database.open().new_oid()) > 1_000_000
        # Whoever has reserved some before may use these up first; none of them is the one that was stored.
        assert p64(1_000_000) not in {other.new_oid() for _ in range(5000)}

    def test_they_do_not_wait_for_a_transaction(self, database):
        storage, other = database.open(), database.open(commit_lock_timeout=1)
        described = meta()
        storage.tpc_begin(described)
        storage.store(storage.new_oid(), z64, state(), "", described)
        assert other.new_oid()
        storage.tpc_abort(described)


class TestLostConnections:
    def test_aborting_without_a_connection_succeeds(self, database):
        storage = database.open()
        described = meta()
        storage.tpc_begin(described)
        storage.store(storage.new_oid(), z64, state(), "", described)
        storage.tpc_vote(described)
        storage._commit._session.close()
        storage.tpc_abort(described)
        assert add(storage)

    def test_a_commit_without_a_connection_may_be_tried_again(self, database):
        storage = database.open()
        described = meta()
        storage.tpc_begin(described)
        storage.store(storage.new_oid(), z64, state(), "", described)
        storage.tpc_vote(described)
        storage._commit._session.close()
        with pytest.raises(Disconnected):
            storage.tpc_finish(described)
        storage.tpc_abort(described)
        assert everything(storage) == []
        assert add(storage)

    def test_a_lost_snapshot_is_not_replaced_before_the_next_transaction(self, database):
        writer, reader = database.open(), database.open(cache_local_mb=0)
        oid, tid = add(writer, 1)
        reader.poll_invalidations()
        reader._reader._session.close()
        change(writer, oid, tid, 2)
        for _ in range(2):
            with pytest.raises(SnapshotLost):
                reader.load(oid)
        assert reader.poll_invalidations() == [oid]
        assert reader.load(oid)[0] == state(2)
