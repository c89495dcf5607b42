"""Tables: what is refused is left as it was, what is missing is added once, and nothing is made unasked."""

from __future__ import annotations

import pytest

from relstorage.database.schema import SCHEMA_VERSION
from relstorage.errors import NewerSchema, SchemaMissing, WrongHistoryMode
from relstorage.testing.records import add, change, restore, state

__all__ = ["TestSchema"]


class TestSchema:
    def test_the_other_history_mode_is_refused_and_nothing_changed(self, database):
        oid, _ = add(database.open(), 1)
        before = database.dump()
        mode = not database.keep_history
        for _ in range(2):
            with pytest.raises(WrongHistoryMode, match=f"keep-history {str(mode).lower()}"):
                database.open(keep_history=mode)
        assert database.dump() == before
        assert database.open().load(oid)[0] == state(1)

    def test_an_empty_database_of_the_other_mode_is_refused_too(self, database):
        database.open().close()
        before = database.dump()
        with pytest.raises(WrongHistoryMode):
            database.open(keep_history=not database.keep_history)
        assert database.dump() == before

    def test_a_newer_schema_is_refused_and_nothing_changed(self, database):
        add(database.open())
        database.execute(f"UPDATE rs_meta SET value = '{SCHEMA_VERSION + 1}' WHERE name = 'schema_version'")
        before = database.dump()
        with pytest.raises(NewerSchema, match=str(SCHEMA_VERSION + 1)):
            database.open()
        assert database.dump() == before

    def test_opening_again_changes_nothing(self, database):
        add(database.open())
        before = database.dump()
        database.open()
        database.open(create_schema=False)
        assert database.dump() == before

    def test_nothing_is_created_when_that_is_forbidden(self, database):
        with pytest.raises(SchemaMissing, match="create-schema"):
            database.open(create_schema=False)
        add(database.open())
        assert database.open(create_schema=False)

    def test_every_database_has_an_identity_of_its_own(self, database):
        uuid = database.open().database.identity.uuid
        assert database.open().database.identity.uuid == uuid
        assert database.another().open().database.identity.uuid != uuid

    def test_rows_that_locks_need_are_made_where_an_old_version_left_them_out(self, database):
        oid, tid = add(database.open(), 1)
        database.execute("DELETE FROM commit_row_lock")
        with pytest.raises(SchemaMissing):
            database.open(create_schema=False)
        storage = database.open()
        assert database.execute("SELECT count(*) FROM commit_row_lock") == [(1,)]
        tid = change(storage, oid, tid, 2)
        restore(storage, tid[:-1] + bytes([tid[-1] ^ 1]), (oid, state(3)))
