"""Sweep: remove what a complete mark lists, a batch at a time, under the commit lock.

Each batch is one transaction with a tid of its own, so that every other process sees in its next poll what is gone, and a commit that
began earlier can tell that it refers to something removed. Before it removes anything, a batch follows what was committed
since the mark and takes whatever became reachable off the list. An interrupted sweep goes on with what is still listed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from relstorage.errors import MarkIncomplete, UnreadableState
from relstorage.ids import tid_at
from relstorage.packing.progress import Reporter
from relstorage.references import possible_references

log = logging.getLogger(__name__)

MARKING, MARKED, SWEEPING, DONE = "marking", "marked", "sweeping", "done"

#: How long a batch should hold the commit lock, in seconds, and how long others get it between two batches.
BATCH_SECONDS = 0.2
PAUSE_SECONDS = 0.01
#: How long a removal is remembered for connections that have not polled since.
REMEMBER_SECONDS = 7 * 24 * 3600


class Run(NamedTuple):
    """A pack run as the database records it."""

    run: int
    pack_tid: int
    view_tid: int
    phase: str
    collect: int
    started: int
    removed: int
    checked_tid: int


def newest_run(session: Any, sql: Any) -> Run | None:
    """Return the newest run, or None if there was never one."""
    row = session.row(sql.pack_run)
    return None if row is None else Run(*row)


class Sweep:
    """The removing half of one run."""

    def __init__(
        self,
        session: Any,
        adapter: Any,
        find: Callable[[bytes], list[int]],
        reporter: Reporter,
        batch_seconds: float,
    ):
        self._session = session
        self._sql = adapter.statements
        self._steps = adapter.commit_steps
        self._find = find
        self._reporter = reporter
        self._batch_seconds = min(BATCH_SECONDS, batch_seconds)
        self.objects = 0
        self.revisions = 0
        self.rescued = 0

    def run(self, run: Run) -> None:
        """Remove everything on the list of a run that was marked completely."""
        if run.phase not in (MARKED, SWEEPING):
            raise MarkIncomplete(
                f"Packing: the mark of run {run.run} is {'not complete' if run.phase == MARKING else 'used up'}, so there is nothing "
                "that could be removed safely. Nothing was removed. Run the pack without using an earlier mark."
            )
        total = self._session.row(self._sql.pack_count_garbage, (run.run,))[0]
        self._reporter.begin("sweep", total)
        # First of all undo is refused: an undo could otherwise find a revision gone and take it for the object's creation.
        self._in_transaction(lambda tid: self._seal(run))
        limit, checked = 100, run.checked_tid
        removed = run.removed
        while True:
            began = time.monotonic()
            batch, checked = self._in_transaction(lambda tid, c=checked: self._batch(run, tid, c, limit, removed))
            if not batch:
                break
            removed += len(batch)
            self._reporter.report(self.revisions)
            seconds = time.monotonic() - began
            if seconds < self._batch_seconds / 2:
                limit *= 2
            elif seconds > self._batch_seconds:
                limit = max(limit // 2, 1)
            time.sleep(PAUSE_SECONDS)
        self._in_transaction(lambda tid: self._finish(run, tid))
        self._reporter.report(self.revisions, final=True)

    def _in_transaction(self, work: Callable[[int], Any]) -> Any:
        tid = self._steps.lock_and_choose_tid(self._session)
        try:
            result = work(tid)
            self._session.commit()
            return result
        except BaseException:
            self._session.rollback()
            raise

    def _seal(self, run: Run) -> None:
        for step in self._sql.pack_seal:
            self._session.run(step, (run.pack_tid,))
        self._session.run(self._sql.pack_phase, (run.run, SWEEPING))

    def _batch(self, run: Run, tid: int, checked: int, limit: int, removed: int) -> tuple[list[Any], int]:
        session, sql = self._session, self._sql
        self._rescue_linked(run, checked)
        batch = session.rows(sql.pack_garbage, (run.run, limit))
        if not batch:
            return batch, tid
        whole = [(oid, revision) for oid, revision, is_whole in batch if is_whole]
        current = dict(session.rows(sql.current_tids, ([oid for oid, _ in whole],))) if whole else {}
        # An object that was written since has another tid and stays.
        gone = [(oid, revision) for oid, revision in whole if current.get(oid) == revision]
        for step in sql.remove_object:
            count = len(step.parameters)
            session.run_many(step, [pair[:count] for pair in gone])
        session.run_many(sql.note_removed, [(oid, tid) for oid, _ in gone])
        single = [(oid, revision) for oid, revision, is_whole in batch if not is_whole]
        for step in sql.remove_revision:
            count = len(step.parameters)
            session.run_many(step, [pair[:count] for pair in single])
        session.run(sql.pack_done, (run.run, batch[-1][0], batch[-1][1]))
        session.run(sql.pack_progress, (run.run, removed + len(batch), tid))
        self.objects += len(gone)
        self.revisions += len(batch)
        return batch, tid

    def _rescue_linked(self, run: Run, checked: int) -> None:
        """Take off the list what was written or linked after ``checked``, and all that can be reached from it."""
        session, sql = self._session, self._sql
        pending: set[int] = set()
        for oid, _, state in session.stream(sql.records_since, (checked,)):
            pending.add(oid)
            pending.update(self._references(state))
        while pending:
            listed = [row[0] for row in session.rows(sql.pack_is_garbage, (run.run, sorted(pending)))]
            if not listed:
                return
            session.run(sql.pack_rescue, (run.run, listed))
            self.rescued += len(listed)
            log.info("Pack run %s keeps %s objects that became reachable", run.run, len(listed))
            pending = set()
            for _, _, state in session.rows(sql.object_revisions, (listed,)):
                pending.update(self._references(state))

    def _references(self, state: bytes | None) -> Iterable[int]:
        if not state:
            return ()
        try:
            return self._find(state)
        except UnreadableState:
            return possible_references(state, self._exists)

    def _exists(self, oid: int) -> bool:
        return 0 <= oid < 1 << 63 and self._session.row(self._sql.current_tid, (oid,)) is not None

    def _finish(self, run: Run, tid: int) -> None:
        session, sql = self._session, self._sql
        for step in sql.pack_finish:
            session.run(step, (run.pack_tid,))
        horizon = tid_at(time.time() - REMEMBER_SECONDS)
        if session.run(sql.prune_removed, (horizon,)):
            # Whoever has not polled since then must take everything for changed.
            session.run(sql.note_removed, (-1, horizon))
        session.run(sql.pack_phase, (run.run, DONE))


def remove_orphaned_blobs(session: Any, sql: Any, blobs: Any, pack_tid: int) -> int:
    """Remove the blob files up to the pack's tid whose revision is gone; return how many there were.

    The files are compared with the records, instead of being removed with them, so that an interruption leaves none behind.
    """
    removed = 0
    chunk: list[tuple[int, int]] = []

    def check() -> int:
        alive = set(session.rows(sql.revision_tids, (sorted({oid for oid, _ in chunk}),)))
        return blobs.forget([revision for revision in chunk if revision not in alive])

    for oid, tid in blobs.all_revisions():
        if tid > pack_tid:
            continue
        chunk.append((oid, tid))
        if len(chunk) == 1000:
            removed += check()
            chunk.clear()
    return removed + check() if chunk else removed
