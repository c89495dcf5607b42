"""What a database holds, counted and summed up so that two can be compared. `survey` reads every transaction of a
storage; `walk` reads every object that is reachable through a ZODB connection, as an application does."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from BTrees.LLBTree import LLTreeSet
from ZODB.blob import Blob, is_blob_record
from ZODB.broken import PersistentBroken
from ZODB.interfaces import IBlobStorage
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64

BLOCK = 1 << 16
OBJECTS_BETWEEN_CACHE_SWEEPS = 1000

Advance = Callable[[int], None]


class SurveyError(Exception):
    """The database cannot be read as it is configured; the text says what to do."""


@dataclass
class Checksum:
    """A digest of a set: the order in which its members come does not matter."""

    total: int = 0

    def add(self, *parts: bytes) -> None:
        member = hashlib.sha256()
        for part in parts:
            member.update(len(part).to_bytes(8, "big"))
            member.update(part)
        self.total = (self.total + int.from_bytes(member.digest(), "big")) % (1 << 256)

    def __str__(self) -> str:
        return f"{self.total:064x}"


@dataclass
class Survey:
    """What the transactions of a storage hold."""

    transactions: int = 0
    revisions: int = 0
    objects: int = 0
    blobs: int = 0
    state_bytes: int = 0
    blob_bytes: int = 0
    checksum: Checksum = field(default_factory=Checksum)
    seconds: float = 0.0


@dataclass
class Walk:
    """What an application can reach from the root object."""

    objects: int = 0
    blobs: int = 0
    state_bytes: int = 0
    blob_bytes: int = 0
    broken: int = 0
    checksum: Checksum = field(default_factory=Checksum)
    seconds: float = 0.0

    def content(self) -> tuple[object, ...]:
        """Return what must be equal in two databases with the same content."""
        return self.objects, self.blobs, self.state_bytes, self.blob_bytes, str(self.checksum)


def survey(storage: Any, advance: Advance) -> Survey:
    """Read every transaction, every revision and every blob."""
    begun = time.perf_counter()
    result = Survey()
    oids = LLTreeSet()
    transactions = storage.iterator()
    for transaction in transactions:
        result.transactions += 1
        result.checksum.add(
            transaction.tid,
            as_bytes(transaction.user),
            as_bytes(transaction.description),
            repr(sorted(transaction.extension.items())).encode(),
        )
        for record in transaction:
            result.revisions += 1
            if record.data is None:
                # The undoing of a creation: from here on there is no such object.
                oids.discard(u64(record.oid))
                result.checksum.add(record.oid, record.tid)
                continue
            oids.insert(u64(record.oid))
            result.state_bytes += len(record.data)
            blob = b""
            if is_blob_record(record.data):
                if not IBlobStorage.providedBy(storage):
                    raise SurveyError("The database has blobs. Say with --blobs where they are.")
                with open(storage.loadBlob(record.oid, record.tid), "rb") as stream:
                    blob, size = digest(stream)
                result.blobs += 1
                result.blob_bytes += size
            result.checksum.add(record.oid, record.tid, record.data, blob)
        advance(1)
    close = getattr(transactions, "close", None)
    if close is not None:
        close()
    result.objects = len(oids)
    result.seconds = time.perf_counter() - begun
    return result


def walk(database: Any, advance: Advance) -> Walk:
    """Load the state of every reachable object, with the application's classes, and read every blob."""
    begun = time.perf_counter()
    result = Walk()
    connection = database.open()
    # What the connection itself reads from: the database's storage may show another moment.
    view = connection._storage
    try:
        root = u64(connection.root()._p_oid)
        seen = LLTreeSet([root])
        waiting = [root]
        while waiting:
            oid = p64(waiting.pop())
            loaded = connection.get(oid)
            loaded._p_activate()
            state, _ = view.load(oid)
            blob = b""
            if isinstance(loaded, Blob):
                with loaded.open("r") as stream:
                    blob, size = digest(stream)
                result.blobs += 1
                result.blob_bytes += size
            result.broken += isinstance(loaded, PersistentBroken)
            result.objects += 1
            result.state_bytes += len(state)
            result.checksum.add(oid, state, blob)
            # Last in, first out, and reversed: objects come in the order in which their parents name them.
            waiting.extend(unseen(reversed(referencesf(state)), seen))
            if result.objects % OBJECTS_BETWEEN_CACHE_SWEEPS == 0:
                connection.cacheGC()
            advance(1)
    finally:
        connection.close()
    result.seconds = time.perf_counter() - begun
    return result


def unseen(oids: Iterable[bytes], seen: Any) -> list[int]:
    """Return those oids that were not seen before, and mark them as seen."""
    return [number for number in map(u64, oids) if seen.insert(number)]


def digest(stream: Any) -> tuple[bytes, int]:
    """Return the digest and the length of what a file holds."""
    result = hashlib.sha256()
    size = 0
    while block := stream.read(BLOCK):
        result.update(block)
        size += len(block)
    return result.digest(), size


def as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
