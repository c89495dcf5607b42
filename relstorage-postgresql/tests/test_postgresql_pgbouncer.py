"""PostgreSQL behind pgbouncer, whose clients share the server's connections: in turns of a session or a transaction.

A part of the conformance suite runs through it. In transaction mode the tables are in a schema that only the option
names, and there are fewer connections to the server than clients have.
"""

from __future__ import annotations

# ruff: noqa: F811 (a fixture and the parameter that asks for it have one name)
import itertools
import os

import psycopg
import pytest
from postgresql_drivers import DRIVERS, usable_driver
from postgresql_target import Postgres
from psycopg import sql
from psycopg.conninfo import make_conninfo
from ZODB.utils import p64, z64

import relstorage
from relstorage.errors import LayoutError
from relstorage.testing import (  # noqa: F401  tests and fixtures are found by their names
    DatabaseUnderTest,
    TestBlobs,
    TestConflicts,
    TestDeletion,
    TestNewOids,
    TestUndo,
    database,
    free,
    known_gaps,
    own_transaction,
    preserving,
    pytest_generate_tests,
    test_a_pack_removes_what_cannot_be_reached,
    test_a_second_pack_works_after_every_object_was_modified,
    test_a_transaction_after_the_packs_time_can_be_undone,
    workers,
)
from relstorage.testing.packing import site  # noqa: F401
from relstorage.testing.records import Counter, add, change, commit, grow, meta, newest_undo_id, state, undo

_numbers = itertools.count(1)


class InTurnsOfATransaction(Postgres):
    """Each test has a schema; connections come from pgbouncer in transaction mode."""

    def __init__(self, bouncer, direct):
        self.bouncer = bouncer
        self.address = direct

    def new_database(self, directory):
        made = super().new_database(directory)
        return {**made, "dsn": self.bouncer.dsn(), "transaction_pooling": True}


class InTurnsOfASession(Postgres):
    """Each test has a database: pgbouncer keeps no search_path that a client asks for."""

    def __init__(self, bouncer, direct):
        self.bouncer = bouncer
        self.address = direct

    def new_database(self, directory):
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return {"dsn": self.bouncer.dsn(name)}

    def _direct(self, options):
        return make_conninfo(self.address, dbname=psycopg.conninfo.conninfo_to_dict(options["dsn"])["dbname"])

    def remove_database(self, options):
        name = psycopg.conninfo.conninfo_to_dict(options["dsn"])["dbname"]
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def connect(self, options):
        return psycopg.connect(self._direct(options))


class _Modes(Postgres):
    """Only tells the suite which drivers there are; the fixture ``target`` gives the target."""


TARGET = _Modes()


@pytest.fixture(scope="module")
def target(postgres_address, new_pgbouncer):
    with new_pgbouncer(postgres_address, "transaction", {"max_client_conn": 200}) as bouncer:
        yield InTurnsOfATransaction(bouncer, postgres_address)


@pytest.fixture(scope="module")
def narrow(postgres_address, new_pgbouncer):
    """A pgbouncer in transaction mode with two connections to the server."""
    with new_pgbouncer(postgres_address, "transaction", {"default_pool_size": 2, "max_client_conn": 100}) as bouncer:
        yield InTurnsOfATransaction(bouncer, postgres_address)


@pytest.mark.parametrize("job, name", [("count", "counter"), ("count_without_merging", "number")])
def test_processes_behind_it_lose_no_update(database, workers, job, name):
    connection = database.connection(database.zodb())
    grow(connection, counter=Counter(), number=0)
    for each in workers(database, 3, job, times=10):
        each.finish()
    connection.sync()
    found = connection.root()[name]
    assert (found.value if name == "counter" else found) == 30


@pytest.mark.parametrize("each_driver", DRIVERS)
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_every_driver_does_everything_in_both_modes(
    postgres_address, new_pgbouncer, tmp_path, keep_history, mode, each_driver, missing
):
    usable_driver(each_driver, missing)
    target_of = {"session": InTurnsOfASession, "transaction": InTurnsOfATransaction}[mode]
    with new_pgbouncer(postgres_address, mode, {"default_pool_size": 40, "max_client_conn": 100}) as bouncer:
        made = DatabaseUnderTest(target_of(bouncer, postgres_address), each_driver, keep_history, tmp_path)
        try:
            storage, other = made.open(), made.open()
            oid, tid = add(storage, 1)
            for number in range(3):
                tid = change(storage, oid, tid, number)
                other.poll_invalidations()
                assert other.load(oid) == (state(number), tid)
                other.afterCompletion()
            if keep_history:
                undo(storage, newest_undo_id(storage))
                other.poll_invalidations()
                assert other.load(oid)[0] == state(1)
            commit(storage, (z64, z64, state("root")))
            storage.pack(None, lambda data: [oid])
            assert len(storage) == 2
        finally:
            made.close()


def test_many_clients_share_two_connections_and_leave_nothing_behind(narrow, tmp_path, keep_history):
    made = DatabaseUnderTest(narrow, "psycopg", keep_history, tmp_path)
    try:
        storages = [made.open() for _ in range(6)]
        oids = [storage.new_oid() for storage in storages]
        tids = [commit(storage, (oid, z64, state(0))) for storage, oid in zip(storages, oids, strict=True)]
        assert len(set(oids)) == 6
        for turn in range(5):
            for number, storage in enumerate(storages):
                storage.poll_invalidations()
                assert storage.load(oids[number - 1])[1] == tids[number - 1]
                storage.afterCompletion()
                tids[number] = change(storage, oids[number], tids[number], turn)
        with psycopg.connect(narrow.bouncer.dsn(), autocommit=True, prepare_threshold=None) as connection:
            for _ in range(4):
                shown = connection.execute(
                    """SELECT (SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql),
                    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
                    (SELECT count(*) FROM pg_class WHERE relpersistence = 't'),
                    current_setting('lock_timeout'), current_setting('synchronous_commit'),
                    current_setting('search_path')
                    """
                ).fetchone()
                assert shown == (0, 0, 0, "0", "on", '"$user", public')
    finally:
        made.close()


def test_a_large_transaction_passes(narrow, tmp_path):
    made = DatabaseUnderTest(narrow, "psycopg", False, tmp_path)
    try:
        storage = made.open()
        described = meta()
        storage.tpc_begin(described)
        for number in range(1, 61):
            storage.store(p64(number), z64, b"x" * 200_000, "", described)
        storage.tpc_vote(described)
        tid = storage.tpc_finish(described)
        storage.poll_invalidations()
        assert storage.load(p64(60)) == (b"x" * 200_000, tid)
    finally:
        made.close()


def test_a_schema_that_a_pooler_forgot_is_noticed(new_pgbouncer, postgres_address, tmp_path):
    target = InTurnsOfATransaction(None, postgres_address)
    options = Postgres.new_database(target, tmp_path)
    try:
        with (
            new_pgbouncer(postgres_address, "session", {"ignore_startup_parameters": "options"}) as bouncer,
            pytest.raises(LayoutError, match="transaction-pooling"),
        ):
            relstorage.open("postgresql", **{**options, "dsn": bouncer.dsn(), "keep_history": False})
    finally:
        target.remove_database(options)
