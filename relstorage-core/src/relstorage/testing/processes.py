"""Several processes on one database: first start, conflicts, locks, oids, and processes that are killed."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ZODB.utils import p64, u64

from relstorage.errors import LockError, UnableToAcquirePackUndoLockError
from relstorage.testing.records import Counter, add, commit, everything, grow, state
from relstorage.testing.target import DatabaseUnderTest

__all__ = ["TestProcesses", "workers"]


class Worker:
    """Another process that does one job of ``relstorage.testing.worker``."""

    def __init__(self, database: DatabaseUnderTest, job: str, /, **arguments: Any):
        arguments.update(backend=database.target.backend, options=database.options)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "relstorage.testing.worker", job, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Return its next line, without the end."""
        return self._process.stdout.readline().rstrip("\n")

    def go_on(self) -> None:
        """Send the line that it waits for."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def finish(self) -> list[str]:
        """Return the lines that it still says until it ends; it must end well."""
        output = self._rest()
        assert self._process.returncode == 0
        return output.splitlines()

    def kill(self) -> list[str]:
        """Kill it and return the whole lines it had said until then."""
        self._process.kill()
        return [line[:-1] for line in self._rest().splitlines(keepends=True) if line.endswith("\n")]

    def close(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._rest()

    def _rest(self) -> str:
        # Popen.communicate would pass by what the file object has already read of the pipe.
        output = "" if self._process.stdout.closed else self._process.stdout.read()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        return output


@pytest.fixture
def workers() -> Iterator[Any]:
    """Start processes that open the database at the same moment; they end with the test."""
    started: list[Worker] = []

    def start(database: DatabaseUnderTest, count: int, job: str, /, **arguments: Any) -> list[Worker]:
        new = [Worker(database, job, **arguments) for _ in range(count)]
        started.extend(new)
        for each in new:
            assert each.line() == "ready"
        for each in new:
            each.go_on()
        return new

    yield start
    for each in started:
        each.close()


class TestProcesses:
    def test_an_empty_database_can_be_opened_by_several_at_once(self, database, workers):
        names = {line for each in workers(database, 4, "add_to_root", count=3) for line in each.finish()}
        assert len(names) == 12
        assert set(database.connection(database.zodb()).root()) == names

    @pytest.mark.parametrize("job, name", [("count", "counter"), ("count_without_merging", "number")])
    def test_no_update_is_lost(self, database, workers, job, name):
        connection = database.connection(database.zodb())
        grow(connection, counter=Counter(), number=0)
        for each in workers(database, 3, job, times=20):
            each.finish()
        connection.sync()
        found = connection.root()[name]
        assert (found.value if name == "counter" else found) == 60

    def test_every_acknowledged_commit_survives_a_kill(self, database, workers):
        seed = random.randrange(1 << 32)
        print("seed", seed)
        chance = random.Random(seed)
        acknowledged: dict[int, list[int]] = {}
        for _ in range(3):
            running = workers(database, 2, "commit_forever", filler=chance.choice((10, 5000)))
            # It dies while the other goes on, each at a moment of its own.
            for each in running:
                lines = [each.line()]
                time.sleep(chance.uniform(0, 0.1))
                for line in (*lines, *each.kill()):
                    tid, *oids = map(int, line.split())
                    acknowledged[tid] = oids
        storage = database.open()
        found = {u64(tid): [u64(oid) for oid, _ in records] for tid, records in everything(storage)}
        assert {tid: found.get(tid) for tid in acknowledged} == acknowledged
        # What was not acknowledged is there as a whole or not at all.
        assert {len(oids) for oids in found.values()} == {3}
        assert add(storage)

    def test_new_oids_of_several_processes_never_repeat(self, database, workers):
        oids = [
            int(word) for each in workers(database, 3, "new_oids", count=500) for word in each.finish()[0].split()
        ]
        assert len(set(oids)) == 1500

    def test_one_process_packs_at_a_time(self, database, workers):
        storage = database.open()
        (holder,) = workers(database, 1, "hold_pack_lock")
        assert holder.line() == "held"
        with pytest.raises(UnableToAcquirePackUndoLockError):
            storage.pack(None, lambda record: [])
        with pytest.raises(UnableToAcquirePackUndoLockError), storage.database.adapter.pack_lock(0.2):
            pass
        holder.go_on()
        assert holder.finish() == ["released"]
        with storage.database.adapter.pack_lock(0):
            pass

    def test_the_pack_lock_ends_with_its_process(self, database, workers):
        storage = database.open()
        (holder,) = workers(database, 1, "hold_pack_lock")
        assert holder.line() == "held"
        holder.kill()
        with storage.database.adapter.pack_lock(20):
            pass

    def test_commits_wait_for_the_commit_lock_of_another_process(self, database, workers):
        storage = database.open(commit_lock_timeout=0.3)
        oid = storage.new_oid()
        (holder,) = workers(database, 1, "hold_commit_lock")
        tid = int(holder.line())
        with pytest.raises(LockError):
            commit(storage, (oid, p64(0), state(1)))
        holder.go_on()
        assert holder.finish() == ["released"]
        assert u64(commit(storage, (oid, p64(0), state(1)))) >= tid

    def test_the_commit_lock_ends_with_its_process(self, database, workers):
        storage = database.open(commit_lock_timeout=20)
        oid = storage.new_oid()
        (holder,) = workers(database, 1, "hold_commit_lock")
        holder.line()
        holder.kill()
        assert commit(storage, (oid, p64(0), state(1)))
