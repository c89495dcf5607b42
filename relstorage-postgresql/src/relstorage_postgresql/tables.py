"""The tables in a schema of PostgreSQL: those of RelStorage 4.x, and five of our own whose names begin with ``rs_``.

What RelStorage 2.1 to 4.3 made is brought to the same state by statements that change nothing when repeated.
"""

from __future__ import annotations

from relstorage_postgresql.functions import Function

_COMMON = """
CREATE TABLE commit_row_lock (tid bigint NOT NULL PRIMARY KEY);
CREATE TABLE pack_object (
    zoid bigint NOT NULL PRIMARY KEY, keep boolean NOT NULL, keep_tid bigint NOT NULL,
    visited boolean NOT NULL DEFAULT FALSE);
CREATE SEQUENCE zoid_seq;
"""

HISTORY_FREE = f"""
CREATE TABLE object_state (
    zoid bigint NOT NULL PRIMARY KEY, tid bigint NOT NULL CHECK (tid > 0),
    state_size bigint NOT NULL CHECK (state_size >= 0), state bytea);
CREATE INDEX object_state_tid ON object_state (tid);
CREATE TABLE blob_chunk (
    zoid bigint NOT NULL, chunk_num bigint NOT NULL, tid bigint NOT NULL, chunk oid NOT NULL,
    CONSTRAINT blob_chunk_pk PRIMARY KEY (zoid, chunk_num),
    CONSTRAINT blob_chunk_fk FOREIGN KEY (zoid) REFERENCES object_state (zoid) ON DELETE CASCADE);
CREATE INDEX blob_chunk_lookup ON blob_chunk (zoid);
CREATE TABLE object_ref (
    zoid bigint NOT NULL, to_zoid bigint NOT NULL, tid bigint NOT NULL, PRIMARY KEY (zoid, to_zoid));
CREATE TABLE object_refs_added (zoid bigint NOT NULL PRIMARY KEY, tid bigint NOT NULL);
{_COMMON}
"""

HISTORY_PRESERVING = f"""
CREATE TABLE "transaction" (
    tid bigint NOT NULL PRIMARY KEY, packed boolean NOT NULL DEFAULT FALSE, is_empty boolean NOT NULL DEFAULT FALSE,
    username bytea NOT NULL, description bytea NOT NULL, extension bytea);
CREATE TABLE object_state (
    zoid bigint NOT NULL, tid bigint NOT NULL REFERENCES "transaction" CHECK (tid > 0),
    prev_tid bigint NOT NULL REFERENCES "transaction",
    md5 char(32), state_size bigint NOT NULL CHECK (state_size >= 0), state bytea,
    CONSTRAINT object_state_pk PRIMARY KEY (zoid, tid));
CREATE INDEX object_state_tid ON object_state (tid);
CREATE INDEX object_state_prev_tid ON object_state (prev_tid);
CREATE TABLE blob_chunk (
    zoid bigint NOT NULL, tid bigint NOT NULL, chunk_num bigint NOT NULL, chunk oid NOT NULL,
    CONSTRAINT blob_chunk_pk PRIMARY KEY (zoid, tid, chunk_num),
    CONSTRAINT blob_chunk_fk FOREIGN KEY (zoid, tid) REFERENCES object_state (zoid, tid) ON DELETE CASCADE);
CREATE INDEX blob_chunk_lookup ON blob_chunk (zoid, tid);
CREATE TABLE current_object (
    zoid bigint NOT NULL PRIMARY KEY, tid bigint NOT NULL,
    FOREIGN KEY (zoid, tid) REFERENCES object_state (zoid, tid));
CREATE INDEX current_object_tid ON current_object (tid);
CREATE TABLE object_ref (
    zoid bigint NOT NULL, tid bigint NOT NULL, to_zoid bigint NOT NULL, PRIMARY KEY (tid, zoid, to_zoid));
CREATE TABLE object_refs_added (tid bigint NOT NULL PRIMARY KEY);
CREATE TABLE pack_state (tid bigint NOT NULL, zoid bigint NOT NULL, PRIMARY KEY (tid, zoid));
CREATE TABLE pack_state_tid (tid bigint NOT NULL PRIMARY KEY);
{_COMMON}
"""

#: The names that a ZODB's schema may have. Other tables and sequences in it are not ours, and none of our business.
NAMES = frozenset(
    {
        "blob_chunk", "commit_lock", "commit_row_lock", "current_object", "current_object_state", "object_ref",
        "object_refs_added", "object_state", "pack_object", "pack_state", "pack_state_tid", "rs_commit", "rs_meta",
        "rs_pack_list", "rs_pack_run", "rs_removed", "transaction", "zoid_seq",
    }
)  # fmt: skip

# RelStorage makes the trigger's function anew when it does not know the text, so ours has a name of its own. A large
# object goes with the last row that has it: an undo makes another row for the same one. The table is named with its
# schema, because who deletes the row may have another search_path.
BLOB_TRIGGER = Function(
    "rs_unlink_blob",
    "",
    "trigger",
    """
DECLARE
    v_shared boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I.blob_chunk WHERE chunk = $1 AND ctid <> $2)', tg_table_schema)
        INTO v_shared USING old.chunk, old.ctid;
    IF NOT v_shared THEN
        PERFORM lo_unlink(old.chunk);
    END IF;
    RETURN old;
END""",
)

#: Ours, and what older versions of RelStorage lack.
_ADDED = """
CREATE TABLE IF NOT EXISTS rs_meta (name text NOT NULL PRIMARY KEY, value text);
CREATE TABLE IF NOT EXISTS rs_removed (
    tid bigint NOT NULL, zoid bigint NOT NULL, others bigint[], PRIMARY KEY (tid, zoid));
CREATE TABLE IF NOT EXISTS rs_pack_run (
    run bigint NOT NULL PRIMARY KEY, pack_tid bigint NOT NULL, view_tid bigint NOT NULL, phase text NOT NULL,
    collect smallint NOT NULL, started bigint NOT NULL, removed bigint NOT NULL, checked_tid bigint NOT NULL);
CREATE TABLE IF NOT EXISTS rs_pack_list (
    run bigint NOT NULL, whole smallint NOT NULL, first_oid bigint NOT NULL, last_oid bigint NOT NULL,
    last_tid bigint NOT NULL, oids bigint[] NOT NULL, tids bigint[] NOT NULL,
    PRIMARY KEY (run, whole, last_oid, last_tid));
ALTER TABLE rs_removed ALTER COLUMN others SET STORAGE EXTERNAL;
ALTER TABLE rs_pack_list ALTER COLUMN oids SET STORAGE EXTERNAL, ALTER COLUMN tids SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS rs_commit (session bigint NOT NULL PRIMARY KEY, serial bigint NOT NULL, tid bigint NOT NULL);
CREATE TABLE IF NOT EXISTS commit_row_lock (tid bigint NOT NULL PRIMARY KEY);
INSERT INTO commit_row_lock (tid) VALUES (0) ON CONFLICT DO NOTHING;
DROP TABLE IF EXISTS commit_lock;
CREATE SEQUENCE IF NOT EXISTS zoid_seq;
CREATE INDEX IF NOT EXISTS pack_object_keep_false ON pack_object (zoid) WHERE keep = false;
CREATE INDEX IF NOT EXISTS pack_object_keep_true ON pack_object (visited) WHERE keep = true;
CREATE INDEX IF NOT EXISTS blob_chunk_loid ON blob_chunk (chunk);
"""

_ADDED_PRESERVING = """
DO $$ BEGIN
    IF EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = '"transaction"'::regclass AND attname = 'empty') THEN
        ALTER TABLE "transaction" RENAME COLUMN empty TO is_empty;
    END IF;
END $$;
INSERT INTO "transaction" (tid, username, description)
    VALUES (0, 'system', 'special transaction for object creation') ON CONFLICT DO NOTHING;
CREATE OR REPLACE VIEW current_object_state AS
    SELECT zoid, tid, state FROM object_state JOIN current_object USING (zoid, tid);
"""

# RelStorage 2 named its primary keys otherwise.
_RENAMED_KEYS = """
DO $$
DECLARE
    v record;
BEGIN
    FOR v IN
        SELECT r.relname, c.conname, n.name FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid
        JOIN (VALUES ('blob_chunk', 'blob_chunk_pk', 1), ('object_state', 'object_state_pk', 2))
            n (relation, name, columns) ON n.relation = r.relname AND c.conname = r.relname || '_pkey'
                AND cardinality(c.conkey) >= n.columns
        WHERE r.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()) AND c.contype = 'p'
    LOOP
        EXECUTE format('ALTER TABLE %I RENAME CONSTRAINT %I TO %I', v.relname, v.conname, v.name);
    END LOOP;
END $$;
"""

# RelStorage 2 cut a blob of more than 2 GiB into several large objects. Revisions may share them since an undo, so each
# large object is completed once, not once for each revision.
_JOINED_BLOBS = """
DO $$
DECLARE
    v_blob record;
    v_rest record;
    v_end bigint;
    v_read bigint;
    v_piece bytea;
BEGIN
    FOR v_blob IN
        SELECT DISTINCT ON (b.chunk) b.zoid, b.tid, b.chunk FROM blob_chunk b WHERE b.chunk_num = 0 AND EXISTS (
            SELECT 1 FROM blob_chunk r WHERE r.zoid = b.zoid AND r.tid = b.tid AND r.chunk_num > 0)
    LOOP
        v_end := lo_lseek64(lo_open(v_blob.chunk, 262144), 0, 2);
        FOR v_rest IN
            SELECT chunk FROM blob_chunk WHERE zoid = v_blob.zoid AND tid = v_blob.tid AND chunk_num > 0
            ORDER BY chunk_num
        LOOP
            v_read := 0;
            LOOP
                v_piece := lo_get(v_rest.chunk, v_read, 1048576);
                EXIT WHEN octet_length(v_piece) = 0;
                PERFORM lo_put(v_blob.chunk, v_end, v_piece);
                v_end := v_end + octet_length(v_piece);
                v_read := v_read + octet_length(v_piece);
            END LOOP;
        END LOOP;
    END LOOP;
    DELETE FROM blob_chunk WHERE chunk_num > 0;
END $$;
"""

_TRIGGER = f"""
DROP TRIGGER IF EXISTS blob_chunk_delete ON blob_chunk;
CREATE TRIGGER blob_chunk_delete BEFORE DELETE ON blob_chunk
    FOR EACH ROW EXECUTE PROCEDURE {BLOB_TRIGGER.name}();
"""


def creation(keep_history: bool) -> str:
    """Return the statements that make RelStorage's tables in an empty schema."""
    return HISTORY_PRESERVING if keep_history else HISTORY_FREE


def migration(keep_history: bool) -> str:
    """Return the statements that bring a database of RelStorage 2.1 to 4.3, or a new one, to our schema."""
    added = _ADDED + (_ADDED_PRESERVING + _RENAMED_KEYS if keep_history else _RENAMED_KEYS)
    return "\n".join((added, BLOB_TRIGGER.create() + ";", _TRIGGER, _JOINED_BLOBS))
