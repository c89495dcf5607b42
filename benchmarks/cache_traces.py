"""Replay synthetic traces of reads over the state cache and over two reference policies, and compare.

A trace is a list of oids. Each read that misses inserts the object, as a storage does after it asked the database. The
references, LRU and segmented LRU, take a lock on a hit, because they move the entry. All are given room for the same
number of objects.

    python benchmarks/cache_traces.py --help
"""

from __future__ import annotations

import json
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from threading import Lock
from typing import Protocol

import click

from relstorage.cache import StateCache
from relstorage.cache.entries import OVERHEAD

STATE = bytes(300)
VIEW = 100
TID = 50
RECORD = (STATE, bytes(8))


class Policy(Protocol):
    def lookup(self, oid: int, view: int) -> tuple[bytes, bytes] | None: ...

    def insert(self, oid: int) -> None: ...


class OurCache:
    """The state cache of this project, with room for so many states of the same size."""

    def __init__(self, size: int) -> None:
        self._cache = StateCache(size * (len(STATE) + OVERHEAD))
        self._cache.learn(None, VIEW, [])
        self.lookup = self._cache.lookup

    def insert(self, oid: int) -> None:
        self._cache.remember(oid, TID, STATE, VIEW)


class LRU:
    """Evict what was used longest ago."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[int, tuple[bytes, bytes]] = OrderedDict()
        self._lock = Lock()

    def lookup(self, oid: int, view: int) -> tuple[bytes, bytes] | None:
        with self._lock:
            record = self._entries.get(oid)
            if record is not None:
                self._entries.move_to_end(oid)
            return record

    def insert(self, oid: int) -> None:
        with self._lock:
            self._entries[oid] = RECORD
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)


class SegmentedLRU:
    """Two LRUs: a hit moves from probation (a fifth) to protected, and protected pushes its oldest back."""

    def __init__(self, size: int) -> None:
        self._probation: OrderedDict[int, tuple[bytes, bytes]] = OrderedDict()
        self._protected: OrderedDict[int, tuple[bytes, bytes]] = OrderedDict()
        self._size = size
        self._protected_size = size * 4 // 5
        self._lock = Lock()

    def lookup(self, oid: int, view: int) -> tuple[bytes, bytes] | None:
        with self._lock:
            record = self._protected.get(oid)
            if record is not None:
                self._protected.move_to_end(oid)
                return record
            record = self._probation.pop(oid, None)
            if record is not None:
                self._protected[oid] = record
                if len(self._protected) > self._protected_size:
                    oldest, kept = self._protected.popitem(last=False)
                    self._probation[oldest] = kept
            return record

    def insert(self, oid: int) -> None:
        with self._lock:
            self._probation[oid] = RECORD
            if len(self._probation) + len(self._protected) > self._size:
                self._probation.popitem(last=False)


POLICIES: dict[str, Callable[[int], Policy]] = {"ours": OurCache, "lru": LRU, "slru": SegmentedLRU}


def zipf(chance: random.Random, objects: int, reads: int, skew: float = 0.9) -> list[int]:
    """Return independent reads where the n-th most popular object is read in proportion to ``n ** -skew``."""
    weights = list(accumulate(rank**-skew for rank in range(1, objects + 1)))
    oids = list(range(objects))
    chance.shuffle(oids)
    return chance.choices(oids, cum_weights=weights, k=reads)


def with_scans(chance: random.Random, objects: int, reads: int) -> list[int]:
    """Return the reads of ``zipf`` with four scans among them, each over a quarter as many objects that occur once."""
    popular = zipf(chance, objects, reads)
    trace: list[int] = []
    for part in range(4):
        trace += popular[part * reads // 4 : (part + 1) * reads // 4]
        start = objects * (2 + part)
        trace += range(start, start + objects // 4)
    return trace


def loop(chance: random.Random, objects: int, reads: int) -> list[int]:
    """Return reads of a fifth of the objects in the same order, again and again."""
    return [number % (objects // 5) for number in range(reads)]


def shifting(chance: random.Random, objects: int, reads: int) -> list[int]:
    """Return reads whose popular objects are others after each tenth."""
    trace: list[int] = []
    for phase in range(10):
        trace += [(oid + phase * objects // 10) % objects for oid in zipf(random.Random(phase), objects, reads // 10)]
    return trace


TRACES: dict[str, Callable[[random.Random, int, int], list[int]]] = {
    "zipf": zipf,
    "zipf+scan": with_scans,
    "loop": loop,
    "shifting": shifting,
}


@dataclass(frozen=True)
class Result:
    trace: str
    size: int
    policy: str
    hit_ratio: float
    ns_per_read: float
    ns_per_hit: float


def replay(policy: Policy, trace: list[int]) -> tuple[float, float]:
    """Return the hit ratio and the nanoseconds per read, insertions included."""
    lookup, insert = policy.lookup, policy.insert
    misses = 0
    start = time.perf_counter_ns()
    for oid in trace:
        if lookup(oid, VIEW) is None:
            misses += 1
            insert(oid)
    elapsed = time.perf_counter_ns() - start
    return 1 - misses / len(trace), elapsed / len(trace)


def time_of_hit(policy: Policy, trace: list[int]) -> float:
    """Return the nanoseconds of a lookup that hits, the best of five rounds over what is resident."""
    lookup = policy.lookup
    resident = [oid for oid in dict.fromkeys(reversed(trace)) if lookup(oid, VIEW) is not None][:2000]
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter_ns()
        for _ in range(20):
            for oid in resident:
                lookup(oid, VIEW)
        best = min(best, (time.perf_counter_ns() - start) / (20 * len(resident)))
    return best


def measure(objects: int, reads: int, shares: tuple[float, ...], seed: int) -> Iterator[Result]:
    for name, make in TRACES.items():
        trace = make(random.Random(seed), objects, reads)
        for share in shares:
            size = max(10, int(objects * share))
            for label, policy_class in POLICIES.items():
                policy = policy_class(size)
                ratio, ns = replay(policy, trace)
                yield Result(name, size, label, round(ratio, 4), round(ns, 1), round(time_of_hit(policy, trace), 1))


@click.command()
@click.option("--objects", default=20_000, show_default=True, help="Objects of the database.")
@click.option("--reads", default=200_000, show_default=True, help="Reads of a trace.")
@click.option(
    "--size",
    "shares",
    multiple=True,
    type=click.FloatRange(0, 1, min_open=True),
    default=(0.02, 0.1),
    show_default=True,
    help="Room in the cache as a part of the objects; may be repeated.",
)
@click.option("--seed", default=1, show_default=True, help="Seed of the random traces.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of a table.")
def main(objects: int, reads: int, shares: tuple[float, ...], seed: int, as_json: bool) -> None:
    """Compare the state cache's eviction with LRU and segmented LRU on synthetic traces.

    "ns/read" includes the insertion after a miss, "ns/hit" is a lookup that hits.
    """
    results = measure(objects, reads, shares, seed)
    if as_json:
        options = {"objects": objects, "reads": reads, "sizes": shares, "seed": seed}
        click.echo(json.dumps({"options": options, "results": [asdict(result) for result in results]}, indent=2))
        return
    click.echo(f"{objects} objects, {reads} reads, seed {seed}")
    click.echo(f"{'trace':<12}{'size':>7}  {'policy':<8}{'hit ratio':>10}{'ns/read':>9}{'ns/hit':>8}")
    for result in results:
        click.echo(
            f"{result.trace:<12}{result.size:>7}  {result.policy:<8}"
            f"{result.hit_ratio:>10.1%}{result.ns_per_read:>9.0f}{result.ns_per_hit:>8.0f}"
        )


if __name__ == "__main__":
    main()
