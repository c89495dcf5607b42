"""A hook that counts what this process commits."""

from __future__ import annotations

from relstorage.hooks import hookimpl


class CommitCounter:
    """Counts transactions and the objects in them."""

    def __init__(self) -> None:
        self.transactions = 0
        self.objects = 0

    @hookimpl
    def relstorage_committed(self, oids_count: int) -> None:
        self.transactions += 1
        self.objects += oids_count


counter = CommitCounter()
