"""``zodbconvert``: copy the storage ``source`` of a file into its storage ``destination``, transaction by transaction.

What has been copied is complete and durable at any time, up to some transaction. So a copy that was stopped, or a
source that has grown since, is continued with ``--incremental`` after the destination's last transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import click
from ZODB.FileStorage.FileStorage import FileIterator
from ZODB.interfaces import IStorageRestoreable
from ZODB.utils import z64

from relstorage.cli import running
from relstorage.cli.comparison import Comparison, compare
from relstorage.cli.configuration import conversion_storages
from relstorage.cli.progress import BYTES, Meter, meter, quantity
from relstorage.errors import CopyError, SchemaMissing
from relstorage.ids import to_bytes, to_int
from relstorage.storage import RelStorage
from relstorage.storage.copying import (
    BatchTarget,
    CopyProgress,
    SingleTarget,
    Target,
    copy_transactions,
    holds_blob,
)

_RESUME = (
    "What was copied until then is complete and durable. To go on, run the same command with --incremental, "
    "without --clear."
)


@dataclass
class Summary:
    """What a conversion did."""

    dry_run: bool = False
    interrupted: bool = False
    transactions: int = 0
    records: int = 0
    blobs: int = 0
    bytes: int = 0
    seconds: float = 0.0
    first_tid: str | None = None
    """Where an incremental conversion began."""
    last_tid: str | None = None
    missing_blobs: int = 0
    missing: list[dict[str, str]] = field(default_factory=list)
    destination_was_empty: bool | None = None
    """None where a dry run cannot tell."""
    verified: Comparison | None = None


@click.command(cls=running.Command, interrupted=_RESUME)
@running.configuration_argument
@click.option("--dry-run", is_flag=True, help="Read the source, say what would be copied, and change nothing.")
@click.option("--clear", is_flag=True, help="First remove everything from the destination.")
@click.option(
    "--incremental", is_flag=True, help="Copy what follows the last transaction of the destination. Resumes a copy."
)
@click.option(
    "--verify", is_flag=True, help="Afterwards compare both: counts, and the checksum of every record and blob."
)
@click.option("--no-blobs", is_flag=True, help="Copy the records of blobs without their files.")
@running.json_option
def convert(
    configuration: str, dry_run: bool, clear: bool, incremental: bool, verify: bool, no_blobs: bool, as_json: bool
) -> None:
    """Copy one storage into another, with all transactions and blobs.

    CONFIG is a ZConfig file with two storages, in sections that are named 'source' and 'destination'. A destination
    that has data already is refused, unchanged, without --clear or --incremental.
    """
    if clear and incremental:
        raise click.UsageError("--clear and --incremental contradict each other.")
    if dry_run and verify:
        raise click.UsageError("--dry-run copies nothing that --verify could look at.")
    conversion = Conversion(configuration, clear=clear, incremental=incremental, verify=verify, no_blobs=no_blobs)
    with running.Interruption() as interruption, conversion:
        summary = conversion.dry_run(interruption) if dry_run else conversion.run(interruption)
    if as_json:
        running.write_json(asdict(summary))
    else:
        _print(summary)
    if summary.interrupted:
        click.echo(f"Stopped. {'Nothing was changed.' if dry_run else _RESUME}", err=True)
        raise click.exceptions.Exit(running.INTERRUPTED)
    if summary.verified is not None and summary.verified.differences:
        raise click.exceptions.Exit(running.PROBLEM)


class Conversion:
    """The two storages, open from ``__enter__`` to ``__exit__``, and what is done with them."""

    def __init__(self, path: str, *, clear: bool, incremental: bool, verify: bool, no_blobs: bool):
        self._source_section, self._destination_section = conversion_storages(path)
        self._clear = clear
        self._incremental = incremental
        self._verify = verify
        self._no_blobs = no_blobs

    def __enter__(self) -> Conversion:
        self._open = ExitStack()
        try:
            self._source = self._open.enter_context(self._source_section.existing().opened())
            if not hasattr(self._source, "iterator"):
                raise CopyError(f"Converting: the source, {_name(self._source)}, cannot list its transactions.")
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *exc: Any) -> None:
        self._open.close()

    def run(self, interruption: running.Interruption) -> Summary:
        """Copy, and compare if that is wanted."""
        source = self._source
        destination = self._open.enter_context(self._destination_section.opened())
        if not IStorageRestoreable.providedBy(destination):
            raise CopyError(f"Converting: the destination, {_name(destination)}, cannot take copied transactions.")
        if destination.isReadOnly():
            raise CopyError(f"Converting: the destination, {_name(destination)}, is read-only.")
        _refuse_same_database(source, destination)
        last = newest_transaction(destination)
        if last is not None and not self._clear and not self._incremental:
            raise CopyError(
                f"Converting: the destination, {_name(destination)}, has data already; nothing was changed. "
                "Use --incremental to copy what follows its last transaction, or --clear to empty it first."
            )
        start = self._start(last)
        if self._clear and last is not None:
            _clear(destination)
        ours = isinstance(destination, RelStorage)
        target: Target = BatchTarget(destination.database) if ours else SingleTarget(destination)
        summary = Summary(destination_was_empty=last is None, first_tid=_shown(start))
        iterator = _iterator(source, start)
        gauge = Gauge(source, iterator, start is None)
        with meter("Copying", gauge.unit, gauge.total) as shown:

            def proceed(progress: CopyProgress) -> bool:
                gauge.show(shown, progress)
                return not interruption.requested

            progress = copy_transactions(
                source,
                target,
                destination.database.hooks if ours else None,
                proceed=proceed,
                skip_blobs=self._no_blobs,
                iterator=iterator,
            )
        _fill(summary, progress)
        summary.interrupted = interruption.requested
        if self._verify and not summary.interrupted:
            with meter("Comparing", "records") as shown:

                def update(done: float) -> None:
                    shown.update(done)
                    if interruption.requested:
                        raise KeyboardInterrupt

                summary.verified = compare(source, destination, update, with_blobs=not self._no_blobs)
        return summary

    def dry_run(self, interruption: running.Interruption) -> Summary:
        """Count what ``run`` would copy. The destination is opened only if it can be opened without a change."""
        last = None
        known: bool | None = None
        section = self._destination_section.read_only()
        if section.ours or self._incremental:
            try:
                with section.opened() as destination:
                    _refuse_same_database(self._source, destination)
                    last = newest_transaction(destination)
            except (SchemaMissing, FileNotFoundError):
                pass  # It does not exist yet, which is as good as empty.
            known = last is None
        start = self._start(last)
        summary = Summary(dry_run=True, destination_was_empty=known, first_tid=_shown(start))
        iterator = _iterator(self._source, start)
        gauge = Gauge(self._source, iterator, start is None)
        with meter("Counting", gauge.unit, gauge.total) as shown, _closing(iterator):
            for transaction in iterator:
                for record in transaction:
                    summary.records += 1
                    summary.bytes += len(record.data or b"")
                    summary.blobs += holds_blob(record.data)
                summary.transactions += 1
                summary.last_tid = _shown(transaction.tid)
                counted = summary.transactions, summary.records, summary.blobs, summary.bytes
                gauge.show(shown, CopyProgress(*counted, seconds=0.0, tid=transaction.tid))
                if interruption.requested:
                    summary.interrupted = True
                    break
        return summary

    def _start(self, last: bytes | None) -> bytes | None:
        """Return the tid at which to begin, given the last one of the destination; None for the very beginning."""
        if not self._incremental or last is None:
            return None
        source = self._source
        there = to_int(source.lastTransaction())
        if there < to_int(last):
            raise CopyError(
                f"Continuing after transaction {_shown(last)}: the source ends at {there:#018x}, before that. "
                "Nothing was changed. Is it the same database, and source and destination the right way round?"
            )
        supports_undo = getattr(source, "supportsUndo", None)
        if supports_undo is not None and supports_undo():
            # Without history the transaction may be gone, because every object of it was changed since.
            with _closing(source.iterator(last, last)) as transactions:
                if not any(transaction.tid == last for transaction in transactions):
                    raise CopyError(
                        f"Continuing after transaction {_shown(last)}: the source does not have it, so the "
                        "destination holds something else. Nothing was changed. Use --clear to begin again."
                    )
        return to_bytes(to_int(last) + 1)


class Gauge:
    """How far a copy is: in bytes of a FileStorage's file, in records that can be counted, or in transactions."""

    def __init__(self, source: Any, iterator: Any, whole: bool):
        self.unit = "transactions"
        self.total: float | None = None
        self._done: Callable[[CopyProgress], float] = lambda progress: progress.transactions
        if isinstance(iterator, FileIterator):
            begin = iterator._pos
            self.unit, self.total = BYTES, iterator._file_size - begin
            self._done = lambda progress: iterator._pos - begin
        elif isinstance(source, RelStorage) and whole:
            with source.database.store_sessions.session() as session:
                self.total = session.row(source.database.statements.revision_count)[0]
            self.unit = "records"
            self._done = lambda progress: progress.records

    def show(self, shown: Meter, progress: CopyProgress) -> None:
        """Tell a meter."""
        note = f"{progress.transactions:,} transactions, {progress.records:,} records, {progress.blobs:,} blobs"
        shown.update(self._done(progress), note)


def newest_transaction(storage: Any) -> bytes | None:
    """Return the tid of the last transaction whose records a storage has; None if it is empty.

    That is not always ``lastTransaction``, which counts what removed objects too.
    """
    if isinstance(storage, RelStorage):
        database = storage.database
        with database.store_sessions.session() as session:
            tid = session.row(database.statements.newest_transaction)[0]
        return to_bytes(tid) if tid else None
    last: bytes = storage.lastTransaction()
    return None if not last or last == z64 else last


def _iterator(source: Any, start: bytes | None) -> Any:
    return source.iterator() if start is None else source.iterator(start)


def _closing(iterator: Any) -> Any:
    return closing(iterator) if hasattr(iterator, "close") else nullcontext(iterator)


def _refuse_same_database(source: Any, destination: Any) -> None:
    if (
        isinstance(source, RelStorage)
        and isinstance(destination, RelStorage)
        and source.database.identity.uuid == destination.database.identity.uuid
    ):
        raise CopyError(
            "Converting: source and destination are the same database, or one is a copy of the other's files. "
            "Nothing was changed."
        )


def _clear(destination: Any) -> None:
    zap = getattr(destination, "zap_all", None)
    if zap is None:
        raise CopyError(
            f"Clearing {_name(destination)}: this kind of storage cannot be cleared by this program. "
            "Nothing was changed. Remove its files, then convert without --clear."
        )
    zap()


def _name(storage: Any) -> str:
    return str(storage.getName()) if hasattr(storage, "getName") else repr(storage)


def _shown(tid: bytes | None) -> str | None:
    return f"{to_int(tid):#018x}" if tid else None


def _fill(summary: Summary, progress: CopyProgress) -> None:
    summary.transactions, summary.records, summary.blobs = progress.transactions, progress.records, progress.blobs
    summary.bytes, summary.seconds = progress.size, round(progress.seconds, 3)
    summary.last_tid = _shown(progress.tid)
    summary.missing_blobs = progress.missing_blobs
    summary.missing = [{"oid": f"{to_int(oid):#x}", "tid": f"{to_int(tid):#018x}"} for oid, tid in progress.missing]


def _print(summary: Summary) -> None:
    counts = f"{summary.transactions:,} transactions with {summary.records:,} records and {summary.blobs:,} blobs"
    if summary.dry_run:
        click.echo(f"Would copy {counts}; the records have {quantity(summary.bytes, BYTES)}.")
        if summary.destination_was_empty is False:
            click.echo("The destination has data already. Without --incremental or --clear it would be refused.")
        return
    click.echo(f"Copied {counts}, {quantity(summary.bytes, BYTES)}, in {summary.seconds:.1f} seconds.")
    if summary.missing_blobs:
        click.echo(f"The source has lost the files of {summary.missing_blobs:,} blobs; it has only records:", err=True)
        for each in summary.missing:
            click.echo(f"  object {each['oid']}, transaction {each['tid']}", err=True)
    verified = summary.verified
    if verified is None:
        return
    click.echo(
        f"Compared {verified.records:,} records and {verified.blobs:,} blobs: "
        + (f"{verified.differences:,} differences." if verified.differences else "the same in both.")
    )
    for line in verified.first:
        click.echo(f"  {line}")
