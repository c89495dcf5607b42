"""What PostgreSQL writes differently from the standard statements.

Every parameter says its type, so that no driver has to guess it, and what the core does many times is done in one
statement that takes a list for each parameter.
"""

from __future__ import annotations

from functools import cache

from relstorage.sql import Dialect, Statement, Statements
from relstorage.sql.contract import FEW_CHANGES, READ_AHEAD_BYTES
from relstorage.sql.standard import Texts, texts
from relstorage_postgresql.functions import functions

_TYPES = {
    "blobs": "oid",
    "chunk": "oid",
    "description": "bytea",
    "early": "boolean",
    "extension": "bytea",
    "in_table": "boolean",
    "name": "text",
    "new_states": "bytea",
    "packed": "boolean",
    "phase": "text",
    "piece": "bytea",
    "state": "bytea",
    "states": "bytea",
    "username": "bytea",
    "value": "text",
}


def type_of(parameter: str) -> str:
    """Return the type of a parameter: object ids and tids are ``bigint``, and so is what is not listed."""
    return _TYPES.get(parameter, "bigint")


def _placeholder(name: str, position: int) -> str:
    return f"${position}::{type_of(name)}"


def _list_placeholder(name: str, position: int) -> str:
    return f"${position}::{type_of(name)}[]"


def _unnest(names: tuple[str, ...], placeholders: tuple[str, ...]) -> str:
    return f"unnest({', '.join(placeholders)}) AS each ({', '.join(names)})"


DIALECT = Dialect(placeholder=_placeholder, list_placeholder=_list_placeholder, each_of=_unnest)

_note_removed = """
    INSERT INTO rs_removed (tid, zoid) SELECT each.tid, each.oid FROM EACH_OF(:oid, :tid) ON CONFLICT DO NOTHING"""

# Without the limit the server takes a third of all objects for changed, unless it makes a plan for each tid anew, which
# takes three times as long as the answer.
_few_removals = f"(SELECT zoid, tid FROM rs_removed WHERE tid > :tid ORDER BY tid LIMIT {FEW_CHANGES})"

_SHARED: Texts = {
    "note_removed": _note_removed,
    "pack_add_garbage": """
        INSERT INTO rs_pack_garbage (run, zoid, tid, whole)
        SELECT each.run, each.zoid, each.tid, each.whole FROM EACH_OF(:run, :zoid, :tid, :whole)""",
    # A comparison of rows, for which the primary key is searched once.
    "pack_done": """
        DELETE FROM rs_pack_garbage WHERE run = :run AND (zoid, tid) <= (:oid, :tid)""",
}


def _near(relation: str) -> str:
    # The server knows the size of a state without reading it.
    return f"""
        SELECT zoid, state, tid FROM (
            SELECT zoid, state, tid, sum(state_size) OVER (ORDER BY zoid ROWS UNBOUNDED PRECEDING) AS size
            FROM {relation} WHERE zoid >= :first AND zoid <= :last) AS near
        WHERE size <= {READ_AHEAD_BYTES} ORDER BY zoid"""


_FREE: Texts = {
    "few_changes_since": (
        f"""
        (SELECT zoid, tid FROM object_state WHERE tid > :tid AND tid <> :own ORDER BY tid LIMIT {FEW_CHANGES})
        UNION ALL {_few_removals}""",
    ),
    "current_range": _near("object_state"),
    "newest_tid": """
        SELECT greatest(
            coalesce((SELECT max(tid) FROM object_state), 0), coalesce((SELECT max(tid) FROM rs_removed), 0))""",
    "clear_blobs": (
        "DELETE FROM blob_chunk USING EACH_OF(:oid, :tid) WHERE zoid = each.oid AND blob_chunk.tid <= each.tid",
    ),
    "put": (
        """
        INSERT INTO object_state (zoid, tid, state_size, state)
        SELECT each.oid, each.tid, coalesce(octet_length(each.state), 0), each.state
        FROM EACH_OF(:oid, :tid, :state)
        ON CONFLICT (zoid) DO UPDATE
        SET tid = excluded.tid, state_size = excluded.state_size, state = excluded.state""",
    ),
    "put_revision": (
        """
        INSERT INTO object_state (zoid, tid, state_size, state)
        SELECT each.oid, each.tid, coalesce(octet_length(each.state), 0), each.state
        FROM EACH_OF(:oid, :tid, :state)
        ON CONFLICT (zoid) DO UPDATE
        SET tid = excluded.tid, state_size = excluded.state_size, state = excluded.state
        WHERE excluded.tid >= object_state.tid""",
    ),
    "remove": (
        "DELETE FROM object_state USING EACH_OF(:oid, :tid) WHERE zoid = each.oid AND object_state.tid <= each.tid",
        _note_removed,
    ),
    "remove_object": (
        "DELETE FROM object_state USING EACH_OF(:oid, :tid) WHERE zoid = each.oid AND object_state.tid = each.tid",
    ),
    "pack_finish": (
        """
        DELETE FROM object_refs_added WHERE tid <= :tid
        AND NOT EXISTS (SELECT 1 FROM object_state WHERE object_state.zoid = object_refs_added.zoid)""",
        """
        DELETE FROM object_ref WHERE tid <= :tid
        AND NOT EXISTS (SELECT 1 FROM object_state WHERE object_state.zoid = object_ref.zoid)""",
    ),
}

_add_revision = """
    INSERT INTO object_state (zoid, tid, prev_tid, md5, state_size, state)
    SELECT each.oid, each.tid,
        coalesce((SELECT max(o.tid) FROM object_state o WHERE o.zoid = each.oid AND o.tid < each.tid), 0),
        md5(each.state), coalesce(octet_length(each.state), 0), each.state
    FROM EACH_OF(:oid, :tid, :state)"""
_raise_current = """
    INSERT INTO current_object (zoid, tid) SELECT each.oid, each.tid FROM EACH_OF(:oid, :tid)
    ON CONFLICT (zoid) DO UPDATE SET tid = excluded.tid WHERE excluded.tid > current_object.tid"""
_is_current = "EXISTS (SELECT 1 FROM current_object c WHERE c.zoid = each.oid AND c.tid = each.tid)"

_PRESERVING: Texts = {
    "few_changes_since": (
        f"""
        (SELECT current_object.zoid, few.tid FROM (
            SELECT tid FROM "transaction" WHERE tid > :tid AND tid <> :own ORDER BY tid LIMIT {FEW_CHANGES}) AS few
        LEFT JOIN current_object ON current_object.tid = few.tid LIMIT {FEW_CHANGES})
        UNION ALL {_few_removals}""",
    ),
    "current_range": _near("object_state JOIN current_object USING (zoid, tid)"),
    # The newest revision through the index of object_state costs one look-up less than the view over both tables.
    "current_state": "SELECT state, tid FROM object_state WHERE zoid = :oid ORDER BY tid DESC LIMIT 1",
    "newest_tid": """
        SELECT greatest(
            coalesce((SELECT max(tid) FROM "transaction"), 0), coalesce((SELECT max(tid) FROM rs_removed), 0))""",
    "put": (
        _add_revision,
        """
        INSERT INTO current_object (zoid, tid) SELECT each.oid, each.tid FROM EACH_OF(:oid, :tid)
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
        """
        INSERT INTO object_state (zoid, tid, prev_tid, md5, state_size, state)
        SELECT each.oid, each.tid,
            coalesce((SELECT max(o.tid) FROM object_state o WHERE o.zoid = each.oid AND o.tid < each.tid), 0),
            NULL, 0, NULL
        FROM EACH_OF(:oid, :tid)
        ON CONFLICT (zoid, tid) DO UPDATE SET md5 = NULL, state_size = 0, state = NULL""",
        _raise_current,
    ),
    # The constraints want current_object to go first. Of the blobs, the revisions' own foreign key takes care.
    "remove_object": (
        "DELETE FROM current_object USING EACH_OF(:oid, :tid) WHERE zoid = each.oid AND current_object.tid = each.tid",
        """
        DELETE FROM object_state USING EACH_OF(:oid, :tid) WHERE zoid = each.oid
        AND NOT EXISTS (SELECT 1 FROM current_object c WHERE c.zoid = each.oid)""",
    ),
    "remove_revision": (
        f"""
        UPDATE object_state SET prev_tid = 0 FROM EACH_OF(:oid, :tid)
        WHERE zoid = each.oid AND prev_tid = each.tid AND NOT {_is_current}""",
        f"""
        DELETE FROM object_state USING EACH_OF(:oid, :tid)
        WHERE zoid = each.oid AND object_state.tid = each.tid AND NOT {_is_current}""",
    ),
    "pack_finish": (
        """
        DELETE FROM "transaction" WHERE tid <= :tid AND tid > :start AND packed = TRUE
        AND NOT EXISTS (SELECT 1 FROM object_state WHERE object_state.tid = "transaction".tid)
        AND NOT EXISTS (SELECT 1 FROM object_state WHERE object_state.prev_tid = "transaction".tid)
        AND tid < (SELECT max(tid) FROM "transaction")""",
        """
        DELETE FROM object_refs_added WHERE tid <= :tid AND tid > :start
        AND NOT EXISTS (SELECT 1 FROM "transaction" WHERE "transaction".tid = object_refs_added.tid)""",
        """
        DELETE FROM object_ref WHERE tid <= :tid AND tid > :start
        AND NOT EXISTS (SELECT 1 FROM "transaction" WHERE "transaction".tid = object_ref.tid)""",
    ),
}


@cache
def statements(keep_history: bool) -> Statements:
    """Return the statements of a history mode."""
    remove_next = functions(keep_history).remove_next.name
    own: Texts = {
        "pack_remove_next": (
            f"""SELECT entries, objects, last_oid, last_tid
            FROM {remove_next}(:run, :limit, :tid, :after_oid, :after_tid)""",
        ),
    }
    return Statements.render(
        DIALECT, texts(keep_history, {**_SHARED, **own, **(_PRESERVING if keep_history else _FREE)})
    )


@cache
def call(name: str, text: str, parameters: str, columns: str = "", lists: str = "") -> Statement:
    """Return a statement of this backend alone, whose text says ``:name`` for a parameter or a list of them."""
    return DIALECT.render(name, text, tuple(parameters.split()), tuple(columns.split()), lists.split())
