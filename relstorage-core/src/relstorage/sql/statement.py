"""One statement: a name, a text, the parameters in order, the columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

_PARAMETER = re.compile(r"(?<![:\w]):(\w+)")
_ARRAY = re.compile(r"\bANY_OF\(:(\w+)\)")


class Statement(NamedTuple):
    """A statement as a driver executes it. ``arrays`` are the positions, from 0, of the parameters that are lists."""

    name: str
    text: str
    parameters: tuple[str, ...]
    columns: tuple[str, ...]
    arrays: tuple[int, ...] = ()

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


@dataclass(frozen=True)
class Dialect:
    """How a database wants its parameters written.

    The texts of the core write ``:oid`` for a parameter and ``zoid ANY_OF(:oids)`` for membership in a list.
    """

    #: Write the parameter with this name at this position, counted from 1.
    placeholder: Callable[[str, int], str] = _question_mark
    #: Write the test that a column is in the list parameter, whose placeholder is given.
    any_of: Callable[[str], str] = _equals_any

    def render(
        self, name: str, text: str, parameters: tuple[str, ...] = (), columns: tuple[str, ...] = ()
    ) -> Statement:
        """Return the statement; raise ValueError if the text uses a parameter that is not declared."""
        text = " ".join(text.split())
        unknown = names_in(text) - set(parameters)
        if unknown:
            raise ValueError(f"statement {name!r} uses undeclared parameters {sorted(unknown)}")
        position = {parameter: index for index, parameter in enumerate(parameters, 1)}
        arrays = tuple(sorted({position[parameter] - 1 for parameter in _ARRAY.findall(text)}))

        def array(match: re.Match[str]) -> str:
            return self.any_of(self.placeholder(match[1], position[match[1]]))

        def scalar(match: re.Match[str]) -> str:
            return self.placeholder(match[1], position[match[1]])

        return Statement(name, _PARAMETER.sub(scalar, _ARRAY.sub(array, text)), parameters, columns, arrays)
