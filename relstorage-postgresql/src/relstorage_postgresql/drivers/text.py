"""Sessions of the drivers that send finished SQL.

Everything that can go together does: what begins a transaction, the statements, COMMIT and what follows it are one
message to the server, and take one round trip. A statement that a session executes again is prepared on the server by
SQL's own PREPARE, so that it is parsed and planned once.

https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from relstorage.errors import Disconnected, DriverError, Failure, RelStorageError
from relstorage.sql import Statement
from relstorage_postgresql import dsn
from relstorage_postgresql.drivers.failures import UNIQUE_VIOLATION, AlreadyThere, meaning, translate
from relstorage_postgresql.drivers.literals import literal
from relstorage_postgresql.drivers.session import COMMIT, Call, PostgresSession
from relstorage_postgresql.drivers.settings import SessionSettings

_PLACEHOLDER = re.compile(r"\$(\d+)::(\w+(?:\[\])?)")
# https://www.postgresql.org/docs/current/sql-prepare.html
_PREPARABLE = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")



class _Plan:
    """How the text of a statement is put together, and by which name the server knows it."""

    __slots__ = ("known", "name", "parts", "preparable", "statement", "types")

    def __init__(self, statement: Statement):
        self.statement = statement
        #: Text, number of a parameter, its type, text, and so on.
        self.parts = _PLACEHOLDER.split(statement.text)
        #: The types of the parameters that the text uses.
        self.types = dict(zip(map(int, self.parts[1::3]), self.parts[2::3], strict=True))
        self.preparable = statement.text.startswith(_PREPARABLE)
        #: Whether it was executed before. To prepare what is executed once would be a waste.
        self.known = False
        self.name = ""

    def preparation(self) -> str:
        """Return the statement that makes the server know it by its name."""
        types = ", ".join(self.types.get(number, "text") for number in range(1, max(self.types, default=0) + 1))
        return f"PREPARE {self.name}{f'({types})' if types else ''} AS {self.statement.text}"

    def render(self, parameters: tuple[Any, ...]) -> str:
        """Return the finished text of one execution."""
        if len(parameters) != len(self.statement.parameters):
            raise TypeError(f"{self.statement.name}: {len(parameters)} parameters for {self.statement.parameters}")
        values = {number: literal(parameters[number - 1], kind) for number, kind in self.types.items()}
        if self.name:
            listed = ", ".join(values.get(number, "NULL") for number in range(1, max(values, default=0) + 1))
            return f"EXECUTE {self.name}{f'({listed})' if listed else ''}"
        text = [self.parts[0]]
        for number, kind, after in zip(self.parts[1::3], self.parts[2::3], self.parts[3::3], strict=True):
            text += (values[int(number)], "::", kind, after)
        return "".join(text)


class TextSession(PostgresSession):
    """A connection that executes texts. A driver says how, by the methods that come first."""

    #: What the driver raises for errors of the server and of the connection.
    errors: tuple[type[Exception], ...] = ()

    def __init__(self, settings: SessionSettings, role: str):
        super().__init__(settings, role)
        self._plans: dict[str, _Plan] = {}
        self._names = (f"rs_{number}" for number in itertools.count(1))
        self._prepares = not settings.pooled

    # --- what a driver implements

    def query(self, text: str) -> tuple[list[Any], int]:
        """Execute a text of one or more statements; return the last one's rows and how many it changed."""
        raise NotImplementedError

    def explain(self, error: Exception) -> tuple[str | None, str]:
        """Return the SQLSTATE of an error, if the server sent it, and the message."""
        raise NotImplementedError

    def server_state(self) -> str:
        """Return 'idle', 'open', 'failed', or 'unknown': what the server last said of the transaction."""
        raise NotImplementedError

    # --- what the base wants

    def _ask(self, statement: Statement, parameters: tuple[Any, ...]) -> tuple[list[Any], int]:
        return self._run([(statement, parameters)])

    def _ask_all(self, calls: Sequence[Call]) -> list[Any]:
        # The answer to a message has the rows of its last statement.
        end = max((number for number, (statement, _) in enumerate(calls, 1) if statement.columns), default=0)
        rows = self._run(calls[:end])[0] if end else []
        if calls[end:]:
            self._run(calls[end:])
        return rows

    def _send(self, texts: Sequence[str]) -> list[Any]:
        self._require_connection()
        return self._execute((*self._take_prelude(), *texts), "preparing the database")[0]

    def _end(self, text: str) -> None:
        if text == "COMMIT" and self.server_state() == "failed":
            # The server would roll back, and report no error.
            self.in_transaction = True
            self.rollback()
            raise DriverError(f"{self.settings.name}: a transaction cannot be committed after a statement has failed.")
        self._execute([text], "committing" if text == "COMMIT" else "rolling back")

    def finish(self, before: Sequence[Call], after: Sequence[Call]) -> list[Any]:
        try:
            rows, _ = self._run([*before, (COMMIT, ()), *after])
        except RelStorageError as error:
            if self._lost or self.server_state() in ("open", "failed"):
                raise
            # The server has ended the transaction, and it has not said how.
            self.in_transaction = False
            raise Disconnected(f"{self.settings.name}: just after a commit: {error}") from error
        self.in_transaction = False
        return rows

    # --- texts

    def _run(self, calls: Sequence[Call]) -> tuple[list[Any], int]:
        self._require_connection()
        texts: list[str] = []
        preparing: list[_Plan] = []
        for statement, parameters in calls:
            plan = self._plan(statement)
            if plan.known and not plan.name and plan.preparable and self._prepares:
                plan.name = next(self._names)
                preparing.append(plan)
                texts.append(plan.preparation())
            plan.known = True
            texts.append(plan.render(parameters))
        attempt = calls[-1][0].name if len(calls) == 1 else ", ".join(statement.name for statement, _ in calls)
        try:
            # Sent together, they are one transaction.
            alone = () if self.in_transaction else self.settings.local()
            return self._execute((*self._take_prelude(), *alone, *texts), attempt)
        except BaseException:
            for plan in preparing:
                # The error may have come before the server knew it, or after.
                plan.name = ""
            raise

    def _plan(self, statement: Statement) -> _Plan:
        plan = self._plans.get(statement.name)
        if plan is None or plan.statement.text != statement.text:
            plan = self._plans[statement.name] = _Plan(statement)
        return plan

    def _execute(self, texts: Sequence[str], attempt: str) -> tuple[list[Any], int]:
        try:
            return self.query(";".join(texts))
        except self.errors as error:
            self._fail(error, attempt)
        except BaseException:
            # Interrupted in the middle: nobody knows what the server makes of the rest.
            self.close()
            raise

    def _fail(self, error: Exception, attempt: str) -> NoReturn:
        """Raise our own error for the driver's."""
        sqlstate, message = self.explain(error)
        failure = meaning(sqlstate)
        # As long as the server is about to say more, the connection cannot be used.
        if failure is Failure.DISCONNECTED or self.server_state() == "unknown":
            failure = Failure.DISCONNECTED
            self.close()
        told = " ".join(dsn.mask(message, self.settings.parameters).split())
        ours = translate(failure, told, attempt, self.settings.name, self.settings.lock_timeout)
        if sqlstate == UNIQUE_VIOLATION and failure is not Failure.DISCONNECTED:
            raise AlreadyThere(str(ours)) from error
        raise ours from error
