"""What observers may listen to. The storage reports here what happened; it never waits for an answer.

The functions at the top are the specifications of pluggy hooks. An observer is a module or object with functions of the
same names, marked with ``hookimpl``, that take any of the arguments; its distribution names it in the entry point group
``relstorage``. Hooks are called in the thread where the event happened, some of them inside a commit, so be quick.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Protocol

import pluggy

from relstorage.errors import InvalidPlugin

log = logging.getLogger(__name__)

PROJECT = "relstorage"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """The hooks, as documented functions without a body."""

    @hookspec
    def relstorage_opened(self, database_name: str, backend: str, driver: str, keep_history: bool) -> None:
        """A database was opened in this process."""

    @hookspec
    def relstorage_committed(self, tid: int, oids_count: int, seconds: float) -> None:
        """A transaction of this process is durable. ``seconds`` passed since its ``tpc_begin``."""

    @hookspec
    def relstorage_polled(self, view: int, changed: int | None) -> None:
        """A storage moved to a new view. ``changed`` is the number of objects to invalidate, None for all."""

    @hookspec
    def relstorage_conflict(self, oid: int, resolved: bool) -> None:
        """An object that a transaction stores was changed by another since; ``resolved`` tells whether it may go on."""

    @hookspec
    def relstorage_snapshot_lost(self, reason: str) -> None:
        """The connection that a transaction read from broke, so that the transaction must start again."""

    @hookspec
    def relstorage_pack_progress(self, progress: Any) -> None:
        """A pack went on. ``progress`` has the phase, what is done, and what there is to do, where that is known."""

    @hookspec
    def relstorage_copy_progress(self, progress: Any) -> None:
        """A conversion went on. ``progress`` has what is done, and what there is to do, where that is known."""


class HookRelay:
    """Passes events on to observers. An observer that raises is logged, and the others are still told."""

    def __init__(self, observers: Iterable[tuple[str, object]] = ()):
        names = [name for name in vars(HookSpecs) if name.startswith("relstorage_")]
        observers = list(observers)
        self._callers: dict[str, tuple[tuple[str, Callable[..., Any]], ...]] = dict.fromkeys(names, ())
        if observers:
            manager = _manager()
            for name, observer in observers:
                _register(manager, name, observer)
            self._callers = {name: _callers(manager, name) for name in names}

    def listens(self, name: str) -> bool:
        """Return whether anybody listens to a hook; it stays so for the life of the relay."""
        return bool(self._callers[name])

    def relstorage_opened(self, *, database_name: str, backend: str, driver: str, keep_history: bool) -> None:
        self._tell(
            "relstorage_opened", database_name=database_name, backend=backend, driver=driver, keep_history=keep_history
        )

    def relstorage_committed(self, *, tid: int, oids_count: int, seconds: float) -> None:
        self._tell("relstorage_committed", tid=tid, oids_count=oids_count, seconds=seconds)

    def relstorage_polled(self, *, view: int, changed: int | None) -> None:
        self._tell("relstorage_polled", view=view, changed=changed)

    def relstorage_conflict(self, *, oid: int, resolved: bool) -> None:
        self._tell("relstorage_conflict", oid=oid, resolved=resolved)

    def relstorage_snapshot_lost(self, *, reason: str) -> None:
        self._tell("relstorage_snapshot_lost", reason=reason)

    def relstorage_pack_progress(self, *, progress: Any) -> None:
        self._tell("relstorage_pack_progress", progress=progress)

    def relstorage_copy_progress(self, *, progress: Any) -> None:
        self._tell("relstorage_copy_progress", progress=progress)

    def _tell(self, name: str, **facts: Any) -> None:
        for observer, call in self._callers[name]:
            try:
                call(**facts)
            except Exception:
                # A commit that succeeded must not look as if it had failed because somebody counts commits.
                log.exception("the hook %s of the plug-in %r failed", name, observer)


class Observers(Protocol):
    """Where observers come from; ``relstorage.plugins.Plugins`` is one."""

    def observers(self) -> Iterable[tuple[str, object]]: ...


def make_hooks(plugins: Observers) -> HookRelay:
    """Return the relay to every installed observer."""
    return _relay(tuple(plugins.observers()))


@lru_cache(maxsize=8)
def _relay(observers: tuple[tuple[str, object], ...]) -> HookRelay:
    # A relay has no state of its own, and pluggy takes a while to make one.
    return HookRelay(observers)


def check_observer(name: str, observer: object) -> None:
    """Raise ``InvalidPlugin`` if an object is not a plug-in with hooks of this project."""
    _register(_manager(), name, observer)


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    return manager


def _register(manager: pluggy.PluginManager, name: str, observer: object) -> None:
    try:
        manager.register(observer, name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as problem:
        raise InvalidPlugin(f"the hook plug-in {name!r} does not keep the contract: {problem}") from problem


def _callers(manager: pluggy.PluginManager, name: str) -> tuple[tuple[str, Callable[..., Any]], ...]:
    """Return one caller for each observer of a hook, in pluggy's order, so that one that raises stops no other."""
    everybody = [plugin for _, plugin in manager.list_name_plugin()]
    implementations = reversed(getattr(manager.hook, name).get_hookimpls())
    return tuple(
        (each.plugin_name, manager.subset_hook_caller(name, [other for other in everybody if other is not each.plugin]))
        for each in implementations
    )
