"""Polling: each storage learns exactly what others changed since its last poll."""

from __future__ import annotations

import time

import pytest
from ZODB.POSException import POSKeyError
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64, z64

from relstorage.errors import LockError
from relstorage.testing.records import (
    Node,
    add,
    change,
    commit,
    delete,
    grow,
    meta,
    newest_undo_id,
    restore,
    state,
    undo,
)

__all__ = ["TestPolling"]


class TestPolling:
    @pytest.fixture(params=["one-process", "apart"])
    def pair(self, database, request):
        """A storage that writes and one that polls, in one process or as if in two. Both have polled."""
        writer = database.open()
        reader = writer.new_instance() if request.param == "one-process" else database.open()
        reader.poll_invalidations()
        writer.poll_invalidations()
        yield writer, reader
        reader.release()

    def test_the_first_poll_reports_nothing(self, database):
        add(database.open())
        assert database.open().poll_invalidations() == []

    def test_a_change_is_reported_once(self, pair):
        writer, reader = pair
        oid, tid = add(writer, 1)
        assert reader.poll_invalidations() == [oid]
        assert reader.poll_invalidations() == []
        change(writer, oid, tid, 2)
        assert reader.poll_invalidations() == [oid]

    def test_many_changes_are_reported_together(self, pair):
        writer, reader = pair
        made = [add(writer) for _ in range(5)]
        change(writer, *made[0])
        assert sorted(reader.poll_invalidations()) == sorted(oid for oid, _ in made)

    def test_an_own_state_that_the_cache_does_not_take_ends_the_one_before(self, database):
        writer = database.open(cache_local_object_max=1000)
        reader = writer.new_instance()
        oid, tid = add(writer, 1)
        for storage in (writer, reader):
            storage.poll_invalidations()
            assert storage.load(oid) == (state(1), tid)
        large = state("x" * 5000)
        tid = commit(writer, (oid, tid, large))
        assert writer.poll_invalidations() == []
        assert writer.load(oid) == (large, tid)
        assert reader.load(oid) == (state(1), reader.load(oid)[1])
        assert reader.poll_invalidations() == [oid]
        assert reader.load(oid) == (large, tid)
        reader.release()

    @pytest.mark.parametrize("count", [1, 50])
    def test_own_commits_and_those_of_others_are_told_apart(self, pair, count):
        writer, reader = pair
        made = [add(writer, number) for number in range(count)]
        reader.poll_invalidations()
        tid = commit(reader, *((oid, base, state("own")) for oid, base in made))
        first = made[0][0]
        theirs = change(writer, first, tid, "theirs") if count == 1 else None
        added = add(writer)[0]
        assert set(reader.poll_invalidations()) == ({first, added} if theirs else {added})
        assert reader.load(first) == ((state("theirs"), theirs) if theirs else (state("own"), tid))
        assert reader.load(made[-1][0])[1] == (theirs or tid)
        if not theirs:
            assert set(writer.poll_invalidations()) == {oid for oid, _ in made}

    def test_own_commits_are_not_reported(self, pair):
        writer, reader = pair
        oid, tid = add(writer)
        assert writer.poll_invalidations() == []
        change(writer, oid, tid)
        reader.poll_invalidations()
        assert writer.poll_invalidations() == []

    def test_what_others_changed_between_own_commits_is_reported(self, pair):
        one, two = pair
        oid, tid = add(one, 1)
        two.poll_invalidations()
        tid = change(two, oid, tid, 2)
        mine, _ = add(one)
        assert one.poll_invalidations() == [oid]
        assert two.poll_invalidations() == [mine]

    def test_a_change_of_an_object_after_the_own_one_is_reported(self, pair):
        one, two = pair
        oid, tid = add(one, 1)
        change(two, oid, tid, 2)
        assert one.poll_invalidations() == [oid]
        assert one.load(oid)[0] == state(2)

    def test_a_transaction_without_objects_is_no_change(self, pair):
        writer, reader = pair
        commit(writer)
        assert reader.poll_invalidations() == []

    def test_a_deletion_is_reported(self, pair):
        writer, reader = pair
        oid, tid = add(writer)
        reader.poll_invalidations()
        assert reader.load(oid)[1] == tid
        delete(writer, oid, tid)
        assert reader.poll_invalidations() == [oid]
        with pytest.raises(POSKeyError):
            reader.load(oid)
        assert reader.poll_invalidations() == []

    def test_an_own_deletion_is_not_reported_and_takes_effect(self, pair):
        writer, _ = pair
        oid, tid = add(writer)
        writer.load(oid)
        delete(writer, oid, tid)
        assert writer.poll_invalidations() == []
        with pytest.raises(POSKeyError):
            writer.load(oid)

    def test_what_a_pack_removed_is_reported(self, database):
        db = database.zodb()
        writer = database.connection(db)
        grow(writer, node=Node(1))
        oid = writer.root()["node"]._p_oid
        manager = writer.transaction_manager
        del writer.root()["node"]
        manager.commit()
        reader = database.open()
        reader.poll_invalidations()
        assert reader.load(oid)
        db.storage.pack(time.time() + 1, referencesf)
        assert oid in reader.poll_invalidations()
        with pytest.raises(POSKeyError):
            reader.load(oid)

    def test_zap_invalidates_everything(self, pair):
        writer, reader = pair
        oid, _ = add(writer)
        reader.poll_invalidations()
        reader.load(oid)
        writer.zap_all()
        assert reader.poll_invalidations() is None
        with pytest.raises(POSKeyError):
            reader.load(oid)
        oid, _ = add(writer)
        assert reader.poll_invalidations() == [oid]

    def test_a_copied_transaction_is_reported_though_its_tid_is_old(self, database):
        writer, reader = database.open(), database.open()
        oid, tid = add(writer, 1)
        reader.poll_invalidations()
        other = p64(u64(oid) + 1)
        restore(writer, p64(u64(tid) - 1000), (other, state(2)))
        changed = reader.poll_invalidations()
        assert changed is None or other in changed
        assert reader.load(other)[0] == state(2)

    def test_a_short_memory_of_changes_loses_none(self, database):
        first = database.open(cache_delta_size_limit=3)
        second = first.new_instance()
        first.poll_invalidations()
        second.poll_invalidations()
        writer = database.open()
        made = []
        for _ in range(10):
            made.append(add(writer)[0])
            # The cache of both learns of each change now, and forgets it before the other one asks.
            assert second.poll_invalidations() == [made[-1]]
        assert sorted(first.poll_invalidations()) == made
        second.release()

    def test_a_tid_in_the_future_hides_nothing(self, database):
        # A machine whose clock was wrong has copied or committed a transaction of next year.
        writer, reader = database.open(), database.open()
        oid, tid = add(writer, 1)
        future = p64(u64(tid) + (60 * 24 * 366 << 32))
        restore(writer, future, (oid, state(2)))
        reader.poll_invalidations()
        later = change(database.open(), oid, future, 3)
        assert later > future
        assert reader.poll_invalidations() == [oid]
        assert reader.load(oid) == (state(3), later)

    def test_an_undone_creation_is_reported(self, preserving):
        writer, reader = preserving.open(), preserving.open()
        oid, _ = add(writer)
        reader.poll_invalidations()
        reader.load(oid)
        undo(writer, newest_undo_id(writer))
        assert reader.poll_invalidations() == [oid]
        with pytest.raises(POSKeyError):
            reader.load(oid)

    def test_a_restore_at_the_same_time_is_not_missed(self, database):
        # Every way of committing must take turns: a tid that becomes visible late would be below what a poll has seen.
        one, two = (database.open(commit_lock_timeout=0.2) for _ in range(2))
        reader = database.open()
        oid, tid = add(one, 1)
        reader.poll_invalidations()
        restored = p64(u64(one.lastTransaction()) + 1)
        seen: list[bytes] = []
        transaction = meta()
        one.tpc_begin(transaction, restored)
        one.restore(oid, restored, state(2), "", None, transaction)
        one.tpc_vote(transaction)
        try:
            new, _ = add(two)
        except LockError:
            new = None
        seen += reader.poll_invalidations() or ()
        one.tpc_finish(transaction)
        changed = reader.poll_invalidations()
        assert changed is None or {*seen, *changed} >= {oid, *([new] if new else [])}
        assert reader.load(oid)[0] == state(2)

    def test_a_zodb_connection_sees_what_another_process_commits(self, database):
        mine, theirs = (database.connection(database.zodb()) for _ in range(2))
        grow(mine, node=Node(1))
        theirs.sync()
        assert theirs.root()["node"].value == 1
        mine.root()["node"].value = 2
        mine.transaction_manager.commit()
        assert theirs.root()["node"].value == 1
        theirs.sync()
        assert theirs.root()["node"].value == 2

    def test_what_was_just_committed_stays_loaded(self, database):
        connection = database.connection(database.zodb())
        grow(connection, node=Node(1))
        node = connection.root()["node"]
        node.value = 2
        connection.transaction_manager.commit()
        connection.transaction_manager.begin()
        assert node._p_changed is not None
        assert node._p_serial != z64
