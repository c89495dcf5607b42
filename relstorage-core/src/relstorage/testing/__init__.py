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

# ruff: noqa: E402, F401, F403 (everything here is for star-import)

import pkgutil

import pytest

# Failed assertions then show values, as in a test module.
pytest.register_assert_rewrite(*(f"relstorage.testing.{module.name}" for module in pkgutil.iter_modules(__path__)))

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
