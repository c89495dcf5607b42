"""How a backend declares that it does not pass a test of the conformance suite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from relstorage.testing import Gap

MODULE = """
import pytest
from relstorage.testing.target import Gap, Target, known_gaps, pytest_generate_tests


class Some(Target):
    backend = "some"
    drivers = ("quick", "slow")
    gaps = ({gap},)


TARGET = Some()


def test_something(driver, keep_history):
    if {fails}:
        raise KeyError(driver)
"""


def outcome(directory: Path, gap: str, fails: str = "True") -> str:
    """Return the last line of a run of one test in four ways, whose target has this gap."""
    module = directory / "test_some.py"
    module.write_text(MODULE.format(gap=gap, fails=fails))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(directory), str(module)]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True).stdout.splitlines()[-1]


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_gap_needs_a_reason(reason):
    with pytest.raises(ValueError, match="reason"):
        Gap("test_something", reason)


def test_a_gap_covers_what_it_names():
    gap = Gap("test_some*", "it is so", driver="slow", keep_history=True)
    assert gap.covers("test_something", "slow", True)
    assert not gap.covers("test_another", "slow", True)
    assert not gap.covers("test_something", "quick", True)
    assert not gap.covers("test_something", "slow", False)


def test_a_test_that_does_not_apply_is_skipped(tmp_path):
    assert "2 failed, 2 skipped" in outcome(tmp_path, "Gap('test_something', 'never', driver='slow')")


def test_a_test_that_is_to_fail_may_fail_in_this_way(tmp_path):
    assert "4 xfailed" in outcome(tmp_path, "Gap('test_something', 'not yet', raises=KeyError)")


def test_a_test_that_fails_in_another_way_fails(tmp_path):
    assert "4 failed" in outcome(tmp_path, "Gap('test_something', 'not yet', raises=OSError)")


def test_a_gap_that_has_been_closed_is_reported(tmp_path):
    gap = "Gap('test_something', 'not yet', raises=KeyError, keep_history=True)"
    assert "2 failed, 2 passed" in outcome(tmp_path, gap, fails="False")
