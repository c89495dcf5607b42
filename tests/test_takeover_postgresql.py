"""A PostgreSQL database of RelStorage 2.1, 3.5 or 4.3 is taken over where it is, and can be given to RelStorage 4.3
afterwards: both use one database in turns, with the same program, each in an environment of its own.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from relstorage.errors import MarkIncomplete, SchemaOutdated, WrongHistoryMode

psycopg = pytest.importorskip("psycopg")
conninfo = pytest.importorskip("psycopg.conninfo")

PROGRAM = Path(__file__).with_name("takeover_program.py")
CONFIGURATION = """\
%import relstorage
<zodb>
  <relstorage>
    {options}
    shared-blob-dir false
    <postgresql>
      dsn {dsn}
    </postgresql>
  </relstorage>
</zodb>
"""
#: What a release needs besides: distributions, and versions of Python that it runs on.
NEEDED: dict[str, tuple[list[str], list[str]]] = {
    "2.1.1": (["ZODB<5.7"], ["3.7"]),
    "3.5.0": (["ZODB<5.9"], ["3.9", "3.7"]),
    "4.3.0": (["ZODB<7"], []),
}
NEWEST = "4.3.0"
#: How long a test waits for what other processes do, in seconds.
PATIENCE = 60.0
#: The size of a piece when RelStorage 2.1 put a blob into several large objects, in bytes.
PIECE = 1 << 31
#: How many commits are acknowledged before a process is killed.
COMMITS = 20


class Case(NamedTuple):
    """A release of RelStorage that makes a database, and whether the newest one has already used it."""

    release: str
    keep_history: bool
    upgraded: bool = False

    def __str__(self) -> str:
        mode = "history" if self.keep_history else "free"
        return f"{self.release}-{'upgraded-' if self.upgraded else ''}{mode}"


CASES = [
    *(Case(release, keep_history) for release in NEEDED for keep_history in (True, False)),
    *(Case("2.1.1", keep_history, upgraded=True) for keep_history in (True, False)),
]
PRESERVING = [case for case in CASES if case.keep_history]
OLD = [case for case in CASES if case.release == "2.1.1"]
SPLIT = [case for case in OLD if not case.upgraded]
WITH_4_3 = [case for case in CASES if case.release == NEWEST]

over = pytest.mark.parametrize

#: Tables, columns, indexes, constraints, views and triggers of RelStorage, each as a row of text. Left out is what is
#: ours, and what RelStorage leaves behind itself when it upgrades a database.
DESCRIBE = r"""
WITH ours AS (
    SELECT oid, relname, relkind FROM pg_class WHERE relnamespace = current_schema()::regnamespace
    AND relname !~ '^rs_' AND relname NOT IN ('commit_lock', 'blob_chunk_loid'))
SELECT 'table', relkind::text, relname::text, '' FROM ours WHERE relkind IN ('r', 'v', 'S')
UNION ALL
SELECT 'column', relname, attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull,
    coalesce(pg_get_expr(adbin, adrelid), '')
FROM ours JOIN pg_attribute ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE relkind IN ('r', 'v')
UNION ALL
SELECT 'index', '', '', pg_get_indexdef(indexrelid) FROM pg_index JOIN ours ON ours.oid = indexrelid
UNION ALL
SELECT 'constraint', relname, conname, pg_get_constraintdef(pg_constraint.oid)
FROM pg_constraint JOIN ours ON conrelid = ours.oid
UNION ALL
SELECT 'trigger', relname, tgname, tgtype || ' ' || tgenabled::text
FROM pg_trigger JOIN ours ON tgrelid = ours.oid WHERE NOT tgisinternal
UNION ALL
SELECT 'row', 'commit_row_lock', tid::text, '' FROM commit_row_lock
ORDER BY 1, 2, 3, 4
"""
#: What may never be: pieces of blobs without data, and data that no blob has.
PROBLEMS = """
SELECT 'no data', zoid, chunk FROM blob_chunk
WHERE NOT EXISTS (SELECT 1 FROM pg_largeobject_metadata WHERE oid = chunk)
UNION ALL
SELECT 'in no blob', NULL, oid FROM pg_largeobject_metadata
WHERE NOT EXISTS (SELECT 1 FROM blob_chunk WHERE oid = chunk)
"""
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def load_program() -> Any:
    specification = importlib.util.spec_from_file_location(PROGRAM.stem, PROGRAM)
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    return program


program = load_program()


class Place:
    """One database, which ``with`` removes in the end, and the configurations that both projects open it with."""

    def __init__(self, server: str, path: Path, case: Case, newest: str, template: str = "template1"):
        self.path = path
        self.case = case
        self.name = f"takeover_{uuid.uuid4().hex}"
        self.dsn = conninfo.make_conninfo(server, dbname=self.name)
        self._server = server
        self._newest = newest
        self._processes: list[subprocess.Popen[str]] = []
        path.mkdir(exist_ok=True)
        self._on_server(f"CREATE DATABASE {self.name} TEMPLATE {template}")

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        # It waits a few seconds for sessions to end, so that one which was not closed is an error.
        self._on_server(f"DROP DATABASE {self.name}")

    def copy(self, path: Path) -> Place:
        return Place(self._server, path, self.case, self._newest, self.name)

    def _on_server(self, text: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(text)

    def configure(self, user: str, **options: str) -> Path:
        """Write and return a configuration. Each user has a directory of blobs of its own, so none is read there."""
        file = self.path / f"{user}.conf"
        chosen = {
            "keep_history": str(self.case.keep_history).lower(),
            "blob_dir": str(self.path / f"{user}-blobs"),
            **options,
        }
        lines = "\n    ".join(f"{name.replace('_', '-')} {value}" for name, value in chosen.items())
        file.write_text(CONFIGURATION.format(options=lines, dsn=self.dsn))
        return file

    def ours(self, *commands: list[Any], **options: str) -> list[Any]:
        """Carry out commands with this project."""
        results = program.run(str(self.configure("ours", **options)), commands)
        assert self.rows(PROBLEMS) == []
        return results

    def start(self, *commands: list[Any]) -> subprocess.Popen[str]:
        """Have another process carry out commands with this project, and do not wait for it."""
        file = self.configure(f"ours-{uuid.uuid4().hex}")
        command = [sys.executable, str(PROGRAM), str(file), json.dumps(commands)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process

    def relstorage(self, *commands: list[Any], python: str | None = None) -> list[Any]:
        """Carry out commands with RelStorage."""
        # -I: nothing from PYTHONPATH, where this project may be.
        command = [python or self._newest, "-I", str(PROGRAM), str(self.configure("theirs")), json.dumps(commands)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        assert self.rows(PROBLEMS) == []
        return json.loads(done.stdout)

    def rows(self, text: str) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(text).fetchall()

    def value(self, text: str) -> Any:
        [[value]] = self.rows(text)
        return value

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Let nobody touch a table."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield

    def wait_until_waiting(self, sessions: int) -> None:
        """Return when so many sessions wait for a lock."""
        deadline = time.monotonic() + PATIENCE
        while self.value(WAITING) < sessions:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture(scope="session")
def python_with(environment: Callable[..., str]) -> Callable[[str], str]:
    """Return a function that returns a Python which has a release of RelStorage and a driver for PostgreSQL."""

    def find(release: str) -> str:
        requirements, pythons = NEEDED[release]
        name = f"relstorage-{release}-postgresql"
        python = environment(name, f"RelStorage=={release}", *requirements, "psycopg2-binary", pythons=pythons)
        subprocess.run([python, "-I", "-c", "import psycopg2, relstorage.adapters"], check=True)
        return python

    return find


@pytest.fixture(scope="session")
def made(
    postgres_address: str, python_with: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Case], Any]]:
    """Return a function that returns a database made by RelStorage, and what RelStorage sees in it."""
    known: dict[Case, tuple[Place, Any]] = {}
    places = ExitStack()

    def make(case: Case) -> tuple[Place, Any]:
        if case not in known:
            newest = python_with(NEWEST)
            place = places.enter_context(Place(postgres_address, tmp_path_factory.mktemp("made"), case, newest))
            # RelStorage 4.3 doubles a part of what 2.1 wrote so, if it was undone.
            split = [["split_large_objects"]] if case in SPLIT else []
            undone = [["undo_creation"]] if case.keep_history else []
            commands = [*split, ["make_past"], ["make"], *undone, ["change_large_blob"], ["prepack"]]
            commands += [["rename", "Later"], ["dump"]]
            seen = place.relstorage(*commands, python=python_with(case.release))[-1]
            if case.upgraded:
                [seen] = place.relstorage(["dump"])
            known[case] = place, seen
        return known[case]

    with places:
        yield make


@pytest.fixture
def seen(made: Callable[[Case], Any], case: Case) -> Any:
    """What the release of RelStorage sees that made the database."""
    return made(case)[1]


@pytest.fixture
def database(made: Callable[[Case], Any], case: Case, tmp_path: Path) -> Iterator[Place]:
    """A database that RelStorage made and this project has not seen yet."""
    original, _ = made(case)
    with original.copy(tmp_path / "database") as database:
        yield database


@pytest.fixture
def new_database(
    postgres_address: str, python_with: Callable[[str], str], case: Case, tmp_path: Path
) -> Iterator[Place]:
    """A database in which nobody has made anything yet."""
    with Place(postgres_address, tmp_path / "new", case, python_with(NEWEST)) as database:
        yield database


@pytest.fixture
def killed(database: Place) -> int:
    """The number of the last commit that a process of ours acknowledged before it was killed."""
    process = database.start(["write_for_ever"])
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged == COMMITS:
            process.kill()
    process.communicate()
    assert process.returncode == -9
    return acknowledged


def lasting(dump: dict[str, Any]) -> dict[str, Any]:
    """Return what both see after a pack: ours counts as a transaction, and RelStorage hides the history of the rest."""
    return {name: value for name, value in dump.items() if name not in ("last transaction", "history of the root")}


def records(dump: dict[str, Any], description: str) -> dict[str, str]:
    """Return the records of the transaction with this description, as a mapping of oids to digests of states."""
    [found] = [each[5] for each in dump["transactions"] if each[3] == description]
    return {str(oid): state for oid, state in found}


@over("case", CASES, ids=str)
def test_everything_that_relstorage_shows_is_read_alike(case: Case, database: Place, seen: Any) -> None:
    assert database.ours(["dump"]) == [seen]


@over("case", CASES, ids=str)
def test_opening_it_again_needs_no_right_to_change_it(case: Case, database: Place, seen: Any) -> None:
    database.ours(["oids"])
    assert database.ours(["dump"], create_schema="false") == [seen]


@over("case", CASES, ids=str)
def test_it_is_refused_and_left_alone_without_the_right_to_change_it(case: Case, database: Place, seen: Any) -> None:
    with pytest.raises(SchemaOutdated, match="create-schema"):
        database.ours(["oids"], create_schema="false")
    assert database.value("SELECT count(*) FROM pg_class WHERE relname ~ '^rs_'") == 0
    assert database.ours(["dump"]) == [seen]


@over("case", CASES, ids=str)
def test_the_other_history_mode_is_refused_and_nothing_changed(case: Case, database: Place, seen: Any) -> None:
    before = database.value("SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class")
    with pytest.raises(WrongHistoryMode):
        database.ours(["oids"], keep_history=str(not case.keep_history).lower())
    assert database.value("SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class") == before
    assert database.ours(["dump"]) == [seen]


@over("case", CASES, ids=str)
def test_its_tables_become_those_of_the_newest_relstorage(
    case: Case, database: Place, made: Callable[[Case], Any]
) -> None:
    newest, _ = made(Case(NEWEST, case.keep_history))
    database.ours(["oids"])
    assert database.rows(DESCRIBE) == newest.rows(DESCRIBE)


@over("case", SPLIT, ids=str)
def test_a_blob_in_several_large_objects_becomes_one(case: Case, database: Place, seen: Any) -> None:
    assert database.value("SELECT max(chunk_num) FROM blob_chunk") > 1
    [after] = database.ours(["dump"])
    assert database.value("SELECT max(chunk_num) FROM blob_chunk") == 0
    assert after["blobs"] == seen["blobs"]


@over("case", SPLIT, ids=str)
def test_pieces_of_a_blob_may_have_the_size_that_relstorage_gave_them(case: Case, database: Place) -> None:
    # Only the last byte of the first piece was ever written, so that it takes no room.
    database.rows(
        f"""WITH first AS (SELECT zoid, tid, chunk FROM blob_chunk WHERE chunk_num > 0 ORDER BY zoid, tid LIMIT 1)
        SELECT lo_put(b.chunk, {PIECE - 1}, 'x') FROM blob_chunk b JOIN first USING (zoid, tid) WHERE b.chunk_num = 0"""
    )
    database.ours(["oids"])
    sizes = "SELECT DISTINCT chunk, lo_lseek64(lo_open(chunk, 262144), 0, 2) AS size FROM blob_chunk"
    [[joined]] = database.rows(f"SELECT chunk FROM ({sizes}) s WHERE size = {PIECE + program.LARGE - (1 << 20)}")
    text = program.content("large" if case.keep_history else "changed", program.LARGE)
    assert database.value(f"SELECT lo_get({joined}, {PIECE - 1}, 21)") == b"x" + text[1 << 20 :][:20]
    assert database.value(f"SELECT lo_get({joined}, {PIECE + program.LARGE - (1 << 20) - 20}, 99)") == text[-20:]


@over("case", CASES, ids=str)
def test_relstorage_reads_everything_that_was_written(case: Case, database: Place) -> None:
    _, seen = database.ours(["write", "ours"], ["dump"])
    assert database.relstorage(["dump"]) == [seen]


@over("case", CASES, ids=str)
def test_verify_finds_nothing_wrong(case: Case, database: Place) -> None:
    database.ours(["write", "ours"])
    command = [str(Path(sys.executable).with_name("relstorage")), "verify", str(database.configure("ours"))]
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
def test_the_undo_of_a_change_of_a_blob_brings_the_old_data_back(case: Case, database: Place) -> None:
    before, _, after = database.ours(["dump"], ["undo", "Change a blob"], ["dump"])
    [blob] = records(before, "Change a blob")
    old = program.digest(b"before")
    assert before["blobs"][blob] != old
    assert after["blobs"][blob] == old
    assert database.relstorage(["dump"]) == [after]


@over("case", PRESERVING, ids=str)
def test_an_undone_creation_can_be_undone_again(case: Case, database: Place) -> None:
    before, _, after = database.ours(["dump"], ["undo", "Undo: Create by mistake"], ["dump"])
    created = records(before, "Create by mistake")
    assert len(created.keys() - before["objects"].keys()) == 2
    assert {oid: after["objects"][oid][1] for oid in created} == created
    assert database.relstorage(["dump"]) == [after]


@over("case", PRESERVING, ids=str)
def test_relstorage_can_undo_a_transaction_of_ours(case: Case, database: Place) -> None:
    before, _ = database.ours(["dump"], ["rename", "Ours"])
    database.relstorage(["undo", "Rename to Ours"])
    [after] = database.ours(["dump"])
    assert after["objects"]["0"][1] == before["objects"]["0"][1]


@over("case", CASES, ids=str)
def test_what_a_prepack_of_relstorage_left_is_not_taken_for_garbage(case: Case, database: Place) -> None:
    assert database.value("SELECT count(*) FROM pack_object WHERE NOT keep") > 0
    [before] = database.ours(["dump"])
    with pytest.raises(MarkIncomplete):
        database.ours(["use_prepack_state"])
    assert database.ours(["dump"]) == [before]


@over("case", CASES, ids=str)
def test_a_pack_removes_the_garbage_and_nothing_else(case: Case, database: Place) -> None:
    garbage, oids, before, _, left, after = database.ours(["garbage"], ["oids"], ["dump"], ["pack"], ["oids"], ["dump"])
    assert garbage
    assert left == sorted(set(oids) - set(garbage))
    assert after["dangling"] == []
    assert after["objects"] == {oid: each for oid, each in before["objects"].items() if int(oid) not in garbage}
    assert after["blobs"] == before["blobs"]
    assert list(map(lasting, database.relstorage(["dump"]))) == [lasting(after)]


@over("case", WITH_4_3, ids=str)
def test_what_relstorage_links_to_after_a_prepack_of_ours_is_kept(case: Case, database: Place) -> None:
    garbage, _ = database.ours(["garbage"], ["prepack"])
    found = garbage[0]
    database.relstorage(["link", found])
    _, left, seen = database.ours(["use_prepack_state"], ["oids"], ["dump"])
    assert found in left
    assert seen["dangling"] == []
    assert list(map(lasting, database.relstorage(["dump"]))) == [lasting(seen)]


@over("case", WITH_4_3, ids=str)
def test_what_relstorage_links_to_after_an_interrupted_pack_of_ours_is_kept(case: Case, database: Place) -> None:
    garbage, _ = database.ours(["garbage"], ["prepack"])
    # As a process leaves it that was killed at its first removal.
    database.rows("UPDATE rs_pack_run SET phase = 'sweeping' RETURNING run")
    database.relstorage(["link", garbage[0]])
    _, left, dangling = database.ours(["pack"], ["oids"], ["dangling"])
    assert garbage[0] in left
    assert dangling == []


@over("case", WITH_4_3, ids=str)
def test_new_objects_get_new_oids_whoever_makes_them(case: Case, database: Place) -> None:
    highest = max(database.ours(["oids"])[0])
    for turn, use in enumerate((database.ours, database.relstorage, database.ours, database.relstorage)):
        oids, all_oids = use(["write", f"turn {turn}"], ["oids"])
        assert min(oids) > highest
        highest = max(all_oids)


@over("case", WITH_4_3, ids=str)
def test_new_oids_are_new_where_the_sequence_was_restored_badly(case: Case, database: Place) -> None:
    database.rows("SELECT setval('zoid_seq', 1, false)")
    before, oids, all_oids = database.ours(["oids"], ["write", "ours"], ["oids"])
    assert min(oids) > max(before)
    [theirs] = database.relstorage(["write", "theirs"])
    assert min(theirs) > max(all_oids)


@over("case", CASES, ids=str)
def test_they_take_turns_in_writing_and_packing(case: Case, database: Place) -> None:
    for use, other, turn in (
        (database.ours, database.relstorage, "ours"),
        (database.relstorage, database.ours, "theirs"),
        (database.ours, database.relstorage, "ours again"),
    ):
        _, _, garbage, seen = use(["write", turn], ["pack"], ["garbage"], ["dump"])
        assert (garbage, seen["dangling"]) == ([], [])
        assert list(map(lasting, other(["dump"]))) == [lasting(seen)]


@over("case", WITH_4_3, ids=str)
def test_relstorage_opens_what_a_killed_process_left(case: Case, database: Place, killed: int) -> None:
    reached, _, seen = database.relstorage(["count"], ["write", "theirs"], ["dump"])
    assert reached in (killed, killed + 1)
    assert seen["dangling"] == []
    assert database.ours(["dump"]) == [seen]


@over("case", OLD, ids=str)
def test_several_processes_may_take_it_over_at_once(case: Case, database: Place, seen: Any) -> None:
    with database.locked("blob_chunk"):
        processes = [database.start(["dump"]) for _ in range(3)]
        database.wait_until_waiting(len(processes))
    for process in processes:
        shown, errors = process.communicate()
        assert process.returncode == 0, errors[-4000:]
        assert json.loads(shown) == [seen]
    assert database.value("SELECT count(*) FROM commit_row_lock") == 1


@over("table", ["object_state", "blob_chunk", "pack_object"])
@over("case", OLD, ids=str)
def test_a_process_killed_while_it_takes_it_over_leaves_it_openable(
    case: Case, table: str, database: Place, seen: Any
) -> None:
    with database.locked(table):
        process = database.start(["oids"])
        database.wait_until_waiting(1)
        process.kill()
        process.communicate()
    assert database.ours(["dump"]) == [seen]


@over("case", WITH_4_3, ids=str)
def test_relstorage_uses_a_database_that_began_here(case: Case, new_database: Place) -> None:
    _, _, _, seen = new_database.ours(["make_past"], ["make"], ["change_large_blob"], ["dump"])
    assert new_database.relstorage(["dump"]) == [seen]

    _, _, garbage, seen = new_database.relstorage(["write", "theirs"], ["pack"], ["garbage"], ["dump"])
    assert garbage == []
    assert list(map(lasting, new_database.ours(["dump"]))) == [lasting(seen)]


@over("case", WITH_4_3, ids=str)
def test_a_database_that_began_here_has_the_tables_of_relstorage(
    case: Case, new_database: Place, made: Callable[[Case], Any]
) -> None:
    theirs, _ = made(case)
    new_database.ours(["make"])
    assert new_database.rows(DESCRIBE) == theirs.rows(DESCRIBE)
