"""A data directory of RelStorage is taken over where it is, and can be given back: RelStorage and this project use one
database in turns, through the same configuration and with the same program, each in an environment of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from relstorage.errors import MarkIncomplete

PROGRAM = Path(__file__).with_name("takeover_program.py")
CONFIGURATION = """\
%import relstorage
<zodb>
  <relstorage>
    keep-history {keep_history}
    blob-dir {place}/blobs
    shared-blob-dir {shared}
    <sqlite3>
      data-dir {place}/data
    </sqlite3>
  </relstorage>
</zodb>
"""


#: How many commits are acknowledged before a process is killed.
COMMITS = 20
#: What a release needs besides: distributions, and versions of Python for which it has wheels.
NEEDED: dict[str, tuple[list[str], list[str]]] = {
    "4.3.0": (["ZODB<7"], []),
    "3.5.0": (["ZODB<5.9"], ["3.9", "3.10", "3.8", "3.7"]),
}


class Case(NamedTuple):
    """A release of RelStorage, and how a database of it is configured."""

    release: str
    keep_history: bool
    shared: bool

    def __str__(self) -> str:
        mode = "history" if self.keep_history else "free"
        return f"{self.release}-{mode}-{'shared' if self.shared else 'cached'}"


CASES = [
    *(Case("4.3.0", keep_history, shared) for keep_history in (True, False) for shared in (False, True)),
    *(Case("3.5.0", keep_history, False) for keep_history in (True, False)),
]
PRESERVING = [case for case in CASES if case.keep_history]
WITH_4_3 = [case for case in CASES if case.release == "4.3.0"]

over = pytest.mark.parametrize


def load_program() -> Any:
    specification = importlib.util.spec_from_file_location(PROGRAM.stem, PROGRAM)
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    return program


program = load_program()


class Place:
    """The directory of one database, with the configuration that both projects open it with."""

    def __init__(self, path: Path, case: Case, python: str):
        self.path = path
        self.case = case
        self.configuration = path / "zodb.conf"
        self._python = python
        keep_history, shared = str(case.keep_history).lower(), str(case.shared).lower()
        self.configuration.write_text(CONFIGURATION.format(place=path, keep_history=keep_history, shared=shared))

    def ours(self, *commands: list[str]) -> list[Any]:
        """Carry out commands with this project."""
        results = program.run(str(self.configuration), commands)
        assert self.problems() == []
        return results

    def relstorage(self, *commands: list[str]) -> list[Any]:
        """Carry out commands with RelStorage."""
        # -I: nothing from PYTHONPATH, where this project may be.
        command = [self._python, "-I", str(PROGRAM), str(self.configuration), json.dumps(commands)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        assert self.problems() == []
        return json.loads(done.stdout)

    def problems(self) -> list[Any]:
        """Return what SQLite itself finds wrong in the file."""
        with closing(sqlite3.connect(self.path / "data" / "main.sqlite3")) as connection:
            broken = connection.execute("PRAGMA foreign_key_check").fetchall()
            [[verdict]] = connection.execute("PRAGMA integrity_check").fetchall()
        return broken if verdict == "ok" else [*broken, verdict]

    def schema(self) -> dict[str, Any]:
        """Return RelStorage's tables, views and indexes, and the rows that it makes with them."""
        with closing(sqlite3.connect(self.path / "data" / "main.sqlite3")) as connection:

            def rows(text: str) -> list[Any]:
                return sorted(connection.execute(text).fetchall(), key=str)

            # SQLite's own are left out, and ours.
            names = rows(
                "SELECT type, name, tbl_name FROM sqlite_master WHERE type IN ('table', 'view')"
                " AND name NOT LIKE 'sqlite~_%' ESCAPE '~' AND name NOT LIKE 'rs~_%' ESCAPE '~'"
            )
            described = {
                name: {
                    "type": kind,
                    "columns": rows(f"SELECT name, upper(type), \"notnull\", pk FROM pragma_table_info('{name}')"),
                    "foreign keys": rows(
                        f'SELECT "table", "from", "to", on_delete FROM pragma_foreign_key_list(\'{name}\')'
                    ),
                    "indexes": rows(
                        f'SELECT list."unique", (SELECT group_concat(name) FROM pragma_index_info(list.name))'
                        f" FROM pragma_index_list('{name}') list"
                    ),
                }
                for kind, name, _ in names
            }
            described["rows"] = rows("SELECT tid FROM commit_row_lock")
            if self.case.keep_history:
                described["rows"] += rows('SELECT * FROM "transaction" WHERE tid = 0')
            return described


def new_place(path: Path, case: Case, python: str) -> Place:
    # RelStorage does not make these.
    (path / "data").mkdir(parents=True)
    (path / "blobs").mkdir()
    return Place(path, case, python)


@pytest.fixture(scope="session")
def python_with(environment: Callable[..., str]) -> Callable[[str], str]:
    """Return a function that returns a Python which has a release of RelStorage."""

    def find(release: str) -> str:
        requirements, pythons = NEEDED[release]
        python = environment(f"relstorage-{release}", f"RelStorage=={release}", *requirements, pythons=pythons)
        subprocess.run([python, "-I", "-c", "import relstorage.adapters"], check=True)
        return python

    return find


@pytest.fixture(scope="session")
def made(python_with: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Any]:
    """Return a function that returns a database made by RelStorage, and what RelStorage sees in it."""
    known: dict[Case, tuple[Place, Any]] = {}

    def make(case: Case) -> tuple[Place, Any]:
        if case not in known:
            place = new_place(tmp_path_factory.mktemp("made"), case, python_with(case.release))
            known[case] = place, place.relstorage(["make"], ["interrupt_prepack"], ["dump"])[-1]
        return known[case]

    return make


@pytest.fixture
def database(made: Callable[[Case], Any], case: Case, tmp_path: Path) -> Place:
    """A database that RelStorage made and this project has not seen yet."""
    original, _ = made(case)
    copy = tmp_path / "database"
    shutil.copytree(original.path, copy)
    return Place(copy, case, original._python)


@pytest.fixture
def killed(database: Place) -> int:
    """The number of the last commit that a process of ours acknowledged before it was killed."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(database.configuration), '[["write_for_ever"]]'], stdout=subprocess.PIPE
    )
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged == COMMITS:
            process.kill()
    process.stdout.close()
    assert process.wait() == -9
    return acknowledged


def lasting(dump: dict[str, Any]) -> dict[str, Any]:
    """Return what both see after a pack: ours counts as a transaction, and RelStorage hides the history of the rest."""
    return {name: value for name, value in dump.items() if name not in ("last transaction", "history of the root")}


def records(dump: dict[str, Any], description: str) -> dict[str, str]:
    """Return the records of the transaction with this description, as a mapping of oids to digests of states."""
    [found] = [each[5] for each in dump["transactions"] if each[3] == description]
    return {str(oid): state for oid, state in found}


@over("case", CASES, ids=str)
def test_everything_that_relstorage_shows_is_read_alike(
    case: Case, database: Place, made: Callable[[Case], Any]
) -> None:
    _, seen_by_relstorage = made(case)
    assert database.ours(["dump"]) == [seen_by_relstorage]


@over("case", CASES, ids=str)
def test_relstorage_reads_everything_that_was_written(case: Case, database: Place) -> None:
    _, seen = database.ours(["write", "ours"], ["dump"])
    assert database.relstorage(["dump"]) == [seen]


@over("case", CASES, ids=str)
def test_verify_finds_nothing_wrong(case: Case, database: Place) -> None:
    database.ours(["write", "ours"])
    command = [str(Path(sys.executable).with_name("relstorage")), "verify", str(database.configuration)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "No problem was found" in done.stdout


@over("case", PRESERVING, ids=str)
def test_a_transaction_of_relstorage_can_be_undone(case: Case, database: Place) -> None:
    before, _, after = database.ours(["dump"], ["undo", "Correct"], ["dump"])
    imported, corrected = records(before, "Import"), records(before, "Correct")
    assert len(corrected) == 10
    assert {oid: after["objects"][oid][1] for oid in corrected} == {oid: imported[oid] for oid in corrected}
    assert database.relstorage(["dump"]) == [after]


@over("case", PRESERVING, ids=str)
def test_the_undo_of_a_change_of_a_blob_brings_the_old_file_back(case: Case, database: Place) -> None:
    before, _, after = database.ours(["dump"], ["undo", "Change a blob"], ["dump"])
    [blob] = records(before, "Change a blob")
    old = program.digest(b"before")
    assert before["blobs"][blob] != old
    assert after["blobs"][blob] == old
    assert database.relstorage(["dump"]) == [after]


@over("case", PRESERVING, ids=str)
def test_relstorage_can_undo_a_transaction_of_ours(case: Case, database: Place) -> None:
    before, _ = database.ours(["dump"], ["rename", "Ours"])
    database.relstorage(["undo", "Rename to Ours"])
    [after] = database.ours(["dump"])
    assert after["objects"]["0"][1] == before["objects"]["0"][1]


@over("case", CASES, ids=str)
def test_what_an_interrupted_prepack_left_is_not_taken_for_garbage(case: Case, database: Place) -> None:
    [before] = database.ours(["dump"])
    with pytest.raises(MarkIncomplete):
        database.ours(["use_prepack_state"])
    assert database.ours(["dump"]) == [before]


@over("case", CASES, ids=str)
def test_a_pack_removes_the_garbage_and_nothing_else(case: Case, database: Place) -> None:
    garbage, oids, _, left, seen = database.ours(["garbage"], ["oids"], ["pack"], ["oids"], ["dump"])
    assert garbage
    assert left == sorted(set(oids) - set(garbage))
    assert seen["dangling"] == []
    assert list(map(lasting, database.relstorage(["dump"]))) == [lasting(seen)]


@over("case", CASES, ids=str)
def test_new_objects_get_new_oids_whoever_makes_them(case: Case, database: Place) -> None:
    highest = max(database.ours(["oids"])[0])
    for turn, use in enumerate((database.ours, database.relstorage, database.ours, database.relstorage)):
        oids, all_oids = use(["write", f"turn {turn}"], ["oids"])
        assert min(oids) > highest
        highest = max(all_oids)


@over("case", CASES, ids=str)
def test_new_oids_are_new_after_relstorages_file_of_oids_was_lost(case: Case, database: Place) -> None:
    os.remove(database.path / "data" / "oids.sqlite3")
    before, oids, all_oids = database.ours(["oids"], ["write", "ours"], ["oids"])
    assert min(oids) > max(before)
    [theirs] = database.relstorage(["write", "theirs"])
    assert min(theirs) > max(all_oids)


@over("case", CASES, ids=str)
def test_they_take_turns_in_writing_and_packing(case: Case, database: Place) -> None:
    for turn in ("1", "2"):
        _, _, garbage, seen = database.ours(["write", f"ours {turn}"], ["pack"], ["garbage"], ["dump"])
        assert (garbage, seen["dangling"]) == ([], [])
        [seen_by_relstorage] = database.relstorage(["dump"])
        assert lasting(seen_by_relstorage) == lasting(seen)

        _, _, garbage, seen_by_relstorage = database.relstorage(
            ["write", f"theirs {turn}"], ["pack"], ["garbage"], ["dump"]
        )
        assert (garbage, seen_by_relstorage["dangling"]) == ([], [])
        [seen] = database.ours(["dump"])
        assert lasting(seen) == lasting(seen_by_relstorage)


@over("case", WITH_4_3, ids=str)
def test_relstorage_opens_what_a_killed_process_left(case: Case, database: Place, killed: int) -> None:
    reached, _, seen = database.relstorage(["count"], ["write", "theirs"], ["dump"])
    assert reached in (killed, killed + 1)
    assert seen["dangling"] == []
    assert database.ours(["dump"]) == [seen]


@over("case", CASES, ids=str)
def test_relstorage_uses_a_database_that_began_here(
    case: Case, python_with: Callable[[str], str], tmp_path: Path
) -> None:
    database = new_place(tmp_path / "database", case, python_with(case.release))
    _, seen = database.ours(["make"], ["dump"])
    assert database.relstorage(["dump"]) == [seen]

    _, _, garbage, seen = database.relstorage(["write", "theirs"], ["pack"], ["garbage"], ["dump"])
    assert garbage == []
    assert list(map(lasting, database.ours(["dump"]))) == [lasting(seen)]


@over("case", WITH_4_3, ids=str)
def test_a_database_that_began_here_has_the_tables_of_relstorage(
    case: Case, made: Callable[[Case], Any], tmp_path: Path
) -> None:
    theirs, _ = made(case)
    database = new_place(tmp_path / "database", case, "")
    database.ours(["make"])
    assert database.schema() == theirs.schema()
