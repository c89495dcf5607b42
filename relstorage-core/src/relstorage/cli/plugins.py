"""``relstorage plugins``: which backends, drivers, caches and hooks there are, and why others cannot be used."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click
from rich import box
from rich.console import Console
from rich.table import Table

from relstorage.cli import running
from relstorage.plugins import DRIVERS, GROUPS, PluginDescription, Plugins

_WIDTH = 160


@click.command(cls=running.Command)
@click.option("--check", is_flag=True, help="Exit with 1 if something that is installed is broken.")
@running.json_option
def plugins(check: bool, as_json: bool) -> None:
    """List backends, drivers, caches and hooks, and what to type for those that cannot be used.

    With --check, a driver whose client library is not installed counts as broken only if its backend has no other
    that works.
    """
    found = Plugins().describe()
    if as_json:
        running.write_json([asdict(each) for each in found])
    else:
        # A log or a pipe has no width that a table would have to fit.
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(_table(found))
    if check and any(_broken(each) for each in found):
        raise click.exceptions.Exit(running.PROBLEM)


def _broken(each: PluginDescription) -> bool:
    lacks_client = each.group == DRIVERS and bool(each.remedy)
    return each.installed and not each.usable and not lacks_client


def _table(found: list[PluginDescription]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("kind", "name", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("from", "why not, and what to type"):
        table.add_column(heading, overflow="fold")
    for each in found:
        state = "usable" if each.usable else "installed, not usable" if each.installed else "not installed"
        origin = f"{each.distribution} {each.version}".strip()
        remedy = f"Try: {each.remedy}" if each.remedy else ""
        reason = each.reason if each.installed else ""
        explanation = ". ".join(part for part in (reason.rstrip("."), remedy) if part)
        table.add_row(GROUPS[each.group].noun, each.name, state, origin, explanation)
    return table
