"""What a workload works on: one configured database, opened and closed as often as the workload needs, and a stopwatch.
Set-up passes through here untimed; only what runs inside ``Stopwatch.__call__`` is measured."""

from __future__ import annotations

import contextlib
import cProfile
import gc
import io
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import transaction
import ZConfig
import ZODB.config
from bench_objects import Container, Payload
from persistent import Persistent
from ZODB.Connection import Connection
from ZODB.DB import DB

FAN_OUT = 100


class NotAvailable(Exception):
    """The contender lacks the feature that a workload measures; the text says which."""


class WrongResult(Exception):
    """The contender finished, but what it stored is not what it was given."""


@dataclass(frozen=True)
class Sizes:
    """How much each workload does in a round."""

    objects: int = 1000
    size: int = 128
    commits: int = 200
    transactions: int = 2000
    load_passes: int = 10
    writer_commits: int = 50
    pack_objects: int = 5000
    convert_transactions: int = 500
    opens: int = 5
    blob_size: int = 16 * 1024 * 1024
    small_blobs: int = 50
    small_blob_size: int = 64 * 1024
    seed: int = 20260


class Stopwatch:
    """Collect seconds per unit of the regions it times, with garbage collection off inside them."""

    def __init__(self, profile: cProfile.Profile | None = None) -> None:
        self.samples: list[float] = []
        self.notes: dict[str, Any] = {}
        self._profile = profile

    @contextlib.contextmanager
    def __call__(self, units: int = 1) -> Iterator[None]:
        """Time the block and record its duration divided by *units*."""
        gc.collect()
        gc.disable()
        if self._profile is not None:
            self._profile.enable()
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            if self._profile is not None:
                self._profile.disable()
            gc.enable()
        self.samples.append(elapsed / units)

    @contextlib.contextmanager
    def many(self) -> Iterator[list[float]]:
        """Offer a list to which the block appends the durations it measures itself."""
        gc.collect()
        gc.disable()
        if self._profile is not None:
            self._profile.enable()
        try:
            yield self.samples
        finally:
            if self._profile is not None:
                self._profile.disable()
            gc.enable()


class Subject:
    """One contender's database for one workload."""

    def __init__(self, config: str, directory: str, cache: str, sizes: Sizes) -> None:
        self.config = config
        self.directory = directory
        self.cache = cache
        self.sizes = sizes
        self.random = random.Random(sizes.seed)
        self.cleanup = contextlib.ExitStack()
        self.prepared: Any = None  # what the workload's set-up returned

    def close(self) -> None:
        """Release what set-up keeps open between rounds."""
        self.cleanup.close()

    def open_database(self) -> DB:
        """Open the configured database with a state cache and object caches of its own."""
        return ZODB.config.databaseFromString(self.config)

    def open_storage(self) -> Any:
        """Open the configured storage alone, without the root object that a DB would create."""
        parsed, _ = ZConfig.loadConfigFile(ZODB.config.getDbSchema(), io.StringIO(self.config))
        return parsed.database[0].config.storage.open()

    @contextlib.contextmanager
    def database(self) -> Iterator[DB]:
        """Open the database for the length of the block."""
        db = self.open_database()
        try:
            yield db
        finally:
            db.close()

    @contextlib.contextmanager
    def connection(self, db: DB, *, explicit: bool = False) -> Iterator[Connection]:
        """Open a connection with a transaction manager of its own for the length of the block."""
        manager = transaction.TransactionManager(explicit=explicit)
        if explicit:
            manager.begin()
        connection = db.open(manager)
        try:
            yield connection
        finally:
            manager.abort()
            connection.close()

    def data(self) -> bytes:
        """Return bytes that no cache or column can compress."""
        return self.random.randbytes(self.sizes.size)

    def payloads(self, count: int) -> list[Payload]:
        """Make objects that are in no database yet."""
        return [Payload(self.data()) for _ in range(count)]

    def populate(self, name: str, count: int) -> None:
        """Commit *count* objects, reachable from the root under *name*."""
        with self.database() as db, self.connection(db) as connection:
            connection.root()[name] = tree(self.payloads(count))
            connection.transaction_manager.commit()

    def empty_cache_directory(self) -> None:
        """Remove what contenders keep on disk only to be faster next time: the content of ``$CACHE``."""
        shutil.rmtree(self.cache, ignore_errors=True)
        os.makedirs(self.cache)


def make_subject(order: Mapping[str, Any]) -> Subject:
    """Return what the driver's order describes."""
    return Subject(order["config"], order["directory"], order["cache"], Sizes(**order["sizes"]))


def tree(objects: list[Payload]) -> Container:
    """Arrange *objects* below one container, a hundred to each inner one."""
    inner = [Container(objects[start : start + FAN_OUT]) for start in range(0, len(objects), FAN_OUT)]
    return Container(inner)


def leaves(connection: Connection, name: str) -> list[Persistent]:
    """Return the objects below the container *name*; in an empty object cache they are ghosts."""
    return [leaf for inner in connection.root()[name].items for leaf in inner.items]


def record_count(storage: Any) -> int:
    """Count the current records of a storage; one that cannot list them is asked how many there are."""
    if not hasattr(storage, "record_iternext"):
        return len(storage)
    count, cookie = 0, None
    while True:
        *_, cookie = storage.record_iternext(cookie)
        count += 1
        if cookie is None:
            return count
