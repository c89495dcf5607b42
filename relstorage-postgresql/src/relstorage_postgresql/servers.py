"""Which server a session connects to: the one of the dsn, or the first that will do of those listed in a file.

What writes, and without ``ro-replica-conf`` all that reads, goes to a server that accepts writes. Who lists a primary
and its standbys in ``replica-conf`` thus has nothing to change when one of them takes over: sessions to the former
primary break, and the next ones find the new one. A file is read again when it changes.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

from relstorage.errors import ConfigurationError, Disconnected
from relstorage_postgresql import dsn
from relstorage_postgresql.drivers.session import INCARNATION
from relstorage_postgresql.drivers.settings import SessionSettings

log = logging.getLogger(__name__)

_HOST = re.compile(r"(?:\[(?P<address>[^]\s]+)\]|(?P<host>[^:\s]+))(?::(?P<port>[\d,]+))?")
#: What says where a server is. Who names another host means none of the rest.
_PLACE = ("host", "hostaddr", "service")
#: A file is looked at for changes after so many seconds at the earliest.
_LOOK_AGAIN = 1.0
# Off where default_transaction_read_only is set, too, by which an administrator may retire a primary.
_WRITABLE = f"SELECT {INCARNATION}, current_setting('transaction_read_only')"


@dataclass(frozen=True)
class Server:
    """One server of a file."""

    parameters: Mapping[str, str]


def read_servers(path: str, base: Mapping[str, str], reading: bool = False) -> list[Server]:
    """Return the servers in a file, one a line, where ``#`` begins a comment line.

    A line is a connection string, or a host with or without ``:port``; what it leaves out is as in ``base``. For
    ``reading``, what ``base`` says of the kind of server wanted is left out. Raise ``ConfigurationError`` with the
    number of the line, and without a password.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigurationError(f"{path}, which lists the database servers, cannot be read: {reason}") from None
    unwanted = ("target_session_attrs", "load_balance_hosts") if reading else ()
    base = {name: value for name, value in base.items() if name not in unwanted}
    servers = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            try:
                servers.append(Server(_merged(base, _parse(line))))
            except ConfigurationError as error:
                raise ConfigurationError(f"{path}, line {number}: {error}") from None
    if not servers:
        raise ConfigurationError(f"{path} lists no database server. Write one on each line, the primary on the first.")
    return servers


def _parse(line: str) -> dict[str, str]:
    if "=" in line or line.startswith(dsn.URI_PREFIXES):
        return dsn.parse(line)
    match = _HOST.fullmatch(line)
    if match is None:
        raise ConfigurationError(
            "this is neither a connection string nor a host with a port; an IPv6 address has to be in brackets"
        )
    given = {"host": match["address"] or match["host"]}
    if match["port"]:
        given["port"] = match["port"]
    return given


def _merged(base: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    kept = dict(base)
    if any(name in given for name in _PLACE):
        for name in _PLACE:
            kept.pop(name, None)
        if "service" in given or "," in kept.get("port", ""):
            kept.pop("port", None)
    return {**kept, **given}


class ServerList:
    """The servers of one file, and which of them worked last. Shared by all threads of a process.

    ``timeout`` is after how many seconds on another server the first is tried again; 0 is never. Where ``writable`` is
    false, every server will do.
    """

    def __init__(
        self,
        path: str,
        base: Mapping[str, str],
        timeout: float,
        writable: bool,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.writable = writable
        self._path = path
        self._base = base
        self._timeout = timeout or inf
        self._clock = clock
        self._lock = threading.Lock()
        self._version = _version(path)
        self._servers = read_servers(path, base, not writable)
        self._looked = clock()
        self._current = 0
        #: When the first server is to be tried again.
        self._until = inf

    def in_order(self) -> list[Server]:
        """Return all servers in the order in which to try them: the one that worked last, then the others."""
        with self._lock:
            self._look()
            first = 0 if self._clock() >= self._until else self._current
            return [self._servers[first], *self._servers[:first], *self._servers[first + 1 :]]

    def works(self, server: Server) -> None:
        """Take note of the server that was found to do."""
        with self._lock:
            if server in self._servers:
                self._current = self._servers.index(server)
                self._until = self._clock() + self._timeout if self._current else inf

    def is_outdated(self, server: Server) -> bool:
        """Return whether it is time to leave a server: it is off the list, or the first one may be back."""
        with self._lock:
            self._look()
            if server == self._servers[0]:
                return False
            return server not in self._servers or not self._current or self._clock() >= self._until

    def _look(self) -> None:
        """Read the file again if it has changed. What cannot be read changes nothing: it may be half written."""
        now = self._clock()
        if now < self._looked + _LOOK_AGAIN:
            return
        self._looked = now
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            servers = read_servers(self._path, self._base, not self.writable)
        except ConfigurationError as error:
            log.error("The servers stay as they were: %s", error)
            return
        log.info("%s has changed and lists %s servers now", self._path, len(servers))
        self._servers = servers
        self._current, self._until = 0, inf


def _version(path: str) -> tuple[int, int, int] | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


class Servers:
    """Opens sessions in each role. Without lists, all of them are on the server of the dsn."""

    def __init__(
        self,
        driver: Any,
        settings: SessionSettings,
        listed: ServerList | None = None,
        to_read: ServerList | None = None,
    ):
        self._driver = driver
        self._settings = settings
        self._listed = listed
        self._to_read = to_read

    def open_session(self, role: str) -> Any:
        """Return a new session. Raise ``Disconnected`` if none of the servers will do now."""
        servers = self._list_for(role)
        if servers is None:
            return self._driver.open_session(self._settings, role)
        refusals = []
        for server in servers.in_order():
            name = dsn.describe(server.parameters, self._settings.schema)
            settings = replace(self._settings, parameters=server.parameters, name=name)
            try:
                session = self._driver.open_session(settings, role)
            except Disconnected as error:
                refusals.append(str(error))
                continue
            if servers.writable and not self._accepts_writes(session, refusals):
                continue
            servers.works(server)
            if role != "pack":
                # What packs keeps its session, and the lock on it, to the end.
                session.outdated = partial(servers.is_outdated, server)
            return session
        raise Disconnected(
            f"Connecting to {self._settings.name}: none of the servers "
            f"{'accepts writes' if servers.writable else 'can be reached'}. {' '.join(refusals)}"
        )

    def _accepts_writes(self, session: Any, refusals: list[str]) -> bool:
        try:
            incarnation, read_only = session.script(_WRITABLE)[0]
        except Disconnected as error:
            session.close()
            refusals.append(str(error))
            return False
        except BaseException:
            session.close()
            raise
        if read_only == "on":
            session.close()
            refusals.append(f"{session.settings.name} is a standby, or was made read-only.")
            return False
        session.remember_incarnation(incarnation)
        return True

    def are_alike(self, role: str, other: str) -> bool:
        """Return whether a session in one role will do for another."""
        return self._list_for(role) is self._list_for(other)

    def _list_for(self, role: str) -> ServerList | None:
        return self._to_read if role == "load" and self._to_read is not None else self._listed
