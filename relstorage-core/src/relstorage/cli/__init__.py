"""The command line: ``relstorage`` with its commands, and ``zodbconvert`` and ``zodbpack``, which are two of them under the
names that they had before."""

from __future__ import annotations

import click

from relstorage.cli.convert import convert
from relstorage.cli.running import EXIT_STATUS

__all__ = ["main", "zodbconvert"]


@click.group(epilog=EXIT_STATUS)
@click.version_option(package_name="relstorage-core")
def main() -> None:
    """Tools for ZODB storages in relational databases."""


zodbconvert = convert
for command in (convert,):
    main.add_command(command)
