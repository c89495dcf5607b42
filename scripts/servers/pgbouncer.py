"""A private pgbouncer in front of a database: the same databases and roles at another port."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Literal

from servers.addresses import Address, psql
from servers.daemon import Daemon, ServerError, free_port
from servers.debian import PGBOUNCER

ATTEMPTS_TO_GET_A_PORT = 5


class PgBouncer:
    """A running pgbouncer, from `create`. As a context manager it removes itself at the end.

    It knows one role, that of the address it was made with, who may also look at its console, the database
    `pgbouncer`. Settings are pgbouncer's own: it refuses startup parameters that it cannot keep per client, such as
    `options` and `search_path`, until `ignore_startup_parameters` allows to lose them.
    """

    def __init__(
        self, server: Address, pool_mode: Literal["session", "transaction", "statement"], settings: Mapping[str, object]
    ) -> None:
        """Get a directory; `create` starts the program in it."""
        self._program = PGBOUNCER.directory() / "pgbouncer"
        self._server = server
        self._settings = {"pool_mode": pool_mode, **settings}
        self._daemon = Daemon("pgbouncer")
        self.port = 0

    @classmethod
    def create(
        cls,
        server: Address | str,
        pool_mode: Literal["session", "transaction", "statement"] = "session",
        settings: Mapping[str, object] | None = None,
    ) -> PgBouncer:
        """Start a pgbouncer in front of a server, given as an address or as libpq's connection string."""
        address = Address.parse(server) if isinstance(server, str) else server
        bouncer = cls(address, pool_mode, settings or {})
        try:
            bouncer._start_on_a_free_port()
        except BaseException:
            bouncer.close()
            raise
        return bouncer

    def __enter__(self) -> PgBouncer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process(self) -> int | None:
        """The id of its process, None if it does not run."""
        return self._daemon.process

    @property
    def log(self) -> str:
        """What it has written into its log since it was made."""
        return self._daemon.log.read_text(errors="replace")

    def address(self, dbname: str | None = None) -> Address:
        """Return where a database is, by default the one of the address that this was made with."""
        server = self._server.at(self.port)
        return server if dbname is None else Address(server.port, server.user, server.password, dbname)

    def dsn(self, dbname: str | None = None) -> str:
        """Return libpq's connection string for a database."""
        return self.address(dbname).dsn

    def psql(self, sql: str, dbname: str | None = None) -> str:
        """Run statements and return the rows, with | between the columns."""
        return psql(self.address(dbname), sql)

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self._daemon.start([self._program, self._daemon.directory / "pgbouncer.ini"], self._is_ready)

    def stop(self) -> None:
        """End it, and with it all connections of its clients."""
        self._daemon.stop(signal.SIGTERM)

    def restart(self) -> None:
        """Stop it and start it again, on the same port."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Let it crash."""
        self._daemon.kill()

    def pause(self) -> None:
        """Let it hang: its connections stay open, and nothing answers."""
        self._daemon.pause()

    def resume(self) -> None:
        """Let a pgbouncer that hangs go on."""
        self._daemon.resume()

    def close(self) -> None:
        """End it and remove all that is left of it; nothing happens the second time."""
        self._daemon.close()

    def _start_on_a_free_port(self) -> None:
        users = self._daemon.write("users", f"{_quoted(self._server.user)} {_quoted(self._server.password)}\n")
        for attempt in range(1, ATTEMPTS_TO_GET_A_PORT + 1):
            self.port = free_port()
            settings = {
                "listen_addr": "127.0.0.1",
                "listen_port": self.port,
                "unix_socket_dir": "",
                # The file has the password itself, so that pgbouncer can prove to the server that it knows it.
                "auth_type": "scram-sha-256",
                "auth_file": users,
                "admin_users": self._server.user,
                **self._settings,
            }
            lines = [f"{name} = {value}" for name, value in settings.items()]
            databases = f"* = host={self._server.host} port={self._server.port}"
            self._daemon.write("pgbouncer.ini", "\n".join(("[databases]", databases, "[pgbouncer]", *lines, "")))
            try:
                return self.start()
            except ServerError:
                # Somebody else may have taken the port meanwhile.
                if attempt == ATTEMPTS_TO_GET_A_PORT or "Address already in use" not in self._daemon.end_of_log():
                    raise

    def _is_ready(self, process: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0 and self._daemon.process == process


def _quoted(text: str) -> str:
    return '"' + re.sub('"', '""', text) + '"'
