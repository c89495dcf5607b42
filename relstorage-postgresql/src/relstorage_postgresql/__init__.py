"""A ZODB in a PostgreSQL database."""

from relstorage_postgresql.backend import backend

__all__ = ["backend"]
