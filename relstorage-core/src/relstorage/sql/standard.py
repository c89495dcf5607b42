"""The statements in the SQL that most databases understand, once per history mode.

The two modes store current objects in different tables. ``_shared`` holds what reads alike once those are named:
``$current`` is the relation of current oid and tid, ``$current_state`` the one that also has the state.

A dialect must offer ``md5_hex(state)``, NULL for NULL, and the tables of this project: ``rs_meta``, ``rs_removed``,
``rs_pack_run``, ``rs_pack_garbage``, as far as it does not override what uses them.
"""

from __future__ import annotations

from collections.abc import Mapping

Texts = dict[str, str | tuple[str, ...]]

_note_removed = "INSERT INTO rs_removed (tid, zoid) VALUES (:tid, :oid) ON CONFLICT (tid, zoid) DO NOTHING"

_shared: Texts = {
    "current_state": "SELECT state, tid FROM $current_state WHERE zoid = :oid",
    "current_states": "SELECT zoid, state, tid FROM $current_state WHERE zoid ANY_OF(:oids)",
    "current_tid": "SELECT tid FROM $current WHERE zoid = :oid",
    "current_tids": "SELECT zoid, tid FROM $current WHERE zoid ANY_OF(:oids)",
    "current_records": "SELECT zoid, state, tid FROM $current_state WHERE zoid >= :oid ORDER BY zoid",
    "current_range": "SELECT zoid, state, tid FROM $current_state WHERE zoid >= :first AND zoid <= :last",
    "object_count": "SELECT count(*) FROM $current",
    "revision_state": "SELECT state FROM object_state WHERE zoid = :oid AND tid = :tid",
    "following_tid": "SELECT min(tid) FROM object_state WHERE zoid = :oid AND tid > :tid",
    "few_changes_since": (),
    "removals_since": """
        SELECT 1 WHERE EXISTS (SELECT 1 FROM rs_removed WHERE tid > :tid)
        OR EXISTS (SELECT 1 FROM rs_pack_run WHERE phase = 'sweeping')""",
    "removed_among": """
        SELECT zoid, 0 FROM rs_removed WHERE tid > :tid AND (zoid = -1 OR zoid ANY_OF(:oids))
        UNION ALL
        SELECT zoid, 1 FROM rs_pack_garbage
        WHERE zoid ANY_OF(:oids) AND whole = 1 AND run IN (SELECT run FROM rs_pack_run WHERE phase = 'sweeping')""",
    "records_of": "SELECT zoid, state FROM object_state WHERE tid = :tid ORDER BY zoid",
    "note_removed": _note_removed,
    "blob_chunk": "SELECT chunk FROM blob_chunk WHERE zoid = :oid AND tid = :tid AND chunk_num = :number",
    "has_blob": "SELECT tid FROM blob_chunk WHERE zoid = :oid AND tid = :tid AND chunk_num = 0",
    "blob_revisions": "SELECT DISTINCT zoid, tid FROM blob_chunk ORDER BY zoid, tid",
    "all_revisions": "SELECT zoid, tid, state FROM object_state ORDER BY zoid, tid",
    "pack_objects": (),
    "pack_states": (),
    "object_revisions": "SELECT zoid, tid, state FROM object_state WHERE zoid ANY_OF(:oids)",
    "revision_tids": "SELECT zoid, tid FROM object_state WHERE zoid ANY_OF(:oids)",
    "records_since": "SELECT zoid, tid, state FROM object_state WHERE tid > :tid",
    "pack_begin": """
        INSERT INTO rs_pack_run (run, pack_tid, view_tid, phase, collect, started, removed, checked_tid)
        VALUES (:run, :pack_tid, :view_tid, :phase, :collect, :started, 0, :view_tid)""",
    "pack_found": """
        UPDATE rs_pack_run SET pack_tid = :pack_tid, view_tid = :view_tid, checked_tid = :view_tid WHERE run = :run""",
    "pack_phase": "UPDATE rs_pack_run SET phase = :phase WHERE run = :run",
    "pack_progress": "UPDATE rs_pack_run SET removed = :removed, checked_tid = :checked_tid WHERE run = :run",
    "pack_run": """
        SELECT run, pack_tid, view_tid, phase, collect, started, removed, checked_tid
        FROM rs_pack_run ORDER BY run DESC LIMIT 1""",
    "pack_add_garbage": "INSERT INTO rs_pack_garbage (run, zoid, tid, whole) VALUES (:run, :zoid, :tid, :whole)",
    "pack_add_list": (),
    "pack_garbage": """
        SELECT zoid, tid, whole FROM rs_pack_garbage
        WHERE run = :run ORDER BY zoid, tid LIMIT :limit""",
    "pack_done": (
        "DELETE FROM rs_pack_garbage WHERE run = :run AND (zoid < :oid OR (zoid = :oid AND tid <= :tid))",
    ),
    "pack_is_garbage": "SELECT zoid FROM rs_pack_garbage WHERE run = :run AND whole = 1 AND zoid ANY_OF(:oids)",
    "pack_count_garbage": "SELECT count(*), coalesce(sum(whole), 0) FROM rs_pack_garbage WHERE run = :run",
    "pack_rescue": "DELETE FROM rs_pack_garbage WHERE run = :run AND zoid ANY_OF(:oids)",
    "pack_forget_run": (
        "DELETE FROM rs_pack_garbage WHERE run = :run",
        "DELETE FROM rs_pack_run WHERE run = :run",
    ),
    "pack_remove_next": (),
    "prune_removed": "DELETE FROM rs_removed WHERE tid <= :tid",
    "revision_count": "SELECT count(*) FROM object_state",
    "get_meta": "SELECT value FROM rs_meta WHERE name = :name",
    "set_meta": """
        INSERT INTO rs_meta (name, value) VALUES (:name, :value)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value""",
}

_history_free: Texts = {
    "state_before": "SELECT state, tid FROM object_state WHERE zoid = :oid AND tid < :tid",
    "newest_transaction": "SELECT coalesce(max(tid), 0) FROM object_state",
    "object_facts": "SELECT zoid, tid, CASE WHEN state IS NULL THEN 0 ELSE 1 END FROM object_state ORDER BY zoid",
    "revision_facts": "SELECT zoid, tid, state, state_size, NULL FROM object_state ORDER BY zoid, tid",
    "history": "SELECT tid, '', '', '', state_size FROM object_state WHERE zoid = :oid LIMIT :limit",
    "newest_tid": """
        SELECT max(coalesce((SELECT max(tid) FROM object_state), 0), coalesce((SELECT max(tid) FROM rs_removed), 0))""",
    "changes_since": """
        SELECT zoid, tid FROM object_state WHERE tid > :tid
        UNION ALL
        SELECT zoid, tid FROM rs_removed WHERE tid > :tid
        ORDER BY 2""",
    "transactions_between": """
        SELECT DISTINCT tid, 1, '', '', '' FROM object_state WHERE tid >= :start AND tid <= :stop ORDER BY tid""",
    "undoable_transactions": "SELECT tid, '', '', '' FROM object_state WHERE 0 = 1 AND tid < :tid LIMIT :limit",
    "is_undoable": "SELECT tid FROM object_state WHERE 0 = 1 AND tid = :tid",
    "has_transaction": """
        SELECT tid FROM object_state WHERE tid = :tid UNION SELECT tid FROM rs_removed WHERE tid = :tid""",
    "begin_transaction": (),
    "clear_blobs": ("DELETE FROM blob_chunk WHERE zoid = :oid AND tid <= :tid",),
    # A restored revision that is older than the current one has no place here, nor has its blob.
    "put_blob_chunk": """
        INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk) SELECT :oid, :tid, :number, :chunk
        WHERE NOT EXISTS (SELECT 1 FROM object_state WHERE zoid = :oid AND tid > :tid)""",
    "put": (
        """
        INSERT INTO object_state (zoid, tid, state_size, state)
        VALUES (:oid, :tid, coalesce(length(:state), 0), :state)
        ON CONFLICT (zoid) DO UPDATE
        SET tid = excluded.tid, state_size = excluded.state_size, state = excluded.state""",
    ),
    "put_revision": (
        """
        INSERT INTO object_state (zoid, tid, state_size, state)
        VALUES (:oid, :tid, coalesce(length(:state), 0), :state)
        ON CONFLICT (zoid) DO UPDATE
        SET tid = excluded.tid, state_size = excluded.state_size, state = excluded.state
        WHERE excluded.tid >= object_state.tid""",
    ),
    "remove": (
        "DELETE FROM blob_chunk WHERE zoid = :oid AND tid <= :tid",
        "DELETE FROM object_state WHERE zoid = :oid AND tid <= :tid",
        _note_removed,
    ),
    "copy_blob": "UPDATE blob_chunk SET tid = :tid WHERE zoid = :oid AND tid = :from_tid",
    # No transactions are recorded: all is one window.
    "pack_window": "SELECT CASE WHEN :start < :stop AND :limit > 0 THEN :stop END",
    "pack_seal": (),
    "remove_object": (
        """
        DELETE FROM blob_chunk WHERE zoid = :oid
        AND EXISTS (SELECT 1 FROM object_state WHERE object_state.zoid = :oid AND object_state.tid = :tid)""",
        "DELETE FROM object_state WHERE zoid = :oid AND tid = :tid",
    ),
    "remove_revision": (),
    "pack_finish": (
        "DELETE FROM object_refs_added WHERE tid <= :tid AND zoid NOT IN (SELECT zoid FROM object_state)",
        "DELETE FROM object_ref WHERE tid <= :tid AND zoid NOT IN (SELECT zoid FROM object_state)",
    ),
}

_previous = "coalesce((SELECT max(tid) FROM object_state WHERE zoid = :oid AND tid < :tid), 0)"
_add_revision = f"""
    INSERT INTO object_state (zoid, tid, prev_tid, md5, state_size, state)
    VALUES (:oid, :tid, {_previous}, md5_hex(:state), coalesce(length(:state), 0), :state)"""
_raise_current = """
    INSERT INTO current_object (zoid, tid) VALUES (:oid, :tid)
    ON CONFLICT (zoid) DO UPDATE SET tid = excluded.tid WHERE excluded.tid > current_object.tid"""
_is_current = "EXISTS (SELECT 1 FROM current_object WHERE current_object.zoid = :oid AND current_object.tid = :tid)"

_history_preserving: Texts = {
    "newest_transaction": 'SELECT coalesce(max(tid), 0) FROM "transaction"',
    "object_facts": """
        SELECT current_object.zoid, current_object.tid,
        CASE WHEN object_state.zoid IS NULL THEN NULL WHEN object_state.state IS NULL THEN 0 ELSE 1 END
        FROM current_object LEFT JOIN object_state
        ON object_state.zoid = current_object.zoid AND object_state.tid = current_object.tid
        ORDER BY current_object.zoid""",
    "revision_facts": "SELECT zoid, tid, state, state_size, md5 FROM object_state ORDER BY zoid, tid",
    "state_before": """
        SELECT state, tid FROM object_state WHERE zoid = :oid AND tid < :tid ORDER BY tid DESC LIMIT 1""",
    "history": """
        SELECT tid, username, description, extension, state_size
        FROM object_state JOIN "transaction" USING (tid)
        WHERE zoid = :oid ORDER BY tid DESC LIMIT :limit""",
    "newest_tid": """
        SELECT max(
            coalesce((SELECT max(tid) FROM "transaction"), 0),
            coalesce((SELECT max(tid) FROM rs_removed), 0))""",
    "changes_since": """
        SELECT current_object.zoid, "transaction".tid
        FROM "transaction" LEFT JOIN current_object ON current_object.tid = "transaction".tid
        WHERE "transaction".tid > :tid
        UNION ALL
        SELECT zoid, tid FROM rs_removed WHERE tid > :tid
        ORDER BY 2""",
    "transactions_between": """
        SELECT tid, packed, username, description, extension FROM "transaction"
        WHERE tid > 0 AND tid >= :start AND tid <= :stop ORDER BY tid""",
    "undoable_transactions": """
        SELECT tid, username, description, extension FROM "transaction"
        WHERE packed = FALSE AND tid > 0 AND tid < :tid ORDER BY tid DESC LIMIT :limit""",
    "is_undoable": 'SELECT tid FROM "transaction" WHERE tid = :tid AND tid > 0 AND packed = FALSE',
    "has_transaction": 'SELECT tid FROM "transaction" WHERE tid = :tid',
    "begin_transaction": (
        """
        INSERT INTO "transaction" (tid, packed, username, description, extension)
        VALUES (:tid, :packed, :username, :description, :extension)""",
    ),
    "clear_blobs": (),
    "put_blob_chunk": "INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk) VALUES (:oid, :tid, :number, :chunk)",
    "put": (
        _add_revision,
        """
        INSERT INTO current_object (zoid, tid) VALUES (:oid, :tid)
        ON CONFLICT (zoid) DO UPDATE SET tid = excluded.tid""",
    ),
    "put_revision": (
        f"""{_add_revision}
        ON CONFLICT (zoid, tid) DO UPDATE
        SET prev_tid = excluded.prev_tid, md5 = excluded.md5,
            state_size = excluded.state_size, state = excluded.state""",
        _raise_current,
    ),
    "remove": (
        f"""
        INSERT INTO object_state (zoid, tid, prev_tid, md5, state_size, state)
        VALUES (:oid, :tid, {_previous}, NULL, 0, NULL)
        ON CONFLICT (zoid, tid) DO UPDATE SET md5 = NULL, state_size = 0, state = NULL""",
        _raise_current,
    ),
    "copy_blob": """
        INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk)
        SELECT zoid, :tid, chunk_num, chunk FROM blob_chunk WHERE zoid = :oid AND tid = :from_tid""",
    "pack_window": """
        SELECT max(tid) FROM (
        SELECT tid FROM "transaction" WHERE tid > :start AND tid <= :stop ORDER BY tid LIMIT :limit) AS part""",
    "pack_seal": ('UPDATE "transaction" SET packed = TRUE WHERE tid <= :tid AND tid > :start AND packed = FALSE',),
    "remove_object": (
        f"DELETE FROM blob_chunk WHERE zoid = :oid AND {_is_current}",
        f"DELETE FROM object_state WHERE zoid = :oid AND {_is_current}",
        "DELETE FROM current_object WHERE zoid = :oid AND tid = :tid",
    ),
    "remove_revision": (
        f"DELETE FROM blob_chunk WHERE zoid = :oid AND tid = :tid AND NOT {_is_current}",
        f"UPDATE object_state SET prev_tid = 0 WHERE zoid = :oid AND prev_tid = :tid AND NOT {_is_current}",
        f"DELETE FROM object_state WHERE zoid = :oid AND tid = :tid AND NOT {_is_current}",
    ),
    "pack_finish": (
        """
        DELETE FROM "transaction" WHERE tid <= :tid AND tid > :start AND packed = TRUE
        AND NOT EXISTS (SELECT 1 FROM object_state WHERE object_state.tid = "transaction".tid)
        AND tid < (SELECT max(tid) FROM "transaction")""",
        """
        DELETE FROM object_refs_added WHERE tid <= :tid AND tid > :start AND tid NOT IN (SELECT tid FROM
        "transaction")""",
        'DELETE FROM object_ref WHERE tid <= :tid AND tid > :start AND tid NOT IN (SELECT tid FROM "transaction")',
    ),
}


def texts(keep_history: bool, overrides: Mapping[str, str | tuple[str, ...]] | None = None) -> Texts:
    """Return the texts of a history mode, with the dialect's own where it overrides them by name."""
    relations = (
        {"$current_state": "current_object_state", "$current": "current_object"}
        if keep_history
        else {"$current_state": "object_state", "$current": "object_state"}
    )
    merged: Texts = {}
    for name, text in (*_shared.items(), *(_history_preserving if keep_history else _history_free).items()):
        if isinstance(text, str):
            for variable, relation in relations.items():
                text = text.replace(variable, relation)
        merged[name] = text
    merged.update(overrides or {})
    return merged
