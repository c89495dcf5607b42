"""What opening an SQLite database says about options that it cannot honour."""

from __future__ import annotations

import logging

import relstorage


def test_an_option_without_effect_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        relstorage.open("sqlite", data_dir=tmp_path / "data", replica_timeout=5).close()
    assert ["replica-timeout" in record.getMessage() for record in caplog.records] == [True]


def test_defaults_are_not_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        relstorage.open("sqlite", data_dir=tmp_path / "data").close()
    assert not caplog.records


def test_a_cache_trace_is_complete_when_the_database_is_closed(tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    monkeypatch.setenv("ZEO_CACHE_TRACE", str(trace))
    storage = relstorage.open("sqlite", data_dir=tmp_path / "data")
    storage.poll_invalidations()
    storage.prefetch([b"\0" * 8])
    storage.close()
    assert trace.stat().st_size > 0
