"""The tables in an SQLite file: those of RelStorage 4.x, and four of our own whose names begin with rs_.

Foreign keys are declared, because RelStorage's are, but not enforced: our statements keep them true, which the tests
check.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from zope.interface import implementer

from relstorage.database.schema import SCHEMA_VERSION, Identity, Layout, detect, emptying, new_uuid, require
from relstorage.errors import (
    CorruptDatabase,
    NotADatabase,
    RelStorageError,
    SchemaOutdated,
    UnableToAcquireCommitLockError,
)
from relstorage.interfaces import ISchema

_COMMON = """
CREATE TABLE commit_row_lock (tid INTEGER PRIMARY KEY NOT NULL);
CREATE TABLE pack_object (
    zoid INTEGER PRIMARY KEY NOT NULL, keep INTEGER NOT NULL, keep_tid INTEGER NOT NULL,
    visited INTEGER DEFAULT FALSE NOT NULL);
CREATE INDEX pack_object_keep_zoid ON pack_object (keep, zoid);
"""

_HISTORY_FREE = f"""
CREATE TABLE object_state (
    zoid INTEGER NOT NULL PRIMARY KEY, tid INTEGER NOT NULL, state_size BIGINT NOT NULL, state BLOB,
    CHECK (tid > 0), CHECK (state_size >= 0));
CREATE INDEX object_state_tid ON object_state (tid);
CREATE TABLE blob_chunk (
    zoid INTEGER NOT NULL, chunk_num INTEGER NOT NULL, tid INTEGER NOT NULL, chunk BLOB NOT NULL,
    CONSTRAINT blob_chunk_pk PRIMARY KEY (zoid, chunk_num),
    CONSTRAINT blob_chunk_fk FOREIGN KEY (zoid) REFERENCES object_state (zoid) ON DELETE CASCADE);
CREATE INDEX blob_chunk_lookup ON blob_chunk (zoid);
CREATE TABLE object_ref (
    zoid INTEGER NOT NULL, to_zoid INTEGER NOT NULL, tid INTEGER NOT NULL, PRIMARY KEY (zoid, to_zoid));
CREATE TABLE object_refs_added (zoid INTEGER NOT NULL PRIMARY KEY, tid INTEGER NOT NULL);
{_COMMON}
"""

_HISTORY_PRESERVING = f"""
CREATE TABLE "transaction" (
    tid INTEGER PRIMARY KEY NOT NULL, packed INTEGER DEFAULT FALSE NOT NULL, is_empty INTEGER DEFAULT FALSE NOT NULL,
    username BLOB NOT NULL, description BLOB NOT NULL, extension BLOB);
CREATE TABLE object_state (
    zoid INTEGER NOT NULL, tid INTEGER NOT NULL REFERENCES "transaction",
    prev_tid INTEGER NOT NULL REFERENCES "transaction",
    md5 BLOB, state_size BIGINT NOT NULL, state BLOB,
    PRIMARY KEY (zoid, tid), CHECK (tid > 0), CHECK (state_size >= 0));
CREATE INDEX object_state_tid ON object_state (tid);
CREATE INDEX object_state_prev_tid ON object_state (prev_tid);
CREATE TABLE blob_chunk (
    zoid INTEGER NOT NULL, tid INTEGER NOT NULL, chunk_num INTEGER NOT NULL, chunk BLOB NOT NULL,
    CONSTRAINT blob_chunk_pk PRIMARY KEY (zoid, tid, chunk_num),
    CONSTRAINT blob_chunk_fk FOREIGN KEY (zoid, tid) REFERENCES object_state (zoid, tid) ON DELETE CASCADE);
CREATE INDEX blob_chunk_lookup ON blob_chunk (zoid, tid);
CREATE TABLE current_object (
    zoid INTEGER NOT NULL PRIMARY KEY, tid INTEGER NOT NULL,
    FOREIGN KEY (zoid, tid) REFERENCES object_state (zoid, tid));
CREATE INDEX current_object_tid ON current_object (tid);
CREATE TABLE object_ref (
    zoid INTEGER NOT NULL, tid INTEGER NOT NULL, to_zoid INTEGER NOT NULL, PRIMARY KEY (tid, zoid, to_zoid));
CREATE TABLE object_refs_added (tid INTEGER NOT NULL PRIMARY KEY);
CREATE TABLE pack_state (tid INTEGER NOT NULL, zoid INTEGER NOT NULL, PRIMARY KEY (tid, zoid));
CREATE TABLE pack_state_tid (tid INTEGER NOT NULL PRIMARY KEY);
CREATE VIEW current_object_state AS
    SELECT zoid, tid, state FROM object_state JOIN current_object USING (zoid, tid);
{_COMMON}
"""

#: Ours. Without rowid: the primary key is the order in which the rows are read.
_ADDED = """
CREATE TABLE IF NOT EXISTS rs_meta (name TEXT PRIMARY KEY NOT NULL, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rs_removed (
    tid INTEGER NOT NULL, zoid INTEGER NOT NULL, PRIMARY KEY (tid, zoid)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rs_pack_run (
    run INTEGER PRIMARY KEY NOT NULL, pack_tid INTEGER NOT NULL, view_tid INTEGER NOT NULL, phase TEXT NOT NULL,
    collect INTEGER NOT NULL, started INTEGER NOT NULL, removed INTEGER NOT NULL, checked_tid INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS rs_pack_garbage (
    run INTEGER NOT NULL, zoid INTEGER NOT NULL, tid INTEGER NOT NULL, whole INTEGER NOT NULL,
    PRIMARY KEY (run, zoid, tid)) WITHOUT ROWID;
INSERT OR IGNORE INTO commit_row_lock (tid) VALUES (0);
"""

_ADDED_PRESERVING = """
INSERT OR IGNORE INTO "transaction" (tid, username, description)
    VALUES (0, CAST('system' AS BLOB), CAST('special transaction for object creation' AS BLOB));
CREATE VIEW IF NOT EXISTS current_object_state AS
    SELECT zoid, tid, state FROM object_state JOIN current_object USING (zoid, tid);
"""

#: Rows that an older version of RelStorage may not have made; without them its own locks would lock nothing.
_SEEDS = "SELECT EXISTS (SELECT 1 FROM commit_row_lock)"
_SEEDS_PRESERVING = f'{_SEEDS} AND EXISTS (SELECT 1 FROM "transaction" WHERE tid = 0)'


def _statements(script: str) -> list[str]:
    return [statement for statement in (part.strip() for part in script.split(";")) if statement]


@implementer(ISchema)
class SqliteSchema:
    """Prepares one file. ``open_session`` opens a session in a role; 'schema' may create the file.

    ``dismiss`` gets the session when it has done its work.
    """

    def __init__(
        self,
        path: str,
        keep_history: bool,
        open_session: Callable[[str], Any],
        lock_timeout: float,
        dismiss: Callable[[Any], None],
    ):
        self._dismiss = dismiss
        self._path = path
        self._keep_history = keep_history
        self._open = open_session
        self._lock_timeout = lock_timeout

    def prepare(self, create: bool) -> Identity:
        if not os.path.exists(self._path):
            if not create:
                require(Layout.EMPTY, keep_history=self._keep_history, version=0, create=False, name=self._path)
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
        session = self._open("schema")
        try:
            version = self._detect(session, create)
            # A copy made with VACUUM INTO has lost it, and readers and writers would then exclude each other.
            if create and session.script("PRAGMA journal_mode")[0][0] != "wal":
                self._use_wal(session)
            if version < SCHEMA_VERSION:
                self._migrate(session, create)
            identity = self._identity(session)
        except BaseException:
            session.close()
            raise
        self._dismiss(session)
        return identity

    def _detect(self, session: Any, create: bool) -> int:
        """Return the schema version, 0 where something must be added; raise where it cannot be opened."""
        try:
            tables = {row[0] for row in session.script("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except CorruptDatabase as error:
            raise NotADatabase(f"Opening {self._path}: the file is no SQLite database. Nothing was changed.") from error
        # What SQLite makes for itself says nothing about whose file it is.
        tables = {name for name in tables if not name.startswith("sqlite_")}
        layout = detect(tables)
        version = 0
        if "rs_meta" in tables:
            row = session.script("SELECT value FROM rs_meta WHERE name = 'schema_version'")
            version = int(row[0][0]) if row else 0
        require(layout, keep_history=self._keep_history, version=version, create=create, name=self._path)
        if version:
            seeds = session.script(_SEEDS_PRESERVING if self._keep_history else _SEEDS)
            if not seeds[0][0]:
                if not create:
                    raise SchemaOutdated(
                        f"Opening {self._path}: rows that the schema needs are missing, and create-schema is false. "
                        "Open it once with create-schema true."
                    )
                return 0
        return version

    def _use_wal(self, session: Any) -> None:
        # SQLite does not wait for the lock that this needs, and several processes may open a new file at once.
        deadline = time.monotonic() + self._lock_timeout
        while True:
            try:
                session.script("PRAGMA journal_mode = WAL")
                return
            except UnableToAcquireCommitLockError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _migrate(self, session: Any, create: bool) -> None:
        session.begin_write()
        try:
            # Another process may have been faster.
            if self._detect(session, create) < SCHEMA_VERSION:
                preserving = self._keep_history
                if not session.script("SELECT 1 FROM sqlite_master WHERE name = 'object_state'"):
                    session.script(*_statements(_HISTORY_PRESERVING if preserving else _HISTORY_FREE))
                session.script(*_statements(_ADDED + (_ADDED_PRESERVING if preserving else "")))
                session.script(
                    f"INSERT OR IGNORE INTO rs_meta VALUES ('uuid', '{new_uuid()}')",
                    f"INSERT OR REPLACE INTO rs_meta VALUES ('schema_version', '{SCHEMA_VERSION}')",
                    f"INSERT OR REPLACE INTO rs_meta VALUES ('keep_history', '{int(preserving)}')",
                )
            session.commit()
        except RelStorageError:
            session.rollback()
            raise

    def _identity(self, session: Any) -> Identity:
        facts = dict(session.script("SELECT name, value FROM rs_meta"))
        return Identity(facts["uuid"], int(facts["schema_version"]), self._keep_history)

    def zap(self, session: Any) -> None:
        session.script("DELETE FROM rs_pack_garbage", *emptying(self._keep_history))
