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

from relstorage.testing.committing import *  # noqa: F403
from relstorage.testing.describing_schema import *  # noqa: F403
from relstorage.testing.polling import *  # noqa: F403
from relstorage.testing.processes import *  # noqa: F403
from relstorage.testing.reading import *  # noqa: F403
from relstorage.testing.storing_blobs import *  # noqa: F403
from relstorage.testing.target import (
    DatabaseUnderTest,
    Gap,
    Target,
    database,
    free,
    known_gaps,
    preserving,
    pytest_generate_tests,
    target,
)
from relstorage.testing.undoing import *  # noqa: F403
from relstorage.testing.wrapping import *  # noqa: F403
from relstorage.testing.zodb_suite import *  # noqa: F403
