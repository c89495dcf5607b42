"""A ZODB in an SQLite file: the embedded backend."""

from relstorage_sqlite.backend import backend

__all__ = ["backend"]
