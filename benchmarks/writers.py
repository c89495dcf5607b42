"""Several processes that write to one database. The parent (a worker) starts them, waits until each has opened the
database, and starts every round with one line; each child answers with the time it finished and what it measured."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_objects import Container, Counter, Payload
from subject import NotAvailable, Sizes, Stopwatch, Subject, WrongResult, make_subject
from transaction.interfaces import TransientError
from workloads import Workload
from zc.lockfile import LockError

Step = Callable[[], None]


class Writers:
    """A group of writing processes, idle between rounds."""

    def __init__(self, order: Mapping[str, Any], cleanup: contextlib.ExitStack, task: str, count: int) -> None:
        worker = str(Path(__file__).with_name("worker.py"))
        self.rounds = 0
        self.count = count
        self._processes = []
        for number in range(count):
            process = subprocess.Popen(
                [sys.executable, worker, "--writer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            cleanup.callback(_stop, process)
            self._processes.append(process)
            _send(process, {**order, "task": task, "number": number})
        for process in self._processes:
            _receive(process)

    def run(self, watch: Stopwatch) -> None:
        """Let every process do its commits; the sample is the wall time per commit of the whole group."""
        start = time.perf_counter()
        for process in self._processes:
            _send(process, {})
        answers = [_receive(process) for process in self._processes]
        # perf_counter is one monotonic clock for all processes of a machine on the platforms we measure on.
        elapsed = max(answer["finished"] for answer in answers) - start
        commits = sum(len(answer["latencies"]) for answer in answers)
        watch.samples.append(elapsed / commits)
        watch.notes["retries"] = sum(answer["retries"] for answer in answers)
        watch.notes["latencies"] = [latency for answer in answers for latency in answer["latencies"]]
        self.rounds += 1


def _send(process: subprocess.Popen[str], message: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def _receive(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a writing process ended with status {process.wait()}; its errors are in the worker's log")
    answer = json.loads(line)
    if "not_available" in answer:
        raise NotAvailable(answer["not_available"])
    return answer


def _stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def serve_writer() -> None:
    """Be one writing process: open, then do one round of commits for every line on standard input."""
    answers = sys.stdout
    sys.stdout = sys.stderr

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    order = json.loads(sys.stdin.readline())
    sizes = Sizes(**order["sizes"])
    with contextlib.ExitStack() as cleanup:
        try:
            step = cleanup.enter_context(_writer(order, sizes))
        except LockError:
            answer(not_available="only one process can open the database")
            return
        answer(ready=True)
        for _ in sys.stdin:
            latencies = []
            retries = 0
            while len(latencies) < sizes.writer_commits:
                start = time.perf_counter()
                while True:
                    try:
                        step()
                        break
                    except TransientError:
                        retries += 1
                latencies.append(time.perf_counter() - start)
            answer(finished=time.perf_counter(), latencies=latencies, retries=retries)


def _writer(order: Mapping[str, Any], sizes: Sizes) -> contextlib.AbstractContextManager[Step]:
    if order.get("floor"):
        from floor import writer

        return writer(order, sizes)
    return _storage_writer(order)


@contextlib.contextmanager
def _storage_writer(order: Mapping[str, Any]) -> Iterator[Step]:
    """Offer one transaction, tried once, on a storage that ZConfig opens."""
    subject = make_subject(order)
    with subject.database() as db, subject.connection(db) as connection:
        task = TASKS[order["task"]](subject, connection, order["number"])
        manager = connection.transaction_manager
        manager.abort()

        def step() -> None:
            manager.begin()
            try:
                task()
                manager.commit()
            except TransientError:
                manager.abort()
                raise

        yield step


def _disjoint_task(subject: Subject, connection: Any, number: int) -> Any:
    own = connection.root()["writers"].items[number]

    def task() -> None:
        own.data = subject.data()

    return task


def _counter_task(subject: Subject, connection: Any, number: int) -> Any:
    counter = connection.root()["counter"]

    def task() -> None:
        counter.value += 1

    return task


TASKS = {"disjoint": _disjoint_task, "counter": _counter_task}


def _prepare_disjoint(count: int) -> Any:
    def prepare(subject: Subject) -> Writers:
        with subject.database() as db, subject.connection(db) as connection:
            connection.root()["writers"] = Container([Payload(subject.data()) for _ in range(count)])
            connection.transaction_manager.commit()
        return _start(subject, "disjoint", count)

    return prepare


def _prepare_counter(subject: Subject) -> Writers:
    with subject.database() as db, subject.connection(db) as connection:
        connection.root()["counter"] = Counter()
        connection.transaction_manager.commit()
    return _start(subject, "counter", 4)


def _start(subject: Subject, task: str, count: int) -> Writers:
    order = {
        "config": subject.config,
        "directory": subject.directory,
        "cache": subject.cache,
        "sizes": asdict(subject.sizes),
    }
    return Writers(order, subject.cleanup, task, count)


def writers_disjoint(subject: Subject, watch: Stopwatch) -> None:
    """One-object updates, every process on its own object."""
    subject.prepared.run(watch)


def counter(subject: Subject, watch: Stopwatch) -> None:
    """Increments of one counter, repeated after each conflict; no successful one may be lost."""
    writers = subject.prepared
    writers.run(watch)
    with subject.database() as db, subject.connection(db) as connection:
        found = connection.root()["counter"].value
    expected = writers.rounds * writers.count * subject.sizes.writer_commits
    if found != expected:
        raise WrongResult(f"updates were lost: {expected} increments were acknowledged, the counter is {found}")


WORKLOADS = {
    "writers_disjoint_4": Workload(writers_disjoint, "commit", _prepare_disjoint(4)),
    "writers_disjoint_16": Workload(writers_disjoint, "commit", _prepare_disjoint(16)),
    "counter_4": Workload(counter, "increment", _prepare_counter),
}
