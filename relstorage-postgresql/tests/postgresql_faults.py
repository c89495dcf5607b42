"""A network that fails: a proxy in front of a PostgreSQL server that cuts a connection at a chosen byte."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

# Closing sends a reset instead of an end.
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Fault:
    """What happens to the next connection that its client sends something on: once, and to that connection only."""

    #: How many bytes of what the client says from now on still reach the server.
    request: int
    #: How many bytes of what the server says after that still reach the client.
    answer: int = 0
    #: Whether the server learns that the client is gone. If not, it waits for the rest for ever.
    server_learns: bool = True
    #: Whether the client learns that the connection is cut. If not, it waits until ``FlakyNetwork.heal``.
    client_learns: bool = True
    #: What passed since: requests, answers to what is not the end of them, and how many bytes after that.
    sent: bytes = b""
    answered: bytes = b""
    passed: int = 0
    happened: threading.Event = field(default_factory=threading.Event)


class FlakyNetwork:
    """Forwards connections to a server. ``dsn`` is the server's, at the port of the proxy."""

    def __init__(self, dsn: str):
        parameters = conninfo_to_dict(dsn)
        self._server = (str(parameters["host"]), int(str(parameters["port"])))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self._listener.getsockname()[1])
        self._fault: Fault | None = None
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._healed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, fault: Fault) -> Fault:
        """Have this happen to whoever speaks next."""
        self._healed.clear()
        with self._lock:
            self._fault = fault
        return fault

    def disarm(self, fault: Fault) -> None:
        """Let everything pass again, if the fault has not happened yet."""
        with self._lock:
            self._fault = None
        fault.request = 1 << 62

    def refuse(self) -> None:
        """Let nobody connect any more; those who are connected stay."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def heal(self) -> None:
        """Reset what was left hanging."""
        self._healed.set()

    def close(self) -> None:
        self.heal()
        self._listener.close()
        for each in self._open:
            _reset(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
            except OSError:
                return
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += (client, server)
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _take(self) -> Fault | None:
        with self._lock:
            fault, self._fault = self._fault, None
        return fault

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        fault: Fault | None = None
        try:
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if client in ready:
                    data = client.recv(1 << 16)
                    if not data:
                        return
                    fault = self._take() or fault
                    if fault is not None:
                        passing = data[: fault.request - len(fault.sent)]
                        fault.sent += passing
                        server.sendall(passing)
                        if len(fault.sent) == fault.request and (not fault.answer or len(passing) < len(data)):
                            return self._cut(client, server, fault)
                    else:
                        server.sendall(data)
                if server in ready:
                    data = server.recv(1 << 16)
                    if not data:
                        return
                    if fault is not None and len(fault.sent) == fault.request:
                        data = data[: fault.answer - fault.passed]
                        fault.passed += len(data)
                        client.sendall(data)
                        if fault.passed == fault.answer:
                            return self._cut(client, server, fault)
                    else:
                        if fault is not None:
                            fault.answered += data
                        client.sendall(data)
        except (OSError, ValueError):
            # The other end was reset, or this one was closed by the test while it waited.
            pass
        finally:
            if fault is None or fault.server_learns:
                _reset(server)
            if fault is None or fault.client_learns:
                _reset(client)

    def _cut(self, client: socket.socket, server: socket.socket, fault: Fault) -> None:
        if fault.server_learns:
            _reset(server)
        fault.happened.set()
        if not fault.client_learns:
            self._healed.wait()
        _reset(client)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()


@contextmanager
def observed(network: FlakyNetwork) -> Iterator[Fault]:
    """Let everything pass, and note what the next one that speaks says and hears."""
    yield network.arm(Fault(request=1 << 62))


def in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Start some work that ends with the test process at the latest; return its future result."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # it is raised where somebody waits for it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
