"""Where blob files live on disk, as the storage sees it. Oids and tids are ``int``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Protocol, TypeAlias

Download: TypeAlias = Callable[[str], bool]
"""Write a blob to the path given, and return False if the database has no such blob."""

Revision: TypeAlias = tuple[int, int]
"""An oid and a tid."""


class StagedBlobs(Protocol):
    """The blob files of one transaction, from ``storeBlob`` until its end. Used by one thread."""

    def add(self, oid: int, filename: str) -> str:
        """Take ownership of a file at once, and return its new, private path.

        ``filename`` does not exist afterwards. A second file for the same oid replaces the first.
        ``OutOfSpace`` is raised if the file comes from another file system and does not fit; it is then untouched.
        """

    def remove(self, oid: int) -> None:
        """Forget what was staged for ``oid``. Harmless if that is nothing."""

    def add_revision(self, oid: int, tid: int) -> bool:
        """Stage the blob that ``oid`` had at ``tid`` once more, as an undo does. Return False if there is no such file.

        Only for a directory that is not ``kept_in_database``: a database copies its own blobs.
        """

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Yield oid and path of every staged file; an upload reads them."""

    def __bool__(self) -> bool:
        """Tell whether anything is staged."""

    def prepare(self) -> None:
        """Do at vote what need not wait for the commit lock: flush the files of a shared directory to disk."""

    def place(self, tid: int) -> None:
        """Put the files where ``load`` finds them. Called under the commit lock, just before COMMIT.

        A shared directory is durable when this returns. A cache does nothing.
        """

    def committed(self, tid: int) -> None:
        """Note that the transaction is committed. A cache keeps the files now; failing to do so is only logged."""

    def aborted(self) -> None:
        """Undo everything, placed files included. Harmless after ``committed`` and when repeated."""


class BlobDirectory(Protocol):
    """The blob files of one database. Shared by all threads of a process, and by many processes."""

    path: str
    kept_in_database: bool
    """True if the database has the blobs and the directory only caches them."""

    def temporary_directory(self) -> str:
        """Return this process' own directory for uncommitted data, on the file system of the blobs.

        What a process leaves there when it dies is removed by another one later.
        """

    def begin(self) -> StagedBlobs:
        """Return an empty set of staged files for one transaction."""

    def load(self, oid: int, tid: int, download: Download) -> str:
        """Return the path of a committed blob, downloading it when it is absent.

        Raise ``POSKeyError`` if there is no such blob. A shared directory never calls ``download``.
        A cache may remove the file again some seconds later: use ``open`` where you can.
        """

    def open(self, oid: int, tid: int, download: Download, blob: Any = None) -> IO[bytes]:
        """Open a committed blob for reading: a ``ZODB.blob.BlobFile`` if its ``blob`` is given, else an ordinary file.

        The file stays readable when it is removed from the directory meanwhile.
        """

    def revisions(self, oid: int) -> list[int]:
        """Return the tids of which the directory has a file, oldest first."""

    def all_revisions(self) -> Iterator[Revision]:
        """Yield every committed file's oid and tid, in no particular order. It walks the whole directory."""

    def forget(self, revisions: Iterable[Revision]) -> int:
        """Remove the files of revisions that are gone from the database, and return how many there were."""

    def clear(self) -> None:
        """Remove every committed file, after the database was emptied."""

    def close(self) -> None:
        """Stop background work. Staged files of transactions that have not ended are lost."""
