"""The conformance suite: what every backend owes, run for each of its drivers and both history modes.

A backend has one test module::

    from relstorage.testing import *

    class Sqlite(Target):
        backend = "sqlite"
        drivers = ("sqlite3",)

        def new_database(self, directory):
            return {"data_dir": str(directory)}

    TARGET = Sqlite()

What it cannot do it declares as ``gaps``, each with its reason.
"""

# ruff: noqa: E402, F403 (what checks must be imported after the call below; each module says what its star stands for)

import pkgutil

import pytest

# Failed assertions then show values, as in a test module.
pytest.register_assert_rewrite(*(f"relstorage.testing.{module.name}" for module in pkgutil.iter_modules(__path__)))

from relstorage.testing import (
    committing,
    describing_schema,
    packing,
    packing_processes,
    polling,
    processes,
    reading,
    storing_blobs,
    undoing,
    wrapping,
    zodb_suite,
)
from relstorage.testing.committing import *
from relstorage.testing.describing_schema import *
from relstorage.testing.packing import *
from relstorage.testing.packing_processes import *
from relstorage.testing.polling import *
from relstorage.testing.processes import *
from relstorage.testing.reading import *
from relstorage.testing.storing_blobs import *
from relstorage.testing.target import (
    DatabaseUnderTest,
    Gap,
    Target,
    database,
    free,
    known_gaps,
    own_transaction,
    preserving,
    pytest_generate_tests,
    target,
)
from relstorage.testing.undoing import *
from relstorage.testing.wrapping import *
from relstorage.testing.zodb_suite import *

__all__ = [
    "DatabaseUnderTest",
    "Gap",
    "Target",
    "database",
    "free",
    "known_gaps",
    "own_transaction",
    "preserving",
    "pytest_generate_tests",
    "target",
    *committing.__all__,
    *describing_schema.__all__,
    *packing.__all__,
    *packing_processes.__all__,
    *polling.__all__,
    *processes.__all__,
    *reading.__all__,
    *storing_blobs.__all__,
    *undoing.__all__,
    *wrapping.__all__,
    *zodb_suite.__all__,
]
