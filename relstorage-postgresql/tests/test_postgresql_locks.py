"""Who waits for whom on PostgreSQL, and for how long: rows in the order of oids, the commit lock last, no deadlock."""

from __future__ import annotations

# ruff: noqa: F811 (a fixture and the parameter that asks for it have one name)
import random
import signal
import threading
import time

import pytest
from postgresql_faults import in_thread
from postgresql_target import Postgres, address  # noqa: F401  a fixture is found by its name
from postgresql_writers import value_of
from test_postgresql_crashes import Writer
from transaction.interfaces import TransientError
from ZODB.POSException import ConflictError, ReadConflictError
from ZODB.utils import p64, u64, z64

import relstorage
from relstorage.errors import LockError, UnableToLockRowsToModifyError
from relstorage.testing.records import Counter, add, change, commit, grow, meta, state
from relstorage.testing.target import (  # noqa: F401  fixtures are found by their names
    DatabaseUnderTest,
    database,
    free,
    own_transaction,
    preserving,
    pytest_generate_tests,
    target,
)

TARGET = Postgres()


def begun(storage, *records, required=()):
    described = meta()
    storage.tpc_begin(described)
    for oid, base, data in records:
        storage.store(oid, base, data, "", described)
    for oid, tid in required:
        storage.checkCurrentSerialInTransaction(oid, tid, described)
    return described


def ended(storage, described):
    """Vote and finish; return the tid, or the error."""
    try:
        storage.tpc_vote(described)
        return storage.tpc_finish(described)
    except Exception as error:
        storage.tpc_abort(described)
        return error


@pytest.fixture
def voters(database):
    started = []

    def start(oid, base, **more):
        writer = Writer("vote_and_wait", options={**database.options, **more}, oid=u64(oid), base=u64(base))
        started.append(writer)
        deadline = time.monotonic() + 30
        while writer.lines != [["voted"]]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return writer

    yield start
    for each in started:
        each.process.send_signal(signal.SIGCONT)
        each.close()


def test_who_requires_what_the_other_changes_meets_no_deadlock(database):
    storages = [database.open(commit_lock_timeout=10) for _ in range(2)]
    (x, x_tid), (y, y_tid) = add(storages[0], 1), add(storages[0], 1)
    for number in range(10):
        first = begun(storages[0], (x, x_tid, state(number)), required=[(y, y_tid)])
        second = begun(storages[1], (y, y_tid, state(number)), required=[(x, x_tid)])
        other = in_thread(lambda described=second: ended(storages[1], described))
        outcomes = [ended(storages[0], first), other.result(20)]
        # One of them has to run again: both would be a write skew.
        errors = [each for each in outcomes if isinstance(each, Exception)]
        assert len(errors) == 1 and isinstance(errors[0], ReadConflictError)
        assert not isinstance(errors[0], LockError)
        if errors[0] is outcomes[0]:
            y_tid = outcomes[1]
        else:
            x_tid = outcomes[0]


def test_random_transactions_of_many_processes_meet_no_deadlock_and_lose_nothing(database):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    storage = database.open()
    oids = [storage.new_oid() for _ in range(16)]
    commit(storage, *((oid, z64, state(5)) for oid in oids))
    running = [
        Writer(
            "change_at_random",
            options=database.options,
            oids=[u64(oid) for oid in oids],
            seed=seed + number,
            times=40,
        )
        for number in range(3)
    ]
    changes = {}
    for each in running:
        each.wait(90)
        *commits, (word, deadlocks) = each.lines
        assert (word, deadlocks) == ("deadlocks", "0")
        for tid, *changed in commits:
            assert int(tid) not in changes
            changes[int(tid)] = set(map(int, changed))
    storage.poll_invalidations()
    values = {u64(oid): storage.load(oid) for oid in oids}
    for oid, (_, tid) in values.items():
        assert u64(tid) == max((each for each, changed in changes.items() if oid in changed), default=u64(tid))
    numbers = [value_of(values[u64(oid)][0]) for oid in oids]
    assert min(first + second for first, second in zip(numbers[::2], numbers[1::2], strict=True)) >= 0


def test_a_process_that_hangs_between_vote_and_finish_stops_only_who_needs_its_objects(database, voters):
    storage = database.open(commit_lock_timeout=0.5)
    (held, held_tid), (free_one, free_tid) = add(storage, 1), add(storage, 1)
    voter = voters(held, held_tid)
    voter.process.send_signal(signal.SIGSTOP)
    for number in range(5):
        free_tid = change(storage, free_one, free_tid, number)
    with pytest.raises(UnableToLockRowsToModifyError) as raised:
        commit(storage, (held, held_tid, state(2)), (free_one, free_tid, state(2)))
    assert raised.value.oids == (u64(held),)
    assert raised.value.waited == 0.5
    processes = database.execute("SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'")
    assert raised.value.holder in [f"the server's process {pid}" for (pid,) in processes]
    with pytest.raises(LockError) as raised:
        described = begun(storage, (free_one, free_tid, state(2)), required=[(held, held_tid)])
        try:
            storage.tpc_vote(described)
        finally:
            storage.tpc_abort(described)
    assert raised.value.oids == (u64(held),)
    voter.process.send_signal(signal.SIGCONT)


def test_while_a_pack_waits_for_a_transaction_that_has_voted_others_commit(database, voters):
    storage, packer = database.open(commit_lock_timeout=20), database.open(commit_lock_timeout=60)
    root_tid = commit(storage, (z64, z64, state(1)))
    (held, held_tid), garbage = add(storage, 1), add(storage, 1)[0]
    voter = voters(held, held_tid)
    packing = in_thread(lambda: packer.pack(None, lambda data: [held]))
    for number in range(5):
        root_tid = change(storage, z64, root_tid, number)
    voter.process.stdin.write("\n")
    voter.process.stdin.flush()
    packing.result(60)
    storage.poll_invalidations()
    with pytest.raises(KeyError):
        storage.load(garbage)
    assert storage.load(held)[0] == state("voted")


def test_who_waited_for_a_row_can_merge_what_the_other_committed(database):
    first, second = database.open(commit_lock_timeout=10), database.open(commit_lock_timeout=10)
    oid, tid = add(first, 1, Counter)
    for storage in (first, second):
        storage.poll_invalidations()
    mine = begun(first, (oid, tid, state(11, Counter)))
    first.tpc_vote(mine)
    other = begun(second, (oid, tid, state(101, Counter)))
    waiting = in_thread(lambda: ended(second, other))
    deadline = time.monotonic() + 10
    while not database.execute("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple')"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.tpc_finish(mine)
    outcome = waiting.result(10)
    assert not isinstance(outcome, Exception), outcome
    second.poll_invalidations()
    assert second.load(oid) == (state(111, Counter), outcome)


def test_two_first_stores_of_one_object_at_once_leave_one(database):
    storages = [database.open(commit_lock_timeout=10) for _ in range(2)]
    for number in range(5):
        oid, others = storages[0].new_oid(), [storages[0].new_oid() for _ in range(2)]
        described = [
            begun(storage, (oid, z64, state(which)), (others[which], z64, state("whole")))
            for which, storage in enumerate(storages)
        ]
        for each, storage in zip(described, storages, strict=True):
            storage.tpc_vote(each)
        tid = storages[number % 2].tpc_finish(described[number % 2])
        loser = storages[1 - number % 2]
        with pytest.raises(ConflictError) as raised:
            loser.tpc_finish(described[1 - number % 2])
        assert isinstance(raised.value, TransientError)
        loser.tpc_abort(described[1 - number % 2])
        loser.poll_invalidations()
        assert loser.load(oid) == (state(number % 2), tid)
        with pytest.raises(KeyError):
            loser.load(others[1 - number % 2])
        loser.afterCompletion()
        # The same state is no conflict.
        assert commit(loser, (oid, z64, state(number % 2))) > tid


@pytest.fixture(scope="module")
def stock(new_postgres):
    """A server as it comes, but small: its table of locks has room for 64 locks of each connection."""
    with new_postgres(settings={"fsync": False, "max_connections": 20, "max_locks_per_transaction": 64}) as server:
        yield server


def test_a_hundred_thousand_objects_need_few_locks(stock, tmp_path):
    storage = relstorage.open("postgresql", dsn=stock.dsn(), keep_history=False)
    try:
        oids = [p64(number) for number in range(1, 100_001)]
        described = begun(storage, *((oid, z64, b"new" * 10) for oid in oids))
        tid = ended(storage, described)
        assert not isinstance(tid, Exception), tid
        described = begun(storage, *((oid, tid, b"old" * 10) for oid in oids))
        storage.tpc_vote(described)
        locks = int(stock.psql("SELECT count(*) FROM pg_locks"))
        assert locks < 100
        tid = storage.tpc_finish(described)
        storage.poll_invalidations()
        assert storage.load(oids[-1]) == (b"old" * 10, tid)
        assert len(storage) == 100_000
    finally:
        storage.close()


def test_a_transaction_in_many_pieces_merges_removes_and_adds_in_the_middle(database):
    storage, other = database.open(), database.open()
    big = b"x" * 400_000
    oids = [p64(number) for number in range(1, 101)]
    merged, gone, added = oids[40], oids[60], [p64(number) for number in range(201, 301)]
    records = [(oid, z64, big) for oid in oids if oid != merged]
    tid = commit(storage, *records, (merged, z64, state(1, Counter)))
    for each in (storage, other):
        each.poll_invalidations()
    change(other, merged, tid, 11, Counter)
    # A first store that somebody else has made in the same way.
    commit(other, (added[50], z64, big))
    described = begun(
        storage,
        *((oid, tid, big + b"2") for oid in oids if oid not in (merged, gone)),
        (merged, tid, state(101, Counter)),
        *((oid, z64, big) for oid in added),
    )
    storage.deleteObject(gone, tid, described)
    assert storage.tpc_vote(described) == [merged]
    new = storage.tpc_finish(described)
    storage.poll_invalidations()
    assert storage.load(merged) == (state(111, Counter), new)
    assert {storage.load(oid) for oid in oids if oid not in (merged, gone)} == {(big + b"2", new)}
    assert {storage.load(oid) for oid in added} == {(big, new)}
    with pytest.raises(KeyError):
        storage.load(gone)
    assert database.execute("SELECT count(*) FROM pg_class WHERE relname = 'rs_staged'")[0][0] == 0


# --- others


def test_two_storages_in_two_schemas_of_one_database_do_not_meet(database):
    storage, other = database.open(commit_lock_timeout=1), database.another().open(commit_lock_timeout=1)
    oid, tid = add(storage, 1)
    assert add(other, 2)[0] == oid
    held = begun(storage, (oid, tid, state(3)))
    storage.tpc_vote(held)
    with (
        storage.database.store_sessions.session() as session,
        storage.database.adapter.pack_lock(),
    ):
        storage.database.adapter.commit_steps.lock_and_choose_tid(session)
        # All locks of the one are held: its rows, that of commits, that of packs.
        tid = commit(other, (oid, other.getTid(oid), state(4)), (z64, z64, state("root")))
        other.pack(None, lambda data: [oid])
        other.poll_invalidations()
        assert other.load(oid) == (state(4), tid)
        session.rollback()
    storage.tpc_finish(held)
    assert other.poll_invalidations() == []
    storage.poll_invalidations()
    assert storage.load(oid)[0] == state(3)


class Sleeper:
    """A resource of somebody else's that takes its time to vote."""

    transaction_manager = None

    def __init__(self):
        self.votes, self.may_end = threading.Event(), threading.Event()

    def sortKey(self):
        return "~ after every storage"

    def tpc_vote(self, _):
        self.votes.set()
        assert self.may_end.wait(60)

    def _nothing(self, _):
        pass

    tpc_begin = commit = tpc_finish = tpc_abort = abort = _nothing


def test_a_resource_that_sleeps_in_its_vote_stops_nobody_else(database):
    db = database.zodb(commit_lock_timeout=2)
    sleepy, other = database.connection(db), database.connection(db)
    grow(sleepy, one=Counter(), two=Counter())
    other.sync()
    sleeper = Sleeper()
    sleepy.root()["one"].value += 1
    sleepy.transaction_manager.get().join(sleeper)
    ending = in_thread(sleepy.transaction_manager.commit)
    assert sleeper.votes.wait(20)
    for number in range(5):
        other.root()["two"].value = number
        other.transaction_manager.commit()
    sleeper.may_end.set()
    ending.result(60)
    other.sync()
    assert (other.root()["one"].value, other.root()["two"].value) == (1, 4)
