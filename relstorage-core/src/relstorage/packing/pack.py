"""A pack from beginning to end: the lock, the run, mark, sweep, and what it reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from ZODB.POSException import ReadOnlyError

from relstorage import ids
from relstorage.database import Database
from relstorage.errors import MarkIncomplete, PackError
from relstorage.packing.mark import Broken, Mark, mark
from relstorage.packing.progress import PackProgress, Reporter
from relstorage.packing.sweep import (
    MARKED,
    MARKING,
    SWEEPING,
    Courtesy,
    Run,
    Sweep,
    finish,
    newest_run,
    remove_orphaned_blobs,
)
from relstorage.references import choose

log = logging.getLogger(__name__)

#: How many entries of the list of garbage one transaction writes: where others wait for it, and where nobody does.
LIST_BATCH, LARGE_LIST_BATCH = 5_000, 50_000


@dataclass
class PackReport:
    """What a pack found and did. Without a mark of its own (an earlier one was used) the findings are None."""

    pack_tid: int = 0
    run: int | None = None
    objects: int | None = None
    reachable: int | None = None
    removable_revisions: int | None = None
    removable_objects: int | None = None
    removable_bytes: int | None = None
    removed_revisions: int = 0
    removed_objects: int = 0
    rescued_objects: int = 0
    removed_blob_files: int = 0
    broken_records: int = 0
    broken: list[Broken] = field(default_factory=list)
    dangling_references: int = 0
    dangling: list[tuple[int, int]] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, found: Mark) -> None:
        """Take over what a mark found."""
        self.pack_tid = found.pack_tid
        self.objects, self.reachable = found.objects, found.reachable
        self.removable_revisions, self.removable_objects = found.removable_revisions, found.removable_objects
        self.removable_bytes = found.removable_bytes
        self.broken_records, self.broken = found.broken_count, found.broken
        self.dangling_references, self.dangling = found.dangling_count, found.dangling


def pack(
    database: Database,
    t: float | bytes | None,
    referencesf: Callable[..., Any],
    *,
    prepack_only: bool = False,
    skip_prepack: bool = False,
    dry_run: bool = False,
    collect: bool | None = None,
    progress: Callable[[PackProgress], None] | None = None,
) -> PackReport:
    """Remove the revisions and objects that nobody needs to see the database as of ``t`` and later.

    ``t`` is in seconds since the epoch; 8 bytes are a tid; None or a negative number mean now. ``prepack_only`` marks
    and stops, ``skip_prepack`` removes what the last mark listed (its time counts, not ``t``), ``dry_run`` only
    reports: it writes nothing, takes no lock, and may be made with a read-only storage. ``collect`` tells whether
    objects that cannot be reached are removed; None leaves that to the option ``pack-gc``. Raise
    ``UnableToAcquirePackUndoLockError`` if another pack of the database is running, and ``MarkIncomplete`` if there
    is no complete mark to use.
    """
    began = time.monotonic()
    reporter = Reporter(database.hooks, progress)
    find = choose(referencesf)
    report = PackReport()
    if collect is None:
        collect = database.options.pack_gc
    if dry_run:
        with closing(database.adapter.open_session("pack")) as session:
            _look(session, database, _tid(t), collect, find, reporter, report)
    elif database.options.read_only:
        raise ReadOnlyError(f"Packing {database.adapter.name}: the storage is read-only.")
    else:
        with database.adapter.pack_lock(0.0), closing(_Pack(database, collect, find, reporter, report)) as work:
            if not skip_prepack:
                work.resume()
                work.mark(_tid(t))
            if not prepack_only:
                work.sweep_marked()
    report.seconds = time.monotonic() - began
    return report


def check_references(
    database: Database, referencesf: Callable[..., Any], progress: Callable[[PackProgress], None] | None = None
) -> PackReport:
    """Follow every reference from the root and report those to objects that do not exist. Nothing is changed."""
    return pack(database, None, referencesf, dry_run=True, progress=progress)


def _tid(t: float | bytes | None) -> int | None:
    if t is None:
        return None
    if isinstance(t, bytes):
        return ids.to_int(t)
    if t < 0:
        return None
    # A number that is no moment of our era is a tid.
    return int(t) if t > 275085010696509852 else ids.tid_at(t)


def _look(
    session: Any,
    database: Database,
    pack_tid: int | None,
    collect: bool,
    find: Callable[[bytes], list[int]],
    reporter: Reporter,
    report: PackReport,
) -> Mark:
    """Mark in memory."""
    session.begin_snapshot()
    found = mark(session, database.statements, pack_tid, collect, find, reporter)
    session.rollback()
    report.take(found)
    for broken in found.broken:
        log.warning(
            "Object %#x (%s) cannot be read in transaction %#x; whatever it may refer to is kept",
            broken.oid,
            broken.class_name,
            broken.tid,
        )
    return found


class _Pack:
    """The steps of one pack, and the session they write with."""

    def __init__(
        self,
        database: Database,
        collect: bool,
        find: Callable[[bytes], list[int]],
        reporter: Reporter,
        report: PackReport,
    ):
        self._database = database
        self._collect = collect
        self._courtesy = Courtesy(database.adapter.commit_steps)
        self._sql = database.statements
        self._find = find
        self._reporter = reporter
        self._report = report
        self._session = database.adapter.open_session("pack")

    def close(self) -> None:
        self._session.close()

    def resume(self) -> None:
        """Finish a sweep that was interrupted.

        What it has left of its list must not be forgotten: some of that refers to what is gone.
        """
        run = newest_run(self._session, self._sql)
        if run is not None and run.phase == SWEEPING:
            name = self._database.adapter.name
            log.info("Pack run %s of %s was interrupted; removing what it has marked", run.run, name)
            self._sweep(run)

    def mark(self, pack_tid: int | None) -> None:
        """Mark, and record the list of garbage bound to a new run."""
        run = self._begin_run()
        session, sql = self._session, self._sql
        found = _look(session, self._database, pack_tid, self._collect, self._find, self._reporter, self._report)
        listed = 0
        self._reporter.begin("list", found.removable_revisions)
        size = LARGE_LIST_BATCH if self._database.adapter.commit_steps.lock_is_fair else LIST_BATCH
        for whole, oids, tids in found.garbage(size):
            with self._writing():
                if sql.pack_add_list:
                    session.run(sql.pack_add_list[0], (run, int(whole), oids.tolist(), tids.tolist()))
                else:
                    entries = zip(repeat(run), oids, tids, repeat(int(whole)))
                    session.run_many(sql.pack_add_garbage, entries)
            listed += len(oids)
            self._reporter.report(listed)
        session.begin_write()
        if not session.run(sql.pack_found, (run, found.pack_tid, found.view)):
            session.rollback()
            name = self._database.adapter.name
            raise PackError(f"Packing {name}: the database was emptied during the pack. Nothing was removed.")
        # Only now may anybody sweep.
        session.run(sql.pack_phase, (run, MARKED))
        session.commit()
        self._report.run = run

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Write one of several pieces, and let others in before the next."""
        self._session.begin_write()
        began = time.monotonic()
        yield
        self._session.commit()
        self._courtesy.after(time.monotonic() - began)

    def _begin_run(self) -> int:
        session, sql = self._session, self._sql
        last = newest_run(session, sql)
        if last is not None:
            self._forget(last)
        run = 1 if last is None else last.run + 1
        session.begin_write()
        # A list of this number can only be left over from before the database was emptied.
        for step in sql.pack_forget_run:
            session.run(step, (run,))
        session.run(sql.pack_begin, (run, 0, 0, MARKING, int(self._collect), int(time.time())))
        session.commit()
        return run

    def _forget(self, last: Run) -> None:
        """Remove an earlier run and its list, which may be long, a piece at a time."""
        session, sql = self._session, self._sql
        session.begin_write()
        # What is left of the list is no complete mark.
        session.run(sql.pack_phase, (last.run, MARKING))
        session.commit()
        # Where the list is one of few rows, it is not long.
        while sql.pack_done and (batch := session.rows(sql.pack_garbage, (last.run, LIST_BATCH))):
            with self._writing():
                session.run(sql.pack_done[0], (last.run, batch[-1][0], batch[-1][1]))
        session.begin_write()
        for step in sql.pack_forget_run:
            session.run(step, (last.run,))
        session.commit()

    def sweep_marked(self) -> None:
        """Sweep the newest run."""
        run = newest_run(self._session, self._sql)
        if run is None:
            raise MarkIncomplete(
                f"Packing {self._database.adapter.name}: there is no mark to use. Nothing was removed. "
                "Run the pack without using an earlier mark."
            )
        if run.collect and not self._collect:
            raise MarkIncomplete(
                f"Packing {self._database.adapter.name}: the mark of run {run.run} was made with pack-gc true, and now "
                "it is false. Nothing was removed. Run the pack without using an earlier mark."
            )
        self._sweep(run)

    def _sweep(self, run: Run) -> None:
        database, report = self._database, self._report
        sweep = Sweep(self._session, database.adapter, self._find, self._reporter, database.options.pack_batch_timeout)
        try:
            sweep.run(run)
            with database.store_sessions.session() as session:
                finish(session, database.adapter, run)
        finally:
            report.run, report.pack_tid = run.run, run.pack_tid
            report.removed_objects += sweep.objects
            report.removed_revisions += sweep.revisions
            report.rescued_objects += sweep.rescued
        if database.blobs is not None:
            report.removed_blob_files += remove_orphaned_blobs(
                self._session, database.adapter, database.blobs, run.pack_tid
            )
        log.info(
            "Packed %s up to tid %#x: removed %s objects and revisions, kept %s that became reachable",
            database.adapter.name,
            run.pack_tid,
            report.removed_revisions,
            report.rescued_objects,
        )
