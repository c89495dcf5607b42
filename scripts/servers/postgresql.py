"""A private PostgreSQL server: a cluster in a directory of its own, made by initdb or copied from a primary, that
listens on a free port of 127.0.0.1 and on a Unix socket in the directory. Everybody needs a password."""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from servers.addresses import Address, psql
from servers.daemon import SECONDS_TO_STOP, Daemon, ServerError, environment, free_port
from servers.debian import POSTGRESQL

# Tells the tests where a server is that they share; empty if there is to be none.
VARIABLE = "RELSTORAGE_TEST_POSTGRESQL"

SUPERUSER = "postgres"
REPLICATOR = "replicator"
OWNER = "zodb"
DATABASE = "zodb"

STOP = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
ATTEMPTS_TO_GET_A_PORT = 5
SECONDS_TO_FOLLOW = 30.0

Settings = Mapping[str, str | int | bool]


class PostgresServer:
    """A running server, from `create` or `make_standby`. As a context manager it removes itself at the end.

    Settings are PostgreSQL's own, fsync included; what `create` is given comes last. The role `zodb` may create
    databases, owns the database `zodb`, and is no superuser.
    """

    def __init__(self, passwords: Mapping[str, str], settings: Settings) -> None:
        """Get a directory; `create` and `make_standby` fill it."""
        self._programs = POSTGRESQL.directory()
        self._passwords = dict(passwords)
        self._settings = dict(settings)
        self._daemon = Daemon("postgresql")
        self._crashed = False
        # What replication calls this server.
        self._name = f"standby_{secrets.token_hex(4)}"
        self.data = self._daemon.directory / "data"
        self.port = 0

    @classmethod
    def create(cls, settings: Settings | None = None) -> PostgresServer:
        """Make a new cluster, and start it."""
        passwords = {role: secrets.token_hex(8) for role in (SUPERUSER, REPLICATOR, OWNER)}
        server = cls(passwords, settings or {})
        try:
            server._initialize()
            server._start_on_a_free_port()
            server._create_roles()
        except BaseException:
            server.close()
            raise
        return server

    def __enter__(self) -> PostgresServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def socket_directory(self) -> Path:
        """Where the Unix socket is, for a `host` that is a path."""
        return self._daemon.directory

    @property
    def process(self) -> int | None:
        """The id of the server's first process, None if the server does not run."""
        return self._daemon.process

    @property
    def log(self) -> str:
        """What the server has written into its log since it was made."""
        return self._daemon.log.read_text(errors="replace")

    @property
    def version(self) -> str:
        """The version of the program, such as 15.18."""
        told = subprocess.run([self._programs / "postgres", "--version"], capture_output=True, text=True, check=True)
        return told.stdout.split()[2]

    def address(self, user: str = OWNER, dbname: str = DATABASE) -> Address:
        """Return where a database is, with the role's password."""
        return Address(self.port, user, self._passwords[user], dbname)

    def dsn(self, user: str = OWNER, dbname: str = DATABASE) -> str:
        """Return libpq's connection string for a database."""
        return self.address(user, dbname).dsn

    def psql(self, sql: str, user: str = SUPERUSER, dbname: str = DATABASE) -> str:
        """Run statements, each a transaction of its own, and return the rows, with | between the columns."""
        return psql(self.address(user, dbname), sql)

    def start(self) -> None:
        """Start the server and wait until it accepts connections; after a crash, until it has recovered."""
        self._daemon.start([self._programs / "postgres", "-D", self.data], self._is_ready)
        self._crashed = False

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server, with the meaning that the modes have for pg_ctl, and wait until it has stopped."""
        self._daemon.stop(STOP[mode])

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and start it again, on the same port."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Let the server crash: all its processes end at once. What it wrote and did not flush is not lost."""
        self._crashed = True
        self._daemon.kill()

    def pause(self) -> None:
        """Let the server hang: its connections stay open, and nothing answers."""
        self._daemon.pause()

    def resume(self) -> None:
        """Let a server that hangs go on."""
        self._daemon.resume()

    def set(self, **settings: str | int | bool) -> None:
        """Change settings of the running server. Those that need it have to be followed by `restart`."""
        for name, value in settings.items():
            self.psql(f"ALTER SYSTEM SET {name} = {_quoted(value)}")
        # A session that begins now sees the change; others see it when they are idle, which may be a little later.
        self.psql("SELECT pg_reload_conf()")

    def make_standby(self, *, synchronous: bool = False, settings: Settings | None = None) -> PostgresServer:
        """Make a hot standby that follows this server, and wait until it does.

        With ``synchronous``, no commit on this server returns before the standby has it, unless
        ``synchronous_commit`` says otherwise. The standby's own end leaves its slot here.
        """
        standby = PostgresServer(self._passwords, {**self._settings, **(settings or {})})
        try:
            standby._copy(self)
            standby._start_on_a_free_port()
            # The copy would wait for this server's synchronous standby, once it is a primary itself.
            standby.set(synchronous_standby_names="")
            followers = f"FROM pg_stat_replication WHERE application_name = '{standby._name}'"
            self._wait(f"SELECT state {followers}", "streaming")
            if synchronous:
                self.set(synchronous_standby_names=standby._name)
                self._wait(f"SELECT sync_state {followers}", "sync")
        except BaseException:
            standby.close()
            raise
        return standby

    def wait_for(self, primary: PostgresServer) -> None:
        """Wait until this standby has replayed everything that its primary has written by now."""
        position = primary.psql("SELECT pg_current_wal_lsn()")
        self._wait(f"SELECT pg_last_wal_replay_lsn() >= '{position}'", "t")

    def promote(self) -> None:
        """Make this standby a primary, and wait until it is one."""
        self.psql("SELECT pg_promote()")
        self._wait("SELECT pg_is_in_recovery()", "f")

    def close(self) -> None:
        """Stop the server and remove all that is left of it; nothing happens the second time."""
        if not self._daemon.directory.exists():
            return
        with contextlib.suppress(ServerError):
            self.stop("immediate")
        if self._crashed:
            self._release_shared_memory()
        self._daemon.close()

    def _initialize(self) -> None:
        password = self._daemon.write("password", self._passwords[SUPERUSER])
        options = [f"--username={SUPERUSER}", f"--pwfile={password}", "--auth=scram-sha-256"]
        # --no-sync is about the making only.
        options += ["--encoding=UTF8", "--locale=C", "--no-sync"]
        self._daemon.run([self._programs / "initdb", f"--pgdata={self.data}", *options])
        password.unlink()

    def _copy(self, primary: PostgresServer) -> None:
        # The program writes the connection string, with its password, into the settings of the copy.
        source = primary.address(REPLICATOR)
        where = f"host={source.host} port={source.port} user={source.user} application_name={self._name}"
        options = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
        options += ["--create-slot", f"--slot={self._name}", f"--pgdata={self.data}", f"--dbname={where}"]
        self._daemon.run([self._programs / "pg_basebackup", *options], {"PGPASSWORD": source.password})

    def _start_on_a_free_port(self) -> None:
        for attempt in range(1, ATTEMPTS_TO_GET_A_PORT + 1):
            self.port = free_port()
            self._configure()
            try:
                return self.start()
            except ServerError:
                # Somebody else may have taken the port meanwhile.
                if attempt == ATTEMPTS_TO_GET_A_PORT or "Address already in use" not in self._daemon.end_of_log():
                    raise

    def _configure(self) -> None:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.socket_directory),
            **self._settings,
        }
        lines = [f"{name} = {_quoted(value)}" for name, value in settings.items()]
        # The last one of a name counts: these come after those of initdb, and after the primary's in a copy.
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\n".join(("", *lines, "")))

    def _create_roles(self) -> None:
        self.psql(
            f"CREATE ROLE {OWNER} LOGIN CREATEDB PASSWORD '{self._passwords[OWNER]}';"
            f"CREATE ROLE {REPLICATOR} LOGIN REPLICATION PASSWORD '{self._passwords[REPLICATOR]}';"
            f"CREATE DATABASE {DATABASE} OWNER {OWNER}",
            dbname="postgres",
        )

    def _is_ready(self, process: int) -> bool:
        # What pg_ctl waits for. The file may be that of a server that crashed before.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(process) and lines[7].strip() == "ready"

    def _wait(self, sql: str, wanted: str) -> None:
        deadline = time.monotonic() + SECONDS_TO_FOLLOW
        while (got := self.psql(sql)) != wanted:
            if time.monotonic() > deadline:
                raise ServerError(f"'{sql}' is {got!r} instead of {wanted!r}.\n{self._daemon.end_of_log()}")
            time.sleep(0.02)

    def _release_shared_memory(self) -> None:
        # Only PostgreSQL knows what a crash left in shared memory; it looks for that whenever it starts.
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [self._programs / "postgres", "--single", "-D", self.data, "postgres"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self._daemon.directory,
                env=environment(),
                timeout=SECONDS_TO_STOP,
                **self._daemon.account.started_as(),
            )


def _quoted(value: str | int | bool) -> str:
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    doubled = text.replace("'", "''")
    return f"'{doubled}'"
