"""Walk every record of a storage and report what is wrong with it.

A *subject* lists the objects first, then every revision. The walk keeps a few numbers for each object and each
reference, so that it needs less than a hundred bytes of memory for each object and never holds the states.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from BTrees.LLBTree import LLBTree
from ZODB.interfaces import IBlobStorage
from ZODB.POSException import POSKeyError

from relstorage.database import Database
from relstorage.errors import UnreadableState
from relstorage.ids import ROOT_OID, to_int
from relstorage.references import checked_references, class_name
from relstorage.sql import Statement
from relstorage.storage import RelStorage
from relstorage.storage.copying import holds_blob

#: How many findings of each kind are described; all are counted.
DESCRIBED = 100

PROBLEMS = {
    "unreadable": "records that cannot be read",
    "dangling": "references to objects that do not exist",
    "missing-blob": "blobs whose file is missing",
    "stray-blob": "blobs in the database that belong to no record",
    "current": "objects whose current revision is missing or is not their newest",
    "size": "records of another size than was recorded",
    "checksum": "records with another checksum than was recorded",
    "root": "missing root objects",
}
"""What is a problem, by its name in a report."""

Update = Callable[[float], None]


class ListedObject(NamedTuple):
    """An object and the tid of its current revision. ``present`` is None where that revision is missing."""

    oid: int
    tid: int
    present: bool | None


class Revision(NamedTuple):
    """A record, the size and md5 that were recorded of it, and whether it has a blob, None if that is not known."""

    oid: int
    tid: int
    state: bytes | None
    size: int | None
    md5: str | None
    blob: bool | None


@dataclass(frozen=True)
class Finding:
    """One problem."""

    kind: str
    oid: str
    tid: str | None
    detail: str


@dataclass
class Verification:
    """What a walk has seen and found."""

    storage: str = ""
    objects: int = 0
    revisions: int = 0
    bytes: int = 0
    blobs: int = 0
    unreachable: int | None = None
    """Objects that cannot be reached from the root, which a pack removes; None without a root."""
    stray_files: int = 0
    """Files in a shared blob directory that belong to no record; crashes and commits under way leave some."""
    problems: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROBLEMS, 0))
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, kind: str, oid: int, tid: int | None, detail: str) -> None:
        """Count a problem, and describe it if it is among the first of its kind."""
        self.problems += 1
        self.counts[kind] += 1
        if self.counts[kind] <= DESCRIBED:
            self.findings.append(Finding(kind, f"{oid:#x}", None if tid is None else f"{tid:#018x}", detail))


class Subject(Protocol):
    """What is walked."""

    def objects(self, update: Update) -> Iterator[ListedObject]:
        """Iterate over all objects in oid order."""

    def count(self) -> int | None:
        """Return how many revisions there are, once the objects have been listed."""

    def revisions(self, report: Verification) -> Iterator[Revision]:
        """Iterate over all revisions, of which those of one object are in the order of their tids."""

    def conclude(self, report: Verification) -> None:
        """Add what shows only when everything was seen."""

    def close(self) -> None:
        """Release what is open."""


def verify(storage: Any, *, blobs: bool, show: Callable[[str, str, int | None], Any]) -> Verification:
    """Walk a storage. ``show(title, unit, total)`` is a context manager that gives a meter."""
    began = time.monotonic()
    report = Verification()
    subject: Subject
    if isinstance(storage, RelStorage):
        subject = DatabaseSubject(storage.database, blobs)
    else:
        subject = IteratedSubject(storage, blobs)
    with closing(subject):
        objects = _Objects()
        with show("Listing objects", "objects", None) as meter:
            for each in subject.objects(meter.update):
                if each.present is None:
                    report.add("current", each.oid, each.tid, "its current revision is missing")
                objects.add(each)
        walk = _Walk(objects, report)
        with show("Reading records", "records", subject.count()) as meter:
            for revision in subject.revisions(report):
                walk.look_at(revision)
                meter.update(report.revisions)
        subject.conclude(report)
        report.objects = objects.present
        walk.count_unreachable()
    report.seconds = round(time.monotonic() - began, 3)
    return report


class _Objects:
    """Every object in oid order: its current tid, and whether it is there."""

    def __init__(self) -> None:
        self.oids = array("q")
        self.tids = array("q")
        self.there = bytearray()
        self.present = 0

    def add(self, listed: ListedObject) -> None:
        self.oids.append(listed.oid)
        self.tids.append(listed.tid)
        self.there.append(bool(listed.present))
        self.present += bool(listed.present)

    def find(self, oid: int) -> int:
        """Return the place of an object, -1 if there is none."""
        place = bisect_left(self.oids, oid)
        return place if place < len(self.oids) and self.oids[place] == oid else -1


class _Walk:
    """Looks at each revision, and remembers the references between the current ones."""

    def __init__(self, objects: _Objects, report: Verification):
        self._objects = objects
        self._report = report
        self._first = array("Q", bytes(8 * len(objects.oids)))
        self._count = array("L", bytes(array("L").itemsize * len(objects.oids)))
        self._targets = array("L")

    def look_at(self, revision: Revision) -> None:
        report = self._report
        oid, tid, state = revision.oid, revision.tid, revision.state
        report.revisions += 1
        size = len(state or b"")
        report.bytes += size
        if revision.size is not None and revision.size != size:
            report.add("size", oid, tid, f"{size} bytes, recorded were {revision.size}")
        if revision.md5 is not None and state is not None and revision.md5 != _md5(state):
            report.add("checksum", oid, tid, f"its md5 is not the recorded {revision.md5}")
        place = self._objects.find(oid)
        if place < 0 or tid > self._objects.tids[place]:
            report.add("current", oid, tid, "a revision newer than the current one, or of an object without any")
        if state:
            self._look_into(state, oid, tid, place)
            self._look_for_blob(revision)

    def _look_into(self, state: bytes, oid: int, tid: int, place: int) -> None:
        try:
            references = checked_references(state)
        except UnreadableState as error:
            self._report.add("unreadable", oid, tid, str(error))
            return
        objects = self._objects
        current = place >= 0 and objects.tids[place] == tid
        first = len(self._targets)
        for oid_referred_to in dict.fromkeys(references):
            target = objects.find(oid_referred_to)
            # An old revision may refer to what was removed since, and is shown with it; but it must have existed.
            if target < 0 or (current and not objects.there[target]):
                which = "" if current else "an old revision of "
                self._report.add(
                    "dangling", oid, tid, f"{which}{class_name(state)} refers to object {oid_referred_to:#x}"
                )
            elif current:
                self._targets.append(target)
        if current:
            self._first[place] = first
            self._count[place] = len(self._targets) - first

    def _look_for_blob(self, revision: Revision) -> None:
        if holds_blob(revision.state):
            self._report.blobs += 1
            if revision.blob is False:
                self._report.add("missing-blob", revision.oid, revision.tid, "there is no data for this blob")
        elif revision.blob:
            self._report.add("stray-blob", revision.oid, revision.tid, "there is blob data for what is no blob")

    def count_unreachable(self) -> None:
        """Follow the references from the root."""
        objects = self._objects
        if not objects.present:
            return
        root = objects.find(ROOT_OID)
        if root < 0 or not objects.there[root]:
            self._report.add("root", ROOT_OID, None, "there are objects, but no root object")
            return
        reached = bytearray(len(objects.oids))
        reached[root] = 1
        number = 1
        waiting = array("L", [root])
        while waiting:
            place = waiting.pop()
            first = self._first[place]
            for target in self._targets[first : first + self._count[place]]:
                if not reached[target]:
                    reached[target] = 1
                    number += 1
                    waiting.append(target)
        self._report.unreachable = objects.present - number


def _md5(state: bytes) -> str:
    return hashlib.md5(state, usedforsecurity=False).hexdigest()


class DatabaseSubject:
    """A database of ours, in one snapshot."""

    def __init__(self, database: Database, blobs: bool):
        self._sql = database.statements
        self._directory = database.blobs
        self._end = ExitStack()
        self._session = database.open_load_session()
        self._end.callback(self._session.close)
        self._session.begin_snapshot()
        self._blobs = blobs
        self._in_directory = self._directory is not None and not self._directory.kept_in_database
        # The revisions with a blob, in the order in which they are read, to know the files of the others.
        self._blob_oids = array("q")
        self._blob_tids = array("q")

    def _stream(self, statement: Statement) -> Iterator[Any]:
        # Closed before the session is, also where an error leaves it in the middle.
        return self._end.enter_context(closing(self._session.stream(statement)))

    def objects(self, update: Update) -> Iterator[ListedObject]:
        for number, (oid, tid, present) in enumerate(self._stream(self._sql.object_facts), 1):
            yield ListedObject(oid, tid, None if present is None else bool(present))
            update(number)

    def count(self) -> int | None:
        number: int = self._session.row(self._sql.revision_count)[0]
        return number

    def revisions(self, report: Verification) -> Iterator[Revision]:
        has_blob = self._blob_finder(report)
        for oid, tid, state, size, md5 in self._stream(self._sql.revision_facts):
            state = None if state is None else bytes(state)
            recorded = md5.decode() if isinstance(md5, bytes) else md5
            yield Revision(oid, tid, state, size, recorded, has_blob(oid, tid, state))

    def _blob_finder(self, report: Verification) -> Callable[[int, int, bytes | None], bool | None]:
        if not self._blobs:
            return lambda oid, tid, state: None
        if self._in_directory:
            return self._in_shared_directory
        self._stored = _StoredBlobs(self._stream(self._sql.blob_revisions), report)
        if self._directory is None and self._stored.none_at_all:
            report.notes.append("Blobs were not looked for: the storage has no blob-dir, and the database keeps none.")
            return lambda oid, tid, state: None
        return self._stored.has

    def _in_shared_directory(self, oid: int, tid: int, state: bytes | None) -> bool | None:
        if not holds_blob(state):
            return None
        self._blob_oids.append(oid)
        self._blob_tids.append(tid)
        try:
            self._directory.load(oid, tid, _no_download)
        except POSKeyError:
            return False
        return True

    def conclude(self, report: Verification) -> None:
        if not self._blobs:
            return
        if self._in_directory:
            report.stray_files = sum(not self._belongs(oid, tid) for oid, tid in self._directory.all_revisions())
        else:
            self._stored.drain()

    def _belongs(self, oid: int, tid: int) -> bool:
        place = bisect_left(self._blob_oids, oid)
        while place < len(self._blob_oids) and self._blob_oids[place] == oid:
            if self._blob_tids[place] == tid:
                return True
            place += 1
        return False

    def close(self) -> None:
        self._end.close()


class _StoredBlobs:
    """The blobs in the database, read side by side with the revisions: both come in the order of oid and tid."""

    def __init__(self, rows: Iterator[Any], report: Verification):
        self._rows = rows
        self._report = report
        self._next = next(rows, None)
        self.none_at_all = self._next is None

    def has(self, oid: int, tid: int, state: bytes | None) -> bool:
        while self._next is not None and tuple(self._next) < (oid, tid):
            self._stray()
        if self._next is None or tuple(self._next) != (oid, tid):
            return False
        self._next = next(self._rows, None)
        return True

    def drain(self) -> None:
        """Report what is left when the last revision was seen."""
        while self._next is not None:
            self._stray()

    def _stray(self) -> None:
        assert self._next is not None
        oid, tid = self._next
        self._report.add("stray-blob", oid, tid, "there is blob data for a record that does not exist")
        self._next = next(self._rows, None)


class IteratedSubject:
    """Any storage that lists its transactions, which is read twice: for the objects, then for the revisions."""

    def __init__(self, storage: Any, blobs: bool):
        self._storage = storage
        self._blobs = blobs and IBlobStorage.providedBy(storage)
        self._records = 0
        self._last: bytes | None = None

    def objects(self, update: Update) -> Iterator[ListedObject]:
        # A negative number is the tid of a revision that removes its object.
        newest = LLBTree()
        for transaction in self._transactions():
            self._last = transaction.tid
            tid = to_int(transaction.tid)
            for record in transaction:
                self._records += 1
                newest[to_int(record.oid)] = tid if record.data else -tid
            update(len(newest))
        for oid, tid in newest.items():
            yield ListedObject(oid, abs(tid), tid > 0)

    def count(self) -> int | None:
        return self._records

    def revisions(self, report: Verification) -> Iterator[Revision]:
        if self._last is None:
            return
        for transaction in self._transactions(stop=self._last):
            for record in transaction:
                yield Revision(
                    to_int(record.oid), to_int(record.tid), record.data, None, None, self._blob_of(record)
                )

    def _transactions(self, **bounds: bytes) -> Iterator[Any]:
        iterator = self._storage.iterator(**bounds)
        with closing(iterator) if hasattr(iterator, "close") else ExitStack():
            # Not `yield from`: CPython crashes when that meets the StorageStopIteration that some storages raise.
            for transaction in iterator:  # noqa: UP028  see above
                yield transaction

    def _blob_of(self, record: Any) -> bool | None:
        if not self._blobs or not holds_blob(record.data):
            return None
        try:
            self._storage.loadBlob(record.oid, record.tid)
        except POSKeyError:
            return False
        return True

    def conclude(self, report: Verification) -> None:
        """Add nothing."""

    def close(self) -> None:
        """Nothing is kept open."""


def _no_download(path: str) -> bool:
    return False
