"""Reading: single objects, revisions, whole transactions, in the newest state and in a snapshot."""

from __future__ import annotations

import pytest
from transaction import TransactionManager
from ZODB import interfaces as zodb
from ZODB.POSException import POSKeyError, ReadOnlyError, ReadOnlyHistoryError
from ZODB.utils import maxtid, p64, u64, z64
from zope.interface.verify import verifyObject

from relstorage.errors import SchemaMissing
from relstorage.testing.records import (
    Node,
    add,
    change,
    commit,
    delete,
    everything,
    grow,
    meta,
    newest_undo_id,
    restore,
    state,
    undo,
)

__all__ = ["TestAboutTheStorage", "TestHistorical", "TestIteration", "TestLoads", "TestReadOnly", "TestRecordIternext"]

PROMISED = (
    zodb.IMVCCAfterCompletionStorage,
    zodb.IMVCCPrefetchStorage,
    zodb.IStorageRestoreable,
    zodb.IStorageIteration,
    zodb.IStorageCurrentRecordIteration,
    zodb.IExternalGC,
    zodb.ReadVerifyingStorage,
)


class TestAboutTheStorage:
    @pytest.mark.parametrize("interface", PROMISED, ids=lambda each: each.__name__)
    def test_every_promised_interface_is_kept(self, database, interface):
        storage = database.open()
        assert verifyObject(interface, storage)
        assert verifyObject(interface, storage.new_instance())

    def test_undo_is_offered_only_with_history(self, database):
        storage = database.open()
        assert zodb.IStorageUndoable.providedBy(storage) == storage.supportsUndo() == database.keep_history
        assert not database.keep_history or verifyObject(zodb.IStorageUndoable, storage)

    def test_blobs_are_offered_only_with_a_directory(self, database, tmp_path):
        assert not zodb.IBlobStorage.providedBy(database.open())
        with_blobs = database.open(blob_dir=str(tmp_path / "blobs"))
        assert verifyObject(zodb.IBlobStorage, with_blobs)
        assert verifyObject(zodb.IBlobStorageRestoreable, with_blobs)

    def test_the_length_counts_current_objects(self, database):
        storage = database.open()
        assert len(storage) == 0
        oid, tid = add(storage)
        change(storage, oid, tid)
        add(storage)
        assert len(storage) == 2

    def test_the_size_is_that_of_something(self, database):
        storage = database.open()
        add(storage, "x" * 100_000)
        assert storage.getSize() > 100_000

    def test_the_last_transaction_is_zero_at_first_and_then_the_newest(self, database):
        storage = database.open()
        assert storage.lastTransaction() == z64
        _, tid = add(storage)
        assert storage.lastTransaction() == database.open().lastTransaction() == tid

    def test_the_last_transaction_is_that_of_the_view_until_the_next_poll(self, database):
        storage = database.open()
        _, first = add(storage)
        storage.poll_invalidations()
        _, second = add(database.open())
        assert storage.lastTransaction() == first
        storage.poll_invalidations()
        assert storage.lastTransaction() == second

    def test_storages_on_one_database_have_one_sort_key_and_others_another(self, database):
        storage = database.open()
        assert storage.sortKey() == database.open().sortKey() == storage.new_instance().sortKey()
        assert storage.sortKey() != database.another().open().sortKey()

    def test_the_name_can_be_chosen(self, database):
        assert database.open(name="catalogue").getName() == "catalogue"
        assert database.target.backend in database.open().getName()


class TestLoads:
    def test_what_was_committed_is_read_by_every_storage(self, database):
        writer = database.open()
        oid, tid = add(writer, "value")
        for reader in (writer, writer.new_instance(), database.open()):
            assert reader.load(oid) == (state("value"), tid)
            assert reader.loadSerial(oid, tid) == state("value")
            assert reader.getTid(oid) == tid

    def test_an_unknown_object_is_a_key_error(self, database):
        storage = database.open()
        unknown = p64(4711)
        for read in (storage.load, storage.getTid, storage.history):
            with pytest.raises(POSKeyError):
                read(unknown)
        for read in (storage.loadSerial, storage.loadBefore):
            with pytest.raises(POSKeyError):
                read(unknown, maxtid)

    def test_loads_without_a_poll_give_the_newest_state(self, database):
        writer, reader = database.open(), database.open()
        oid, tid = add(writer, 1)
        assert reader.load(oid)[0] == state(1)
        change(writer, oid, tid, 2)
        assert reader.load(oid)[0] == state(2)

    @pytest.mark.parametrize("shared_memory", [True, False], ids=["one-process", "apart"])
    def test_loads_stay_in_the_snapshot_of_the_last_poll(self, database, shared_memory):
        writer = database.open()
        reader = writer.new_instance() if shared_memory else database.open()
        oid, tid = add(writer, 1)
        other, other_tid = add(writer, 10)
        reader.poll_invalidations()
        assert reader.load(oid) == (state(1), tid)
        change(writer, oid, tid, 2)
        change(writer, other, other_tid, 20)
        new, _ = add(writer, 3)
        # One was read before the change, one was not.
        assert reader.load(oid) == (state(1), tid)
        assert reader.load(other) == (state(10), other_tid)
        with pytest.raises(POSKeyError):
            reader.load(new)
        reader.poll_invalidations()
        assert [reader.load(each)[0] for each in (oid, other, new)] == [state(2), state(20), state(3)]

    def test_an_object_deleted_by_another_stays_readable_until_the_next_poll(self, database):
        writer, reader = database.open(), database.open()
        oid, tid = add(writer, 1)
        reader.poll_invalidations()
        delete(writer, oid, tid)
        assert reader.load(oid)[0] == state(1)
        reader.poll_invalidations()
        with pytest.raises(POSKeyError):
            reader.load(oid)

    def test_a_snapshot_can_be_given_up_between_transactions(self, database):
        storage = database.open()
        oid, tid = add(storage, 1)
        storage.poll_invalidations()
        storage.load(oid)
        storage.afterCompletion()
        change(database.open(), oid, tid, 2)
        assert storage.load(oid)[0] == state(2)

    def test_load_before_gives_the_revision_of_a_moment(self, preserving):
        storage = preserving.open()
        oid, first = add(storage, 1)
        second = change(storage, oid, first, 2)
        third = change(storage, oid, second, 3)
        assert storage.loadBefore(oid, first) is None
        assert storage.loadBefore(oid, second) == (state(1), first, second)
        assert storage.loadBefore(oid, p64(u64(second) + 1)) == (state(2), second, third)
        assert storage.loadBefore(oid, maxtid) == (state(3), third, None)
        assert storage.loadSerial(oid, first) == state(1)

    def test_load_before_without_history_knows_the_current_revision_only(self, free):
        storage = free.open()
        oid, first = add(storage, 1)
        second = change(storage, oid, first, 2)
        assert storage.loadBefore(oid, second) is None
        assert storage.loadBefore(oid, maxtid) == (state(2), second, None)
        with pytest.raises(POSKeyError):
            storage.loadSerial(oid, first)

    def test_a_revision_that_undoes_the_creation_is_a_key_error(self, preserving):
        storage = preserving.open()
        oid, tid = add(storage, 1)
        undone = undo(storage, newest_undo_id(storage))
        for read in (storage.load, storage.getTid):
            with pytest.raises(POSKeyError):
                read(oid)
        with pytest.raises(POSKeyError):
            storage.loadBefore(oid, maxtid)
        with pytest.raises(POSKeyError):
            storage.loadSerial(oid, undone)
        assert storage.loadBefore(oid, undone) == (state(1), tid, undone)

    def test_prefetched_objects_come_from_the_cache(self, database):
        writer = database.open()
        oids = [add(writer, number)[0] for number in range(10)]
        reader = database.open()
        reader.poll_invalidations()
        reader.prefetch([*oids, p64(4711)])
        before = reader.cache.statistics()
        for number, oid in enumerate(oids):
            assert reader.load(oid)[0] == state(number)
        after = reader.cache.statistics()
        assert (after.hits - before.hits, after.misses - before.misses) == (10, 0)

    def test_history_describes_revisions_newest_first(self, preserving):
        storage = preserving.open()
        oid, first = add(storage, 1)
        second = commit(storage, (oid, first, state(2)), described=meta("ann", "second", colour="blue"))
        newest, older = storage.history(oid, 10)
        assert [newest["tid"], older["tid"]] == [second, first]
        assert storage.history(oid) == [newest]
        assert (newest["description"], newest["colour"]) == (b"second", "blue")
        assert b"ann" in newest["user_name"]
        assert newest["size"] == len(state(2))
        assert older["time"] < newest["time"]

    def test_history_without_history_has_one_entry(self, free):
        storage = free.open()
        oid, first = add(storage, 1)
        second = change(storage, oid, first, 2)
        assert [entry["tid"] for entry in storage.history(oid, 10)] == [second]


class TestIteration:
    def test_transactions_come_in_order_with_what_was_said_about_them(self, preserving):
        storage = preserving.open()
        oid, first = add(storage, 1)
        second = commit(storage, (oid, first, state(2)), described=meta("ann", "why", colour="blue"))
        one, two = storage.iterator()
        assert (one.tid, two.tid) == (first, second)
        assert (two.description, two.extension, two.status) == (b"why", {"colour": "blue"}, " ")
        assert [(record.oid, record.tid, record.data) for record in two] == [(oid, second, state(2))]

    def test_without_history_each_current_object_comes_once(self, free):
        storage = free.open()
        oid, first = add(storage, 1)
        other, other_tid = add(storage, 2)
        second = change(storage, oid, first, 3)
        assert everything(storage) == [(other_tid, [(other, state(2))]), (second, [(oid, state(3))])]

    def test_start_and_stop_are_included(self, database):
        storage = database.open()
        tids = [add(storage, number)[1] for number in range(5)]

        def between(start, stop):
            return [each.tid for each in storage.iterator(start, stop)]

        assert between(None, None) == tids
        assert between(tids[1], tids[3]) == tids[1:4]
        assert between(p64(u64(tids[1]) + 1), None) == tids[2:]
        assert between(None, p64(u64(tids[3]) - 1)) == tids[:3]
        assert between(tids[2], tids[2]) == [tids[2]]
        assert between(tids[3], tids[1]) == []

    def test_what_others_do_meanwhile_is_not_seen(self, database):
        storage, other = database.open(), database.open()
        made = [add(storage, number) for number in range(20)]
        expected = everything(storage)
        iterator = storage.iterator()
        seen = []
        for number, (oid, tid) in enumerate(made):
            # Each object is changed or deleted just before its turn would come.
            (delete if number % 3 == 0 else change)(other, oid, tid)
            add(other)
            transaction = next(iterator)
            seen.append((transaction.tid, [(record.oid, record.data) for record in transaction]))
        assert seen == expected
        assert list(iterator) == []

    def test_the_snapshot_begins_when_the_iterator_is_made(self, database):
        storage = database.open()
        _, tid = add(storage)
        iterator = storage.iterator()
        add(database.open())
        assert [each.tid for each in iterator] == [tid]

    def test_an_iterator_can_be_closed_early(self, database):
        storage = database.open()
        add(storage)
        add(storage)
        iterator = storage.iterator()
        next(iterator)
        iterator.close()
        with pytest.raises(StopIteration):
            next(iterator)

    def test_deleted_objects_have_a_record_without_data(self, preserving):
        storage = preserving.open()
        oid, tid = add(storage, 1)
        deleted = delete(storage, oid, tid)
        assert everything(storage) == [(tid, [(oid, state(1))]), (deleted, [(oid, None)])]

    def test_the_extension_comes_back_byte_for_byte(self, preserving):
        storage = preserving.open()
        described = meta("ann", "why", colour="blue")
        commit(storage, (storage.new_oid(), z64, state()), described=described)
        (found,) = storage.iterator()
        assert found.extension_bytes == described.extension_bytes


class TestRecordIternext:
    @staticmethod
    def walk(storage):
        found, following = [], None
        while True:
            oid, tid, data, following = storage.record_iternext(following)
            found.append((oid, tid, data))
            if following is None:
                return found

    def test_every_current_record_comes_in_oid_order(self, database):
        storage = database.open()
        made = [(*add(storage, number), number) for number in range(7)]
        oid, tid, _ = made[3]
        made[3] = (oid, change(storage, oid, tid, "new"), "new")
        assert self.walk(storage) == [(oid, tid, state(value)) for oid, tid, value in made]

    def test_deleted_objects_are_left_out(self, database):
        storage = database.open()
        made = [add(storage) for _ in range(4)]
        delete(storage, *made[0])
        delete(storage, *made[3])
        assert [oid for oid, _, _ in self.walk(storage)] == [made[1][0], made[2][0]]

    def test_what_others_do_meanwhile_is_not_seen(self, database):
        storage, other = database.open(), database.open()
        made = [(*add(storage, number), state(number)) for number in range(10)]
        first = storage.record_iternext()
        for oid, tid, _ in made:
            change(other, oid, tid, "later")
        add(other)
        rest = []
        following = first[3]
        while following is not None:
            *record, following = storage.record_iternext(following)
            rest.append(tuple(record))
        assert [first[:3], *rest] == made

    def test_it_starts_anywhere(self, database):
        storage = database.open()
        made = [add(storage) for _ in range(4)]
        storage.record_iternext()
        oid, tid, _, following = storage.record_iternext(made[2][0])
        assert (oid, tid, following) == (*made[2], made[3][0])


class TestHistorical:
    def test_a_connection_shows_the_moment_at_or_before_a_tid(self, preserving):
        db = preserving.zodb()
        connection = preserving.connection(db)
        tids = []
        for number in range(3):
            grow(connection, value=number)
            tids.append(connection.root()._p_serial)
        for number, tid in enumerate(tids):
            then = db.open(at=tid)
            assert then.root()["value"] == number
            then.close()
        then = db.open(before=tids[2])
        assert then.root()["value"] == 1
        then.close()

    def test_it_stays_there_while_others_write(self, preserving):
        db = preserving.zodb()
        connection = preserving.connection(db)
        grow(connection, node=Node(1))
        then = db.open(at=connection.root()._p_serial)
        connection.root()["node"].value = 2
        connection.transaction_manager.commit()
        assert then.root()["node"].value == 1
        then.close()

    def test_it_refuses_to_write(self, preserving):
        db = preserving.zodb()
        connection = preserving.connection(db)
        grow(connection, value=1)
        then = db.open(TransactionManager(), at=connection.root()._p_serial)
        then.root()["value"] = 2
        with pytest.raises(ReadOnlyHistoryError):
            then.transaction_manager.commit()
        then.transaction_manager.abort()
        then.close()


class TestReadOnly:
    def test_it_reads_and_refuses_every_way_to_write(self, database):
        oid, tid = add(database.open(), 1)
        storage = database.open(read_only=True)
        assert storage.isReadOnly()
        assert storage.load(oid) == (state(1), tid)
        transaction = meta()
        for write in (
            storage.new_oid,
            lambda: storage.tpc_begin(transaction),
            lambda: storage.store(oid, tid, state(2), "", transaction),
            lambda: storage.restore(oid, tid, state(2), "", None, transaction),
            lambda: storage.deleteObject(oid, tid, transaction),
            lambda: storage.undo(b"x", transaction),
            lambda: storage.pack(None, lambda record: []),
            lambda: storage.zap_all(),
            lambda: restore(storage, tid, (oid, state(2))),
        ):
            with pytest.raises(ReadOnlyError):
                write()

    def test_it_sees_what_others_write(self, database):
        writer, reader = database.open(), database.open(read_only=True)
        oid, tid = add(writer, 1)
        reader.poll_invalidations()
        change(writer, oid, tid, 2)
        assert reader.poll_invalidations() == [oid]
        assert reader.load(oid)[0] == state(2)

    def test_it_makes_no_tables(self, database):
        with pytest.raises(SchemaMissing):
            database.open(read_only=True)
