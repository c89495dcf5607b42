"""Blobs as large objects: one for each blob, named by the only row of ``blob_chunk`` that its revision has.

Functions of the server write and read them a piece at a time, so that every driver can, and memory stays small.
https://www.postgresql.org/docs/current/lo-funcs.html
"""

from __future__ import annotations

from itertools import count
from typing import Any

from zope.interface import implementer

from relstorage.interfaces import IBlobStore
from relstorage.sql import Statements
from relstorage_postgresql.statements import call

#: How many bytes travel at once.
PIECE = 1 << 20
#: How many pieces are under way at once.
AHEAD = 4

_CREATE = call("create blob", "SELECT lo_create(0)::bigint", "", "blob")
_WRITE = call("write blob", "SELECT lo_put(:blob::oid, :start, :piece)::text", "blob start piece", "void")
_READ = call("read blob", "SELECT lo_get(:blob::oid, :start, :length::int)", "blob start length", "piece")


@implementer(IBlobStore)
class LargeObjects:
    """Stores blobs in large objects of the database. The piece size is in bytes."""

    def __init__(self, statements: Statements, piece: int = PIECE):
        self._sql = statements
        self._piece = piece
        self._has_lz4: bool | None = None

    def upload(self, session: Any, path: str) -> int:
        """Make a large object with the bytes of a file, within the session's write transaction; return its number."""
        self._compress_quickly(session)
        with open(path, "rb") as file:
            blob: int = session.row(_CREATE)[0]
            start = 0
            calls = []
            while piece := file.read(self._piece):
                calls.append((_WRITE, (blob, start, piece)))
                start += len(piece)
                if len(calls) == AHEAD:
                    session.batch(*calls)
                    calls.clear()
            if calls:
                session.batch(*calls)
        return blob

    def _compress_quickly(self, session: Any) -> None:
        """Have the server try LZ4 on the pages of large objects, if it can: its own method is slower than the rest."""
        if self._has_lz4 is None:
            self._has_lz4 = session.row(_HAS_LZ4) is not None
        if self._has_lz4:
            session.row(_USE_LZ4)

    def put(self, session: Any, oid: int, tid: int, path: str) -> None:
        blob = self.upload(session, path)
        if not session.run(self._sql.put_blob_chunk, (oid, tid, 0, blob)):
            # Without history, what is older than the current revision has no place here.
            session.row(_DROP, (blob,))

    def get(self, session: Any, oid: int, tid: int, path: str) -> bool:
        row = session.row(self._sql.blob_chunk, (oid, tid, 0))
        if row is None:
            return False
        with open(path, "wb") as file:
            # RelStorage 2 cut large blobs into several large objects.
            for number in count(1):
                start = 0
                while piece := session.row(_READ, (row[0], start, self._piece))[0]:
                    file.write(piece)
                    start += len(piece)
                    if len(piece) < self._piece:
                        break
                row = session.row(self._sql.blob_chunk, (oid, tid, number))
                if row is None:
                    return True
        return True


_DROP = call("drop blob", "SELECT lo_unlink(:blob::oid)", "blob", "done")
# https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-DEFAULT-TOAST-COMPRESSION
_HAS_LZ4 = call(
    "has lz4",
    "SELECT 1::bigint FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals)",
    "",
    "found",
)
_USE_LZ4 = call("use lz4", "SELECT set_config('default_toast_compression', 'lz4', TRUE)", "", "value")
