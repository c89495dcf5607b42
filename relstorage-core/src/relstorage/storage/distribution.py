"""Refuse to run next to the PyPI project RelStorage, which installs the same import name.

With both installed, which files of which project are found is a matter of the order of installation.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata


def refuse_other_distribution(version: Callable[[str], str] = metadata.version) -> None:
    """Raise ImportError if the distribution RelStorage is installed too. ``version`` finds an installed version by
    name."""
    try:
        other = version("RelStorage")
    except metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"RelStorage {other} and relstorage-core are both installed, and both provide the package 'relstorage'. "
        "Uninstall both, then install relstorage-core and the backends again: pip uninstall RelStorage relstorage-core"
    )
