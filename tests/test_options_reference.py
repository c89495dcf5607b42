"""The committed reference page of options is the one that the declarations give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "options.md"


def test_the_reference_page_is_up_to_date():
    command = [sys.executable, "-m", "relstorage.config.reference"]
    written = subprocess.run(
        command, check=True, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    expected = PAGE.read_text(encoding="utf-8")
    assert written.stdout == expected, (
        "write it again: python -m relstorage.config.reference > docs/reference/options.md"
    )
