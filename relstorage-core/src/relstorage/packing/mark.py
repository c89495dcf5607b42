"""Mark: find out, in one snapshot, what a pack may remove.

Kept are, with history, the newest revision of each object at the pack's tid and all later ones; without, the current
ones. An object stays if it was written after the pack's tid, or can be reached from the root or from such an object
through kept revisions. What an unreadable record may refer to stays as well.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import compress, groupby
from operator import itemgetter
from typing import Any, NamedTuple

from relstorage.errors import PackError, UnreadableState
from relstorage.ids import ROOT_OID
from relstorage.packing.graph import Graph
from relstorage.packing.progress import Reporter
from relstorage.references import class_name, possible_references, references

#: How many broken records and dangling references a report names; all are counted.
NAMED = 1000
#: How many objects the database is asked for at once where their states are not wanted.
OBJECTS = 50_000


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
        #: Objects to remove with all their revisions, and revisions to remove: oids and tids, in this order.
        self.objects_to_remove = array("q"), array("q")
        self.revisions_to_remove = array("q"), array("q")
        self.removable_bytes = 0

    @property
    def removable_objects(self) -> int:
        """How many objects go."""
        return len(self.objects_to_remove[0])

    @property
    def removable_revisions(self) -> int:
        """How many entries the list of garbage has."""
        return self.removable_objects + len(self.revisions_to_remove[0])

    def remove_revision(self, oid: int, tid: int, size: int) -> None:
        """Put a revision on the list."""
        self.revisions_to_remove[0].append(oid)
        self.revisions_to_remove[1].append(tid)
        self.removable_bytes += size

    def garbage(self, count: int) -> Iterator[tuple[bool, array[int], array[int]]]:
        """Iterate over the list, so many entries at once: whether they are whole objects, their oids and tids."""
        for whole, (oids, tids) in ((True, self.objects_to_remove), (False, self.revisions_to_remove)):
            for start in range(0, len(oids), count):
                yield whole, oids[start : start + count], tids[start : start + count]

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
    reading = _Reading(result, find)
    # A wrapper's function may find references where nobody else would look for them.
    if sql.pack_objects and find is references:
        reading.read_apart(session, sql, reporter)
    else:
        reading.read_all(session, sql, reporter)
    graph = reading.graph
    graph.freeze()
    for oid, state in reading.unreadable:
        graph.add_late(oid, possible_references(state, graph.__contains__))
    result.objects = len(graph)
    if collect and len(graph) and ROOT_OID not in graph:
        raise PackError(
            f"Packing: there are {len(graph)} objects, but no root object, so that all of them look like garbage. "
            "Nothing was removed. Restore the root object, or pack with pack-gc false."
        )
    reporter.begin("mark", len(graph))
    result.reachable = graph.reach(reading.roots(), result.note_dangling, reporter.report)
    places = graph.unreached(collect)
    result.objects_to_remove = graph.chosen(places), array("q", compress(reading.newest, places))
    result.removable_bytes += sum(compress(reading.sizes, places))
    reporter.report(result.reachable, final=True)
    return result


class _Reading:
    """The graph as it is read, and the newest tid and the size of each of its objects, by place."""

    def __init__(self, result: Mark, find: Callable[[bytes], list[int]]):
        self._result = result
        self._find = find
        self.graph = Graph()
        self.newest = array("q")
        self.sizes = array("q")
        self.unreadable: list[tuple[int, bytes]] = []

    def read_all(self, session: Any, sql: Any, reporter: Reporter) -> None:
        """Read every revision with its state."""
        with closing(session.stream(sql.all_revisions)) as rows:
            for done, (oid, group) in enumerate(groupby(rows, itemgetter(0)), 1):
                targets, tid, size, lives = self._object(oid, list(group))
                place = self.graph.add(oid, targets)
                self.newest.append(tid)
                self.sizes.append(size)
                if not lives:
                    self.graph.discard(place)
                if not done & 0xFF:
                    reporter.report(done)

    def read_apart(self, session: Any, sql: Any, reporter: Reporter) -> None:
        """Read what objects there are, then the states of those that may refer to something."""
        graph = self.graph
        highest, numbers = -1, self._numbers(session, sql, -1)
        while numbers:
            graph.extend(numbers[::3])
            self.newest.extend(numbers[1::3])
            self.sizes.extend(numbers[2::3])
            reporter.report(len(self.newest))
            highest = numbers[-3]
            numbers = self._numbers(session, sql, highest)
        zeros = bytes(8 - (max(highest, 0).bit_length() + 7) // 8)
        with closing(session.stream(sql.pack_states[0], (zeros,))) as rows:
            for oid, group in groupby(rows, itemgetter(0)):
                place = graph.place(oid)
                targets, self.newest[place], self.sizes[place], lives = self._object(oid, list(group))
                if targets:
                    graph.refer(place, targets)
                if not lives:
                    graph.discard(place)

    def _numbers(self, session: Any, sql: Any, after: int) -> array[int]:
        numbers = array("q", session.row(sql.pack_objects[0], (after, OBJECTS))[0] or b"")
        if sys.byteorder == "little":
            numbers.byteswap()
        return numbers

    def roots(self) -> Iterator[int]:
        """Iterate over the objects that stay whatever refers to them."""
        yield ROOT_OID
        pack_tid = self._result.pack_tid
        if pack_tid < self._result.view:
            yield from self.graph.chosen(bytearray(tid > pack_tid for tid in self.newest))

    def _object(self, oid: int, revisions: list[Any]) -> tuple[list[int], int, int, bool]:
        """Return an object's references, newest tid, size, and whether it lives."""
        if len(revisions) == 1 and revisions[0][2]:
            # Most objects: what they have is kept, whichever side of the pack's tid it is on.
            _, tid, state = revisions[0]
            return self._references(oid, tid, state), tid, len(state), True
        result = self._result
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
                    result.remove_revision(oid, at_pack[1], len(at_pack[2] or b""))
                at_pack = revision
        if at_pack is not None:
            if at_pack[2]:
                later.append(at_pack)
            elif not later:
                # Deleted before the pack's tid, and not made again.
                return targets, at_pack[1], 0, False
            else:
                result.remove_revision(oid, at_pack[1], 0)
        newest = 0
        for _, tid, state in later:
            newest = max(newest, tid)
            if not state:
                continue
            size += len(state)
            targets += self._references(oid, tid, state)
        # Revisions of one object mostly refer to the same.
        return list(set(targets)), newest, size, True

    def _references(self, oid: int, tid: int, state: bytes) -> list[int]:
        try:
            return self._find(state)
        except UnreadableState:
            self._result.note_broken(oid, tid, state)
            _require_searchable(oid, state)
            self.unreadable.append((oid, state))
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
