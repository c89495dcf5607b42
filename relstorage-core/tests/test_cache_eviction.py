"""What stays in the state cache when it is full, and that its bytes are exact."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections import OrderedDict

import pytest

from relstorage.cache import StateCache
from relstorage.cache.entries import OVERHEAD

SIZE = 100
WEIGHT = OVERHEAD + SIZE


def cache_of(entries: int) -> StateCache:
    cache = StateCache(entries * WEIGHT)
    cache.learn(None, 100, [])
    return cache


def use(cache: StateCache, oid: int) -> bool:
    """Read an object as a storage does, and return whether it was a hit."""
    if cache.lookup(oid, 100) is not None:
        return True
    cache.remember(oid, 50, bytes(SIZE), 100)
    return False


def hits_of_lru(trace: list[int], size: int) -> int:
    hits = 0
    entries: OrderedDict[int, None] = OrderedDict()
    for oid in trace:
        if oid in entries:
            hits += 1
            entries.move_to_end(oid)
        else:
            entries[oid] = None
            if len(entries) > size:
                entries.popitem(last=False)
    return hits


def exact_bytes(cache: StateCache) -> int:
    return sum(len(entry.record[0]) + OVERHEAD for entry in cache._residents.entries.values())


def test_a_full_cache_stays_at_its_limit():
    cache = cache_of(100)
    for oid in range(1000):
        use(cache, oid)
    statistics = cache.statistics()
    assert (statistics.entries, statistics.bytes, statistics.evictions) == (100, 100 * WEIGHT, 900)


def test_objects_that_are_read_again_survive_a_scan_of_many_times_the_cache():
    cache = cache_of(100)
    hot = range(50)
    for _ in range(3):
        for oid in hot:
            use(cache, oid)
    for oid in range(1000, 2000):
        use(cache, oid)
    assert all(cache.contains(oid, 100) for oid in hot)


def test_objects_that_are_no_longer_read_leave():
    cache = cache_of(100)
    for _ in range(3):
        for oid in range(50):
            use(cache, oid)
    for _ in range(10):
        for oid in range(1000, 1080):
            use(cache, oid)
    assert sum(cache.contains(oid, 100) for oid in range(50)) <= 20


def test_an_object_that_returns_soon_after_its_eviction_is_kept_longer_than_new_ones():
    cache = cache_of(100)
    for oid in range(110):
        use(cache, oid)
    assert not cache.contains(0, 100)
    use(cache, 0)
    for oid in range(1000, 1200):
        use(cache, oid)
    assert cache.contains(0, 100)
    assert not cache.contains(1000, 100)


def test_a_superseded_revision_leaves_however_often_it_was_read():
    cache = cache_of(100)
    for _ in range(5):
        use(cache, 1)
    cache.learn(100, 110, [(1, 105)])
    for oid in range(1000, 1200):
        use(cache, oid)
    assert not cache.contains(1, 100)


def with_a_superseded_object_in_front_of_main() -> StateCache:
    """Return a full cache whose next eviction finds object 1, read often and superseded at 105."""
    cache = cache_of(20)
    for oid in range(20):
        use(cache, oid)
        use(cache, oid)
    use(cache, 20)
    assert not cache.contains(0, 100)
    for _ in range(3):
        use(cache, 1)
    cache.learn(100, 110, [(1, 105)])
    return cache


def test_a_superseded_revision_does_not_go_round_in_the_main_queue():
    cache = with_a_superseded_object_in_front_of_main()
    use(cache, 21)
    assert not cache.contains(1, 100)
    assert cache.contains(2, 100)


def test_the_next_revision_of_an_object_that_was_in_use_goes_to_the_main_queue():
    cache = with_a_superseded_object_in_front_of_main()
    use(cache, 21)
    cache.remember(1, 105, bytes(SIZE), 110)
    for oid in range(1000, 1100):
        use(cache, oid)
    assert cache.contains(1, 110)


def test_the_next_revision_of_an_object_in_use_keeps_its_place():
    cache = cache_of(100)
    for oid in range(200):
        use(cache, oid)
        use(cache, 0)
    cache.learn(100, 110, [(0, 105)])
    cache.remember(0, 105, bytes(SIZE), 110)
    for oid in range(1000, 1080):
        cache.remember(oid, 50, bytes(SIZE), 110)
    assert cache.contains(0, 110)


def test_the_next_revision_of_an_object_that_was_hit_once_survives_a_scan():
    cache = cache_of(100)
    use(cache, 0)
    use(cache, 0)
    cache.learn(100, 110, [(0, 105)])
    cache.remember(0, 105, bytes(SIZE), 110)
    for oid in range(1000, 1200):
        cache.remember(oid, 50, bytes(SIZE), 110)
    assert cache.contains(0, 110)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_hit_ratio_on_skewed_reads_with_scans_is_at_least_that_of_lru(seed):
    print("seed", seed)
    chance = random.Random(seed)
    trace: list[int] = []
    for scan in range(5):
        trace += [int(chance.paretovariate(0.9)) % 20_000 for _ in range(8000)]
        trace += range(100_000 + scan * 3000, 100_000 + scan * 3000 + 2000)
    cache = cache_of(500)
    hits = sum(use(cache, oid) for oid in trace)
    lru = hits_of_lru(trace, 500)
    print("hits", hits, "LRU", lru)
    assert hits >= lru
    assert cache.statistics().hits == hits


def test_a_hundred_thousand_overwrites_of_twenty_objects_leave_the_bytes_exact():
    cache = StateCache(100_000)
    cache.learn(None, 0, [])
    for oid in range(100, 200):
        cache.remember(oid, 0, bytes(300), 0)
    for tid in range(1, 100_001):
        oid = tid % 20
        cache.remember(oid, tid, bytes(1 + tid % 2000), tid)
        cache.learn(tid - 1, tid, [(oid, tid)])
        if tid % 10_000 == 0:
            assert cache.statistics().bytes == exact_bytes(cache) <= 100_000
    assert all(cache.contains(oid, 100_000) for oid in range(20))


def test_overwrites_do_not_pile_up_in_the_queues():
    cache = cache_of(100)
    for tid in range(1, 20_001):
        cache.remember(tid % 20, 100 + tid, bytes(SIZE), 100 + tid)
    assert cache._residents.slots() < 250


def test_evictions_do_not_pile_up_in_the_ghosts():
    cache = cache_of(100)
    for oid in range(20_000):
        use(cache, oid)
    assert cache._residents.slots() < 350


def test_a_dropped_state_is_not_held_by_a_queue():
    cache = cache_of(100)
    cache.remember(1, 50, bytes(SIZE), 100)
    entry = cache._residents.entries[1]
    cache.forget([1])
    assert entry.record is None


def test_hits_are_counted_exactly_through_every_queue():
    cache = cache_of(50)
    chance = random.Random(7)
    hits = sum(use(cache, int(chance.paretovariate(0.8)) % 500) for _ in range(20_000))
    assert cache.statistics().hits == hits


def test_the_reported_bytes_are_near_what_python_allocates():
    count = 20_000
    states = [bytes([oid % 251]) * 300 for oid in range(2 * count)]
    gc.collect()
    cache = StateCache(count * (300 + OVERHEAD))
    cache.learn(None, 2**60, [])
    tracemalloc.start()
    try:
        for oid in range(2 * count):
            # Integers and bytes of their own, as those that come out of a database row.
            cache.remember(2**40 + oid, 2**58 + oid, bytes(bytearray(states[oid])), 2**60)
        gc.collect()
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    reported = cache.statistics().bytes
    print("reported", reported, "allocated", allocated)
    assert 0.85 < allocated / reported < 1.15
