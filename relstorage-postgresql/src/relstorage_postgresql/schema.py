"""Detect, create, migrate and verify the tables of one schema.

An open of a database that is as it should be takes two questions and changes nothing. All else happens in one
transaction, under a lock of the schema, so that many processes may start at once, and one that is killed leaves no
trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from zope.interface import implementer

from relstorage.database.schema import SCHEMA_VERSION, Identity, Layout, detect, emptying, new_uuid, require
from relstorage.errors import DriverError, NotADatabase, ReadOnlyDatabase, RelStorageError, SchemaOutdated
from relstorage.interfaces import ISchema
from relstorage_postgresql.drivers.session import INCARNATION
from relstorage_postgresql.functions import SCHEMA, Functions
from relstorage_postgresql.tables import BLOB_TRIGGER, NAMES, creation, migration

_NAMESPACE = "(SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
_LOCK = f"SELECT pg_advisory_xact_lock({_NAMESPACE}::int4, {SCHEMA})"
_META = f"""
    SELECT name, value FROM rs_meta
    UNION ALL SELECT 'seeded', 'yes' WHERE EXISTS (SELECT 1 FROM commit_row_lock)
    UNION ALL SELECT 'place',
        (pg_identify_object_as_address('pg_class'::regclass, 'rs_meta'::regclass, 0)).object_names[1]
    UNION ALL SELECT 'schema', current_schema()
    UNION ALL SELECT 'incarnation', {INCARNATION}"""
#: How many blobs one transaction removes when everything goes: each takes a place in the server's table of locks.
_BLOBS_AT_ONCE = 500


class _Found(NamedTuple):
    """What is in the schema."""

    layout: Layout
    has_tables: bool
    has_functions: bool
    identity: Identity | None

    @property
    def complete(self) -> bool:
        return self.identity is not None and self.has_tables and self.has_functions


@implementer(ISchema)
class PostgresSchema:
    """Prepares one schema. ``keep`` gets the session when it has done its work."""

    def __init__(
        self,
        name: str,
        keep_history: bool,
        functions: Functions,
        open_session: Callable[[str], Any],
        keep: Callable[[Any], None],
        schema: str | None = None,
    ):
        self._name = name
        self._keep_history = keep_history
        self._functions = functions
        self._open = open_session
        self._keep = keep
        #: The one that the options name.
        self._schema = schema
        names = ", ".join(f"'{name}'" for name in sorted(NAMES))
        wanted = ", ".join(f"'{function.name}'" for function in (*functions.all(), BLOB_TRIGGER))
        self._names_of_functions = {function.name for function in functions.all()}
        #: The functions whose names rs_meta has were made together, and are still there unless somebody removed them.
        self._digest = " ".join(function.name.rpartition("_")[2] for function in (*functions.all(), BLOB_TRIGGER))
        self._look = f"""
            SELECT current_schema(),
                array_to_string(ARRAY(
                    SELECT relname::text FROM pg_class
                    WHERE relnamespace = {_NAMESPACE} AND relname IN ({names})), ' '),
                array_to_string(ARRAY(
                    SELECT proname::text FROM pg_proc
                    WHERE pronamespace = {_NAMESPACE} AND proname IN ({wanted})), ' '),
                (SELECT nspname::text FROM pg_namespace JOIN pg_class ON relnamespace = pg_namespace.oid
                    WHERE pg_class.oid = to_regclass('object_state')),
                pg_is_in_recovery()"""

    def prepare(self, create: bool) -> Identity:
        session = self._open("store" if create else "load")
        try:
            found = self._expected(session) or self._detect(session, create)
            if not found.complete:
                found = self._migrate(session, create)
        except BaseException:
            session.close()
            raise
        self._keep(session)
        assert found.identity is not None
        return found.identity

    def _expected(self, session: Any) -> _Found | None:
        """Return what is there if one look shows that it is all that this version wants."""
        try:
            facts = dict(session.script(_META))
        except DriverError:
            # Some table is missing.
            return None
        as_it_should_be = {
            "seeded": "yes", "place": facts["schema"], "schema_version": str(SCHEMA_VERSION), "functions": self._digest,
            "keep_history": str(int(self._keep_history)),
        }  # fmt: skip
        if not as_it_should_be.items() <= facts.items() or "uuid" not in facts:
            return None
        if self._schema not in (None, facts["schema"]):
            return None
        session.remember_incarnation(facts["incarnation"])
        layout = Layout.HISTORY_PRESERVING if self._keep_history else Layout.HISTORY_FREE
        return _Found(layout, True, True, Identity(facts["uuid"], SCHEMA_VERSION, self._keep_history))

    def _detect(self, session: Any, create: bool) -> _Found:
        """Return what is there; raise where it cannot be opened."""
        schema, names, functions, elsewhere, in_recovery = session.script(self._look)[0]
        if schema is None:
            raise NotADatabase(
                f"Opening {self._name}: none of the schemas in search_path exists. Create one (CREATE SCHEMA), or name "
                "another with the option 'schema'."
            )
        if self._schema not in (None, schema):
            raise NotADatabase(
                f"Opening {self._name}: the server looks into the schema {schema!r} instead of {self._schema!r}. A "
                "pooler has forgotten the search_path that was asked for: set transaction-pooling to true."
            )
        tables = set(names.split())
        layout = detect(tables - {"zoid_seq"})
        if layout is Layout.EMPTY and elsewhere is not None:
            raise NotADatabase(
                f"Opening {self._name}: the schema {schema!r} is empty, and the schema {elsewhere!r}, which comes "
                "later in search_path, has a ZODB. Nothing was changed. Say with the option 'schema' which of them it "
                "is."
            )
        facts = dict(session.script(_META)) if {"rs_meta", "commit_row_lock"} <= tables else {}
        version = int(facts.get("schema_version", 0))
        require(layout, keep_history=self._keep_history, version=version, create=create, name=self._name)
        # RelStorage may have been here since, or a version of ours with other functions.
        there = set(functions.split())
        has_tables = (
            version == SCHEMA_VERSION
            and "seeded" in facts
            and BLOB_TRIGGER.name in there
            and {"rs_removed", "rs_pack_run", "rs_pack_list", "rs_commit"} <= tables
        )
        identity = Identity(facts["uuid"], version, self._keep_history) if "uuid" in facts else None
        found = _Found(layout, has_tables, there >= self._names_of_functions, identity)
        if not found.complete and not create:
            raise SchemaOutdated(
                f"Opening {self._name}: tables, rows or functions of this version are missing, and create-schema is "
                "false. Open it once with create-schema true, by a user who may create tables and functions."
            )
        if not found.complete and in_recovery:
            raise ReadOnlyDatabase(
                f"Opening {self._name}: tables, rows or functions of this version are missing, and the server is a "
                "standby, where they cannot be made. Open the database on its primary server once."
            )
        return found

    def _migrate(self, session: Any, create: bool) -> _Found:
        session.begin_write()
        try:
            session.script(_LOCK)
            # Another process may have been faster.
            found = self._detect(session, create)
            if not found.complete:
                if found.layout is Layout.EMPTY:
                    session.script(creation(self._keep_history))
                if not found.has_tables:
                    # It waits for whoever uses the tables, so it is left out where another version is at work on them.
                    session.script(migration(self._keep_history))
                for function in self._functions.all():
                    session.script(function.create())
                session.script(
                    f"INSERT INTO rs_meta VALUES ('uuid', '{new_uuid()}') ON CONFLICT DO NOTHING",
                    f"""INSERT INTO rs_meta
                    VALUES ('schema_version', '{SCHEMA_VERSION}'), ('keep_history', '{int(self._keep_history)}'),
                        ('functions', '{self._digest}')
                    ON CONFLICT (name) DO UPDATE SET value = excluded.value""",
                )
                found = self._detect(session, create)
            session.commit()
        except RelStorageError:
            session.rollback()
            raise
        return found

    def zap(self, session: Any) -> None:
        self._remove_blobs()
        session.script("DELETE FROM rs_pack_list", *emptying(self._keep_history))

    def _remove_blobs(self) -> None:
        """Remove the blobs, a few in a transaction. Nobody can add any meanwhile: the caller has the commit lock."""
        session = self._open("pack")
        try:
            while True:
                session.begin_write()
                removed = session.script(
                    f"""WITH gone AS (DELETE FROM blob_chunk WHERE ctid = ANY(ARRAY(
                    SELECT ctid FROM blob_chunk LIMIT {_BLOBS_AT_ONCE})) RETURNING 1) SELECT count(*) FROM gone"""
                )
                session.commit()
                if not removed[0][0]:
                    return
        finally:
            session.close()
