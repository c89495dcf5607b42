"""Python environments for contenders. RelStorage and this project share an import name, so each contender runs in an
environment of its own below ``.bench`` in the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".bench"


def interpreter(name: str) -> Path:
    """Return the Python of the environment *name*, or *name* itself if it is a path."""
    if "/" in name or "\\" in name:
        return Path(name).absolute()
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    return FOLDER / name / scripts / "python"


def make_environment(name: str, requirements: str) -> Path:
    """Create the environment *name*, or update it, and install *requirements* (separated by spaces) with pip.

    Directories of this checkout, such as ``./relstorage-core``, are installed in place (editable).
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(f"the environment name {name!r} may have letters, digits and . _ - only")
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")
    if not interpreter(name).exists():
        venv.create(FOLDER / name, with_pip=True)
    arguments: list[str] = []
    for requirement in requirements.split():
        if requirement.startswith((".", "/")):
            arguments.append("--editable")
        arguments.append(requirement)
    subprocess.run([str(interpreter(name)), "-m", "pip", "install", "--quiet", *arguments], check=True)
    return interpreter(name)
