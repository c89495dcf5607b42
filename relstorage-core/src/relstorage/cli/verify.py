"""``relstorage verify``: read every record of a storage and say what is wrong."""

from __future__ import annotations

from dataclasses import asdict

import click

from relstorage.cli import running
from relstorage.cli.configuration import configured_storages
from relstorage.cli.progress import BYTES, meter, quantity
from relstorage.cli.verification import DESCRIBED, PROBLEMS, Verification
from relstorage.cli.verification import verify as verify_storage


@click.command(cls=running.Command)
@running.configuration_argument
@click.option("--no-blobs", is_flag=True, help="Do not look whether the data of blobs are there.")
@running.json_option
def verify(configuration: str, no_blobs: bool, as_json: bool) -> None:
    """Read every revision in every storage of CONFIG and report what is wrong. Nothing is changed.

    It finds records that cannot be read, references to objects that do not exist, blobs without data and data without
    a blob, current revisions that are missing, and records that are not what was recorded of their size and checksum.
    Objects that cannot be reached from the root are counted; they are no problem, and the next pack removes them.

    CONFIG is a ZConfig file with any number of storages or databases, a configuration of Zope, or a URI such as
    sqlite:///srv/zodb.
    """
    found = []
    for each in configured_storages(configuration):
        with each.read_only().opened() as storage:
            report = verify_storage(storage, blobs=not no_blobs, show=meter)
            report.storage = storage.getName() if hasattr(storage, "getName") else each.name
        found.append(report)
        if not as_json:
            _print(report)
    if as_json:
        running.write_json({"storages": [asdict(each) for each in found]})
    if any(each.problems for each in found):
        raise click.exceptions.Exit(running.PROBLEM)


def _print(report: Verification) -> None:
    click.echo(
        f"{report.storage}: read {report.revisions:,} revisions of {report.objects:,} objects "
        f"({quantity(report.bytes, BYTES)}) and looked for {report.blobs:,} blobs in {report.seconds:.1f} seconds."
    )
    for note in report.notes:
        click.echo(f"  {note}")
    if report.unreachable:
        click.echo(f"  {report.unreachable:,} objects cannot be reached from the root; a pack removes them.")
    if report.stray_files:
        click.echo(f"  {report.stray_files:,} files in the blob directory belong to no record; a pack removes them.")
    if not report.problems:
        click.echo("  No problem was found.")
        return
    for kind, number in report.counts.items():
        if not number:
            continue
        click.echo(f"  {number:,} {PROBLEMS[kind]}:")
        for each in report.findings:
            if each.kind == kind:
                where = f", transaction {each.tid}" if each.tid else ""
                click.echo(f"    object {each.oid}{where}: {each.detail}")
        if number > DESCRIBED:
            click.echo(f"    and {number - DESCRIBED:,} more")
