"""Mark: find out, in one snapshot, what a pack may remove.

Kept are, with history, the newest revision of each object at the pack's tid and all later ones; without, the current
ones. An object stays if it was written after the pack's tid, or can be reached from the root or from such an object
through kept revisions. What an unreadable record may refer to stays as well.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from relstorage.errors import PackError, UnreadableState
from relstorage.ids import ROOT_OID
from relstorage.packing.graph import Graph
from relstorage.packing.progress import Reporter
from relstorage.references import class_name, possible_references

#: How many broken records and dangling references a report names; all are counted.
NAMED = 1000


class Broken(NamedTuple):
    """A record that cannot be read."""

    oid: int
    tid: int
    class_name: str


class Mark:
    """What a snapshot shows: the garbage, and what is wrong with the rest."""

    def __init__(self, view: int, pack_tid: int):
        self.view = view
        self.pack_tid = pack_tid
        self.objects = 0
        self.reachable = 0
        self.broken: list[Broken] = []
        self.broken_count = 0
        #: (oid, missing oid) of references from kept objects to nothing.
        self.dangling: list[tuple[int, int]] = []
        self.dangling_count = 0
        # Garbage: oid, tid and whether the whole object goes.
        self._oids = array("q")
        self._tids = array("q")
        self._whole = bytearray()
        self.removable_objects = 0
        self.removable_bytes = 0

    @property
    def removable_revisions(self) -> int:
        """How many entries the list of garbage has."""
        return len(self._oids)

    def add_garbage(self, oid: int, tid: int, whole: bool, size: int) -> None:
        """Put a revision, or an object with all its revisions, on the list."""
        self._oids.append(oid)
        self._tids.append(tid)
        self._whole.append(whole)
        self.removable_objects += whole
        self.removable_bytes += size

    def garbage(self) -> Iterator[tuple[int, int, int]]:
        """Iterate over (oid, tid, whole)."""
        return zip(self._oids, self._tids, self._whole, strict=True)

    def note_dangling(self, oid: int, target: int) -> None:
        """Count a reference to an object that does not exist."""
        self.dangling_count += 1
        if len(self.dangling) < NAMED:
            self.dangling.append((oid, target))

    def note_broken(self, oid: int, tid: int, state: bytes) -> None:
        """Count a record that cannot be read."""
        self.broken_count += 1
        if len(self.broken) < NAMED:
            self.broken.append(Broken(oid, tid, class_name(state)))


def mark(
    session: Any, sql: Any, pack_tid: int | None, collect: bool, find: Callable[[bytes], list[int]], reporter: Reporter
) -> Mark:
    """Read everything in the snapshot of ``session``, and return what a pack to ``pack_tid`` may remove.

    With ``collect`` false, unreachable objects stay. ``find`` returns the references of a state.
    """
    view = session.row(sql.newest_tid)[0]
    result = Mark(view, view if pack_tid is None else min(pack_tid, view))
    reporter.begin("read", session.row(sql.object_count)[0])
    graph, newest, sizes, roots = Graph(), array("q"), array("q"), [ROOT_OID]
    unreadable: list[tuple[int, bytes]] = []
    with closing(session.stream(sql.all_revisions)) as rows:
        for done, (oid, group) in enumerate(groupby(rows, itemgetter(0)), 1):
            revisions = list(group)
            targets, tid, size, lives = _object(oid, revisions, result, find, unreadable)
            if not lives:
                # Deleted before the pack's tid, and not made again.
                result.add_garbage(oid, tid, True, size)
                continue
            graph.add(oid, targets)
            newest.append(tid)
            sizes.append(size)
            if tid > result.pack_tid:
                roots.append(oid)
            if not done & 0xFF:
                reporter.report(done)
    graph.freeze()
    _rescue_unreadable(graph, unreadable)
    result.objects = len(graph)
    if collect and len(graph) and ROOT_OID not in graph:
        raise PackError(
            f"Packing: there are {len(graph)} objects, but no root object, so that all of them look like garbage. "
            "Nothing was removed. Restore the root object, or pack with pack-gc false."
        )
    reporter.begin("mark", len(graph))
    result.reachable = graph.reach(roots, result.note_dangling, reporter.report)
    if collect:
        for place, oid in graph.unreached():
            result.add_garbage(oid, newest[place], True, sizes[place])
    reporter.report(result.reachable, final=True)
    return result


def _object(
    oid: int,
    revisions: list[Any],
    result: Mark,
    find: Callable[[bytes], list[int]],
    unreadable: list[tuple[int, bytes]],
) -> tuple[list[int], int, int, bool]:
    """Return an object's references, newest tid, size, and whether it lives."""
    if len(revisions) == 1 and revisions[0][2]:
        # Most objects: what they have is kept, whichever side of the pack's tid it is on.
        _, tid, state = revisions[0]
        return _references(oid, tid, state, result, find, unreadable), tid, len(state), True
    pack_tid = result.pack_tid
    targets: list[int] = []
    at_pack: Any = None
    later = []
    size = 0
    for revision in revisions:
        if revision[1] > pack_tid:
            later.append(revision)
        else:
            if at_pack is not None:
                result.add_garbage(oid, at_pack[1], False, len(at_pack[2] or b""))
            at_pack = revision
    if at_pack is not None:
        if at_pack[2]:
            later.append(at_pack)
        elif not later:
            return targets, at_pack[1], 0, False
        else:
            result.add_garbage(oid, at_pack[1], False, 0)
    newest = 0
    for _, tid, state in later:
        newest = max(newest, tid)
        if not state:
            continue
        size += len(state)
        targets += _references(oid, tid, state, result, find, unreadable)
    # Revisions of one object mostly refer to the same.
    return list(set(targets)), newest, size, True


def _references(
    oid: int,
    tid: int,
    state: bytes,
    result: Mark,
    find: Callable[[bytes], list[int]],
    unreadable: list[tuple[int, bytes]],
) -> list[int]:
    try:
        return find(state)
    except UnreadableState:
        result.note_broken(oid, tid, state)
        _require_searchable(oid, state)
        unreadable.append((oid, state))
        return []


def _require_searchable(oid: int, state: bytes) -> None:
    try:
        possible_references(state, lambda candidate: False)
    except UnreadableState as error:
        raise PackError(
            f"Packing: the record of object {oid:#x} can neither be read nor searched for references, so nothing can "
            "be told to be garbage. Nothing was removed. Pack through the storage that transforms the records. "
            f"({error})"
        ) from error


def _rescue_unreadable(graph: Graph, unreadable: list[tuple[int, bytes]]) -> None:
    for oid, state in unreadable:
        graph.add_late(oid, possible_references(state, graph.__contains__))
