"""PostgreSQL keeps what the core promises, through psycopg 3."""

from __future__ import annotations

import pytest
from postgresql_target import Postgres

from relstorage.testing import *  # noqa: F403  a suite is star-imported

TARGET = Postgres()


@pytest.fixture(autouse=True, scope="module")
def _address(postgres_address):
    TARGET.address = postgres_address
