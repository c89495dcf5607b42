"""psycopg2cffi: psycopg2's interface on PyPy, and anywhere else.

https://github.com/chtd/psycopg2cffi
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from relstorage_postgresql.drivers.psycopg2 import Psycopg2Driver
from relstorage_postgresql.drivers.waiting import patched_by_gevent


def uri_of(parameters: Mapping[str, str]) -> str:
    """Return a connection string of ASCII characters, because an asynchronous connection takes no others."""
    return "postgresql://?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())


# When it has the answer to the first of several statements, psycopg2cffi blocks the thread until it has the others.
driver = Psycopg2Driver("psycopg2cffi", "psycopg2cffi", uri_of, patched_by_gevent)
