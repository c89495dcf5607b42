"""What PostgreSQL writes differently from the standard statements.

Every parameter says its type, so that no driver has to guess it, and what the core does many times is done in one
statement that takes a list for each parameter.
"""

from __future__ import annotations

from functools import cache

from relstorage.sql import Dialect, Statement, Statements
from relstorage.sql.contract import FEW_CHANGES, READ_AHEAD_BYTES
from relstorage.sql.standard import Texts, texts
from relstorage_postgresql.functions import ENTRIES, functions

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
    "zeros": "bytea",
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

#: A row of rs_removed has one object, and the others that were removed with it.
_all_of = "unnest(array_prepend(zoid, others))"

# Without the limit the server takes a third of all objects for changed, unless it makes a plan for each tid anew, which
# takes three times as long as the answer.
_few_removals = f"(SELECT {_all_of} AS zoid, tid FROM rs_removed WHERE tid > :tid ORDER BY tid LIMIT {FEW_CHANGES})"

def _listed(run: str) -> str:
    """Return the join of what is asked for with the one row of a run's list that may have it, as a whole object."""
    return f"""
        CROSS JOIN LATERAL (
            SELECT oids FROM rs_pack_list WHERE run = {run} AND whole = 1 AND last_oid >= asked.zoid
            ORDER BY last_oid LIMIT 1) AS near"""


#: Its oids are in ascending order.
_is_listed = "near.oids[width_bucket(asked.zoid, near.oids)] = asked.zoid"

_SHARED: Texts = {
    "note_removed": _note_removed,
    "removed_among": f"""
        WITH asked AS MATERIALIZED (SELECT unnest(:oids) AS zoid)
        SELECT zoid, 0 FROM (SELECT {_all_of} AS zoid, tid FROM rs_removed WHERE tid > :tid) AS removed
        WHERE zoid = -1 OR zoid IN (SELECT zoid FROM asked)
        UNION ALL
        SELECT asked.zoid, 1 FROM rs_pack_run CROSS JOIN asked {_listed("rs_pack_run.run")}
        WHERE rs_pack_run.phase = 'sweeping' AND {_is_listed}""",
    "pack_add_garbage": """
        INSERT INTO rs_pack_list (run, whole, first_oid, last_oid, last_tid, oids, tids)
        VALUES (:run, :whole, :zoid, :zoid, :tid, ARRAY[:zoid], ARRAY[:tid])""",
    "pack_add_list": (
        f"""
        INSERT INTO rs_pack_list (run, whole, first_oid, last_oid, last_tid, oids, tids)
        SELECT :run, :whole, oids[1], oids[cardinality(oids)], tids[cardinality(tids)], oids, tids
        FROM (
            SELECT oids[start : start + {ENTRIES - 1}] AS oids, tids[start : start + {ENTRIES - 1}] AS tids
            FROM (SELECT :oids AS oids, :tids AS tids OFFSET 0) AS every,
                generate_series(1, cardinality(oids), {ENTRIES}) AS start OFFSET 0) AS part""",
    ),
    "pack_garbage": """
        SELECT each.zoid, each.tid, whole FROM rs_pack_list, unnest(oids, tids) AS each (zoid, tid)
        WHERE run = :run ORDER BY each.zoid, each.tid LIMIT :limit""",
    "pack_done": (),
    "pack_is_garbage": f"""
        SELECT asked.zoid FROM unnest(:oids) AS asked (zoid) {_listed(":run")} WHERE {_is_listed}""",
    "pack_count_garbage": """
        SELECT coalesce(sum(cardinality(oids)), 0)::bigint,
            coalesce(sum(cardinality(oids)) FILTER (WHERE whole = 1), 0)::bigint
        FROM rs_pack_list WHERE run = :run""",
    # A row keeps its bounds, also when nothing is left in it.
    "pack_rescue": """
        WITH asked AS MATERIALIZED (SELECT unnest(:oids) AS zoid)
        UPDATE rs_pack_list SET (oids, tids) = (
            SELECT coalesce(array_agg(each.zoid ORDER BY place), '{}'),
                coalesce(array_agg(each.tid ORDER BY place), '{}')
            FROM unnest(oids, tids) WITH ORDINALITY AS each (zoid, tid, place)
            WHERE NOT EXISTS (SELECT 1 FROM asked WHERE asked.zoid = each.zoid))
        WHERE run = :run AND EXISTS (SELECT 1 FROM asked WHERE asked.zoid BETWEEN first_oid AND last_oid)""",
    "pack_forget_run": (
        "DELETE FROM rs_pack_list WHERE run = :run",
        "DELETE FROM rs_pack_run WHERE run = :run",
    ),
}


def _near(relation: str) -> str:
    # The server knows the size of a state without reading it.
    return f"""
        SELECT zoid, state, tid FROM (
            SELECT zoid, state, tid, sum(state_size) OVER (ORDER BY zoid ROWS UNBOUNDED PRECEDING) AS size
            FROM {relation} WHERE zoid >= :first AND zoid <= :last) AS near
        WHERE size <= {READ_AHEAD_BYTES} ORDER BY zoid"""


# What has no bytes with which all oids begin refers to no object, however it is damaged: possible_references would find
# none. What does not begin as both pickles of today's protocols do may have its oids as text. The rest are references
# that lead nowhere, which a pack reports.
_MAY_REFER = r"""
    octet_length(state) > 2000 OR substr(state, octet_length(state)) <> '\x2e'
    OR substr(state, 1, 1) <> '\x80' OR position('\x2e80'::bytea IN state) = 0
    OR position(:zeros IN state) > 0
    OR position('\x51'::bytea IN state) > 0
        AND (position('\x4308'::bytea IN state) > 0 OR position('\x5508'::bytea IN state) > 0)"""


def _packed(source: str) -> tuple[str]:
    """Return the statement that makes one value of zoid, tid and size of the rows of a query."""
    return (f"SELECT string_agg(int8send(zoid) || int8send(tid) || int8send(size), '') FROM ({source}) AS part",)


_FREE: Texts = {
    "pack_objects": _packed(
        """SELECT zoid, tid, coalesce(octet_length(state), 0)::bigint AS size FROM object_state
        WHERE zoid > :oid ORDER BY zoid LIMIT :limit"""
    ),
    "pack_states": (
        f"""SELECT zoid, tid, state FROM object_state
        WHERE coalesce(octet_length(state), 0) = 0 OR {_MAY_REFER} ORDER BY zoid""",
    ),
    "changes_since": f"""
        SELECT zoid, tid FROM object_state WHERE tid > :tid
        UNION ALL SELECT {_all_of}, tid FROM rs_removed WHERE tid > :tid
        ORDER BY 2""",
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
    # The limit is one of revisions, so that no more than these must be looked at to find the last object.
    "pack_objects": _packed(
        """SELECT zoid, max(tid) AS tid, sum(coalesce(octet_length(state), 0)) AS size FROM object_state
        WHERE zoid > :oid AND zoid <= (
            SELECT max(zoid) FROM (
                SELECT zoid FROM object_state WHERE zoid > :oid ORDER BY zoid LIMIT :limit) AS next)
        GROUP BY zoid ORDER BY zoid"""
    ),
    "pack_states": (
        f"""SELECT zoid, tid, state FROM (
            SELECT zoid, tid, state, count(*) OVER (PARTITION BY zoid) AS revisions FROM object_state) AS every
        WHERE revisions > 1 OR coalesce(octet_length(state), 0) = 0 OR {_MAY_REFER} ORDER BY zoid, tid""",
    ),
    "changes_since": f"""
        SELECT current_object.zoid, "transaction".tid
        FROM "transaction" LEFT JOIN current_object ON current_object.tid = "transaction".tid
        WHERE "transaction".tid > :tid
        UNION ALL SELECT {_all_of}, tid FROM rs_removed WHERE tid > :tid
        ORDER BY 2""",
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
            f"SELECT entries, objects FROM {remove_next}(:run, :limit)",
        ),
    }
    return Statements.render(
        DIALECT, texts(keep_history, {**_SHARED, **own, **(_PRESERVING if keep_history else _FREE)})
    )


@cache
def call(name: str, text: str, parameters: str, columns: str = "", lists: str = "") -> Statement:
    """Return a statement of this backend alone, whose text says ``:name`` for a parameter or a list of them."""
    return DIALECT.render(name, text, tuple(parameters.split()), tuple(columns.split()), lists.split())
