"""Connection strings of libpq: from text to parameters by name, and back, without libpq.

Both forms are read: ``host=db dbname=zodb`` and ``postgresql://db/zodb``. What a string does not mention is absent, so
that libpq goes on to find it in the environment, in a service file or among its defaults. Strings hold passwords; no
error of this module shows any part of one, ``describe`` names a database without them, and ``mask`` removes them from
the texts of others.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from relstorage.errors import ConfigurationError

URI_PREFIXES = ("postgresql://", "postgres://")

PARAMETERS = frozenset(
    re.findall(
        r"\w+",
        """
    application_name channel_binding client_encoding connect_timeout dbname fallback_application_name gssdelegation
    gssencmode gsslib host hostaddr keepalives keepalives_count keepalives_idle keepalives_interval krbsrvname
    load_balance_hosts max_protocol_version min_protocol_version oauth_client_id oauth_client_secret oauth_issuer
    oauth_scope options passfile password port replication require_auth requirepeer requiressl scram_client_key
    scram_server_key service servicefile ssl_max_protocol_version ssl_min_protocol_version sslcert sslcertmode
    sslcompression sslcrl sslcrldir sslkey sslkeylogfile sslmode sslnegotiation sslpassword sslrootcert sslsni
    target_session_attrs tcp_user_timeout user
    """,
    )
)
"""Every parameter that some version of libpq knows."""

SECRETS = frozenset(["oauth_client_secret", "password", "scram_client_key", "scram_server_key", "sslpassword"])
"""The parameters whose values must not be shown."""

_BLANKS = " \\t\\n\\v\\f\\r"
_PAIR = re.compile(
    rf"[{_BLANKS}]*(?P<name>[^={_BLANKS}]+)[{_BLANKS}]*=[{_BLANKS}]*"
    rf"(?:'(?P<quoted>(?:[^'\\]|\\.)*)(?P<end>')|(?P<plain>(?!')(?:[^\\{_BLANKS}]|\\.|\\\Z)*))",
    re.DOTALL,
)
_SPECIAL = re.compile(rf"[{_BLANKS}'\\]")
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)

_SERVER = re.compile(r"(?:\[(?P<address>[^]]*)\]|(?P<host>[^:]*))(?::(?P<port>.*))?", re.DOTALL)
_ESCAPED_BYTE = re.compile(rb"%([0-9A-Fa-f]{2})")


# --- reading


def parse(text: str) -> dict[str, str]:
    """Return the parameters of a connection string, in its order. Of a parameter that occurs twice, the last counts.

    It raises ``ConfigurationError`` for what libpq cannot read, and for a URI in which a part of a password would be
    taken for something else because ``@``, ``/`` or ``?`` was not percent-encoded. Whether a parameter exists is for
    libpq to say.
    """
    if "\0" in text:
        raise ConfigurationError("a connection string cannot contain the character with the number 0")
    for prefix in URI_PREFIXES:
        if text.startswith(prefix):
            pairs = _uri(text[len(prefix) :])
            break
    else:
        pairs = _keywords(text)
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name == "requiressl":
            # libpq's own translation of a former parameter.
            name, value = "sslmode", "require" if value.startswith("1") else "prefer"
        parameters[name] = value
    return parameters


def _keywords(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    end = len(text.rstrip(" \t\n\v\f\r"))
    while position < end:
        match = _PAIR.match(text, position)
        if match is None:
            raise ConfigurationError(
                f"the connection string cannot be read from its character {position + 1} on: after a keyword there is"
                " no '=' and value, or a quotation mark is missing"
            )
        value = match["quoted"] if match["quoted"] is not None else match["plain"]
        yield match["name"], _ESCAPED.sub(r"\1", value)
        position = match.end()


def _uri(text: str) -> Iterator[tuple[str, str]]:
    credentials, at, rest = text.partition("@")
    if at and "/" not in credentials:
        user, _, password = credentials.partition(":")
        for name, value in (("user", user), ("password", password)):
            if value:
                yield name, _decoded(value, name)
    else:
        rest = text
    before, _, query = rest.partition("?")
    if "@" in before:
        raise ConfigurationError(
            "the URI of the database has an '@' where no user and password can be;"
            " write '%40' for an '@' and '%2F' for a '/' that are part of them"
        )
    servers, _, database = before.partition("/")
    yield from _servers(servers)
    if database:
        yield "dbname", _decoded(database, "dbname")
    yield from _arguments(query)


def _servers(text: str) -> Iterator[tuple[str, str]]:
    hosts, ports = [], []
    for server in text.split(","):
        match = _SERVER.fullmatch(server)
        if match is None or match["address"] == "" or (match["host"] or "").startswith("["):
            raise ConfigurationError("the URI of the database has an IPv6 address that is empty or lacks its brackets")
        port = match["port"] or ""
        if not re.fullmatch("[0-9]*", _decoded(port, "port")):
            raise ConfigurationError(
                "the URI of the database has a port that is not a number; a '/', '?' or '@' that is part of a password"
                " is written '%2F', '%3F' or '%40'"
            )
        hosts.append(match["address"] or match["host"] or "")
        ports.append(port)
    for name, values in (("host", hosts), ("port", ports)):
        value = ",".join(values)
        if value:
            yield name, _decoded(value, name)


def _arguments(query: str) -> Iterator[tuple[str, str]]:
    arguments = query.removesuffix("&").split("&") if query else []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or "=" in value:
            raise ConfigurationError(
                "an argument of the URI of the database is not written as name=value;"
                " write '%26' for an '&' and '%3D' for an '=' that are part of a value"
            )
        name, value = _decoded(name, "an argument's name"), _decoded(value, "an argument")
        if (name, value) == ("ssl", "true"):
            # As the drivers of Java write it; libpq reads it too.
            name, value = "sslmode", "require"
        if not re.fullmatch(r"\w+", name):
            raise ConfigurationError("an argument of the URI of the database has a name that is not a word")
        yield name, value


def _decoded(text: str, what: str) -> str:
    # libpq 18 cuts blanks off and refuses them inside; older ones took them for a part of the value.
    text = text.strip(" ")
    raw = text.encode("utf-8", "surrogateescape")
    if b" " in raw or re.search(rb"%(?![0-9A-Fa-f]{2})|%00", raw):
        raise ConfigurationError(
            f"{what} cannot be decoded in the URI of the database; write '%25' for a '%' and '%20' for a blank"
        )
    try:
        return _ESCAPED_BYTE.sub(lambda match: bytes([int(match[1], 16)]), raw).decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{what} is not percent-encoded UTF-8 in the URI of the database") from None


# --- writing


def format(parameters: Mapping[str, str]) -> str:
    """Return a connection string that ``parse`` and libpq read as these parameters."""
    for name, value in parameters.items():
        if not re.fullmatch(rf"[^={_BLANKS}\0]+", name) or "\0" in value:
            raise ConfigurationError(
                "a connection string cannot express one of the parameters: it has a character"
                " with the number 0, or a blank or '=' in its name"
            )
    return " ".join(f"{name}={_quoted(value)}" for name, value in parameters.items())


def _quoted(value: str) -> str:
    if value and not _SPECIAL.search(value):
        return value
    return "'" + re.sub(r"(['\\])", r"\\\1", value) + "'"


def with_setting(
    parameters: Mapping[str, str], name: str, value: str, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the parameters with one more setting of the server that holds from the start of a session.

    The parameter ``options`` takes the place of ``PGOPTIONS``, so that what this variable says is kept by writing it
    down.
    """
    escaped = re.sub(r"([\s\\])", r"\\\1", value)
    before = parameters.get("options") or environment.get("PGOPTIONS", "")
    return {**parameters, "options": f"{before} -c {name}={escaped}".lstrip()}


# --- showing


def describe(parameters: Mapping[str, str], schema: str | None = None) -> str:
    """Return the name of a database for people and for sorting, such as ``postgresql:db.example.com:5432/zodb``.

    A directory of Unix sockets, an IPv6 address and a service stand in brackets. What the parameters leave to libpq is
    left out here too.
    """
    hosts = (parameters.get("host") or parameters.get("hostaddr") or "").split(",")
    ports = (parameters.get("port") or "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    servers = []
    for number, host in enumerate(hosts):
        port = ports[number] if number < len(ports) else ""
        bracketed = f"[{host}]" if host.startswith(("/", "@")) or ":" in host else host
        servers.append(f"{bracketed}:{port}" if port else bracketed)
    service = f"[service {parameters['service']}]" if parameters.get("service") else ""
    path = "".join(f"/{each}" for each in (parameters.get("dbname"), schema) if each)
    return f"postgresql:{service}{','.join(servers)}{path}"


def mask(text: str, parameters: Mapping[str, str]) -> str:
    """Return a text without the secrets among the parameters, however they are quoted or percent-encoded in it."""
    secrets = {value for name, value in parameters.items() if name in SECRETS and value}
    if not secrets:
        return text
    spellings = map(_spellings, sorted(secrets, key=len, reverse=True))
    return re.sub("|".join(spellings), "***", text)


def _spellings(secret: str) -> str:
    """Return a pattern of a secret in which each character may be escaped, quoted or percent-encoded."""
    # Of a row of backslashes only the first can be the beginning: trying each takes time for rows of many.
    pattern = r"(?<!\\)"
    escape = r"\\*"
    for part in re.findall(r"\\+|[^\\]", secret):
        if part.startswith("\\"):
            pattern += rf"(?:\\|%5[Cc]){{{len(part)},}}"
            escape = ""
        else:
            pattern += escape + _spelled(part)
            escape = r"\\*"
    return pattern


def _spelled(character: str) -> str:
    encoded = "".join(f"%(?i:{byte:02x})" for byte in character.encode("utf-8", "surrogatepass"))
    ways = {re.escape(character), encoded, *(re.escape(shown(character)[1:-1]) for shown in (repr, ascii))}
    if character == "'":
        ways.add("''")
    if character == " ":
        ways.add(r"\+")
    return f"(?:{'|'.join(sorted(ways, key=len, reverse=True))})"
