"""What runs inside the server: one function call for a vote, one for a finish, so that each takes one round trip.

A function's name ends with a digest of its text. Two versions of this distribution thus work on one database at the
same time, each with its own functions; an upgrade needs no moment at which all processes stop.

Locks, all of them held until the end of a transaction, so that any pooler may stand between:

- ``COMMIT``: who has it chooses the next tid and makes records current. Nothing else is waited for while it is held.
- ``DRAIN``: each transaction holds it shared from its vote to its end; who has it alone knows that nobody is between.
- ``PACK``, ``SCHEMA`` and ``OIDS``: one pack, one migration, one reservation of object ids at a time.

Their keys are pairs: the oid of the schema's table ``rs_meta``, which no other schema shares, and one of these numbers.
Rows are locked after ``DRAIN`` and before ``COMMIT``, in the order of their oids, whether to be changed or only to stay
as they are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property

COMMIT, DRAIN, PACK, SCHEMA, OIDS = 1, 2, 3, 4, 5

#: The first half of the key of every lock.
LOCK_CLASS = "'rs_meta'::regclass::oid::int4"

#: How many entries of a pack's list one row has: what one is looked up in, and what goes at once.
ENTRIES = 500

#: How the staged records are kept from vote to finish: a cursor that holds them as its parameters.
CURSOR = "rs_staged"


# Each statement is planned once in a session. Otherwise the server plans most of them at every call, because it takes
# the plan for a list of one to be better than the one for any list, which costs more than the statement itself.
_SETTINGS = "SET plan_cache_mode = force_generic_plan"


@dataclass(frozen=True)
class Function:
    """A function of the server."""

    purpose: str
    arguments: str
    returns: str
    body: str

    @cached_property
    def name(self) -> str:
        """Return the name, which changes with the text."""
        text = "\0".join((self.arguments, self.returns, _SETTINGS, self.body))
        return f"{self.purpose}_{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def create(self) -> str:
        """Return the statement that makes it."""
        return (
            f"CREATE OR REPLACE FUNCTION {self.name} ({self.arguments}) RETURNS {self.returns} LANGUAGE plpgsql "
            f"{_SETTINGS} AS $rs${self.body}$rs$"
        )


# A tid is a TimeStamp: see relstorage.ids. The fraction of the minute is in units of 60 / 2**32 seconds.
_CLOCK = """
    v_clock := clock_timestamp() AT TIME ZONE 'UTC';
    v_tid := ((((((date_part('year', v_clock) - 1900) * 12 + date_part('month', v_clock) - 1) * 31
        + date_part('day', v_clock) - 1) * 24 + date_part('hour', v_clock)) * 60
        + date_part('minute', v_clock))::bigint << 32)
        + trunc(date_part('second', v_clock) / (60.0::float8 / 4294967296.0::float8))::bigint;"""

_CHOOSE_TID = f"""
    PERFORM pg_advisory_xact_lock({LOCK_CLASS}, {COMMIT});{_CLOCK}
    v_tid := greatest(v_tid, 1 + greatest(
        (SELECT max(tid) FROM $transactions), (SELECT max(tid) FROM rs_removed)));"""


def _vote(current: str, states_apart: bool, forget_blobs: str) -> str:
    """Return the body: lock in the order of oids, return what is not as expected, keep the staged records.

    Rows are (kind, zoid, tid, state). The last is (0 or, if objects were removed since the view, 1; the server's
    process; the transaction's id; NULL). Kind 2 is a record that was not made from the current revision, kind 3 an
    object that had to stay as it was.
    """

    def differing(kind: int, source: str, lock: str, condition: str) -> str:
        rows = f"""
        FROM {source} AS u (zoid, base) LEFT JOIN LATERAL (
            SELECT c.* FROM {current} c WHERE c.zoid = u.zoid FOR {lock}) o ON TRUE
        WHERE {condition}"""
        if kind != 2:
            return f"RETURN QUERY SELECT {kind}, u.zoid, o.tid, NULL::bytea {rows};"
        if not states_apart:
            return f"RETURN QUERY SELECT {kind}, u.zoid, o.tid, CASE WHEN o.tid IS NOT NULL THEN o.state END {rows};"
        # Who waited for a row gets its newest version, but of other tables what was there before: a question of its own
        # sees the state that the other transaction has committed meanwhile.
        return f"""
        FOR v_found IN SELECT u.zoid, o.tid {rows} LOOP
            RETURN QUERY SELECT {kind}, v_found.zoid, v_found.tid,
                (SELECT s.state FROM object_state s WHERE s.zoid = v_found.zoid AND s.tid = v_found.tid);
        END LOOP;"""

    changed = "o.tid IS DISTINCT FROM u.base"
    return f"""
#variable_conflict use_column
DECLARE
    v_staged refcursor := '{CURSOR}';
    v_run record;
    v_found record;
    v_removals boolean;
BEGIN
    -- Here, because a statement of its own takes longer.
    PERFORM set_config('lock_timeout', p_timeout::text, true);
    PERFORM pg_advisory_xact_lock_shared({LOCK_CLASS}, {DRAIN});
    IF cardinality(p_read) = 0 THEN
        {differing(2, "unnest(p_changed, p_bases)", "NO KEY UPDATE", changed)}
    ELSE
        -- Neighbours that want the same kind of lock are locked together.
        FOR v_run IN
            SELECT to_stay, array_agg(one.zoid ORDER BY one.zoid) AS zoids, array_agg(base ORDER BY one.zoid) AS bases
            FROM (
                SELECT every.*, row_number() OVER (ORDER BY every.zoid)
                    - row_number() OVER (PARTITION BY to_stay ORDER BY every.zoid) AS run
                FROM (
                    SELECT c.zoid, c.base, FALSE AS to_stay FROM unnest(p_changed, p_bases) c (zoid, base)
                    UNION ALL
                    SELECT r.zoid, r.base, TRUE FROM unnest(p_read, p_read_tids) r (zoid, base)) AS every
            ) AS one GROUP BY to_stay, run ORDER BY min(one.zoid)
        LOOP
            IF v_run.to_stay THEN
                {differing(3, "unnest(v_run.zoids, v_run.bases)", "SHARE", changed)}
            ELSE
                {differing(2, "unnest(v_run.zoids, v_run.bases)", "NO KEY UPDATE", changed)}
            END IF;
        END LOOP;
    END IF;
    -- New oids are mostly larger than all there are, which one look into the index tells.
    IF cardinality(p_new) > 0 AND EXISTS (
        SELECT 1 FROM {current} c WHERE c.zoid BETWEEN p_new[1] AND p_new[cardinality(p_new)])
    THEN
        {differing(2, "(SELECT n.zoid, 0::bigint FROM unnest(p_new) n (zoid))", "NO KEY UPDATE", "o.tid IS NOT NULL")}
    END IF;
    IF EXISTS (SELECT 1 FROM blob_chunk) THEN
        {forget_blobs}
    END IF;
    v_removals := EXISTS (SELECT 1 FROM rs_removed r WHERE r.tid > p_view)
        OR EXISTS (SELECT 1 FROM rs_pack_run r WHERE r.phase = 'sweeping');
    IF p_in_table THEN
        OPEN v_staged FOR EXECUTE 'SELECT changed, states, new, new_states FROM pg_temp.rs_staged ORDER BY part';
    ELSE
        OPEN v_staged FOR SELECT p_stored, p_states, p_new, p_new_states;
    END IF;
    RETURN QUERY SELECT v_removals::int, pg_backend_pid()::bigint, txid_current(), NULL::bytea;
END"""


_VOTE_ARGUMENTS = """p_changed bigint[], p_bases bigint[], p_stored bigint[], p_states bytea[], p_new bigint[],
    p_new_states bytea[], p_read bigint[], p_read_tids bigint[], p_view bigint, p_in_table boolean, p_timeout int"""
_VOTE_RETURNS = "TABLE (kind int, zoid bigint, tid bigint, state bytea)"

_FREE_VOTE = _vote("object_state", False, "DELETE FROM blob_chunk b WHERE b.zoid = ANY(p_changed);")
_PRESERVING_VOTE = _vote("current_object", True, "NULL;")

_FINISH = f"""
DECLARE
    v_staged refcursor := '{CURSOR}';
    v_clock timestamp;
    v_tid bigint;
    v_zoids bigint[];
    v_states bytea[];
    v_new bigint[];
    v_new_states bytea[];
    v_rows bigint;
BEGIN
    IF p_early THEN
        -- The lock is not held while the log is written to disk; who called waits for that afterwards.
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;{_CHOOSE_TID}
    $begin
    LOOP
        FETCH v_staged INTO v_zoids, v_states, v_new, v_new_states;
        EXIT WHEN NOT FOUND;
        $move
    END LOOP;
    CLOSE v_staged;
    $removals
    IF cardinality(p_blob_zoids) > 0 THEN
        INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk)
        SELECT b.zoid, v_tid, 0, b.chunk FROM unnest(p_blob_zoids, p_blobs) b (zoid, chunk);
    END IF;
    $copies
    INSERT INTO rs_commit (session, serial, tid) VALUES (p_session, p_serial, v_tid)
    ON CONFLICT (session) DO UPDATE SET serial = excluded.serial, tid = excluded.tid;
    RETURN v_tid;
END"""

_REQUIRE_ALL = """
            GET DIAGNOSTICS v_rows = ROW_COUNT;
            IF v_rows <> cardinality(v_zoids) THEN
                RAISE EXCEPTION 'of % objects only % are still there', cardinality(v_zoids), v_rows;
            END IF;"""


def _fill(text: str, **parts: str) -> str:
    for name, part in parts.items():
        text = text.replace(f"${name}", part.strip())
    return text


_FREE_FINISH = _fill(
    _FINISH,
    transactions="object_state",
    begin="",
    move=f"""
        IF cardinality(v_zoids) > 0 THEN
            UPDATE object_state o SET tid = v_tid, state_size = octet_length(u.state), state = u.state
            FROM unnest(v_zoids, v_states) u (zoid, state) WHERE o.zoid = u.zoid;{_REQUIRE_ALL}
        END IF;
        IF cardinality(v_new) > 0 THEN
            INSERT INTO object_state (zoid, tid, state_size, state)
            SELECT u.zoid, v_tid, octet_length(u.state), u.state FROM unnest(v_new, v_new_states) u (zoid, state);
        END IF;""",
    removals="""
    IF cardinality(p_deleted) > 0 THEN
        DELETE FROM object_state o WHERE o.zoid = ANY(p_deleted);
        INSERT INTO rs_removed (tid, zoid) SELECT v_tid, d.zoid FROM unnest(p_deleted) d (zoid);
    END IF;""",
    copies="",
)

_PRESERVING_FINISH = _fill(
    _FINISH,
    transactions='"transaction"',
    begin="""
    INSERT INTO "transaction" (tid, packed, username, description, extension)
    VALUES (v_tid, FALSE, p_username, p_description, p_extension);""",
    move=f"""
        IF cardinality(v_zoids) > 0 THEN
            INSERT INTO object_state (zoid, tid, prev_tid, md5, state_size, state)
            SELECT u.zoid, v_tid, c.tid, md5(u.state), octet_length(u.state), u.state
            FROM unnest(v_zoids, v_states) u (zoid, state) JOIN current_object c ON c.zoid = u.zoid;{_REQUIRE_ALL}
            UPDATE current_object SET tid = v_tid WHERE zoid = ANY(v_zoids);
        END IF;
        IF cardinality(v_new) > 0 THEN
            INSERT INTO object_state (zoid, tid, prev_tid, md5, state_size, state)
            SELECT u.zoid, v_tid, 0, md5(u.state), octet_length(u.state), u.state
            FROM unnest(v_new, v_new_states) u (zoid, state);
            INSERT INTO current_object (zoid, tid) SELECT u.zoid, v_tid FROM unnest(v_new) u (zoid);
        END IF;""",
    removals="""
    IF cardinality(p_deleted) > 0 THEN
        INSERT INTO object_state (zoid, tid, prev_tid, md5, state_size, state)
        SELECT c.zoid, v_tid, c.tid, NULL, 0, NULL FROM current_object c WHERE c.zoid = ANY(p_deleted);
        UPDATE current_object SET tid = v_tid WHERE zoid = ANY(p_deleted);
    END IF;""",
    copies="""
    IF cardinality(p_copy_zoids) > 0 THEN
        INSERT INTO blob_chunk (zoid, tid, chunk_num, chunk)
        SELECT b.zoid, v_tid, b.chunk_num, b.chunk
        FROM unnest(p_copy_zoids, p_copy_tids) u (zoid, tid) JOIN blob_chunk b ON b.zoid = u.zoid AND b.tid = u.tid;
    END IF;""",
)

_FINISH_ARGUMENTS = """p_session bigint, p_serial bigint, p_early boolean, p_username bytea,
    p_description bytea, p_extension bytea, p_deleted bigint[], p_blob_zoids bigint[], p_blobs oid[],
    p_copy_zoids bigint[], p_copy_tids bigint[]"""

_CHOOSE = f"""
DECLARE
    v_clock timestamp;
    v_tid bigint;
BEGIN
    -- Who waited for the other lock had less patience.
    PERFORM set_config('lock_timeout', p_timeout::text, true);{_CHOOSE_TID}
    RETURN v_tid;
END"""

# The sequence counts ranges of 16: its value n stands for the oids n * 16 - 15 to n * 16, as RelStorage has it.
_RESERVE = f"""
DECLARE
    v_range bigint;
BEGIN
    PERFORM set_config('lock_timeout', p_timeout::text, true);
    PERFORM pg_advisory_xact_lock({LOCK_CLASS}, {OIDS});
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO v_range FROM zoid_seq;
    v_range := greatest(v_range, (greatest(p_least, (SELECT max(zoid) FROM $current)) + 15) / 16);
    IF p_count > 0 THEN
        PERFORM setval('zoid_seq', v_range + (p_count + 15) / 16);
    END IF;
    RETURN v_range * 16 + 1;
END"""


# The next rows of a pack's list, removed. Objects are locked as any transaction locks them: in the order of oids,
# because the lists are in this order and no other plan is left than to go through them; and before the commit lock,
# which is held only to tell the polls. For each object that goes, the server looks for a blob. It would plan a scan of
# bitmaps for that, which takes longer.
_REMOVE_NEXT = f"""
#variable_conflict use_column
DECLARE
    v_part record;
    v_part_gone bigint[];
    v_gone bigint[] := '{{}}';
    v_entries bigint := 0;
    v_clock timestamp;
    v_tid bigint;
BEGIN
    PERFORM set_config('enable_bitmapscan', 'off', true), set_config('enable_hashjoin', 'off', true),
        set_config('enable_mergejoin', 'off', true);
    PERFORM pg_advisory_xact_lock_shared({LOCK_CLASS}, {DRAIN});
    FOR v_part IN
        SELECT l.ctid AS place, l.whole, l.oids, l.tids FROM rs_pack_list l
        WHERE l.run = p_run AND cardinality(l.oids) > 0
        ORDER BY l.whole, l.last_oid, l.last_tid
        LIMIT greatest(p_limit / {ENTRIES}, 1)
    LOOP
        IF v_part.whole = 1 THEN
            $whole
            v_gone := v_gone || v_part_gone;
        ELSE
            $single
        END IF;
        v_entries := v_entries + cardinality(v_part.oids);
        DELETE FROM rs_pack_list l WHERE l.ctid = v_part.place;
    END LOOP;
    IF FOUND THEN{_CHOOSE_TID}
        IF cardinality(v_gone) > 0 THEN
            INSERT INTO rs_removed (tid, zoid, others) VALUES (v_tid, v_gone[1], v_gone[2:]);
        END IF;
        UPDATE rs_pack_run r SET removed = r.removed + v_entries, checked_tid = v_tid WHERE r.run = p_run;
    END IF;
    RETURN QUERY SELECT v_entries, cardinality(v_gone)::bigint;
END"""
_THESE = "unnest(v_part.oids, v_part.tids) u (zoid, tid)"
_FREE_WHOLE = f"""
            WITH gone AS (
                DELETE FROM object_state o USING {_THESE} WHERE o.zoid = u.zoid AND o.tid = u.tid RETURNING o.zoid)
            SELECT array_agg(zoid) INTO v_part_gone FROM gone;"""
_PRESERVING_WHOLE = f"""
            WITH gone AS (
                DELETE FROM current_object c USING {_THESE} WHERE c.zoid = u.zoid AND c.tid = u.tid RETURNING c.zoid)
            SELECT array_agg(zoid) INTO v_part_gone FROM gone;
            DELETE FROM object_state o USING unnest(v_part_gone) u (zoid) WHERE o.zoid = u.zoid;"""
# Each part of the statement sees the table as it was before, and no row may be changed by two of them.
_PRESERVING_SINGLE = f"""
            WITH single AS MATERIALIZED (
                SELECT u.zoid, u.tid FROM {_THESE}
                WHERE NOT EXISTS (SELECT 1 FROM current_object c WHERE c.zoid = u.zoid AND c.tid = u.tid)),
            followers AS (
                UPDATE object_state o SET prev_tid = 0 FROM single
                WHERE o.zoid = single.zoid AND o.prev_tid = single.tid
                AND NOT EXISTS (SELECT 1 FROM single other WHERE other.zoid = o.zoid AND other.tid = o.tid))
            DELETE FROM object_state o USING single WHERE o.zoid = single.zoid AND o.tid = single.tid;"""


@dataclass(frozen=True)
class Functions:
    """The functions of one history mode."""

    vote: Function
    finish: Function
    choose_tid: Function
    reserve_oids: Function
    remove_next: Function

    def all(self) -> tuple[Function, ...]:
        return (self.vote, self.finish, self.choose_tid, self.reserve_oids, self.remove_next)


@cache
def functions(keep_history: bool) -> Functions:
    """Return the functions of a history mode."""
    transactions = '"transaction"' if keep_history else "object_state"
    return Functions(
        vote=Function("rs_vote", _VOTE_ARGUMENTS, _VOTE_RETURNS, _PRESERVING_VOTE if keep_history else _FREE_VOTE),
        finish=Function("rs_finish", _FINISH_ARGUMENTS, "bigint", _PRESERVING_FINISH if keep_history else _FREE_FINISH),
        choose_tid=Function("rs_choose_tid", "p_timeout int", "bigint", _fill(_CHOOSE, transactions=transactions)),
        reserve_oids=Function(
            "rs_reserve_oids",
            "p_count bigint, p_least bigint, p_timeout int",
            "bigint",
            _fill(_RESERVE, current="current_object" if keep_history else "object_state"),
        ),
        remove_next=Function(
            "rs_remove_next",
            "p_run bigint, p_limit bigint",
            "TABLE (entries bigint, objects bigint)",
            _fill(
                _REMOVE_NEXT,
                transactions=transactions,
                whole=_PRESERVING_WHOLE if keep_history else _FREE_WHOLE,
                single=_PRESERVING_SINGLE if keep_history else "NULL;",
            ),
        ),
    )
