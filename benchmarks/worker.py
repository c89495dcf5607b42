"""One contender in a process and an environment of its own. Orders arrive as JSON lines on standard input, one answer
goes back for each. Only the standard library, ZODB and ZConfig are needed here, so any release of any storage can be
measured. With ``--open FILE`` it opens that configuration once, with ``--writer`` it is one of several writers."""

from __future__ import annotations

import contextlib
import cProfile
import importlib.metadata
import io
import json
import platform
import pstats
import sqlite3
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

DISTRIBUTIONS = (
    "ZODB", "ZEO", "RelStorage", "relstorage-core", "relstorage-sqlite", "relstorage-postgresql", "relstorage-mysql",
    "zodb-pgjsonb", "psycopg", "psycopg2", "psycopg2-binary", "mysqlclient", "PyMySQL",
)  # fmt: skip


class Work(Protocol):
    """What runs the rounds of one workload on one database."""

    def prepare(self) -> None: ...

    def run(self, watch: Any) -> None: ...

    def close(self) -> None: ...


def versions() -> dict[str, str]:
    """Return the releases that may explain a figure."""
    found = {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


class StorageWork:
    """A workload on a storage that ZConfig opens."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        import workloads
        import writers
        from subject import make_subject

        self._subject = make_subject(order)
        self._workload = {**workloads.WORKLOADS, **writers.WORKLOADS}[order["workload"]]

    def prepare(self) -> None:
        if self._workload.prepare is None:
            self._subject.database().__enter__().close()
        else:
            self._subject.prepared = self._workload.prepare(self._subject)

    def run(self, watch: Any) -> None:
        self._workload.run(self._subject, watch)

    def close(self) -> None:
        self._subject.close()


def make_work(order: Mapping[str, Any]) -> Work:
    """Return what the order asks for: a storage's workload, or the floor's statements."""
    if order.get("floor"):
        from floor import make_floor

        return make_floor(order)
    return StorageWork(order)


def profile_text(profile: cProfile.Profile) -> str:
    """Return the functions that took longest, by own time and with what they call."""
    text = io.StringIO()
    statistics = pstats.Stats(profile, stream=text)
    statistics.sort_stats("tottime").print_stats(25)
    statistics.sort_stats("cumulative").print_stats(25)
    return text.getvalue()


def run_once(work: Work, profiled: bool) -> dict[str, Any]:
    """Do one round and return its samples, notes and profile."""
    from subject import Stopwatch

    profile = cProfile.Profile() if profiled else None
    watch = Stopwatch(profile)
    work.run(watch)
    answer: dict[str, Any] = {"samples": watch.samples, "notes": watch.notes}
    if profile is not None:
        answer["profile"] = profile_text(profile)
    return answer


def answered(step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what *step* returns, or why it did not: the driver decides what a failure means for the run."""
    from subject import NotAvailable

    try:
        return step()
    except NotAvailable as exc:
        return {"not_available": str(exc)}
    except Exception:
        return {"error": traceback.format_exc()}


def serve() -> None:
    """Answer the driver until it closes standard input."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # a storage that prints must not disturb the conversation

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    work: Work | None = None

    def prepare() -> dict[str, Any]:
        nonlocal work
        work = make_work(order)
        work.prepare()
        return {"versions": versions()}

    def run() -> dict[str, Any]:
        assert work is not None
        return run_once(work, order.get("profile", False))

    for line in sys.stdin:
        order = json.loads(line)
        answer(answered(prepare if order["do"] == "prepare" else run))
    if work is not None:
        work.close()


def open_once(path: str) -> None:
    """Open a configuration, load the root object and say so."""
    import ZODB.config

    db = ZODB.config.databaseFromURL(path)
    connection = db.open()
    connection.root()["objects"]
    print("opened", flush=True)
    connection.close()
    db.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--open"]:
        open_once(sys.argv[2])
    elif sys.argv[1:] == ["--writer"]:
        from writers import serve_writer

        serve_writer()
    else:
        serve()
