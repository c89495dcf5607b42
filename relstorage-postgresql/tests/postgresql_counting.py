"""A process that counts through a failover: ``python postgresql_counting.py <options as JSON>``.

It increments the counter until it reads a line, and says ``yes tid value`` for each increment that was acknowledged,
``unknown`` for one that nobody can tell about, and ``error`` with the first error that no new attempt may cure.
"""

from __future__ import annotations

import json
import sys
import threading
import time

from transaction.interfaces import TransientError
from ZODB.utils import p64, u64

import relstorage
from relstorage.errors import CommitOutcomeUnknown
from relstorage.testing.records import meta

COUNTER = 1


def say(*words: object) -> None:
    print(*words, flush=True)


def increment(storage) -> None:
    """Run one transaction."""
    described = meta()
    try:
        storage.poll_invalidations()
        data, base = storage.load(p64(COUNTER))
        storage.tpc_begin(described)
        value = int(data) + 1
        storage.store(p64(COUNTER), base, b"%d" % value, "", described)
        storage.tpc_vote(described)
        tid = storage.tpc_finish(described)
    except CommitOutcomeUnknown:
        say("unknown")
    except TransientError as error:
        storage.tpc_abort(described)
        say("again", type(error).__name__)
        time.sleep(0.02)
    else:
        say("yes", u64(tid), value)
    finally:
        storage.afterCompletion()


def main() -> None:
    storage = relstorage.open("postgresql", **json.loads(sys.argv[1]))
    ended = threading.Event()

    def wait_for_a_line() -> None:
        sys.stdin.readline()
        ended.set()

    threading.Thread(target=wait_for_a_line, daemon=True).start()
    say("ready")
    try:
        while not ended.is_set():
            increment(storage)
    except Exception as error:
        say("error", repr(error))
        raise
    storage.close()


if __name__ == "__main__":
    main()
