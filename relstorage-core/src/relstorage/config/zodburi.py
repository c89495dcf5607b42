"""Storages named by a URI, for zodburi: ``sqlite:///srv/zodb?keep_history=false&connection_pool_size=10``.

The scheme chooses the backend, and after a ``+`` the driver. What stands before the ``?`` is for the backend to read;
the arguments behind it are the options of the storage and of the backend, what else the backend understands,
``demostorage``, and zodburi's own keywords of the database.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl

from ZODB.DemoStorage import DemoStorage
from zodburi import PARAMETERS

from relstorage.errors import ConfigurationError
from relstorage.opening import open_storage
from relstorage.options import BOOL, OptionDeclaration, OptionNames, Options, spelled, split_keywords
from relstorage.plugins import Plugins

DEMOSTORAGE = OptionDeclaration(
    "demostorage",
    BOOL,
    False,
    "Whether changes stay in memory, in a DemoStorage over the storage, and never get there.",
)

StorageFactory = Callable[[], Any]

# https://www.rfc-editor.org/rfc/rfc3986#appendix-B
_URI = re.compile(r"(?P<scheme>[^:/?#]+):(?://(?P<netloc>[^/?]*))?(?P<path>[^?]*)(?:\?(?P<query>.*))?", re.DOTALL)
# Whatever else stands where a name is expected may be the rest of a password with a '?' or an '&' in it.
_NAME = re.compile(r"[\w.-]+")


class Resolver:
    """Turns URIs into storages, by zodburi's protocol."""

    def __init__(self, plugins: Callable[[], Plugins] = Plugins):
        self._plugins = plugins

    def __call__(self, uri: str) -> tuple[StorageFactory, dict[str, str]]:
        """Return a function that opens the storage of a URI, and the keywords for ``ZODB.DB``, still as strings.

        It raises ``UnknownPlugin`` where the scheme's backend is not installed and ``ConfigurationError`` for an
        argument that is unknown or cannot be used.
        """
        parts, driver = _split(uri)
        backend = self._plugins().backend_for_scheme(parts.scheme)
        arguments = _arguments(parts.query)
        keywords = {name: arguments.pop(name) for name in PARAMETERS if name in arguments}
        demo = DEMOSTORAGE.convert(arguments.pop(DEMOSTORAGE.name, None))
        before = backend.options_class.from_uri(parts, arguments)
        if driver:
            before["driver"] = driver
        _refuse_unknown(OptionNames(backend.options_class, Options), arguments)
        twice = {spelled(name) for name in arguments} & set(before)
        if twice:
            raise ConfigurationError(f"the URI gives {', '.join(sorted(twice))} both before and after its '?'")
        backend_options, options = split_keywords(backend.options_class, {**before, **arguments})

        def factory() -> Any:
            storage = open_storage(backend.name, backend_options, options)
            return DemoStorage(base=storage) if demo else storage

        return factory, keywords


resolve = Resolver()


def _split(uri: str) -> tuple[SplitResult, str]:
    """Return the parts of a URI, and the driver that its scheme names: ``postgresql+psycopg2://``.

    ``urllib.parse.urlsplit`` ends a host at a ``#``, which has no meaning here and occurs in passwords, removes
    characters, and shows in its errors what may be a password.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise ConfigurationError("a URI begins with a scheme and a colon, such as 'sqlite:///srv/zodb'")
    scheme, _, driver = match["scheme"].lower().partition("+")
    return SplitResult(scheme, match["netloc"] or "", match["path"], match["query"] or "", ""), driver


def _arguments(query: str) -> dict[str, str]:
    arguments: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                "what follows a '?' or an '&' of the URI is not the name of an option;"
                " write '%3F' for a '?' and '%26' for an '&' that are part of a value"
            )
        if name in arguments:
            raise ConfigurationError(f"the URI gives {name!r} twice")
        arguments[name] = value
    return arguments


def _refuse_unknown(names: OptionNames, arguments: Mapping[str, str]) -> None:
    for name in arguments:
        if name.partition(".")[0] not in names:
            raise ConfigurationError(names.unknown(name, also=(*PARAMETERS, DEMOSTORAGE.name)))
