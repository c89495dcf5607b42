"""A cache does not flush its files, because they can be downloaded again. After a power cut the name of a file may be
on disk and its content not; what was written shortly before the machine went down is dropped when it is up again.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from relstorage.blobs.files import remove_if_present, try_lock
from relstorage.blobs.layout import cached_files, parse_cached

logger = logging.getLogger(__name__)

BOOT_MARKER = ".boot"

UNFLUSHED_SECONDS = 900.0
"""After how many seconds the content of a file is certainly on disk. Linux writes it within 35 by default."""


def current_boot() -> str | None:
    """Return what identifies this run of the machine, or None where the operating system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot_id:
            return boot_id.read().strip()
    except OSError:
        return None


def drop_unflushed(path: str, boot: str) -> int:
    """Remove the files of a cache that an earlier run of the machine may have left incomplete, and return how many.

    Must be called before a file of the cache is used. It looks at the files only once in a run of the machine.
    """
    marker = os.path.join(path, BOOT_MARKER)
    if _read(marker) == boot:
        return 0
    with ExitStack() as stack:
        with suppress(OSError):
            while (lock := try_lock(marker)) is None:
                time.sleep(0.01)
            stack.callback(lock.close)
        earlier_boot = _read(marker)
        if earlier_boot == boot:
            return 0
        # A cache without a marker may have been filled by another program since the machine started.
        end = math.inf if earlier_boot else time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        # The machine was still running when the newest file was written.
        newest = max((written for written, _ in _blobs(path) if written < end), default=0.0)
        suspicious = newest - UNFLUSHED_SECONDS
        removed = sum(remove_if_present(blob) for written, blob in _blobs(path) if suspicious <= written < end)
        with open(marker, "w", encoding="ascii") as file:
            file.write(boot)
    if removed:
        logger.info("Removed %d files from the blob cache %s: they were written shortly before the machine restarted.",
                    removed, path)
    return removed


def _read(marker: str) -> str | None:
    try:
        with open(marker, encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _blobs(path: str) -> Iterator[tuple[float, str]]:
    """Yield when each blob was written, and its path."""
    for folder, entry in cached_files(path):
        if parse_cached(folder, entry.name) is not None:
            with suppress(FileNotFoundError):
                yield entry.stat().st_mtime, entry.path
