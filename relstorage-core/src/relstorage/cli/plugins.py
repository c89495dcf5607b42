"""``relstorage plugins``: which backends, drivers, caches and hooks there are, and what keeps the others from working."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich import box
from rich.console import Console
from rich.table import Table

from relstorage.cli import running
from relstorage.plugins import GROUPS, PluginDescription, Plugins


@click.command(cls=running.Command)
@click.option("--check", is_flag=True, help="Exit with 1 if something that is installed cannot be used.")
@running.json_option
def plugins(check: bool, as_json: bool) -> None:
    """List backends, drivers, caches and hooks, and what to type for those that cannot be used."""
    found = Plugins().describe()
    if as_json:
        running.write_json([asdict(each) for each in found])
    else:
        Console(soft_wrap=True).print(_table(found))
    if check and any(each.installed and not each.usable for each in found):
        raise click.exceptions.Exit(running.PROBLEM)


def _table(found: list[PluginDescription]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("kind", "name", "state", "from", "why not, and what to type"):
        table.add_column(heading, overflow="fold")
    for each in found:
        state = "usable" if each.usable else "installed, not usable" if each.installed else "not installed"
        origin = f"{each.distribution} {each.version}".strip()
        remedy = f"Try: {each.remedy}" if each.remedy else ""
        reason = each.reason if each.installed else ""
        explanation = ". ".join(part for part in (reason.rstrip("."), remedy) if part)
        table.add_row(GROUPS[each.group].noun, each.name, state, origin, explanation)
    return table
