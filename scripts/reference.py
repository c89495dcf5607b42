#!/usr/bin/env python3
"""Write the reference pages of what plug-ins and applications meet: errors, hooks, contracts.

    python scripts/reference.py

It reads the docstrings of the installed relstorage-core. The pages of options and of the command line have generators
of their own, which are part of the core.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from transaction.interfaces import TransientError
from zope.interface.interface import InterfaceClass, Method

from relstorage import errors, hooks
from relstorage.interfaces import backends, plugins, sessions

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
GENERATED = "This page is generated from the docstrings; `python scripts/reference.py` writes it again."

ERRORS_AND_HOOKS = f"""\
# Errors and hooks

{GENERATED}
"""

ERRORS = """\
## Errors

All are in `relstorage.errors`, and all are errors of ZODB too: an `except` for `ZODB.POSException.POSError` catches
each of them. Beside them you meet ZODB's own, above all `ConflictError` and `POSKeyError`.
"""

TRANSIENT = """\
## Errors that a new attempt may cure

They are `transaction.interfaces.TransientError`: what repeats transactions, such as Zope's publisher, `pyramid_retry`
and `transaction.attempts`, repeats these.
"""

PERMANENT = """\
## Errors that stay until somebody acts

The message says what was attempted, on what, and what to do.
"""

FAILURES = """\
## What a driver says of an exception

`IDriver.classify` answers with a `relstorage.errors.Failure`. A session raises the error that belongs to it.
"""

HOOKS = """\
## Hooks

A hook plug-in has functions or methods of these names, marked with `relstorage.hooks.hookimpl`, which take those of
the arguments that they need. [How to write a plug-in](../how-to/write-a-plugin.md) shows one. Hooks are called in the
thread where the event happened, some of them inside a commit, so be quick. When one raises, that is logged, and what
was going on goes on.
"""

CONTRACTS = f"""\
# Contracts of plug-ins

{GENERATED}

What an entry point names provides one of the first three of these interfaces: `IBackend`, `IDriver` or `IStateCache`.
What their methods return provides the others. All are in `relstorage.interfaces`, and methods are shown as they are
called, without `self`. [How to write a plug-in](../how-to/write-a-plugin.md) goes through them with an example.
"""

INTERFACES = (
    plugins.IBackend,
    plugins.IDriver,
    plugins.IStateCache,
    backends.IAdapter,
    backends.ISchema,
    backends.IBlobStore,
    backends.ICommitSteps,
    sessions.ISession,
    plugins.ISharedStates,
)


def pages() -> dict[Path, str]:
    """Return the text of every page."""
    return {
        REFERENCE / "errors-and-hooks.md": _page(ERRORS_AND_HOOKS, _errors(), _hooks()),
        REFERENCE / "plugin-contracts.md": _page(CONTRACTS, *map(_interface, INTERFACES)),
    }


def _page(*parts: str | Iterator[str]) -> str:
    text = "\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts)
    return text.rstrip("\n") + "\n"


def _errors() -> Iterator[str]:
    classes = [each for each in vars(errors).values() if inspect.isclass(each) and each.__module__ == errors.__name__]
    classes = [each for each in classes if issubclass(each, Exception)]
    yield ERRORS
    for introduction, transient in ((TRANSIENT, True), (PERMANENT, False)):
        yield introduction
        for each in classes:
            if issubclass(each, TransientError) == transient:
                bases = ", ".join(f"`{base.__name__}`" for base in each.__bases__)
                yield from (f"### {each.__name__}", "", _markdown(each.__doc__), "", f"Base: {bases}.", "")
    yield FAILURES
    yield from (f"- `{failure.name}`" for failure in errors.Failure)
    yield ""


def _hooks() -> Iterator[str]:
    yield HOOKS
    for name, function in vars(hooks.HookSpecs).items():
        if name.startswith("relstorage_"):
            parameters = [each for each in inspect.signature(function).parameters.values() if each.name != "self"]
            signature = ", ".join(str(each).replace("'", "") for each in parameters)
            yield from (f"### {name}", "", f"`{name}({signature})`", "", _markdown(function.__doc__), "")


def _interface(interface: InterfaceClass) -> Iterator[str]:
    yield from (f"## {interface.__name__}", "", _markdown(interface.__doc__), "")
    described = interface.namesAndDescriptions()
    attributes = [(name, each) for name, each in described if not isinstance(each, Method)]
    if attributes:
        yield from ("| attribute | what it is |", "|---|---|")
        yield from (f"| `{name}` | {_markdown(each.__doc__)} |" for name, each in attributes)
        yield ""
    for name, each in described:
        if isinstance(each, Method):
            yield from (f"### {interface.__name__}.{name}", "", f"`{name}{each.getSignatureString()}`", "")
            yield from (_markdown(each.__doc__), "")


def _markdown(docstring: str | None) -> str:
    assert docstring, "everything here has a docstring"
    return re.sub(r"``(.+?)``", r"`\1`", inspect.cleandoc(docstring))


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
