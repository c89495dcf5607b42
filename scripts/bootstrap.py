"""Environments for the scripts beside this module. A script prepares one by its purpose; then the environment exists,
holds what requirements/PURPOSE.txt lists in the versions of requirements/constraints.txt, and holds wheels built from
this workspace's distributions as they are now.

Only the standard library is used, because nothing else is there yet. What is up to date is left alone: each stage
leaves a stamp of what it was made from.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venvs"
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
DISTRIBUTIONS = ("relstorage-core", "relstorage-sqlite", "relstorage-postgresql")
OLDEST = (3, 10)
NEWEST = (3, 13)
LINES_OF_A_FAILURE = 25
NOT_SOURCES = ("__pycache__", ".pytest_cache", "build", "dist", "*.egg-info", "*.pyc")


class BootstrapError(Exception):
    """Something that the person at the keyboard has to do or to know; the text says what."""


def say(text: str) -> None:
    """Print one line about what happens now."""
    print(f"==> {text}", flush=True)


def run_as_program(main: Callable[[], int]) -> None:
    """Run `main` and exit with its result; an expected failure is a sentence, Ctrl-C is no traceback."""
    try:
        status = main()
    except BootstrapError as error:
        print(f"\n{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("\nInterrupted. The next run continues where this one stopped.", file=sys.stderr)
        status = 130
    sys.exit(status)


def run(command: Sequence[str | Path], log: Path, purpose: str) -> None:
    """Run a command silently; its output is in `log`, and the end of it in the error if the command fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        status = subprocess.run([str(part) for part in command], stdout=output, stderr=subprocess.STDOUT).returncode
    if status:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-LINES_OF_A_FAILURE:])
        raise BootstrapError(f"{purpose} failed (status {status}). The end of {log.relative_to(ROOT)}:\n\n{end}")


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Say what begins, and how long it took when it ends."""
    print(f"==> {text} ...", end="", flush=True)
    begun = time.monotonic()
    try:
        yield
    except BaseException:
        print(flush=True)
        raise
    print(f" {time.monotonic() - begun:.0f} s", flush=True)


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Let one process at a time change what is below the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another script that prepares environments here")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(paths: Sequence[Path], *words: str) -> str:
    """Return a digest of words, of files and of everything in directories, names included."""
    result = hashlib.sha256("\0".join(words).encode())
    for top in paths:
        files = [top] if top.is_file() else sorted(path for path in top.rglob("*") if is_source(path, top))
        for path in files:
            result.update(f"\0{path.relative_to(ROOT)}\0".encode())
            result.update(path.read_bytes())
    return result.hexdigest()


def is_source(path: Path, top: Path) -> bool:
    """Tell whether a file goes into a wheel of the distribution at `top`."""
    parts = path.relative_to(top).parts
    left_out = any(Path(part).match(pattern) for part in parts for pattern in NOT_SOURCES)
    return path.is_file() and parts[0] != "tests" and not left_out


@dataclass(frozen=True)
class Interpreter:
    """A Python that environments are made from."""

    path: Path
    version: tuple[int, int]

    @classmethod
    def find(cls, wanted: str | None) -> Interpreter:
        """Return the running Python, or the one that was asked for by its version or its path."""
        if wanted is None:
            return cls(Path(sys.executable), sys.version_info[:2]).checked()
        found = shutil.which(wanted if os.sep in wanted else f"python{wanted}")
        if found is None:
            raise BootstrapError(f"There is no Python {wanted} here. Leave --python away to use {sys.executable}.")
        told = subprocess.run([found, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True)
        if told.returncode:
            raise BootstrapError(f"{found} does not start: {told.stderr.strip()}")
        major, minor = told.stdout.split()
        return cls(Path(found), (int(major), int(minor))).checked()

    @property
    def name(self) -> str:
        return ".".join(map(str, self.version))

    def checked(self) -> Interpreter:
        """Return itself if this project runs on it."""
        if self.version < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise BootstrapError(f"{self.path} is Python {self.name}, which is too old: {oldest} or newer is needed.")
        if self.version > NEWEST:
            say(f"Python {self.name} is newer than what this project is tested with; trying anyway")
        return self

    def has_headers(self) -> bool:
        """Tell whether what is written in C can be compiled for it."""
        look = "import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path('include') + '/Python.h'))"
        return subprocess.run([self.path, "-c", look], capture_output=True).returncode == 0

    def can_make_environments(self) -> bool:
        # Debian ships the venv module without ensurepip, which lies in a package of its own.
        return subprocess.run([self.path, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0

    def provide_venv(self) -> None:
        """Install Debian's package for making environments if Python came without it."""
        if self.can_make_environments():
            return
        package = "python3-venv" if self.path.name in ("python3", "python") else f"python{self.name}-venv"
        cannot = f"{self.path} cannot make virtual environments"
        if shutil.which("apt-get") is None:
            raise BootstrapError(f"{cannot}: install its venv and ensurepip modules.")
        if os.geteuid() != 0:
            raise BootstrapError(f"{cannot}. Type: sudo apt-get update && sudo apt-get install -y {package}")
        log = ENVIRONMENTS / "apt.log"
        install = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends"]
        with step(f"Installing Debian's {package}, because {cannot}"):
            run(["apt-get", "update"], log, "apt-get update")
            run([*install, package], log, f"apt-get install {package}")
        if not self.can_make_environments():
            raise BootstrapError(f"{cannot}, although {package} is installed.")


@dataclass(frozen=True)
class Environment:
    """A virtual environment of one purpose for one Python version."""

    purpose: str
    interpreter: Interpreter
    #: What else it holds: the names of more files of requirements/.
    more: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return ENVIRONMENTS / f"{self.purpose}-{self.interpreter.name}"

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    def program(self, name: str) -> Path:
        """Return the path of a program installed in the environment."""
        return self.path / "bin" / name

    def prepare(self, distributions: Sequence[str] = DISTRIBUTIONS) -> None:
        """Bring the environment up to date: itself, its packages, and wheels of these distributions."""
        with only_one(ENVIRONMENTS):
            self._create()
            wheels = self._build(distributions)
            self._install(wheels)

    def _create(self) -> None:
        made_from = digest([], str(self.path), str(self.interpreter.path), platform.machine())
        if self._is_stamped("environment", made_from) and self.python.exists():
            return
        self.interpreter.provide_venv()
        with step(f"Creating {self.path.relative_to(ROOT)} with Python {self.interpreter.name}"):
            shutil.rmtree(self.path, ignore_errors=True)
            run(
                [self.interpreter.path, "-m", "venv", self.path],
                ENVIRONMENTS / f"{self.path.name}.log",
                "Creating a virtual environment",
            )
        self._stamp("environment", made_from)

    def _build(self, distributions: Sequence[str]) -> list[Path]:
        """Return one wheel of each distribution, built again if its sources changed."""
        wheels: list[Path] = []
        for name in distributions:
            source = ROOT / name
            if not (source / "pyproject.toml").is_file():
                raise BootstrapError(
                    f"{source}/pyproject.toml is missing: the checkout of the repository is not whole."
                )
            target = ENVIRONMENTS / "wheels" / source.name / digest([source])[:16]
            if not list(target.glob("*.whl")):
                with step(f"Building a wheel of {name}"):
                    shutil.rmtree(target.parent, ignore_errors=True)
                    self._build_one(source, target)
            wheels += target.glob("*.whl")
        return wheels

    def _build_one(self, source: Path, target: Path) -> None:
        # From a copy: a build tool leaves files beside the sources, and would find those of an earlier build there.
        with tempfile.TemporaryDirectory(prefix="relstorage-build-") as temporary:
            copy = Path(temporary) / source.name
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*NOT_SOURCES))
            built = Path(temporary) / "wheels"
            run(
                [*self._pip("wheel"), "--no-deps", "--wheel-dir", built, copy],
                ENVIRONMENTS / f"build-{source.name}.log",
                f"Building a wheel of {source.name}",
            )
            target.mkdir(parents=True, exist_ok=True)
            for wheel in built.glob("*.whl"):
                shutil.move(wheel, target / wheel.name)

    def _install(self, wheels: Sequence[Path]) -> None:
        requirements = [ROOT / "requirements" / f"{name}.txt" for name in (self.purpose, *self.more)]
        log = ENVIRONMENTS / f"{self.path.name}.log"
        made_from = digest([*requirements, CONSTRAINTS, *wheels])
        if self._is_stamped("packages", made_from):
            return
        self._forget("packages")
        first = not self._is_stamped("requirements", digest([*requirements, CONSTRAINTS]))
        about = "packages (a minute or two the first time)" if first else "this project's wheels"
        with step(f"Installing {about} into {self.path.relative_to(ROOT)}"):
            listed = [word for path in requirements for word in ("--requirement", path)]
            run(
                [*self._pip("install"), "--constraint", CONSTRAINTS, *listed, *wheels],
                log,
                "Installing packages (if the log misses gcc or Python.h, type: apt-get install -y gcc python3-dev)",
            )
            # pip keeps an installed version of the same number, whatever is in the wheel.
            again = [*self._pip("install"), "--force-reinstall", "--no-deps", *wheels]
            run(again, log, "Installing this project's wheels")
        self._stamp("requirements", digest([*requirements, CONSTRAINTS]))
        self._stamp("packages", made_from)

    def _pip(self, command: str) -> list[str | Path]:
        return [self.python, "-m", "pip", command, "--no-input", "--disable-pip-version-check"]

    def _is_stamped(self, stage: str, made_from: str) -> bool:
        stamp = self.path / f"{stage}.stamp"
        return stamp.is_file() and stamp.read_text() == made_from

    def _stamp(self, stage: str, made_from: str) -> None:
        (self.path / f"{stage}.stamp").write_text(made_from)

    def _forget(self, stage: str) -> None:
        (self.path / f"{stage}.stamp").unlink(missing_ok=True)
