"""The ZConfig files of the demonstration: what `zodbconvert`, `zodbpack`, `relstorage verify` and ZODB open."""

from __future__ import annotations

from pathlib import Path

from demonstration.instance import Source

SQLITE = """\
  keep-history true
  blob-dir {directory}/blob-cache
  shared-blob-dir false
  <sqlite3>
    data-dir {directory}/data
  </sqlite3>
"""


def written(path: Path) -> str:
    """Return a path as ZConfig wants it: there, a dollar sign begins a name."""
    return str(path).replace("$", "$$")


def file_storage(source: Source, name: str = "") -> str:
    """Return the section of the FileStorage, never opened for writing."""
    body = f"  path {written(source.data_fs)}\n  read-only true\n</filestorage>\n"
    if source.blobs is None:
        return f"<filestorage{name}>\n{body}"
    return f"<blobstorage{name}>\n  blob-dir {written(source.blobs)}\n<filestorage>\n{body}</blobstorage>\n"


def relational(directory: Path, name: str = "") -> str:
    """Return the section of the SQLite database."""
    return f"<relstorage{name}>\n{SQLITE.format(directory=written(directory))}</relstorage>\n"


def write_configurations(directory: Path, source: Source) -> dict[str, Path]:
    """Write one file per purpose, and return their paths by purpose."""
    sqlite = directory / "sqlite"
    texts = {
        "source": f"<zodb>\n{file_storage(source)}</zodb>\n",
        "convert": f"%import relstorage\n{file_storage(source, ' source')}{relational(sqlite, ' destination')}",
        "database": f"%import relstorage\n<zodb>\n{relational(sqlite)}</zodb>\n",
        "storage": f"%import relstorage\n{relational(sqlite)}",
    }
    paths = {}
    for purpose, text in texts.items():
        paths[purpose] = directory / f"{purpose}.conf"
        paths[purpose].write_text(text)
    return paths
