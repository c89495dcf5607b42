"""What SQLite writes differently from the standard statements."""

from __future__ import annotations

from functools import cache

from relstorage.sql import Dialect, Statements
from relstorage.sql.standard import Texts, texts


def _in_json(placeholder: str) -> str:
    return f"IN (SELECT value FROM json_each({placeholder}))"


DIALECT = Dialect(any_of=_in_json)

#: The newest revision through the index of object_state costs one look-up less than the view over both tables.
_PRESERVING: Texts = {
    "current_state": "SELECT state, tid FROM object_state WHERE zoid = :oid ORDER BY tid DESC LIMIT 1",
}


@cache
def statements(keep_history: bool) -> Statements:
    """Return the statements of a history mode."""
    return Statements.render(DIALECT, texts(keep_history, _PRESERVING if keep_history else None))
