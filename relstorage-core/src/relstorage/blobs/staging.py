"""One transaction's blob files: they come in at ``storeBlob``, wait in the scratch directory, and go to their final
place or vanish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from relstorage.blobs.files import remove_if_present, take_over
from relstorage.blobs.scratch import Scratch


class Placement(Protocol):
    """What a kind of blob directory does with the files of a transaction."""

    def copy_revision(self, oid: int, tid: int, path: str) -> bool:
        """Create ``path`` with a committed blob's content; return False if there is none."""

    def prepare(self, path: str) -> None:
        """Make the content of a staged file ready for ``place``."""

    def place(self, files: dict[int, str], tid: int, placed: dict[str, str | None]) -> None:
        """Put the files in place before COMMIT.

        Note every new path in ``placed`` beforehand, with the path of a copy of the file that was there.
        """

    def take_back(self, placed: dict[str, str | None]) -> None:
        """Undo ``place`` for a transaction that was not committed."""

    def keep(self, files: dict[int, str], tid: int) -> None:
        """Do what is left to do after COMMIT. Does not raise."""


class StagedFiles:
    """See ``relstorage.interfaces.blobs.StagedBlobs``."""

    def __init__(self, scratch: Scratch, placement: Placement):
        self._scratch = scratch
        self._placement = placement
        self._files: dict[int, str] = {}
        self._prepared: set[str] = set()
        self._placed: dict[str, str | None] = {}

    def add(self, oid: int, filename: str) -> str:
        path = self._scratch.new_file()
        take_over(filename, path)
        self._stage(oid, path)
        return path

    def add_revision(self, oid: int, tid: int) -> bool:
        path = self._scratch.new_file()
        if not self._placement.copy_revision(oid, tid, path):
            return False
        self._stage(oid, path)
        return True

    def remove(self, oid: int) -> None:
        path = self._files.pop(oid, None)
        if path is not None:
            remove_if_present(path)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(self._files.items())

    def __bool__(self) -> bool:
        return bool(self._files)

    def prepare(self) -> None:
        for path in self._files.values():
            if path not in self._prepared:
                self._placement.prepare(path)
                self._prepared.add(path)

    def place(self, tid: int) -> None:
        self.prepare()
        self._placement.place(self._files, tid, self._placed)

    def committed(self, tid: int) -> None:
        placed, self._placed = self._placed, {}
        self._placement.keep(self._files, tid)
        for replaced in placed.values():
            if replaced is not None:
                remove_if_present(replaced)
        self._forget_staged()

    def aborted(self) -> None:
        placed, self._placed = self._placed, {}
        try:
            self._placement.take_back(placed)
        finally:
            self._forget_staged()

    def _stage(self, oid: int, path: str) -> None:
        earlier = self._files.get(oid)
        self._files[oid] = path
        if earlier is not None:
            remove_if_present(earlier)

    def _forget_staged(self) -> None:
        files, self._files = self._files, {}
        self._prepared.clear()
        for path in files.values():
            remove_if_present(path)
