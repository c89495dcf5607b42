"""The programs of database servers: where they are on this machine, and how they get here. What is on PATH comes
before what Debian's packages put elsewhere, so that another version can be tried by setting PATH."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootstrap import ENVIRONMENTS, BootstrapError, only_one, run, step

OF_DEBIAN = Path("/usr/lib/postgresql")
# Where pgbouncer is, which a user's PATH leaves out.
SYSTEM_PROGRAMS = ("/usr/sbin", "/sbin")

INSTALL = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y")


@dataclass(frozen=True)
class Package:
    """A package of Debian, and the programs by which it is known to be there."""

    name: str
    programs: tuple[str, ...]

    def find(self) -> Path | None:
        """Return the directory that has all its programs, or None."""
        for directory in self._directories():
            if all(os.access(directory / program, os.X_OK) for program in self.programs):
                return directory
        return None

    def directory(self) -> Path:
        """Return the directory of its programs, which have to be there."""
        found = self.find()
        if found is None:
            raise BootstrapError(f"{_absent([self])}. Type: {to_type([self])}")
        return found

    def _directories(self) -> Iterator[Path]:
        for directory in (*os.get_exec_path(), *SYSTEM_PROGRAMS):
            # A link leads to where the other programs are.
            yield (Path(directory) / self.programs[0]).resolve().parent
        versions = [path for path in OF_DEBIAN.glob("*") if path.name.isdecimal()]
        for version in sorted(versions, key=lambda path: int(path.name), reverse=True):
            yield version / "bin"


POSTGRESQL = Package("postgresql", ("initdb", "postgres"))
PGBOUNCER = Package("pgbouncer", ("pgbouncer",))
# What compiles a driver of PostgreSQL.
LIBPQ = Package("libpq-dev", ("pg_config",))
COMPILER = Package("build-essential", ("gcc",))


def python_headers(python: Path, version: str) -> Package:
    """Return the package with the headers of one of Debian's own Pythons."""
    name = "python3" if python.name in ("python3", "python") else f"python{version}"
    return Package(f"{name}-dev", (f"{name}-config",))


def provide(packages: Sequence[Package]) -> None:
    """Install those of the packages that are missing; only root can, anybody else is told what to type."""
    missing = _missing(packages)
    if not missing:
        return
    if shutil.which("apt-get") is None:
        programs = " and ".join(package.programs[0] for package in missing)
        raise BootstrapError(f"{_absent(missing)}, and this is no Debian. Install them, and put {programs} on PATH.")
    if os.geteuid() != 0:
        raise BootstrapError(f"{_absent(missing)}. Type: {to_type(missing)}")
    with only_one(ENVIRONMENTS):
        # Another script may have done it while this one waited.
        _install(_missing(packages))


def to_type(packages: Sequence[Package]) -> str:
    """Return the command that installs the packages."""
    names = " ".join(package.name for package in packages)
    return f"sudo apt-get update && sudo apt-get install -y {names}"


def _missing(packages: Sequence[Package]) -> list[Package]:
    return [package for package in packages if package.find() is None]


def _absent(packages: Sequence[Package]) -> str:
    names = " and ".join(package.name for package in packages)
    return f"{names} {'is' if len(packages) == 1 else 'are'} not installed"


def _install(packages: Sequence[Package]) -> None:
    if not packages:
        return
    names = [package.name for package in packages]
    log = ENVIRONMENTS / "apt.log"
    with step(f"Installing Debian's {' and '.join(names)}"), _nothing_starts():
        run(["apt-get", "update"], log, "apt-get update")
        run([*INSTALL, "--no-install-recommends", *names], log, f"apt-get install {' '.join(names)}")
    for package in _missing(packages):
        raise BootstrapError(f"Debian's {package.name} is installed, but {package.programs[0]} is not found.")


@contextlib.contextmanager
def _nothing_starts() -> Iterator[None]:
    """Keep packages from starting their servers, and from making a cluster that nobody asked for."""
    with contextlib.ExitStack() as stack:
        # invoke-rc.d and systemd's counterpart ask this program; 101 forbids.
        stack.enter_context(_file_for_now(Path("/usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n", 0o755))
        # pg_createcluster reads this directory. Once the package is there, its administrator decides.
        if not Path("/etc/postgresql-common/createcluster.conf").exists():
            clusters = Path("/etc/postgresql-common/createcluster.d/relstorage.conf")
            stack.enter_context(_file_for_now(clusters, "create_main_cluster = false\n", 0o644))
        yield


@contextlib.contextmanager
def _file_for_now(path: Path, text: str, mode: int) -> Iterator[None]:
    """Let a file exist during the block, unless there is one already."""
    if path.exists():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    try:
        yield
    finally:
        path.unlink()
