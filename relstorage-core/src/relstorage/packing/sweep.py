"""Sweep: remove what a complete mark lists, a batch at a time.

First, what became reachable since the mark is taken off the list. With the last of that, in one transaction, the list
becomes final: votes refuse references to what is on it from then on, so that it does not matter in which order it is
removed. Each batch is one transaction with a tid of its own, so that every other process sees in its next poll what is
gone. It has the commit lock from its beginning, or only at its end, where ``pack_remove_next`` does all the work. An
interrupted sweep goes on with what is still listed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from relstorage.errors import MarkIncomplete, PackError
from relstorage.ids import EVERYTHING, seconds_at, tid_at
from relstorage.packing.progress import Reporter
from relstorage.packing.rescue import OIDS, Rescue, chunks, find_rescue

log = logging.getLogger(__name__)

MARKING, MARKED, SWEEPING, DONE = "marking", "marked", "sweeping", "done"

#: How long a batch should take, in seconds, and how long others get it between two batches. Whoever
#: waits on SQLite looks every few milliseconds, and who misses a pause waits for one more batch.
BATCH_SECONDS = 0.05
PAUSE_SECONDS = 0.01
#: How many entries of the list one batch removes, at first and at most. A server may need a lock for each blob.
FEWEST, MOST = 100, 4000
#: How many transactions are sealed or tidied at once.
TRANSACTIONS = 20_000
#: So few records can be looked at under the lock. Where writers are too fast for that, so many rounds are enough.
FEW_RECORDS, ROUNDS = 1000, 10
#: How many blob files are compared with the records at once, and how many are removed under the lock at once.
FILES, FILES_UNDER_LOCK = 1000, 100
#: How long a removal is remembered for connections that have not polled since.
REMEMBER_SECONDS = 7 * 24 * 3600


class Courtesy:
    """Leaves the commit lock alone for ``PAUSE_SECONDS`` each time it was held for twice as long or longer.

    Where who waits gets the lock in turn, that is not needed.
    """

    def __init__(self, commit_steps: Any) -> None:
        self._held = 0.0
        self._needless = commit_steps.lock_is_fair

    def after(self, held: float) -> None:
        """Pause if it is time to, after a transaction that held the lock for so many seconds."""
        if self._needless:
            return
        self._held += held
        if self._held >= 2 * PAUSE_SECONDS:
            self._held = 0.0
            time.sleep(PAUSE_SECONDS)


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
        #: How long the last transaction took, without waiting for the lock at its beginning.
        self._held = 0.0
        self._courtesy = Courtesy(adapter.commit_steps)
        self.objects = 0
        self.revisions = 0
        self.rescued = 0

    def run(self, run: Run) -> None:
        """Remove everything on the list of a run that was marked completely."""
        if run.phase not in (MARKED, SWEEPING):
            state = "not complete" if run.phase == MARKING else "used up"
            raise MarkIncomplete(
                f"Packing: the mark of run {run.run} is {state}, so there is nothing that could be removed safely. "
                "Nothing was removed. Run the pack without using an earlier mark."
            )
        # A sweep that was interrupted looks again too: RelStorage, which knows nothing of the list, may have been here.
        self._reporter.begin("check", None)
        checked = self._catch_up(run)
        if run.phase == MARKED:
            self._in_windows(run, self._sql.pack_seal)
        self._in_transaction(lambda tid: self._condemn(run, checked, tid), drained=True)
        self._reporter.begin("sweep", self._session.row(self._sql.pack_count_garbage, (run.run,))[0])
        self._remove(run)
        self._in_windows(run, self._sql.pack_finish)
        self._reporter.report(self.revisions, final=True)

    def _in_transaction(self, work: Callable[[int], Any], drained: bool = False) -> Any:
        tid = self._steps.lock_and_choose_tid(self._session, drained)
        return self._committed(partial(work, tid))

    def _committed(self, work: Callable[[], Any]) -> Any:
        """Do the work of the transaction that was begun, and commit it."""
        began = time.monotonic()
        try:
            result = work()
            self._session.commit()
            self._held = time.monotonic() - began
            return result
        except BaseException:
            self._session.rollback()
            raise

    def _in_windows(self, run: Run, steps: Sequence[Any]) -> None:
        """Execute steps over the transactions up to the pack's tid, a few at a time."""

        def window(start: int, _tid: int) -> int | None:
            stop = self._session.row(self._sql.pack_window, (start, run.pack_tid, TRANSACTIONS))[0]
            if stop is not None:
                for step in steps:
                    self._session.run(step, step.fit((stop, start)))
            return stop

        start: int | None = 0
        while start is not None and steps:
            start = self._in_transaction(partial(window, start))
            self._courtesy.after(self._held)

    # --- what became reachable since the mark

    def _catch_up(self, run: Run) -> int:
        """Look at what was committed since the mark until little is left to look at; return up to which tid that was.

        Nobody waits meanwhile: it reads in snapshots.
        """
        sql, checked = self._sql, run.checked_tid
        for _ in range(ROUNDS):
            # Not on another session: a replica may know the list of garbage later than the records that refer to it.
            self._session.begin_snapshot()
            newest = self._session.row(sql.newest_tid)[0]
            found = find_rescue(self._session, sql, run.run, checked, self._find)
            self._session.rollback()
            checked = newest
            self._session.begin_write()
            self._take_off(run, found)
            self._session.run(sql.pack_progress, (run.run, run.removed, checked))
            self._session.commit()
            self._reporter.report(self.rescued)
            if found.records < FEW_RECORDS:
                break
        return checked

    def _condemn(self, run: Run, checked: int, tid: int) -> None:
        """Make the list final: from this transaction on, no commit may refer to what is on it, or change it.

        Every other transaction either has ended, so that its records are looked at here, or finds the list when it
        votes.
        """
        now = newest_run(self._session, self._sql)
        if now is None or (now.run, now.phase) != (run.run, run.phase):
            # The connection that had the pack lock must have been lost: another pack may be removing the list.
            raise PackError(
                f"Packing: another pack has begun since run {run.run} was marked, and may have taken its list apart. "
                "Nothing was removed. Pack again."
            )
        self._take_off(run, find_rescue(self._session, self._sql, run.run, checked, self._find))
        self._session.run(self._sql.pack_progress, (run.run, run.removed, tid))
        self._session.run(self._sql.pack_phase, (run.run, SWEEPING))

    def _take_off(self, run: Run, found: Rescue) -> None:
        for oids in chunks(found.oids, OIDS):
            self._session.run(self._sql.pack_rescue, (run.run, oids))
        if found.oids:
            self.rescued += len(found.oids)
            log.info("Pack run %s keeps %s objects that became reachable", run.run, len(found.oids))

    # --- removing

    def _remove(self, run: Run) -> None:
        limit, removed = FEWEST, run.removed
        while True:
            if self._sql.pack_remove_next:
                self._session.begin_write()
                count = self._committed(partial(self._remove_next, run, limit))
            else:
                count = self._in_transaction(partial(self._batch, run, limit, removed))
            if not count:
                return
            removed += count
            self._reporter.report(self.revisions)
            # To wait long for the lock is no reason to do less with it.
            if self._held < self._batch_seconds / 2:
                limit = min(2 * limit, MOST)
            elif self._held > self._batch_seconds:
                limit = max(limit // 2, 1)
            self._courtesy.after(self._held)

    def _remove_next(self, run: Run, limit: int) -> int:
        """Have the database remove what is next on the list; return how much it was."""
        entries, objects = self._session.row(self._sql.pack_remove_next[0], (run.run, limit))
        self.objects += objects
        self.revisions += entries
        return int(entries)

    def _batch(self, run: Run, limit: int, removed: int, tid: int) -> int:
        """Remove what is next on the list; return how much it was."""
        session, sql = self._session, self._sql
        batch = session.rows(sql.pack_garbage, (run.run, limit))
        if not batch:
            return 0
        whole = [(oid, revision) for oid, revision, is_whole in batch if is_whole]
        current = dict(session.rows(sql.current_tids, ([oid for oid, _ in whole],))) if whole else {}
        # An object that has another tid than the mark saw stays.
        gone = [(oid, revision) for oid, revision in whole if current.get(oid) == revision]
        for step in sql.remove_object:
            count = len(step.parameters)
            session.run_many(step, [pair[:count] for pair in gone])
        session.run_many(sql.note_removed, [(oid, tid) for oid, _ in gone])
        single = [(oid, revision) for oid, revision, is_whole in batch if not is_whole]
        for step in sql.remove_revision:
            count = len(step.parameters)
            session.run_many(step, [pair[:count] for pair in single])
        for step in sql.pack_done:
            session.run(step, (run.run, batch[-1][0], batch[-1][1]))
        session.run(sql.pack_progress, (run.run, removed + len(batch), tid))
        self.objects += len(gone)
        self.revisions += len(batch)
        return len(batch)


def finish(session: Any, adapter: Any, run: Run) -> None:
    """Note that a run has removed everything.

    ``session`` is a store session, because a pack session may be less durable: what that wrote is durable with this
    commit.
    """
    sql = adapter.statements
    tid = adapter.commit_steps.lock_and_choose_tid(session)
    # By the clock of the database: this process's may be wrong.
    horizon = tid_at(seconds_at(tid) - REMEMBER_SECONDS)
    if session.run(sql.prune_removed, (horizon,)):
        # Whoever has not polled since then must take everything for changed.
        session.run(sql.note_removed, (EVERYTHING, horizon))
    session.run(sql.pack_phase, (run.run, DONE))
    session.commit()


def remove_orphaned_blobs(session: Any, adapter: Any, blobs: Any, pack_tid: int) -> int:
    """Remove the blob files up to the pack's tid whose revision is gone; return how many there were.

    The files are compared with the records, instead of being removed with them, so that an interruption leaves none
    behind.
    """
    removed = 0
    chunk: list[tuple[int, int]] = []
    for revision in blobs.all_revisions():
        if revision[1] <= pack_tid:
            chunk.append(revision)
            if len(chunk) == FILES:
                removed += _remove_orphans(session, adapter, blobs, chunk)
                chunk.clear()
    return removed + _remove_orphans(session, adapter, blobs, chunk)


def _remove_orphans(session: Any, adapter: Any, blobs: Any, files: list[tuple[int, int]]) -> int:
    orphans = _orphans(session, adapter.statements, files)
    removed = 0
    for start in range(0, len(orphans), FILES_UNDER_LOCK):
        # A transaction that is being restored may have placed a file with an old tid and not committed yet: look again.
        adapter.commit_steps.lock_and_choose_tid(session, True)
        try:
            removed += blobs.forget(_orphans(session, adapter.statements, orphans[start : start + FILES_UNDER_LOCK]))
        finally:
            session.rollback()
    return removed


def _orphans(session: Any, sql: Any, files: list[tuple[int, int]]) -> list[tuple[int, int]]:
    alive = set(session.rows(sql.revision_tids, (sorted({oid for oid, _ in files}),))) if files else ()
    return [revision for revision in files if revision not in alive]
