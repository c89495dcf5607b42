"""Uncommitted data has one private directory per process, below the blob directory's ``tmp``.

Its owner holds a lock on the file of the same name with ``.lock`` for as long as it lives. Where nobody holds that lock
the owner is dead, and whoever needs a scratch directory next removes what it left.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
from contextlib import suppress
from uuid import uuid4

from zc.lockfile import SimpleLockFile

from relstorage.blobs.files import remove_if_present, try_lock

logger = logging.getLogger(__name__)

ABANDONED_AFTER = 7 * 86400.0
"""After how many seconds without a change something whose owner cannot be asked is removed."""


class Scratch:
    """This process' private directory; it is created when it is first needed."""

    def __init__(self, parent: str):
        self._parent = parent
        self._creating = threading.Lock()
        self._path: str | None = None
        self._lock: SimpleLockFile | None = None

    def path(self) -> str:
        """Return the directory, which exists."""
        path = self._path
        # Another host may have taken an idle directory for abandoned.
        if path is None or not os.path.isdir(path):
            with self._creating:
                path = self._path
                if path is None or not os.path.isdir(path):
                    path = self._create()
        return path

    def new_file(self) -> str:
        """Return a path in the directory that nobody uses."""
        return os.path.join(self.path(), uuid4().hex)

    def close(self) -> None:
        """Remove the directory if it is empty. If it is not, what uses it may still be around; it is swept later."""
        with self._creating:
            path, self._path = self._path, None
            if path is not None:
                with suppress(OSError):
                    os.rmdir(path)
                    remove_if_present(f"{path}.lock")
            self._release()

    def _create(self) -> str:
        self._release()
        os.makedirs(self._parent, exist_ok=True)
        sweep(self._parent)
        while True:
            path = os.path.join(self._parent, f"{_host()}{os.getpid()}-{uuid4().hex[:12]}")
            lock_path = f"{path}.lock"
            try:
                self._lock = try_lock(lock_path)
            except OSError as error:
                logger.warning("Cannot lock files in %s (%s). What a killed process leaves there stays for %d days.",
                               self._parent, error, ABANDONED_AFTER // 86400)
                remove_if_present(lock_path)
                break
            # A sweep may have locked the file between its creation and our lock, and removed it.
            if self._lock is not None and os.path.exists(lock_path):
                break
            self._release()
        os.mkdir(path)
        self._path = path
        return path

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()


def sweep(parent: str, now: float | None = None) -> None:
    """Remove what dead processes left in ``parent``.

    A dead process of this host is known by its free lock. Locks of other hosts may be invisible here, and files of
    other programs have none: these are removed when nothing in them changed for ``ABANDONED_AFTER`` seconds.
    """
    now = time.time() if now is None else now
    try:
        names = set(os.listdir(parent))
    except FileNotFoundError:
        return
    ours = _host()
    for name in sorted(names):
        path = os.path.join(parent, name)
        try:
            if name.endswith(".lock"):
                last_change = max(_last_change(path), _last_change(path[:-5]))
                if name.startswith(ours) or now - last_change > ABANDONED_AFTER:
                    _remove_unlocked(path)
            elif f"{name}.lock" not in names and now - _last_change(path) > ABANDONED_AFTER:
                _remove(path)
        except OSError as error:
            logger.debug("%s stays in the blob directory for now: %s", path, error)


def _host() -> str:
    """Return what the names of this host's directories start with."""
    return f"{socket.gethostname()}@"


def _remove_unlocked(lock_path: str) -> None:
    lock = try_lock(lock_path)
    if lock is None:
        return
    try:
        _remove(lock_path[:-5])
        remove_if_present(lock_path)
    finally:
        lock.close()


def _remove(path: str) -> None:
    logger.info("Removing %s, which a dead process left behind.", path)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        remove_if_present(path)


def _last_change(path: str) -> float:
    """Return when anything in a file or directory changed last, or the epoch if it does not exist."""
    try:
        newest = os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0
    for folder, _, files in os.walk(path):
        for name in ("", *files):
            with suppress(FileNotFoundError):
                newest = max(newest, os.lstat(os.path.join(folder, name)).st_mtime)
    return newest
