"""Blobs as rows: a blob is one or more chunks of bytes, numbered from 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zope.interface import implementer

from relstorage.interfaces import IBlobStore
from relstorage.sql import Statements


def file_chunks(path: str, size: int) -> Iterator[tuple[int, bytes]]:
    """Iterate over (number, bytes) of a file; an empty file has one empty chunk."""
    with open(path, "rb") as file:
        number = 0
        while (chunk := file.read(size)) or number == 0:
            yield number, chunk
            number += 1


@implementer(IBlobStore)
class BlobChunks:
    """Keeps the bytes of a blob in the rows of ``blob_chunk``, ``size`` bytes in each."""

    def __init__(self, statements: Statements, size: int):
        self._sql = statements
        self._size = size

    def put(self, session: Any, oid: int, tid: int, path: str) -> None:
        for number, chunk in file_chunks(path, self._size):
            session.run(self._sql.put_blob_chunk, (oid, tid, number, chunk))

    def get(self, session: Any, oid: int, tid: int, path: str) -> bool:
        number = 0
        row = session.row(self._sql.blob_chunk, (oid, tid, number))
        if row is None:
            return False
        with open(path, "wb") as file:
            while row is not None:
                file.write(row[0])
                number += 1
                row = session.row(self._sql.blob_chunk, (oid, tid, number))
        return True
