"""The persistent classes every contender stores. They live in a module of their own so that a pickle made in one
environment can be read in every other."""

from __future__ import annotations

from persistent import Persistent


class Payload(Persistent):
    """Hold some bytes that do not compress."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class Container(Persistent):
    """Refer to other persistent objects, in order."""

    def __init__(self, items: list[Persistent]) -> None:
        self.items = items


class Counter(Persistent):
    """Count, without conflict resolution: two concurrent increments must conflict."""

    value = 0
