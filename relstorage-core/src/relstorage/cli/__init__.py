"""The command line: ``relstorage`` with its commands, and ``zodbconvert`` and ``zodbpack``, which are two of them
under the names that they had before."""

from __future__ import annotations

import click

from relstorage.cli.convert import convert as zodbconvert
from relstorage.cli.info import info as _info
from relstorage.cli.pack import pack_storages as zodbpack
from relstorage.cli.plugins import plugins as _plugins
from relstorage.cli.running import EXIT_STATUS
from relstorage.cli.verify import verify as _verify

__all__ = ["main", "zodbconvert", "zodbpack"]


@click.group(epilog=EXIT_STATUS)
@click.version_option(package_name="relstorage-core")
def main() -> None:
    """Tools for ZODB storages in relational databases."""


for _command in (zodbconvert, zodbpack, _plugins, _verify, _info):
    main.add_command(_command)
