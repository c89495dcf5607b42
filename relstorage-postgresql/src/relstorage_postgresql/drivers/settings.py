"""How a session on a PostgreSQL server is to be opened, and what begins its transactions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from relstorage_postgresql.dsn import with_setting

# A network that says nothing any more is noticed after about two minutes, where the system's own defaults take hours.
_DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "60",
    "keepalives_interval": "15",
    "keepalives_count": "4",
    # The same for what was sent and is not confirmed, for which no keepalives are sent; in milliseconds.
    "tcp_user_timeout": "120000",
}
_BEGIN_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"


@dataclass(frozen=True)
class SessionSettings:
    """What a driver of this backend gets to open a session."""

    #: The connection string as ``relstorage_postgresql.dsn`` parsed it: libpq's keywords and their values.
    parameters: Mapping[str, str]
    #: What identifies the database in messages.
    name: str
    #: The schema of the tables; None for the connection's own first one.
    schema: str | None = None
    #: Seconds to wait for each lock.
    lock_timeout: float = 30.0
    #: Whether several clients share a connection of the server in turn, a transaction each: nothing may be left behind.
    pooled: bool = False

    def search_path(self) -> str | None:
        """Return what ``search_path`` must be, or None to leave it alone."""
        return None if self.schema is None else '"{}"'.format(self.schema.replace('"', '""'))

    def connection_parameters(self) -> dict[str, str]:
        """Return the parameters to connect with: the user's, and what every session needs."""
        parameters = {**_DEFAULTS, **self.parameters, "client_encoding": "utf8"}
        parameters.setdefault("fallback_application_name", "relstorage")
        path = self.search_path()
        if path is None or self.pooled:
            return parameters
        return with_setting(parameters, "search_path", path)

    def begin_snapshot(self) -> tuple[str, ...]:
        """Return the statements that begin a transaction that reads."""
        return ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", *self.local())

    def begin_write(self, role: str, timeout: float | None) -> tuple[str, ...]:
        """Return the statements that begin a transaction that writes."""
        limit = self.lock_timeout if timeout is None else timeout
        statements = [_BEGIN_WRITE, f"SET LOCAL lock_timeout = {milliseconds(limit)}"]
        if role == "pack":
            # Its last transaction, which waits for the disk, makes the others durable too.
            statements.append("SET LOCAL synchronous_commit = off")
        return (*statements, *self.local())

    def begin_commit(self) -> tuple[str, ...]:
        """Return the statements that begin a transaction whose first one sets the time to wait for locks."""
        return (_BEGIN_WRITE, *self.local())

    def local(self) -> tuple[str, ...]:
        """Return the statements without which a transaction would not find the tables."""
        path = self.search_path()
        return (f"SET LOCAL search_path = {path}",) if self.pooled and path is not None else ()


def milliseconds(seconds: float) -> int:
    """Return a timeout as the server takes it, where 0 would mean to wait for ever."""
    return max(1, min(round(seconds * 1000), 2**31 - 1))
