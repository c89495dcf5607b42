"""A PostgreSQL server that crashes again and again under writers: what was acknowledged is there, all else whole or
not at all, and every outcome that was reported is true.

    RELSTORAGE_TEST_CRASHES=300 pytest relstorage-postgresql/tests/test_postgresql_crashes.py
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import postgresql_writers as writers
import pytest
from ZODB.utils import p64, u64, z64

import relstorage
from relstorage.errors import CommitOutcomeUnknown, Disconnected, TransientStorageError
from relstorage.testing.records import commit, meta, state

ROUNDS = int(os.environ.get("RELSTORAGE_TEST_CRASHES", "3"))
pytestmark = pytest.mark.timeout(300 + 30 * ROUNDS)


class Writer:
    """A process that commits, and what it said."""

    def __init__(self, job, **arguments):
        self.lines = []
        self.process = subprocess.Popen(
            [sys.executable, writers.__file__, job, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            # The last line of one that is killed may be a part of it.
            if line.endswith("\n"):
                self.lines.append(line.split())

    def wait(self, seconds):
        """Wait until it has ended, and well."""
        assert self.process.wait(seconds) == 0
        self._reader.join()
        self._close()

    def kill(self):
        assert self.process.poll() is None, "a writer ended by itself"
        self.close()

    def close(self):
        """End it if it still runs."""
        self.process.kill()
        self._reader.join()
        self.process.wait()
        self._close()

    def _close(self):
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.mark.parametrize(
    "keep_history, early",
    [(False, True), (True, True), (True, False)],
    ids=("early-free", "early-history", "late-history"),
)
def test_every_acknowledged_commit_survives_every_crash(new_postgres, tmp_path, keep_history, early, confirm=True):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    # What is not flushed on purpose stays in memory for long, and is lost in a crash.
    settings = {"wal_writer_delay": "10s", "wal_buffers": "16MB", "max_connections": 40}
    with new_postgres(settings=settings) as server:
        options = {
            "dsn": server.dsn(),
            "keep_history": keep_history,
            "early_lock_release": early,
            "blob_dir": str(tmp_path),
            "shared_blob_dir": False,
            "commit_lock_timeout": 10,
        }
        storage = relstorage.open("postgresql", **options)
        heads = [u64(storage.new_oid()) for _ in range(4)]
        for head in heads:
            commit(storage, (p64(head), z64, state(None)))
        *heads, shared = heads
        storage.close()
        running = [
            Writer(
                "commit_through_crashes", options=options, head=head, shared=shared, writer=number, blobs=number == 0,
                confirm=confirm,
            )
            for number, head in enumerate(heads)
        ]  # fmt: skip
        try:
            for _ in range(ROUNDS):
                said = sum(len(each.lines) for each in running)
                deadline = time.monotonic() + 30
                while sum(len(each.lines) for each in running) < said + chance.randint(5, 60):
                    assert time.monotonic() < deadline, "the writers do not go on"
                    time.sleep(0.01)
                if chance.random() < 0.5:
                    server.kill()
                else:
                    server.stop("immediate")
                time.sleep(chance.choice((0, 0.1)))
                server.start()
            time.sleep(0.3)
        finally:
            for each in running:
                each.kill()
        storage = relstorage.open("postgresql", **options)
        try:
            _judge(storage, [line for each in running for line in each.lines], heads, keep_history)
        finally:
            storage.close()


def _judge(storage, lines, heads, keep_history):
    counted = {}
    for line in lines:
        assert line[0] in ("yes", "no", "unknown"), line
        counted[line[0]] = counted.get(line[0], 0) + 1
    print(counted)
    assert counted["yes"] > 10
    tids = {}
    newest = {}
    for verdict, *numbers in lines:
        writer, number, tid, new, head, *others = map(int, numbers)
        found = _load(storage, new)
        there = found is not None
        if verdict == "yes":
            assert there, f"the acknowledged transaction {number} of writer {writer} is lost"
            assert tid not in tids, f"the tid {tid:#x} was given twice"
            assert tid > max((tids_of for tids_of in tids if tids[tids_of] == writer), default=0)
            tids[tid] = writer
            assert found[1] == tid
        if verdict == "no":
            assert not there, f"transaction {number} of writer {writer} was reported as not committed and is there"
        if there:
            assert found[0][:2] == (writer, number)
            newest[writer] = max(newest.get(writer, (0, 0, 0)), (found[1], number, new))
            for oid in others:
                value, oid_tid = _load(storage, oid)
                if len(value) == 3 and value[2] == "blob":
                    assert (value[:2], oid_tid) == ((writer, number), found[1])
                    path = storage.loadBlob(p64(oid), p64(oid_tid))
                    assert Path(path).read_bytes() == writers.blob_content(writer, number)
                elif value[0] == writer and value[1] == number:
                    assert oid_tid == found[1]
        else:
            assert all(_load(storage, oid) is None for oid in others[-1:] if others and oid not in _shared(lines))
    for writer, head in enumerate(heads):
        value, tid = _load(storage, head)
        assert (tid, *value[1:]) >= newest[writer], "a part of a transaction is missing"
        # The last one may not have been told before its process was killed; it is whole all the same.
        assert _load(storage, value[2])[1] == tid
    if keep_history:
        found = {u64(each.tid): {u64(record.oid) for record in each} for each in storage.iterator()}
        for verdict, *numbers in lines:
            if verdict == "yes":
                assert found[int(numbers[2])] == set(map(int, numbers[3:]))


def _shared(lines):
    counts = {}
    for line in lines:
        for oid in line[5:]:
            counts[int(oid)] = counts.get(int(oid), 0) + 1
    return {oid for oid, count in counts.items() if count > 1}


def _load(storage, oid):
    try:
        data, tid = storage.load(p64(oid))
    except KeyError:
        return None
    return writers.value_of(data), u64(tid)


def test_a_killed_server_process_costs_the_others_a_new_attempt_only(new_postgres):
    with new_postgres() as server:
        storage = relstorage.open("postgresql", dsn=server.dsn(), keep_history=False)
        other = relstorage.open("postgresql", dsn=server.dsn(), keep_history=False)
        try:
            oid = storage.new_oid()
            tid = commit(storage, (oid, z64, state(0)))
            for number in range(1, 4):
                described = meta()
                storage.tpc_begin(described)
                storage.store(oid, tid, state(number), "", described)
                storage.tpc_vote(described)
                (victim,) = server.psql(
                    "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' AND backend_xid IS NOT NULL"
                ).split()
                os.kill(int(victim), signal.SIGKILL)
                with pytest.raises((Disconnected, CommitOutcomeUnknown)):
                    storage.tpc_finish(described)
                storage.tpc_abort(described)
                deadline = time.monotonic() + 30
                while True:
                    try:
                        other.poll_invalidations()
                        assert other.load(oid) == (state(number - 1), tid)
                        tid = commit(storage, (oid, tid, state(number)))
                        break
                    except TransientStorageError:
                        assert time.monotonic() < deadline
                        time.sleep(0.05)
        finally:
            storage.close()
            other.close()
