"""ZConfig's section types, made from option declarations, and what a section becomes when it is read.

``%import relstorage`` asks ``SectionTypes`` for a component. Each section type converts its keys and values with
functions that the component names by dotted path, so that ZConfig knows the file and line of what cannot be converted.
A section of a backend becomes a ``BackendSection``; ``<relstorage>`` becomes a ``RelStorageFactory``, which ZODB opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from ZODB.config import BaseConfig

from relstorage.errors import PluginError
from relstorage.opening import open_storage
from relstorage.options import BackendOptions, DeclaredOptions, OptionDeclaration, OptionNames, Options, declared
from relstorage.plugins import BACKENDS, GROUPS, Plugins, installed

STORAGE = "relstorage"
ADAPTER = "relstorage.adapter"

_FIRST_PARTY_SECTIONS = {"sqlite": ("sqlite3", "sqlite")}
_FIRST_PARTY_NESTED = {"sqlite": ("pragmas",)}


class BackendSection:
    """A backend and its options, as a file describes them."""

    def __init__(self, backend: str, options: BackendOptions):
        self.backend = backend
        self.options = options


class RelStorageFactory(BaseConfig):
    """A ``<relstorage>`` section. Its options are complete and converted when the file has been read."""

    def __init__(self, section: Any):
        super().__init__(section)
        self.adapter: BackendSection = section.adapter
        self.options = Options(**_values(section, Options))

    def open(self, database_name: str = "unnamed", databases: Any = None) -> Any:
        """Open the storage. The arguments belong to ZODB's protocol and mean nothing here."""
        return open_storage(self.adapter.backend, self.adapter.options, self.options)


class OptionSection:
    """A section type whose keys are the options of a class. Its attributes are named in the component."""

    def __init__(self, name: str, implements: str, options_class: type[DeclaredOptions], factory: Callable[[Any], Any]):
        self.name = name
        self.implements = implements
        self.factory = factory
        self.key = (name, options_class)
        self._options_class = options_class
        self._names = OptionNames(options_class)
        self._values = {f"value_{each.name}": each.convert for each in declared(options_class)}

    def keytype(self, key: str) -> str:
        """Return the key under which the component declares what is written as ``key``."""
        return self._names.find(key).key

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        """Return the function that converts the values of an option: ``value_keep_history``."""
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    def nested(self) -> tuple[str, ...]:
        return tuple(each.name for each in declared(self._options_class) if each.type.nested)

    def lines(self, path: str) -> Iterator[str]:
        if self._options_class is Options:
            yield f'<section type={quoteattr(ADAPTER)} name="*" attribute="adapter" required="yes"/>'
        for each in declared(self._options_class):
            yield from self._option(each, path)
        for removed in self._options_class.removed:
            yield f"<key name={quoteattr(removed.key)} attribute={quoteattr(removed.name)} required='no'>"
            yield f"<description>No longer has an effect. {escape(removed.instead)}</description></key>"

    def _option(self, each: OptionDeclaration, path: str) -> Iterator[str]:
        required = "yes" if each.required else "no"
        facts = f"attribute={quoteattr(each.name)} required={quoteattr(required)}"
        if each.type.nested:
            yield f'<section name="*" type={quoteattr(each.name)} {facts}/>'
            return
        yield f"<key name={quoteattr(each.key)} datatype={quoteattr(f'{path}.value_{each.name}')} {facts}>"
        yield f"<description>{escape(each.doc)}</description></key>"


class UnusableSection:
    """The section type of a backend that cannot be used. Whatever is in the section, reading it says why."""

    implements = ADAPTER

    def __init__(self, name: str, nested: tuple[str, ...], problem: PluginError):
        self.name = name
        self.key = (name, str(problem))
        self._nested = nested
        self._problem = problem

    def keytype(self, key: str) -> str:
        raise self._problem

    def factory(self, section: Any) -> Any:
        raise self._problem

    def nested(self) -> tuple[str, ...]:
        return self._nested

    def lines(self, path: str) -> Iterator[str]:
        yield '<key name="+" attribute="ignored" required="no"/>'
        for name in self._nested:
            yield f'<section name="*" type={quoteattr(name)} attribute={quoteattr(name)} required="no"/>'


class SectionTypes:
    """Every set of section types that was generated in this process, as the attributes ``v0``, ``v1`` and so on.

    ZConfig remembers conversion functions by their dotted path, so a path must not mean something else after another
    backend was registered. As long as the same backends are found, the set is the same.
    """

    def __init__(self, path: str, plugins: Callable[[], Plugins] = installed):
        self._path = path
        self._plugins = plugins
        self._sets: list[SimpleNamespace] = []

    def component(self) -> str:
        """Return the text of a ZConfig component with a section type for the storage and for every backend."""
        sections = list(section_types(self._plugins()))
        number = self._set_of(sections)
        known = self._sets[number]
        if not known.text:
            known.text = self._text(sections, f"{self._path}.v{number}")
        return known.text

    def _text(self, sections: list[OptionSection | UnusableSection], base: str) -> str:
        lines = ["<component>", '<import package="ZODB"/>', f"<abstracttype name={quoteattr(ADAPTER)}/>"]
        for name in sorted({name for each in sections for name in each.nested()}):
            lines += _free_section(name)
        for each in sections:
            path = f"{base}.{_identifier(each.name)}"
            lines.append(
                f"<sectiontype name={quoteattr(each.name)} implements={quoteattr(each.implements)}"
                f" keytype={quoteattr(f'{path}.keytype')} datatype={quoteattr(f'{path}.factory')}>"
            )
            lines += each.lines(path)
            lines.append("</sectiontype>")
        return "\n".join([*lines, "</component>", ""])

    def _set_of(self, sections: list[OptionSection | UnusableSection]) -> int:
        key = tuple(each.key for each in sections)
        for number, known in enumerate(self._sets):
            if known.key == key:
                return number
        self._sets.append(SimpleNamespace(key=key, text="", **{_identifier(each.name): each for each in sections}))
        return len(self._sets) - 1

    def __getattr__(self, name: str) -> Any:
        try:
            return self._sets[int(name.removeprefix("v"))]
        except (ValueError, IndexError):
            raise AttributeError(name) from None


def section_types(plugins: Plugins) -> Iterator[OptionSection | UnusableSection]:
    """Return the section type of the storage, and those of every backend, usable or not. Every name occurs once."""
    taken = {STORAGE}
    backends = []
    for name in sorted({*plugins.names(BACKENDS), *GROUPS[BACKENDS].first_party}):
        sections, make = _backend_sections(plugins, name)
        backends.append((sections, make))
        taken.update(sections[:1])
    for sections, make in backends:
        for place, section in enumerate(sections):
            # A backend's first section is its own; others are left to whoever has them first.
            if place == 0 or section not in taken:
                taken.add(section)
                yield make(section)
    yield OptionSection(STORAGE, "ZODB.storage", Options, RelStorageFactory)


def mapping(section: Any) -> dict[str, str]:
    """Return the keys and values of a section in which every key is allowed."""
    return dict(section.values)


def _backend_sections(
    plugins: Plugins, name: str
) -> tuple[tuple[str, ...], Callable[[str], OptionSection | UnusableSection]]:
    try:
        backend = plugins.load(BACKENDS, name)
    except PluginError as caught:
        problem, nested = caught, _FIRST_PARTY_NESTED.get(name, ())
        return _FIRST_PARTY_SECTIONS.get(name, (name,)), lambda section: UnusableSection(section, nested, problem)
    options_class = backend.options_class

    def factory(section: Any) -> BackendSection:
        return BackendSection(name, options_class(**_values(section, options_class)))

    return tuple(backend.sections), lambda section: OptionSection(section, ADAPTER, options_class, factory)


def _values(section: Any, options_class: type[DeclaredOptions]) -> dict[str, Any]:
    names = [each.name for each in declared(options_class)] + [each.name for each in options_class.removed]
    return {name: getattr(section, name) for name in names if getattr(section, name) is not None}


def _free_section(name: str) -> Iterable[str]:
    return (
        f"<sectiontype name={quoteattr(name)} keytype='string' datatype={quoteattr(f'{__name__}.mapping')}>",
        '<key name="+" attribute="values" required="no"/>',
        "</sectiontype>",
    )


def _identifier(name: str) -> str:
    return name.replace("-", "_").replace(".", "_")
