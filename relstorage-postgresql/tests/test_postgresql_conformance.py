"""PostgreSQL keeps what the core promises, through psycopg 3."""

from __future__ import annotations

from postgresql_target import Postgres, address  # noqa: F401  a fixture is found by its name

from relstorage.testing import *  # noqa: F403  a suite is star-imported

TARGET = Postgres()
