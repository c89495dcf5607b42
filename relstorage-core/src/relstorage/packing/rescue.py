"""What became reachable after a mark, although the mark found it to be garbage.

Only a commit can make it so, by writing the object or one that refers to it. So the records since the mark are read,
and whatever they refer to is followed through the list of garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

from relstorage.errors import PackError, UnreadableState
from relstorage.ids import MAX_OID
from relstorage.references import possible_references

#: How many oids one query is asked about, and how many states it may bring.
OIDS, STATES = 10_000, 500


class Rescue(NamedTuple):
    """The listed objects that must stay, and how many records were read to find them."""

    oids: list[int]
    records: int


def find_rescue(session: Any, sql: Any, run: int, since: int, find: Callable[[bytes], list[int]]) -> Rescue:
    """Return the listed objects of a run that records newer than ``since`` are, refer to, or lead to.

    Raise ``PackError`` if commits may have slipped in with older tids.
    """
    if session.rows(sql.removed_among, (since, [])):
        raise PackError(
            f"Packing: after the mark of run {run}, transactions were restored that are older than it, or the database "
            "was emptied. The mark is of no use any more. Nothing was removed. "
            "Run the pack without using an earlier mark."
        )
    fresh: set[int] = set()
    kept: set[int] = set()
    records = 0
    with closing(session.stream(sql.records_since, (since,))) as rows:
        for oid, _, state in rows:
            records += 1
            fresh.add(oid)
            fresh.update(_references(oid, state, find))
    while fresh:
        listed = [
            row[0] for oids in chunks(sorted(fresh), OIDS) for row in session.rows(sql.pack_is_garbage, (run, oids))
        ]
        kept.update(listed)
        fresh = set()
        for oids in chunks(listed, STATES):
            for oid, _, state in session.rows(sql.object_revisions, (oids,)):
                fresh.update(_references(oid, state, find))
        fresh -= kept
    return Rescue(sorted(kept), records)


def chunks(oids: list[int], size: int) -> Iterator[list[int]]:
    """Iterate over a list in pieces."""
    for start in range(0, len(oids), size):
        yield oids[start : start + size]


def _references(oid: int, state: bytes | None, find: Callable[[bytes], list[int]]) -> Iterable[int]:
    if not state:
        return ()
    try:
        return [target for target in find(state) if target <= MAX_OID]
    except UnreadableState:
        try:
            return possible_references(state, lambda candidate: True)
        except UnreadableState as error:
            raise PackError(
                f"Packing: the record of object {oid:#x}, written after the mark, can neither be read nor searched for "
                f"references. Pack through the storage that transforms the records. ({error})"
            ) from error
