"""The blob cache shrinks: the files used least recently go until the rest fits.

What was written is counted; when it is enough, a background thread cleans, in this process or by running
``relstorage.blobs.clean`` in another. One process at a time cleans a directory. A file that somebody has open stays
readable.
"""

from __future__ import annotations

import heapq
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import NamedTuple

from relstorage.blobs.files import remove_if_present, try_lock
from relstorage.blobs.layout import cached_files, parse_cached, require_cache
from relstorage.blobs.scratch import ABANDONED_AFTER, sweep

logger = logging.getLogger(__name__)

STILL_TOO_LARGE = 3
"""Exit status of ``relstorage.blobs.clean`` when another run is needed."""

_CLEANER_LOCK = "check_size.lock"
_PARTIAL_SUFFIXES = (".tmp", ".dl")


class Cleaned(NamedTuple):
    """What one cleaning did. ``size`` is in bytes, afterwards."""

    size: int
    removed_files: int
    removed_bytes: int


def clean(
    path: str, target: int, *, keep_seconds: float = 5.0, stopped: Callable[[], bool] = lambda: False
) -> Cleaned | None:
    """Remove the least recently used files of a blob cache until at most ``target`` bytes are left.

    Spare those used within the last ``keep_seconds``. Return None if another process is cleaning.
    Raise ``LayoutError`` if the directory is not marked as a cache. It can be interrupted at any time.
    """
    require_cache(path)
    with ExitStack() as stack:
        # Where there are no locks, two may clean at once, which is only a waste.
        with suppress(OSError):
            lock = try_lock(os.path.join(path, _CLEANER_LOCK))
            if lock is None:
                return None
            stack.callback(lock.close)
        sweep(os.path.join(path, "tmp"))
        size = _measure(path)
        removed_files = removed_bytes = 0
        if size > target:
            for used, length, victim in _least_recently_used(path, size - target, time.time() - keep_seconds):
                if stopped():
                    break
                if _remove_unless_used(victim, used):
                    removed_files += 1
                    removed_bytes += length
    logger.info("Cleaned the blob cache %s: removed %d files of %d bytes, %d bytes are left (target %d).",
                path, removed_files, removed_bytes, size - removed_bytes, target)
    return Cleaned(size - removed_bytes, removed_files, removed_bytes)


class BackgroundCleaner:
    """Cleans a cache in the background once at first, and whenever ``check_percent`` of ``max_size`` were written."""

    def __init__(
        self, path: str, max_size: int, check_percent: int, *, keep_seconds: float = 5.0, external: bool = False
    ):
        self._path = path
        self._target = max_size * (100 - check_percent) // 100
        self._interval = max(max_size - self._target, 1)
        self._keep_seconds = keep_seconds
        self._clean = self._clean_elsewhere if external else self._clean_here
        self._written = 0
        self._counting = threading.Lock()
        self._due = threading.Event()
        self._stopped = threading.Event()
        self._due.set()
        self._thread = threading.Thread(target=self._run, name=f"cleaner of {path}", daemon=True)
        self._thread.start()

    def written(self, size: int) -> None:
        """Note that ``size`` bytes were added to the cache."""
        with self._counting:
            self._written += size
            if self._written < self._interval:
                return
            self._written = 0
        self._due.set()

    def close(self) -> None:
        """Stop, and wait until the thread has ended."""
        self._stopped.set()
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        again = False
        while True:
            # What was spared because it is in use, or because another process cleans, is looked at again soon.
            self._due.wait(max(self._keep_seconds, 1.0) if again else None)
            self._due.clear()
            if self._stopped.is_set():
                return
            try:
                again = self._clean()
            except Exception:
                # The thread serves the whole life of the process; a passing failure must not end it.
                logger.exception("Could not clean the blob cache %s. The next attempt follows more writes.", self._path)
                again = False

    def _clean_here(self) -> bool:
        """Return True if the cache is still too large."""
        result = clean(self._path, self._target, keep_seconds=self._keep_seconds, stopped=self._stopped.is_set)
        return result is None or result.size > self._target

    def _clean_elsewhere(self) -> bool:
        """Return True if the cache is still too large."""
        command = [sys.executable, "-m", "relstorage.blobs.clean", self._path, str(self._target)]
        command += ["--keep-seconds", str(self._keep_seconds)]
        # Programs such as buildout's scripts extend the path in the process only.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if self._stopped.wait(0.1):
                    process.terminate()
                    process.wait()
                    return False
        if process.returncode not in (0, STILL_TOO_LARGE):
            logger.error("Could not clean the blob cache: %s ended with status %d.", command, process.returncode)
        return process.returncode == STILL_TOO_LARGE


def _measure(path: str) -> int:
    """Return the size of all blobs, and remove partial downloads that older programs left."""
    size = 0
    now = time.time()
    for folder, entry in cached_files(path):
        with suppress(FileNotFoundError):
            if parse_cached(folder, entry.name) is not None:
                size += entry.stat().st_size
            elif entry.name.endswith(_PARTIAL_SUFFIXES) and now - entry.stat().st_mtime > ABANDONED_AFTER:
                remove_if_present(entry.path)
    return size


def _least_recently_used(path: str, size: int, before: float) -> list[tuple[int, int, str]]:
    """Return last use, size and path of the files to remove, oldest first: as few as have ``size`` bytes together.

    Memory is bounded by what is to be removed, not by the cache.
    """
    newest_first: list[tuple[int, int, str]] = []
    held = 0
    for folder, entry in cached_files(path):
        if parse_cached(folder, entry.name) is None:
            continue
        try:
            facts = entry.stat()
        except FileNotFoundError:
            continue
        if facts.st_atime > before:
            continue
        heapq.heappush(newest_first, (-facts.st_atime_ns, facts.st_size, entry.path))
        held += facts.st_size
        while held - newest_first[0][1] >= size:
            held -= heapq.heappop(newest_first)[1]
    return [(-used, length, victim) for used, length, victim in sorted(newest_first, reverse=True)]


def _remove_unless_used(path: str, used: int) -> bool:
    """Remove a file whose last use is still the one that was seen."""
    try:
        if os.stat(path).st_atime_ns != used:
            return False
        os.remove(path)
    except FileNotFoundError:
        return False
    return True
