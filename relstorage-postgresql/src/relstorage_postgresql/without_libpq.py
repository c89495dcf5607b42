"""What libpq makes of connection parameters, for a driver that does not stand on libpq.

Parameters, the environment variables of libpq and a password file become the keywords of pg8000's connection. What they
ask for and pg8000 cannot do is refused, not ignored, wherever leaving it out would connect to another server or with
less protection.

https://www.postgresql.org/docs/current/libpq-envars.html
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import ssl
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from relstorage.errors import ConfigurationError

_VARIABLES = {
    "application_name": "PGAPPNAME",
    "channel_binding": "PGCHANNELBINDING",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "dbname": "PGDATABASE",
    "gssencmode": "PGGSSENCMODE",
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "min_protocol_version": "PGMINPROTOCOLVERSION",
    "options": "PGOPTIONS",
    "passfile": "PGPASSFILE",
    "password": "PGPASSWORD",
    "port": "PGPORT",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "service": "PGSERVICE",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "sslcert": "PGSSLCERT",
    "sslcertmode": "PGSSLCERTMODE",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "sslkey": "PGSSLKEY",
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslrootcert": "PGSSLROOTCERT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "user": "PGUSER",
}
# The only values that mean what pg8000 does; without any, the parameter cannot be used with it.
_POSSIBLE: dict[str, tuple[str, ...]] = {
    "channel_binding": ("disable", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "min_protocol_version": ("3.0",),
    "replication": ("false", "off", "no", "0"),
    "require_auth": (),
    "requirepeer": (),
    "scram_client_key": (),
    "scram_server_key": (),
    "service": (),
    "sslcertmode": ("allow",),
    "sslcrl": (),
    "sslcrldir": (),
    "sslnegotiation": ("postgres",),
    "target_session_attrs": ("any",),
}
_SOCKET_DIRECTORIES = ("/var/run/postgresql", "/run/postgresql", "/tmp")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# What an option of a socket is called here and there; not every system has all of them.
_SOCKET_OPTIONS = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}
_TLS_VERSIONS = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}


def for_pg8000(parameters: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the keywords for ``pg8000.native.Connection``.

    pg8000 keeps ``timeout`` for everything that it waits for; libpq's ends when the session is open. The caller takes
    it off the socket then.
    """
    given = {name: environment[variable] for name, variable in _VARIABLES.items() if variable in environment}
    given = {name: value for name, value in {**given, **parameters}.items() if value}
    _refuse(given)
    user = given.get("user") or getpass.getuser()
    port = _number(given, "port") or 5432
    address = _address(given, port)
    keywords: dict[str, Any] = {
        "user": user,
        "database": given.get("dbname") or user,
        **address,
        "ssl_context": False if "unix_sock" in address else _ssl_context(given, environment),
        "timeout": max(_number(given, "connect_timeout"), 0) or None,
        "tcp_keepalive": given.get("keepalives") != "0",
        "application_name": given.get("application_name") or given.get("fallback_application_name"),
        "startup_params": {"client_encoding": "UTF8"},
    }
    if "options" in given:
        keywords["startup_params"]["options"] = given["options"]
    host = given.get("host") or given.get("hostaddr") or "localhost"
    # libpq's own rule; the password file says 'localhost' for the usual socket too.
    host = "localhost" if host in _SOCKET_DIRECTORIES else host
    password = given.get("password")
    if password is None:
        path = _home(given, "passfile", ".pgpass", environment)
        password = _password_of_file(path, host, str(port), keywords["database"], user)
    if password is not None:
        keywords["password"] = password
    return keywords


def socket_options(parameters: Mapping[str, str]) -> list[tuple[int, int]]:
    """Return options of a TCP socket and their values: how long a silent network is waited for, as libpq sets them."""
    return [
        (getattr(socket, option), value)
        for name, option in _SOCKET_OPTIONS.items()
        if hasattr(socket, option) and (value := _number(parameters, name)) > 0
    ]


def _refuse(given: Mapping[str, str]) -> None:
    for name, possible in _POSSIBLE.items():
        if name in given and given[name] not in possible:
            raise ConfigurationError(
                f"the driver pg8000 cannot do what the connection parameter {name!r} asks for."
                " Leave it out, or choose a driver that uses libpq"
            )
    if any("," in given.get(name, "") for name in ("host", "hostaddr", "port")):
        raise ConfigurationError(
            "the driver pg8000 connects to one server, and the connection parameters name several."
            " List the others in the file of the option 'replica-conf', or choose a driver that uses libpq"
        )


def _number(given: Mapping[str, str], name: str) -> int:
    try:
        return int(given.get(name, "0"))
    except ValueError:
        raise ConfigurationError(f"the connection parameter {name!r} is not a whole number") from None


# --- where the server is


def _address(given: Mapping[str, str], port: int) -> dict[str, Any]:
    host = given.get("host", "")
    address = given.get("hostaddr", "")
    if address:
        if given.get("sslmode") == "verify-full" and host:
            raise ConfigurationError(
                "the driver pg8000 cannot connect to 'hostaddr' and expect the certificate of 'host'."
                " Leave 'hostaddr' out, or choose a driver that uses libpq"
            )
        return {"host": address, "port": port}
    if host.startswith(("/", "@")):
        path = f"{host}/.s.PGSQL.{port}"
        # The kernel's abstract names begin with a zero byte.
        return {"unix_sock": "\0" + path[1:] if host.startswith("@") else path}
    if host:
        return {"host": host, "port": port}
    for path in _usual_sockets(port):
        if os.path.exists(path):
            return {"unix_sock": path}
    return {"host": "localhost", "port": port}


def _usual_sockets(port: int) -> list[str]:
    return [f"{directory}/.s.PGSQL.{port}" for directory in _SOCKET_DIRECTORIES]


# --- encryption


def _ssl_context(given: Mapping[str, str], environment: Mapping[str, str]) -> ssl.SSLContext | bool | None:
    """Return what pg8000 makes of ``sslmode``: False is none, and None is encryption where the server offers it."""
    root = given.get("sslrootcert")
    mode = given.get("sslmode") or ("verify-full" if root == "system" else "prefer")
    if mode not in _SSL_MODES:
        raise ConfigurationError(f"the connection parameter 'sslmode' is none of {', '.join(_SSL_MODES)}")
    if root == "system" and mode != "verify-full":
        raise ConfigurationError(
            "the connection parameter 'sslrootcert' can only be 'system' where 'sslmode' is 'verify-full'"
        )
    if mode == "disable":
        return False
    own = {"sslcert", "sslkey", "ssl_min_protocol_version", "ssl_max_protocol_version"} & given.keys()
    if mode in ("allow", "prefer") and not own:
        return None
    # pg8000 can only insist on encryption of a certain kind.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _tls_version(given, "ssl_min_protocol_version", ssl.TLSVersion.TLSv1_2)
    context.maximum_version = _tls_version(given, "ssl_max_protocol_version", ssl.TLSVersion.MAXIMUM_SUPPORTED)
    context.check_hostname = mode == "verify-full"
    try:
        _verify_by(context, mode, root, _home(given, "sslrootcert", ".postgresql/root.crt", environment))
        certificate = _home(given, "sslcert", ".postgresql/postgresql.crt", environment)
        if "sslcert" in given or os.path.exists(certificate):
            key = _home(given, "sslkey", ".postgresql/postgresql.key", environment)
            context.load_cert_chain(certificate, key, given.get("sslpassword", ""))
    except OSError as problem:
        raise ConfigurationError(
            "the certificates or the key that the connection parameters 'sslrootcert', 'sslcert' and 'sslkey' name"
            f" cannot be used: {problem.strerror or type(problem).__name__}"
        ) from None
    return context


def _verify_by(context: ssl.SSLContext, mode: str, root: str | None, path: str) -> None:
    if root == "system":
        context.load_default_certs()
    elif mode.startswith("verify-") or (mode == "require" and os.path.exists(path)):
        # That 'require' verifies where there is a root certificate is libpq's rule.
        context.load_verify_locations(path)
    else:
        context.verify_mode = ssl.CERT_NONE


def _tls_version(given: Mapping[str, str], name: str, default: ssl.TLSVersion) -> ssl.TLSVersion:
    try:
        return _TLS_VERSIONS[given[name]] if name in given else default
    except KeyError:
        raise ConfigurationError(f"the connection parameter {name!r} is none of {', '.join(_TLS_VERSIONS)}") from None


# --- the password file


def _home(given: Mapping[str, str], name: str, default: str, environment: Mapping[str, str]) -> str:
    """Return the path that a parameter names, or where libpq looks for such a file in the home directory."""
    return given.get(name) or os.path.join(environment.get("HOME") or os.path.expanduser("~"), default)


def _password_of_file(path: str, *wanted: str) -> str | None:
    """Return the password of the first line whose host, port, database and user are these or ``*``.

    https://www.postgresql.org/docs/current/libpq-pgpass.html
    """
    try:
        with open(path, encoding="utf-8") as file:
            facts = os.fstat(file.fileno())
            # Like libpq: what others can read is no secret.
            if not stat.S_ISREG(facts.st_mode) or (os.name == "posix" and facts.st_mode & 0o077):
                return None
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        fields = list(_fields(line)) if not line.startswith("#") else []
        if len(fields) >= 5 and all(field in ("*", value) for field, value in zip(fields[:4], wanted, strict=True)):
            return fields[4]
    return None


def _fields(line: str) -> Iterator[str]:
    for field in re.findall(r"((?:[^:\\]|\\.|\\$)*)(?::|$)", line):
        yield re.sub(r"\\(.)", r"\1", field)
