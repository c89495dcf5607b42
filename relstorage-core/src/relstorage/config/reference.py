"""The reference page of options, written from their declarations.

    python -m relstorage.config.reference > docs/reference/options.md

Names of backends after the command choose which are described; without any it is those of this project that are
installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from relstorage.options import DeclaredOptions, OptionDeclaration, Options, declared
from relstorage.plugins import BACKENDS, GROUPS, Plugins

_TOP = """\
# Options

This page is generated; `python -m relstorage.config.reference > docs/reference/options.md` writes it again.

The same options are understood everywhere, whichever way you configure a storage:

| where | how an option is written |
|---|---|
| a ZConfig file, after `%import relstorage` | `keep-history false`, in the section it belongs to |
| a URI for zodburi | `sqlite:///srv/zodb?keep_history=false` |
| Python | `relstorage.open("sqlite", data_dir="/srv/zodb", keep_history=False)` |

Dashes and underscores mean the same in every name. An unknown name is an error that suggests the nearest known one.

- A boolean is `true` or `false`, `yes` or `no`, `on` or `off`, `1` or `0`.
- A byte size is a number of bytes, or a number with `KB`, `MB` or `GB`, which are powers of 1024.
- `~` at the beginning of a path is your home directory.
- Words are separated by blanks or commas.

An option with names and values is a section of its own in a ZConfig file, has a dot in a URI
(`pragmas.cache_size=64MB`), and is a mapping in Python.

Options are accepted with every backend. When you set one that the backend in use has no use for, a warning in the log
says so.

The scheme of a URI may name the driver too, after a `+`: `postgresql+psycopg2://`.

In a URI you can also give `demostorage=true`, which keeps all changes in memory, and the keywords that zodburi passes
on to the database, such as `connection_pool_size`, `connection_cache_size` and `database_name`.
"""


def page(plugins: Plugins, backends: Sequence[str]) -> str:
    """Return the Markdown of the options of every storage and of some backends."""
    lines = [_TOP, "## Every storage", "", "In a ZConfig file: the section `<relstorage>`.", ""]
    lines += _options(Options)
    for name in backends:
        backend = plugins.load(BACKENDS, name)
        sections = " or ".join(f"`<{section}>`" for section in backend.sections)
        schemes = " or ".join(f"`{scheme}://`" for scheme in backend.schemes)
        lines += [f"## {backend.title}", ""]
        lines += [f"In a ZConfig file: the section {sections} within `<relstorage>`. In a URI: {schemes}.", ""]
        lines += _options(backend.options_class)
    return "\n".join(lines).rstrip("\n") + "\n"


def main(arguments: Sequence[str]) -> None:
    """Write the page to standard output."""
    plugins = Plugins()
    installed = plugins.names(BACKENDS)
    own = [name for name in GROUPS[BACKENDS].first_party if name in installed]
    sys.stdout.write(page(plugins, arguments or own))


def _options(options_class: type[DeclaredOptions]) -> Iterator[str]:
    for each in declared(options_class):
        yield from (f"### {each.key}", "", each.doc, "", _facts(each), "")
    if options_class.removed:
        yield from ("### Options without effect", "", "These are accepted, with a warning, and do nothing.", "")
        yield from ("| option | instead |", "|---|---|")
        for removed in options_class.removed:
            yield f"| `{removed.key}` | {removed.instead} |"
        yield ""


def _facts(each: OptionDeclaration) -> str:
    unit = f", in {each.unit}" if each.unit not in ("", each.type.name) else ""
    default = "It is required." if each.required else f"Default: {_shown(each)}."
    aliases = ", ".join(f"`{alias.replace('_', '-')}`" for alias in each.aliases)
    return f"Type: {each.type.name}{unit}. {default}" + (f" Also accepted as {aliases}." if aliases else "")


def _shown(each: OptionDeclaration) -> str:
    value: Any = each.default
    if value is None or value == "" or value == () or value == {}:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if each.type.name == "byte size" and value % (1 << 20) == 0:
        return f"`{value >> 20}MB`"
    if each.type.name == "byte size" and value % (1 << 10) == 0:
        return f"`{value >> 10}KB`"
    if isinstance(value, float) and value.is_integer():
        return f"`{int(value)}`"
    return f"`{value}`"


if __name__ == "__main__":
    main(sys.argv[1:])
