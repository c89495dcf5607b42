"""psycopg 3, used where it is a thin layer over libpq: prepared statements, binary values, pipelines.

https://www.psycopg.org/psycopg3/docs/api/pq.html, https://www.postgresql.org/docs/current/libpq.html

In a process that gevent has patched, waiting lets other greenlets run.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from struct import Struct
from typing import Any

from zope.interface import implementer

from relstorage.errors import Disconnected, DriverError, Failure, RelStorageError
from relstorage.interfaces import IDriver, ISession
from relstorage.sql import Statement
from relstorage_postgresql import dsn
from relstorage_postgresql.drivers.failures import UNIQUE_VIOLATION, AlreadyThere, meaning, translate
from relstorage_postgresql.drivers.session import COMMIT, Call, PostgresSession
from relstorage_postgresql.drivers.settings import SessionSettings
from relstorage_postgresql.drivers.waiting import Wait, patched_by_gevent, single_addresses, wait_here
from relstorage_postgresql.statements import type_of

_BIGINT = Struct(">q")
_LENGTH = Struct(">i").pack
_encode_bigint = _BIGINT.pack
_decode_bigint = _BIGINT.unpack
# An array has one dimension that begins at 1: dimensions, null flag, element type, length, first index.
# https://doxygen.postgresql.org/arrayfuncs_8c.html, array_recv
_ARRAY = Struct(">iiIii").pack
_EMPTY_ARRAY = Struct(">iiI").pack
_NULL = b"\xff\xff\xff\xff"
_EIGHT = _LENGTH(8)

#: https://www.postgresql.org/docs/current/libpq-exec.html#LIBPQ-PQRESULTSTATUS
_COMMAND, _TUPLES, _SYNC, _ABORTED = 1, 2, 10, 11
_BIGINT_OID, _BYTEA_OID = 20, 17


_OIDS = {"bigint": 20, "bytea": 17, "oid": 26, "boolean": 16, "text": 25}


def _encode_oid(value: int) -> bytes:
    return value.to_bytes(4, "big")


_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "bigint": _encode_bigint,
    "bytea": bytes,
    "oid": _encode_oid,
    "boolean": lambda value: b"\1" if value else b"\0",
    "text": str.encode,
}


def _encode_bigints(values: Sequence[int]) -> bytes:
    if not values:
        return _EMPTY_ARRAY(0, 0, 20)
    return _ARRAY(1, 0, 20, len(values), 1) + _EIGHT + _EIGHT.join(map(_encode_bigint, values))


def _array_encoder(type_name: str) -> Callable[[Sequence[Any]], bytes]:
    if type_name == "bigint":
        return _encode_bigints
    encode, element = _ENCODERS[type_name], _OIDS[type_name]

    def encode_array(values: Sequence[Any]) -> bytes:
        if not values:
            return _EMPTY_ARRAY(0, 0, element)
        if None not in values:
            encoded = values if type_name == "bytea" else list(map(encode, values))
            lengths = map(_LENGTH, map(len, encoded))
            head = _ARRAY(1, 0, element, len(values), 1)
            return head + b"".join(chain.from_iterable(zip(lengths, encoded, strict=True)))
        parts = [_ARRAY(1, 1, element, len(values), 1)]
        for value in values:
            if value is None:
                parts.append(_NULL)
            else:
                one = encode(value)
                parts += (_LENGTH(len(one)), one)
        return b"".join(parts)

    return encode_array


_ARRAY_ENCODERS = {type_name: _array_encoder(type_name) for type_name in _OIDS}


class _Plan:
    """How a statement's parameters are written, and whether the server knows it by name already."""

    __slots__ = ("encoders", "formats", "known", "label", "name", "prepared", "prepares", "source", "text")

    def __init__(self, statement: Statement, prepares: bool = True):
        self.prepares = prepares
        self.label = statement.name
        self.source = statement.text
        self.name = statement.name.encode()
        self.text = statement.text.encode()
        self.encoders = [
            (_ARRAY_ENCODERS if position in statement.arrays else _ENCODERS)[type_of(parameter)]
            for position, parameter in enumerate(statement.parameters)
        ]
        self.formats = [1] * len(self.encoders)
        #: Whether it was executed before. To prepare what is executed once would be a waste.
        self.known = False
        self.prepared = False

    def encode(self, parameters: tuple[Any, ...]) -> list[bytes | None]:
        return [
            None if value is None else encode(value) for encode, value in zip(self.encoders, parameters, strict=True)
        ]


@cache
def _as_call(text: str) -> Call:
    return Statement(text, text, (), ()), ()


class _Awaited:
    """An answer that is on its way. Whoever wants to ask something else takes it off the connection first."""

    def __init__(self, attempt: str):
        self.attempt = attempt
        self.rows: list[Any] = []
        self.failed: RelStorageError | None = Disconnected("The connection was closed before the answer came.")


@implementer(ISession)
class PsycopgSession(PostgresSession):
    """One connection of libpq.

    ``wait(fileno, writing)`` returns when the socket can be used. A ``cooperative`` session never waits in libpq.
    """

    def __init__(
        self, pgconn: Any, settings: SessionSettings, role: str, wait: Wait, cooperative: bool
    ):
        super().__init__(settings, role)
        from psycopg import pq
        from psycopg.adapt import Transformer

        self._pgconn = pgconn
        poller = select.poll()
        poller.register(pgconn.socket, select.POLLIN)
        self._poll = poller.poll
        self._wait = wait
        self._cooperative = cooperative
        self._bad = pq.ConnStatus.BAD
        self._sqlstate = pq.DiagnosticField.SQLSTATE
        self._primary = pq.DiagnosticField.MESSAGE_PRIMARY
        self._transformer = Transformer(None)
        self._plans: dict[str, _Plan] = {}
        self._prepares = not settings.pooled
        #: Whether something was asked whose answer has not been read yet: a ROLLBACK, or what ``_awaited`` is for.
        self._unread = False
        self._awaited: _Awaited | None = None
        #: Whether the pipeline of the ROLLBACK is open.
        self._open_pipeline = False

    # --- the hot path: one prepared statement, one row

    def row(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> Any:
        plan = self._plans.get(statement.name)
        if plan is None or not plan.prepared or self._prelude or self._unread or self._cooperative or self._lost:
            rows, _ = self._ask(statement, parameters)
            return rows[0] if rows else None
        result = self._pgconn.exec_prepared(plan.name, plan.encode(parameters), plan.formats, 1)
        if result.status != _TUPLES:
            self._check(result, statement.name)
        return self._first_row(result) if result.ntuples else None

    def _first_row(self, result: Any) -> tuple[Any, ...]:
        get = result.get_value
        row = []
        for column in range(result.nfields):
            value = get(0, column)
            if value is not None:
                kind = result.ftype(column)
                if kind == _BIGINT_OID:
                    (value,) = _decode_bigint(value)
                elif kind != _BYTEA_OID:
                    return self._rows(result)[0]
            row.append(value)
        return tuple(row)

    def _rows(self, result: Any) -> list[Any]:
        count = result.ntuples
        if not count:
            return []
        self._transformer.set_pgresult(result)
        rows: list[Any] = self._transformer.load_rows(0, count, tuple)
        return rows

    # --- what the base wants

    def _ask(self, statement: Statement, parameters: tuple[Any, ...]) -> tuple[list[Any], int]:
        result = self._exchange([(statement, parameters)])[-1]
        return self._rows(result), result.command_tuples or 0

    def _ask_ahead(self, statement: Statement) -> Callable[[], list[Any]]:
        self._require_connection()
        with self._guarded():
            self._drain()
            self._pgconn.send_query_params(statement.text.encode(), None, None, None, 1)
            self._flush()
        self._unread = True
        awaited = self._awaited = _Awaited(statement.name)

        def rows() -> list[Any]:
            if awaited is self._awaited:
                with self._guarded():
                    self._drain()
            if awaited.failed is not None:
                raise awaited.failed
            return awaited.rows

        return rows

    def _ask_all(self, calls: Sequence[Call]) -> list[Any]:
        for result in reversed(self._exchange(calls)):
            if result.nfields:
                return self._rows(result)
        return []

    def _send(self, texts: Sequence[str]) -> list[Any]:
        result = self._simple(";".join((*self._take_prelude(), *texts)), "preparing the database")
        return self._rows(result)

    def _end(self, text: str) -> None:
        if text == "COMMIT":
            self._require_committed(self._simple(text, "committing"))
            return
        # Nobody waits for the answer; it is read after what is said next. So the pipeline is left open. A pooler,
        # though, may give the connection to somebody else with that answer, while what is said next is on its way.
        with self._guarded():
            self._drain()
            pgconn = self._pgconn
            if self.settings.pooled:
                pgconn.send_query(text.encode())
                self._unread = True
                self._flush()
                return
            pgconn.enter_pipeline_mode()
            pgconn.send_query_params(text.encode(), None)
            pgconn.pipeline_sync()
            self._unread = self._open_pipeline = True
            self._flush()

    def finish(self, before: Sequence[Call], after: Sequence[Call]) -> list[Any]:
        committed = False

        def note(position: int) -> None:
            nonlocal committed
            committed = committed or position == len(before)

        try:
            results = self._exchange((*before, (COMMIT, ()), *after), note)
        except RelStorageError as error:
            if committed:
                self.in_transaction = False
                raise Disconnected(f"{self.settings.name}: just after a commit: {error}") from error
            raise
        self.in_transaction = False
        self._require_committed(results[len(before)])
        return self._rows(results[-1])

    def _require_committed(self, result: Any) -> None:
        # The server ends a transaction that has failed by rolling it back, and calls that no error.
        if result.command_status != b"COMMIT":
            raise DriverError(f"{self.settings.name}: the transaction had failed before and was rolled back.")

    def _notice_end(self) -> None:
        # Between transactions nothing is expected from the server but the answer to a ROLLBACK, and the end.
        pgconn = self._pgconn
        try:
            if pgconn.status == self._bad:
                self.close()
            elif self._poll(0):
                self._drain()
                # What is left is the server's last word: libpq itself notices the end one question later.
                if self._poll(0):
                    self.close()
        except Exception:
            self.close()
        except BaseException:
            # Interrupted: something may be left unread.
            self.close()
            raise

    def _disconnect(self) -> None:
        self._pgconn.finish()

    # --- the protocol

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Raise what is to be raised for an exception within."""
        try:
            yield
        except BaseException as error:
            raise self._what_to_raise(error) from error.__cause__

    def _what_to_raise(self, error: BaseException) -> BaseException:
        """Translate what libpq says of the connection; after anything unexpected, close it."""
        import psycopg

        if isinstance(error, RelStorageError):
            return error
        # Interrupted in the middle: nobody knows what the server makes of the rest.
        self.close()
        if isinstance(error, (psycopg.Error, OSError)):
            lost = Disconnected(f"{self.settings.name}: the connection is lost: {self._told(error)}")
            lost.__cause__ = error
            return lost
        return error

    def _told(self, error: object) -> str:
        return " ".join(dsn.mask(str(error), self.settings.parameters).split())

    def _plan(self, statement: Statement) -> _Plan:
        plan = self._plans.get(statement.name)
        if plan is None:
            plan = self._plans[statement.name] = _Plan(statement)
        elif plan.source != statement.text:
            # The server may know the name with the other text already.
            plan = self._plans[statement.name] = _Plan(statement, prepares=False)
        return plan

    def _exchange(self, calls: Sequence[Call], done: Callable[[int], None] | None = None) -> list[Any]:
        """Send everything at once and return a result for each call; ``done`` is told the position of each success."""
        self._require_connection()
        if not self.in_transaction and self.settings.local():
            return self._exchange_alone(calls, done)
        prelude = self._take_prelude()
        try:
            if not prelude and len(calls) == 1 and not self._cooperative:
                self._drain()
                return [self._one(*calls[0])]
            if not self._open_pipeline:
                self._drain()
            return self._pipeline(prelude, calls, done)
        except BaseException as error:
            raise self._what_to_raise(error) from error.__cause__

    def _exchange_alone(self, calls: Sequence[Call], done: Callable[[int], None] | None) -> list[Any]:
        """Execute what is in no transaction in one of its own: in another, the tables would not be found."""
        self._begin(("BEGIN", *self.settings.local()))
        try:
            results = self._exchange((*calls, (COMMIT, ())), done)[:-1]
        except BaseException:
            self.rollback()
            raise
        self.in_transaction = False
        return results

    def _one(self, statement: Statement, parameters: tuple[Any, ...]) -> Any:
        plan, pgconn = self._plan(statement), self._pgconn
        values = plan.encode(parameters)
        if not plan.prepared and plan.known and plan.prepares and self._prepares:
            self._check(pgconn.prepare(plan.name, plan.text), statement.name)
            plan.prepared = True
        if plan.prepared:
            result = pgconn.exec_prepared(plan.name, values, plan.formats, 1)
        else:
            result = pgconn.exec_params(plan.text, values, None, plan.formats, 1)
        plan.known = True
        self._check(result, statement.name)
        return result

    def _pipeline(self, prelude: Sequence[str], calls: Sequence[Call], done: Callable[[int], None] | None) -> list[Any]:
        pgconn = self._pgconn
        if not self._open_pipeline:
            pgconn.enter_pipeline_mode()
        #: What each answer belongs to: the position of the call, None for what was not asked for, and the plan.
        expected: list[tuple[int | None, _Plan]] = []
        preparing: set[bytes] = set()
        begun = -len(prelude)
        for position, (statement, parameters) in enumerate((*map(_as_call, prelude), *calls), begun):
            plan = self._plan(statement)
            values = plan.encode(parameters)
            if not plan.prepared and plan.known and plan.prepares and self._prepares and plan.name not in preparing:
                pgconn.send_prepare(plan.name, plan.text)
                preparing.add(plan.name)
                expected.append((None, plan))
            if plan.prepared or plan.name in preparing:
                pgconn.send_query_prepared(plan.name, values, plan.formats, 1)
            else:
                pgconn.send_query_params(plan.text, values, None, plan.formats, 1)
            plan.known = True
            expected.append((position, plan))
        pgconn.pipeline_sync()
        self._flush()
        if self._open_pipeline:
            self._unread = self._open_pipeline = False
            for _ in self._answers():
                pass
        results = []
        failed = None
        for number, answer in enumerate(self._answers()):
            # Beyond the last: what was executed after a COMMIT is committed, and may fail, only at the end.
            attempt = expected[number][1].label if number < len(expected) else "ending a transaction"
            if answer.status != _TUPLES and failed is None:
                failed = self._failure(answer, attempt)
            if number >= len(expected):
                continue
            place, plan = expected[number]
            if place is None:
                plan.prepared = answer.status == _COMMAND
            elif place >= 0:
                if failed is None and done is not None:
                    done(place)
                results.append(answer)
        if failed is None and (len(results) < len(calls) or pgconn.status == self._bad):
            failed = self._failure(None, "reading the answer")
        if failed is not None:
            if isinstance(failed, Disconnected) and self._pgconn.status == self._bad:
                self.close()
            else:
                pgconn.exit_pipeline_mode()
            raise failed
        pgconn.exit_pipeline_mode()
        return results

    def _answers(self) -> Iterator[Any]:
        """Iterate over the results of a pipeline until its end, or that of the connection."""
        pgconn, next_answer = self._pgconn, self._next
        while True:
            answer = next_answer()
            if answer is not None:
                if answer.status == _SYNC:
                    return
                yield answer
            elif pgconn.status == self._bad:
                return

    def _next(self) -> Any:
        """Return what libpq has next, waiting for it in a way that can be interrupted."""
        pgconn = self._pgconn
        while pgconn.is_busy():
            if self._cooperative:
                self._wait(pgconn.socket, False, None)
            else:
                self._poll()
            pgconn.consume_input()
        return pgconn.get_result()

    def _flush(self) -> None:
        pgconn = self._pgconn
        while pgconn.flush():
            self._wait(pgconn.socket, True, None)
            pgconn.consume_input()

    def _simple(self, text: str, attempt: str) -> Any:
        """Execute texts by the simple protocol; return the last result."""
        self._require_connection()
        with self._guarded():
            self._drain()
            self._pgconn.send_query(text.encode())
            self._flush()
            last = failed = None
            while (result := self._next()) is not None:
                last = result
                failed = failed or self._failure(result, attempt)
                if self._pgconn.status == self._bad:
                    break
            if failed is not None:
                if self._pgconn.status == self._bad:
                    self.close()
                raise failed
            return last

    def _drain(self) -> None:
        if not self._unread:
            return
        self._unread = False
        if self._open_pipeline:
            self._open_pipeline = False
            for _ in self._answers():
                pass
            self._pgconn.exit_pipeline_mode()
            return
        awaited, self._awaited = self._awaited, None
        last = None
        while (result := self._next()) is not None and self._pgconn.status != self._bad:
            last = result
        if awaited is not None:
            awaited.failed = self._failure(last, awaited.attempt)
            if awaited.failed is None:
                awaited.rows = self._rows(last)

    def _check(self, result: Any, attempt: str) -> None:
        failed = self._failure(result, attempt)
        if failed is not None:
            if self._pgconn.status == self._bad:
                self.close()
            raise failed

    def _failure(self, result: Any, attempt: str) -> RelStorageError | None:
        """Return the error that a result is, if it is one."""
        if result is not None and result.status in (_TUPLES, _COMMAND):
            return None
        sqlstate = message = None
        if result is not None and result.status != _ABORTED:
            sqlstate = result.error_field(self._sqlstate)
            message = result.error_field(self._primary) or result.error_message
        failure = meaning(sqlstate.decode() if sqlstate else None)
        if self._pgconn.status == self._bad:
            failure = Failure.DISCONNECTED
        text = (message or self._pgconn.error_message).decode("utf-8", "replace")
        error = translate(failure, self._told(text), attempt, self.settings.name, self.settings.lock_timeout)
        if sqlstate == UNIQUE_VIOLATION.encode():
            return AlreadyThere(str(error))
        return error


@implementer(IDriver)
class PsycopgDriver:
    """psycopg 3."""

    name = "postgresql.psycopg"
    backend = "postgresql"
    aliases = ("psycopg", "psycopg3", "gevent psycopg")
    distribution = "psycopg[binary]"

    def check(self) -> None:
        import psycopg

        if not psycopg.Capabilities().has_pipeline():
            raise ImportError("psycopg is used with a libpq older than 14, which has no pipelines")

    def classify(self, exception: BaseException) -> Failure:
        import psycopg

        if isinstance(exception, psycopg.Error):
            return meaning(exception.sqlstate)
        return Failure.DISCONNECTED if isinstance(exception, OSError) else Failure.OTHER

    def open_session(self, settings: SessionSettings, role: str) -> PsycopgSession:
        from psycopg import pq

        parameters = settings.connection_parameters()
        cooperative = patched_by_gevent()
        wait = wait_here()
        pgconn = self._connect(pq, parameters, wait)
        if pgconn.status != pq.ConnStatus.OK:
            message = pgconn.error_message.decode("utf-8", "replace") or "it did not answer in time"
            pgconn.finish()
            raise Disconnected(
                f"Connecting to {settings.name}: {' '.join(dsn.mask(message, settings.parameters).split())}. "
                "Check that the server runs and that the dsn is right."
            )
        if cooperative:
            pgconn.nonblocking = 1
        return PsycopgSession(pgconn, settings, role, wait, cooperative)

    def _connect(self, pq: Any, parameters: dict[str, str], wait: Wait) -> Any:
        """Return a connection, or one that failed. PGconn.connect would stop all threads of the process meanwhile."""
        seconds = float(parameters.get("connect_timeout", 0))
        pgconn = None
        for attempt in single_addresses(parameters):
            if pgconn is not None:
                pgconn.finish()
            deadline = time.monotonic() + seconds if seconds > 0 else None
            pgconn = pq.PGconn.connect_start(dsn.format(attempt).encode())
            status = pq.PollingStatus.WRITING
            with contextlib.suppress(TimeoutError):
                while pgconn.status != pq.ConnStatus.BAD and status != pq.PollingStatus.FAILED:
                    left = None if deadline is None else deadline - time.monotonic()
                    wait(pgconn.socket, status == pq.PollingStatus.WRITING, left)
                    status = pgconn.connect_poll()
                    if status == pq.PollingStatus.OK:
                        return pgconn
        return pgconn


driver = PsycopgDriver()
