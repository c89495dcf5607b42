from __future__ import annotations
import pytest
from postgresql_target import Postgres
from relstorage.testing import *  # noqa: F403

class Other(Postgres):
    drivers = ("psycopg2", "psycopg2cffi", "pg8000")
TARGET = Other()

@pytest.fixture(autouse=True, scope="module")
def _address(postgres_address):
    TARGET.address = postgres_address
