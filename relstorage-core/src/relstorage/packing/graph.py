"""The graph of all objects in memory: a few arrays of integers, about 50 bytes an object with three references.

Objects are added in oid order, each with its references; then ``reach`` marks what can be reached. Where oids are
dense, the place of an object is found by a table, else by bisection.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

from relstorage.ids import MAX_OID


class Graph:
    """References between objects, and which of them are reachable."""

    def __init__(self) -> None:
        self._oids = array("q")
        self._starts = array("q", [0])
        self._targets = array("q")
        self._reached = bytearray()
        self._places: array[int] | None = None
        #: References found after their object was added.
        self._late: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._oids)

    def add(self, oid: int, targets: list[int]) -> None:
        """Add an object whose oid is larger than all before."""
        self._oids.append(oid)
        try:
            self._targets.extend(array("q", targets))
        except OverflowError:
            # No database has such an object; it is found missing like any other.
            self._targets.extend(target if target <= MAX_OID else -1 for target in targets)
        self._starts.append(len(self._targets))

    def add_late(self, oid: int, targets: list[int]) -> None:
        """Add references to an object that is there already."""
        self._late.setdefault(oid, []).extend(targets)

    def freeze(self) -> None:
        """End adding; the graph can be asked from now on."""
        self._reached = bytearray(len(self._oids))
        highest = self._oids[-1] if self._oids else -1
        # A table of 4 bytes for each possible oid costs less than bisection where at least one in eight is used.
        if highest < 8 * len(self._oids) + 1024 and len(self._oids) < 2**31:
            places = array("i", [-1]) * (highest + 1)
            for place, oid in enumerate(self._oids):
                places[oid] = place
            self._places = places

    def place(self, oid: int) -> int:
        """Return the index of an object, -1 if it does not exist."""
        if self._places is not None:
            return self._places[oid] if 0 <= oid < len(self._places) else -1
        place = bisect_left(self._oids, oid)
        return place if place < len(self._oids) and self._oids[place] == oid else -1

    def __contains__(self, oid: int) -> bool:
        return self.place(oid) >= 0

    def targets(self, place: int) -> Iterable[int]:
        """Return the references of an object, given its index."""
        found = self._targets[self._starts[place] : self._starts[place + 1]]
        late = self._late.get(self._oids[place])
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
        marked = 0
        pending = []
        for oid in roots:
            place = place_of(oid)
            if place >= 0 and not reached[place]:
                reached[place] = 1
                pending.append(place)
        while pending:
            place = pending.pop()
            marked += 1
            if report is not None and not marked & 0xFFF:
                report(marked)
            for target in targets_of(place):
                found = place_of(target)
                if found < 0:
                    if dangling is not None:
                        dangling(oids[place], target)
                elif not reached[found]:
                    reached[found] = 1
                    pending.append(found)
        return marked

    def unreached(self) -> Iterator[tuple[int, int]]:
        """Iterate over (index, oid) of what was not reached, in oid order."""
        reached = self._reached
        place = reached.find(0)
        while place >= 0:
            yield place, self._oids[place]
            place = reached.find(0, place + 1)
