"""The state cache under real threads that commit, poll and read at once, against a database with every revision."""

from __future__ import annotations

import random
import sys
import threading

import pytest

from relstorage.cache import StateCache
from relstorage.cache.entries import OVERHEAD
from relstorage.ids import to_bytes


class Revisions:
    """A database: under its lock every answer is of one moment."""

    def __init__(self, oids: int) -> None:
        self.lock = threading.Lock()
        self.last = 100
        self.current = dict.fromkeys(range(oids), 100)
        self.history = {oid: [100] for oid in range(oids)}

    @staticmethod
    def state(oid: int, tid: int) -> bytes:
        return b"%d at %d " % (oid, tid) * (1 + (oid * 31 + tid) % 30)

    def commit(self, oids: list[int]) -> int:
        with self.lock:
            self.last += 1
            for oid in oids:
                self.current[oid] = self.last
                self.history[oid].append(self.last)
            return self.last

    def poll(self, since: int) -> tuple[int, list[tuple[int, int]]]:
        with self.lock:
            return self.last, [(oid, tid) for oid, tid in self.current.items() if tid > since]

    def at(self, oid: int, view: int) -> int:
        with self.lock:
            return max(tid for tid in self.history[oid] if tid <= view)


@pytest.mark.parametrize("seed", [11, 12])
def test_threads_that_commit_poll_and_read_see_each_view_as_the_database_has_it(seed):
    print("seed", seed)
    database = Revisions(40)
    cache = StateCache(12_000, log_limit=60)
    wrong: list[str] = []
    hits = [0]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        view = None
        try:
            for _ in range(250):
                if chance.random() < 0.3:
                    oids = chance.sample(range(40), 2)
                    tid = database.commit(oids)
                    for oid in oids:
                        cache.remember(oid, tid, database.state(oid, tid), tid)
                since = cache.horizon
                if since < 0:
                    upto, _ = database.poll(0)
                    cache.learn(None, upto, [])
                else:
                    upto, changes = database.poll(since)
                    cache.learn(since, upto, changes)
                logged = None if view is None else cache.changes(view, upto)
                if logged is not None:
                    changed = {oid for oid, _ in logged}
                    for oid in range(40):
                        if database.at(oid, view) != database.at(oid, upto) and oid not in changed:
                            wrong.append(f"change of {oid} in ({view}, {upto}] is not logged")
                view = upto
                for _ in range(chance.randrange(30)):
                    oid = int(chance.paretovariate(1)) % 40
                    tid = database.at(oid, view)
                    found = cache.lookup(oid, view)
                    if found is None:
                        cache.remember(oid, tid, database.state(oid, tid), view)
                    elif found != (database.state(oid, tid), to_bytes(tid)):
                        wrong.append(f"{oid} at {view} is {tid}, not {found[1].hex()}")
                    else:
                        hits[0] += 1
                if chance.random() < 0.01:
                    cache.forget([chance.randrange(40)])
        except BaseException as error:
            errors.append(error)
            raise

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert not wrong
    assert hits[0] > 0
    statistics = cache.statistics()
    weights = [len(entry.record[0]) + OVERHEAD for entry in cache._residents.entries.values()]
    assert statistics.bytes == sum(weights) <= 12_000
    assert statistics.evictions > 0
    assert statistics.floor > 100
