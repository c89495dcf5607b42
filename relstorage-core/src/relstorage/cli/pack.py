"""``zodbpack``: pack every storage of a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import click
from ZODB.serialize import referencesf

from relstorage.cli import running
from relstorage.cli.configuration import ConfiguredStorage, configured_storages
from relstorage.cli.progress import Meter, meter
from relstorage.errors import PackError
from relstorage.packing import PackProgress, PackReport, check_references, pack
from relstorage.storage import RelStorage

_DAY = 86400

_RESUME = (
    "What was removed until then was not needed, and the database is consistent. To go on, run the same command again."
)


@click.command("pack", cls=running.Command, interrupted=_RESUME)
@running.configuration_argument
@click.option(
    "-d",
    "--days",
    type=float,
    default=1.0,
    show_default=True,
    help="Keep what was current within this many days. 0 keeps only what is current now; so does a negative number, "
    "which goes by the newest transaction instead of the clock.",
)
@click.option("--prepack", is_flag=True, help="Only mark what can be removed; --use-prepack-state removes it later.")
@click.option("--use-prepack-state", is_flag=True, help="Remove what the last --prepack marked; look for nothing else.")
@click.option("--check-refs-only", is_flag=True, help="Remove nothing; report references to objects that do not exist.")
@click.option("--dry-run", is_flag=True, help="Remove nothing; say what would be removed.")
@running.json_option
def pack_storages(
    configuration: str,
    days: float,
    prepack: bool,
    use_prepack_state: bool,
    check_refs_only: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Pack every storage of CONFIG: remove old revisions, and objects that nothing refers to.

    CONFIG is a ZConfig file with any number of storages or databases, a configuration of Zope, or a URI such as
    sqlite:///srv/zodb. Others may go on using the storages meanwhile. A pack that was stopped is resumed by the
    next one.
    """
    if sum((prepack, use_prepack_state, check_refs_only, dry_run)) > 1:
        raise click.UsageError("--prepack, --use-prepack-state, --check-refs-only and --dry-run exclude each other.")
    t = None if days < 0 else time.time() - days * _DAY
    special = next(
        (
            name
            for name, given in (
                ("--prepack", prepack),
                ("--use-prepack-state", use_prepack_state),
                ("--check-refs-only", check_refs_only),
                ("--dry-run", dry_run),
            )
            if given
        ),
        "",
    )
    results = []
    dangling = False
    only_looks = special in ("--check-refs-only", "--dry-run")
    for each in configured_storages(configuration):
        result = _pack_one(each.read_only() if only_looks else each.existing(), t, special)
        results.append(result)
        report = result["report"]
        dangling = dangling or bool(special == "--check-refs-only" and report and report["dangling_references"])
        if not as_json:
            _print(result, special)
    if as_json:
        running.write_json({"storages": results})
    if dangling:
        raise click.exceptions.Exit(running.PROBLEM)


def _pack_one(configured: ConfiguredStorage, t: float | None, special: str) -> dict[str, Any]:
    with configured.opened() as storage:
        name = storage.getName() if hasattr(storage, "getName") else configured.name
        began = time.monotonic()
        report = None
        if isinstance(storage, RelStorage):
            report = _pack_ours(storage, t, special)
        elif special:
            raise PackError(f"Packing {name}: {special} needs a <relstorage> section; nothing was changed.")
        else:
            with meter(f"Packing {name}", "objects"):
                storage.pack(time.time() if t is None else t, referencesf)
        return {
            "storage": name,
            "seconds": round(time.monotonic() - began, 3),
            "report": None if report is None else asdict(report),
        }


def _pack_ours(storage: RelStorage, t: float | None, special: str) -> PackReport:
    options = storage.database.options
    if storage.isReadOnly() and special not in ("--check-refs-only", "--dry-run"):
        raise PackError(f"Packing {storage.getName()}: the storage is read-only.")
    with Phases() as phases:
        if special == "--check-refs-only":
            return check_references(storage.database, referencesf, progress=phases)
        return pack(
            storage.database,
            t,
            referencesf,
            prepack_only=special == "--prepack" or (not special and options.pack_prepack_only),
            skip_prepack=special == "--use-prepack-state" or (not special and options.pack_skip_prepack),
            dry_run=special == "--dry-run",
            progress=phases,
        )


class Phases:
    """Shows the progress of a pack, with a meter for each phase."""

    def __init__(self) -> None:
        self._end = ExitStack()
        self._phase = ""
        self._meter = Meter()

    def __enter__(self) -> Callable[[PackProgress], None]:
        return self._show

    def __exit__(self, *exc: Any) -> None:
        self._end.close()

    def _show(self, progress: PackProgress) -> None:
        if progress.phase != self._phase:
            self._end.close()
            self._phase = progress.phase
            self._meter = self._end.enter_context(
                meter(progress.phase.capitalize(), "objects", progress.total)
            )
        self._meter.update(progress.done)


def _print(result: dict[str, Any], special: str) -> None:
    name, seconds, report = result["storage"], result["seconds"], result["report"]
    if report is None:
        click.echo(f"{name}: packed in {seconds:.1f} seconds.")
        return
    found = ""
    if report["objects"] is not None:
        found = (
            f"{report['reachable']:,} of {report['objects']:,} objects are reachable; "
            f"{report['removable_revisions']:,} revisions and {report['removable_objects']:,} objects can be removed"
        )
    if special in ("--prepack", "--dry-run"):
        click.echo(f"{name}: {found}. Nothing was removed. {seconds:.1f} seconds.")
    elif special != "--check-refs-only":
        click.echo(
            f"{name}: removed {report['removed_revisions']:,} revisions, {report['removed_objects']:,} objects "
            f"and {report['removed_blob_files']:,} blob files in {seconds:.1f} seconds."
        )
    if report["broken_records"]:
        click.echo(f"  {report['broken_records']:,} records cannot be read; what they may refer to was kept.", err=True)
    if report["dangling_references"]:
        click.echo(f"  {report['dangling_references']:,} references lead to objects that do not exist:", err=True)
        for source, target in report["dangling"]:
            click.echo(f"    object {source:#x} refers to {target:#x}", err=True)
    elif special == "--check-refs-only":
        click.echo(f"{name}: every reference from the root leads to an object.")
