"""What a commit stages, and the commit steps of a database whose write lock covers everything.

Records wait in a ``Spool`` from ``store`` until vote: in memory, then in a file. ``DirectCommit`` suits an embedded
database: vote takes the one write lock, looks for conflicts, and writes the records in place; finish is the COMMIT.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import IntEnum
from typing import Any, BinaryIO, NamedTuple

from zope.interface import implementer

from relstorage import ids
from relstorage.errors import VoteReadConflictError
from relstorage.interfaces import ICommitSteps
from relstorage.sql import Statements


class Kind(IntEnum):
    """How a staged record becomes part of the database."""

    STORE = 0  # checked against the base tid, conflicts are resolved
    UNDO = 1  # checked against the base tid, a conflict is final
    DELETE = 2  # checked against the base tid, removes the object
    RESTORE = 3  # written as it is


class Staged(NamedTuple):
    """One staged record. ``base`` is the tid of the revision it was made from, 0 for a new object."""

    oid: int
    base: int
    kind: Kind
    state: bytes | None


class Conflict(NamedTuple):
    """A staged record that was not made from the current revision; ``tid`` is None if there is no such object."""

    oid: int
    base: int
    tid: int | None
    state: bytes | None


class Verdict(NamedTuple):
    """What a vote found. ``removals`` tells whether objects were removed that the transaction may still refer to."""

    conflicts: list[Conflict]
    removals: bool


class Metadata(NamedTuple):
    """What ZODB says of the transaction itself."""

    username: bytes = b""
    description: bytes = b""
    extension: bytes = b""
    packed: bool = False


class _Slice(NamedTuple):
    offset: int
    length: int


class Spool:
    """The staged records by oid. States beyond ``limit`` bytes go to a temporary file."""

    def __init__(self, limit: int = 10_000_000):
        self._records: dict[int, tuple[int, Kind, bytes | _Slice | None]] = {}
        self._limit = limit
        self._held = 0
        self._file: BinaryIO | None = None
        #: The records in oid order, from the first time that is asked for until the next ``put``: a commit asks often.
        self._sorted: list[tuple[int, tuple[int, Kind, bytes | _Slice | None]]] | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, oid: int) -> bool:
        return oid in self._records

    def oids(self) -> list[int]:
        """Return the oids in ascending order, the order in which rows are locked."""
        return [oid for oid, _ in self._ordered()]

    def _ordered(self) -> list[tuple[int, tuple[int, Kind, bytes | _Slice | None]]]:
        if self._sorted is None:
            self._sorted = sorted(self._records.items())
        return self._sorted

    def put(self, oid: int, base: int, kind: Kind, state: bytes | None) -> None:
        """Stage a record; a later one for the same object replaces the earlier."""
        kept: bytes | _Slice | None = state
        if state is not None:
            self._held += len(state)
            if self._held > self._limit:
                kept = self._spill(state)
        self._records[oid] = (base, kind, kept)
        self._sorted = None

    def _spill(self, state: bytes) -> _Slice:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="relstorage-spool-")  # noqa: SIM115 (closed by close)
        offset = self._file.seek(0, 2)
        self._file.write(state)
        return _Slice(offset, len(state))

    def get(self, oid: int) -> Staged | None:
        """Return the staged record of an object."""
        record = self._records.get(oid)
        return None if record is None else Staged(oid, record[0], record[1], self._state(record[2]))

    def basis(self, oid: int) -> tuple[int, Kind]:
        """Return base and kind of a staged record without reading its state."""
        base, kind, _ = self._records[oid]
        return base, kind

    def _state(self, kept: bytes | _Slice | None) -> bytes | None:
        if isinstance(kept, _Slice):
            assert self._file is not None
            self._file.seek(kept.offset)
            return self._file.read(kept.length)
        return kept

    def __iter__(self) -> Iterator[Staged]:
        """Iterate in oid order."""
        for oid, (base, kind, kept) in self._ordered():
            yield Staged(oid, base, kind, self._state(kept))

    def bases(self) -> Iterator[tuple[int, int, Kind]]:
        """Iterate over (oid, base, kind) in oid order without reading states."""
        for oid, (base, kind, _) in self._ordered():
            yield oid, base, kind

    def rows(self, tid: int, count: int) -> Iterator[tuple[Any, ...]]:
        """Iterate over the first ``count`` of (oid, tid, state) in oid order, leaving out removals."""
        for oid, (_, _, kept) in self._ordered():
            if kept is not None:
                row = (oid, tid, kept if type(kept) is bytes else self._state(kept))
                yield row if count == 3 else row[:count]

    def at_hand(self, limit: int) -> list[tuple[int, int, bytes]] | None:
        """Return (oid, base, state) in oid order, leaving out removals, or None if that may be more than ``limit``
        bytes of states."""
        if self._file is not None or self._held > limit:
            return None
        return [(oid, base, state) for oid, (base, _, state) in self._ordered() if type(state) is bytes]

    def removals(self) -> list[int]:
        """Return the oids of staged removals in order."""
        return [oid for oid, record in self._ordered() if record[2] is None]

    def close(self) -> None:
        """Forget everything."""
        self._records.clear()
        self._sorted = None
        if self._file is not None:
            self._file.close()
            self._file = None


class StagedCommit:
    """Everything that one transaction hands to the commit steps."""

    def __init__(self, metadata: Metadata, view: int | None, tid: int | None = None):
        self.metadata = metadata
        #: The newest tid the committing storage has seen; None if it never polled.
        self.view = view
        #: The tid to commit with, for restoring; else set when chosen.
        self.tid = tid
        self.restoring = tid is not None
        self.records = Spool()
        #: oid -> tid that must still be current at the end of the transaction.
        self.read_current: dict[int, int] = {}
        #: (oid, path) of files whose bytes the database keeps.
        self.blobs: list[tuple[int, str]] = []
        #: oid -> tid of the revision whose blob the new revision gets.
        self.blob_copies: dict[int, int] = {}
        #: The tids of transactions that are undone.
        self.undone: list[int] = []
        #: What the commit steps must remember from one to the next.
        self.progress: Any = None

    @property
    def knows_removals_to(self) -> int:
        """The tid after which a removal is news; what is restored, or stored without ever having polled, waits for
        none."""
        return ids.MAX_TID if self.view is None or self.restoring else self.view

    def close(self) -> None:
        self.records.close()


def read_conflict(oid: int, wanted: int, current: int | None) -> VoteReadConflictError:
    """Return the error that an object was not to change and has changed, or is gone.

    A missing row is a conflict too: else a deletion slips in between the read and this commit.
    """
    return VoteReadConflictError(oid=ids.to_bytes(oid), serials=(ids.to_bytes(current or 0), ids.to_bytes(wanted)))


def find_conflicts(
    commit: StagedCommit, differing: Iterable[tuple[int, int | None]], committed_state: Callable[[int], bytes | None]
) -> list[Conflict]:
    """Return which of the staged records are conflicts.

    ``differing`` are (oid, current tid or None) of those that were not made from the current revision. A first store
    of an object that exists is a conflict unless both states are the same; so is a change of one that does not exist.
    A storage that never polled may make such a change all the same: DemoStorage keeps changes of another one's
    objects.
    """
    conflicts = []
    for oid, tid in differing:
        base, kind = commit.records.basis(oid)
        if kind is Kind.RESTORE:
            continue
        if tid is None and kind is not Kind.DELETE and (base == 0 or commit.view is None):
            continue
        state = committed_state(oid) if tid is not None else None
        if base == 0 and tid is not None and kind is Kind.STORE:
            staged = commit.records.get(oid)
            if staged is not None and staged.state == state:
                continue
        conflicts.append(Conflict(oid, base, tid, state))
    return conflicts


@implementer(ICommitSteps)
class DirectCommit:
    """Commit steps for a database with one write lock that is held from vote to finish."""

    lock_is_fair = False

    def __init__(self, statements: Statements, blob_store: Any):
        self._sql = statements
        self._blobs = blob_store

    def rehearse(self, session: Any) -> None:
        """Do nothing: a session of an embedded database commits as fast the first time."""

    def vote(self, session: Any, commit: StagedCommit) -> Verdict:
        session.begin_write()
        oids = [oid for oid, _, kind in commit.records.bases() if kind is not Kind.RESTORE]
        current = self._current_tids(session, [*oids, *commit.read_current])
        for oid, tid in commit.read_current.items():
            if current.get(oid) != tid:
                raise read_conflict(oid, tid, current.get(oid))

        def committed_state(oid: int) -> bytes | None:
            row = session.row(self._sql.current_state, (oid,))
            return None if row is None else row[0]

        differing = [(oid, current.get(oid)) for oid, base, _ in commit.records.bases() if current.get(oid) != base]
        conflicts = find_conflicts(commit, differing, committed_state)
        return Verdict(conflicts, session.row(self._sql.removals_since, (commit.knows_removals_to,)) is not None)

    def _current_tids(self, session: Any, oids: list[int]) -> dict[int, int]:
        if len(oids) == 1:
            row = session.row(self._sql.current_tid, (oids[0],))
            return {} if row is None else {oids[0]: row[0]}
        return dict(session.rows(self._sql.current_tids, (oids,))) if oids else {}

    def prepare(self, session: Any, commit: StagedCommit, resolved: Collection[int]) -> None:
        sql = self._sql
        newest = session.row(sql.newest_tid)[0]
        if commit.tid is None:
            commit.tid = ids.next_tid(newest)
        tid = commit.tid
        facts = commit.metadata
        for step in sql.begin_transaction:
            session.run(step, (tid, facts.packed, facts.username, facts.description, facts.extension))
        for step in sql.clear_blobs:
            session.run_many(step, [(oid, tid) for oid in self._with_old_blobs(commit)])
        for step in sql.put_revision if commit.restoring else sql.put:
            session.run_many(step, commit.records.rows(tid, len(step.parameters)))
        for oid in commit.records.removals():
            for step in sql.remove:
                session.run(step, step.fit((oid, tid)))
        for oid, from_tid in commit.blob_copies.items():
            session.run(sql.copy_blob, (oid, tid, from_tid))
        for oid, path in commit.blobs:
            self._blobs.put(session, oid, tid, path)
        if commit.restoring and tid <= newest:
            # Polls ask for larger tids only, so they would never see this one: tell them that everything may have
            # changed.
            session.run(sql.note_removed, (ids.EVERYTHING, ids.next_tid(newest)))

    def _with_old_blobs(self, commit: StagedCommit) -> list[int]:
        """Return the objects that may have a blob which this commit replaces. A new object has none, which is worth
        knowing."""
        new_blobs = {oid for oid, _ in commit.blobs}
        return [
            oid
            for oid, base, _ in commit.records.bases()
            # A blob that a copy takes over must survive until then.
            if (base or commit.restoring or oid in new_blobs) and oid not in commit.blob_copies
        ]

    def finish(self, session: Any, commit: StagedCommit, before_commit: Callable[[int], None] | None = None) -> int:
        assert commit.tid is not None
        if before_commit is not None:
            before_commit(commit.tid)
        session.commit()
        return commit.tid

    def committed_tid(self, session: Any, commit: StagedCommit) -> int | None:
        if commit.tid is None:
            return None
        session.begin_snapshot()
        try:
            found = session.row(self._sql.has_transaction, (commit.tid,))
        finally:
            session.rollback()
        return None if found is None else commit.tid

    def lock_and_choose_tid(self, session: Any, drained: bool = False) -> int:
        session.begin_write()
        return ids.next_tid(session.row(self._sql.newest_tid)[0])
