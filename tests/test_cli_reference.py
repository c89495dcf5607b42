"""The reference page of the command line is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

from relstorage.cli.reference import page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "command-line.md"


def test_the_page_is_current():
    assert PAGE.read_text() == page(), "Run: python -m relstorage.cli.reference > docs/reference/command-line.md"
