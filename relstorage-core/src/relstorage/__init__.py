"""A ZODB storage in relational databases.

``relstorage.open("sqlite", data_dir="/srv/zodb")`` returns a storage for ``ZODB.DB``. In ZConfig,
``%import relstorage`` makes the section ``<relstorage>`` and one section for each installed backend available.
"""

from __future__ import annotations

from typing import Any

__version__ = "5.0.0a1"
__all__ = ["open"]


def open(backend: str = "sqlite", /, **values: Any) -> Any:
    """Return a storage on a database of this backend; see ``relstorage.opening.open``."""
    # ZConfig imports this package only to find its component; the parts are imported when somebody opens a database.
    from relstorage.opening import open

    return open(backend, **values)
