"""The least that a workload can take, in two columns: the bare statements through the database's driver, with no
storage and no ZODB around them, and ZODB over the thinnest storage. What a storage takes beyond these is its own."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Iterator, Mapping
from typing import Any

from subject import NotAvailable, Sizes, Stopwatch
from thin_storage import LAST, SCHEMA, SELECT, TID_INDEX, UPSERT, ThinSubject, connect
from workloads import WORKLOADS

ZODB_WORKLOADS = (
    "open", "add", "update", "cold", "warm", "hot", "storage_load_cold", "storage_load_cached", "commit_one",
    "empty_transaction",
)  # fmt: skip


def make_floor(order: Mapping[str, Any]) -> StatementWork | ThinWork:
    """Return the work for a floor ``sqlite3:SYNCHRONOUS`` or ``zodb:SYNCHRONOUS``."""
    kind, _, synchronous = order["floor"].partition(":")
    return (StatementWork if kind == "sqlite3" else ThinWork)(order, synchronous)


class ThinWork:
    """The workloads themselves, on the thinnest storage."""

    def __init__(self, order: Mapping[str, Any], synchronous: str) -> None:
        self._name = order["workload"]
        self._workload = WORKLOADS.get(self._name)
        self._subject = ThinSubject(synchronous, order["directory"], order["cache"], Sizes(**order["sizes"]))

    def prepare(self) -> None:
        if self._name not in ZODB_WORKLOADS:
            raise NotAvailable("the thinnest storage cannot do it")
        if self._workload.prepare is not None:
            self._workload.prepare(self._subject)

    def run(self, watch: Stopwatch) -> None:
        self._workload.run(self._subject, watch)

    def close(self) -> None:
        """Nothing stays open between rounds."""


class StatementWork:
    """SQLite through ``sqlite3``."""

    def __init__(self, order: Mapping[str, Any], synchronous: str) -> None:
        self._sizes = Sizes(**order["sizes"])
        self._synchronous = synchronous
        self._path = os.path.join(order["directory"], "floor.sqlite3")
        self._random = random.Random(self._sizes.seed)
        self._tid = 0
        self._next_oid = self._sizes.objects
        self._do = getattr(self, f"do_{order['workload']}", None)

    def prepare(self) -> None:
        if self._do is None:
            raise NotAvailable("the floor has no statement for it")
        with self._session() as session:
            session.execute(SCHEMA)
            session.execute(TID_INDEX)
            self._commit(session, self._rows(range(self._sizes.objects)))

    def run(self, watch: Stopwatch) -> None:
        self._do(watch)

    def close(self) -> None:
        """Nothing stays open between rounds."""

    @contextlib.contextmanager
    def _session(self) -> Iterator[sqlite3.Connection]:
        session = connect(self._path, self._synchronous)
        try:
            yield session
        finally:
            session.close()

    def _rows(self, oids: range) -> list[tuple[int, int, bytes]]:
        self._tid += 1
        size = self._sizes.size + 60  # about what the pickle of a Payload adds
        return [(oid, self._tid, self._random.randbytes(size)) for oid in oids]

    def _commit(self, session: sqlite3.Connection, rows: list[tuple[int, int, bytes]]) -> None:
        session.execute("BEGIN IMMEDIATE")
        session.executemany(UPSERT, rows)
        session.execute("COMMIT")

    def do_add(self, watch: Stopwatch) -> None:
        count = self._sizes.objects
        with self._session() as session:
            rows = self._rows(range(self._next_oid, self._next_oid + count))
            with watch(count):
                self._commit(session, rows)
        self._next_oid += count

    def do_update(self, watch: Stopwatch) -> None:
        count = self._sizes.objects
        with self._session() as session:
            rows = self._rows(range(count))
            with watch(count):
                self._commit(session, rows)

    def do_storage_load_cold(self, watch: Stopwatch) -> None:
        count = self._sizes.objects
        with self._session() as session:
            execute = session.cursor().execute
            session.execute("BEGIN")
            with watch(count):
                for oid in range(count):
                    execute(SELECT, (oid,)).fetchall()
            session.execute("COMMIT")

    def do_commit_one(self, watch: Stopwatch) -> None:
        with self._session() as session, watch.many() as samples:
            for number in range(self._sizes.commits):
                oid = number % self._sizes.objects
                rows = self._rows(range(oid, oid + 1))
                start = time.perf_counter()
                self._commit(session, rows)
                samples.append(time.perf_counter() - start)

    def do_empty_transaction(self, watch: Stopwatch) -> None:
        count = self._sizes.transactions
        with self._session() as session:
            execute = session.cursor().execute
            with watch(count):
                for _ in range(count):
                    execute("BEGIN")
                    execute(LAST).fetchall()
                    execute("ROLLBACK")

    def do_open(self, watch: Stopwatch) -> None:
        for _ in range(self._sizes.opens):
            with watch(), self._session() as session:
                session.execute(SELECT, (0,)).fetchall()
