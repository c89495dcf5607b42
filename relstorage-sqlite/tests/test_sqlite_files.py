"""An SQLite database as files: durable, never writing over what is not ours, and saying clearly why it cannot be
opened."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64, z64

import relstorage
from relstorage.errors import (
    NotADatabase,
    OutOfSpace,
    RelStorageError,
    SchemaMissing,
    WrongHistoryMode,
)
from relstorage.testing.records import add, change, commit, delete, newest_undo_id, restore, state, undo


@pytest.fixture(params=[False, True], ids=["free", "history"])
def keep_history(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory of the database."""
    return tmp_path / "data"


@pytest.fixture
def open_storage(place: Path, keep_history: bool) -> Iterator[Any]:
    """Open storages that are closed at the end."""
    opened = []

    def open_storage(**options: Any) -> Any:
        options = {"data_dir": str(place), "keep_history": keep_history, **options}
        storage = relstorage.open("sqlite", **options)
        opened.append(storage)
        return storage

    yield open_storage
    for each in opened:
        each.close()


def digest(directory: Path) -> dict[str, str]:
    """Return the content of every file in a directory."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def pragma(storage: Any, name: str, role: str = "store") -> Any:
    session = storage.database.adapter.open_session(role)
    try:
        return session.script(f"PRAGMA {name}")[0][0]
    finally:
        session.close()


# --- durability


def test_commits_are_durable_by_default(open_storage):
    # 2 is FULL: in WAL mode the log is flushed at each commit. https://www.sqlite.org/pragma.html#pragma_synchronous
    assert pragma(open_storage(), "synchronous") == 2


def test_a_faster_setting_can_be_chosen(open_storage):
    assert pragma(open_storage(synchronous="NORMAL"), "synchronous") == 1


def test_pragmas_reach_every_session(open_storage):
    storage = open_storage(pragmas={"cache_size": "-4000"})
    assert {pragma(storage, "cache_size", role) for role in ("load", "store", "pack")} == {-4000}


@pytest.mark.parametrize("pragmas", [{"synchronous": "OFF"}, {"Synchronous": "0"}])
def test_a_pragma_does_not_take_durability_away_silently(open_storage, pragmas):
    assert pragma(open_storage(pragmas=pragmas), "synchronous") == 2


def test_readers_and_writers_do_not_block_each_other(open_storage):
    storage = open_storage()
    assert pragma(storage, "journal_mode") == "wal"


def test_a_reader_leaves_nothing_behind_between_transactions(open_storage, place):
    writer, reader = open_storage(), open_storage()
    oid, tid = add(writer, 1)
    reader.poll_invalidations()
    reader.load(oid)
    change(writer, oid, tid, 2)

    def log_can_be_emptied() -> bool:
        connection = sqlite3.connect(place / "main.sqlite3", timeout=0)
        try:
            return connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        finally:
            connection.close()

    assert not log_can_be_emptied()
    reader.afterCompletion()
    assert log_can_be_emptied()


def test_what_was_committed_is_in_the_log_before_the_commit_returns(open_storage, place, tmp_path):
    # A copy of the files at this moment is what a power cut leaves.
    storage = open_storage()
    for number in range(5):
        oid, tid = add(storage, number)
        copy = tmp_path / f"copy-{number}"
        copy.mkdir()
        for name in ("main.sqlite3", "main.sqlite3-wal"):
            if (place / name).exists():
                shutil.copy(place / name, copy / name)
        restored = open_storage(data_dir=str(copy))
        assert restored.load(oid) == (state(number), tid)


# --- object ids


def ids_file(place: Path) -> list[int]:
    connection = sqlite3.connect(place / "oids.sqlite3")
    try:
        return [row[0] for row in connection.execute("SELECT zoid FROM new_oid")]
    finally:
        connection.close()


@pytest.mark.parametrize("damage", ["removed", "emptied", "garbage", "zeroed", "reset"])
@pytest.mark.parametrize("while_open", [True, False])
def test_oids_never_repeat_whatever_happens_to_the_second_file(open_storage, place, damage, while_open):
    storage = open_storage()
    used = [storage.new_oid() for _ in range(50)]
    commit(storage, *((oid, z64, state()) for oid in used))
    path = place / "oids.sqlite3"
    if not while_open:
        storage.close()
    if damage == "removed":
        path.unlink()
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(os.urandom(5000))
    elif damage == "zeroed":
        path.write_bytes(b"\0" * path.stat().st_size)
    else:
        connection = sqlite3.connect(path)
        connection.execute("UPDATE new_oid SET zoid = 1")
        connection.commit()
        connection.close()
    for each in (storage, open_storage()) if while_open else (open_storage(), open_storage()):
        new = [each.new_oid() for _ in range(5000)]
        assert not set(new) & set(used)
        used += new
    assert len(set(used)) == len(used)


def test_oids_never_repeat_when_the_main_file_forgot_what_was_reserved(open_storage, place):
    storage = open_storage()
    oid = p64(10_000)
    commit(storage, (oid, z64, state()))
    storage.close()
    connection = sqlite3.connect(place / "main.sqlite3")
    connection.execute("DELETE FROM rs_meta WHERE name = 'reserved_oid'")
    connection.commit()
    connection.close()
    (place / "oids.sqlite3").unlink(missing_ok=True)
    assert u64(open_storage().new_oid()) > 10_000


def test_the_second_file_tells_relstorage_to_begin_above(open_storage, place):
    # RelStorage multiplies the number by 16 and hands out the 16 ids that end there, after adding one.
    storage = open_storage()
    highest = max(u64(storage.new_oid()) for _ in range(1000))
    (number,) = ids_file(place)
    assert number * 16 >= highest


# --- what cannot be opened


def refused(
    open_storage: Any, place: Path, error: type[BaseException], match: str | None = None, **options: Any
) -> None:
    before = digest(place)
    with pytest.raises(error, match=match):
        open_storage(**options)
    after = digest(place)
    for name in ("main.sqlite3-wal", "main.sqlite3-shm"):
        # SQLite makes them to look, and an empty log says nothing.
        after.pop(name, None)
        before.pop(name, None)
    assert after == before


def test_a_text_file_is_refused_unchanged(open_storage, place):
    place.mkdir()
    (place / "main.sqlite3").write_text("This is my diary, and no database.\n" * 100)
    refused(open_storage, place, NotADatabase, "no SQLite database")


def test_a_database_of_another_application_is_refused_unchanged(open_storage, place):
    place.mkdir()
    connection = sqlite3.connect(place / "main.sqlite3")
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.execute("INSERT INTO bookmarks VALUES ('http://localhost/')")
    connection.commit()
    connection.close()
    refused(open_storage, place, NotADatabase, "not those of a ZODB")


def test_the_other_history_mode_is_refused_unchanged(open_storage, place, keep_history):
    storage = open_storage()
    add(storage)
    storage.close()
    refused(open_storage, place, WrongHistoryMode, "Nothing was changed", keep_history=not keep_history)


def test_a_damaged_file_is_refused_unchanged(open_storage, place):
    storage = open_storage()
    add(storage)
    storage.close()
    path = place / "main.sqlite3"
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xff" * 3996
    path.write_bytes(content)
    refused(open_storage, place, RelStorageError)


def test_an_empty_file_becomes_a_database(open_storage, place):
    place.mkdir()
    (place / "main.sqlite3").touch()
    assert add(open_storage())


def test_a_missing_directory_is_not_made_where_that_is_forbidden(open_storage, place):
    place.mkdir()
    with pytest.raises(SchemaMissing):
        open_storage(create_schema=False)
    assert list(place.iterdir()) == []


@contextmanager
def another_user() -> Iterator[None]:
    """Be somebody who may write to nothing of root's."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user, and root may write to everything")
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize("existing", [True, False])
def test_a_directory_that_cannot_be_written_is_reported_and_left_alone(open_storage, place, existing):
    storage = open_storage(data_dir=str(place if existing else place.with_name("elsewhere")))
    add(storage)
    storage.close()
    place.mkdir(exist_ok=True)
    for path in (place, *place.parents[:-2]):
        path.chmod(0o755)
    before = digest(place)
    with another_user(), pytest.raises(RelStorageError, match="can(not)? be written"):
        add(open_storage())
    assert digest(place) == before


def missing(reason):
    """Skip for this reason on a laptop, and fail where everything has to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def small_disk(path, size):
    """Mount a file system of this size for the length of a block; skip where that cannot be done."""
    if shutil.which("mount") is None:
        missing("mounting a small disk needs the program mount (Debian's package of the same name)")
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        missing("mounting a small disk needs root: " + mounted.stderr.decode(errors="replace").strip())
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_loses_nothing_and_says_so(tmp_path, keep_history):
    with small_disk(tmp_path / "disk", "2m") as disk:
        storage = relstorage.open("sqlite", data_dir=str(disk), keep_history=keep_history)
        made = []
        with pytest.raises(OutOfSpace, match="disk is full"):
            for _ in range(1000):
                made.append(add(storage, "x" * 50_000))
        assert made
        for oid, tid in made:
            assert storage.load(oid) == (state("x" * 50_000), tid)
        with pytest.raises(OutOfSpace):
            add(storage, "x" * 500_000)
        storage.close()
        storage = relstorage.open("sqlite", data_dir=str(disk), keep_history=keep_history)
        assert len(storage) == len(made)
        storage.close()


def test_a_disk_that_is_full_from_the_beginning_is_reported(tmp_path, keep_history):
    with small_disk(tmp_path / "disk", "16k") as disk:
        (disk / "filler").write_bytes(b"x" * 8192)
        with pytest.raises((OutOfSpace, RelStorageError)):
            relstorage.open("sqlite", data_dir=str(disk), keep_history=keep_history)


# --- the tables


def test_foreign_keys_hold_after_a_random_workload(open_storage, place, keep_history):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    storage = open_storage(pack_gc=False)
    alive: dict[bytes, bytes] = {}
    for _ in range(150):
        deed = chance.random()
        try:
            if deed < 0.4 or not alive:
                oid, tid = add(storage, chance.random())
                alive[oid] = tid
            elif deed < 0.7:
                oid = chance.choice(list(alive))
                alive[oid] = change(storage, oid, alive[oid], chance.random())
            elif deed < 0.8:
                oid = chance.choice(list(alive))
                delete(storage, oid, alive.pop(oid))
            elif deed < 0.85:
                oid = chance.choice(list(alive))
                alive[oid] = restore(storage, p64(u64(storage.lastTransaction()) + 5), (oid, state(0)))
            elif deed < 0.95 and keep_history and storage.undoLog(0, 1):
                undo(storage, newest_undo_id(storage))
                alive = {oid: tid for oid, tid, _ in records(storage)}
            elif deed >= 0.95:
                storage.pack(None, referencesf)
                alive = {oid: tid for oid, tid, _ in records(storage)}
        finally:
            assert broken_keys(place) == []
    assert {oid: tid for oid, tid, _ in records(storage)} == alive


def records(storage: Any) -> Iterator[tuple[bytes, bytes, bytes]]:
    following = None
    while len(storage):
        try:
            oid, tid, data, following = storage.record_iternext(following)
        except StopIteration:
            return
        yield oid, tid, data
        if following is None:
            return


def broken_keys(place: Path) -> list[Any]:
    connection = sqlite3.connect(place / "main.sqlite3")
    try:
        return connection.execute("PRAGMA foreign_key_check").fetchall()
    finally:
        connection.close()


