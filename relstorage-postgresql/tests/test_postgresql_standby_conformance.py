"""Who reads from a hot standby and writes to the primary gets what the core promises. Commits return when the standby
shows them, so that the suite, which expects to see at once what was committed, can be used."""

from __future__ import annotations

import pytest
from postgresql_target import Postgres

from relstorage.testing import (
    TestConflicts,
    TestLoads,
    TestPolling,
    TestReadCurrent,
    database,
    free,
    known_gaps,
    own_transaction,
    preserving,
    pytest_generate_tests,
    target,
)

__all__ = [
    "TestConflicts",
    "TestLoads",
    "TestPolling",
    "TestReadCurrent",
    "database",
    "free",
    "known_gaps",
    "own_transaction",
    "preserving",
    "pytest_generate_tests",
    "target",
]


class WithStandby(Postgres):
    """A primary, and a standby that load connections read from."""

    def new_database(self, directory):
        path = directory / "standbys"
        path.write_text(f"# what reads\n{self.standby}\n")
        return {**super().new_database(directory), "ro_replica_conf": str(path)}


TARGET = WithStandby()


@pytest.fixture(autouse=True, scope="module")
def _servers(new_postgres):
    # Replay must not wait for who reads on the standby, since commits wait for replay.
    settings = {
        "synchronous_commit": "remote_apply",
        "hot_standby_feedback": True,
        "autovacuum": False,
        "max_standby_streaming_delay": "1s",
    }
    with new_postgres(settings=settings) as primary, primary.make_standby(synchronous=True) as standby:
        TARGET.address, TARGET.standby = primary.dsn(), f"127.0.0.1:{standby.port}"
        yield
