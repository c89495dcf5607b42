"""Blobs in a directory that all processes share, for instance over NFS: the only place where they are.

A file is in its final place, and on disk, before the database commits; the commit lock is held from then until the
commit. A process that dies in between leaves a file that no record refers to. The layouts are FileStorage's, so that
its directories can be used as they are.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, Any

from ZODB.blob import BLOB_SUFFIX, BlobFile, FilesystemHelper, set_not_writable
from ZODB.POSException import POSKeyError

from relstorage.blobs.files import (
    make_directories,
    prune_directories,
    remove_if_present,
    room_needed,
    sync_directory,
    sync_file,
)
from relstorage.blobs.layout import claim_shared
from relstorage.blobs.scratch import Scratch
from relstorage.blobs.staging import StagedFiles
from relstorage.ids import to_bytes, to_int
from relstorage.interfaces.blobs import Download, Revision

logger = logging.getLogger(__name__)

_revision_name = re.compile(rf"0x([0-9a-f]+){re.escape(BLOB_SUFFIX)}").fullmatch


class SharedBlobs:
    """A blob directory that is the only place of the blobs; see ``relstorage.interfaces.blobs.BlobDirectory``.

    With ``durable`` false a power cut may lose blobs of committed transactions.
    """

    kept_in_database = False

    def __init__(self, path: str, *, durable: bool = True):
        self.path = os.path.abspath(path)
        self._durable = durable
        self._files = FilesystemHelper(self.path, claim_shared(self.path))
        self._scratch = Scratch(self._files.temp_dir)

    def temporary_directory(self) -> str:
        return self._scratch.path()

    def begin(self) -> StagedFiles:
        return StagedFiles(self._scratch, self)

    def load(self, oid: int, tid: int, download: Download | None = None) -> str:
        path = self._path(oid, tid)
        if not os.path.exists(path):
            raise self._missing(oid, tid)
        return path

    def open(self, oid: int, tid: int, download: Download | None = None, blob: Any = None) -> IO[bytes]:
        path = self._path(oid, tid)
        try:
            return open(path, "rb") if blob is None else BlobFile(path, "r", blob)
        except FileNotFoundError:
            raise self._missing(oid, tid) from None

    def revisions(self, oid: int) -> list[int]:
        return _revisions_in(self._files.getPathForOID(oid))

    def all_revisions(self) -> Iterator[Revision]:
        for oid, folder in self._files.listOIDs():
            for tid in _revisions_in(folder):
                yield to_int(oid), tid

    def forget(self, revisions: Iterable[Revision]) -> int:
        removed = 0
        for oid, tid in revisions:
            path = self._path(oid, tid)
            if remove_if_present(path):
                removed += 1
                prune_directories(os.path.dirname(path), self.path)
        return removed

    def clear(self) -> None:
        self.forget(self.all_revisions())

    def close(self) -> None:
        self._scratch.close()

    # --- Placement

    def copy_revision(self, oid: int, tid: int, path: str) -> bool:
        source = self._path(oid, tid)
        try:
            # Committed files never change, so that two names can share one.
            os.link(source, path)
        except FileNotFoundError:
            return False
        except OSError:
            with room_needed("copying a blob", path):
                shutil.copyfile(source, path)
        return True

    def prepare(self, path: str) -> None:
        set_not_writable(path)
        if self._durable:
            with room_needed("writing a blob", path):
                sync_file(path)

    def place(self, files: dict[int, str], tid: int, placed: dict[str, str | None]) -> None:
        changed: set[str] = set()
        for oid, path in files.items():
            target = self._path(oid, tid)
            placed[target] = self._copy_of_existing(target)
            self._move(path, target, changed)
        if self._durable:
            for folder in changed:
                sync_directory(folder)

    def take_back(self, placed: dict[str, str | None]) -> None:
        for target, replaced in placed.items():
            try:
                if replaced is not None:
                    os.replace(replaced, target)
                else:
                    remove_if_present(target)
                    prune_directories(os.path.dirname(target), self.path)
            except OSError:
                logger.exception("Could not remove %s, a blob of a transaction that was aborted.", target)

    def keep(self, files: dict[int, str], tid: int) -> None:
        """Do nothing: the files are in place."""

    # ---

    def _path(self, oid: int, tid: int) -> str:
        path: str = self._files.getBlobFilename(to_bytes(oid), to_bytes(tid))
        return path

    def _copy_of_existing(self, target: str) -> str | None:
        """Save a file that is about to be replaced: a revision that is restored twice must survive an abort."""
        if not os.path.exists(target):
            return None
        copy = self._scratch.new_file()
        try:
            os.link(target, copy)
        except OSError:
            shutil.copyfile(target, copy)
        return copy

    def _move(self, path: str, target: str, changed: set[str]) -> None:
        folder = os.path.dirname(target)
        changed.add(folder)
        for _ in range(100):
            # Another process may be pruning the directory, which was empty until now.
            with suppress(FileNotFoundError):
                make_directories(folder, changed)
                os.replace(path, target)
                return
            if not os.path.exists(path):
                break
        raise FileNotFoundError(f"Could not move the blob {path} to {target}: the file or the directory vanished.")

    def _missing(self, oid: int, tid: int) -> POSKeyError:
        return POSKeyError(f"No blob file at {self._path(oid, tid)}", to_bytes(oid), to_bytes(tid))


def _revisions_in(folder: str) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(match[1], 16) for match in map(_revision_name, names) if match)
