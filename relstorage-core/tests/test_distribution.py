"""PyPI's RelStorage beside this project: refused with a sentence that says what to do."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from relstorage.storage.distribution import refuse_other_distribution


def test_the_other_project_is_refused():
    with pytest.raises(ImportError, match="RelStorage 4.3.0 and relstorage-core are both installed.*pip uninstall"):
        refuse_other_distribution(lambda name: "4.3.0")


def test_alone_nothing_is_said():
    def version(name):
        raise PackageNotFoundError(name)

    refuse_other_distribution(version)


def test_a_storage_is_not_imported_beside_the_other_project(tmp_path):
    info = tmp_path / "RelStorage-4.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: RelStorage\nVersion: 4.3.0\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import relstorage.storage"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Uninstall both" in done.stderr
