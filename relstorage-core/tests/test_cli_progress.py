"""What the command line shows of a long work."""

from __future__ import annotations

import logging

import pytest

from relstorage.cli import progress
from relstorage.cli.progress import BYTES, LogMeter, duration, meter, quantity


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2_340_000, "2.3 MB"), (5e12, "5,000.0 GB")],
)
def test_bytes_are_shown_in_a_unit_that_suits_them(number, text):
    assert quantity(number, BYTES) == text


def test_other_things_are_counted():
    assert quantity(12345, "objects") == "12,345 objects"


def test_a_duration_has_hours_minutes_and_seconds():
    assert duration(3 * 3600 + 4 * 60 + 5.9) == "3:04:05"


def test_a_line_has_done_total_rate_and_time_left():
    line = LogMeter("Copying", "objects", 1000).line(250, "3 blobs", 10.0)
    assert line == "Copying: 250 objects of 1,000 objects (25%), 25 objects/s, 0:00:30 left; 3 blobs"


def test_without_a_total_a_line_has_done_and_rate():
    assert LogMeter("Copying", "objects", None).line(250, "", 10.0) == "Copying: 250 objects, 25 objects/s"


def test_no_line_claims_more_than_all():
    assert "(100%)" in LogMeter("Copying", "objects", 10).line(20, "", 1.0)


def test_lines_are_written_at_intervals(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "relstorage.cli")
    shown = LogMeter("Copying", "objects", 100, interval=5.0)
    for second in range(12):
        now[0] = float(second)
        shown.update(second)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "Copying: 5 objects of 100 objects (5%)",
        "Copying: 10 objects of 100 objects (10%)",
    ]


def test_without_a_terminal_the_beginning_is_logged(caplog):
    caplog.set_level(logging.INFO, "relstorage.cli")
    with meter("Packing", "objects", 7) as shown:
        assert isinstance(shown, LogMeter)
    assert caplog.messages == ["Packing: 7 objects"]
