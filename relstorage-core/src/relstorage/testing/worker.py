"""What the other processes of a test do: ``python -m relstorage.testing.worker <job> <arguments as JSON>``.

A job gets a function that opens a storage, and talks to the test in lines: what it prints is flushed at once, and where
it must wait it reads a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import transaction
import ZODB
from transaction.interfaces import TransientError
from ZODB.Connection import Connection
from ZODB.utils import u64, z64

import relstorage
from relstorage.testing.records import Node, meta, state


def say(*words: Any) -> None:
    """Print a line that the test reads at once."""
    print(*words, flush=True)


def wait() -> None:
    """Wait until the test sends a line."""
    sys.stdin.readline()


def open_database(open_storage: Callable[[], Any]) -> ZODB.DB:
    """Open a database that others make at the same moment: who comes second may have to try again."""
    storage = open_storage()
    while True:
        try:
            return ZODB.DB(storage)
        except TransientError:
            continue


def until_committed(db: ZODB.DB, work: Callable[[Connection], None]) -> None:
    """Do some work in a transaction, and again until it does not conflict.

    ``DB.transaction`` leaves the connection open when the commit fails, in a snapshot that nothing ends.
    """
    while True:
        manager = transaction.TransactionManager(explicit=True)
        with closing(db.open(manager)) as connection:
            try:
                manager.begin()
                work(connection)
                manager.commit()
                return
            except TransientError:
                manager.abort()


def add_to_root(open_storage: Callable[[], Any], count: int) -> None:
    """Open the database, which may still be empty, and put objects into its root; say each name once it is
    committed."""
    db = open_database(open_storage)
    for number in range(count):
        name = f"{os.getpid()}-{number}"
        until_committed(db, partial(add_node, name=name))
        say(name)
    db.close()


def add_node(connection: Connection, name: str) -> None:
    connection.root()[name] = Node(name)


def count(open_storage: Callable[[], Any], times: int) -> None:
    """Increment the counter in the root, which conflicts with all the others that do it."""
    db = ZODB.DB(open_storage())
    for _ in range(times):
        until_committed(db, increment_counter)
    say(times)
    db.close()


def increment_counter(connection: Connection) -> None:
    connection.root.counter.value += 1


def count_without_merging(open_storage: Callable[[], Any], times: int) -> None:
    """Increment a plain number in the root; whoever conflicts tries again."""
    db = ZODB.DB(open_storage())
    for _ in range(times):
        until_committed(db, increment_number)
    say(times)
    db.close()


def increment_number(connection: Connection) -> None:
    connection.root.number += 1


def commit_forever(open_storage: Callable[[], Any], filler: int) -> None:
    """Commit new objects until killed, three in a transaction, and say the tid and the oids of each acknowledged
    one."""
    storage = open_storage()
    data = state("x" * filler)
    while True:
        described = meta()
        oids = [storage.new_oid() for _ in range(3)]
        storage.tpc_begin(described)
        for oid in oids:
            storage.store(oid, z64, data, "", described)
        storage.tpc_vote(described)
        tid = storage.tpc_finish(described)
        say(u64(tid), *map(u64, oids))


def new_oids(open_storage: Callable[[], Any], count: int) -> None:
    """Say new oids."""
    storage = open_storage()
    say(*(u64(storage.new_oid()) for _ in range(count)))
    storage.close()


def hold_pack_lock(open_storage: Callable[[], Any]) -> None:
    """Hold the pack lock until told to go on."""
    storage = open_storage()
    with storage.database.adapter.pack_lock(0):
        say("held")
        wait()
    say("released")
    storage.close()


def hold_commit_lock(open_storage: Callable[[], Any]) -> None:
    """Choose a tid under the commit lock, and hold it until told to go on."""
    storage = open_storage()
    with storage.database.store_sessions.session() as session:
        tid = storage.database.adapter.commit_steps.lock_and_choose_tid(session)
        say(tid)
        wait()
        session.rollback()
    say("released")
    storage.close()


JOBS = {
    job.__name__: job
    for job in (add_to_root, count, count_without_merging, commit_forever, new_oids, hold_pack_lock, hold_commit_lock)
}

if __name__ == "__main__":
    arguments = json.loads(sys.argv[2])
    backend, options = arguments.pop("backend"), arguments.pop("options")
    say("ready")
    wait()
    JOBS[sys.argv[1]](lambda: relstorage.open(backend, **options), **arguments)
