"""From what is given on the command line to storages: ZConfig files, also Zope's, and URIs."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ZConfig

from relstorage.cli.running import Unusable
from relstorage.config.zconfig import RelStorageFactory
from relstorage.errors import SchemaOutdated
from relstorage.options import Options, declared

_CONVERSION = """
<schema>
  <import package="ZODB"/>
  <section type="ZODB.storage" name="source" attribute="source" required="yes"/>
  <section type="ZODB.storage" name="destination" attribute="destination" required="yes"/>
</schema>
"""

_STORAGES = """
<schema>
  <import package="ZODB"/>
  <multisection type="ZODB.storage" name="*" attribute="storages"/>
  <multisection type="ZODB.database" name="*" attribute="databases"/>
</schema>
"""

# What Zope adds to a database, which means nothing here.
_ZOPE = """
<schema>
  <import package="ZODB"/>
  <sectiontype name="zodb_db" extends="zodb">
    <multikey name="mount-point" attribute="mount_points"/>
    <key name="connection-class"/>
    <key name="container-class"/>
  </sectiontype>
  <multisection type="zodb_db" name="+" attribute="databases"/>
</schema>
"""

_ZOPE_SECTION = re.compile(r"^\s*<zodb_db\b", re.MULTILINE | re.IGNORECASE)
_ZOPE_SECTION_END = re.compile(r"^\s*</zodb_db\s*>", re.MULTILINE | re.IGNORECASE)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


@dataclass(frozen=True)
class ConfiguredStorage:
    """A storage that a configuration describes, not opened yet."""

    name: str
    factory: Callable[[], Any]
    section: Any = None

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Open the storage for the length of a block."""
        storage = self.factory()
        try:
            yield storage
        finally:
            storage.close()

    @property
    def ours(self) -> bool:
        """Whether it is a ``<relstorage>`` section."""
        return isinstance(self.section, RelStorageFactory)

    def existing(self) -> ConfiguredStorage:
        """Return the same storage, to be opened only if its database exists. One of an older version is migrated."""
        section = self.section
        if not isinstance(section, RelStorageFactory):
            return self

        def factory() -> Any:
            wanted = section.options
            section.options = _with(wanted, create_schema=False)
            try:
                return self.factory()
            except SchemaOutdated:
                section.options = wanted
                return self.factory()

        return ConfiguredStorage(self.name, factory, section)

    def read_only(self) -> ConfiguredStorage:
        """Return the same storage, to be opened so that nothing in it changes, where its kind can do that."""
        section = self.section
        if isinstance(section, RelStorageFactory):
            section.options = _with(section.options, read_only=True, create_schema=False)
        elif section is not None:
            inner = section.config
            while not hasattr(inner, "read_only") and hasattr(inner, "base"):
                inner = inner.base.config
            if hasattr(inner, "read_only"):
                inner.read_only = True
        return self


def _with(options: Options, **changed: Any) -> Options:
    return Options(**{**{each.name: getattr(options, each.name) for each in declared(Options)}, **changed})


def conversion_storages(path: str) -> tuple[ConfiguredStorage, ConfiguredStorage]:
    """Return the storages of the sections named ``source`` and ``destination`` of a file."""
    configuration = _load(_schema(_CONVERSION), path, _text(path))
    return _configured("source", configuration.source), _configured("destination", configuration.destination)


def configured_storages(argument: str) -> list[ConfiguredStorage]:
    """Return the storages of a file, in its order, or the one that a URI names."""
    if _URI.match(argument) and not os.path.exists(argument):
        return [ConfiguredStorage(_without_secrets(argument), _resolved(argument))]
    text = _text(argument)
    if _ZOPE_SECTION.search(text):
        databases = _load(_schema(_ZOPE), argument, _databases_of_zope(text)).databases
        found = [each.config.storage for each in databases]
    else:
        configuration = _load(_schema(_STORAGES), argument, text)
        found = [*configuration.storages, *(each.config.storage for each in configuration.databases)]
    if not found:
        raise Unusable(f"{argument} describes no storage; it needs a section such as <relstorage> or <zodb>.")
    return [_configured(f"{argument}, storage {number}", section) for number, section in enumerate(found, 1)]


def _configured(fallback: str, section: Any) -> ConfiguredStorage:
    return ConfiguredStorage(section.name or fallback, section.open, section)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        raise Unusable(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"{path} cannot be read: {error}") from error


def _schema(text: str) -> Any:
    return ZConfig.loadSchemaFile(io.StringIO(text))


def _databases_of_zope(text: str) -> str:
    """Return a configuration of Zope without what is not about databases; every line keeps its number."""
    lines = []
    within = False
    for line in text.splitlines():
        within = within or bool(_ZOPE_SECTION.match(line))
        lines.append(line if within or line.lstrip().startswith("%") else "")
        within = within and not _ZOPE_SECTION_END.match(line)
    return "\n".join(lines)


def _load(schema: Any, path: str, text: str) -> Any:
    configuration, _ = ZConfig.loadConfigFile(schema, io.StringIO(text), f"file://{os.path.abspath(path)}")
    return configuration


def _resolved(uri: str) -> Callable[[], Any]:
    try:
        from zodburi import resolve_uri
    except ImportError:
        raise Unusable("URIs need zodburi. Try: pip install 'relstorage-core[zodburi]'") from None
    try:
        factory, _ = resolve_uri(uri)
    except KeyError:
        raise Unusable(f"Nothing that is installed knows the scheme of {_without_secrets(uri)}.") from None
    return factory


def _without_secrets(uri: str) -> str:
    shown, _, rest = uri.partition("?")
    if "@" in rest and "@" not in shown:
        # The '?' may be part of a password.
        return shown.partition("//")[0] + "//..."
    return re.sub(r"//.*@", "//", shown)
