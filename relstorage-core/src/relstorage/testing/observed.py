"""Watch the sessions of one database, to interleave something with what happens there or to end it in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Told before (False) and after (True) each call: the session's role, the method, the statement's name if any.
Observer = Callable[[str, str, str, bool], None]

_CALLS = ("begin_snapshot", "begin_write", "commit", "rollback", "row", "rows", "run", "run_many", "stream")


class ObservedAdapter:
    """An adapter whose sessions tell an observer of each call."""

    def __init__(self, adapter: Any, observer: Observer):
        self._adapter = adapter
        self._observer = observer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def open_session(self, role: str) -> Any:
        return _ObservedSession(self._adapter.open_session(role), role, self._observer)


class _ObservedSession:
    def __init__(self, session: Any, role: str, observer: Observer):
        self._session = session
        self._role = role
        self._observer = observer

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._session, name)
        if name not in _CALLS:
            return found

        def call(*arguments: Any) -> Any:
            statement = arguments[0].name if arguments and hasattr(arguments[0], "name") else ""
            self._observer(self._role, name, statement, False)
            result = found(*arguments)
            self._observer(self._role, name, statement, True)
            return result

        return call


def observe(storage: Any, observer: Observer) -> None:
    """Tell ``observer`` of what the sessions do that the storage's database opens from now on."""
    database = storage.database
    database.adapter = ObservedAdapter(database.adapter, observer)
