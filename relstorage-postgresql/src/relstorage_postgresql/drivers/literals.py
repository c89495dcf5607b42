"""Values as SQL literals, for drivers that send finished SQL.

Each is written as the type of its parameter demands. Strings are of the form ``E'...'``, which means the same whatever
``standard_conforming_strings`` is set to; numbers are quoted too, so that a sign is part of them.

https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-STRINGS-ESCAPE,
https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def _integer(value: int) -> str:
    return f"'{int(value)}'"


def _boolean(value: bool) -> str:
    return "TRUE" if value else "FALSE"


def _bytea(value: bytes) -> str:
    return rf"E'\\x{value.hex()}'"


def _text(value: str) -> str:
    # The server would take the rest for another message.
    if "\0" in value:
        raise ValueError("PostgreSQL's texts cannot contain the character with the number 0")
    return "E'" + value.replace("\\", r"\\").replace("'", "''") + "'"


def _bytea_element(value: bytes) -> str:
    # The backslash is escaped for the array, and both are for the literal.
    return rf'"\\\\x{value.hex()}"'


def _text_element(value: str) -> str:
    return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'


_SCALARS: dict[str, Callable[[Any], str]] = {
    "bigint": _integer,
    "oid": _integer,
    "boolean": _boolean,
    "bytea": _bytea,
    "text": _text,
}


def _numbers(values: Sequence[int | None]) -> str:
    return "'{" + ",".join(["NULL" if value is None else str(int(value)) for value in values]) + "}'"


def _booleans(values: Sequence[bool | None]) -> str:
    return "'{" + ",".join(["NULL" if value is None else _boolean(value) for value in values]) + "}'"


def _byteas(values: Sequence[bytes | None]) -> str:
    return "E'{" + ",".join(["NULL" if value is None else _bytea_element(value) for value in values]) + "}'"


def _texts(values: Sequence[str | None]) -> str:
    return _text("{" + ",".join(["NULL" if value is None else _text_element(value) for value in values]) + "}")


_LISTS: dict[str, Callable[[Any], str]] = {
    "bigint[]": _numbers,
    "oid[]": _numbers,
    "boolean[]": _booleans,
    "bytea[]": _byteas,
    "text[]": _texts,
}

_WRITERS = {**_SCALARS, **_LISTS}


def literal(value: Any, type_name: str) -> str:
    """Return a value as an SQL literal of a type; ``bigint[]`` is the type of a list of numbers."""
    return "NULL" if value is None else _WRITERS[type_name](value)
