"""Several servers: files that list them, standbys that are read from and lag behind, and one that takes over."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from types import SimpleNamespace

import postgresql_counting
import psycopg
import pytest
from postgresql_counting import COUNTER
from transaction.interfaces import TransientError
from ZODB.POSException import POSKeyError
from ZODB.utils import p64, u64, z64

import relstorage
from relstorage.errors import (
    ConfigurationError,
    Disconnected,
    ServerReplaced,
    SnapshotLost,
    StaleConnectionError,
)
from relstorage.testing.records import commit, meta
from relstorage_postgresql import dsn
from relstorage_postgresql.drivers.settings import SessionSettings
from relstorage_postgresql.servers import ServerList, Servers, read_servers

# --- files that list servers

BASE = {"host": "here", "hostaddr": "10.0.0.1", "port": "1,2", "dbname": "zodb", "password": "secret"}


@pytest.fixture
def listing(tmp_path):
    """Write a file of servers and return its path."""
    path = tmp_path / "servers"

    def write(text):
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("there", {"host": "there"}),
        ("there:5433", {"host": "there", "port": "5433"}),
        ("[::1]:5433", {"host": "::1", "port": "5433"}),
        ("[::1]", {"host": "::1"}),
        ("/run/pg:5433", {"host": "/run/pg", "port": "5433"}),
        ("host=there port=5433 dbname=other", {"host": "there", "port": "5433", "dbname": "other"}),
        ("postgresql://u:p@there:5433/other", {
            "user": "u", "password": "p", "host": "there", "port": "5433", "dbname": "other"}),
        ("hostaddr=10.0.0.2", {"hostaddr": "10.0.0.2"}),
        ("service=backup", {"service": "backup"}),
    ],
)  # fmt: skip
def test_a_line_changes_what_the_dsn_says(listing, line, expected):
    (server,) = read_servers(listing(f"\n  # a comment\n\t{line}  \n"), BASE)
    assert server.parameters == {"dbname": "zodb", "password": "secret", **expected}


def test_a_line_that_names_no_server_keeps_the_one_of_the_dsn(listing):
    (server,) = read_servers(listing("user=other"), BASE)
    assert server.parameters == {**BASE, "user": "other"}


def test_a_host_alone_keeps_the_port_of_the_dsn(listing):
    (server,) = read_servers(listing("there"), {"host": "here", "port": "5433"})
    assert server.parameters == {"host": "there", "port": "5433"}


def test_the_kind_of_server_that_writers_want_is_not_wanted_for_reading(listing):
    base = {"target_session_attrs": "read-write", "dbname": "zodb"}
    assert read_servers(listing("there"), base)[0].parameters["target_session_attrs"] == "read-write"
    (server,) = read_servers(listing("there"), base, reading=True)
    assert server.parameters == {"host": "there", "dbname": "zodb"}


@pytest.mark.parametrize("line", ["host=x password='qzx", "::1 qzx", "qzx:port", "postgresql://u:qzx@h:x", "a b qzx"])
def test_an_error_names_file_and_line_and_shows_no_password(listing, line):
    path = listing(f"there\n\n{line}\n")
    with pytest.raises(ConfigurationError, match=r"servers, line 3: ") as refused:
        read_servers(path, {"password": "qzx"})
    assert "qzx" not in f"{refused.value}{refused.value.__cause__}"


def test_a_file_must_be_there_and_list_a_server(listing, tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere, which lists .* No such file"):
        read_servers(str(tmp_path / "nowhere"), {})
    with pytest.raises(ConfigurationError, match="servers lists no database server"):
        read_servers(listing("# none\n"), {})


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def hosts(servers):
    return [server.parameters["host"] for server in servers]


@pytest.fixture
def clock():
    return Clock()


def test_the_server_that_worked_last_comes_first_until_the_time_is_over(listing, clock):
    servers = ServerList(listing("a\nb\nc"), {}, 60, True, clock)
    a, b, c = servers.in_order()
    servers.works(b)
    clock.now += 59
    assert servers.in_order() == [b, a, c]
    assert not servers.is_outdated(b)
    clock.now += 1
    assert servers.is_outdated(b)
    assert servers.in_order() == [a, b, c]
    # The first was tried in vain.
    servers.works(b)
    assert not servers.is_outdated(b)
    assert servers.in_order() == [b, a, c]
    # Another session found it again.
    servers.works(a)
    assert servers.is_outdated(b)
    assert not servers.is_outdated(a)


def test_without_a_time_the_first_server_is_not_tried_again(listing, clock):
    servers = ServerList(listing("a\nb"), {}, 0, True, clock)
    a, b = servers.in_order()
    servers.works(b)
    clock.now += 1e9
    assert servers.in_order() == [b, a]


def test_a_file_that_changes_is_read_again(listing, clock, caplog):
    servers = ServerList(listing("a\nb"), {}, 60, True, clock)
    a, b = servers.in_order()
    servers.works(b)
    listing("c\nb\nlonger")
    clock.now += 2
    assert hosts(servers.in_order()) == ["c", "b", "longer"]
    assert servers.is_outdated(a)
    for wrong in ("a b c d e", ""):
        listing(wrong)
        clock.now += 2
        assert hosts(servers.in_order()) == ["c", "b", "longer"]
    os.unlink(servers._path)
    clock.now += 2
    assert hosts(servers.in_order()) == ["c", "b", "longer"]
    assert len([each for each in caplog.records if "stay as they were" in each.message]) == 3


class FakeSession:
    def __init__(self, settings, read_only):
        self.settings = settings
        self.closed = False
        self._read_only = read_only

    def script(self, text):
        return [("primary 1 2 3", self._read_only)]

    def remember_incarnation(self, told):
        self.told = told

    def close(self):
        self.closed = True


class FakeDriver:
    """Hosts named ``down…`` cannot be reached, those named ``standby…`` accept no writes."""

    def __init__(self):
        self.sessions = []

    def open_session(self, settings, role):
        host = settings.parameters["host"]
        if host.startswith("down"):
            raise Disconnected(f"{host} is down.")
        self.sessions.append(FakeSession(settings, "on" if host.startswith("standby") else "off"))
        return self.sessions[-1]


def test_what_writes_passes_by_what_is_down_and_what_is_a_standby(listing, clock):
    driver = FakeDriver()
    listed = ServerList(listing("down\nstandby\nprimary"), {}, 60, True, clock)
    servers = Servers(driver, SessionSettings({}, "name"), listed)
    for role in ("store", "pack", "load"):
        session = servers.open_session(role)
        assert session.settings.name == "postgresql:primary"
        assert session.told == "primary 1 2 3"
    assert [each.closed for each in driver.sessions] == [True, False, False, False]


def test_what_reads_takes_the_first_server_of_its_own_list_that_answers(listing, clock, tmp_path):
    driver = FakeDriver()
    to_read = ServerList(listing("down\nstandby\nprimary"), {}, 60, False, clock)
    servers = Servers(driver, SessionSettings({"host": "the-dsn"}, "name"), None, to_read)
    assert servers.open_session("load").settings.name == "postgresql:standby"
    assert servers.open_session("store").settings.parameters["host"] == "the-dsn"
    assert not servers.are_alike("load", "store")
    assert servers.are_alike("pack", "store")


def test_if_no_server_will_do_a_transient_error_says_why(listing, clock):
    listed = ServerList(listing("down1\nstandby"), {}, 60, True, clock)
    servers = Servers(FakeDriver(), SessionSettings({}, "name"), listed)
    with pytest.raises(Disconnected, match="none .* accepts writes. down1 is down. postgresql:standby is a st"):
        servers.open_session("store")


# --- a standby that is read from

OBJECTS = range(2, 6)


def value(storage, oid=COUNTER):
    return int(storage.load(p64(oid))[0])


def in_the_end(call):
    """Call as an application does that runs its transaction again."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return call()
        except TransientError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def put(storage, oid, number):
    """Give an object a value, whatever it has."""
    while True:
        try:
            storage.poll_invalidations()
            try:
                base = storage.load(p64(oid))[1]
            except POSKeyError:
                base = z64
            return u64(commit(storage, (p64(oid), base, b"%d" % number)))
        except TransientError:
            time.sleep(0.05)
        finally:
            storage.afterCompletion()


class Pair:
    """A primary and a standby, whose replay can be held."""

    def __init__(self, primary, standby, directory):
        self.primary = primary
        self.standby = standby
        self.directory = directory
        self._numbers = iter(range(1000))

    def options(self, **more):
        """Options of a new database that reads from the standby."""
        schema = f"test_{next(self._numbers)}"
        self.primary.psql(f"CREATE SCHEMA {schema} AUTHORIZATION zodb")
        path = self.directory / "standby"
        path.write_text(self.standby.dsn())
        return {"dsn": self.primary.dsn(), "schema": schema, "ro_replica_conf": str(path), **more}

    def detach(self):
        """Let the standby miss what is committed from now on."""
        self.catch_up()
        self.standby.set(primary_conninfo="")
        deadline = time.monotonic() + 10
        while self.standby.psql("SELECT count(*) FROM pg_stat_wal_receiver") != "0":
            assert time.monotonic() < deadline

    def fail_over(self):
        self.primary.kill()
        self.standby.promote()

    def catch_up(self):
        self.standby.wait_for(self.primary)

    def hold(self):
        self.standby.psql("SELECT pg_wal_replay_pause()")
        deadline = time.monotonic() + 10
        while self.standby.psql("SELECT pg_is_wal_replay_paused()") != "t":
            assert time.monotonic() < deadline

    def go_on(self):
        self.standby.psql("SELECT pg_wal_replay_resume()")

    @contextmanager
    def held(self):
        self.catch_up()
        self.hold()
        try:
            yield
        finally:
            self.go_on()


@pytest.fixture(scope="module")
def pair(new_postgres, tmp_path_factory):
    with new_postgres() as primary, primary.make_standby() as standby:
        yield Pair(primary, standby, tmp_path_factory.mktemp("pair"))


@pytest.fixture(params=(False, True), ids=("free", "history"))
def keep_history(request):
    return request.param


@pytest.fixture
def open_pair(pair, keep_history):
    """Open a database whose load connections are on the standby, and a storage that knows the primary only."""
    opened = []

    def open_(**more):
        options = pair.options(keep_history=keep_history, **more)
        writer = relstorage.open("postgresql", **{**options, "ro_replica_conf": None})
        opened.append(writer)
        put(writer, COUNTER, 0)
        pair.catch_up()
        reader = relstorage.open("postgresql", **options)
        opened.append(reader)
        return writer, reader

    yield open_
    pair.go_on()
    for each in opened:
        each.close()


def on_primary(storage):
    """Return another storage of the same process that reads from the primary."""
    instance = storage.new_instance()
    instance._reader._open_session = lambda: storage.database.adapter.open_session("store")
    return instance


def test_loads_go_to_the_standby_and_commits_to_the_primary(pair, open_pair):
    _, storage = open_pair()
    storage.poll_invalidations()
    assert storage._reader._session.may_lag
    assert storage._reader._session.settings.name == dsn.describe(dsn.parse(pair.standby.dsn()), "test_0")[:-6] + (
        f"{storage.database.adapter._servers._settings.schema}"
    )
    with storage.database.store_sessions.session() as session:
        assert session.script("SELECT pg_is_in_recovery()::text")[0][0] == "false"


def test_blobs_are_read_from_the_standby(pair, open_pair, tmp_path):
    _, storage = open_pair(blob_dir=str(tmp_path / "written"))
    content = os.urandom(1 << 20) * 3
    (tmp_path / "staged").write_bytes(content)
    described = meta()
    storage.tpc_begin(described)
    storage.storeBlob(p64(9), z64, b"blob", str(tmp_path / "staged"), "", described)
    storage.tpc_vote(described)
    tid = storage.tpc_finish(described)
    pair.catch_up()
    schema = storage.database.adapter._servers._settings.schema
    where = {"dsn": pair.primary.dsn(), "ro_replica_conf": str(pair.directory / "standby"), "schema": schema}
    mode = {"keep_history": storage.supportsUndo()}
    with closing(relstorage.open("postgresql", **where, **mode, blob_dir=str(tmp_path / "read"))) as other:
        other.poll_invalidations()
        assert other._reader._session.may_lag
        with open(other.loadBlob(p64(9), tid), "rb") as file:
            assert file.read() == content


def test_what_was_committed_is_waited_for_and_never_unseen(pair, open_pair):
    _, storage = open_pair()
    storage.poll_invalidations()
    with pair.held():
        base = storage.load(p64(COUNTER))[1]
        commit(storage, (p64(COUNTER), base, b"1"))
        with pytest.raises(StaleConnectionError) as stale:
            storage.poll_invalidations()
        assert isinstance(stale.value, TransientError)
        # Nor without a snapshot, nor the second time.
        with pytest.raises(StaleConnectionError):
            storage.load(p64(COUNTER))
        with pytest.raises(StaleConnectionError):
            storage.poll_invalidations()
    pair.catch_up()
    assert storage.poll_invalidations() == []
    assert value(storage) == 1


def test_who_never_polls_sees_its_own_commits_too(pair, open_pair):
    writer, storage = open_pair()
    base = storage.load(p64(COUNTER))[1]
    with pair.held():
        commit(storage, (p64(COUNTER), base, b"1"))
        with pytest.raises(StaleConnectionError):
            storage.load(p64(COUNTER))
    pair.catch_up()
    assert value(storage) == 1


def test_reading_may_go_back_where_the_options_want_it(pair, open_pair, caplog):
    _, storage = open_pair(revert_when_stale=True)
    storage.poll_invalidations()
    with pair.held():
        base = storage.load(p64(COUNTER))[1]
        tid = commit(storage, (p64(COUNTER), base, b"1"))
        assert storage.poll_invalidations() is None
        assert "goes back in time" in caplog.text
        assert value(storage) == 0
        assert storage.lastTransaction() < tid
    pair.catch_up()
    assert storage.poll_invalidations() == [p64(COUNTER)]
    assert value(storage) == 1


def test_a_change_between_two_polls_of_the_primary_is_told_at_the_standby(pair, open_pair):
    writer, storage = open_pair()
    primary = on_primary(storage)
    storage.poll_invalidations()
    primary.poll_invalidations()
    assert value(storage) == value(primary) == 0
    put(writer, COUNTER, 1)
    with pair.held():
        put(writer, COUNTER, 2)
        # Without history this tells of the last change only.
        assert primary.poll_invalidations() == [p64(COUNTER)]
        assert storage.poll_invalidations() == [p64(COUNTER)]
        assert value(storage) == 1
        assert value(primary) == 2
        assert storage.poll_invalidations() == []
    pair.catch_up()
    assert storage.poll_invalidations() == [p64(COUNTER)]
    assert value(storage) == 2


def test_a_standby_that_is_ahead_does_not_take_the_primarys_readers_with_it(pair, open_pair):
    # The standby replays a commit that the primary does not show yet, because another standby has not confirmed it.
    writer, storage = open_pair(early_lock_release=False)
    primary = on_primary(storage)
    storage.poll_invalidations()
    primary.poll_invalidations()
    assert value(primary) == 0
    pair.primary.set(synchronous_standby_names="nobody")
    time.sleep(0.2)
    committing = threading.Thread(target=put, args=(writer, COUNTER, 1))
    try:
        committing.start()
        deadline = time.monotonic() + 10
        while storage.poll_invalidations() != [p64(COUNTER)]:
            assert time.monotonic() < deadline
        assert value(storage) == 1
        assert primary.poll_invalidations() == []
        assert value(primary) == 0
    finally:
        pair.primary.set(synchronous_standby_names="")
        committing.join()
    assert primary.poll_invalidations() == [p64(COUNTER)]
    assert value(primary) == 1


def test_readers_of_both_servers_see_one_moment_each_through_one_cache(pair, open_pair):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    writer, storage = open_pair()
    #: (tid, oid, value) of every commit.
    log = [(put(writer, oid, 0), oid, 0) for oid in OBJECTS]
    pair.catch_up()
    readers = [SimpleNamespace(storage=make(), objects={}, view=0) for make in (
        storage.new_instance, storage.new_instance, lambda: on_primary(storage), lambda: on_primary(storage),
    )]  # fmt: skip
    held = False
    polled = 0
    for number in range(1, 150):
        step = chance.random()
        if step < 0.5:
            oid = chance.choice(OBJECTS)
            log.append((put(writer, oid, number), oid, number))
        elif step < 0.65:
            if held:
                pair.go_on()
                pair.catch_up()
            else:
                pair.catch_up()
                pair.hold()
            held = not held
        if chance.random() < 0.6:
            # Others commit more often than each reader polls.
            continue
        reader = chance.choice(readers)
        try:
            changed = reader.storage.poll_invalidations()
        except StaleConnectionError:
            continue
        polled += 1
        view = u64(reader.storage.lastTransaction())
        assert view >= reader.view
        reader.view = view
        if changed is None:
            reader.objects.clear()
        for oid in changed or ():
            reader.objects.pop(u64(oid), None)
        expected = {oid: number for tid, oid, number in log if tid <= view}
        for oid in chance.sample(OBJECTS, 3):
            if oid not in reader.objects:
                reader.objects[oid] = value(reader.storage, oid)
        # What ZODB keeps, as the polls have told it.
        assert reader.objects == {oid: expected[oid] for oid in reader.objects}
    assert polled > 20
    assert storage.cache.statistics().hits


@pytest.mark.parametrize("asking", (True, False), ids=("asking", "idle"))
def test_a_snapshot_that_replay_removes_is_a_transient_error(pair, open_pair, asking):
    writer, storage = open_pair()
    pair.standby.set(max_standby_streaming_delay=0)
    time.sleep(0.1)
    try:
        storage.poll_invalidations()
        assert value(storage) == 0
        session = storage._reader._session
        with ThreadPoolExecutor(1) as thread:
            question = thread.submit(session.script, "SELECT pg_sleep(5)::text") if asking else None
            put(writer, COUNTER, 1)
            table = "current_object" if storage.supportsUndo() else "object_state"
            pair.primary.psql(f"VACUUM {writer.database.adapter._servers._settings.schema}.{table}")
            pair.catch_up()
            if question is not None:
                with pytest.raises(SnapshotLost):
                    question.result()
        for oid in (3, 4):
            with pytest.raises(TransientError):
                storage.load(p64(oid))
        storage.afterCompletion()
    finally:
        pair.standby.set(max_standby_streaming_delay="30s")
    assert in_the_end(storage.poll_invalidations) == [p64(COUNTER)]
    assert value(storage) == 1


def test_reading_returns_to_the_first_server_after_the_time(pair, open_pair, listing):
    path = listing(f"127.0.0.1:{pair.standby.port}\n127.0.0.1:{pair.primary.port}\n")
    _, storage = open_pair(ro_replica_conf=path, replica_timeout=2)
    storage.poll_invalidations()
    assert storage._reader._session.may_lag
    pair.standby.stop()
    try:
        in_the_end(storage.poll_invalidations)
        assert not storage._reader._session.may_lag
        assert value(storage) == 0
    finally:
        pair.standby.start()
    deadline = time.monotonic() + 10
    while not storage._reader._session.may_lag:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        in_the_end(storage.poll_invalidations)
    assert value(storage) == 0


def test_a_storage_opens_and_reads_without_a_primary(pair, open_pair, listing):
    _, storage = open_pair()
    options = {"schema": storage.database.adapter._servers._settings.schema, "keep_history": storage.supportsUndo()}
    where = {"replica_conf": listing("127.0.0.1:1"), "ro_replica_conf": str(pair.directory / "standby")}
    with closing(
        relstorage.open("postgresql", dsn=pair.primary.dsn(), create_schema=False, **where, **options)
    ) as reader:
        reader.poll_invalidations()
        assert value(reader) == 0
        with pytest.raises(Disconnected, match="none of the servers accepts writes"):
            put_once(reader)


def put_once(storage):
    described = meta()
    storage.tpc_begin(described)
    try:
        storage.store(p64(COUNTER), storage.load(p64(COUNTER))[1], b"1", "", described)
        storage.tpc_vote(described)
    finally:
        storage.tpc_abort(described)


def test_without_a_list_a_standby_that_the_dsn_leads_to_is_noticed(pair, open_pair):
    writer, storage = open_pair()
    options = {"schema": storage.database.adapter._servers._settings.schema, "keep_history": storage.supportsUndo()}
    with closing(relstorage.open("postgresql", dsn=pair.standby.dsn(), create_schema=False, **options)) as reader:
        reader.poll_invalidations()
        assert reader._reader._session.may_lag
        assert value(reader) == 0


def test_libpq_chooses_among_the_hosts_of_one_dsn(pair, open_pair):
    _, storage = open_pair()
    address = pair.primary.address()
    both = f"{pair.standby.port},{pair.primary.port}"
    text = f"host=127.0.0.1,127.0.0.1 port={both} user={address.user} password={address.password} dbname=zodb"
    options = {"schema": storage.database.adapter._servers._settings.schema, "keep_history": storage.supportsUndo()}
    with closing(relstorage.open("postgresql", dsn=f"{text} target_session_attrs=read-write", **options)) as writer:
        put(writer, COUNTER, 5)
        writer.poll_invalidations()
        assert value(writer) == 5


# --- a standby that takes over


class Counting:
    """A process that counts, and what it said."""

    def __init__(self, options):
        self.lines = []
        self._process = subprocess.Popen(
            [sys.executable, postgresql_counting.__file__, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self.lines.append(line.split())

    def said(self, word):
        return [line for line in self.lines if line[0] == word]

    def wait_for(self, count, seconds=30):
        """Wait until so many more increments are acknowledged."""
        wanted = len(self.said("yes")) + count
        deadline = time.monotonic() + seconds
        while len(self.said("yes")) < wanted:
            assert time.monotonic() < deadline and self._process.poll() is None, self.lines[-5:]
            time.sleep(0.01)

    def end(self):
        with closing(self._process.stdout), closing(self._process.stdin):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            self._process.wait(30)
            self._reader.join()

    def kill(self):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def test_writers_go_on_at_the_standby_and_nothing_acknowledged_is_lost(new_postgres, tmp_path):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    with new_postgres() as primary, primary.make_standby(synchronous=True) as standby:
        path = tmp_path / "servers"
        path.write_text(f"{primary.dsn()}\n{standby.dsn()}\n")
        options = {"replica_conf": str(path), "keep_history": False, "commit_lock_timeout": 20}
        with closing(relstorage.open("postgresql", **options)) as storage:
            put(storage, COUNTER, 0)
        workers = [Counting(options) for _ in range(3)]
        try:
            for each in workers:
                each.wait_for(5)
            primary.kill()
            time.sleep(chance.uniform(0, 0.5))
            standby.promote()
            for each in workers:
                each.wait_for(5)
            for each in workers:
                each.end()
        finally:
            for each in workers:
                each.kill()
        with closing(relstorage.open("postgresql", **options)) as storage:
            storage.poll_invalidations()
            counted = value(storage)
    assert not [line for each in workers for line in each.said("error")]
    assert not [line for each in workers for line in each.said("unknown")]
    # Each value was acknowledged once, with a larger tid than the one before.
    acknowledged = sorted((int(number), int(tid)) for each in workers for _, tid, number in each.said("yes"))
    assert [number for number, _ in acknowledged] == list(range(1, counted + 1))
    tids = [tid for _, tid in acknowledged]
    assert tids == sorted(set(tids))


@pytest.fixture
def doomed(new_postgres, tmp_path):
    """A primary that a test kills, and its standby."""
    with new_postgres() as primary, primary.make_standby() as standby:
        yield Pair(primary, standby, tmp_path)


@pytest.mark.parametrize("from_standby", (False, True), ids=("reading-from-the-primary", "reading-from-the-standby"))
def test_what_the_standby_never_got_is_forgotten_everywhere(doomed, listing, from_standby):
    options = doomed.options(replica_conf=listing(f"{doomed.primary.dsn()}\n{doomed.standby.dsn()}\n"))
    if not from_standby:
        options["ro_replica_conf"] = None
    with closing(relstorage.open("postgresql", **options)) as storage:
        reader, began = storage.new_instance(), storage.new_instance()
        doomed.catch_up()
        kept = put(storage, COUNTER, 1)
        put(storage, 2, 1)
        doomed.catch_up()
        reader.poll_invalidations()
        assert value(reader) == 1
        base = reader.load(p64(COUNTER))[1]
        doomed.detach()
        lost = commit(reader, (p64(COUNTER), base, b"2"))
        if not from_standby:
            for each in (reader, began):
                each.poll_invalidations()
                assert value(each) == 2
        else:
            began.poll_invalidations()
        doomed.fail_over()
        # It goes on in its snapshot as long as it can, and is not committed.
        described = meta()
        began.tpc_begin(described)
        began.store(p64(2), p64(kept + 1), b"3", "", described)
        with pytest.raises(ServerReplaced):
            began.tpc_vote(described)
        began.tpc_abort(described)
        assert in_the_end(reader.poll_invalidations) is None
        assert value(reader) == 1
        assert reader.lastTransaction() < lost
        assert in_the_end(began.poll_invalidations) in ([], None)
        # Nor does what was cached of it come back, once the view is newer than it.
        later = put(storage, 3, 1)
        assert later > u64(lost)
        in_the_end(reader.poll_invalidations)
        assert u64(reader.lastTransaction()) == later
        assert value(reader) == 1
        assert reader.load(p64(COUNTER))[1] != lost
        reader.release()
        began.release()


@pytest.mark.parametrize("crash", ("server", "process"))
def test_a_commit_that_a_crash_has_undone_is_not_served(new_postgres, crash):
    # It was visible already, and the server crashes before the log is written. With one process of it all others end.
    with new_postgres(settings={"wal_writer_delay": "10s", "autovacuum": False}) as server:
        options = {"dsn": server.dsn(), "keep_history": False}
        with closing(relstorage.open("postgresql", **options)) as storage:
            put(storage, COUNTER, 1)
            tid = put(storage, 2, 1)
            began, reader = storage.new_instance(), storage.new_instance()
            reader.poll_invalidations()
            with psycopg.connect(server.dsn(), autocommit=True) as other:
                other.execute("SET synchronous_commit = off")
                other.execute("UPDATE object_state SET tid = %s, state = '2' WHERE zoid = 1", [tid + 1])
                for each in (began, reader):
                    each.poll_invalidations()
                    assert value(each) == 2
                if crash == "server":
                    server.kill()
                    server.start()
                else:
                    os.kill(other.info.backend_pid, signal.SIGKILL)
                    deadline = time.monotonic() + 30
                    while server.log.count("ready to accept connections") < 2:
                        assert time.monotonic() < deadline
                        time.sleep(0.05)
            described = meta()
            began.tpc_begin(described)
            began.store(p64(2), p64(tid), b"3", "", described)
            with pytest.raises(TransientError):
                began.tpc_vote(described)
            began.tpc_abort(described)
            assert in_the_end(reader.poll_invalidations) is None
            assert value(reader) == 1
            assert value(reader, 2) == 1
            later = put(storage, 3, 1)
            assert reader.poll_invalidations() == [p64(3)]
            assert u64(reader.lastTransaction()) == later
            assert value(reader) == 1
            # What began before the crash is told that everything may have changed, even if it has read meanwhile.
            began.afterCompletion()
            assert in_the_end(lambda: value(began)) == 1
            assert in_the_end(began.poll_invalidations) is None
            assert value(began) == 1
            reader.release()
            began.release()


def test_after_a_restart_nothing_that_was_read_is_missing(new_postgres):
    with new_postgres() as server, closing(relstorage.open("postgresql", dsn=server.dsn())) as storage:
        tids = [put(storage, oid, oid) for oid in OBJECTS]
        storage.poll_invalidations()
        server.restart("fast")
        in_the_end(storage.poll_invalidations)
        assert {oid: value(storage, oid) for oid in OBJECTS} == {oid: oid for oid in OBJECTS}
        assert u64(storage.lastTransaction()) == tids[-1]
        assert put(storage, COUNTER, 1) > tids[-1]


def test_a_commit_whose_answer_is_lost_is_asked_for_until_another_server_can_tell(doomed, listing):
    options = doomed.options(
        replica_conf=listing(f"{doomed.primary.dsn()}\n{doomed.standby.dsn()}\n"), ro_replica_conf=None
    )
    with closing(relstorage.open("postgresql", **options)) as storage:
        put(storage, COUNTER, 1)
        doomed.catch_up()
        storage.poll_invalidations()
        base = storage.load(p64(COUNTER))[1]
        described = meta()
        storage.tpc_begin(described)
        storage.store(p64(COUNTER), base, b"2", "", described)
        storage.tpc_vote(described)
        doomed.primary.kill()
        promoting = threading.Timer(1, doomed.standby.promote)
        promoting.start()
        try:
            # Neither a permanent error nor one that leaves the outcome open.
            with pytest.raises(Disconnected):
                storage.tpc_finish(described)
        finally:
            promoting.join()
        storage.tpc_abort(described)
        assert in_the_end(storage.poll_invalidations) is None
        assert value(storage) == 1
        assert put(storage, COUNTER, 2)
