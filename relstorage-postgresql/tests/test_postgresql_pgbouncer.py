"""PostgreSQL behind pgbouncer, whose clients share the server's connections: in turns of a session, or of a transaction.

The conformance suite runs through it. In transaction mode the tables are in a schema that only the option names, and
the bouncer has fewer connections than there are clients.
"""

from __future__ import annotations

import itertools
import os
import threading

import psycopg
import pytest
from postgresql_target import Postgres

from relstorage.errors import Disconnected
from relstorage.testing import (  # noqa: F401  fixtures and tests are found by their names
    DatabaseUnderTest,
    TestBlobs,
    TestPolling,
    TestProcesses,
    TestUndo,
    blobs,
    database,
    free,
    known_gaps,
    own_transaction,
    pair,
    preserving,
    pytest_generate_tests,
    workers,
)
from relstorage.testing.records import add, change, commit, state

_numbers = itertools.count(1)
