"""Trace files that ZEO's own programs read."""

from __future__ import annotations

import re

import pytest

from relstorage.cache import StateCache, TracedStateCache, Tracer, open_cache

cache_stats = pytest.importorskip("ZEO.scripts.cache_stats", reason="ZEO, whose reader is used, is not installed")


def read_back(path, capsys) -> list[tuple[str, int, int, int]]:
    """Return (code, oid, start tid, end tid) of each record that has an oid, as ZEO's reader prints it."""
    cache_stats.main(["-v", "--no-stats", str(path)])
    printed = capsys.readouterr().out
    found = re.findall(r"^\w{3} +\d+ [\d:]+ +([0-9a-f]{2}) +([0-9a-f]+) ([0-9a-f]{16}) ([0-9a-f]{16}) ", printed, re.M)
    return [(code, *(int(number, 16) for number in numbers)) for code, *numbers in found]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.trace"


def test_zeo_reads_every_operation_in_its_order(path, capsys):
    tracer = Tracer(path)
    cache = open_cache(100_000, trace=tracer)
    cache.learn(None, 100, [])
    cache.lookup(1, 100)
    cache.remember(1, 50, bytes(300), 100)
    cache.lookup(1, 100)
    cache.learn(100, 110, [(1, 105), (2, 106)])
    cache.lookup(1, 100)
    tracer.close()
    assert read_back(path, capsys) == [
        ("20", 1, 100, 0),
        ("52", 1, 50, 0),
        ("22", 1, 50, 0),
        ("1c", 1, 105, 0),
        ("10", 2, 106, 0),
        ("26", 1, 50, 0),
    ]


def test_zeo_reports_the_hit_rate(path, capsys):
    tracer = Tracer(path)
    cache = open_cache(100_000, trace=tracer)
    cache.learn(None, 100, [])
    for oid in (1, 1, 1, 2):
        if cache.lookup(oid, 100) is None:
            cache.remember(oid, 50, b"state", 100)
    tracer.close()
    cache_stats.main([str(path)])
    assert "Hit rate:   50.0%" in capsys.readouterr().out


def test_zeo_reads_the_size_of_states(path, capsys):
    tracer = Tracer(path)
    cache = open_cache(100_000, trace=tracer)
    cache.learn(None, 100, [])
    cache.remember(1, 50, bytes(300), 100)
    tracer.close()
    cache_stats.main([str(path)])
    assert "average size 300 bytes" in capsys.readouterr().out


def test_what_is_not_kept_is_no_store(path, capsys):
    tracer = Tracer(path)
    cache = open_cache(100_000, trace=tracer)
    cache.learn(None, 100, [])
    cache.remember(1, 50, b"too old", 90)
    cache.forget([7])
    tracer.close()
    assert read_back(path, capsys) == [("10", 7, 0, 0)]


def test_a_closed_tracer_ignores_late_records(path):
    tracer = Tracer(path)
    tracer.close()
    size = path.stat().st_size
    tracer(0x20, 1)
    assert path.stat().st_size == size > 0


def test_a_cache_without_a_trace_has_none_of_it():
    assert type(open_cache(1000)) is StateCache
    assert type(open_cache(1000, trace=print)) is TracedStateCache
