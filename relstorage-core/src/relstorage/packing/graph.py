"""The graph of all objects in memory: a few arrays of integers, about 50 bytes an object with three references.

Objects are added in oid order, each with its references or all at once before these; then ``reach`` marks what can be
reached. The *place* of an object is its index in this order. Where oids are dense, it is found by a table, else by
bisection.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import compress

from relstorage.ids import MAX_OID

#: What ``_reached`` says of an object.
_UNREACHED, _REACHED, _GONE = 0, 1, 2


class Graph:
    """References between objects, and which of them are reachable."""

    def __init__(self) -> None:
        self._oids = array("q")
        # Where the references of each object begin; up to the last that has any.
        self._starts = array("q")
        self._targets = array("q")
        self._reached = bytearray()
        self._places: array[int] | None = None
        #: References found after their object was added.
        self._late: dict[int, list[int]] = {}
        #: The places of objects that are there only to be removed.
        self._gone: set[int] = set()

    def __len__(self) -> int:
        return len(self._oids) - len(self._gone)

    def add(self, oid: int, targets: list[int]) -> int:
        """Add an object whose oid is larger than all before; return its place."""
        place = len(self._oids)
        self._oids.append(oid)
        if targets:
            self.refer(place, targets)
        return place

    def extend(self, oids: array[int]) -> None:
        """Add objects whose oids are larger than all before."""
        self._oids.extend(oids)

    def refer(self, place: int, targets: list[int]) -> None:
        """Add the references of the object at a place that is larger than all before."""
        self._fill(place + 1)
        try:
            self._targets.extend(array("q", targets))
        except OverflowError:
            # No database has such an object; it is found missing like any other.
            self._targets.extend(target if target <= MAX_OID else -1 for target in targets)

    def _fill(self, count: int) -> None:
        self._starts.extend(array("q", [len(self._targets)]) * (count - len(self._starts)))

    def add_late(self, oid: int, targets: list[int]) -> None:
        """Add references to an object that is there already."""
        self._late.setdefault(oid, []).extend(targets)

    def discard(self, place: int) -> None:
        """Take an object for one that does not exist and is only to be removed."""
        self._gone.add(place)

    def freeze(self) -> None:
        """End adding; the graph can be asked from now on."""
        self._fill(len(self._oids) + 1)
        self._reached = bytearray(len(self._oids))
        for place in self._gone:
            self._reached[place] = _GONE
        highest = self._oids[-1] if self._oids else -1
        # A table of 4 bytes for each possible oid costs less than bisection where at least one in eight is used.
        if highest < 8 * len(self._oids) + 1024 and len(self._oids) < 2**31:
            places = array("i", [-1]) * (highest + 1)
            for place, oid in enumerate(self._oids):
                places[oid] = place
            for place in self._gone:
                places[self._oids[place]] = -1
            self._places = places

    def place(self, oid: int) -> int:
        """Return the place of an object, -1 if it does not exist."""
        if self._places is not None:
            return self._places[oid] if 0 <= oid < len(self._places) else -1
        place = bisect_left(self._oids, oid)
        there = place < len(self._oids) and self._oids[place] == oid and place not in self._gone
        return place if there else -1

    def __contains__(self, oid: int) -> bool:
        return self.place(oid) >= 0

    def targets(self, place: int) -> Iterable[int]:
        """Return the references of an object, given its place."""
        found = self._targets[self._starts[place] : self._starts[place + 1]]
        late = self._late.get(self._oids[place]) if self._late else None
        return [*found, *late] if late else found

    def reach(
        self,
        roots: Iterable[int],
        dangling: Callable[[int, int], None] | None = None,
        report: Callable[[int], None] | None = None,
    ) -> int:
        """Mark everything that can be reached from the roots; return how many objects were marked now.

        ``dangling(oid, target)`` is told of each reference to an object that does not exist, ``report(count)`` how far
        it is.
        """
        reached, oids, place_of, targets_of = self._reached, self._oids, self.place, self.targets
        starts, late = self._starts, self._late
        marked = visited = 0
        pending = []
        for oid in roots:
            place = place_of(oid)
            if place >= 0 and not reached[place]:
                reached[place] = _REACHED
                marked += 1
                pending.append(place)
        while pending:
            place = pending.pop()
            visited += 1
            if report is not None and not visited & 0xFFF:
                report(marked)
            for target in targets_of(place):
                found = place_of(target)
                if found < 0:
                    if dangling is not None:
                        dangling(oids[place], target)
                elif not reached[found]:
                    reached[found] = _REACHED
                    marked += 1
                    # Most objects refer to nothing, and need no visit.
                    if starts[found] < starts[found + 1] or late:
                        pending.append(found)
        return marked

    def unreached(self, collect: bool = True) -> bytearray:
        """Return a byte for each place, 1 if that object is to be removed: without ``collect``, only what is gone."""
        return self._reached.translate(bytes((collect, False, True)).ljust(256, b"\0"))

    def chosen(self, places: bytearray) -> array[int]:
        """Return the oids of the objects at whose places there is a 1."""
        return array("q", compress(self._oids, places))
