"""A commit in two round trips: a vote that locks and says what stands against it, a finish that makes it current.

The staged records go to the server with the vote and wait there, inside the transaction: as the parameters of a cursor,
or, if they are many, in a temporary table that a cursor reads. Nothing is written twice, and nothing is left behind for
the server to clean up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ZODB.POSException import ConflictError
from zope.interface import implementer

from relstorage.database.commit import (
    DirectCommit,
    Kind,
    Spool,
    StagedCommit,
    Verdict,
    find_conflicts,
    read_conflict,
)
from relstorage.errors import (
    Disconnected,
    DriverError,
    LockError,
    RelStorageError,
    UnableToAcquireCommitLockError,
    UnableToLockRowsDeadlockError,
    UnableToLockRowsToModifyError,
)
from relstorage.interfaces import ICommitSteps
from relstorage.sql import Statement, Statements
from relstorage_postgresql.drivers.failures import AlreadyThere
from relstorage_postgresql.drivers.settings import milliseconds
from relstorage_postgresql.functions import COMMIT, CURSOR, DRAIN, LOCK_CLASS, Functions
from relstorage_postgresql.statements import call

#: Up to so many bytes of states go to the server in one piece, which its memory holds until the end.
PIECE = 4_000_000
#: Who waits for all transactions to end keeps others from voting meanwhile, so it waits for so many seconds at a time.
FIRST_PATIENCE, LONGEST_PATIENCE = 0.05, 1.0
#: A rehearsal waits for locks no longer than so many seconds.
REHEARSAL = 0.05

_STAGE = call(
    "stage",
    "INSERT INTO pg_temp.rs_staged VALUES (:part, :changed, :states, :new, :new_states)",
    "part changed states new new_states",
    lists="changed states new new_states",
)
_RESTAGE = call(
    "restage",
    """UPDATE pg_temp.rs_staged SET changed = :changed, states = :states, new = :new, new_states = :new_states
    WHERE part = :part""",
    "part changed states new new_states",
    lists="changed states new new_states",
)
_FORGET = Statement("forget staged", f"CLOSE {CURSOR}", (), ())
_HOLD = call(
    "hold staged",
    f"DECLARE {CURSOR} NO SCROLL CURSOR FOR SELECT :changed, :states, :new, :new_states",
    "changed states new new_states",
    lists="changed states new new_states",
)
_HOLD_TABLE = Statement(
    "hold staged table",
    f"""DECLARE {CURSOR} NO SCROLL CURSOR FOR
    SELECT changed, states, new, new_states FROM pg_temp.rs_staged ORDER BY part""",
    (),
    (),
)
_TABLE = """
    CREATE TEMPORARY TABLE rs_staged (
        part bigint PRIMARY KEY, changed bigint[], states bytea[], new bigint[], new_states bytea[])
    ON COMMIT DROP"""
# The log is on disk, with everything before it, when a transaction that has written to it has ended.
# https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION
_CONFIRM = """
    SELECT tid, pg_logical_emit_message(TRUE, 'relstorage', '')::text FROM {schema}rs_commit
    WHERE session = :session AND serial = :serial"""
_SELF = call("self", "SELECT pg_backend_pid()::bigint, txid_current()", "", "pid xid")
_STILL_RUNNING = call(
    "still running",
    """SELECT pid::bigint FROM pg_locks WHERE locktype = 'transactionid' AND granted
    AND pid = :pid AND transactionid::text::bigint = :xid & 4294967295""",
    "pid xid",
    "pid",
)
_END_PROCESS = call("end process", "SELECT pg_terminate_backend(:pid::int)", "pid", "ended")
_HOLDER_OF_LOCK = call(
    "holder of lock",
    f"""SELECT pid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()
    AND classid = ({LOCK_CLASS})::oid AND objid = :number::int::oid LIMIT 1""",
    "number",
    "pid",
)


@dataclass
class _Piece:
    """Records that go to the server together."""

    changed: list[int] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    new_states: list[bytes] = field(default_factory=list)

    def parameters(self) -> tuple[Any, ...]:
        return self.changed, self.states, self.new, self.new_states


@dataclass
class _Progress:
    """What a commit must remember from vote to finish."""

    session: int
    serial: int
    pid: int
    xid: int
    #: The first oid of each piece but the first.
    borders: list[int] = field(default_factory=list)
    #: Objects that were to be new and are there, and the other way round.
    strange: set[int] = field(default_factory=set)
    blob_oids: list[int] = field(default_factory=list)
    blobs: list[int] = field(default_factory=list)
    #: The incarnation of the server that ``pid`` and ``xid`` are numbers of.
    server: Any = None


@implementer(ICommitSteps)
class PostgresCommit:
    """The commit steps of PostgreSQL."""

    lock_is_fair = True

    def __init__(
        self,
        name: str,
        statements: Statements,
        functions: Functions,
        blob_store: Any,
        *,
        current: str,
        schema: str | None,
        lock_timeout: float,
        early_lock_release: bool,
    ):
        self._name = name
        self._sql = statements
        self._blobs = blob_store
        self._restore = DirectCommit(statements, blob_store)
        self._lock_timeout = lock_timeout
        self._timeout = milliseconds(lock_timeout)
        self._early = early_lock_release
        vote_lists = "changed bases stored states new new_states read read_tids"
        self._vote = call(
            "vote",
            f"""SELECT kind, zoid, tid, state FROM {functions.vote.name}(:changed, :bases, :stored, :states, :new,
            :new_states, :read, :read_tids, :view, :in_table, :timeout::int)""",
            f"{vote_lists} view in_table timeout",
            "kind zoid tid state",
            vote_lists,
        )
        self._finish = call(
            "finish",
            f"""SELECT {functions.finish.name}(:session, :serial, :early, :username, :description,
            :extension, :deleted, :blob_zoids, :blobs, :copy_zoids, :copy_tids)""",
            """session serial early username description extension deleted blob_zoids blobs copy_zoids
            copy_tids""",
            "tid",
            "deleted blob_zoids blobs copy_zoids copy_tids",
        )
        self._choose = call("choose tid", f"SELECT {functions.choose_tid.name}(:timeout::int)", "timeout", "tid")
        # It runs after the transaction, when a pooled session knows no search path any more.
        confirm = _CONFIRM.format(schema="" if schema is None else f"{schema}.")
        self._confirm = call("confirm", confirm, "session serial", "tid message")
        self._drain = call("drain", f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, {DRAIN})::text", "", "void")
        self._lockable = call(
            "lockable", f"SELECT zoid FROM {current} WHERE zoid = ANY(:oids) FOR NO KEY UPDATE SKIP LOCKED", "oids",
            "zoid", "oids",
        )  # fmt: skip
        self._holder_of_row = call(
            "holder of row",
            f"""SELECT pid::bigint FROM {current} c JOIN pg_locks l ON l.transactionid = c.xmax AND l.granted
            WHERE c.zoid = ANY(:oids) AND l.pid <> pg_backend_pid() LIMIT 1""",
            "oids",
            "pid",
            "oids",
        )

    def rehearse(self, session: Any) -> None:
        # The server's process of a new session compiles and plans the functions first. After the second time, the
        # driver has prepared the statement.
        nothing: tuple[Any, ...] = (*([],) * 8, 0, False, milliseconds(REHEARSAL))
        session.begin_commit()
        session.batch((self._vote, nothing))
        session.batch((_FORGET, ()), (self._vote, nothing))
        session.batch((self._finish, (session.identity, 0, self._early, b"", b"", b"", [], [], [], [], [])))
        session.rollback()

    # --- vote

    def vote(self, session: Any, commit: StagedCommit) -> Verdict:
        if commit.restoring:
            # What is restored is compared with nothing, and may have any tid, so that nobody may be half-way.
            self.lock_and_choose_tid(session, drained=True)
            commit.progress = _Progress(session.identity, session.serial, *session.row(_SELF))
            return Verdict([], False)
        locked = [(oid, base) for oid, base, kind in commit.records.bases() if base or kind is Kind.DELETE]
        read = self._to_stay(commit, dict(locked))
        pieces = _pieces(commit.records)
        first = next(pieces)
        session.begin_commit()
        second = next(pieces, None)
        borders = []
        if second is not None:
            session.script(_TABLE)
            for part, piece in enumerate(chain((first, second), pieces)):
                session.batch((_STAGE, (part, *piece.parameters())))
                if part:
                    borders.append(min((*piece.changed[:1], *piece.new[:1])))
            first = _Piece(new=[oid for oid, base, kind in commit.records.bases() if not base and kind is Kind.STORE])
        stored, states, new, new_states = first.parameters()
        view = commit.knows_removals_to
        parameters = (
            [oid for oid, _ in locked], [base for _, base in locked], stored, states, new, new_states,
            [oid for oid, _ in read], [tid for _, tid in read], view, second is not None, self._timeout,
        )  # fmt: skip
        try:
            rows = session.batch((self._vote, parameters))
        except LockError as error:
            raise self._who_holds(session, error, [oid for oid, _ in (*locked, *read)]) from error
        return self._judge(session, commit, rows, borders)

    def _to_stay(self, commit: StagedCommit, changed: dict[int, int]) -> list[tuple[int, int]]:
        """Return (oid, tid) of what is to stay as it was read and is not changed by the transaction itself."""
        read = []
        for oid, tid in sorted(commit.read_current.items()):
            if oid not in changed:
                read.append((oid, tid))
            elif changed[oid] != tid:
                raise read_conflict(oid, tid, changed[oid])
        return read

    def _judge(self, session: Any, commit: StagedCommit, rows: list[Any], borders: list[int]) -> Verdict:
        *found, (removals, pid, xid, _) = rows
        for kind, oid, tid, _ in found:
            if kind == 3:
                raise read_conflict(oid, commit.read_current[oid], tid)
        states = {oid: state for _, oid, _, state in found}
        conflicts = find_conflicts(commit, ((oid, tid) for _, oid, tid, _ in found), states.__getitem__)
        session.serial += 1
        # What is not a conflict all the same is a first store of a state that is there, or the change of an object that
        # is not.
        strange = set(states) - {conflict.oid for conflict in conflicts}
        commit.progress = _Progress(session.identity, session.serial, pid, xid, borders, strange)
        return Verdict(conflicts, bool(removals))

    def _who_holds(self, session: Any, error: LockError, oids: list[int]) -> RelStorageError:
        """Return the error with what can be found out about the lock that was not to be had."""
        locked: list[int] = []
        holder = None
        session.rollback()
        try:
            session.begin_write()
            free = {oid for (oid,) in session.rows(self._lockable, (oids[:1000],))}
            locked = [oid for oid in oids[:1000] if oid not in free]
            row = session.row(self._holder_of_row, (locked,))
            holder = None if row is None else f"the server's process {row[0]}"
        except RelStorageError:
            pass  # the error to report is the first one
        finally:
            session.rollback()
        deadlock = isinstance(error, UnableToLockRowsDeadlockError)
        what = ", ".join(f"{oid:#x}" for oid in locked[:10]) or "the objects"
        return (UnableToLockRowsDeadlockError if deadlock else UnableToLockRowsToModifyError)(
            f"Committing to {self._name}: {'deadlock' if deadlock else 'timeout'} while locking {len(oids)} objects. "
            f"Another transaction has {what}{f' ({holder})' if holder else ''}. Run the transaction again.",
            oids=tuple(locked),
            waited=0.0 if deadlock else self._lock_timeout,
            holder=holder,
        )

    # --- prepare

    def prepare(self, session: Any, commit: StagedCommit, resolved: Collection[int]) -> None:
        if commit.restoring:
            self._restore.prepare(session, commit, resolved)
            return
        progress: _Progress = commit.progress
        if resolved or progress.strange:
            self._stage_again(session, commit, progress, {*resolved, *progress.strange})
        for oid, path in commit.blobs:
            progress.blob_oids.append(oid)
            progress.blobs.append(self._blobs.upload(session, path))

    def _stage_again(self, session: Any, commit: StagedCommit, progress: _Progress, oids: set[int]) -> None:
        if not progress.borders:
            # In one piece again, however large resolving has made it.
            (piece,) = _pieces(commit.records, progress.strange, ())
            session.batch((_FORGET, ()), (_HOLD, piece.parameters()))
            return
        for part, piece in enumerate(_pieces(commit.records, progress.strange, set(progress.borders))):
            if not oids.isdisjoint(piece.changed) or not oids.isdisjoint(piece.new):
                session.batch((_RESTAGE, (part, *piece.parameters())))
        session.batch((_FORGET, ()), (_HOLD_TABLE, ()))

    # --- finish

    def finish(self, session: Any, commit: StagedCommit, before_commit: Callable[[int], None] | None = None) -> int:
        progress: _Progress = commit.progress
        progress.server = session.known_incarnation
        if commit.restoring:
            return self._restore.finish(session, commit, before_commit)
        facts = commit.metadata
        finishing = (
            self._finish,
            (
                progress.session, progress.serial, self._early, facts.username, facts.description,
                facts.extension, commit.records.removals(), progress.blob_oids, progress.blobs,
                list(commit.blob_copies), list(commit.blob_copies.values()),
            ),
        )  # fmt: skip
        confirming = (self._confirm, (progress.session, progress.serial))
        try:
            if before_commit is None:
                rows = session.finish([finishing], [confirming])
            else:
                before_commit(session.batch(finishing)[0][0])
                rows = session.finish([], [confirming])
        except AlreadyThere as error:
            raise ConflictError(f"Another transaction made the same object: {error}") from error
        except LockError as error:
            raise self._who_has_the_commit_lock(session, error) from error
        except DriverError as error:
            if session.in_transaction or session.lost:
                raise
            raise Disconnected(f"{self._name}: after a commit: {error}") from error
        commit.tid = rows[0][0]
        return rows[0][0]

    def _who_has_the_commit_lock(self, session: Any, error: LockError) -> RelStorageError:
        session.rollback()
        holder = None
        try:
            session.begin_snapshot()
            row = session.row(_HOLDER_OF_LOCK, (COMMIT,))
            holder = None if row is None else f"the server's process {row[0]}"
        except RelStorageError:
            pass  # the error to report is the first one
        finally:
            session.rollback()
        return UnableToAcquireCommitLockError(
            f"Committing to {self._name}: {holder or 'another transaction'} has held the commit lock for "
            f"{self._lock_timeout:g} seconds. Run the transaction again; if it happens often, raise "
            "commit-lock-timeout, or look in pg_stat_activity for a process that commits large transactions.",
            waited=self._lock_timeout,
            holder=holder,
        )

    def committed_tid(self, session: Any, commit: StagedCommit) -> int | None:
        progress: _Progress | None = commit.progress
        if progress is None:
            return None
        # While its process lives, the transaction may still be committed. Another server has other processes; when it
        # was started, and its timeline, tell it.
        same = progress.server is None or session.incarnation()[:2] == progress.server[:2]
        deadline = time.monotonic() + self._lock_timeout
        ended = False
        while same and session.row(_STILL_RUNNING, (progress.pid, progress.xid)) is not None:
            if not ended:
                session.row(_END_PROCESS, (progress.pid,))
                ended = True
            if time.monotonic() > deadline:
                raise DriverError(f"{self._name}: the server's process {progress.pid} does not end its transaction.")
            time.sleep(0.02)
        if commit.restoring:
            return self._restore.committed_tid(session, commit)
        row = session.row(self._confirm, (progress.session, progress.serial))
        return None if row is None else row[0]

    # --- for packing and maintenance

    def lock_and_choose_tid(self, session: Any, drained: bool = False) -> int:
        if drained:
            self._wait_until_drained(session)
        else:
            session.begin_write()
        try:
            tid: int = session.row(self._choose, (self._timeout,))[0]
            return tid
        except LockError as error:
            raise self._who_has_the_commit_lock(session, error) from error

    def _wait_until_drained(self, session: Any) -> None:
        deadline = time.monotonic() + self._lock_timeout
        patience = FIRST_PATIENCE
        while True:
            session.begin_write(patience)
            try:
                session.row(self._drain)
                return
            except LockError as error:
                session.rollback()
                if time.monotonic() > deadline:
                    raise UnableToAcquireCommitLockError(
                        f"Waiting for all transactions on {self._name}: one has been between its vote and its end for "
                        f"{self._lock_timeout:g} seconds. Look in pg_stat_activity for sessions that are idle in "
                        "transaction.",
                        waited=self._lock_timeout,
                    ) from error
            # Those that came meanwhile go first.
            time.sleep(patience)
            patience = min(patience * 2, LONGEST_PATIENCE)


def _pieces(
    records: Spool, flipped: Collection[int] = (), borders: Collection[int] | None = None
) -> Iterator[_Piece]:
    """Cut the staged states into pieces; there is at least one. What is ``flipped`` is new instead of changed.

    With ``borders``, the first oids of the pieces but the first, they are cut where they were cut before.
    """
    at_hand = records.at_hand(PIECE) if not flipped and borders is None else None
    if at_hand is not None:
        yield _Piece(
            [oid for oid, base, _ in at_hand if base],
            [state for _, base, state in at_hand if base],
            [oid for oid, base, _ in at_hand if not base],
            [state for _, base, state in at_hand if not base],
        )
        return
    piece = _Piece()
    size = 0
    for oid, base, _, state in records:
        if state is None:
            continue
        if (size and size + len(state) > PIECE) if borders is None else oid in borders:
            yield piece
            piece, size = _Piece(), 0
        _add(piece, oid, bool(base) != (oid in flipped), state)
        size += len(state) + 32
    yield piece


def _add(piece: _Piece, oid: int, changed: bool, state: bytes) -> None:
    if changed:
        piece.changed.append(oid)
        piece.states.append(state)
    else:
        piece.new.append(oid)
        piece.new_states.append(state)
