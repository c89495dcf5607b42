"""The other processes of the crash and lock tests: ``python postgresql_writers.py <job> <arguments as JSON>``."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from transaction.interfaces import TransientError
from ZODB.POSException import POSKeyError
from ZODB.utils import p64, u64, z64

import relstorage
from relstorage.errors import CommitOutcomeUnknown, RelStorageError
from relstorage.testing.records import meta, state


def say(*words: Any) -> None:
    """Print a line that the test reads at once."""
    print(*words, flush=True)


def open_patiently(options: dict[str, Any]) -> Any:
    """Open a storage on a server that may just be starting."""
    while True:
        try:
            return relstorage.open("postgresql", **options)
        except TransientError:
            time.sleep(0.05)


def commit_through_crashes(options: dict[str, Any], head: int, shared: int, writer: int, blobs: bool = False) -> None:
    """Commit for ever, and tell how each transaction went: ``yes``, ``no`` or ``unknown``, with its tid and its oids.

    Transaction n makes a new object whose value is (writer, n), writes n and the new oid into an object of the writer,
    and every third one counts in an object that all writers share.
    """
    storage = open_patiently(options)
    chance = random.Random(writer)
    number = 0
    while True:
        number += 1
        described = meta()
        try:
            storage.poll_invalidations()
            base = storage.load(p64(head))[1]
            new = storage.new_oid()
            storage.tpc_begin(described)
            filler = "x" * chance.choice((10, 10, 10, 3000, 40000))
            storage.store(new, z64, state((writer, number, filler)), "", described)
            oids = [u64(new), head]
            storage.store(p64(head), base, state((writer, number, u64(new))), "", described)
            if number % 3 == 0:
                data, tid = storage.load(p64(shared))
                storage.store(p64(shared), tid, state((writer, number)), "", described)
                oids.append(shared)
            if blobs and number % 4 == 0:
                path = os.path.join(options["blob_dir"], f"staged-{writer}-{number}")
                with open(path, "wb") as file:
                    file.write(blob_content(writer, number))
                oid = storage.new_oid()
                storage.storeBlob(oid, z64, state((writer, number, "blob")), path, "", described)
                oids.append(u64(oid))
            storage.tpc_vote(described)
        except (TransientError, POSKeyError) as error:
            storage.tpc_abort(described)
            if "lost" in str(error) or "onnect" in str(error):
                time.sleep(0.02)
            number -= 1
            continue
        try:
            tid = storage.tpc_finish(described)
        except TransientError:
            storage.tpc_abort(described)
            say("no", writer, number, 0, *oids)
            number += 1000000  # never the same value twice
        except CommitOutcomeUnknown:
            storage.tpc_abort(described)
            say("unknown", writer, number, 0, *oids)
        except RelStorageError as error:
            say("error", repr(error))
            raise
        else:
            say("yes", writer, number, u64(tid), *oids)


def blob_content(writer: int, number: int) -> bytes:
    """Return what transaction n writes into its blob."""
    return random.Random(writer * 1_000_003 + number).randbytes(1000) * (number % 7 * 200 + 1)


def vote_and_wait(options: dict[str, Any], oid: int, base: int) -> None:
    """Vote on a change of an object, say so, and finish when told to go on."""
    storage = relstorage.open("postgresql", **options)
    described = meta()
    storage.tpc_begin(described)
    storage.store(p64(oid), p64(base), state("voted"), "", described)
    storage.tpc_vote(described)
    say("voted")
    sys.stdin.readline()
    say(u64(storage.tpc_finish(described)))


def change_at_random(options: dict[str, Any], oids: list[int], seed: int, times: int) -> None:
    """Commit random sets of changes and of objects that must stay as they were read; say how often there was a
    deadlock, and each commit's tid and oids.

    The values are numbers whose sum stays at least 0 in each pair of neighbours: whoever lowers one requires the other
    to stay.
    """
    storage = relstorage.open("postgresql", **options)
    chance = random.Random(seed)
    done = deadlocks = 0
    while done < times:
        described = meta()
        chosen = chance.sample(range(0, len(oids), 2), chance.randint(1, 4))
        storage.poll_invalidations()
        try:
            storage.tpc_begin(described)
            changed = []
            for first in chosen:
                pair = [first, first + 1]
                chance.shuffle(pair)
                (mine, my_tid), (other, other_tid) = (_value(storage, oids[each]) for each in pair)
                if mine + other > 0 and chance.random() < 0.8:
                    new = mine - chance.randint(1, mine + other)
                    storage.checkCurrentSerialInTransaction(p64(oids[pair[1]]), other_tid, described)
                else:
                    new = mine + 5
                storage.store(p64(oids[pair[0]]), my_tid, state(new), "", described)
                changed.append(oids[pair[0]])
            storage.tpc_vote(described)
            tid = storage.tpc_finish(described)
        except TransientError as error:
            deadlocks += "eadlock" in type(error).__name__
            storage.tpc_abort(described)
        else:
            done += 1
            say(u64(tid), *changed)
    say("deadlocks", deadlocks)
    storage.close()


def _value(storage: Any, oid: int) -> tuple[int, bytes]:
    data, tid = storage.load(p64(oid))
    return value_of(data), tid


def value_of(data: bytes) -> Any:
    """Return the value that ``state`` made a record of."""
    from io import BytesIO

    from zodbpickle.pickle import Unpickler

    unpickler = Unpickler(BytesIO(data))
    unpickler.load()
    return unpickler.load()["value"]


JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job for job in (commit_through_crashes, vote_and_wait, change_at_random)
}

if __name__ == "__main__":
    arguments = json.loads(sys.argv[2])
    confirm = arguments.pop("confirm", True)
    if not confirm:
        # To see that the tests would notice.
        from relstorage_postgresql import commits

        commits._CONFIRM = "SELECT tid FROM {schema}rs_commit WHERE session = :session AND serial = :serial"
    JOBS[sys.argv[1]](**arguments)
