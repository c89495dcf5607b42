"""Detect, create, migrate and verify the tables of a database.

The layout is detected before anything is written: a database of the other history mode, of a newer version, or of
another application is refused unchanged. Migrations are numbered and idempotent and run under the database's write
lock.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from enum import Enum
from typing import NamedTuple

from relstorage.errors import NewerSchema, NotADatabase, SchemaMissing, SchemaOutdated, WrongHistoryMode

#: The newest schema this version writes. 0 is what RelStorage 2.1 to 4.x left.
SCHEMA_VERSION = 1

#: Tables that tell a ZODB apart from somebody else's database.
_FREE = frozenset({"object_state"})
_PRESERVING = frozenset({"transaction", "current_object"})


class Layout(Enum):
    """What the tables of a database say."""

    EMPTY = "empty"
    HISTORY_FREE = "history-free"
    HISTORY_PRESERVING = "history-preserving"
    FOREIGN = "foreign"


class Identity(NamedTuple):
    """Facts about a database that never change while it is open."""

    uuid: str
    schema_version: int
    keep_history: bool


def detect(tables: Collection[str]) -> Layout:
    """Return the layout that these table names make."""
    names = frozenset(tables)
    if names & _PRESERVING and "object_state" in names:
        return Layout.HISTORY_PRESERVING
    if names >= _FREE and "blob_chunk" in names:
        return Layout.HISTORY_FREE
    return Layout.FOREIGN if names else Layout.EMPTY


def require(layout: Layout, *, keep_history: bool, version: int, create: bool, name: str) -> None:
    """Raise the ``LayoutError`` that says why this database cannot be opened with these options, if it cannot."""
    wanted = Layout.HISTORY_PRESERVING if keep_history else Layout.HISTORY_FREE
    if layout is Layout.FOREIGN:
        raise NotADatabase(
            f"Opening {name}: it has tables, but they are not those of a ZODB. Nothing was changed. "
            "Give the storage a place of its own."
        )
    if layout is Layout.EMPTY:
        if not create:
            raise SchemaMissing(
                f"Opening {name}: it has no tables, and create-schema is false. "
                "Open it once with create-schema true, by a user who may create tables."
            )
        return
    if layout is not wanted:
        raise WrongHistoryMode(
            f"Opening {name} with keep-history {str(keep_history).lower()}: the database is {layout.value}. "
            f"Nothing was changed. Set keep-history to {str(not keep_history).lower()}, "
            "or convert it with zodbconvert into a new database."
        )
    if version > SCHEMA_VERSION:
        raise NewerSchema(
            f"Opening {name}: its schema has version {version}, and this installation understands {SCHEMA_VERSION} "
            "at most. Nothing was changed. Install the version of relstorage-core that last wrote it, or a newer one."
        )
    if version < SCHEMA_VERSION and not create:
        raise SchemaOutdated(
            f"Opening {name}: its schema has version {version} and must become {SCHEMA_VERSION}, and create-schema "
            "is false. Open it once with create-schema true."
        )


def emptying(keep_history: bool) -> tuple[str, ...]:
    """Return the statements that remove every row of data, in an order that the foreign keys allow."""
    tables = ["blob_chunk", "object_ref", "object_refs_added", "pack_object", "rs_pack_run"]
    tables += ["current_object", "object_state", "pack_state", "pack_state_tid"] if keep_history else ["object_state"]
    statements = [f"DELETE FROM {table}" for table in tables]
    if keep_history:
        statements.append('DELETE FROM "transaction" WHERE tid > 0')
    return tuple(statements)


def new_uuid() -> str:
    """Return the identity of a new database."""
    return str(uuid.uuid4())
