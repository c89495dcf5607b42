"""Finding plug-ins: from a name in a configuration to an object that keeps its contract.

Names come from entry points and are read without importing anything. Only the plug-in that is asked for is imported,
and verified once. An object that an application registered as a named
``zope.component`` utility wins over an entry point.
"""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from zope.component import getUtilitiesFor, queryUtility
from zope.interface import Invalid
from zope.interface.exceptions import MultipleInvalid
from zope.interface.interface import InterfaceClass
from zope.interface.verify import verifyObject

from relstorage.errors import DuplicatePlugin, InvalidPlugin, PluginError, PluginUnavailable, UnknownPlugin
from relstorage.hooks import check_observer
from relstorage.interfaces.plugins import IBackend, IDriver, IStateCache
from relstorage.options import BackendOptions, OptionNames, Options

log = logging.getLogger(__name__)

BACKENDS = "relstorage.backends"
DRIVERS = "relstorage.drivers"
CACHES = "relstorage.caches"
HOOKS = "relstorage"


@dataclass(frozen=True)
class Group:
    """A kind of plug-in."""

    name: str
    noun: str
    interface: InterfaceClass | None
    first_party: dict[str, str]
    """The distribution of each name that this project itself offers, installed or not."""


_DRIVERS = {
    "relstorage-sqlite": ("sqlite.sqlite3", "sqlite.gevent"),
    "relstorage-postgresql": (
        "postgresql.psycopg",
        "postgresql.psycopg2",
        "postgresql.psycopg2cffi",
        "postgresql.pg8000",
    ),
    "relstorage-mysql": ("mysql.mysqlclient", "mysql.pymysql", "mysql.connector", "mysql.umysqldb"),
    "relstorage-oracle": ("oracle.oracledb", "oracle.cx_oracle"),
}
_FIRST_PARTY_SCHEMES = {"postgres": "postgresql"}
_CACHES = ("memcache.pylibmc", "memcache.pymemcache", "memcache.python_memcached")

GROUPS = {
    group.name: group
    for group in (
        Group(
            BACKENDS,
            "backend",
            IBackend,
            {name: f"relstorage-{name}" for name in ("sqlite", "postgresql", "mysql", "oracle")},
        ),
        Group(DRIVERS, "driver", IDriver, {name: where for where, names in _DRIVERS.items() for name in names}),
        Group(CACHES, "cache", IStateCache, dict.fromkeys(_CACHES, "relstorage-memcache")),
        Group(HOOKS, "hook plug-in", None, {}),
    )
}


@dataclass(frozen=True)
class PluginDescription:
    """What can be said about one plug-in, for people."""

    group: str
    name: str
    distribution: str
    version: str
    installed: bool
    usable: bool
    reason: str
    """Why it is not usable."""
    remedy: str
    """What to type to make it usable, where that is known."""


def installed_entry_points(group: str) -> Iterable[metadata.EntryPoint]:
    """Return the entry points of a group in the distributions on ``sys.path``."""
    return _scan(tuple(sys.path)).get(group, ())


@cache
def _scan(path: tuple[str, ...]) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    # Reading the metadata of every installed distribution takes longer than opening a database, and it stays the same.
    found = metadata.entry_points()
    return {group: tuple(found.select(group=group)) for group in (BACKENDS, DRIVERS, CACHES, HOOKS)}


class Plugins:
    """The plug-ins that can be had in this process. Entry points are read when a group is first asked for."""

    def __init__(self, entry_points: Callable[[str], Iterable[metadata.EntryPoint]] = installed_entry_points):
        self._entry_points = entry_points
        self._groups: dict[str, dict[str, list[metadata.EntryPoint]]] = {}
        self._loaded: dict[tuple[str, str], Any] = {}

    # --- names

    def names(self, group: str) -> tuple[str, ...]:
        """Return the sorted names of a group, without importing a plug-in."""
        return tuple(sorted({*self._read(group), *(name for name, _ in _utilities(group))}))

    def backend_for_scheme(self, scheme: str) -> Any:
        """Return the backend whose name or one of whose URI schemes this is."""
        name = _FIRST_PARTY_SCHEMES.get(scheme, scheme)
        if name not in self.names(BACKENDS):
            for other in self.names(BACKENDS):
                try:
                    backend = self.load(BACKENDS, other)
                except PluginError:
                    # The broken one is reported when it is asked for by its own name.
                    continue
                if scheme in backend.schemes:
                    return backend
        return self.load(BACKENDS, name)

    # --- objects

    def load(self, group: str, name: str) -> Any:
        """Return a plug-in that keeps the contract of its group.

        It raises ``UnknownPlugin`` where nothing installed has the name, ``DuplicatePlugin`` where two distributions
        have it, ``PluginUnavailable`` where it cannot be imported and ``InvalidPlugin`` where it breaks the contract.
        """
        override = _utility(group, name)
        if override is not None:
            _verify(group, name, override)
            return override
        if (group, name) not in self._loaded:
            self._loaded[group, name] = self._import(group, name)
        return self._loaded[group, name]

    def driver_for(self, backend: Any, choice: str = "auto") -> Any:
        """Return the driver of a backend that a configuration asks for, after its ``check`` has passed.

        ``auto`` takes the first that works: the backend's own in the backend's order, then those of others. Any other
        choice is a name or an alias; case, blanks, dashes, dots and underscores do not count in it.
        """
        names = self._driver_names(backend)
        automatic = _plain(choice) in ("", "auto")
        if not automatic:
            names = [self._named_driver(backend, names, choice)]
        attempts: dict[str, str] = {}
        for name in names:
            try:
                driver = self.load(DRIVERS, name)
                driver.check()
            except (ImportError, PluginUnavailable) as problem:
                remedy = self._remedy(DRIVERS, name)
                attempts[name] = f"{_reason(problem)}." + (f" Try: {remedy}" if remedy else "")
            except UnknownPlugin as problem:
                attempts[name] = str(problem)
            else:
                return driver
        which = "no driver" if automatic else f"the driver {choice!r}"
        works = "works" if automatic else "does not work"
        tried = "".join(f"\n  {name}: {reason}" for name, reason in attempts.items()) or "\n  it has no driver at all"
        raise PluginUnavailable(f"{which} of the backend {backend.name!r} {works} here:{tried}", attempts)

    def observers(self) -> list[tuple[str, object]]:
        """Return the hook plug-ins with their names. One that cannot be used is logged and left out."""
        found = []
        for name in self.names(HOOKS):
            try:
                found.append((name, self.load(HOOKS, name)))
            except PluginError as problem:
                # That somebody wants to count commits must not keep a site from starting.
                log.error("a hook plug-in is left out: %s", problem)
        return found

    def describe(self) -> list[PluginDescription]:
        """Return what is known of every installed plug-in, and of those of this project that are not installed."""
        return [
            self._description(group, name)
            for group in GROUPS
            for name in sorted({*self.names(group), *GROUPS[group].first_party})
        ]

    # --- reading

    def _read(self, group: str) -> dict[str, list[metadata.EntryPoint]]:
        if group not in self._groups:
            found: dict[str, list[metadata.EntryPoint]] = {}
            for entry_point in self._entry_points(group):
                found.setdefault(entry_point.name, []).append(entry_point)
            self._groups[group] = found
        return self._groups[group]

    def _import(self, group: str, name: str) -> Any:
        noun = GROUPS[group].noun
        candidates = self._read(group).get(name)
        if candidates is None:
            raise UnknownPlugin(self._unknown(group, name))
        if len(candidates) > 1:
            claims = " and ".join(sorted(_distribution(each) for each in candidates))
            raise DuplicatePlugin(f"{claims} both offer the {noun} {name!r}. Uninstall one of them")
        try:
            plugin = candidates[0].load()
        except Exception as problem:
            # The module is somebody else's, and may fail in any way. One that does must not take the others with it.
            raise PluginUnavailable(
                f"the {noun} {name!r} of {_distribution(candidates[0])} cannot be imported: {_reason(problem)}",
                {name: _reason(problem)},
            ) from problem
        _verify(group, name, plugin)
        return plugin

    def _unknown(self, group: str, name: str) -> str:
        kind = GROUPS[group]
        sentence = f"{kind.noun} {name!r} is not installed."
        if name in kind.first_party:
            return f"{sentence} Try: pip install {kind.first_party[name]}"
        near = difflib.get_close_matches(name, {*self.names(group), *kind.first_party}, n=1)
        return f"{sentence} Did you mean {near[0]!r}?" if near else sentence

    # --- drivers

    def _driver_names(self, backend: Any) -> list[str]:
        others = (name for name in self.names(DRIVERS) if name.startswith(f"{backend.name}."))
        return list(dict.fromkeys([*backend.drivers, *others]))

    def _named_driver(self, backend: Any, names: list[str], choice: str) -> str:
        wanted = _plain(choice)
        for name in names:
            if wanted in (_plain(name), _plain(name.partition(".")[2])):
                return name
        known = {}
        for name, driver in self._loadable(names):
            known.update(dict.fromkeys(map(_plain, driver.aliases), name))
        if wanted in known:
            return known[wanted]
        short = [name.partition(".")[2] for name in names]
        near = difflib.get_close_matches(choice.lower(), short, n=1)
        suggestion = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownPlugin(
            f"the backend {backend.name!r} has no driver {choice!r}. It has: {', '.join(short)}.{suggestion}"
        )

    def _loadable(self, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
        for name in names:
            try:
                yield name, self.load(DRIVERS, name)
            except PluginError:
                # Its aliases cannot be known; if it is meant, its own name selects it and tells what is wrong.
                continue

    def _remedy(self, group: str, name: str) -> str:
        """Return what to type where the module behind a driver or a cache is missing."""
        try:
            distribution = self.load(group, name).distribution
        except PluginError:
            return ""
        return f"pip install {distribution!r}" if distribution else ""

    # --- describing

    def _description(self, group: str, name: str) -> PluginDescription:
        candidates = self._read(group).get(name, [])
        installed = bool(candidates) or _utility(group, name) is not None
        reason = remedy = ""
        try:
            plugin = self.load(group, name)
            if hasattr(plugin, "check"):
                plugin.check()
            if group == BACKENDS:
                self.driver_for(plugin)
        except UnknownPlugin as problem:
            reason, _, remedy = str(problem).partition(" Try: ")
        except (ImportError, PluginError) as problem:
            reason = _reason(problem)
            if group in (DRIVERS, CACHES) and isinstance(problem, (ImportError, PluginUnavailable)):
                remedy = self._remedy(group, name)
        distributions = [each.dist for each in candidates if each.dist is not None]
        return PluginDescription(
            group=group,
            name=name,
            distribution=" and ".join(each.name for each in distributions) or GROUPS[group].first_party.get(name, ""),
            version=" and ".join(each.version for each in distributions),
            installed=installed,
            usable=not reason,
            reason=reason,
            remedy=remedy,
        )


def installed() -> Plugins:
    """Return the plug-ins of this process. What one caller had imported and verified, the next gets at once."""
    return _installed(tuple(sys.path))


@cache
def _installed(path: tuple[str, ...]) -> Plugins:
    return Plugins()


def _utilities(group: str) -> list[tuple[str, Any]]:
    interface = GROUPS[group].interface
    return [] if interface is None else [(name, utility) for name, utility in getUtilitiesFor(interface) if name]


def _utility(group: str, name: str) -> Any:
    interface = GROUPS[group].interface
    return None if interface is None else queryUtility(interface, name=name)


def _verify(group: str, name: str, plugin: Any) -> None:
    """Raise ``InvalidPlugin`` with everything that a plug-in breaks of its contract."""
    kind = GROUPS[group]
    if kind.interface is None:
        check_observer(name, plugin)
        return
    problems: list[str] = []
    try:
        verifyObject(kind.interface, plugin)
    except MultipleInvalid as several:
        problems.extend(str(each) for each in several.exceptions)
    except Invalid as one:
        problems.append(str(one))
    problems.extend(_beyond_interface(group, name, plugin))
    if problems:
        listed = "".join(f"\n  {' '.join(problem.split())}" for problem in problems)
        raise InvalidPlugin(f"the {kind.noun} {name!r} does not keep the contract {kind.interface.__name__}:{listed}")


def _beyond_interface(group: str, name: str, plugin: Any) -> Iterator[str]:
    own = getattr(plugin, "name", name)
    if own != name:
        yield f"Its attribute 'name' is {own!r}, but it is registered as {name!r}."
    if group == DRIVERS and hasattr(plugin, "backend") and name.partition(".")[0] != plugin.backend:
        yield f"Its attribute 'backend' is {plugin.backend!r}, but its name is {name!r}."
    if group == BACKENDS and hasattr(plugin, "options_class"):
        options_class = plugin.options_class
        if not (isinstance(options_class, type) and issubclass(options_class, BackendOptions)):
            yield "Its attribute 'options_class' is not a subclass of relstorage.options.BackendOptions."
            return
        common = {*OptionNames(options_class)} & {*OptionNames(Options)}
        if common:
            yield f"Its options {', '.join(sorted(common))} have names or aliases of options of every storage."


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _reason(problem: BaseException) -> str:
    return (str(problem) or type(problem).__name__).rstrip(".")


def _distribution(entry_point: metadata.EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else entry_point.value
