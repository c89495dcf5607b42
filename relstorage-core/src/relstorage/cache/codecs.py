"""Compression of the states that the cache keeps (``cache-local-compression``).

A codec is given a state when it is remembered and its own output when it is looked up. The cache keeps the compressed
form only where it is smaller, and knows by the kind of its entry which form it kept.
"""

from __future__ import annotations

import bz2
import zlib
from typing import Protocol


class Codec(Protocol):
    """What the cache asks of a compression; an instance is used by many threads at once."""

    def compress(self, state: bytes) -> bytes:
        """Return a form of ``state``, which may be longer than it."""

    def decompress(self, kept: bytes) -> bytes:
        """Return the state that ``compress`` was given."""


class ZlibCodec:
    """Compress with zlib, at its fastest level: a pickle of a few hundred bytes gains little from a higher one."""

    def compress(self, state: bytes) -> bytes:
        return zlib.compress(state, 1)

    def decompress(self, kept: bytes) -> bytes:
        return zlib.decompress(kept)


class Bz2Codec:
    """Compress with bz2: smaller and several times slower than zlib."""

    def compress(self, state: bytes) -> bytes:
        return bz2.compress(state)

    def decompress(self, kept: bytes) -> bytes:
        return bz2.decompress(kept)


#: The values of the option ``cache-local-compression``.
CODECS: dict[str, Codec | None] = {"none": None, "zlib": ZlibCodec(), "bz2": Bz2Codec()}
