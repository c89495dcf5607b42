"""What the tests of all distributions share: to skip loudly, and real database servers. `scripts/test.py` runs one
PostgreSQL server for all tests; a test run without it starts one of its own when a test wants it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

# At the end, because there is a test.py among the scripts, and a module of that name in Python.
sys.path.append(str(Path(__file__).resolve().parent / "scripts"))

if TYPE_CHECKING:
    from servers.pgbouncer import PgBouncer
    from servers.postgresql import PostgresServer

MISSING = "NOT TESTED: "


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let more tests be asked for than usually run."""
    parser.addoption(
        "--all-drivers", action="store_true", help="run the whole conformance suite with every driver of PostgreSQL"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Explain the marker of the tests that are to be asked for."""
    config.addinivalue_line("markers", "all_drivers: runs only with --all-drivers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for."""
    if config.getoption("--all-drivers"):
        return
    left_out = [item for item in items if item.get_closest_marker("all_drivers")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("all_drivers")]


@pytest.fixture(scope="session")
def missing() -> Callable[..., NoReturn]:
    """Return a function that skips the test loudly with a reason.

    With ``fail=True`` it fails the test if a build server runs it, which has to provide what is missing.
    """

    def missing(reason: str, *, fail: bool) -> NoReturn:
        if fail and os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(f"{MISSING}{reason}")

    return missing


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what was not tested for want of something."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {each.longrepr[2].removeprefix("Skipped: ") for each in skipped if isinstance(each.longrepr, tuple)}
    for reason in sorted(each for each in reasons if each.startswith(MISSING)):
        terminalreporter.write_line(reason, red=True, bold=True)


@pytest.fixture(scope="session")
def new_postgres(missing: Callable[..., NoReturn]) -> Iterator[Callable[..., PostgresServer]]:
    """Return `PostgresServer.create`, for tests that crash, stop or configure a server, or let others follow it.

    Use the server in a ``with`` statement; one that is left runs until all tests have ended.
    """
    from servers.debian import POSTGRESQL, to_type
    from servers.postgresql import VARIABLE, PostgresServer

    if os.environ.get(VARIABLE) == "":
        missing("PostgreSQL, because scripts/test.py runs without it; its first lines say why", fail=False)
    if POSTGRESQL.find() is None:
        missing(f"PostgreSQL is not installed. Type: {to_type([POSTGRESQL])}", fail=True)
    with ExitStack() as stack:

        def create(**keywords: Any) -> PostgresServer:
            server = PostgresServer.create(**keywords)
            stack.callback(server.close)
            return server

        yield create


@pytest.fixture(scope="session")
def new_pgbouncer(missing: Callable[..., NoReturn]) -> Iterator[Callable[..., PgBouncer]]:
    """Return `PgBouncer.create`, which takes the connection string of what is to be behind it.

    Use it in a ``with`` statement; one that is left runs until all tests have ended.
    """
    from servers.debian import PGBOUNCER, to_type
    from servers.pgbouncer import PgBouncer

    if PGBOUNCER.find() is None:
        missing(f"pgbouncer is not installed. Type: {to_type([PGBOUNCER])}", fail=True)
    with ExitStack() as stack:

        def create(*arguments: Any, **keywords: Any) -> PgBouncer:
            bouncer = PgBouncer.create(*arguments, **keywords)
            stack.callback(bouncer.close)
            return bouncer

        yield create


@pytest.fixture(scope="session")
def postgres_address(request: pytest.FixtureRequest) -> Iterator[str]:
    """libpq's connection string for a database of a server that other tests use at the same time.

    Its role owns the database and may create others, and is no superuser.
    """
    from servers.postgresql import VARIABLE

    if os.environ.get(VARIABLE):
        yield os.environ[VARIABLE]
        return
    # Some tests of ZODB open more connections than the server permits by itself.
    with request.getfixturevalue("new_postgres")(settings={"max_connections": 300}) as server:
        yield server.dsn()
