"""Each rule of the state cache by itself."""

from __future__ import annotations

import pytest

from relstorage.cache import CODECS, StateCache
from relstorage.cache.entries import OVERHEAD
from relstorage.ids import EVERYTHING, to_bytes

MEGABYTE = 1_000_000


@pytest.fixture
def cache() -> StateCache:
    """A cache whose process has polled once, at 100."""
    cache = StateCache(MEGABYTE)
    cache.learn(None, 100, [])
    return cache


def state_at(cache: StateCache, oid: int, view: int) -> bytes | None:
    found = cache.lookup(oid, view)
    return None if found is None else found[0]


# --- which revision a view may use


def test_a_lookup_returns_the_state_and_the_tid_as_bytes(cache):
    cache.remember(1, 50, b"state", 100)
    assert cache.lookup(1, 100) == (b"state", to_bytes(50))


def test_a_lookup_returns_the_same_tuple_each_time(cache):
    cache.remember(1, 50, b"state", 100)
    assert cache.lookup(1, 100) is cache.lookup(1, 100)


def test_an_object_that_was_never_remembered_is_a_miss(cache):
    assert cache.lookup(1, 100) is None


def test_a_revision_is_not_used_at_a_view_before_it(cache):
    cache.learn(100, 110, [(1, 105)])
    cache.remember(1, 105, b"new", 110)
    assert state_at(cache, 1, 104) is None
    assert state_at(cache, 1, 105) == b"new"


def test_a_revision_is_used_at_views_older_than_the_load(cache):
    cache.learn(100, 110, [])
    cache.remember(1, 50, b"state", 110)
    assert state_at(cache, 1, 70) == b"state"


def test_a_changed_object_stays_usable_up_to_the_last_view_it_was_known_at(cache):
    cache.remember(1, 50, b"old", 100)
    cache.learn(100, 110, [(1, 107)])
    assert state_at(cache, 1, 100) == b"old"
    assert state_at(cache, 1, 110) is None


def test_a_changed_object_is_not_used_between_the_last_view_it_was_known_at_and_the_change(cache):
    """A poll may tell the last of several changes only: there may have been one at 103."""
    cache.remember(1, 50, b"old", 100)
    cache.learn(100, 110, [(1, 107)])
    assert not any(cache.contains(1, view) for view in range(101, 111))
    assert not any(cache.lookup(1, view) for view in range(101, 111))


def test_a_second_change_does_not_reopen_a_revision(cache):
    cache.remember(1, 50, b"old", 100)
    cache.learn(100, 110, [(1, 107)])
    cache.learn(110, 120, [(1, 118)])
    assert state_at(cache, 1, 100) == b"old"
    assert state_at(cache, 1, 110) is None


def test_a_change_that_the_cache_holds_does_not_close_it(cache):
    cache.remember(1, 105, b"own", 105)
    cache.learn(100, 110, [(1, 105)])
    assert state_at(cache, 1, 110) == b"own"


def test_an_unchanged_object_is_used_at_the_new_horizon(cache):
    cache.remember(1, 50, b"state", 100)
    cache.learn(100, 110, [(2, 107)])
    assert state_at(cache, 1, 110) == b"state"


# --- remember


def test_a_load_from_before_a_known_change_is_discarded(cache):
    cache.learn(100, 110, [(1, 107)])
    cache.remember(1, 50, b"old", 100)
    assert not cache.contains(1, 100)
    assert cache.statistics().discarded == 1


def test_a_load_from_before_the_floor_is_discarded(cache):
    cache.remember(1, 50, b"old", 99)
    assert not cache.contains(1, 99)
    assert cache.statistics().discarded == 1


def test_a_load_at_the_floor_is_kept(cache):
    cache.remember(1, 50, b"state", 100)
    assert cache.contains(1, 100)


def test_a_load_whose_change_the_log_forgot_is_discarded():
    cache = StateCache(MEGABYTE, log_limit=1)
    cache.learn(None, 100, [])
    cache.learn(100, 110, [(1, 107)])
    cache.learn(110, 120, [(2, 115)])
    assert cache.floor == 107
    cache.remember(1, 50, b"old", 100)
    assert not cache.contains(1, 120)


def test_an_older_revision_does_not_replace_a_newer_one(cache):
    cache.remember(1, 105, b"own commit", 105)
    cache.remember(1, 50, b"old", 100)
    cache.learn(100, 110, [(1, 105)])
    assert state_at(cache, 1, 110) == b"own commit"
    assert cache.statistics().discarded == 1


def test_a_newer_revision_replaces_an_older_one(cache):
    cache.remember(1, 50, b"old", 100)
    cache.learn(100, 110, [(1, 107)])
    cache.remember(1, 107, b"new", 110)
    assert state_at(cache, 1, 110) == b"new"
    assert cache.statistics().entries == 1


def test_the_same_revision_twice_is_stored_once(cache):
    cache.remember(1, 50, b"state", 100)
    first = cache.lookup(1, 100)
    cache.remember(1, 50, b"state", 100)
    assert cache.lookup(1, 100) is first
    assert cache.statistics().stores == 1
    assert cache.statistics().discarded == 0


def test_an_own_commit_may_be_remembered_after_others_polled_it(cache):
    cache.learn(100, 110, [(1, 105)])
    cache.remember(1, 105, b"own", 105)
    assert state_at(cache, 1, 110) == b"own"


def test_an_own_commit_that_was_overwritten_meanwhile_is_discarded(cache):
    cache.learn(100, 110, [(1, 105), (1, 108)])
    cache.remember(1, 105, b"own", 105)
    assert not cache.contains(1, 110)


def test_an_own_commit_overwritten_in_the_same_poll_is_never_used(cache):
    cache.remember(1, 105, b"own", 105)
    cache.learn(100, 110, [(1, 108)])
    assert not any(cache.contains(1, view) for view in range(100, 111))


def test_a_state_as_long_as_object_max_is_not_kept():
    cache = StateCache(MEGABYTE, object_max=10)
    cache.learn(None, 100, [])
    cache.remember(1, 50, bytes(10), 100)
    cache.remember(2, 50, bytes(9), 100)
    assert not cache.contains(1, 100)
    assert cache.contains(2, 100)


def test_object_max_zero_bounds_nothing():
    cache = StateCache(MEGABYTE, object_max=0)
    cache.learn(None, 100, [])
    cache.remember(1, 50, bytes(500_000), 100)
    assert cache.contains(1, 100)


def test_a_state_larger_than_the_cache_is_not_kept_and_evicts_nothing():
    cache = StateCache(1000, object_max=0)
    cache.learn(None, 100, [])
    cache.remember(1, 50, b"small", 100)
    cache.remember(2, 50, bytes(1000), 100)
    assert cache.contains(1, 100)
    assert not cache.contains(2, 100)


def test_a_limit_of_zero_keeps_no_states_and_still_logs_changes():
    cache = StateCache(0)
    cache.learn(None, 100, [])
    cache.learn(100, 110, [(1, 105)])
    cache.remember(2, 50, b"", 110)
    assert cache.lookup(2, 110) is None
    assert cache.changes(100, 110) == [(1, 105)]


# --- learn and the log


def test_nothing_is_known_before_the_first_poll():
    cache = StateCache(MEGABYTE)
    assert (cache.horizon, cache.floor) == (-1, -1)
    assert cache.changes(0, 10) is None


def test_the_first_poll_sets_horizon_and_floor(cache):
    assert (cache.horizon, cache.floor) == (100, 100)


def test_the_first_poll_drops_what_was_loaded_before_it():
    cache = StateCache(MEGABYTE)
    cache.remember(1, 50, b"maybe old", 90)
    cache.learn(None, 100, [])
    assert not cache.contains(1, 100)


def test_a_first_poll_that_arrives_late_changes_nothing(cache):
    cache.remember(1, 50, b"state", 100)
    cache.learn(None, 90, [])
    assert (cache.horizon, cache.floor) == (100, 100)
    assert cache.contains(1, 100)


def test_a_first_poll_above_the_horizon_starts_over(cache):
    cache.remember(1, 50, b"maybe old", 100)
    cache.learn(None, 110, [])
    assert (cache.horizon, cache.floor) == (110, 110)
    assert not cache.contains(1, 110)


def test_a_poll_that_begins_above_the_horizon_starts_over(cache):
    cache.learn(100, 105, [(2, 103)])
    cache.remember(1, 50, b"maybe old", 100)
    cache.learn(106, 120, [(3, 115)])
    assert (cache.horizon, cache.floor) == (120, 120)
    assert not cache.contains(1, 100)
    assert cache.statistics().log_length == 0


def test_a_poll_that_overlaps_adds_only_what_is_new(cache):
    cache.learn(100, 110, [(1, 105)])
    cache.learn(100, 120, [(1, 105), (2, 115)])
    assert cache.changes(100, 120) == [(1, 105), (2, 115)]
    assert cache.horizon == 120


def test_a_poll_that_arrives_late_does_not_lower_the_horizon(cache):
    cache.learn(100, 120, [])
    cache.learn(100, 110, [])
    assert cache.horizon == 120


def test_a_poll_that_arrives_late_adds_the_change_that_the_later_poll_did_not_tell(cache):
    """Without history, the poll up to 120 knows only the change of 115."""
    cache.learn(100, 120, [(1, 115), (2, 118)])
    cache.learn(100, 110, [(1, 105)])
    assert cache.changes(100, 110) == [(1, 105)]
    assert cache.changes(100, 120) == [(1, 105), (1, 115), (2, 118)]


def test_a_poll_that_arrives_late_does_not_log_twice(cache):
    cache.learn(100, 120, [(1, 105), (2, 105)])
    cache.learn(100, 110, [(2, 105), (1, 105)])
    assert cache.statistics().log_length == 2


def test_a_poll_that_arrives_late_does_not_hide_a_newer_change(cache):
    cache.learn(100, 120, [(1, 115)])
    cache.learn(100, 110, [(1, 105)])
    cache.remember(1, 105, b"old", 110)
    assert not cache.contains(1, 120)


def test_a_poll_that_ends_below_the_floor_is_not_logged(cache):
    cache.learn(110, 120, [])
    cache.learn(100, 115, [(1, 105), (2, 115)])
    assert cache.floor == 120
    assert cache.statistics().log_length == 0


def test_changes_after_the_end_of_a_poll_are_left_to_the_next(cache):
    cache.learn(100, 110, [(1, 111)])
    assert cache.statistics().log_length == 0


def test_changes_excludes_its_start_and_includes_its_end(cache):
    cache.learn(100, 110, [(3, 107), (1, 105), (2, 106)])
    assert cache.changes(105, 107) == [(2, 106), (3, 107)]


def test_changes_between_equal_tids_are_none_at_all(cache):
    assert cache.changes(100, 100) == []


@pytest.mark.parametrize(("since", "upto"), [(99, 100), (100, 101), (99, 99), (101, 101)])
def test_changes_outside_of_what_is_known_are_refused(cache, since, upto):
    assert cache.changes(since, upto) is None


def test_a_full_log_forgets_whole_transactions_and_raises_the_floor():
    cache = StateCache(MEGABYTE, log_limit=3)
    cache.learn(None, 100, [])
    cache.learn(100, 110, [(1, 105), (2, 105), (3, 106), (4, 107)])
    assert cache.floor == 105
    assert cache.changes(104, 110) is None
    assert cache.changes(105, 110) == [(3, 106), (4, 107)]
    assert cache.statistics().log_length == 2


def test_a_full_log_forgets_the_last_change_of_an_object_with_it():
    cache = StateCache(MEGABYTE, log_limit=2)
    cache.learn(None, 100, [])
    cache.learn(100, 110, [(1, 105), (2, 106), (1, 107)])
    assert cache._log.changed == {1: 107, 2: 106}
    cache.learn(110, 120, [(3, 115)])
    assert cache._log.changed == {1: 107, 3: 115}


def test_a_merged_change_does_not_outgrow_the_log():
    cache = StateCache(MEGABYTE, log_limit=2)
    cache.learn(None, 100, [])
    cache.learn(100, 120, [(1, 115), (2, 118)])
    cache.learn(100, 110, [(1, 105)])
    assert cache.statistics().log_length == 2
    assert cache.floor == 105


# --- everything changed


def test_a_zap_drops_every_state_and_is_logged(cache):
    cache.remember(1, 50, b"gone", 100)
    cache.learn(100, 110, [(EVERYTHING, 105)])
    assert not cache.contains(1, 110)
    assert cache.statistics().bytes == 0
    assert cache.changes(100, 110) == [(EVERYTHING, 105)]


def test_a_load_from_before_a_zap_is_discarded(cache):
    cache.learn(100, 110, [(EVERYTHING, 105)])
    cache.remember(1, 50, b"gone", 104)
    assert not cache.contains(1, 110)


def test_a_load_from_after_a_zap_is_kept(cache):
    cache.learn(100, 110, [(EVERYTHING, 105)])
    cache.remember(1, 50, b"restored", 105)
    assert cache.contains(1, 110)


# --- forget and clear


def test_forgotten_objects_are_gone_and_the_others_stay(cache):
    for oid in (1, 2, 3):
        cache.remember(oid, 50, b"state", 100)
    cache.forget([1, 3, 99])
    assert [cache.contains(oid, 100) for oid in (1, 2, 3)] == [False, True, False]
    assert cache.statistics().bytes == OVERHEAD + 5


def test_clear_drops_states_and_log(cache):
    cache.learn(100, 110, [(1, 105)])
    cache.remember(2, 50, b"state", 110)
    cache.clear()
    assert (cache.horizon, cache.floor) == (-1, -1)
    statistics = cache.statistics()
    assert (statistics.entries, statistics.bytes, statistics.log_length) == (0, 0, 0)


def test_a_load_from_before_clear_is_not_used_after_the_next_poll(cache):
    cache.clear()
    cache.learn(None, 120, [])
    cache.remember(1, 50, b"old", 100)
    assert not cache.contains(1, 120)


# --- statistics


def test_hits_and_misses_are_counted(cache):
    cache.remember(1, 50, b"state", 100)
    for oid in (1, 1, 1, 2):
        cache.lookup(oid, 100)
    statistics = cache.statistics()
    assert (statistics.hits, statistics.misses, statistics.ratio) == (3, 1, 0.75)


def test_the_ratio_is_zero_before_the_first_lookup(cache):
    assert cache.statistics().ratio == 0.0


@pytest.mark.parametrize("end", ["forget", "clear", "replace", "zap"])
def test_hits_on_an_entry_still_count_after_it_is_gone(cache, end):
    cache.remember(1, 50, b"state", 100)
    cache.lookup(1, 100)
    cache.lookup(1, 100)
    if end == "forget":
        cache.forget([1])
    elif end == "clear":
        cache.clear()
    elif end == "zap":
        cache.learn(100, 110, [(EVERYTHING, 105)])
    else:
        cache.learn(100, 110, [(1, 105)])
        cache.remember(1, 105, b"new", 110)
    assert cache.statistics().hits == 2


def test_contains_is_no_use(cache):
    cache.remember(1, 50, b"state", 100)
    assert cache.contains(1, 100)
    assert not cache.contains(2, 100)
    statistics = cache.statistics()
    assert (statistics.hits, statistics.misses) == (0, 0)


# --- compression


@pytest.mark.parametrize("name", ["zlib", "bz2"])
def test_a_compressed_state_comes_back_and_counts_as_it_is_kept(name):
    cache = StateCache(MEGABYTE, codec=CODECS[name])
    cache.learn(None, 100, [])
    state = b"a long and repeated text " * 40
    cache.remember(1, 50, state, 100)
    assert cache.lookup(1, 100) == (state, to_bytes(50))
    assert OVERHEAD < cache.statistics().bytes < OVERHEAD + len(state) / 2


def test_a_state_that_does_not_compress_is_kept_as_it_is():
    cache = StateCache(MEGABYTE, codec=CODECS["zlib"])
    cache.learn(None, 100, [])
    cache.remember(1, 50, b"short", 100)
    assert cache.lookup(1, 100) == (b"short", to_bytes(50))
    assert cache.statistics().bytes == OVERHEAD + 5


def test_object_max_applies_to_the_compressed_size():
    cache = StateCache(MEGABYTE, object_max=1000, codec=CODECS["zlib"])
    cache.learn(None, 100, [])
    cache.remember(1, 50, bytes(10_000), 100)
    assert cache.contains(1, 100)


def test_none_is_the_name_of_no_compression():
    assert CODECS["none"] is None
