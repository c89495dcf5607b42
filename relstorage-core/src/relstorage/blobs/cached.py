"""A local cache of blobs that the database keeps. Files arrive by download or from a local commit, and leave when the
cleaner finds that others were used more recently.

A file appears under its final name complete or not at all. Processes that want the same blob wait for the one that
downloads it; should that take too long they download it too, which costs time but harms nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any

from ZODB.blob import BlobFile, set_not_writable
from ZODB.POSException import POSKeyError

from relstorage.blobs.cleaning import BackgroundCleaner
from relstorage.blobs.files import remove_if_present, room_needed, sync_file, try_lock
from relstorage.blobs.layout import cached_files, cached_path, claim_cache, parse_cached
from relstorage.blobs.reboot import current_boot, drop_unflushed
from relstorage.blobs.scratch import Scratch
from relstorage.blobs.staging import StagedFiles
from relstorage.errors import TransientStorageError
from relstorage.ids import to_bytes
from relstorage.interfaces.blobs import Download, Revision

logger = logging.getLogger(__name__)

_OPEN_ATTEMPTS = 20
_POLL_SECONDS = 0.01
_TOUCH_SECONDS = 1.0


class CachedBlobs:
    """A bounded cache of blobs; see ``relstorage.interfaces.blobs.BlobDirectory``.

    ``max_size`` is in bytes; None means unbounded. The cache is cleaned in the background each time ``check_percent``
    of it were written, down to what leaves room for as much again. With ``external_cleaner`` another process does that.
    Files used within the last ``keep_seconds`` are spared, so that one whose path was just returned can be opened.

    With ``keep_committed`` false the cache holds only what was read: a local commit does not fill it.
    ``patience`` is for how many seconds to wait for another process' download of a blob.
    """

    kept_in_database = True

    def __init__(
        self,
        path: str,
        *,
        max_size: int | None = None,
        check_percent: int = 10,
        external_cleaner: bool = False,
        keep_committed: bool = True,
        keep_seconds: float = 5.0,
        patience: float = 60.0,
    ):
        self.path = os.path.abspath(path)
        self._max_size = max_size
        self._keep_committed = keep_committed
        self._patience = patience
        claim_cache(self.path)
        boot = current_boot()
        self._flush = boot is None
        if boot is not None:
            drop_unflushed(self.path, boot)
        self._scratch = Scratch(os.path.join(self.path, "tmp"))
        self._cleaner: BackgroundCleaner | None = None
        if max_size is not None:
            self._cleaner = BackgroundCleaner(
                self.path, max_size, check_percent, keep_seconds=keep_seconds, external=external_cleaner
            )

    def temporary_directory(self) -> str:
        return self._scratch.path()

    def begin(self) -> StagedFiles:
        return StagedFiles(self._scratch, self)

    def load(self, oid: int, tid: int, download: Download) -> str:
        path = cached_path(self.path, oid, tid)
        if not _use(path):
            with self._turn(path):
                if not _use(path):
                    self._download(oid, tid, path, download)
        return path

    def open(self, oid: int, tid: int, download: Download, blob: Any = None) -> IO[bytes]:
        for _ in range(_OPEN_ATTEMPTS):
            path = self.load(oid, tid, download)
            try:
                return open(path, "rb") if blob is None else BlobFile(path, "r", blob)
            except FileNotFoundError:
                logger.debug("%s was removed from the blob cache before it could be opened.", path)
        raise TransientStorageError(
            f"Could not open {path}: it was removed {_OPEN_ATTEMPTS} times just after it was downloaded. "
            "Raise blob-cache-size, or stop the program that removes files from the blob cache."
        )

    def revisions(self, oid: int) -> list[int]:
        folder, name = os.path.split(cached_path(self.path, oid, 0))
        prefix = name.partition(".")[0] + "."
        try:
            names = [name for name in os.listdir(folder) if name.startswith(prefix)]
        except FileNotFoundError:
            return []
        parsed = (parse_cached(os.path.basename(folder), name) for name in names)
        return sorted(revision[1] for revision in parsed if revision is not None)

    def all_revisions(self) -> Iterator[Revision]:
        for folder, entry in cached_files(self.path):
            revision = parse_cached(folder, entry.name)
            if revision is not None:
                yield revision

    def forget(self, revisions: Iterable[Revision]) -> int:
        return sum(remove_if_present(cached_path(self.path, oid, tid)) for oid, tid in revisions)

    def clear(self) -> None:
        self.forget(self.all_revisions())

    def close(self) -> None:
        if self._cleaner is not None:
            self._cleaner.close()
        self._scratch.close()

    # --- Placement

    def copy_revision(self, oid: int, tid: int, path: str) -> bool:
        """Return False: the database copies its blobs itself."""
        return False

    def prepare(self, path: str) -> None:
        """Do nothing: the database makes the blob durable."""

    def place(self, files: dict[int, str], tid: int, placed: dict[str, str | None]) -> None:
        """Do nothing: nobody can see the revision yet."""

    def take_back(self, placed: dict[str, str | None]) -> None:
        """Do nothing: nothing was placed."""

    def keep(self, files: dict[int, str], tid: int) -> None:
        for oid, path in files.items():
            try:
                if self._keep_committed and (self._max_size is None or os.path.getsize(path) <= self._max_size):
                    self._admit(path, cached_path(self.path, oid, tid))
            except OSError:
                logger.warning("Could not move %s into the blob cache; it will be downloaded.", path, exc_info=True)

    # ---

    @contextmanager
    def _turn(self, path: str) -> Iterator[None]:
        """Wait until nobody else downloads ``path``, or it is there, or ``patience`` runs out.

        The lock is the one that RelStorage and ZEO use: one for each folder.
        """
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        with ExitStack() as stack:
            # Where there are no locks, the blob may be downloaded twice at once.
            with suppress(OSError):
                deadline = time.monotonic() + self._patience
                while (lock := try_lock(os.path.join(folder, ".lock"))) is None:
                    if os.path.exists(path) or time.monotonic() > deadline:
                        break
                    time.sleep(_POLL_SECONDS)
                else:
                    stack.callback(lock.close)
            yield

    def _download(self, oid: int, tid: int, path: str, download: Download) -> None:
        part = self._scratch.new_file()
        try:
            with room_needed("downloading a blob", part):
                if not download(part):
                    raise POSKeyError("The database has no such blob", to_bytes(oid), to_bytes(tid))
                # An empty blob may have left the download with nothing to write.
                with open(part, "ab"):
                    pass
                self._admit(part, path)
        finally:
            remove_if_present(part)

    def _admit(self, path: str, target: str) -> None:
        """Move a complete file into the cache."""
        os.utime(path)
        set_not_writable(path)
        if self._flush:
            # A rename may reach the disk before the content, and nothing tells later that there was a power cut.
            sync_file(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        size = os.path.getsize(path)
        os.replace(path, target)
        if self._cleaner is not None:
            self._cleaner.written(size)


def _use(path: str) -> bool:
    """Note that a file is used, and return True; return False if it does not exist."""
    try:
        facts = os.stat(path)
        now = time.time()
        # The file system's own atime is not updated on every read.
        if abs(now - facts.st_atime) > _TOUCH_SECONDS:
            os.utime(path, ns=(int(now * 1e9), facts.st_mtime_ns))
    except FileNotFoundError:
        return False
    except PermissionError:
        logger.debug("%s belongs to another user: its use cannot be noted.", path)
    return True
