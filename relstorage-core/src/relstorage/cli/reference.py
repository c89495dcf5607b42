"""The reference page of the command line, written from the commands' own help.

    python -m relstorage.cli.reference > docs/reference/command-line.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from relstorage.cli import main, zodbconvert, zodbpack

_WIDTH = 100

_TOP = """\
# Command line

This page is generated; `python -m relstorage.cli.reference > docs/reference/command-line.md` writes it again.

`zodbconvert` is `relstorage convert` and `zodbpack` is `relstorage pack` under the names that they have always had.

Results go to standard output. Progress, log and errors go to standard error: bars on a terminal, and a line every few
seconds in a log or a pipe. An error that you can do something about is one message; add `--debug` to see where it came
from.

`CONFIG` is a ZConfig file. `zodbconvert` reads from it the two storages named `source` and `destination`. The other
commands work on every storage in it, one after the other: `<relstorage>`, `<filestorage>` and every other storage
section, storages in `<zodb>` sections, and those in the `<zodb_db>` sections of a `zope.conf`. Instead of a file you
can give them the URI of one storage, where `zodburi` is installed.
"""


def page() -> str:
    """Return the Markdown of all commands."""
    programs: list[tuple[str, click.Command]] = [("relstorage", main)]
    programs += [(f"relstorage {name}", command) for name, command in sorted(main.commands.items())]
    names: dict[click.Command, str] = {zodbconvert: "zodbconvert", zodbpack: "zodbpack"}
    lines = [_TOP]
    for name, command in programs:
        lines += _section(name, command, names.get(command, ""))
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(name: str, command: click.Command, other_name: str) -> Iterator[str]:
    yield from (f"## {name}", "")
    if other_name:
        yield from (f"Also: `{other_name}`.", "")
    context = click.Context(command, info_name=name, max_content_width=_WIDTH, terminal_width=_WIDTH)
    yield from ("```text", *(line.rstrip() for line in command.get_help(context).splitlines()), "```", "")


if __name__ == "__main__":
    sys.stdout.write(page())
