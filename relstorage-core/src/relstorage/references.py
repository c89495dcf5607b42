"""What an object refers to, read from its data record without importing its classes.

A record holds two pickles: the class and the state. zodbpickle reads both in C without building objects (``noload``)
and hands over each persistent reference, in the forms that ZODB.serialize documents. Strong references within the
database come out as integers; weak ones and those of other databases are left out, as in ZODB.serialize.referencesf.
A record that cannot be read raises ``UnreadableState``, and ``possible_references`` then tells what it may have
referred to.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from struct import Struct, unpack_from
from typing import Any

from ZODB.serialize import referencesf as zodb_referencesf
from zodbpickle.pickle import Unpickler

from relstorage.errors import UnreadableState
from relstorage.ids import MAX_OID

# zc.zlibstorage marks what it compressed with this.
_COMPRESSED = b".z"

# A pickle that begins with its own end is none. Storage wrappers that transform records mark them in this way.
_TRANSFORMED = b"."

# The other opcode of a persistent reference, PERSID, is followed by the reference as a line of text.
_REFERENCE_LINE = re.compile(rb"P[^\n]{8}\n")

_unpack = Struct(">Q").unpack

_GLOBAL_CLASS = re.compile(rb"(?:\x80.)?\(?c([\w.\x80-\xff]{1,200})\n([\w.\x80-\xff]{1,200})\n", re.DOTALL)


class _Pickles(BytesIO):
    """The pickles of a record, with all the bytes in reach of the unpickler, which else asks for each opcode."""

    def peek(self, size: int) -> bytes:
        return self.getvalue()[self.tell() :]


def references(state: bytes) -> list[int]:
    """Return the oids that a record refers to, in the order of the record, repeated where it repeats them.

    A record in which no byte is the opcode of a reference is not parsed.
    Raise UnreadableState if the record cannot be read.
    """
    # What looks like an oid must be parsed although nothing makes it a reference: one damaged byte may be the reason.
    if (
        b"Q" in state
        or b"C\x08" in state
        or b"U\x08" in state
        or (b"P" in state and _REFERENCE_LINE.search(state))
        or state[:1] == _TRANSFORMED
        or state[-1:] != b"."
    ):
        return checked_references(state)
    return []


def checked_references(state: bytes) -> list[int]:
    """Return the same as ``references``, but parse every record, so that no damage that shows is passed over."""
    if state[:1] == _TRANSFORMED:
        state = untransformed(state)
    found: list[Any] = []
    try:
        # Python 2 wrote an oid as a native string, which must stay bytes.
        unpickler = Unpickler(_Pickles(state), encoding="bytes")
        unpickler.persistent_load = found.append
        unpickler.noload()
        unpickler.noload()
        oids = []
        for reference in found:
            # A list is a weak reference or one to another database, a tuple one that names the class too.
            if type(reference) is not list:
                oid = reference[0] if type(reference) is tuple else reference
                oids.append(_unpack(oid if type(oid) is bytes else _as_bytes(oid))[0])
        return oids
    except Exception as error:  # a damaged pickle can raise whatever its opcodes can
        raise UnreadableState(_complaint(state, error)) from error


def _as_bytes(oid: Any) -> Any:
    """Return the bytes of an oid that was pickled as text; leave what is neither to be refused."""
    return oid.encode("latin-1") if isinstance(oid, str) else oid


def _complaint(state: bytes, error: Exception) -> str:
    if state.startswith(_TRANSFORMED):
        reason = "a storage wrapper transformed it; go through the wrapper"
    else:
        reason = f"{type(error).__name__}: {error}"
    return f"Cannot read the references of a record of {len(state)} bytes of class {class_name(state)}: {reason}"


def choose(referencesf: Callable[..., Any]) -> Callable[[bytes], list[int]]:
    """Return what finds references in the place of the function that ZODB passes to ``pack``.

    A storage wrapper that transforms records passes a function of its own; that one is called, and any error in it
    becomes UnreadableState.
    """
    if referencesf is zodb_referencesf:
        return references

    def wrapped(state: bytes) -> list[int]:
        try:
            return [_unpack(_as_bytes(oid))[0] for oid in referencesf(state)]
        except Exception as error:  # the function is foreign, and what it reads may be damaged
            raise UnreadableState(_complaint(state, error)) from error

    return wrapped


def untransformed(state: bytes) -> bytes:
    """Return the record as ZODB wrote it, where zc.zlibstorage compressed it; others as they are."""
    if not state.startswith(_COMPRESSED):
        return state
    try:
        return zlib.decompress(state[2:])
    except zlib.error as error:
        raise UnreadableState(f"Cannot decompress a record of {len(state)} bytes: {error}") from error


def class_name(state: bytes) -> str:
    """Return ``module.Class`` of a record for a report, or a remark in brackets where it cannot be told."""
    try:
        state = untransformed(state)
        if match := _GLOBAL_CLASS.match(state):
            return b".".join(match.groups()).decode("utf-8", "replace")
        unpickler = Unpickler(_Pickles(state), encoding="latin-1")
        unpickler.persistent_load = lambda reference: None
        described = unpickler.noload()
        module, name = described[0]
        return f"{module}.{name}"
    except Exception:  # a report about a damaged record must not fail for the same damage
        return "(unknown)"


def possible_references(state: bytes, exists: Callable[[int], bool]) -> list[int]:
    """Return, in ascending order, every oid that a record which cannot be read may refer to.

    That is each run of 8 bytes, at any place and in any way that a pickle spells bytes, for which ``exists`` is true.
    ``exists`` is asked once for each of about as many numbers as the record has bytes.
    Raise UnreadableState if the record was transformed in a way that hides the oids: what it refers to is then
    unknown, and nothing of the database may be removed as garbage.
    """
    if state.startswith(_COMPRESSED):
        state = _rescued(state)
    elif state.startswith(_TRANSFORMED):
        raise UnreadableState(_complaint(state, ValueError("transformed")))
    candidates: set[int] = set()
    for spelling in _spellings(state):
        for shift in range(min(8, len(spelling) - 7)):
            candidates.update(unpack_from(f">{(len(spelling) - shift) // 8}Q", spelling, shift))
    return sorted(oid for oid in candidates if oid <= MAX_OID and exists(oid))


def _rescued(state: bytes) -> bytes:
    """Return what can be decompressed in front of the damage."""
    stream = zlib.decompressobj()
    rescued = bytearray()
    try:
        for at in range(len(_COMPRESSED), len(state)):
            rescued += stream.decompress(state[at : at + 1])
    except zlib.error:
        pass
    return bytes(rescued)


_UTF8_OF_LATIN1 = re.compile(rb"([\xc2\xc3])([\x80-\xbf])")
_ESCAPE = re.compile(rb"\\(?:(?:x|u00)([0-9a-fA-F]{2})|(.))", re.DOTALL)
_NAMED_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def _spellings(state: bytes) -> Iterator[bytes]:
    """Yield the record with its bytes as they are, then with text decoded in each way in which it stands for bytes."""
    yield state
    if _UTF8_OF_LATIN1.search(state):
        yield _UTF8_OF_LATIN1.sub(lambda pair: bytes([(pair[1][0] & 3) << 6 | pair[2][0] & 0x3F]), state)
    if b"\\" in state:
        yield _ESCAPE.sub(_unescaped, state)


def _unescaped(escape: re.Match[bytes]) -> bytes:
    if escape[1]:
        return bytes.fromhex(escape[1].decode())
    return _NAMED_ESCAPES.get(escape[2], escape[2])
