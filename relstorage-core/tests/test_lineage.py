"""What one process makes of servers that are restarted or replaced, and of copies that follow them."""

from __future__ import annotations

import pytest

from relstorage.database.lineage import Lineage
from relstorage.errors import Disconnected


class Cache:
    dropped = False

    def drop_states(self):
        self.dropped = True


class Session:
    def __init__(self, *incarnation, may_lag=False):
        self.told = incarnation
        self.may_lag = may_lag
        self.closed = False

    def incarnation(self):
        return self.told

    def close(self):
        self.closed = True


def copy(*incarnation):
    return Session(*incarnation, may_lag=True)


@pytest.fixture
def forgotten():
    return []


@pytest.fixture
def lineage(forgotten):
    return Lineage("the database", Cache, lambda: forgotten.append(True))


def test_the_cache_stays_while_the_server_does(lineage, forgotten):
    cache = lineage.follow(Session("first"))
    assert lineage.follow(Session("first")) is cache is lineage.cache
    assert not forgotten
    assert not lineage.has_copies


def test_another_incarnation_gets_another_cache(lineage, forgotten):
    cache = lineage.follow(Session("first"))
    assert lineage.follow(Session("second")) is lineage.cache is not cache
    assert cache.dropped
    assert forgotten == [True]


def test_a_session_of_a_former_incarnation_is_closed(lineage):
    first = Session("first")
    lineage.follow(first)
    cache = lineage.follow(Session("second"))
    with pytest.raises(Disconnected):
        lineage.follow(first)
    assert first.closed
    assert lineage.follow(Session("second")) is cache


def test_a_copy_that_follows_the_server_changes_nothing(lineage):
    cache = lineage.follow(copy("copy", "one"))
    assert lineage.has_copies
    assert lineage.follow(Session("first")) is cache
    # Its source is gone for a while.
    assert lineage.follow(copy("copy", None)) is cache
    assert lineage.follow(copy("copy", "one")) is cache


def test_a_copy_that_gets_its_changes_from_elsewhere_may_lack_what_was_read(lineage):
    cache = lineage.follow(copy("copy", "one"))
    lineage.follow(copy("copy", None))
    assert lineage.follow(copy("copy", "two")) is not cache


def test_a_copy_whose_source_was_never_known_may_lack_what_was_read(lineage):
    cache = lineage.follow(copy("copy", None))
    assert lineage.has_copies
    assert lineage.follow(copy("copy", "one")) is not cache


def test_a_second_copy_may_lack_what_was_read(lineage):
    cache = lineage.follow(copy("copy", "one"))
    other = lineage.follow(copy("other", "one"))
    assert other is not cache
    assert lineage.follow(copy("copy", "one")) is other


def test_a_copy_after_the_server_may_lack_what_was_read(lineage):
    cache = lineage.follow(Session("first"))
    assert lineage.follow(copy("copy", "one")) is not cache


def test_a_copy_that_takes_over_is_another_server(lineage):
    lineage.follow(Session("first", "1"))
    cache = lineage.follow(copy("copy", "one"))
    assert lineage.follow(Session("copy", "2")) is not cache
