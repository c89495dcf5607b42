"""The options of a PostgreSQL database, beside those of every storage.

Whichever way a configuration names the server, it arrives as one connection string: the option ``dsn``.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import SplitResult

from relstorage.errors import ConfigurationError
from relstorage.options import BOOL, STRING, BackendOptions, OptionType, option, options_class, spelled
from relstorage_postgresql import dsn as connection_strings

_FORMER_ARGUMENTS = {"ssl_mode": "sslmode"}
# https://www.postgresql.org/docs/current/limits.html
_LONGEST_NAME = 63


def _to_connection_string(value: Any) -> str:
    text: str = STRING.convert(value)
    connection_strings.parse(text)
    return text


def _to_schema(value: Any) -> str:
    name: str = STRING.convert(value)
    if not 0 < len(name.encode()) <= _LONGEST_NAME or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a schema, which has 1 to {_LONGEST_NAME} bytes")
    return name


CONNECTION_STRING = OptionType("libpq connection string", _to_connection_string)
SCHEMA = OptionType("name", _to_schema)


@options_class
class PostgresOptions(BackendOptions):
    """The options of a PostgreSQL database."""

    dsn: str = option(
        CONNECTION_STRING,
        "",
        """The server and the database, as libpq's keywords and values or as a URI; what it leaves out comes from
        libpq's environment variables and defaults.""",
        secret=True,
    )
    schema: str | None = option(
        SCHEMA, None, "The schema of the tables; by default the first one of the session's search path."
    )
    transaction_pooling: bool = option(
        BOOL,
        False,
        """Whether the server is reached through a pooler that gives each transaction another session; nothing is then
        prepared or set for longer than a transaction.""",
    )
    early_lock_release: bool = option(
        BOOL,
        True,
        """Whether the commit lock is released before the commit is on disk, so that others need not wait for the disk;
        a commit succeeds only when it is there.""",
    )

    @classmethod
    def from_uri(cls, parts: SplitResult, arguments: dict[str, str]) -> dict[str, str]:
        """Return the connection string of ``postgresql://user:password@host:port/database?sslmode=require``.

        Every parameter of libpq is understood as an argument.
        """
        if parts.path and not parts.path.startswith("/"):
            raise ConfigurationError(f"the URI of the database lacks the '//' after '{parts.scheme}:'")
        parameters = connection_strings.parse(f"postgresql://{parts.netloc}{parts.path}")
        for argument in tuple(arguments):
            name = _FORMER_ARGUMENTS.get(spelled(argument), spelled(argument))
            if name not in connection_strings.PARAMETERS:
                continue
            if name in parameters:
                raise ConfigurationError(f"the URI gives the connection parameter {name!r} twice")
            parameters[name] = arguments.pop(argument)
        if not parameters:
            return {}
        if "dsn" in map(spelled, arguments):
            raise ConfigurationError(
                "the URI gives the option 'dsn' and connection parameters too; write them into one of both"
            )
        return {"dsn": connection_strings.format(parameters)}
