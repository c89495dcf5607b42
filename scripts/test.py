#!/usr/bin/env python3
"""Run every check of this repository, from nothing: an environment, wheels of the distributions as they are now, a
PostgreSQL server, then the linters and the tests against those wheels. Exits with 0 only if every part ran and passed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootstrap import DISTRIBUTIONS, ROOT, BootstrapError, Environment, Interpreter, run_as_program, say, step
from servers.debian import COMPILER, LIBPQ, PGBOUNCER, POSTGRESQL, Package, provide, python_headers
from servers.postgresql import VARIABLE, PostgresServer

# What all test processes together may need.
CONNECTIONS = 300


@dataclass(frozen=True)
class Part:
    """One check: its name, and what to run."""

    name: str
    command: Sequence[str | Path]


@dataclass(frozen=True)
class Outcome:
    """How a check ended."""

    part: Part
    passed: bool
    seconds: float
    remark: str = ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Environments are kept in .venvs/; delete that folder to start from nothing again.",
    )
    parser.add_argument(
        "--python", metavar="X.Y", help="use pythonX.Y, or the Python of this path (default: the one running this)"
    )
    parser.add_argument("--quick", action="store_true", help="tests only, no linters, and stop at the first failure")
    parser.add_argument("-k", metavar="EXPRESSION", help="only tests whose names match, as with pytest -k")
    parser.add_argument(
        "-n",
        metavar="PROCESSES",
        type=int,
        # The tests wait for servers and other processes most of the time.
        default=2 * (os.cpu_count() or 1),
        help="test processes (default: two for each processor, here %(default)s)",
    )
    parser.add_argument(
        "--no-servers", action="store_true", help="install and start no database servers; tests that need one skip"
    )
    parser.add_argument(
        "--all-drivers", action="store_true", help="run the whole conformance suite with every driver of PostgreSQL"
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="test files or folders (default: all of them)")
    return parser.parse_args()


def parts(environment: Environment, options: argparse.Namespace, report: Path) -> list[Part]:
    """Return the checks in the order in which they run; the tests come last, so that their result is in sight."""
    python = environment.python
    tests: list[str | Path] = [python, "-m", "pytest", f"--junitxml={report}", "-n", str(options.n)]
    if options.k:
        tests += ["-k", options.k]
    if options.all_drivers:
        tests.append("--all-drivers")
    if options.quick:
        return [Part("tests", [*tests, "--exitfirst", *options.paths])]
    return [
        Part("style (ruff)", [python, "-m", "ruff", "check", "--output-format", "concise", "."]),
        Part("layers (import-linter)", [environment.program("lint-imports"), "--config", "pyproject.toml"]),
        Part("types (mypy)", [python, "-m", "mypy"]),
        Part("tests (pytest)", [*tests, *options.paths]),
    ]


def try_to_provide(packages: Sequence[Package]) -> bool:
    """Install what is missing. Tests of what cannot be had skip; only a build server has to provide it."""
    try:
        provide(packages)
    except BootstrapError as error:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            raise
        print(f"\n{'!' * 72}\n{error}\nThe tests that need it are SKIPPED.\n{'!' * 72}\n", file=sys.stderr, flush=True)
        return False
    return True


def requirements_to_compile(interpreter: Interpreter, servers: bool) -> tuple[str, ...]:
    """Return the requirements that have to be compiled, if what that takes is here or, with ``servers``, can be had."""
    packages = [LIBPQ, COMPILER]
    if not interpreter.has_headers():
        packages.append(python_headers(interpreter.path, interpreter.name))
    here = try_to_provide(packages) if servers else all(package.find() for package in packages)
    return ("tests-compiled",) if here and interpreter.has_headers() else ()


def start_servers(stack: contextlib.ExitStack) -> PostgresServer | None:
    """Start the server that the tests share, to be stopped by the stack."""
    try_to_provide([POSTGRESQL, PGBOUNCER])
    if POSTGRESQL.find() is None:
        return None
    with step("Starting a PostgreSQL server for the tests"):
        return stack.enter_context(PostgresServer.create({"max_connections": CONNECTIONS}))


def perform(part: Part, variables: Mapping[str, str]) -> Outcome:
    """Run one check with its output in sight."""
    print(flush=True)
    say(f"{part.name}: {' '.join(Path(word).name if isinstance(word, Path) else word for word in part.command)}")
    begun = time.monotonic()
    command = [str(word) for word in part.command]
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}).returncode
    return Outcome(part, status == 0, time.monotonic() - begun, "" if status == 0 else f"status {status}")


def count(report: Path) -> str:
    """Return what pytest reported in figures, for the summary."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    figures = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    passed = figures["tests"] - figures["failures"] - figures["errors"] - figures["skipped"]
    if passed + figures["failures"] + figures["errors"] == 0:
        raise BootstrapError("No test ran.")
    return f"{passed} passed, {figures['failures'] + figures['errors']} failed, {figures['skipped']} skipped"


def main() -> int:
    options = arguments()
    interpreter = Interpreter.find(options.python)
    compiled = requirements_to_compile(interpreter, servers=not options.no_servers)
    environment = Environment("tests", interpreter, compiled)
    examples = sorted(str(path.parent.relative_to(ROOT)) for path in ROOT.glob("tests/*/pyproject.toml"))
    environment.prepare([*DISTRIBUTIONS, *examples])
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        postgres = None if options.no_servers else start_servers(stack)
        variables = {VARIABLE: postgres.dsn() if postgres else ""}
        report = Path(directory) / "pytest.xml"
        outcomes = [perform(part, variables) for part in parts(environment, options, report)]
        tested = count(report) if report.exists() else "the tests did not start"
        server = f"PostgreSQL {postgres.version}" if postgres else "NOT TESTED: PostgreSQL"

    print(f"\n{'-' * 72}\nPython {environment.interpreter.name}, wheels in {environment.path.relative_to(ROOT)}")
    for outcome in outcomes:
        verdict = "ok" if outcome.passed else "FAILED"
        print(f"  {outcome.part.name:<24} {verdict:<7} {outcome.seconds:6.1f} s  {outcome.remark}")
    print(f"  {server}\n  {tested}")
    failed = [outcome.part.name for outcome in outcomes if not outcome.passed]
    print(f"FAILED: {', '.join(failed)}" if failed else "Everything passed.", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    run_as_program(main)
