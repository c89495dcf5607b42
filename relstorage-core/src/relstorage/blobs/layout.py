"""The names of blob files. A marker file in the blob directory says which of the layouts it has.

``bushy`` and ``lawn`` are FileStorage's; ``ZODB.blob.FilesystemHelper`` knows their names. ``zeocache`` is the layout
of the blob caches of ZEO and RelStorage: blob 1003 of tid 0x3f0 is ``6/1.00000000000003f0.blob``, the remainder and
quotient of a division by 997.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from uuid import uuid4

from ZODB.blob import BLOB_SUFFIX, LAYOUT_MARKER

from relstorage.blobs.files import remove_if_present
from relstorage.errors import LayoutError

CACHE = "zeocache"
SHARED = ("bushy", "lawn")

_FOLDERS = 997
_is_folder = re.compile(r"[0-9]{1,3}").fullmatch
_blob_name = re.compile(rf"([0-9]+)\.([0-9a-f]{{16}}){re.escape(BLOB_SUFFIX)}").fullmatch


def claim_shared(path: str) -> str:
    """Return the layout of a shared directory, marking it as ``bushy`` if it is new."""
    layout = _marked(path)
    if layout is None:
        # FileStorage's rule for directories older than the marker.
        layout = mark(path, "lawn" if _in_use(path) else "bushy")
    if layout == CACHE:
        raise LayoutError(
            f"Cannot use {path} as a shared blob directory: it is a blob cache. "
            "Set shared-blob-dir to false, or name another blob-dir."
        )
    if layout not in SHARED:
        raise LayoutError(f"Cannot use {path} as a shared blob directory: its layout {layout!r} is unknown.")
    return layout


def claim_cache(path: str) -> None:
    """Mark a new directory as a cache. Refuse one with files that are more than a cache."""
    layout = _marked(path)
    if layout is None and _in_use(path):
        raise LayoutError(
            f"Cannot use {path} as a blob cache: it is not empty and not a blob cache. "
            "Set shared-blob-dir to true if it holds the only copy of your blobs, or name another blob-dir."
        )
    if layout is None:
        layout = mark(path, CACHE)
    require_cache(path, layout)


def require_cache(path: str, layout: str | None = None) -> None:
    """Raise ``LayoutError`` if a directory is not marked as a cache: files must never be removed from any other."""
    layout = _marked(path) if layout is None else layout
    if layout != CACHE:
        raise LayoutError(
            f"Cannot use {path} as a blob cache: its layout is {layout!r}, and its blobs may be the only copy. "
            "Set shared-blob-dir to true, or name another blob-dir."
        )


def cached_path(base: str, oid: int, tid: int) -> str:
    """Return where a cache has the blob of a revision."""
    number, folder = divmod(oid, _FOLDERS)
    return os.path.join(base, str(folder), f"{number}.{tid:016x}{BLOB_SUFFIX}")


def parse_cached(folder: str, name: str) -> tuple[int, int] | None:
    """Return oid and tid of a file in a folder of a cache, or None if the file is no blob."""
    match = _blob_name(name)
    if match is None:
        return None
    return int(match[1]) * _FOLDERS + int(folder), int(match[2], 16)


def cached_files(base: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every file of a cache's folders, with the folder's name."""
    with os.scandir(base) as folders:
        for folder in folders:
            if _is_folder(folder.name):
                with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder.path) as files:
                    for entry in files:
                        yield folder.name, entry


def _marked(path: str) -> str | None:
    try:
        with open(os.path.join(path, LAYOUT_MARKER), encoding="ascii") as marker:
            return marker.read().strip()
    except FileNotFoundError:
        return None


def mark(path: str, layout: str) -> str:
    """Write the marker, and return what it says: another process may have been faster."""
    os.makedirs(path, exist_ok=True)
    # Linked when complete, so that nobody ever reads half a marker.
    written = os.path.join(path, f"{LAYOUT_MARKER}-{uuid4().hex}")
    try:
        with open(written, "x", encoding="ascii") as marker:
            marker.write(layout)
        marker_path = os.path.join(path, LAYOUT_MARKER)
        with suppress(FileExistsError):
            try:
                os.link(written, marker_path)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                with open(marker_path, "x", encoding="ascii") as marker:
                    marker.write(layout)
    finally:
        remove_if_present(written)
    return _marked(path) or layout


def _in_use(path: str) -> bool:
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return False
    return any(not name.startswith(".") and name not in ("tmp", "lost+found") for name in names)
