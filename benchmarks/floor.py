"""The least that a workload can take, in two kinds of columns: the bare statements through the database's driver, with
no storage and no ZODB around them, and ZODB over the thinnest storage. What a storage takes beyond these is its own."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from subject import NotAvailable, Sizes, Stopwatch, WrongResult
from thin_storage import ThinSubject
from transaction.interfaces import TransientError
from workloads import WORKLOADS
from writers import Step, Writers

ZODB_WORKLOADS = (
    "open", "add", "update", "cold", "warm", "hot", "storage_load_cold", "storage_load_cached", "commit_one",
    "empty_transaction",
)  # fmt: skip
COUNTER_LIMIT = 2**64


class Session(Protocol):
    """A connection that runs a storage's statements. It may also have ``load_many`` and ``commit_blob``."""

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def load(self, oid: int) -> tuple[bytes, int]: ...

    def commit(self, oids: Sequence[int], states: Sequence[bytes], serial: int | None = None) -> bool: ...

    def close(self) -> None: ...


class Floor(Protocol):
    """One database that the statements run in."""

    def create(self) -> None: ...

    def remove(self) -> None: ...

    def open(self) -> Session: ...


def open_floor(order: Mapping[str, Any]) -> Floor:
    """Return the database of a floor ``sqlite3:SYNCHRONOUS`` or ``libpq:CONNINFO``."""
    kind, _, argument = order["floor"].partition(":")
    if kind == "sqlite3":
        from bare_sqlite import SqliteFloor

        return SqliteFloor(argument, order)
    from bare_libpq import LibpqFloor

    return LibpqFloor(argument, order)


def make_floor(order: Mapping[str, Any]) -> StatementWork | ThinWork:
    """Return the work for a floor: statements, or ``zodb:SYNCHRONOUS``."""
    return (ThinWork if order["floor"].startswith("zodb:") else StatementWork)(order)


class ThinWork:
    """The workloads themselves, on the thinnest storage."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._name = order["workload"]
        self._workload = WORKLOADS.get(self._name)
        synchronous = order["floor"].partition(":")[2]
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
    """The statements of each workload, through the database's own driver."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._order = order
        self._sizes = Sizes(**order["sizes"])
        self._floor = open_floor(order)
        self._random = random.Random(self._sizes.seed)
        self._next_oid = self._sizes.objects
        self._cleanup = contextlib.ExitStack()
        self._writers: Writers | None = None
        self._do = getattr(self, f"do_{order['workload']}", None)

    def prepare(self) -> None:
        if self._do is None:
            raise NotAvailable("the floor has no statement for it")
        self._floor.create()
        self._cleanup.callback(self._floor.remove)
        with self._session() as session:
            session.commit(range(self._sizes.objects), self._states(self._sizes.objects))
        name, _, count = self._order["workload"].rpartition("_")
        if name in ("writers_disjoint", "counter"):
            self._first_count = self._count()
            self._writers = Writers(self._order, self._cleanup, name.removeprefix("writers_"), int(count))

    def run(self, watch: Stopwatch) -> None:
        self._do(watch)

    def close(self) -> None:
        """Stop the writing processes and remove the database."""
        self._cleanup.close()

    @contextlib.contextmanager
    def _session(self, feature: str = "commit") -> Iterator[Any]:
        session = self._floor.open()
        try:
            if not hasattr(session, feature):
                raise NotAvailable("the floor has no statement for it")
            yield session
        finally:
            session.close()

    def _states(self, count: int) -> list[bytes]:
        return [self._random.randbytes(state_size(self._sizes)) for _ in range(count)]

    def do_open(self, watch: Stopwatch) -> None:
        for _ in range(self._sizes.opens):
            with watch():
                session = self._floor.open()
                session.begin()
                session.load(0)
            session.close()

    def do_add(self, watch: Stopwatch) -> None:
        self._write(watch, range(self._next_oid, self._next_oid + self._sizes.objects))
        self._next_oid += self._sizes.objects

    def do_update(self, watch: Stopwatch) -> None:
        self._write(watch, range(self._sizes.objects))

    def _write(self, watch: Stopwatch, oids: range) -> None:
        with self._session() as session:
            states = self._states(len(oids))
            session.commit([0], states[:1])
            with watch(len(oids)):
                session.commit(oids, states)

    def do_cold(self, watch: Stopwatch) -> None:
        count = self._sizes.objects
        with self._session() as session:
            session.begin()
            session.load(0)
            with watch(count):
                for oid in range(count):
                    session.load(oid)
            session.end()

    do_storage_load_cold = do_cold

    def do_prefetch(self, watch: Stopwatch) -> None:
        count = self._sizes.objects
        with self._session("load_many") as session:
            session.begin()
            session.load_many([0])
            with watch(count):
                session.load_many(range(count))
            session.end()

    def do_commit_one(self, watch: Stopwatch) -> None:
        with self._session() as session, watch.many() as samples:
            for number in range(self._sizes.commits):
                states = self._states(1)
                session.begin()
                start = time.perf_counter()
                session.commit([number % self._sizes.objects], states)
                samples.append(time.perf_counter() - start)

    def do_empty_transaction(self, watch: Stopwatch) -> None:
        count = self._sizes.transactions
        with self._session() as session:
            session.begin()
            with watch(count):
                for _ in range(count):
                    session.begin()
            session.end()

    def do_blob_upload(self, watch: Stopwatch) -> None:
        self._upload(watch, 1, self._sizes.blob_size)

    def do_blob_upload_small(self, watch: Stopwatch) -> None:
        self._upload(watch, self._sizes.small_blobs, self._sizes.small_blob_size)

    def _upload(self, watch: Stopwatch, count: int, size: int) -> None:
        with self._session("commit_blobs") as session:
            blobs = {self._next_oid + number: self._random.randbytes(size) for number in range(count)}
            session.commit([0], self._states(1))
            with watch(count):
                session.commit_blobs(blobs)
        self._next_oid += count

    def do_writers_disjoint_4(self, watch: Stopwatch) -> None:
        self._writers.run(watch)

    do_writers_disjoint_16 = do_writers_disjoint_4

    def do_counter_4(self, watch: Stopwatch) -> None:
        self._writers.run(watch)
        found = (self._count() - self._first_count) % COUNTER_LIMIT
        expected = self._writers.rounds * self._writers.count * self._sizes.writer_commits
        if found != expected:
            raise WrongResult(f"updates were lost: {expected} increments were acknowledged, the counter is {found}")

    def _count(self) -> int:
        with self._session() as session:
            session.begin()
            return counted(session.load(0)[0])


def counted(state: bytes) -> int:
    """Read the counter in the first bytes of a state."""
    return int.from_bytes(state[:8], "big")


def state_size(sizes: Sizes) -> int:
    """Return about the size of a Payload's pickle."""
    return sizes.size + 60


class Conflict(TransientError):
    """An other writer was first."""


@contextlib.contextmanager
def writer(order: Mapping[str, Any], sizes: Sizes) -> Iterator[Step]:
    """Offer what one writing process does for each commit."""
    session = open_floor(order).open()
    state = random.Random(order["number"]).randbytes(state_size(sizes))

    def disjoint() -> None:
        session.begin()
        session.commit([order["number"]], [state])

    def increment() -> None:
        session.begin()
        before, serial = session.load(0)
        count = (counted(before) + 1) % COUNTER_LIMIT
        if not session.commit([0], [count.to_bytes(8, "big") + state[8:]], serial):
            raise Conflict("an other process has counted")

    yield {"disjoint": disjoint, "counter": increment}[order["task"]]
    session.close()
