"""Object ids of an SQLite database, reserved in its one file.

RelStorage keeps them in a second file, ``oids.sqlite3``, and starts again at 1 when that is lost. Here the main file
is the authority: a range begins above every reserved and every stored id. The second file is only written, so that
RelStorage finds it right when it opens the database again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from typing import Any

log = logging.getLogger(__name__)

#: Each number in RelStorage's file stands for this many ids.
_RANGE = 16
#: RelStorage's file is written this many ids ahead, so that it is opened rarely.
_AHEAD = 4096


class OidRanges:
    """Reserves ranges of ids. ``shadow`` is the path of RelStorage's file."""

    def __init__(self, shadow: str):
        self._shadow = shadow
        #: The highest id that the shadow covers; None until it was read.
        self._covered: int | None = None

    def reserve(self, session: Any, count: int, at_least: int) -> range:
        """Reserve ``count`` ids above everything in use and above ``at_least``; make that durable and return them."""
        if self._covered is None:
            # RelStorage may have written to the database since we last did.
            self._covered = _read_shadow(self._shadow)
            at_least = max(at_least, self._covered)
        session.begin_write()
        try:
            row = session.script(
                "SELECT max(coalesce((SELECT max(zoid) FROM object_state), 0), "
                "coalesce((SELECT CAST(value AS INTEGER) FROM rs_meta WHERE name = 'reserved_oid'), 0))"
            )
            start = max(row[0][0], at_least) + 1
            stop = start + count
            session.script(f"INSERT OR REPLACE INTO rs_meta VALUES ('reserved_oid', '{stop - 1}')")
            session.commit()
        except BaseException:
            session.rollback()
            raise
        if stop - 1 > self._covered or not os.path.exists(self._shadow):
            self._covered = stop - 1 + _AHEAD
            _write_shadow(self._shadow, self._covered)
        return range(start, stop)


def _read_shadow(path: str) -> int:
    if not os.path.exists(path):
        return 0
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection:
            row = connection.execute("SELECT max(zoid) FROM new_oid").fetchone()
            return (row[0] or 0) * _RANGE
    except sqlite3.Error:
        # Lost or damaged: the main file knows.
        return 0


def _write_shadow(path: str, highest: int) -> None:
    number = -(-highest // _RANGE)
    for attempt in (1, 2):
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = OFF")
                connection.execute("CREATE TABLE IF NOT EXISTS new_oid (zoid INTEGER PRIMARY KEY NOT NULL)")
                connection.execute("BEGIN IMMEDIATE")
                row = connection.execute("SELECT max(zoid) FROM new_oid").fetchone()
                if row[0] is None:
                    connection.execute("INSERT INTO new_oid (zoid) VALUES (?)", (number,))
                else:
                    connection.execute("UPDATE new_oid SET zoid = ? WHERE zoid < ?", (number, number))
                connection.execute("COMMIT")
                return
        except sqlite3.DatabaseError as error:
            if attempt == 1 and not isinstance(error, sqlite3.OperationalError):
                # Not a database any more. Nothing of ours depends on it.
                with contextlib.suppress(OSError):
                    os.remove(path)
                continue
            log.warning("Could not note the highest object id in %s for RelStorage: %s", path, error)
            return
