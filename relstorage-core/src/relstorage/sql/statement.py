"""One statement: a name, a text, the parameters in order, the columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

_PARAMETER = re.compile(r"(?<![:\w]):(\w+)")
_ARRAY = re.compile(r"\bANY_OF\(:(\w+)\)")
_EACH = re.compile(r"\bEACH_OF\(([^)]*)\)")


class Statement(NamedTuple):
    """A statement as a driver executes it. ``arrays`` are the positions, from 0, of the parameters that are lists.

    A statement that is ``columnar`` takes a list for each parameter, and does for each place of these lists what others
    do once: ``ISession.run_many`` turns its tuples into such columns, ``ISession.run`` makes lists of one.

    One that is ``small`` has few rows, and not many bytes in them: to stream its answer would be no use.
    """

    name: str
    text: str
    parameters: tuple[str, ...]
    columns: tuple[str, ...]
    arrays: tuple[int, ...] = ()
    columnar: bool = False
    small: bool = False

    def fit(self, parameters: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the leading parameters that this step of a sequence uses."""
        return parameters[: len(self.parameters)]


def names_in(text: str) -> frozenset[str]:
    """Return the names of the parameters that a text uses."""
    return frozenset(_PARAMETER.findall(text))


def _question_mark(name: str, position: int) -> str:
    return f"?{position}"


def _equals_any(placeholder: str) -> str:
    return f"= ANY({placeholder})"


def _no_rows_of_lists(names: tuple[str, ...], placeholders: tuple[str, ...]) -> str:
    raise ValueError("this dialect cannot read the rows of a statement from lists")


@dataclass(frozen=True)
class Dialect:
    """How a database wants its parameters written.

    The texts of the core write ``:oid`` for a parameter and ``zoid ANY_OF(:oids)`` for membership in a list. A
    dialect's own may say ``FROM EACH_OF(:oid, :tid)``: a row, with these columns, for each place of the lists.
    """

    #: Write the parameter with this name at this position, counted from 1.
    placeholder: Callable[[str, int], str] = _question_mark
    #: Write the test that a column is in the list parameter, whose placeholder is given.
    any_of: Callable[[str], str] = _equals_any
    #: Write the table that list parameters make, given their names and their placeholders.
    each_of: Callable[[tuple[str, ...], tuple[str, ...]], str] = _no_rows_of_lists
    #: Write the parameter that is a list.
    list_placeholder: Callable[[str, int], str] = _question_mark

    def render(
        self,
        name: str,
        text: str,
        parameters: tuple[str, ...] = (),
        columns: tuple[str, ...] = (),
        lists: Collection[str] = (),
    ) -> Statement:
        """Return the statement; raise ValueError if the text uses a parameter that is not declared.

        ``lists`` are the parameters that are lists although the text does not say so.
        """
        text = " ".join(text.split())
        unknown = names_in(text) - set(parameters)
        if unknown:
            raise ValueError(f"statement {name!r} uses undeclared parameters {sorted(unknown)}")
        position = {parameter: index for index, parameter in enumerate(parameters, 1)}
        lists = {
            *lists,
            *_ARRAY.findall(text),
            *(name for each in _EACH.findall(text) for name in _PARAMETER.findall(each)),
        }
        arrays = tuple(sorted(position[parameter] - 1 for parameter in lists))

        def array(match: re.Match[str]) -> str:
            return self.any_of(self.list_placeholder(match[1], position[match[1]]))

        def rows(match: re.Match[str]) -> str:
            names = tuple(_PARAMETER.findall(match[1]))
            return self.each_of(names, tuple(self.list_placeholder(name, position[name]) for name in names))

        def scalar(match: re.Match[str]) -> str:
            write = self.list_placeholder if match[1] in lists else self.placeholder
            return write(match[1], position[match[1]])

        columnar = _EACH.search(text) is not None
        if columnar and len(arrays) < len(parameters):
            raise ValueError(f"statement {name!r} reads its rows from lists, so all its parameters must be lists")
        text = _PARAMETER.sub(scalar, _ARRAY.sub(array, _EACH.sub(rows, text)))
        return Statement(name, text, parameters, columns, arrays, columnar)
