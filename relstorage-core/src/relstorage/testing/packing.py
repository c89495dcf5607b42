"""Packing in one process: what stays, what goes, and that nothing dangles whatever is committed between two steps."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import transaction
import ZODB
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from transaction.interfaces import TransientError
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import POSKeyError, ReadOnlyError, UndoError
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64, z64

from relstorage import packing
from relstorage.errors import (
    LockError,
    MarkIncomplete,
    PackError,
    RemovedReferenceError,
    UnableToAcquirePackUndoLockError,
)
from relstorage.sql.contract import FEW_CHANGES
from relstorage.testing.observed import observe
from relstorage.testing.raw_records import Records, assert_nothing_dangles
from relstorage.testing.target import DatabaseUnderTest

# ruff: noqa: F811 (a fixture and the parameter that asks for it have one name)


class _Stop(Exception):
    """Ends a pack from within."""


class Site:
    """A database with a ZODB on it, and shorthands for what these tests do all the time."""

    def __init__(self, database: DatabaseUnderTest, **options: Any):
        self.database = database
        self.db: ZODB.DB = database.zodb(**options)
        self.storage = self.db.storage
        self.connection = database.connection(self.db)
        self.manager = self.connection.transaction_manager

    @property
    def root(self) -> Any:
        return self.connection.root()

    def commit(self) -> None:
        self.manager.commit()

    def add(self, name: str, value: Any) -> int:
        """Put a new object into the root, and return its oid."""
        self.root[name] = value
        self.commit()
        return u64(value._p_oid)

    def remove(self, *names: str) -> None:
        """Take objects out of the root."""
        for name in names:
            del self.root[name]
        self.commit()

    def garbage(self, count: int = 3) -> list[int]:
        """Make objects that nothing refers to, and return their oids."""
        made = [PersistentMapping(number=number) for number in range(count)]
        self.root["garbage"] = PersistentMapping({number: each for number, each in enumerate(made)})
        self.commit()
        oids = [u64(each._p_oid) for each in (*made, self.root["garbage"])]
        self.remove("garbage")
        return oids

    def pack(self, t: Any = None, **how: Any) -> packing.PackReport:
        """Pack, by default up to now."""
        return packing.pack(self.storage.database, t, referencesf, **how)

    def mark(self) -> packing.PackReport:
        """Do the first half of a pack."""
        return self.pack(prepack_only=True)

    def sweep(self, **how: Any) -> packing.PackReport:
        """Do the second half."""
        return self.pack(skip_prepack=True, **how)

    def oids(self) -> set[int]:
        """Return what is in the database."""
        return set(Records(self.database.open()).current)

    def verify(self) -> Records:
        """Fail if anything dangles."""
        return assert_nothing_dangles(self.database.open())

    def reader(self) -> tuple[Any, Any]:
        """Return a connection with a view as of now on a storage that shares no memory with this one; its manager."""
        connection = self.database.connection(self.database.zodb())
        connection.transaction_manager.begin()
        return connection, connection.transaction_manager


@pytest.fixture
def site(database: DatabaseUnderTest) -> Site:
    """A ZODB on an empty database."""
    return Site(database)


def _at(wanted: str, act: Callable[[], Any]) -> Callable[[packing.PackProgress], None]:
    """Return a callback that acts once, when a pack enters a phase."""
    done: list[str] = []

    def progress(report: packing.PackProgress) -> None:
        if report.phase == wanted and not done:
            done.append(wanted)
            act()

    return progress


def _stop() -> None:
    raise _Stop


def _after_batch(site: Site, act: Callable[[], Any], number: int = 1) -> None:
    """Have the pack of a site act when so many batches of its sweep are committed."""
    seen = {"removing": False, "batches": 0}

    def watch(role: str, method: str, statement: str, done: bool) -> None:
        if role != "pack" or not done:
            return
        if statement in ("pack_done.0", "pack_remove_next.0"):
            seen["removing"] = True
        elif method == "commit" and seen["removing"]:
            seen["removing"] = False
            seen["batches"] += 1
            if seen["batches"] == number:
                act()

    observe(site.storage, watch)


#: More than the first batch of a sweep removes.
BATCH = 600

PHASES = ("read", "mark", "list", "check", "sweep")


# --- what goes and what stays


def test_a_pack_removes_what_cannot_be_reached(site: Site) -> None:
    kept = site.add("kept", PersistentMapping())
    gone = site.garbage()
    report = site.pack()
    assert report.removed_objects == len(gone)
    assert site.oids() == {0, kept}
    site.verify()


def test_a_pack_removes_a_cycle_of_garbage(site: Site) -> None:
    first, second = PersistentMapping(), PersistentMapping()
    first["other"], second["other"] = second, first
    site.add("cycle", first)
    site.remove("cycle")
    site.pack()
    assert site.oids() == {0}


def test_a_pack_of_an_empty_database_does_nothing(database: DatabaseUnderTest) -> None:
    storage = database.open()
    storage.pack(time.time(), referencesf)
    assert len(storage) == 0


def test_a_pack_without_a_root_is_refused(site: Site) -> None:
    storage = site.database.another().open()
    one = TransactionMetaData()
    storage.tpc_begin(one)
    storage.store(p64(7), z64, site.storage.load(z64)[0], "", one)
    storage.tpc_vote(one)
    storage.tpc_finish(one)
    with pytest.raises(PackError, match="no root object"):
        storage.pack(None, referencesf)
    assert len(storage) == 1


def test_a_second_pack_works_after_every_object_was_modified(site: Site) -> None:
    site.root["items"] = PersistentMapping({number: PersistentMapping(number=number) for number in range(300)})
    site.commit()
    site.pack()
    for item in site.root["items"].values():
        item["changed"] = True
    site.root["items"]["changed"] = True
    site.commit()
    site.pack()
    assert len(site.verify().current) == 302


def test_a_pack_without_garbage_collection_keeps_unreachable_objects(database: DatabaseUnderTest) -> None:
    site = Site(database, pack_gc=False)
    gone = site.garbage()
    before = len(Records(site.storage).revisions)
    site.pack()
    assert set(gone) <= site.oids()
    # With history, the old revisions of the root went all the same.
    assert (len(Records(site.storage).revisions) < before) is database.keep_history


def test_garbage_collection_can_be_left_out_of_one_pack(site: Site) -> None:
    gone = site.garbage()
    site.storage.pack(None, referencesf, gc=False)
    assert set(gone) <= site.oids()
    site.storage.pack(None, referencesf)
    assert not set(gone) & site.oids()


def test_a_pack_to_an_earlier_time_keeps_what_was_written_later(site: Site) -> None:
    site.add("old", PersistentMapping(version=0))
    then = site.storage.lastTransaction()
    site.root["old"]["version"] = 1
    site.commit()
    later = site.garbage()
    site.pack(then)
    assert set(later) <= site.oids()
    assert len(site.storage.history(site.root["old"]._p_oid, 10)) == (2 if site.database.keep_history else 1)
    site.verify()


def test_objects_that_a_deletion_left_are_packed(site: Site) -> None:
    parent = PersistentMapping(child=PersistentMapping())
    oid = site.add("parent", parent)
    child = u64(parent["child"]._p_oid)
    serial = parent._p_serial
    site.remove("parent")
    one = TransactionMetaData()
    site.storage.tpc_begin(one)
    site.storage.deleteObject(p64(oid), serial, one)
    site.storage.tpc_vote(one)
    site.storage.tpc_finish(one)
    site.pack()
    assert site.oids() == {0}
    assert child not in {record[0] for record in Records(site.database.open()).revisions}


@pytest.mark.parametrize("garbage", (0, 3))
def test_the_last_transaction_never_goes_back(site: Site, garbage: int) -> None:
    if garbage:
        site.garbage(garbage)
    one = TransactionMetaData()
    site.storage.tpc_begin(one)
    site.storage.tpc_vote(one)
    site.storage.tpc_finish(one)
    newest = site.database.open().lastTransaction()
    site.pack()
    assert site.database.open().lastTransaction() >= newest


def test_records_of_a_wrapping_storage_are_packed(database: DatabaseUnderTest) -> None:
    zlibstorage = pytest.importorskip("zc.zlibstorage")
    db = ZODB.DB(zlibstorage.ZlibStorage(database.open(), compress=True))
    connection = db.open()
    connection.root()["kept"] = PersistentMapping(text="x" * 1000, child=PersistentMapping(text="y" * 1000))
    connection.root()["gone"] = PersistentMapping(text="x" * 1000, child=PersistentMapping(text="y" * 1000))
    transaction.commit()
    del connection.root()["gone"]
    transaction.commit()
    db.pack()
    connection.close()
    db.close()
    storage = database.open()
    assert len(assert_nothing_dangles(storage).current) == 3


# --- history


def test_a_transaction_after_the_packs_time_can_be_undone(preserving: DatabaseUnderTest) -> None:
    site = Site(preserving)
    site.root["box"] = PersistentMapping(old=PersistentMapping(name="old"))
    site.commit()
    then = site.storage.lastTransaction()
    site.root["box"]["old"] = PersistentMapping(name="new")
    site.commit()
    site.pack(then)
    site.verify()
    site.db.undo(site.db.undoInfo()[0]["id"], site.manager.get())
    site.commit()
    assert site.root["box"]["old"]["name"] == "old"
    site.verify()


def test_a_packed_transaction_cannot_be_undone(preserving: DatabaseUnderTest) -> None:
    site = Site(preserving)
    site.add("one", PersistentMapping())
    packed = site.storage.undoLog()[0]["id"]
    site.pack()
    assert site.storage.undoLog() == []
    one = TransactionMetaData()
    site.storage.tpc_begin(one)
    with pytest.raises(UndoError):
        site.storage.undo(packed, one)
    site.storage.tpc_abort(one)


def test_an_undo_that_a_pack_overtakes_is_refused(preserving: DatabaseUnderTest) -> None:
    site = Site(preserving)
    oids = {u64(site.root._p_oid), site.add("box", PersistentMapping(item=PersistentMapping()))}
    site.root["box"]["item"] = None
    site.commit()
    other = preserving.open()
    one = TransactionMetaData()
    other.tpc_begin(one)
    other.undo(other.undoLog()[0]["id"], one)
    site.pack()
    assert site.oids() == oids
    with pytest.raises((UndoError, RemovedReferenceError)):
        other.tpc_vote(one)
    other.tpc_abort(one)
    site.verify()


def test_an_undo_between_mark_and_sweep_keeps_what_it_brings_back(preserving: DatabaseUnderTest) -> None:
    site = Site(preserving)
    site.add("box", PersistentMapping(item=PersistentMapping(leaf=PersistentMapping())))
    site.root["box"]["item"] = None
    site.commit()
    site.mark()
    site.db.undo(site.db.undoInfo()[0]["id"], site.manager.get())
    site.commit()
    site.sweep()
    site.verify()
    assert "leaf" in site.root["box"]["item"]


def test_a_historical_connection_shows_the_time_of_the_pack(preserving: DatabaseUnderTest) -> None:
    site = Site(preserving)
    site.add("box", PersistentMapping(version=1, old=PersistentMapping()))
    then = site.storage.lastTransaction()
    site.root["box"]["version"] = 2
    del site.root["box"]["old"]
    site.commit()
    site.pack(then)
    historical = site.db.open(transaction.TransactionManager(), at=then)
    box = historical.root()["box"]
    assert (box["version"], dict(box["old"])) == (1, {})
    historical.close()


def test_the_last_revision_that_a_pack_keeps_is_the_first(preserving: DatabaseUnderTest) -> None:
    site = Site(preserving)
    oid = p64(site.add("box", PersistentMapping(version=0)))
    for version in range(1, 6):
        site.root["box"]["version"] = version
        site.commit()
    site.pack()
    assert len(site.storage.history(oid, 10)) == 1
    assert site.storage.loadBefore(oid, site.root["box"]._p_serial) is None


# --- commits between the steps


def test_what_is_linked_again_after_the_mark_stays_with_all_below_it(site: Site) -> None:
    box = PersistentMapping(child=PersistentMapping(leaf=PersistentMapping()))
    site.add("box", box)
    site.remove("box")
    site.mark()
    site.root["again"] = box
    site.commit()
    report = site.sweep()
    assert (report.rescued_objects, report.removed_objects) == (3, 0)
    site.verify()


def test_what_was_changed_and_linked_again_after_the_mark_stays(site: Site) -> None:
    box = PersistentMapping(child=PersistentMapping())
    site.add("box", box)
    site.remove("box")
    site.mark()
    box["changed"] = True
    site.root["again"] = box
    site.commit()
    site.sweep()
    site.verify()
    assert dict(site.root["again"]["child"]) == {}


def test_what_hangs_on_an_object_changed_after_the_mark_stays(site: Site) -> None:
    box = PersistentMapping(child=PersistentMapping())
    site.add("box", box)
    child = u64(box["child"]._p_oid)
    site.remove("box")
    site.mark()
    box["changed"] = True
    site.commit()
    site.sweep()
    assert child in site.oids()
    site.verify()


@pytest.mark.parametrize("phase", PHASES)
def test_buckets_that_split_during_a_pack_lose_nothing(site: Site, phase: str) -> None:
    site.add("tree", OOBTree({f"{number:04}": PersistentMapping(number=number) for number in range(100)}))
    site.garbage(150)

    def split() -> None:
        for number in range(300):
            site.root["tree"][f"{number % 100:04}.{number}"] = PersistentMapping(number=number)
        site.commit()

    site.pack(progress=_at(phase, split))
    site.verify()
    connection, _ = site.reader()
    assert len(connection.root()["tree"]) == 400
    for item in connection.root()["tree"].values():
        assert "number" in item


def test_buckets_that_split_between_mark_and_sweep_lose_nothing(site: Site) -> None:
    site.add("tree", OOBTree({f"{number:04}": PersistentMapping(number=number) for number in range(100)}))
    site.garbage()
    site.mark()
    for number in range(300):
        site.root["tree"][f"{number % 100:04}.{number}"] = PersistentMapping(number=number)
        if number % 50 == 0:
            site.commit()
    site.commit()
    site.sweep()
    assert len(site.verify().reachable()) > 400


@pytest.mark.parametrize("phase", PHASES)
def test_objects_created_during_a_pack_stay(site: Site, phase: str) -> None:
    site.garbage(150)
    created: list[int] = []

    def create() -> None:
        created.append(site.add("new", PersistentMapping(child=PersistentMapping())))
        created.append(u64(site.root["new"]["child"]._p_oid))

    site.pack(progress=_at(phase, create))
    assert set(created) <= site.oids()
    site.verify()


@pytest.mark.parametrize("phase", PHASES[:4])
def test_a_subtree_that_moves_during_a_pack_stays(site: Site, phase: str) -> None:
    site.add("left", PersistentMapping(item=PersistentMapping(leaf=PersistentMapping())))
    site.add("right", PersistentMapping())
    site.root["shelf"] = PersistentMapping(item=site.root["left"]["item"])
    site.commit()
    site.remove("shelf")
    other, manager = site.reader()
    item = other.root()["left"]["item"]
    site.root["left"].clear()
    site.commit()

    def link() -> None:
        # The reader's view is from before; it puts the item where it conflicts with nothing.
        other.root()["right"]["item"] = item
        manager.commit()

    site.pack(progress=_at(phase, link))
    site.verify()
    connection, _ = site.reader()
    assert dict(connection.root()["right"]["item"]["leaf"]) == {}


def test_what_is_linked_just_before_the_list_is_final_stays(site: Site) -> None:
    box = PersistentMapping(child=PersistentMapping())
    oid = site.add("box", box)
    other, manager = site.reader()
    item = other.root()["box"]
    site.remove("box")
    steps: list[str] = []

    def watch(role: str, method: str, statement: str, done: bool) -> None:
        if role != "pack" or not done:
            return
        if statement == "pack_progress":
            steps.append(statement)
        elif method == "commit" and steps == ["pack_progress"]:
            # The pack has looked at everything until now, and the next thing it does is to make the list final.
            steps.append(method)
            other.add(PersistentMapping(item=item))
            manager.commit()

    observe(site.storage, watch)
    site.pack()
    assert oid in site.oids()
    site.verify()


def test_of_a_long_list_only_what_is_linked_again_stays(site: Site) -> None:
    box = PersistentMapping({number: PersistentMapping() for number in range(BATCH)})
    site.add("box", box)
    site.remove("box")
    site.mark()
    again = {box[number]._p_oid for number in (0, BATCH // 2, BATCH - 1)}
    site.root["again"] = [box[number] for number in (0, BATCH // 2, BATCH - 1)]
    site.commit()
    report = site.sweep()
    assert (report.rescued_objects, report.removed_objects) == (3, BATCH - 2)
    assert site.oids() == {0, *map(u64, again)}
    site.verify()


def test_a_list_of_which_nothing_is_left_is_followed_by_the_rest(site: Site) -> None:
    boxes = [PersistentMapping({number: PersistentMapping() for number in range(BATCH)}) for _ in range(2)]
    for name, box in zip("ab", boxes, strict=True):
        site.add(name, box)
    site.remove("a", "b")
    site.mark()
    site.root["again"] = boxes[0]
    site.commit()
    report = site.sweep()
    assert (report.rescued_objects, report.removed_objects) == (BATCH + 1, BATCH + 1)
    site.verify()


def test_removals_after_the_mark_do_not_confuse_the_sweep(site: Site) -> None:
    site.add("box", PersistentMapping(child=PersistentMapping()))
    site.garbage()
    site.mark()
    site.remove("box")
    site.sweep()
    assert len(site.oids()) == 3
    site.verify()
    site.pack()
    assert site.oids() == {0}


def test_many_commits_between_mark_and_sweep_are_looked_at(site: Site) -> None:
    boxes = [PersistentMapping(leaf=PersistentMapping()) for _ in range(200)]
    site.add("boxes", PersistentMapping({number: box for number, box in enumerate(boxes)}))
    site.remove("boxes")
    site.mark()
    site.root["tree"] = OOBTree()
    for number in range(3000):
        site.root["tree"][f"{number:05}"] = PersistentMapping()
        if number % 20 == 0 and number // 20 < len(boxes):
            site.root[f"box{number}"] = boxes[number // 20]
            site.commit()
    site.commit()
    report = site.sweep()
    # 150 of them were linked again, each with its leaf; the mapping and 50 others were not.
    assert (report.rescued_objects, report.removed_objects) == (300, 101)
    site.verify()


# --- stale readers


def test_a_link_to_an_object_that_was_removed_meanwhile_is_refused(site: Site) -> None:
    site.add("box", PersistentMapping())
    other, manager = site.reader()
    box = other.root()["box"]
    dict(box)
    site.remove("box")
    site.pack()
    other.root().get("nothing")
    target = PersistentMapping(box=box)
    # A place that nobody changed, so that there is no conflict.
    other.add(target)
    with pytest.raises(RemovedReferenceError) as caught:
        manager.commit()
    assert isinstance(caught.value, TransientError)
    manager.abort()
    site.verify()


def test_what_is_to_be_removed_cannot_be_required_to_stay(site: Site, database: DatabaseUnderTest) -> None:
    # The lock on it, and the commit lock that the sweep has, would wait for each other.
    oid = site.garbage(1)[0]
    other = database.open(commit_lock_timeout=5)
    _, serial = other.load(p64(oid))
    one = TransactionMetaData()
    refused = []

    def require() -> None:
        other.tpc_begin(one)
        other.checkCurrentSerialInTransaction(p64(oid), serial, one)
        try:
            other.tpc_vote(one)
        except TransientError as error:
            refused.append(error)
            other.tpc_abort(one)

    site.pack(progress=_at("sweep", require))
    assert len(refused) == 1
    site.verify()


def test_a_link_that_conflict_resolution_merges_is_refused_too(site: Site) -> None:
    site.root["tree"] = OOBTree(a=1)
    site.add("box", PersistentMapping())
    other, manager = site.reader()
    box = other.root()["box"]
    tree = other.root()["tree"]
    dict(tree), dict(box)
    site.root["tree"]["c"] = 3
    site.commit()
    site.remove("box")
    site.pack()
    tree["b"] = box
    with pytest.raises(RemovedReferenceError):
        manager.commit()
    manager.abort()
    site.verify()


def test_a_link_is_looked_up_where_removals_were_forgotten(site: Site) -> None:
    site.add("box", PersistentMapping())
    site.add("kept", PersistentMapping())
    other, manager = site.reader()
    box, kept = other.root()["box"], other.root()["kept"]
    dict(box), dict(kept)
    site.remove("box")
    site.pack()
    newest = u64(site.database.open().lastTransaction())
    site.database.execute(
        "DELETE FROM rs_removed", f"INSERT INTO rs_removed (tid, zoid) VALUES ({newest}, -1)"
    )
    other.add(PersistentMapping(box=box))
    with pytest.raises(RemovedReferenceError):
        manager.commit()
    manager.abort()
    other.add(PersistentMapping(kept=kept))
    manager.commit()


def test_a_removed_object_may_be_stored_again_with_a_link_to_it(site: Site) -> None:
    oid = p64(site.add("box", PersistentMapping()))
    state, _ = site.storage.load(oid)
    root, _ = site.storage.load(z64)
    other = site.database.open()
    other.poll_invalidations()
    site.remove("box")
    site.pack()
    one = TransactionMetaData()
    other.tpc_begin(one)
    other.store(oid, z64, state, "", one)
    other.store(other.new_oid(), z64, root, "", one)
    other.tpc_vote(one)
    other.tpc_finish(one)
    assert u64(oid) in site.oids()


def test_removals_are_forgotten_after_a_while(site: Site) -> None:
    site.garbage()
    site.pack()
    site.database.execute("UPDATE rs_removed SET tid = 1 + zoid")
    site.pack()
    assert [oid for oid, in site.database.execute("SELECT zoid FROM rs_removed")] == [-1]


def _island(site: Site) -> tuple[Any, Any, Any]:
    """Make more garbage than a batch removes, the last referring to the first; return the last as others see it."""
    site.add("place", PersistentMapping())
    first = PersistentMapping()
    site.add("island", first)
    for number in range(BATCH):
        first[f"{number:03}"] = PersistentMapping()
    site.commit()
    last = PersistentMapping(first=first)
    site.root["island"] = last
    site.commit()
    assert u64(last._p_oid) > u64(first[f"{BATCH - 1:03}"]._p_oid) > u64(first._p_oid)
    other, manager = site.reader()
    read = other.root()["island"]
    dict(read)
    dict(other.root()["place"])
    site.remove("island")
    return other, manager, read


def test_nobody_may_link_what_a_sweep_has_not_yet_removed(site: Site) -> None:
    other, manager, last = _island(site)
    refused = []

    def link() -> None:
        # What it refers to is gone already.
        other.root()["place"]["again"] = last
        try:
            manager.commit()
        except RemovedReferenceError:
            refused.append(True)
            manager.abort()

    _after_batch(site, link)
    site.pack()
    site.verify()
    assert refused


def test_nobody_may_change_what_a_sweep_has_not_yet_removed(site: Site) -> None:
    other, manager, last = _island(site)
    refused = []

    def change() -> None:
        last["changed"] = True
        del last["first"]
        try:
            manager.commit()
        except RemovedReferenceError:
            refused.append(True)
            manager.abort()

    _after_batch(site, change)
    site.pack()
    assert refused
    assert u64(last._p_oid) not in site.oids()


def test_what_an_interrupted_sweep_left_cannot_be_linked(site: Site) -> None:
    other, manager, last = _island(site)
    _after_batch(site, _stop)
    with pytest.raises(_Stop):
        site.pack()
    other.root()["place"]["again"] = last
    with pytest.raises(RemovedReferenceError):
        manager.commit()
    manager.abort()
    assert_nothing_dangles(site.database.open(), every_revision=False)
    packing.pack(site.database.open().database, None, referencesf, skip_prepack=True)
    site.verify()


def test_a_commit_during_a_sweep_that_links_nothing_removed_succeeds(site: Site) -> None:
    other, manager, _ = _island(site)

    def write() -> None:
        other.root()["place"]["new"] = PersistentMapping()
        manager.commit()

    _after_batch(site, write)
    site.pack()
    assert "new" in site.reader()[0].root()["place"]


def test_a_reader_keeps_reading_what_was_removed_until_its_transaction_ends(site: Site) -> None:
    site.add("box", PersistentMapping(child=PersistentMapping(leaf=PersistentMapping())))
    other, manager = site.reader()
    box = other.root()["box"]
    site.remove("box")
    site.pack()
    leaf = box["child"]["leaf"]
    assert dict(leaf) == {}
    oid = leaf._p_oid
    manager.begin()
    with pytest.raises(POSKeyError):
        other._storage.load(oid)
    with pytest.raises(POSKeyError):
        dict(box)


@pytest.mark.parametrize("count", (1, 2, FEW_CHANGES - 1, FEW_CHANGES, FEW_CHANGES + 1, BATCH))
def test_other_processes_are_told_what_was_removed(site: Site, count: int) -> None:
    site.root["box"] = PersistentMapping({number: PersistentMapping() for number in range(count - 1)})
    site.commit()
    oids = {each._p_oid for each in (site.root["box"], *site.root["box"].values())}
    site.remove("box")
    other = site.database.open()
    other.poll_invalidations()
    site.pack()
    told = other.poll_invalidations()
    assert (len(told), set(told)) == (count, oids)


# --- runs


def test_a_mark_that_failed_is_not_swept(site: Site) -> None:
    site.garbage()
    for phase in ("read", "mark", "list"):
        before = site.oids()
        with pytest.raises(_Stop):
            site.pack(prepack_only=True, progress=_at(phase, _stop))
        with pytest.raises(MarkIncomplete, match="not complete"):
            site.sweep()
        assert site.oids() == before
    site.pack()
    assert site.oids() == {0}


def test_a_sweep_without_a_mark_is_refused(site: Site) -> None:
    site.garbage()
    before = site.oids()
    with pytest.raises(MarkIncomplete, match="no mark"):
        site.sweep()
    assert site.oids() == before


def test_a_list_that_another_pack_begins_to_forget_is_not_swept(site: Site) -> None:
    # The connection that has the pack lock may be lost, and the lock with it.
    site.garbage()
    site.mark()
    before = site.oids()

    def forget() -> None:
        database = site.database.open().database
        with database.store_sessions.session() as session:
            session.begin_write()
            session.run(database.statements.pack_phase, (1, "marking"))
            session.commit()

    with pytest.raises(PackError, match="another pack"):
        site.sweep(progress=_at("check", forget))
    assert site.oids() == before


def test_a_mark_is_used_once(site: Site) -> None:
    site.garbage()
    site.mark()
    site.sweep()
    with pytest.raises(MarkIncomplete, match="used up"):
        site.sweep()


def test_a_mark_with_garbage_collection_is_not_used_without(site: Site) -> None:
    gone = site.garbage()
    site.mark()
    without = site.database.open(pack_gc=False)
    with pytest.raises(MarkIncomplete, match="pack-gc"):
        packing.pack(without.database, None, referencesf, skip_prepack=True)
    assert set(gone) <= site.oids()


def test_the_time_of_the_mark_counts_for_the_sweep(site: Site) -> None:
    site.garbage()
    marked = site.mark()
    site.garbage()
    assert site.sweep(t=time.time()).pack_tid == marked.pack_tid
    assert len(site.oids()) == 5


@pytest.mark.parametrize("how", ("pack", "mark", "sweep"))
def test_an_interrupted_sweep_is_finished_by_the_next_pack(site: Site, how: str) -> None:
    other, manager, last = _island(site)
    _after_batch(site, _stop)
    with pytest.raises(_Stop):
        site.pack()
    assert_nothing_dangles(site.database.open(), every_revision=False)
    site.garbage()
    manager.abort()
    again = Site(site.database)
    getattr(again, how)()
    # Nothing is left that refers to what is gone.
    assert u64(last._p_oid) not in site.oids()
    site.verify()
    again.pack()
    assert site.oids() == set(Records(site.database.open()).reachable())


def test_an_object_that_is_not_as_the_mark_saw_it_stays(site: Site) -> None:
    oid = site.add("box", PersistentMapping())
    site.remove("box")
    site.mark()
    shared = site.storage.database
    with shared.store_sessions.session() as session:
        session.begin_write()
        (tid,) = [tid for listed, tid, whole in session.rows(shared.statements.pack_garbage, (1, 10)) if listed == oid]
        session.run(shared.statements.pack_rescue, (1, [oid]))
        session.run(shared.statements.pack_add_garbage, (1, oid, tid - 1, 1))
        session.commit()
    report = site.sweep()
    assert report.removed_objects == 0
    assert oid in site.oids()


def test_a_mark_is_refused_after_older_transactions_were_restored(site: Site) -> None:
    box = PersistentMapping()
    oid = site.add("box", box)
    old = site.storage.lastTransaction()
    state, _ = site.storage.load(z64)
    site.garbage()
    site.remove("box")
    site.mark()
    one = TransactionMetaData()
    restoring = site.database.open()
    restoring.tpc_begin(one, p64(u64(old) + 1))
    restoring.restore(p64(oid + 100), p64(u64(old) + 1), state, "", None, one)
    restoring.tpc_vote(one)
    restoring.tpc_finish(one)
    before = site.oids()
    with pytest.raises(PackError, match="restored"):
        site.sweep()
    assert site.oids() == before


def test_a_mark_ends_when_the_database_is_emptied(site: Site) -> None:
    site.garbage()
    with pytest.raises(PackError, match="emptied"):
        site.pack(progress=_at("mark", site.database.open().zap_all))
    with Site(site.database).db.transaction() as connection:
        connection.root()["new"] = PersistentMapping()
    again = Site(site.database)
    again.pack()
    again.verify()


def test_two_packs_at_once_are_refused(site: Site) -> None:
    site.garbage()
    refused = []

    def second() -> None:
        with pytest.raises(UnableToAcquirePackUndoLockError):
            site.database.open().pack(None, referencesf)
        refused.append(True)

    site.pack(progress=_at("sweep", second))
    assert refused
    site.pack()


def test_a_pack_with_a_read_only_storage_is_refused(site: Site) -> None:
    gone = site.garbage()
    storage = site.database.open(read_only=True)
    with pytest.raises(ReadOnlyError):
        storage.pack(None, referencesf)
    with pytest.raises(ReadOnlyError):
        packing.pack(storage.database, None, referencesf)
    assert set(gone) <= site.oids()


def test_a_dry_run_reports_and_writes_nothing(site: Site) -> None:
    gone = site.garbage()
    before = site.database.dump()
    storage = site.database.open(read_only=True)
    report = packing.pack(storage.database, None, referencesf, dry_run=True)
    assert (report.removable_objects, report.objects, report.reachable) == (len(gone), len(gone) + 1, 1)
    assert report.removed_objects == 0
    assert site.database.dump() == before
    assert site.pack().removed_objects == report.removable_objects


def test_broken_references_are_found_however_deep_they_are(site: Site) -> None:
    site.add("a", PersistentMapping(b=PersistentMapping(c=PersistentMapping(d=PersistentMapping()))))
    c = site.root["a"]["b"]["c"]
    missing = c["d"]._p_oid
    one = TransactionMetaData()
    site.storage.tpc_begin(one)
    site.storage.deleteObject(missing, c["d"]._p_serial, one)
    site.storage.tpc_vote(one)
    site.storage.tpc_finish(one)
    if site.database.keep_history:
        site.pack()
    report = packing.check_references(site.storage.database, referencesf)
    assert report.dangling == [(u64(c._p_oid), u64(missing))]


# --- broken records


def _spoil(site: Site, oid: int, spoil: Callable[[bytes], bytes]) -> None:
    """Store a state that cannot be read."""
    one = TransactionMetaData()
    storage = site.database.open()
    state, serial = storage.load(p64(oid))
    storage.tpc_begin(one)
    storage.store(p64(oid), serial, spoil(state), "", one)
    storage.tpc_vote(one)
    storage.tpc_finish(one)


def test_a_broken_record_keeps_what_it_may_refer_to_and_is_reported(site: Site) -> None:
    box = PersistentMapping(child=PersistentMapping(leaf=PersistentMapping()))
    oid = site.add("box", box)
    expected = {0, oid, u64(box["child"]._p_oid), u64(box["child"]["leaf"]._p_oid)}
    _spoil(site, oid, lambda state: state[:-2])
    site.garbage()
    report = site.pack()
    assert (report.broken_records, report.broken[0].oid) == (1, oid)
    assert report.broken[0].class_name == "persistent.mapping.PersistentMapping"
    assert site.oids() == expected


def test_a_record_that_breaks_after_the_mark_keeps_what_it_may_refer_to(site: Site) -> None:
    box = PersistentMapping(child=PersistentMapping(leaf=PersistentMapping()))
    oid = site.add("box", box)
    site.remove("box")
    site.mark()
    _spoil(site, oid, lambda state: state[:-2])
    report = site.sweep()
    assert (report.rescued_objects, report.removed_objects) == (3, 0)


def test_a_record_that_nobody_can_search_stops_the_pack(site: Site) -> None:
    oid = site.add("box", PersistentMapping(child=PersistentMapping()))
    site.garbage()
    _spoil(site, oid, lambda state: b".e" + bytes(reversed(state)))
    before = site.oids()
    with pytest.raises(PackError, match="Nothing was removed"):
        site.pack()
    with pytest.raises(MarkIncomplete):
        site.sweep()
    assert site.oids() == before


def test_a_reference_that_no_database_can_hold_counts_as_broken(site: Site) -> None:
    oid = site.add("box", PersistentMapping(child=PersistentMapping()))
    child = site.root["box"]["child"]._p_oid
    _spoil(site, oid, lambda state: state.replace(child, b"\xff" * 8))
    report = site.pack()
    assert report.dangling_references >= 1


# --- locks


@contextlib.contextmanager
def _voted(database: DatabaseUnderTest, oid: int) -> Iterator[None]:
    """Hold what a transaction holds between vote and finish."""
    storage = database.open()
    one = TransactionMetaData()
    state, serial = storage.load(p64(oid))
    storage.tpc_begin(one)
    storage.store(p64(oid), serial, state, "", one)
    storage.tpc_vote(one)
    try:
        yield
    finally:
        storage.tpc_abort(one)


@contextlib.contextmanager
def _commit_lock(database: DatabaseUnderTest) -> Iterator[None]:
    """Hold the commit lock."""
    shared = database.open().database
    with shared.store_sessions.session() as session:
        shared.adapter.commit_steps.lock_and_choose_tid(session)
        try:
            yield
        finally:
            session.rollback()


@pytest.mark.parametrize("phase", ("read", "list", "check", "sweep"))
def test_a_pack_waits_for_a_transaction_that_has_voted(site: Site, phase: str) -> None:
    oid = site.add("box", PersistentMapping())
    site.garbage()
    ends = threading.Event()
    began = threading.Event()

    def hold() -> None:
        with _voted(site.database, oid):
            began.set()
            ends.wait(0.5)

    thread = threading.Thread(target=hold)

    def start() -> None:
        thread.start()
        began.wait(10)

    site.pack(progress=_at(phase, start))
    thread.join()
    assert site.oids() == {0, oid}


def test_a_pack_that_waited_too_long_can_go_on_later(database: DatabaseUnderTest) -> None:
    site = Site(database, commit_lock_timeout=0.1)
    oid = site.add("box", PersistentMapping())
    site.garbage()
    with contextlib.ExitStack() as held:
        with pytest.raises(LockError) as caught:
            site.pack(progress=_at("sweep", lambda: held.enter_context(_commit_lock(database))))
        assert isinstance(caught.value, TransientError)
    site.sweep()
    assert site.oids() == {0, oid}
    site.verify()


# --- blobs


@pytest.fixture(params=(False, True), ids=("cached", "shared"))
def blobbed(request: pytest.FixtureRequest, database: DatabaseUnderTest) -> Site:
    """A ZODB with a blob directory of either kind."""
    return Site(database, blob_dir=str(database.directory / "blobs"), shared_blob_dir=request.param)


def _content(blob: Blob) -> bytes:
    with blob.open("r") as file:
        return file.read()


def _blob_files(site: Site) -> int:
    return sum(1 for _ in site.storage.database.blobs.all_revisions())


def test_blobs_of_removed_objects_go(blobbed: Site) -> None:
    blobbed.root["kept"] = Blob(b"kept")
    blobbed.root["gone"] = Blob(b"gone")
    blobbed.commit()
    blobbed.remove("gone")
    blobbed.pack()
    assert _content(blobbed.root["kept"]) == b"kept"
    assert _blob_files(blobbed) == 1
    session = blobbed.storage.database.open_load_session()
    rows = session.rows(blobbed.storage.database.statements.blob_revisions)
    session.close()
    assert len(rows) == (1 if blobbed.storage.database.blobs.kept_in_database else 0)


def test_blobs_of_removed_revisions_go(blobbed: Site) -> None:
    blobbed.root["blob"] = Blob(b"1")
    blobbed.commit()
    with blobbed.root["blob"].open("w") as file:
        file.write(b"2")
    blobbed.commit()
    blobbed.pack()
    assert _content(blobbed.root["blob"]) == b"2"
    assert _blob_files(blobbed) == 1


def test_blobs_of_later_revisions_stay(blobbed: Site) -> None:
    blobbed.root["blob"] = Blob(b"1")
    blobbed.commit()
    then = blobbed.storage.lastTransaction()
    with blobbed.root["blob"].open("w") as file:
        file.write(b"2")
    blobbed.commit()
    blobbed.pack(then)
    assert _content(blobbed.root["blob"]) == b"2"
    if blobbed.database.keep_history:
        with blobbed.storage.openCommittedBlobFile(blobbed.root["blob"]._p_oid, then) as file:
            assert file.read() == b"1"


def test_a_blob_file_that_an_interruption_left_goes_with_the_next_pack(blobbed: Site) -> None:
    blobbed.root["gone"] = Blob(b"gone")
    blobbed.commit()
    blobbed.remove("gone")

    def stop(role: str, method: str, statement: str, done: bool) -> None:
        # The sweep has ended, and the files are looked at.
        if statement == "revision_tids" and role == "pack":
            raise _Stop

    observe(blobbed.storage, stop)
    with pytest.raises(_Stop):
        blobbed.pack()
    assert _blob_files(blobbed) == 1
    again = Site(blobbed.database, blob_dir=str(blobbed.database.directory / "blobs"),
                 shared_blob_dir=not blobbed.storage.database.blobs.kept_in_database)
    again.pack()
    assert _blob_files(blobbed) == 0


# --- progress and memory


def test_progress_is_told_for_every_phase_from_its_beginning(site: Site) -> None:
    site.garbage()
    told: list[packing.PackProgress] = []
    site.pack(progress=told.append)
    for phase in PHASES:
        assert next(each.done for each in told if each.phase == phase) == 0
    assert (told[-1].phase, told[-1].done) == ("sweep", told[-1].total)


def test_the_graph_takes_few_bytes_for_each_object() -> None:
    import tracemalloc

    from relstorage.packing.graph import Graph

    count = 100_000
    tracemalloc.start()
    graph = Graph()
    for oid in range(count):
        graph.add(oid, [oid // 2, oid + 1 if oid + 1 < count else 0, oid])
    graph.freeze()
    graph.reach([0])
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"graph: {size / count:.0f} bytes an object with three references, {peak / count:.0f} at the peak")
    assert not any(graph.unreached())
    assert size / count < 80


__all__ = [name for name in globals() if name.startswith("test_")] + ["blobbed", "site"]
