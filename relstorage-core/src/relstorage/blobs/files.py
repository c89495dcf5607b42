"""Files move between directories and become durable: the operations on single files that every blob directory needs."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from zc.lockfile import LockError, SimpleLockFile

from relstorage.errors import OutOfSpace

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_LOCK_IS_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


@contextmanager
def room_needed(doing: str, path: str) -> Iterator[None]:
    """Raise ``OutOfSpace`` when the file system of ``path`` has no room for what the block writes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OutOfSpace(
            f"No room left while {doing}, in {os.path.dirname(path)}. Free some disk space there, or raise the quota."
        ) from error


def take_over(source: str, target: str) -> None:
    """Move a file, also from another file system. If that fails, ``source`` is untouched and there is no ``target``."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        try:
            with room_needed("copying a blob from another file system", target):
                shutil.copyfile(source, target)
        except BaseException:
            remove_if_present(target)
            raise
        os.remove(source)


def try_lock(path: str) -> SimpleLockFile | None:
    """Return a lock that vanishes with this process, or None if somebody holds it, in this process or another.

    ``OSError`` is raised where the file cannot be created or the file system has no locks.
    """
    try:
        return SimpleLockFile(path)
    except LockError as error:
        reason = error.__context__
        if isinstance(reason, OSError) and reason.errno not in _LOCK_IS_HELD:
            raise reason from None
        return None


def remove_if_present(path: str) -> bool:
    """Remove a file and return True, or return False if there is none."""
    try:
        os.remove(path)
    except FileNotFoundError:
        return False
    return True


def sync_file(path: str) -> None:
    """Return when the file's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: str) -> None:
    """Return when the directory's entries are on disk."""
    # Some network file systems cannot flush a directory and say so; their renames are synchronous.
    with suppress(OSError):
        sync_file(path)


def make_directories(path: str, changed: set[str]) -> None:
    """Create a directory and its parents, and add every directory that has a new entry to ``changed``."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directories(parent, changed)
    with suppress(FileExistsError):
        os.mkdir(path)
    changed.add(parent)


def prune_directories(path: str, base: str) -> None:
    """Remove a directory, and its parents below ``base``, as far as they hold nothing but RelStorage's lock files."""
    while len(path) > len(base):
        try:
            if os.listdir(path) == [".lock"]:
                remove_if_present(os.path.join(path, ".lock"))
            os.rmdir(path)
        except OSError:
            # Not empty, or another process was faster: either way it is not ours to remove.
            return
        path = os.path.dirname(path)
