"""Commits whose connection is lost, at any byte: the outcome is reported right, and nothing happens twice."""

from __future__ import annotations

# ruff: noqa: F811 (a fixture and the parameter that asks for it have one name)
import os
import random
import subprocess
import sys
import time
from base64 import decodebytes

import pytest
import transaction
import ZODB
from postgresql_faults import Fault, FlakyNetwork, in_thread, observed
from postgresql_target import Postgres, address  # noqa: F401  a fixture is found by its name
from transaction.interfaces import TransientError
from ZODB.POSException import ConflictError, UndoError
from ZODB.utils import u64, z64

import relstorage
from relstorage.errors import CommitOutcomeUnknown, Disconnected, LockError
from relstorage.sql import Statement
from relstorage.testing.records import Counter, add, change, commit, grow, meta, state, undo
from relstorage.testing.target import (  # noqa: F401  fixtures are found by their names
    DatabaseUnderTest,
    database,
    free,
    own_transaction,
    preserving,
    pytest_generate_tests,
    target,
)
from relstorage_postgresql import commits as postgres_commits

TARGET = Postgres()


@pytest.fixture
def network(postgres_address):
    made = FlakyNetwork(postgres_address)
    yield made
    made.close()


def voted(storage, *records):
    """Begin a transaction, store, vote; return the transaction."""
    described = meta()
    storage.tpc_begin(described)
    try:
        for oid, base, data in records:
            storage.store(oid, base, data, "", described)
        storage.tpc_vote(described)
    except BaseException:
        storage.tpc_abort(described)
        raise
    return described


def current(storage, oid):
    storage.poll_invalidations()
    found = storage.load(oid)
    storage.afterCompletion()
    return found


class Flaky:
    """A storage behind a flaky network, one that is not, and an object that the first changes again and again."""

    def __init__(self, database, network, **options):
        self.network = network
        self.storage = database.open(dsn=network.dsn, **options)
        self.witness = database.open()
        self.oid, self.tid = add(self.witness, "first")
        self.value = 0
        self.outcomes = {"committed": 0, "not committed": 0, "unknown": 0}

    def lengths(self):
        """Return how many bytes a finish sends and gets when all goes well."""
        for _ in range(3):  # statements are prepared the second time
            self.value += 1
            described = voted(self.storage, (self.oid, self.tid, state(self.value)))
            with observed(self.network) as seen:
                self.tid = self.storage.tpc_finish(described)
        return len(seen.sent), len(seen.answered)

    def finish_with(self, fault):
        """Commit a change whose finish meets the fault, and check that what is reported is true."""
        storage, before = self.storage, self.tid
        self.value += 1
        described = voted(storage, (self.oid, before, state(self.value)))
        self.network.arm(fault)
        reported = None
        try:
            reported = storage.tpc_finish(described)
        except TransientError:
            storage.tpc_abort(described)
        data, tid = current(self.witness, self.oid)
        if reported is None:
            assert (data, tid) == (state(self.value - 1), before), f"reported as not committed after {fault}"
            self.value -= 1
        else:
            assert (data, tid) == (state(self.value), reported), f"reported as committed after {fault}"
        self.tid = tid
        self.outcomes["committed" if reported else "not committed"] += 1


@pytest.mark.parametrize("server_learns", (True, False), ids=("reset", "half-open"))
def test_a_finish_cut_off_anywhere_reports_what_happened(database, network, server_learns):
    flaky = Flaky(database, network, commit_lock_timeout=5)
    sent, answered = flaky.lengths()
    step = max(1, sent // 14)
    for request in (*range(0, sent, step), sent - 5, sent - 1):
        # The session that the cut spoiled is replaced by one that has prepared nothing: what it sends is longer.
        flaky.finish_with(Fault(request, server_learns=server_learns))
        flaky.lengths()
    for answer in range(0, answered, max(1, answered // 12)):
        flaky.finish_with(Fault(sent, answer, server_learns=server_learns))
        flaky.lengths()
    print(flaky.outcomes)
    assert flaky.outcomes["committed"] > 10
    assert flaky.outcomes["not committed"] > 3


def test_a_finish_with_a_callback_cut_off_anywhere_reports_what_happened(database, network):
    # The callback runs between two requests, both under the commit lock.
    flaky = Flaky(database, network, commit_lock_timeout=5)
    told = []
    for number in range(12):
        described = voted(flaky.storage, (flaky.oid, flaky.tid, state(number + 1)))
        network.arm(Fault(10, 40 * number, server_learns=number % 2 == 0))

        def tell(tid, number=number):
            told.append(tid)
            network.arm(Fault(25 * number, server_learns=number % 2 == 0))

        reported = None
        try:
            reported = flaky.storage.tpc_finish(described, tell)
        except TransientError:
            flaky.storage.tpc_abort(described)
        data, tid = current(flaky.witness, flaky.oid)
        assert (data == state(number + 1)) == (reported is not None)
        assert reported in (None, tid)
        flaky.tid = tid
        if reported is None:
            flaky.tid = change(flaky.storage, flaky.oid, tid, number + 1)


def test_a_vote_cut_off_anywhere_keeps_nothing_and_may_be_tried_again(database, network):
    storage, witness = database.open(dsn=network.dsn, commit_lock_timeout=0.5), database.open()
    oid, tid = add(witness, 0)
    tid = change(storage, oid, tid, 0)
    with observed(network) as seen:
        described = voted(storage, (oid, tid, state(1)))
    storage.tpc_abort(described)
    sent, answered = len(seen.sent), len(seen.answered)
    faults = [Fault(each) for each in range(0, sent, sent // 6)]
    faults += [Fault(each, server_learns=False) for each in range(0, sent, sent // 6)]
    faults += [Fault(sent, each) for each in range(0, answered, answered // 6)]
    for number, fault in enumerate(faults):
        network.arm(fault)
        try:
            described = voted(storage, (oid, tid, state(number)))
        except TransientError:
            pass
        else:
            storage.tpc_abort(described)
        network.disarm(fault)
        assert current(witness, oid) == (state(number - 1 if number else 0), tid)
        for _ in range(20):
            # A half-open connection leaves its locks behind on the server, until that notices, or is told.
            if not fault.server_learns:
                _end_voters(database)
            try:
                tid = change(storage, oid, tid, number)
                break
            except LockError:
                continue


def _end_voters(database):
    """End the sessions that are idle in a transaction on this database's tables."""
    database.execute(
        """SELECT pg_terminate_backend(pid, 5000) FROM pg_locks
        WHERE relation IN (to_regclass('object_state'), to_regclass('current_object')) AND pid <> pg_backend_pid()"""
    )


def test_a_frozen_connection_leaves_the_question_open_until_it_ends(database, network):
    flaky = Flaky(database, network, commit_lock_timeout=5)
    sent, _ = flaky.lengths()
    described = voted(flaky.storage, (flaky.oid, flaky.tid, state("frozen")))
    fault = network.arm(Fault(sent, client_learns=False))
    finished = in_thread(lambda: flaky.storage.tpc_finish(described))
    assert fault.happened.wait(10)
    assert not finished.done()
    network.heal()
    tid = finished.result(10)
    assert current(flaky.witness, flaky.oid) == (state("frozen"), tid)


@pytest.mark.parametrize("reached", (True, False), ids=("committed", "not-committed"))
def test_an_outcome_that_cannot_be_asked_for_is_unknown_and_not_transient(database, network, reached):
    flaky = Flaky(database, network, commit_lock_timeout=0.3)
    sent, _ = flaky.lengths()
    described = voted(flaky.storage, (flaky.oid, flaky.tid, state("unknown")))
    network.arm(Fault(sent if reached else sent // 2))
    network.refuse()
    with pytest.raises(CommitOutcomeUnknown) as raised:
        flaky.storage.tpc_finish(described)
    assert not isinstance(raised.value, TransientError)
    flaky.storage.tpc_abort(described)
    data, _ = current(flaky.witness, flaky.oid)
    assert (data == state("unknown")) == reached


def _sessions(database):
    """Return (process, state) of the server's processes that work on this database's tables, or did last."""
    schema = database.options["schema"]
    return database.execute(
        f"""SELECT a.pid, a.state FROM pg_stat_activity a WHERE a.pid <> pg_backend_pid()
        AND a.application_name = '{schema}'"""
    )


def _named(database):
    """Return a connection string by which ``_sessions`` finds the sessions."""
    return f"{database.options['dsn']} application_name={database.options['schema']}"


def _terminate(database):
    ended = [pid for pid, _ in _sessions(database)]
    for pid in ended:
        database.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
    return ended


def test_sessions_that_an_administrator_ended_while_idle_are_replaced_unseen(database):
    storage = database.open(dsn=_named(database))
    oid, tid = add(storage, 1)
    for number in range(2, 6):
        storage.poll_invalidations()
        storage.load(oid)
        storage.afterCompletion()
        assert len(_terminate(database)) >= 2
        storage.poll_invalidations()
        assert storage.load(oid) == (state(number - 1), tid)
        storage.afterCompletion()
        tid = change(storage, oid, tid, number)
        assert storage.new_oid()


@pytest.mark.parametrize("ending", ["commit", "abort"])
def test_between_transactions_no_session_is_in_one(database, ending):
    db = database.zodb(dsn=_named(database))
    with db.transaction() as connection:
        connection.root()["number"] = 0

    def states(expected):
        # The answer to a ROLLBACK is not waited for, and in the background a session gets ready for commits.
        deadline = time.monotonic() + 10
        while (found := {told for _, told in _sessions(database)}) != expected and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    # A connection of ZODB's pool is used in each way in turn.
    for explicit in (True, False, True, False, True):
        manager = transaction.TransactionManager(explicit=explicit)
        connection = db.open(manager)
        manager.begin()
        connection.root()["number"] += 1
        getattr(manager, ending)()
        # If transactions begin by themselves, the next one has begun by now.
        expected = {"idle"} if explicit else {"idle", "idle in transaction"}
        assert states(expected) == expected
        connection.close()
        assert states({"idle"}) == {"idle"}


def test_a_session_to_commit_with_is_opened_ahead(database, caplog):
    caplog.set_level("DEBUG", "relstorage.database.sessions")
    ZODB.DB(database.open()).close()
    for read_only, expected, patience in ((False, 2, 20), (True, 1, 1)):
        db = ZODB.DB(database.open(dsn=_named(database), read_only=read_only))
        connection = db.open()
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and len(_sessions(database)) < 2:
            time.sleep(0.02)
        assert len(_sessions(database)) == expected
        connection.close()
        db.close()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and _sessions(database):
            time.sleep(0.02)
        assert _sessions(database) == []
    # It would say that something went wrong.
    assert "ahead" not in caplog.text


def test_a_read_on_a_session_that_was_ended_is_transient_and_the_next_transaction_reads(database):
    storage = database.open(dsn=_named(database), cache_local_mb=0)
    oids = [add(storage, number)[0] for number in range(3)]
    storage.poll_invalidations()
    storage.load(oids[0])
    assert _terminate(database)
    for _ in range(2):
        with pytest.raises(TransientError):
            storage.load(oids[1])
    storage.afterCompletion()
    storage.poll_invalidations()
    assert storage.load(oids[1])[0] == state(1)


def test_a_transaction_whose_session_was_ended_after_the_vote_is_not_there(database):
    storage = database.open(dsn=_named(database))
    oid, tid = add(storage, 1)
    described = voted(storage, (oid, tid, state(2)))
    assert _terminate(database)
    with pytest.raises(Disconnected):
        storage.tpc_finish(described)
    storage.tpc_abort(described)
    assert current(storage, oid) == (state(1), tid)
    assert change(storage, oid, tid, 2)


def test_a_session_that_was_ended_between_store_and_vote_is_replaced_unseen(database):
    storage = database.open(dsn=_named(database))
    oid, tid = add(storage, 1)
    described = meta()
    storage.tpc_begin(described)
    storage.store(oid, tid, state(2), "", described)
    assert _terminate(database)
    storage.tpc_vote(described)
    assert storage.tpc_finish(described) > tid


# --- order


def test_a_reader_that_polls_misses_no_commit_of_many_writers(database):
    writers, commits = 4, 40
    reader = database.open()
    reader.poll_invalidations()
    storages = [database.open() for _ in range(writers)]
    oids = [storages[0].new_oid() for _ in range(writers)]
    threads = []

    def write(storage, oid):
        tid = z64
        for number in range(commits):
            tid = commit(storage, (oid, tid, state(number)))

    for storage, oid in zip(storages, oids, strict=True):
        threads.append(in_thread(lambda storage=storage, oid=oid: write(storage, oid)))
    seen = dict.fromkeys(oids, (-1, z64))
    newest = z64
    states = {state(number): number for number in range(commits)}
    deadline = time.monotonic() + 60
    while min(number for number, _ in seen.values()) < commits - 1:
        assert time.monotonic() < deadline, seen
        changed = reader.poll_invalidations()
        assert reader.lastTransaction() >= newest
        for oid in oids:
            try:
                data, tid = reader.load(oid)
            except KeyError:
                continue
            # What changed was reported, nothing else did, and nobody goes back.
            assert (seen[oid][1] != tid) == (changed is None or oid in changed) or changed is None
            assert states[data] >= seen[oid][0]
            assert tid <= reader.lastTransaction()
            if seen[oid][1] != tid:
                assert tid > newest
            seen[oid] = states[data], tid
        newest = reader.lastTransaction()
    for each in threads:
        each.result(10)


_HOUR = """
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {hours} * 3600
time.time_ns = lambda: _time_ns() + {hours} * 3600 * 10**9
"""


@pytest.mark.parametrize("hours", (-1, 1))
def test_a_client_with_a_wrong_clock_changes_nothing(free, tmp_path, hours):
    storage = free.open()
    (tmp_path / "sitecustomize.py").write_text(_HOUR.format(hours=hours))
    program = f"""if True:
        import relstorage, time
        from relstorage.testing.records import add
        storage = relstorage.open("postgresql", **{free.options!r})
        print(time.time(), *(add(storage)[1].hex() for _ in range(2)))
        storage.close()
    """
    tids, before = [], time.time()
    for _ in range(2):
        tids.append(add(storage)[1].hex())
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), *filter(None, sys.path)))}
        said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert not said.returncode, said.stderr
        shown, *theirs = said.stdout.split()
        assert abs(float(shown) - before - hours * 3600) < 600
        tids += theirs
    assert tids == sorted(set(tids))
    now = relstorage.ids.seconds_at(int(tids[-1], 16))
    assert abs(now - time.time()) < 600


def test_a_pack_forgets_by_the_clock_of_the_server(free, monkeypatch):
    storage = free.open()
    root, gone = storage.new_oid(), storage.new_oid()
    commit(storage, (z64, z64, state("root")), (root, z64, state(1)), (gone, z64, state(2)))
    storage.pack(None, lambda data: [root])
    early = relstorage.packing.sweep.time.time
    monkeypatch.setattr(relstorage.packing.sweep.time, "time", lambda: early() + 30 * 24 * 3600)
    storage.pack(None, lambda data: [root])
    assert len(free.execute("SELECT 1 FROM rs_removed")) == 1
    assert len(free.execute("SELECT 1 FROM rs_commit")) == 1


# --- rights


@pytest.fixture
def role(new_postgres):
    """A server's (administrator, connection string) of a role that may create in one schema, and nothing else."""
    with new_postgres(settings={"fsync": False, "max_connections": 30}) as server:
        server.psql(
            """CREATE ROLE plain LOGIN PASSWORD 'plain' NOSUPERUSER NOCREATEDB NOCREATEROLE;
            CREATE ROLE looker LOGIN PASSWORD 'looker';
            REVOKE CREATE ON SCHEMA public FROM PUBLIC;
            REVOKE TEMPORARY ON DATABASE zodb FROM looker;
            CREATE SCHEMA ours;
            GRANT CREATE, USAGE ON SCHEMA ours TO plain;
            GRANT USAGE ON SCHEMA ours TO looker;"""
        )
        yield server, f"host=127.0.0.1 port={server.port} dbname=zodb user=plain password=plain"


def test_a_role_without_privileges_does_everything_and_one_that_may_only_select_reads(role, tmp_path, keep_history):
    server, dsn = role
    network = FlakyNetwork(dsn)
    blob_dir = tmp_path / "blobs"
    mode = {"keep_history": keep_history, "schema": "ours"}
    storage = relstorage.open("postgresql", dsn=network.dsn, blob_dir=str(blob_dir), shared_blob_dir=False, **mode)
    try:
        oid, tid = add(storage, 0)
        for asynchronous in ("off", "local", "on"):
            server.psql(f"ALTER ROLE plain SET synchronous_commit = {asynchronous}")
            other = relstorage.open("postgresql", dsn=dsn, **mode)
            tid = change(other, oid, tid, asynchronous)
            other.close()
        # A lost answer is asked for, and a process that is left is ended.
        for fault in (Fault(10, server_learns=False), Fault(100_000), Fault(1)):
            described = voted(storage, (oid, tid, state("next")))
            network.arm(fault)
            try:
                tid = storage.tpc_finish(described)
            except TransientError:
                storage.tpc_abort(described)
            network.disarm(fault)
        path = tmp_path / "blob"
        path.write_bytes(b"blob" * 1000)
        described = meta()
        storage.tpc_begin(described)
        blob = storage.new_oid()
        storage.storeBlob(blob, z64, state("blob"), str(path), "", described)
        for _ in range(12):
            storage.store(storage.new_oid(), z64, b"x" * 500_000, "", described)
        storage.tpc_vote(described)
        blob_tid = storage.tpc_finish(described)
        commit(storage, (z64, z64, state("root")))
        server.psql("GRANT SELECT ON ALL TABLES IN SCHEMA ours TO looker")
        looking = relstorage.open(
            "postgresql", dsn=dsn.replace("plain", "looker"), create_schema=False, read_only=True, **mode
        )
        looking.poll_invalidations()
        assert looking.load(oid)[1] == tid
        assert len(looking) == len(storage)
        looking.close()
        storage.pack(None, lambda data: [oid, blob])
        storage.poll_invalidations()
        with open(storage.loadBlob(blob, blob_tid), "rb") as file:
            assert file.read() == b"blob" * 1000
    finally:
        storage.close()
        network.close()


# --- a model


class Model:
    """What a database must show: every committed state, and which one each storage sees."""

    def __init__(self, keep_history):
        self.keep_history = keep_history
        #: oid -> [(tid, value or None)], the oldest first.
        self.revisions = {}
        self.tids = [z64]

    def at(self, oid, view):
        """Return (value, tid) as seen at a tid, None if there is nothing."""
        found = [each for each in self.revisions.get(oid, ()) if each[0] <= view]
        return None if not found or found[-1][1] is None else (found[-1][1], found[-1][0])

    def current(self, oid):
        return self.at(oid, b"\x7f" * 8)

    def base(self, oid, view=b"\x7f" * 8):
        """Return the tid that a change must name; with history, a deletion is a revision too."""
        found = [each for each in self.revisions.get(oid, ()) if each[0] <= view]
        return found[-1][0] if found and (found[-1][1] is not None or self.keep_history) else z64

    def commit(self, tid, changes):
        assert tid > self.tids[-1], "a tid went back"
        self.tids.append(tid)
        for oid, value in changes.items():
            self.revisions.setdefault(oid, []).append((tid, value))


def _load(storage, oid):
    try:
        return storage.load(oid)
    except KeyError:
        return None


@pytest.mark.parametrize("pooled", (False, True), ids=("sessions", "pooled"))
def test_random_interleavings_agree_with_a_model(database, pooled):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    storages = [database.open(transaction_pooling=pooled, cache_local_mb=chance.choice((0, 1))) for _ in range(2)]
    storages += [storages[0].new_instance(), storages[1].new_instance()]
    model = Model(database.keep_history)
    views = dict.fromkeys(storages, z64)
    oids = [storages[0].new_oid() for _ in range(8)]
    model.commit(commit(storages[0], *((oid, z64, state(0)) for oid in oids)), dict.fromkeys(oids, state(0)))
    for storage in storages:
        storage.poll_invalidations()
        views[storage] = model.tids[-1]
    counted = {}
    for number in range(250):
        storage = chance.choice(storages)
        what = chance.choice(("poll", "poll", "read", "read", "store", "store", "store", "delete", "undo"))
        counted[what] = counted.get(what, 0) + 1
        view = views[storage]
        if what == "poll":
            changed = storage.poll_invalidations()
            now = model.tids[-1]
            differing = {oid for oid in oids if model.at(oid, view) != model.at(oid, now)}
            assert storage.lastTransaction() == now
            views[storage] = now
            if changed is not None:
                assert differing <= set(changed)
        elif what == "read":
            for oid in oids:
                assert _load(storage, oid) == model.at(oid, view), (number, u64(oid))
        elif what in ("store", "delete"):
            chosen = chance.sample(oids, chance.randint(1, 3))
            required = [oid for oid in chance.sample(oids, 2) if oid not in chosen and model.at(oid, view)]
            deleting = what == "delete"
            if deleting:
                chosen = [oid for oid in chosen[:1] if model.at(oid, view)]
            if not chosen:
                continue
            bases = {oid: model.base(oid, view) for oid in chosen}
            new = {oid: None if deleting else state(number) for oid in chosen}
            now = {oid: model.base(oid) for oid in (*chosen, *required)}
            fits = all(bases[oid] == now[oid] for oid in chosen)
            fits = fits and all(model.at(oid, view)[1] == now[oid] for oid in required)
            described = meta()
            storage.tpc_begin(described)
            try:
                for oid in chosen:
                    if deleting:
                        storage.deleteObject(oid, bases[oid], described)
                    else:
                        storage.store(oid, bases[oid], new[oid], "", described)
                for oid in required:
                    storage.checkCurrentSerialInTransaction(oid, model.at(oid, view)[1], described)
                storage.tpc_vote(described)
                if chance.random() < 0.1:
                    storage.tpc_abort(described)
                    continue
                tid = storage.tpc_finish(described)
            except ConflictError:
                storage.tpc_abort(described)
                assert not fits, (number, chosen, required)
            else:
                assert fits, (number, chosen, required)
                model.commit(tid, new)
            storage.poll_invalidations()
            views[storage] = model.tids[-1]
        elif what == "undo" and database.keep_history:
            log = storage.undoLog(0, 3)
            if not log:
                continue
            entry = chance.choice(log)
            undone = next((tid for tid in reversed(model.tids) if _is(entry, tid)), None)
            try:
                tid = undo(storage, entry["id"])
            except (UndoError, ConflictError):
                tid = None
                touched = [revisions for revisions in model.revisions.values() if undone in dict(revisions)]
                assert any(revisions[-1][0] != undone for revisions in touched), (number, "an undo was refused")
            if tid is not None:
                assert undone is not None
                changes = {}
                for oid, revisions in model.revisions.items():
                    position = [each[0] for each in revisions].index(undone) if undone in dict(revisions) else None
                    if position is not None:
                        changes[oid] = revisions[position - 1][1] if position else None
                assert changes
                model.commit(tid, changes)
            storage.poll_invalidations()
            views[storage] = model.tids[-1]
    print(counted)
    for storage in storages:
        storage.poll_invalidations()
        for oid in oids:
            assert _load(storage, oid) == model.current(oid)
    for storage in storages[2:]:
        storage.release()


def _is(entry, tid):
    return decodebytes(entry["id"] + b"\n").startswith(tid) or entry["id"] == tid


# --- the driver


def test_long_streams_can_follow_each_other_on_one_session(database):
    numbers = Statement("numbers", "SELECT n::bigint FROM generate_series(1, 60000) n", (), ("n",))
    with database.open().database.store_sessions.session() as session:
        for _ in range(3):
            session.begin_snapshot()
            assert sum(1 for _ in session.stream(numbers)) == 60000
            assert session.row(numbers) == (1,)
            session.rollback()


def test_a_conflict_may_be_resolved_to_more_than_one_piece_holds(database, monkeypatch):
    monkeypatch.setattr(postgres_commits, "PIECE", 600)
    monkeypatch.setattr(Counter, "_p_resolveConflict", lambda self, old, saved, new: {**new, "filler": "x" * 700})
    connection, other = database.connection(database.zodb()), database.connection(database.zodb())
    grow(connection, one=Counter(), two=Counter())
    other.sync()
    for each, value in ((connection, 1), (other, 2)):
        each.root()["one"].value = each.root()["two"].value = value
    other.transaction_manager.commit()
    connection.transaction_manager.commit()
    for name in ("one", "two"):
        assert (connection.root()[name].value, len(connection.root()[name].filler)) == (1, 700)
