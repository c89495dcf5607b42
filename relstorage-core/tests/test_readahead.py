"""Reading ahead: when it starts, how far it goes, and what ends it."""

from __future__ import annotations

from relstorage.storage.readahead import ReadAhead


def test_the_first_misses_are_read_alone():
    ahead = ReadAhead()
    assert [ahead.span(oid) for oid in (10, 11)] == [1, 1]


def test_the_third_miss_in_order_brings_those_behind_it():
    ahead = ReadAhead()
    assert [ahead.span(oid) for oid in (10, 11, 12)][2] > 1


def test_misses_in_random_order_are_read_alone():
    ahead = ReadAhead()
    assert [ahead.span(oid) for oid in (50, 7, 900, 12, 300, 13, 900)] == [1] * 7


def test_reading_on_behind_what_was_read_ahead_goes_further_each_time():
    ahead = ReadAhead()
    for oid in (1, 2):
        ahead.span(oid)
    first = ahead.span(3)
    ahead.fill([(oid, b"state", 1) for oid in range(4, 4 + first)])
    for oid in range(4, 4 + first):
        ahead.took(oid)
    assert ahead.span(4 + first) == 2 * first


def test_large_states_shorten_it():
    ahead = ReadAhead()
    for oid in (1, 2):
        ahead.span(oid)
    span = ahead.span(3)
    ahead.fill([(4, b"x" * 400_000, 1)])
    ahead.took(4)
    assert ahead.span(5) < span


def test_removed_objects_do_not_wait():
    ahead = ReadAhead()
    ahead.fill([(4, None, 1), (5, b"state", 1)])
    assert list(ahead.waiting) == [5]


def test_nothing_waits_beyond_the_view():
    ahead = ReadAhead()
    ahead.fill([(5, b"state", 1)])
    ahead.clear()
    assert not ahead.waiting
