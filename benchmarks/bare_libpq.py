"""The bare statements of a storage on PostgreSQL, through libpq, with no storage around them: prepared, with binary
parameters and results, and in a pipeline wherever no answer decides what is sent next.

A commit takes two round trips, as it must where votes and commits are apart: the rows are locked and their revisions
returned; then the commit lock is taken, the rows are written, and the transaction is committed. The commit lock is
free before the log is on the disk; the answer comes after it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from psycopg import pq
from psycopg.conninfo import make_conninfo

BIGINT, BYTEA, BIGINTS, BYTEAS = 20, 17, 1016, 1001
PIECE = 1024 * 1024  # of a large object

SCHEMA = """
CREATE TABLE object_state (
    zoid BIGINT NOT NULL PRIMARY KEY,
    tid BIGINT NOT NULL CHECK (tid > 0),
    state_size BIGINT NOT NULL CHECK (state_size >= 0),
    state BYTEA
);
CREATE INDEX object_state_tid ON object_state (tid);
CREATE TABLE blob_chunk (
    zoid BIGINT NOT NULL,
    chunk_num BIGINT NOT NULL,
    tid BIGINT NOT NULL,
    chunk OID NOT NULL,
    PRIMARY KEY (zoid, chunk_num)
)
"""
STATEMENTS: dict[bytes, tuple[str, list[int]]] = {
    b"begin_reading": ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", []),
    b"begin": ("BEGIN", []),
    b"rollback": ("ROLLBACK", []),
    b"commit": ("COMMIT", []),
    b"poll": ("SELECT zoid, tid FROM object_state WHERE tid > $1", [BIGINT]),
    b"newest": ("SELECT max(tid) FROM object_state", []),
    b"load": ("SELECT state, tid FROM object_state WHERE zoid = $1", [BIGINT]),
    b"load_many": ("SELECT zoid, state, tid FROM object_state WHERE zoid = ANY($1)", [BIGINTS]),
    b"lock_rows": (
        "SELECT tid FROM object_state WHERE zoid = ANY($1) ORDER BY zoid FOR NO KEY UPDATE",
        [BIGINTS],
    ),
    b"lock_commits": (
        "SELECT pg_advisory_xact_lock('object_state'::regclass::oid::int, 1),"
        " set_config('synchronous_commit', 'off', true)",
        [],
    ),
    b"write": (
        "INSERT INTO object_state (zoid, tid, state_size, state)"
        " SELECT written.zoid, newest.tid + 1, length(written.state), written.state"
        " FROM unnest($1, $2) AS written (zoid, state),"
        " (SELECT coalesce(max(tid), 0) AS tid FROM object_state) AS newest"
        " ON CONFLICT (zoid) DO UPDATE"
        " SET tid = excluded.tid, state_size = excluded.state_size, state = excluded.state",
        [BIGINTS, BYTEAS],
    ),
    b"wait_for_log": ("SELECT pg_logical_emit_message(true, '', '')", []),
    b"create_blob": (
        "INSERT INTO blob_chunk SELECT $1, 0, coalesce(max(tid), 0) + 1, lo_create(0) FROM object_state"
        " RETURNING chunk",
        [BIGINT],
    ),
    b"put": ("SELECT lo_put($1, $2, $3)", [26, BIGINT, BYTEA]),
}

_integer = struct.Struct("!q")
_array = struct.Struct("!iiIii")
_bigint = struct.Struct("!iq")
_length = struct.Struct("!i")


def bigint(value: int) -> bytes:
    return _integer.pack(value)


def bigints(values: Sequence[int]) -> bytes:
    """Write a ``bigint[]``."""
    return b"".join([_array.pack(1, 0, BIGINT, len(values), 1), *[_bigint.pack(8, value) for value in values]])


def byteas(values: Sequence[bytes]) -> bytes:
    """Write a ``bytea[]``."""
    parts = [_array.pack(1, 0, BYTEA, len(values), 1)]
    for value in values:
        parts += (_length.pack(len(value)), value)
    return b"".join(parts)


class Failed(Exception):
    """The server refused a statement."""


class Wire:
    """One connection that has prepared all statements."""

    def __init__(self, conninfo: str) -> None:
        self._connection = pq.PGconn.connect(conninfo.encode())
        if self._connection.status != pq.ConnStatus.OK:
            raise Failed(self._connection.error_message.decode())
        self._prepared: set[bytes] = set()

    def execute(self, text: str) -> None:
        """Run SQL text that returns nothing."""
        self._checked(self._connection.exec_(text.encode()))

    def one(self, name: bytes, *parameters: bytes) -> pq.PGresult:
        """Run one prepared statement."""
        if name not in self._prepared:
            return self.pipeline((name, *parameters))[0]
        return self._checked(self._connection.exec_prepared(name, parameters, [1] * len(parameters), 1))

    def pipeline(self, *calls: tuple[bytes, ...]) -> list[pq.PGresult]:
        """Run prepared statements in one round trip, which prepares what was not used before."""
        connection = self._connection
        connection.enter_pipeline_mode()
        kept = []
        for name, *parameters in calls:
            if name not in self._prepared:  # not earlier: what looks at a table must not precede BEGIN
                text, types = STATEMENTS[name]
                connection.send_prepare(name, text.encode(), types)
                self._prepared.add(name)
                kept.append(False)
            connection.send_query_prepared(name, parameters, [1] * len(parameters), 1)
            kept.append(True)
        connection.pipeline_sync()
        results = []
        for _ in kept:
            results.append(connection.get_result())
            connection.get_result()  # the end of the statement's results
        connection.get_result()  # the end of the pipeline
        connection.exit_pipeline_mode()
        return [self._checked(result) for result, keep in zip(results, kept, strict=True) if keep]

    def close(self) -> None:
        self._connection.finish()

    def _checked(self, result: pq.PGresult | None) -> pq.PGresult:
        if result is None or result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            raise Failed((result or self._connection).error_message.decode())
        return result


class LibpqSession:
    """A connection that reads and one that writes, as a storage has."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._reading = Wire(conninfo)
        self._writing: Wire | None = None
        self._newest: bytes | None = None

    def begin(self) -> None:
        """Start a transaction that reads, in place of an earlier one, and ask what is new in it."""
        if self._newest is None:
            found = self._reading.pipeline((b"begin_reading",), (b"newest",))[1]
            self._newest = found.get_value(0, 0) or bigint(0)
            return
        new = self._reading.pipeline((b"rollback",), (b"begin_reading",), (b"poll", self._newest))[2]
        if new.ntuples:
            self._newest = max(new.get_value(row, 1) or b"" for row in range(new.ntuples))

    def end(self) -> None:
        """The rollback goes with the next begin."""

    def load(self, oid: int) -> tuple[bytes, int]:
        found = self._reading.one(b"load", bigint(oid))
        return found.get_value(0, 0) or b"", _integer.unpack(found.get_value(0, 1) or b"")[0]

    def load_many(self, oids: Sequence[int]) -> list[bytes]:
        """Read rows in one round trip."""
        found = self._reading.one(b"load_many", bigints(oids))
        return [found.get_value(row, 1) or b"" for row in range(found.ntuples)]

    def commit(self, oids: Sequence[int], states: Sequence[bytes], serial: int | None = None) -> bool:
        """Write rows; return False if the only one is no longer of the revision *serial*."""
        wire = self._writer()
        names = bigints(oids)
        locked = wire.pipeline((b"begin",), (b"lock_rows", names))[1]
        if serial is not None and locked.get_value(0, 0) != bigint(serial):
            wire.one(b"rollback")
            return False
        wire.pipeline((b"lock_commits",), (b"write", names, byteas(states)), (b"commit",), (b"wait_for_log",))
        return True

    def commit_blobs(self, blobs: Mapping[int, bytes]) -> None:
        """Write large objects in pieces, and the rows that refer to them."""
        wire = self._writer()
        created = wire.pipeline((b"begin",), *[(b"create_blob", bigint(oid)) for oid in blobs])[1:]
        pieces = []
        for row, data in zip(created, blobs.values(), strict=True):
            chunk = row.get_value(0, 0) or b""
            pieces += [
                (b"put", chunk, bigint(start), data[start : start + PIECE]) for start in range(0, len(data), PIECE)
            ]
        wire.pipeline(*pieces)
        wire.pipeline((b"lock_commits",), (b"commit",), (b"wait_for_log",))

    def close(self) -> None:
        self._reading.close()
        if self._writing is not None:
            self._writing.close()

    def _writer(self) -> Wire:
        if self._writing is None:
            self._writing = Wire(self._conninfo)
        return self._writing


class LibpqFloor:
    """Where the sessions of a floor ``libpq:CONNINFO`` connect to: a schema of their own."""

    def __init__(self, conninfo: str, order: Mapping[str, str]) -> None:
        self._server = conninfo
        self._schema = order["name"]
        self._conninfo = make_conninfo(conninfo, options=f"-c search_path={self._schema}")

    def create(self) -> None:
        """Make the schema and its empty tables."""
        wire = Wire(self._conninfo)
        wire.execute(f"CREATE SCHEMA {self._schema}")
        wire.execute(SCHEMA)
        wire.close()

    def remove(self) -> None:
        """Drop the schema and the large objects its rows refer to."""
        wire = Wire(self._conninfo)
        wire.execute("SELECT lo_unlink(chunk) FROM blob_chunk")
        wire.execute(f"DROP SCHEMA {self._schema} CASCADE")
        wire.close()

    def open(self) -> LibpqSession:
        return LibpqSession(self._conninfo)
