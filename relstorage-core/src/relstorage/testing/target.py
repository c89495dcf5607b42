"""What the suite runs against: a backend's ``Target``, and the databases it makes, one or more for each test.

A module that star-imports the suite names its target ``TARGET``. Every test then runs once for each driver and history
mode, on an empty database of its own, which other processes can open too.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB

import relstorage


@dataclass(frozen=True)
class Gap:
    """A test that a backend is known not to pass.

    With ``raises`` the test must fail in this way, and its success is reported: somebody has closed the gap. Without,
    it does not apply and is not run.
    """

    #: A pattern of test names, as ``fnmatch`` understands it, without the parameters in brackets.
    tests: str
    reason: str
    raises: type[BaseException] | tuple[type[BaseException], ...] | None = None
    #: Only with this driver.
    driver: str | None = None
    #: Only in this history mode.
    keep_history: bool | None = None

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ValueError(f"the gap {self.tests!r} needs a reason")

    def covers(self, test: str, driver: str | None, keep_history: bool | None) -> bool:
        """Tell whether it is about this test, run in this way."""
        return (
            fnmatch.fnmatchcase(test, self.tests)
            and self.driver in (None, driver)
            and (self.keep_history is None or self.keep_history == keep_history)
        )


class Target:
    """A backend to be tested. Subclass it in the module that star-imports the suite."""

    #: The name of the backend's entry point.
    backend: str
    #: The values of the option ``driver`` to test with.
    drivers: Sequence[str]
    gaps: Sequence[Gap] = ()

    def new_database(self, directory: Path) -> dict[str, Any]:
        """Return the backend's options for a database that is empty and belongs to one test.

        ``directory`` exists, is empty, and is removed later. The options must survive JSON, so that other processes get
        them.
        """
        raise NotImplementedError

    def remove_database(self, options: dict[str, Any]) -> None:
        """Remove what ``new_database`` made outside of the directory."""

    def connect(self, options: dict[str, Any]) -> Any:
        """Return a DB-API connection to the database, by which a test damages or inspects it."""
        raise NotImplementedError

    def dump(self, options: dict[str, Any]) -> Any:
        """Return all that is in the database, tables and rows, so that two dumps can be compared."""
        raise NotImplementedError


class DatabaseUnderTest:
    """One database, and everything that a test opened on it. Closing closes all of that."""

    def __init__(self, target: Target, driver: str, keep_history: bool, directory: Path):
        self.target = target
        self.keep_history = keep_history
        self.directory = directory
        place = directory / "database"
        place.mkdir(parents=True)
        self.backend_options = target.new_database(place)
        #: What ``relstorage.open`` gets beside the backend's name.
        self.options: dict[str, Any] = {"driver": driver, "keep_history": keep_history, **self.backend_options}
        self._driver = driver
        self._opened = ExitStack()
        self._opened.callback(target.remove_database, self.backend_options)
        self._others = 0

    def open(self, **more: Any) -> Any:
        """Return a storage that shares nothing in memory with the others: a process of its own would see the same."""
        storage = relstorage.open(self.target.backend, **{**self.options, **more})
        self._opened.callback(storage.close)
        return storage

    def zodb(self, **more: Any) -> ZODB.DB:
        """Return a ZODB database on a storage of its own."""
        return self.zodb_on(self.open(**more))

    def zodb_on(self, storage: Any) -> ZODB.DB:
        """Return a ZODB database on any storage, which is closed with this one."""
        db = ZODB.DB(storage)
        self._opened.callback(db.close)
        return db

    def connection(self, db: ZODB.DB) -> Any:
        """Return a ZODB connection with a transaction manager of its own, which ``transaction_manager`` gives."""
        manager = transaction.TransactionManager(explicit=False)
        connection = db.open(manager)
        self._opened.callback(connection.close)
        self._opened.callback(manager.abort)
        return connection

    def another(self, keep_history: bool | None = None) -> DatabaseUnderTest:
        """Return a second, empty database, which is closed with this one."""
        self._others += 1
        mode = self.keep_history if keep_history is None else keep_history
        other = DatabaseUnderTest(self.target, self._driver, mode, self.directory / f"other-{self._others}")
        self._opened.callback(other.close)
        return other

    def execute(self, *statements: str) -> list[Any]:
        """Run SQL behind the storage's back, commit, and return the rows of the last statement."""
        connection = self.target.connect(self.backend_options)
        try:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
            connection.commit()
            return rows
        finally:
            connection.close()

    def dump(self) -> Any:
        """Return all that is in the database."""
        return self.target.dump(self.backend_options)

    def close(self) -> None:
        """Close everything that was opened, the last first."""
        self._opened.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of the importing module for every driver and history mode of its ``TARGET``."""
    target: Target = metafunc.module.TARGET
    if "driver" in metafunc.fixturenames:
        metafunc.parametrize("driver", target.drivers)
    choose = getattr(metafunc.function, "choose_parameters", None)
    if choose is not None:
        choose(metafunc)
    elif "keep_history" in metafunc.fixturenames:
        metafunc.parametrize("keep_history", (False, True), ids=mode_name)


def mode_name(keep_history: bool) -> str:
    """Return how a history mode is called in the names of tests."""
    return "history" if keep_history else "free"


@pytest.fixture(autouse=True)
def known_gaps(request: pytest.FixtureRequest) -> None:
    """Skip what does not apply to the target, and expect the failures it declares."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    name = request.node.name.partition("[")[0]
    if "zodb_test" in parameters:
        name = parameters["zodb_test"].name
    target = getattr(request.module, "TARGET", None)
    for gap in target.gaps if target is not None else ():
        if gap.covers(name, parameters.get("driver"), parameters.get("keep_history")):
            if gap.raises is None:
                pytest.skip(gap.reason)
            request.applymarker(pytest.mark.xfail(reason=gap.reason, raises=gap.raises, strict=True))


@pytest.fixture(autouse=True)
def own_transaction() -> Iterator[None]:
    """Begin and end without what another test left in this thread's transaction."""
    transaction.manager.clearSynchs()
    transaction.abort()
    yield
    transaction.manager.clearSynchs()
    transaction.abort()


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Target:
    """The target of the importing module."""
    return request.module.TARGET


@pytest.fixture
def database(target: Target, driver: str, keep_history: bool, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    """An empty database of either history mode."""
    made = DatabaseUnderTest(target, driver, keep_history, tmp_path)
    yield made
    made.close()


@pytest.fixture
def preserving(target: Target, driver: str, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    """An empty database that keeps history."""
    made = DatabaseUnderTest(target, driver, True, tmp_path)
    yield made
    made.close()


@pytest.fixture
def free(target: Target, driver: str, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    """An empty database without history."""
    made = DatabaseUnderTest(target, driver, False, tmp_path)
    yield made
    made.close()
