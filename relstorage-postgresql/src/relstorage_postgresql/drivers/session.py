"""What the sessions of all drivers have in common: when a transaction begins and ends, and how long answers are read.

Nothing is sent before it must be. What begins a transaction goes with its first statement, so that both take one round
trip.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from relstorage.errors import Disconnected, RelStorageError
from relstorage.sql import Statement
from relstorage_postgresql.drivers.settings import SessionSettings

Call = tuple[Statement, tuple[Any, ...]]
"""A statement and its parameters."""

COMMIT = Statement("commit", "COMMIT", (), ())

_Tuple = TypeVar("_Tuple", bound=tuple[Any, ...])

#: A statement that takes lists gets as many places at once, or this many bytes.
PLACES, BYTES = 50_000, 4_000_000
#: A stream asks for so many rows at first, and then for about so many bytes at once.
FIRST_ROWS, MOST_ROWS, STREAM_BYTES = 200, 10_000, 2_000_000

INCARNATION = """(SELECT CASE WHEN pg_is_in_recovery()
    THEN concat('standby ', since, ' ', (SELECT pid FROM pg_stat_get_wal_receiver()))
    ELSE concat('primary ', since, ' ', substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8),
        ' ', extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())) END
    FROM (SELECT extract(epoch FROM pg_postmaster_start_time()) AS since) s)"""
"""What tells servers, and their lives, apart, as an expression of SQL that everybody may evaluate.

Of a primary: when it was started, its timeline, which is another after a standby took over, and since when there are
statistics, which begin anew when the server recovers from a crash without being started again. Of a standby: when it
was started, and the process that receives what it replays, which is another when it follows another server.
Functions are asked, not the views over them, which a new process of the server would have to look up first.
"""


class PostgresSession:
    """One connection. A driver's session says how statements are executed.

    Beside ``ISession`` there are ``begin_commit``, ``batch`` and ``finish``, with which a commit saves time, and
    ``script``.
    """

    def __init__(self, settings: SessionSettings, role: str):
        self.role = role
        self._lost = False
        self.in_transaction = False
        self.settings = settings
        #: Whether the server is a standby, as far as known.
        self.may_lag = False
        #: By this number the server knows which session a commit came from; it has 63 bits.
        self.identity = int.from_bytes(os.urandom(8), "big") >> 1
        #: Counts the commits of this session.
        self.serial = 0
        #: What begins the transaction, or ends the last one, and has not been sent yet.
        self._prelude: tuple[str, ...] = ()
        #: Counts transactions.
        self._begun = 0
        self._streams = itertools.count(1)
        self._incarnation: tuple[str | None, ...] | None = None
        #: Asked between transactions: whether to connect again, because another server is to be used.
        self.outdated: Callable[[], bool] | None = None

    # --- what a driver implements

    def _ask(self, statement: Statement, parameters: tuple[Any, ...]) -> tuple[list[Any], int]:
        """Execute one statement, after the prelude; return its rows and how many it changed."""
        raise NotImplementedError

    def _ask_ahead(self, statement: Statement) -> Callable[[], list[Any]]:
        """Send a statement without parameters, if that can be done without waiting; return what gives its rows."""
        return lambda: self._ask(statement, ())[0]

    def _ask_all(self, calls: Sequence[Call]) -> list[Any]:
        """Execute statements in one round trip where possible; return the rows of the last one that has any."""
        raise NotImplementedError

    def _send(self, texts: Sequence[str]) -> list[Any]:
        """Execute texts without parameters, after the prelude; return the rows of the last one."""
        raise NotImplementedError

    def _end(self, text: str) -> None:
        """Execute what ends a transaction."""
        raise NotImplementedError

    def _disconnect(self) -> None:
        """Close the connection. Never raise."""
        raise NotImplementedError

    # --- transactions

    def incarnation(self) -> tuple[str | None, ...]:
        if self._incarnation is None or self.may_lag or self.settings.pooled:
            # A standby may become a primary at any time. Behind a pooler, each transaction may be on another server.
            self.remember_incarnation(self._send([f"SELECT {INCARNATION}"])[0][0])
        assert self._incarnation is not None
        return self._incarnation

    @property
    def known_incarnation(self) -> tuple[str | None, ...] | None:
        """What ``incarnation`` has returned last."""
        return self._incarnation

    def remember_incarnation(self, told: str) -> None:
        """Take what the server said of ``INCARNATION``."""
        kind, *facts = told.split()
        self.may_lag = kind == "standby"
        self._incarnation = (facts[0], facts[1] if len(facts) > 1 else None) if self.may_lag else tuple(facts)

    def begin_snapshot(self) -> None:
        self._begin(self.settings.begin_snapshot())

    def begin_write(self, timeout: float | None = None) -> None:
        self._begin(self.settings.begin_write(self.role, timeout))

    def begin_commit(self) -> None:
        """Start a transaction that writes and sets the time to wait for locks itself."""
        self._begin(self.settings.begin_commit())

    def _begin(self, prelude: tuple[str, ...]) -> None:
        self._require_connection()
        self._prelude = ("ROLLBACK", *prelude) if self._is_open() else prelude
        self.in_transaction = True
        self._begun += 1

    def _is_open(self) -> bool:
        """Return whether the server is in a transaction, be it one that something unsent is to end."""
        return self._prelude[0] == "ROLLBACK" if self._prelude else self.in_transaction

    @property
    def lost(self) -> bool:
        """Whether the connection is gone; between transactions, find out, and whether another server is to be used."""
        if not self._lost and not self.in_transaction:
            if self.outdated is not None and self.outdated():
                self.close()
            else:
                self._notice_end()
        return self._lost

    def _notice_end(self) -> None:
        """Close the session if the server has ended the connection."""

    def _require_connection(self) -> None:
        if self._lost:
            raise Disconnected(f"{self.settings.name}: the connection is lost. Run the transaction again.")

    def _take_prelude(self) -> tuple[str, ...]:
        prelude, self._prelude = self._prelude, ()
        return prelude

    def commit(self) -> None:
        self._require_connection()
        if self._prelude:
            # Nothing was done in it.
            self.rollback()
            return
        self.in_transaction = False
        self._end("COMMIT")

    def rollback(self, another_follows: bool = False) -> None:
        is_open = self._is_open()
        self._prelude = ("ROLLBACK",) if is_open and another_follows else ()
        self.in_transaction = False
        if is_open and not another_follows and not self._lost:
            try:
                self._end("ROLLBACK")
            except RelStorageError:
                self.close()

    # --- statements

    def row(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> Any:
        rows, _ = self._ask(statement, parameters)
        return rows[0] if rows else None

    def rows(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> list[Any]:
        return self._ask(statement, parameters)[0]

    def run(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> int:
        if statement.columnar:
            parameters = tuple([each] for each in parameters)
        return self._ask(statement, parameters)[1]

    def run_many(self, statement: Statement, many: Iterable[tuple[Any, ...]]) -> None:
        if not statement.columnar:
            for parameters in many:
                self._ask(statement, parameters)
            return
        for part in _parts(many):
            self._ask(statement, tuple(map(list, zip(*part, strict=True))))

    def stream(self, statement: Statement, parameters: tuple[Any, ...] = ()) -> Iterator[Any]:
        if statement.small:
            yield from self.rows(statement, parameters)
            return
        name = f"rs_stream_{next(self._streams)}"
        declaration = f"DECLARE {name} NO SCROLL CURSOR FOR {statement.text}"
        opening = Statement(f"{statement.name}, as a stream", declaration, statement.parameters, (), statement.arrays)
        self._ask(opening, parameters)
        count, begun = FIRST_ROWS, self._begun
        try:
            answer = self._ask_ahead(Statement(statement.name, f"FETCH {count} FROM {name}", (), statement.columns))
            while len(rows := answer()) == count:
                size = sum(len(cell) for row in rows for cell in row if type(cell) is bytes)
                count = max(1, min(MOST_ROWS, count * STREAM_BYTES // max(size, 1), 4 * count))
                # The server looks for the next rows while these are used.
                answer = self._ask_ahead(Statement(statement.name, f"FETCH {count} FROM {name}", (), statement.columns))
                yield from rows
            yield from rows
        finally:
            # With its transaction, the cursor ends by itself, and may have done so long ago.
            if begun == self._begun and self.in_transaction and not self._lost:
                with contextlib.suppress(RelStorageError):
                    self._send([f"CLOSE {name}"])

    def batch(self, *calls: Call) -> list[Any]:
        """Execute statements in one round trip where possible; return the rows of the last one that has any."""
        return self._ask_all(calls)

    def finish(self, before: Sequence[Call], after: Sequence[Call]) -> list[Any]:
        """Execute statements, COMMIT, and statements of their own transaction, in one round trip where possible.

        Return the rows of the last. If it raises and ``in_transaction`` is still true, nothing was committed; else
        only another session can tell.
        """
        raise NotImplementedError

    def script(self, *texts: str) -> list[Any]:
        """Execute statements that are no part of the contract (schema, locks); return the last one's rows."""
        if not self.in_transaction:
            # Sent together, they are one transaction.
            texts = (*self.settings.local(), *texts)
        return self._send(texts)

    def close(self) -> None:
        self._lost = True
        self.in_transaction = False
        self._prelude = ()
        self._disconnect()


def _parts(many: Iterable[_Tuple]) -> Iterator[list[_Tuple]]:
    """Cut an iterable into lists that one statement takes."""
    part: list[_Tuple] = []
    size = 0
    for each in many:
        part.append(each)
        size += sum(len(cell) for cell in each if type(cell) is bytes)
        if len(part) >= PLACES or size >= BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
