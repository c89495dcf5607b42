"""The demonstration, run by scripts/demo.py in an environment that has Zope and this project: a FileStorage that Zope
made goes into SQLite, and everything that an application and an administrator do with a ZODB is done with the result.

Each stage compares what it finds with what was there before. The first difference ends the run with status 1.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transaction
from persistent.mapping import PersistentMapping
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from ZODB.blob import Blob
from ZODB.config import databaseFromURL

from demonstration import instance
from demonstration.databases import write_configurations
from demonstration.options import parsed
from demonstration.survey import Survey, SurveyError, Walk, survey, walk

ROOT = Path(__file__).resolve().parent.parent
COMMITS = 200
WIDTH_OF_A_LOG = 120
OWN_KEY = "relstorage-demonstration"


class Mismatch(Exception):
    """Something is not what it was, or a program failed; the text says which and how."""


@dataclass
class Report:
    """The lines of the closing table, and the figures behind them."""

    rows: list[tuple[str, str, float]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, stage: str, text: str, seconds: float, **figures: Any) -> None:
        self.rows.append((stage, text, seconds))
        self.figures[stage] = {"seconds": round(seconds, 3), **figures}


@dataclass
class Demonstration:
    """One run: where it happens, and what it has found so far."""

    directory: Path
    console: Console
    report: Report = field(default_factory=Report)

    def convert(self, source: instance.Source) -> dict[str, Path]:
        """Read the FileStorage, copy it, and compare what arrived."""
        shutil.rmtree(self.directory / "sqlite", ignore_errors=True)
        (self.directory / "sqlite" / "data").mkdir(parents=True)
        paths = write_configurations(self.directory, source)
        before = self.survey(paths["source"], "FileStorage", "read every revision")
        seconds = self.run_program("zodbconvert", paths["convert"])
        size = self.sqlite_size()
        self.report.add(
            "zodbconvert",
            f"{rate(before.objects, 'objects', seconds)}, {megabytes(size)} in SQLite",
            seconds,
            objects_per_second=before.objects / seconds,
            sqlite_bytes=size,
        )
        after = self.survey(paths["database"], "SQLite", "read every revision")
        compare(counted(before), counted(after), "the conversion")
        return paths

    def sqlite_size(self) -> int:
        return sum(path.stat().st_size for path in (self.directory / "sqlite" / "data").rglob("*") if path.is_file())

    def survey(self, configuration: Path, name: str, action: str) -> Survey:
        with opened(configuration) as database, self.progress(f"{name}: {action}", "transactions") as advance:
            found = survey(database.storage, advance)
        self.report.add(
            f"{name}: {action}",
            f"{found.transactions:,} transactions, {found.revisions:,} revisions of {found.objects:,} objects "
            f"({megabytes(found.state_bytes)}), {found.blobs:,} blobs ({megabytes(found.blob_bytes)})",
            found.seconds,
            **counted(found),
        )
        return found

    def walk(self, database: Any, name: str) -> Walk:
        with self.progress(name, "objects") as advance:
            found = walk(database, advance)
        broken = f", {found.broken:,} of classes that are not installed" if found.broken else ""
        self.report.add(
            name,
            f"{found.objects:,} reachable objects and {found.blobs:,} blobs{broken}, "
            f"{rate(found.objects, 'objects', found.seconds)}",
            found.seconds,
            objects=found.objects,
            blobs=found.blobs,
            broken=found.broken,
            objects_per_second=found.objects / found.seconds,
        )
        return found

    def use(self, paths: dict[str, Path]) -> Walk:
        """Read, commit and undo as an application does; return what is reachable at the end."""
        with opened(paths["source"]) as database:
            expected = self.walk(database, "FileStorage: load all through ZODB")
        with opened(paths["database"]) as database:
            found = self.walk(database, "SQLite: load all through ZODB")
            if expected.content() != found.content():
                raise Mismatch(f"What is reachable differs: {expected.content()} before, {found.content()} now.")
            self.commit(database)
            self.undo(database)
            return self.walk(database, "SQLite: load all again")

    def commit(self, database: Any) -> None:
        """Make small commits one after the other."""
        with database.transaction("Demonstration begins") as connection:
            connection.root()[OWN_KEY] = PersistentMapping(number=0, blob=Blob(b"before"))
        begun = time.perf_counter()
        with self.progress("Commit", "transactions") as advance:
            for number in range(COMMITS):
                with database.transaction(f"Demonstration {number}") as connection:
                    connection.root()[OWN_KEY]["number"] = number
                advance(1)
        seconds = time.perf_counter() - begun
        text = f"{COMMITS} transactions one after the other, {rate(COMMITS, 'commits', seconds)}"
        self.report.add("Commit", text, seconds, commits=COMMITS)

    def undo(self, database: Any) -> None:
        """Change an object and a blob in one transaction, then undo it."""
        begun = time.perf_counter()
        with database.transaction("To be undone") as connection:
            ours = connection.root()[OWN_KEY]
            ours["number"] = "undo me"
            with ours["blob"].open("w") as stream:
                stream.write(b"after")
        entry = next(entry for entry in database.undoInfo(0, 20) if "To be undone" in str(entry["description"]))
        database.undo(entry["id"], transaction.get())
        transaction.commit()
        with database.transaction() as connection:
            ours = connection.root()[OWN_KEY]
            with ours["blob"].open("r") as stream:
                found = ours["number"], stream.read()
        if found != (COMMITS - 1, b"before"):
            raise Mismatch(f"The undo left {found} instead of {(COMMITS - 1, b'before')}.")
        self.report.add("Undo", "one transaction, an object and a blob", time.perf_counter() - begun)

    def pack(self, paths: dict[str, Path], reachable: Walk) -> None:
        """Pack, then look whether exactly the reachable objects are left."""
        seconds = self.run_program("zodbpack", "-d", "0", paths["storage"])
        self.report.add(
            "zodbpack", f"removed the past and the garbage; {megabytes(self.sqlite_size())} in SQLite", seconds
        )
        left = self.survey(paths["database"], "SQLite packed", "read every revision")
        if (left.objects, left.blobs) != (reachable.objects, reachable.blobs):
            raise Mismatch(
                f"After the pack there are {left.objects} objects and {left.blobs} blobs; "
                f"{reachable.objects} objects and {reachable.blobs} blobs are reachable."
            )
        if left.revisions != left.objects:
            raise Mismatch(f"After the pack there are {left.revisions} revisions of {left.objects} objects.")
        with opened(paths["database"]) as database:
            found = self.walk(database, "SQLite packed: load all")
        if found.content() != reachable.content():
            raise Mismatch(f"The pack changed reachable objects: {reachable.content()} before, {found.content()} now.")

    def verify(self, paths: dict[str, Path]) -> None:
        seconds = self.run_program("relstorage", "verify", "--json", paths["storage"])
        self.report.add("relstorage verify", "no unreadable record, no dangling reference, no missing blob", seconds)

    def run_program(self, name: str, *words: object) -> float:
        """Run one of this project's programs with its output in sight, and return how long it took."""
        command = [str(Path(sys.executable).with_name(name)), *map(str, words)]
        if not Path(command[0]).is_file():
            raise Mismatch(f"{command[0]} is missing: the environment of this demonstration is not whole.")
        self.announce(f"{name} {' '.join(command[1:])}")
        begun = time.perf_counter()
        status = subprocess.run(command).returncode
        if status:
            raise Mismatch(f"{name} failed with status {status}; its own output above says why.")
        return time.perf_counter() - begun

    def announce(self, text: str) -> None:
        self.console.print(f"==> {text}", style="bold", highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, text: str, unit: str) -> Iterator[Callable[[int], None]]:
        """Show that something goes on and how far it is; yields what to call with the number of things done."""
        self.announce(text)
        columns = SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(text, total=None)
            yield lambda count: bar.advance(task, count)

    def conclude(self) -> None:
        """Print the table."""
        table = Table(title="What was done")
        table.add_column("stage", no_wrap=True)
        table.add_column("figures", overflow="fold")
        table.add_column("seconds", justify="right")
        for stage, text, seconds in self.report.rows:
            table.add_row(stage, text, f"{seconds:.2f}")
        self.console.print(table)


@contextlib.contextmanager
def opened(configuration: Path) -> Iterator[Any]:
    """Open the database of a ZConfig file, and close it."""
    database = databaseFromURL(str(configuration))
    try:
        yield database
    finally:
        database.close()


def counted(found: Survey) -> dict[str, Any]:
    """Return the figures of a survey that do not depend on where the data are."""
    return {
        "transactions": found.transactions,
        "revisions": found.revisions,
        "objects": found.objects,
        "blobs": found.blobs,
        "state_bytes": found.state_bytes,
        "blob_bytes": found.blob_bytes,
        "checksum": str(found.checksum),
    }


def compare(before: dict[str, Any], after: dict[str, Any], occasion: str) -> None:
    """Raise Mismatch naming each figure that changed."""
    changed = [f"{name}: {before[name]} became {after[name]}" for name in before if before[name] != after[name]]
    if changed:
        raise Mismatch(f"Not the same after {occasion}. " + "; ".join(changed))


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def rate(count: int, unit: str, seconds: float) -> str:
    return f"{count / seconds:,.0f} {unit}/s"


def main() -> int:
    options = parsed(ROOT)
    logging.basicConfig(level=logging.ERROR)
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_LOG)
    demonstration = Demonstration(directory, console)
    try:
        if options.data_fs:
            source = instance.Source(options.data_fs, options.blobs)
        else:
            home = directory / "instance"
            demonstration.announce(f"Making a Zope instance with {options.documents:,} documents in {home}")
            begun = time.perf_counter()
            with demonstration.console.status("Zope is at work"):
                source = instance.make(home, options.documents, options.seed)
            text = f"{options.documents:,} documents"
            demonstration.report.add("Zope instance", text, time.perf_counter() - begun)
        paths = demonstration.convert(source)
        demonstration.pack(paths, demonstration.use(paths))
        demonstration.verify(paths)
    except (Mismatch, SurveyError, instance.InstanceError) as error:
        demonstration.conclude()
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    demonstration.conclude()
    if options.json:
        options.json.write_text(json.dumps(demonstration.report.figures, indent=2) + "\n")
    demonstration.console.print("Nothing was lost and nothing changed on the way. Look next at these configurations:")
    for path in paths.values():
        demonstration.console.print(f"  {path}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
