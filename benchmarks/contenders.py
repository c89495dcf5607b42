"""Who takes part: a name, a ZConfig file with placeholders, a Python, and perhaps a server of its own. For every
database a private directory and a free port are put into the placeholders, and a worker is started on them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from environments import interpreter

WORKER = Path(__file__).resolve().with_name("worker.py")


class ContenderFailed(Exception):
    """A worker or a server did not do what was asked; the text has its output."""


@dataclass(frozen=True)
class Contender:
    """One column of the table."""

    name: str
    config: str
    python: str
    floor: str | None = None
    server: str | None = None
    before: str | None = None
    after: str | None = None


def parse_contender(text: str) -> Contender:
    """Read ``NAME=CONFIG[@PYTHON]``.

    PYTHON is a path, or the name of an environment made with ``--make-environment``.
    """
    name, separator, rest = text.partition("=")
    if not separator or not name:
        raise ValueError(f"a contender is NAME=CONFIG[@PYTHON], not {text!r}")
    path, separator, python = rest.rpartition("@")
    if not separator:
        path, python = rest, sys.executable
    executable = interpreter(python)
    if not executable.exists():
        raise ValueError(f"contender {name}: there is no {executable}; try --make-environment {python} REQUIREMENTS")
    return Contender(name, Path(path).read_text(), str(executable))


def parse_floor(text: str) -> Contender:
    """Read the floor ``sqlite3:SYNCHRONOUS``, ``libpq:CONNINFO`` (bare statements) or ``zodb:SYNCHRONOUS`` (the
    thinnest storage)."""
    kind, _, argument = text.partition(":")
    if kind == "libpq" and argument:
        return Contender("floor libpq", "", sys.executable, floor=text)  # a name tells no password
    if kind not in ("sqlite3", "zodb") or argument not in ("OFF", "NORMAL", "FULL", "EXTRA"):
        raise ValueError(
            f"a floor is sqlite3:NORMAL, sqlite3:FULL, zodb:NORMAL, zodb:FULL or libpq:CONNINFO, not {kind}:..."
        )
    return Contender(f"floor {text}", "", sys.executable, floor=text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Place:
    """One database of one contender: its directory, its server, and the worker that uses it."""

    def __init__(
        self, contender: Contender, workload: str, directory: Path, sizes: Mapping[str, int], limit: float
    ) -> None:
        self._contender = contender
        self._limit = limit
        self._directory = directory
        self._cleanup = contextlib.ExitStack()
        shutil.rmtree(directory, ignore_errors=True)
        for each in ("data", "cache"):
            (directory / each).mkdir(parents=True)
        self._values = {
            "DIR": str(directory),
            "CACHE": str(directory / "cache"),
            "PORT": str(free_port()),
            "BIN": str(Path(contender.python).parent),
            "WORKLOAD": workload,
            "NAME": re.sub(r"\W+", "_", f"bench_{os.getpid()}_{directory.parent.name}_{directory.name}").lower(),
        }
        self._sizes = dict(sizes)
        self._workload = workload

    def start(self) -> dict[str, Any]:
        """Start server and worker, let the worker do the set-up, and return its answer."""
        if self._contender.before:
            subprocess.run(self._command(self._contender.before), check=True)
        if self._contender.after:
            self._cleanup.callback(subprocess.run, self._command(self._contender.after), check=False)
        if self._contender.server:
            self._start_server(self._contender.server)
        # pip compiles what it installs, but not what is installed in place: the first process that imports that may.
        unwanted = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
        environment = {key: value for key, value in os.environ.items() if key not in unwanted}
        log = self._cleanup.enter_context(self._log.open("wb"))
        self._process = subprocess.Popen(
            [self._contender.python, str(WORKER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
        )  # fmt: skip
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        self._cleanup.callback(self._stop_worker)
        return self._ask(
            do="prepare",
            config=self._render(self._contender.config),
            directory=self._values["DIR"],
            cache=self._values["CACHE"],
            sizes=self._sizes,
            workload=self._workload,
            name=self._values["NAME"],
            floor=self._contender.floor,
        )

    def run(self, *, profile: bool = False) -> dict[str, Any]:
        """Do one round and return the worker's answer."""
        return self._ask(do="run", profile=profile)

    def close(self) -> None:
        """Stop what was started and remove the directory."""
        self._cleanup.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._directory / "worker.log"

    def _render(self, text: str) -> str:
        return Template(text).safe_substitute(self._values)

    def _command(self, text: str) -> list[str]:
        """Split a command and fill in its placeholders; an argument that is a ``.conf`` file is filled in too."""
        words = [self._render(word) for word in shlex.split(text)]
        for number, word in enumerate(words):
            if word.endswith(".conf") and Path(word).is_file():
                rendered = self._directory / Path(word).name
                rendered.write_text(self._render(Path(word).read_text()))
                words[number] = str(rendered)
        return words

    def _start_server(self, command: str) -> None:
        path = self._directory / "server.log"
        log = self._cleanup.enter_context(path.open("wb"))
        server = subprocess.Popen(self._command(command), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._cleanup.callback(_stop_process, server)
        deadline = time.monotonic() + 30
        while "$PORT" in command or "$PORT" in self._contender.config:
            if server.poll() is not None or time.monotonic() > deadline:
                raise ContenderFailed(f"the server of {self._contender.name} did not start:\n{path.read_text()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(self._values["PORT"])), 1):
                return
            time.sleep(0.05)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=self._limit)
        except queue.Empty:
            self._process.kill()
            return {"error": f"no answer within {self._limit:.0f} s\n{self._log.read_text()[-4000:]}"}
        except BrokenPipeError:
            line = b""
        if not line:
            return {"error": f"the worker ended with status {self._process.wait()}\n{self._log.read_text()[-4000:]}"}
        return json.loads(line)

    def _stop_worker(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        _stop_process(self._process, patience=20)


def _stop_process(process: subprocess.Popen[bytes], patience: float = 0) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
        return
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
