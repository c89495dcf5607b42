"""The conformance suite's target: each test gets a schema of its own in the database that the tests are given."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from relstorage.testing import Gap, Target

_numbers = itertools.count(1)


class Postgres(Target):
    """PostgreSQL, at the address that the fixture ``postgres_address`` gives."""

    backend = "postgresql"
    drivers = ("psycopg",)
    #: Set by the fixture of the importing module.
    address: str
    gaps = (
        Gap(
            "testPackUndoLog",
            "It makes the clock of this process run ahead, and packs to a moment of it; tids have the server's.",
        ),
    )

    def new_database(self, directory: Path) -> dict[str, Any]:
        schema = f"test_{os.getpid()}_{next(_numbers)}"
        self._execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        return {"dsn": self.address, "schema": schema}

    def remove_database(self, options: dict[str, Any]) -> None:
        schema = sql.Identifier(options["schema"])
        with psycopg.connect(self.address, autocommit=True) as connection:
            # Some tests of ZODB leave storages behind, in the middle of a transaction.
            connection.execute(
                """SELECT pg_terminate_backend(pid) FROM (
                    SELECT DISTINCT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
                    WHERE pid <> pg_backend_pid() AND usename = current_user AND relation IN (
                        SELECT oid FROM pg_class WHERE relnamespace = %s::regnamespace)) AS left_over""",
                [options["schema"]],
            )
            there = sql.Literal(f'"{options["schema"]}".blob_chunk')
            (blobs,) = connection.execute(sql.SQL("SELECT to_regclass({}) IS NOT NULL").format(there)).fetchone()
            if blobs:
                connection.execute(sql.SQL("DELETE FROM {}.blob_chunk").format(schema))
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(schema))

    def connect(self, options: dict[str, Any]) -> psycopg.Connection[Any]:
        return psycopg.connect(make_conninfo(self.address, options=f"-c search_path={options['schema']}"))

    def dump(self, options: dict[str, Any]) -> list[str]:
        with self.connect(options) as connection:
            relations = connection.execute(
                """SELECT relname, relkind::text FROM pg_class WHERE relnamespace = current_schema()::regnamespace
                ORDER BY relname"""
            ).fetchall()
            found = [str(each) for each in relations]
            for name, kind in relations:
                if kind in ("r", "S"):
                    rows = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(name))).fetchall()
                    found += sorted(f"{name} {row}" for row in rows)
            return found

    def _execute(self, statement: sql.Composable) -> None:
        with psycopg.connect(self.address, autocommit=True) as connection:
            connection.execute(statement)


@pytest.fixture(autouse=True, scope="module")
def address(request: pytest.FixtureRequest, postgres_address: str) -> None:
    """Give the importing module's ``TARGET`` the server of the tests."""
    request.module.TARGET.address = postgres_address
