"""Object ids and transaction ids: integers inside, 8 big-endian bytes where ZODB calls us.

A tid is a ``persistent.timestamp.TimeStamp``: minutes since 1900 in a calendar of 31-day months in the upper 32 bits,
the fraction of the minute in the lower 32.
"""

from __future__ import annotations

import time
from struct import Struct

from persistent.timestamp import TimeStamp

_QUAD = Struct(">Q")
#: ``to_int`` without the call of a Python function, for the hottest path; it returns a tuple of one.
unpack = _QUAD.unpack
to_bytes = _QUAD.pack

MAX_OID = 2**63 - 1
MAX_TID = 2**63 - 1
ROOT_OID = 0
#: What stands in a list of changes or removals for every object.
EVERYTHING = -1


def to_int(value: bytes) -> int:
    """Return the integer that 8 big-endian bytes stand for."""
    return unpack(value)[0]


def tid_at(seconds: float) -> int:
    """Return the tid of a moment, given in seconds since the Unix epoch, UTC."""
    moment = time.gmtime(seconds)
    stamp = TimeStamp(*moment[:5], moment[5] + seconds % 1)
    return to_int(stamp.raw())


def next_tid(last: int) -> int:
    """Return the tid of now, or the one after ``last`` where the clock has not passed it."""
    return max(last + 1, tid_at(time.time()))


def seconds_at(tid: int) -> float:
    """Return the moment of a tid in seconds since the Unix epoch."""
    return TimeStamp(to_bytes(tid)).timeTime()
