"""Packing while other processes write, and packs that are killed at every step. Afterwards nothing may dangle."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import ZODB
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob
from ZODB.serialize import referencesf

from relstorage import packing
from relstorage.errors import MarkIncomplete
from relstorage.testing.pack_processes import Worker, opened, pack_and_die, pack_once, pack_until, plant, write
from relstorage.testing.raw_records import Records, assert_nothing_dangles
from relstorage.testing.target import DatabaseUnderTest

__all__ = [
    "test_a_pack_in_another_process_is_refused_meanwhile",
    "test_a_pack_killed_at_any_step_leaves_nothing_dangling",
    "test_packs_and_writers_in_many_processes_lose_nothing",
    "pack_workers",
]

WRITERS = 3
SECONDS = 6.0


@pytest.fixture
def pack_workers() -> Iterator[ExitStack]:
    """What ends every worker that a test has left running."""
    with ExitStack() as stack:
        yield stack


def _start(pack_workers: ExitStack, *arguments: Any) -> Worker:
    worker = Worker(*arguments)
    pack_workers.callback(worker.close)
    return worker


def test_packs_and_writers_in_many_processes_lose_nothing(database: DatabaseUnderTest, pack_workers: ExitStack) -> None:
    backend, options = database.target.backend, database.options
    with opened(backend, options) as db:
        plant(db)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    until = time.time() + SECONDS
    packers = [_start(pack_workers, pack_until, backend, options, until, 0.05) for _ in range(2)]
    writers = [_start(pack_workers, write, backend, options, seed + number, until) for number in range(WRITERS)]
    written = [writer.result() for writer in writers]
    packed = [packer.result() for packer in packers]
    seconds = sorted(each for result in written for each in result.pop("seconds"))
    print(f"writers {written}, packers {packed}")
    median, late = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
    print(f"commit: median {median:.3f} s, p99 {late:.3f} s, longest {seconds[-1]:.3f} s")
    assert sum(each["commits"] for each in written) > 0
    assert sum(each["packs"] for each in packed) > 0
    assert_nothing_dangles(database.open())
    packing.pack(database.open().database, None, referencesf)
    records = assert_nothing_dangles(database.open())
    assert set(records.reachable()) == set(records.current)


def test_a_pack_in_another_process_is_refused_meanwhile(database: DatabaseUnderTest, pack_workers: ExitStack) -> None:
    storage = database.zodb().storage
    answers = []

    def progress(report: packing.PackProgress) -> None:
        if report.phase == "sweep" and not answers:
            answers.append(_start(pack_workers, pack_once, database.target.backend, database.options).result())

    packing.pack(storage.database, None, referencesf, progress=progress)
    assert answers == ["UnableToAcquirePackUndoLockError"]


def _litter(db: ZODB.DB) -> None:
    """Leave garbage of every kind, and objects that must stay."""
    with db.transaction() as connection:
        root = connection.root()
        root["blob"] = Blob(b"blob")
        root["old"] = PersistentMapping({number: PersistentMapping() for number in range(600)})
        root["kept"] = PersistentMapping(leaf=PersistentMapping())
        connection.transaction_manager.commit()
        root["kept"]["version"] = len(root["old"])
        first = root["old"][0]
        first["cycle"] = first
        del root["old"], root["blob"]


def _finish(db: ZODB.DB, how: int) -> None:
    """Have the next pack find what the killed one left: a whole pack, the second half of one, or both."""
    database = db.storage.database
    if how:
        # Where the killed pack had not marked everything, or was done, there is nothing for the second half.
        with suppress(MarkIncomplete):
            packing.pack(database, None, referencesf, skip_prepack=True)
    if how != 1:
        packing.pack(database, None, referencesf)


def test_a_pack_killed_at_any_step_leaves_nothing_dangling(
    database: DatabaseUnderTest, pack_workers: ExitStack
) -> None:
    blobs = {"blob_dir": str(database.directory / "blobs"), "shared_blob_dir": True}
    db = database.zodb(**blobs)
    storage = database.open(**blobs)
    calls, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        calls += 1
        _litter(db)
        newest = storage.lastTransaction()
        expected = Records(storage).reachable()
        code = _start(pack_workers, pack_and_die, database.target.backend, {**database.options, **blobs}, calls).join()
        records = assert_nothing_dangles(storage, every_revision=False)
        assert records.reachable() == expected, f"killed at call {calls}"
        assert storage.lastTransaction() >= newest
        _finish(db, calls % 3)
        records = assert_nothing_dangles(storage)
        assert records.reachable() == expected, f"killed at call {calls}"
    assert code == 0
    print(f"killed at {calls - 1} steps")
    assert calls > 20
    _finish(db, 0)
    assert set(Records(storage).current) == set(expected)
    assert list(storage.database.blobs.all_revisions()) == []
