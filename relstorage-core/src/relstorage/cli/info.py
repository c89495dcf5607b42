"""``relstorage info``: what a storage is and how it is set up."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import click

from relstorage.cli import running
from relstorage.cli.configuration import configured_storages
from relstorage.cli.progress import BYTES, quantity
from relstorage.ids import seconds_at, to_int
from relstorage.storage import RelStorage


@dataclass
class PackRun:
    """The newest pack of a database."""

    run: int
    phase: str
    pack_tid: str
    started: str
    removed: int


@dataclass
class CacheSettings:
    """How the state cache and the blob directory are set up."""

    local_mb: int
    local_object_max: int
    local_compression: str
    blob_dir: str | None
    shared_blob_dir: bool
    blob_cache_size: int | None


@dataclass
class Facts:
    """What is known of one storage. Only a storage of ours has the later ones."""

    storage: str
    kind: str
    objects: int
    size: int
    last_tid: str
    last_time: str | None
    keeps_history: bool
    read_only: bool
    backend: str | None = None
    driver: str | None = None
    server: str | None = None
    uuid: str | None = None
    schema_version: int | None = None
    last_pack: PackRun | None = None
    cache: CacheSettings | None = None


@click.command(cls=running.Command)
@running.configuration_argument
@running.json_option
def info(configuration: str, as_json: bool) -> None:
    """Show what every storage of CONFIG is, what it holds and how it is set up. Nothing is changed.

    CONFIG is a ZConfig file with any number of storages or databases, a configuration of Zope, or a URI such as
    sqlite:///srv/zodb.
    """
    found = []
    for each in configured_storages(configuration):
        with each.read_only().opened() as storage:
            found.append(facts(storage, each.name))
    if as_json:
        running.write_json({"storages": [asdict(each) for each in found]})
        return
    for number, known in enumerate(found):
        if number:
            click.echo()
        for name, value in _lines(known):
            click.echo(f"{name + ':':<18}{value}")


def facts(storage: Any, name: str) -> Facts:
    """Return what is known of a storage."""
    tid = to_int(storage.lastTransaction() or b"\0" * 8)
    supports_undo = getattr(storage, "supportsUndo", None)
    found = Facts(
        storage=storage.getName() if hasattr(storage, "getName") else name,
        kind=type(storage).__name__,
        objects=len(storage),
        size=storage.getSize(),
        last_tid=f"{tid:#018x}",
        last_time=_moment(seconds_at(tid)) if tid else None,
        keeps_history=supports_undo is not None and bool(supports_undo()),
        read_only=bool(storage.isReadOnly()),
    )
    if isinstance(storage, RelStorage):
        _add_ours(found, storage)
    return found


def _add_ours(found: Facts, storage: RelStorage) -> None:
    database = storage.database
    adapter, options = database.adapter, database.options
    found.backend, found.driver = adapter.backend, adapter.driver
    found.server = adapter.server()
    found.uuid, found.schema_version = database.identity.uuid, database.identity.schema_version
    with database.store_sessions.session() as session:
        row = session.row(database.statements.pack_run)
    if row is not None:
        run, pack_tid, _, phase, _, started, removed, _ = row
        found.last_pack = PackRun(run, phase, f"{pack_tid:#018x}", _moment(started), removed)
    found.cache = CacheSettings(
        options.cache_local_mb,
        options.cache_local_object_max,
        options.cache_local_compression,
        options.blob_dir,
        options.shared_blob_dir,
        options.blob_cache_size,
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _lines(found: Facts) -> list[tuple[str, str]]:
    lines = [("storage", found.storage)]
    if found.backend is not None:
        server = f", {found.server}" if found.server else ""
        lines += [("backend", f"{found.backend}, driver {found.driver}{server}")]
        lines += [("uuid", str(found.uuid)), ("schema version", str(found.schema_version))]
    else:
        lines += [("kind", found.kind)]
    lines += [
        ("history", "kept" if found.keeps_history else "not kept"),
        ("objects", f"{found.objects:,}"),
        ("size", quantity(found.size, BYTES)),
        ("last transaction", f"{found.last_tid}, {found.last_time}" if found.last_time else "none"),
    ]
    if found.last_pack is not None:
        pack = found.last_pack
        lines.append(("last pack", f"{pack.phase}, begun {pack.started}, {pack.removed:,} removed"))
    elif found.backend is not None:
        lines.append(("last pack", "none"))
    if found.cache is not None:
        cache = found.cache
        lines.append(("state cache", f"{cache.local_mb} MB, objects up to {quantity(cache.local_object_max, BYTES)}"))
        if cache.blob_dir is None:
            lines.append(("blobs", "no blob-dir"))
        else:
            use = "shared" if cache.shared_blob_dir else "cache of the database"
            lines.append(("blobs", f"{cache.blob_dir} ({use})"))
    return lines
