"""Environments of their own, for what cannot live beside this project: RelStorage has the same import name. They are
made once and kept in pytest's cache directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Let one test process at a time go on."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find_python(*versions: str) -> str | None:
    """Return the first Python of these versions that starts: by name, or where pyenv keeps it."""
    candidates = [path for version in versions if (path := shutil.which(f"python{version}"))]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
        for version in versions:
            candidates += sorted(map(str, Path(root).glob(f"versions/{version}.*/bin/python")))
    for candidate in candidates:
        # What pyenv puts on PATH fails for a version that is not switched on.
        command = [candidate, "-c", "import sys, venv, ensurepip; print(sys.executable)"]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode == 0:
            return told.stdout.strip()
    return None


@pytest.fixture(scope="session")
def environment(request: pytest.FixtureRequest, missing: Callable[..., NoReturn]) -> Callable[..., str]:
    """Return a function that makes an environment with distributions from PyPI and returns the path of its Python.

    ``pythons`` are the versions of Python that they need, if it is not the one that runs the tests.
    """
    kept = request.config.cache.mkdir("environments")
    failed: dict[Path, str] = {}

    def make(name: str, *requirements: str, pythons: Sequence[str] = ()) -> str:
        python = find_python(*pythons) if pythons else sys.executable
        if python is None:
            missing(f"{requirements[0]} needs Python {' or '.join(pythons)}, and none of them was found", fail=False)
        made_from = hashlib.sha256("\0".join((python, sys.version, *requirements)).encode()).hexdigest()[:12]
        place = kept / f"{name}-{made_from}"
        complete = place / "complete"
        with only_one(kept / f"{name}.lock"):
            if not complete.exists() and place not in failed:
                shutil.rmtree(place, ignore_errors=True)
                install = [str(place / "bin" / "python"), "-I", "-m", "pip", "install", "--quiet", "--prefer-binary"]
                for command in ([python, "-m", "venv", str(place)], [*install, *requirements]):
                    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                    if done.returncode:
                        failed[place] = done.stdout[-2000:]
                        break
                else:
                    complete.touch()
        if place in failed:
            missing(f"{' '.join(requirements)} cannot be installed: {failed[place]}", fail=True)
        return str(place / "bin" / "python")

    return make
