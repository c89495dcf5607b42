"""Where a database is and who is asked to be let in, as one value; and the program psql, for setting things up."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, replace

from servers.daemon import ServerError, environment
from servers.debian import POSTGRESQL

PAIR = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|(\S+))", re.DOTALL)


@dataclass(frozen=True)
class Address:
    """A database of a server, and a role with its password."""

    port: int
    user: str
    password: str
    dbname: str
    host: str = "127.0.0.1"

    @classmethod
    def parse(cls, dsn: str) -> Address:
        """Return what a connection string of libpq says."""
        told = {name: re.sub(r"\\(.)", r"\1", quoted or plain) for name, quoted, plain in PAIR.findall(dsn)}
        return cls(int(told["port"]), told["user"], told["password"], told["dbname"], told["host"])

    @property
    def dsn(self) -> str:
        """The connection string of libpq."""
        values = {
            "host": self.host,
            "port": str(self.port),
            "user": self.user,
            "password": self.password,
            "dbname": self.dbname,
        }
        return " ".join(f"{name}={_quoted(value)}" for name, value in values.items())

    def at(self, port: int) -> Address:
        """Return the same of a server at another port of 127.0.0.1."""
        return replace(self, host="127.0.0.1", port=port)


def _quoted(value: str) -> str:
    if re.fullmatch(r"[\w.-]+", value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def psql(address: Address, sql: str) -> str:
    """Run statements, each a transaction of its own, and return the rows, with | between the columns."""
    beside = POSTGRESQL.directory() / "psql"
    program = beside if beside.exists() else shutil.which("psql")
    if program is None:
        raise ServerError("psql is not installed. Type: sudo apt-get install -y postgresql-client")
    options = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password", "--set=ON_ERROR_STOP=1"]
    where = [f"--host={address.host}", f"--port={address.port}", f"--username={address.user}"]
    done = subprocess.run(
        [program, *options, *where, f"--dbname={address.dbname}"],
        input=sql,
        capture_output=True,
        text=True,
        env=environment({"PGPASSWORD": address.password}),
    )
    if done.returncode:
        raise ServerError(f"psql: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")
