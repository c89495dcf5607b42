"""Resolve conflicts: ZODB's resolver gets the old states in one query instead of one for each object."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ZODB.ConflictResolution import ConflictResolvingStorage
from ZODB.POSException import ConflictError

from relstorage.database.commit import Conflict, Kind, Spool
from relstorage.ids import to_bytes, to_int


class Resolver(ConflictResolvingStorage):
    """ZODB's own conflict resolution, given the states it asks for.

    ``states_at_view(oids)`` returns what the transaction read, ``load_revision(oid, tid)`` any older revision.
    """

    def __init__(self, states_at_view: Callable[[list[int]], dict[int, tuple[int, bytes]]],
                 load_revision: Callable[[int, int], bytes]):
        self._states_at_view = states_at_view
        self._load_revision = load_revision
        self._prefetched: dict[tuple[int, int], bytes] = {}

    def loadSerial(self, oid: bytes, serial: bytes) -> bytes:
        """Return the state that the transaction started from; the resolver calls this."""
        key = (to_int(oid), to_int(serial))
        state = self._prefetched.get(key)
        return self._load_revision(*key) if state is None else state

    def resolve(
        self, conflicts: Iterable[Conflict], spool: Spool, tell: Callable[[int, bool], Any] | None
    ) -> list[int]:
        """Put merged states into the spool and return their oids.

        Raise ``ConflictError`` for the first conflict that cannot be resolved. ``tell(oid, resolved)`` observes each.
        """
        conflicts = list(conflicts)
        view = self._states_at_view([each.oid for each in conflicts])
        self._prefetched = {(oid, tid): state for oid, (tid, state) in view.items()}
        try:
            for conflict in conflicts:
                self._resolve(conflict, spool, tell)
        finally:
            self._prefetched = {}
        return [each.oid for each in conflicts]

    def _resolve(self, conflict: Conflict, spool: Spool, tell: Callable[[int, bool], Any] | None) -> None:
        staged = spool.get(conflict.oid)
        assert staged is not None
        oid, base = to_bytes(conflict.oid), to_bytes(conflict.base)
        try:
            # An object that another transaction made or removed leaves nothing to merge with.
            if (
                staged.kind is not Kind.STORE
                or staged.state is None
                or conflict.tid is None
                or not conflict.state
                or not conflict.base
            ):
                raise ConflictError(oid=oid, serials=(to_bytes(conflict.tid or 0), base), data=staged.state or None)
            merged = self.tryToResolveConflict(oid, to_bytes(conflict.tid), base, staged.state, conflict.state)
        except ConflictError:
            if tell is not None:
                tell(conflict.oid, False)
            raise
        if tell is not None:
            tell(conflict.oid, True)
        spool.put(conflict.oid, conflict.tid, staged.kind, merged)
