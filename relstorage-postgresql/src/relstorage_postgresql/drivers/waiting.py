"""Waiting for the socket of a connection: in the thread or, where gevent has patched the process, in a greenlet.

libpq's own waiting blocks the thread, and signals are not heard before it ends. Drivers that can do without it wait
here.
"""

from __future__ import annotations

import random
import select
import socket
import sys
from collections.abc import Callable, Iterator, Mapping

Wait = Callable[[int, bool, float | None], None]
"""Wait until a socket can be read (or written too); raise ``TimeoutError`` after so many seconds."""


def wait_blocking(fileno: int, writing: bool, timeout: float | None = None) -> None:
    """Wait for a socket, letting signals be handled."""
    poll = select.poll()
    poll.register(fileno, select.POLLIN | (select.POLLOUT if writing else 0))
    if not poll.poll(None if timeout is None else max(timeout, 0) * 1000):
        raise TimeoutError("timed out")


def wait_with_gevent(fileno: int, writing: bool, timeout: float | None = None) -> None:
    """Wait for a socket, letting other greenlets run."""
    from gevent.socket import wait_read, wait_readwrite

    (wait_readwrite if writing else wait_read)(fileno, None if timeout is None else max(timeout, 0))


def patched_by_gevent() -> bool:
    """Tell whether waiting must not block the thread."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def wait_here() -> Wait:
    """Return how this process waits."""
    return wait_with_gevent if patched_by_gevent() else wait_blocking


def is_readable(fileno: int) -> bool:
    """Tell whether there is something to read at once, if only the end."""
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))


def single_addresses(parameters: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Return parameters for one server at one address each, in the order in which they are to be tried.

    Where libpq connects without waiting, a name is looked up by its caller, and so is the time that a server may take
    to answer: it would never go on to the next one. https://www.postgresql.org/docs/current/libpq-connect.html
    """
    for server in _single_servers(parameters):
        host = server.get("host", "")
        if not host or host.startswith(("/", "@")) or server.get("hostaddr"):
            yield server
            continue
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            # libpq says it in its own words.
            yield server
            continue
        for address in dict.fromkeys(str(address[4][0]) for address in found):
            yield {**server, "hostaddr": address}


def _single_servers(parameters: Mapping[str, str]) -> Iterator[dict[str, str]]:
    lists = {name: parameters[name].split(",") for name in ("host", "hostaddr", "port") if parameters.get(name)}
    count = max((len(values) for name, values in lists.items() if name != "port"), default=0)
    if count <= 1:
        yield dict(parameters)
        return
    order = list(range(count))
    if parameters.get("load_balance_hosts") == "random":
        random.shuffle(order)
    wanted = parameters.get("target_session_attrs", "any")
    for attributes in ("standby", "any") if wanted == "prefer-standby" else (wanted,):
        for number in order:
            own = {name: values[number if len(values) > 1 else 0] for name, values in lists.items()}
            yield {**parameters, **own, "target_session_attrs": attributes}
