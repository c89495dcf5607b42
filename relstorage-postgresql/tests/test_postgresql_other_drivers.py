"""PostgreSQL keeps what the core promises, through the other drivers too.

The parts of the suite that touch a driver always run; ``pytest --all-drivers`` runs all of it. psycopg2cffi shares its
session with psycopg2, so that less of it is enough.
"""

from __future__ import annotations

import pytest
from postgresql_drivers import TEXT_DRIVERS, usable_driver
from postgresql_target import Postgres, address  # noqa: F401  a fixture is found by its name

from relstorage.testing import *  # noqa: F403  a suite is star-imported
from relstorage.testing.target import pytest_generate_tests as generate_tests

PARTS = {
    "psycopg2": {"committing", "polling", "reading", "storing_blobs", "undoing"},
    "psycopg2cffi": {"committing", "storing_blobs"},
    "pg8000": {"committing", "polling", "reading", "storing_blobs", "undoing"},
}


class ThroughOthers(Postgres):
    drivers = TEXT_DRIVERS


TARGET = ThroughOthers()


def pytest_generate_tests(metafunc):
    part = metafunc.function.__module__.rpartition(".")[2]
    TARGET.drivers = [
        driver if part in PARTS[driver] else pytest.param(driver, marks=pytest.mark.all_drivers)
        for driver in TEXT_DRIVERS
    ]
    generate_tests(metafunc)


@pytest.fixture(autouse=True)
def _usable(request, missing):
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if "driver" in parameters:
        usable_driver(parameters["driver"], missing)
