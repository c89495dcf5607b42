"""Processes that write, or pack until they are killed, for the tests of packing. Each opens the database for itself."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import transaction
import ZODB
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from transaction.interfaces import TransientError

import relstorage
from relstorage.errors import MarkIncomplete, RemovedReferenceError, UnableToAcquirePackUndoLockError
from relstorage.packing import pack
from relstorage.testing.observed import observe

#: Modules are imported once, and each process begins as a copy of that, without anything opened.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])

CONTAINERS = 4


class Worker:
    """A process, and the answer it gives at its end."""

    def __init__(self, work: Callable[..., Any], *arguments: Any):
        self._answers, answer = _context.Pipe(duplex=False)
        self.process = _context.Process(target=_run, args=(answer, work, arguments), daemon=True)
        self.process.start()
        answer.close()

    def join(self, timeout: float = 120.0) -> int:
        """Wait for the end; return the exit code, negative for a signal."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"a worker did not end within {timeout} seconds")
        return self.process.exitcode

    def result(self) -> Any:
        """Wait for the end and return the answer; fail if the process did."""
        answer = self._answers.recv()
        code = self.join()
        self._answers.close()
        assert code == 0, answer
        return answer

    def close(self) -> None:
        """Kill it if it still runs."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self._answers.close()


def _run(answer: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer.send(work(*arguments))
    except BaseException as error:
        answer.send(f"{type(error).__name__}: {error}")
        raise
    finally:
        answer.close()


@contextmanager
def opened(backend: str, options: dict[str, Any]) -> Any:
    """Open a ZODB for the length of a block."""
    db = ZODB.DB(relstorage.open(backend, **options))
    try:
        yield db
    finally:
        db.close()


def plant(db: ZODB.DB) -> None:
    """Put the containers there that ``write`` works on."""
    with db.transaction() as connection:
        root = connection.root()
        for number in range(CONTAINERS):
            root[f"tree{number}"] = OOBTree()
        root["shelf"] = PersistentMapping()


def write(backend: str, options: dict[str, Any], seed: int, until: float) -> dict[str, Any]:
    """Add, delete, move, unlink and relink subtrees until a moment; return counters and the time each commit took.

    A POSKeyError is not caught: what can be reached must be there.
    """
    chance = random.Random(seed)
    counts = {"commits": 0, "conflicts": 0, "removed": 0}
    seconds = []
    with opened(backend, options) as db:
        manager = transaction.TransactionManager()
        connection = db.open(manager)
        while time.time() < until:
            manager.begin()
            try:
                _change(connection.root(), chance, seed)
                began = time.monotonic()
                manager.commit()
                seconds.append(time.monotonic() - began)
                counts["commits"] += 1
            except RemovedReferenceError:
                manager.abort()
                counts["removed"] += 1
            except TransientError:
                manager.abort()
                counts["conflicts"] += 1
        connection.close()
    return {**counts, "seconds": seconds}


def _change(root: Any, chance: random.Random, seed: int) -> None:
    tree = root[f"tree{chance.randrange(CONTAINERS)}"]
    other = root[f"tree{chance.randrange(CONTAINERS)}"]
    action = chance.random()
    keys = list(tree.keys(min=f"{chance.random():.6f}"))[:20]
    if action < 0.3 or not keys:
        # Enough to split buckets, in a small subtree each.
        for _ in range(chance.randrange(1, 40)):
            item = PersistentMapping(leaf=PersistentMapping(text="x" * 50), by=seed)
            item["self"] = item["leaf"]
            tree[f"{chance.random():.6f}"] = item
    elif action < 0.4:
        for key in keys:
            del tree[key]
    elif action < 0.5:
        for key in keys:
            other[key + "m"] = tree.pop(key)
    elif action < 0.65 and len(root["shelf"]):
        # Links what others take off the shelf and pack meanwhile; the tree does not conflict with that.
        item = chance.choice(list(root["shelf"].values()))
        len(item), len(item.get("leaf") or ())
        time.sleep(chance.random() * 0.5)
        other[f"{chance.random():.6f}r"] = item
    elif action < 0.7:
        key = chance.choice(keys)
        tree[key]["leaf"] = PersistentMapping(text="new")
    elif action < 0.85:
        # What is on the shelf is unlinked by anybody, and put back into a tree by anybody.
        shelf = root["shelf"]
        shelf[chance.randrange(5)] = tree.pop(chance.choice(keys))
    else:
        shelf = root["shelf"]
        number = chance.randrange(5)
        if number in shelf:
            item = shelf.pop(number)
            if chance.random() < 0.5:
                other[f"{chance.random():.6f}s"] = PersistentMapping(item=item, leaf=item.get("leaf"))


def pack_until(backend: str, options: dict[str, Any], until: float, pause: float) -> dict[str, int]:
    """Pack again and again until a moment, every other time in two parts; return how often it did and could not."""
    counts = {"packs": 0, "refused": 0, "rescued": 0, "removed": 0}
    with opened(backend, options) as db:
        database = db.storage.database
        while time.time() < until:
            try:
                if counts["packs"] % 2:
                    pack(database, None, db.references, prepack_only=True)
                    time.sleep(0.3)
                    report = pack(database, None, db.references, skip_prepack=True)
                else:
                    report = pack(database, None, db.references)
                counts["packs"] += 1
                counts["rescued"] += report.rescued_objects
                counts["removed"] += report.removed_objects
            except (UnableToAcquirePackUndoLockError, MarkIncomplete):
                # Another packs now, or has used the mark in the meantime.
                counts["refused"] += 1
            time.sleep(pause)
    return counts


def pack_and_die(backend: str, options: dict[str, Any], calls: int) -> None:
    """Pack, and send SIGKILL to this process before the n-th call of a session, unless there are fewer."""
    left = calls

    def count(role: str, method: str, statement: str, done: bool) -> None:
        nonlocal left
        if not done:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    with opened(backend, options) as db:
        observe(db.storage, count)
        db.pack()


def pack_once(backend: str, options: dict[str, Any]) -> str:
    """Pack; return the name of the error if that is refused."""
    with opened(backend, options) as db:
        try:
            db.storage.pack(None, db.references)
        except UnableToAcquirePackUndoLockError as error:
            return type(error).__name__
    return ""
