"""One server program: the account that runs it, its directory, its log, and its life. PostgreSQL and pgbouncer refuse
to run as root, so that root runs them as somebody else; anybody else runs them as themselves."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap import BootstrapError
from servers import processes

ACCOUNTS = ("postgres", "nobody")
# Below what systems give to outgoing connections, one of which could take the port of a server that restarts.
PORTS = range(15000, 32000)
LINES_OF_A_LOG = 30
# The path of a Unix socket may have 107 characters, and its name goes with it.
LONGEST_DIRECTORY = 70
SECONDS_TO_START = 60.0
SECONDS_TO_STOP = 60.0


class ServerError(BootstrapError):
    """A server, or a program that works on one, failed."""


@dataclass(frozen=True)
class Account:
    """Who runs a server."""

    uid: int
    gid: int

    @classmethod
    def unprivileged(cls) -> Account:
        """Return the current user's account, or for root that of somebody with fewer rights."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        known = {entry.pw_name: entry for entry in pwd.getpwall()}
        for name in ACCOUNTS:
            if name in known:
                return cls(known[name].pw_uid, known[name].pw_gid)
        raise ServerError(f"root cannot run servers, and there is none of the users {', '.join(ACCOUNTS)}.")

    def started_as(self) -> dict[str, Any]:
        """Return the arguments that make `subprocess` start a program under this account."""
        if os.geteuid() == self.uid:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def can_enter(self, directory: Path) -> bool:
        """Tell whether it may go through a directory and all above it."""
        if os.geteuid() == self.uid:
            return os.access(directory, os.X_OK)
        above = (directory, *directory.parents)
        return all(path.stat().st_mode & stat.S_IXOTH or path.stat().st_uid == self.uid for path in above)

    def make_directory(self, name: str) -> Path:
        """Make a directory that belongs to it, below the system's temporary directory."""
        for place in (Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")):
            if place.is_dir() and self.can_enter(place) and len(str(place)) + len(name) < LONGEST_DIRECTORY:
                directory = Path(tempfile.mkdtemp(prefix=f"relstorage-{name}-", dir=place))
                directory.chmod(0o755)
                os.chown(directory, self.uid, self.gid)
                return directory
        raise ServerError(f"There is no place for the files of {name}: set TMPDIR to a directory that all may enter.")


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on now."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError(f"No port of 127.0.0.1 from {PORTS.start} to {PORTS.stop} is free.")


def environment(additional: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of PostgreSQL's programs: their own variables would change what they do, and a language
    what they say."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C", **(additional or {})}


class Daemon:
    """A server program in a directory of its own, which exists until `close`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.account = Account.unprivileged()
        self.directory = self.account.make_directory(name)
        self.log = self.directory / "log"
        self._guard = processes.Guard(self.directory)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> int | None:
        """The id of the running server's first process, None if it does not run."""
        if self._process is not None and self._process.poll() is not None:
            self._ended()
        return None if self._process is None else self._process.pid

    def write(self, name: str, text: str) -> Path:
        """Write a file into the directory, to be read by the server only."""
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(text)
        os.chown(path, self.account.uid, self.account.gid)
        return path

    def run(self, command: Sequence[str | Path], variables: Mapping[str, str] | None = None) -> None:
        """Run a program under the server's account, to its end."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env=environment(variables),
            errors="replace",
            **self.account.started_as(),
        )
        if done.returncode:
            raise ServerError(f"{Path(command[0]).name} failed (status {done.returncode}):\n{done.stdout}")

    def start(self, command: Sequence[str | Path], is_ready: Callable[[int], bool]) -> None:
        """Start the server and wait until `is_ready`, asked with its process id, says so."""
        if self.process is not None:
            raise ServerError(f"{self.name} runs already.")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment(),
                start_new_session=True,
                **self.account.started_as(),
            )
        self._guard.watch(self._process.pid)
        deadline = time.monotonic() + SECONDS_TO_START
        while not is_ready(self._process.pid):
            status = self._process.poll()
            if status is not None:
                self._ended()
                raise ServerError(f"{self.name} ended with status {status} instead of starting.\n{self.end_of_log()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{self.name} did not start in {SECONDS_TO_START:.0f} s.\n{self.end_of_log()}")
            time.sleep(0.01)

    def stop(self, number: signal.Signals) -> None:
        """Ask the server to stop, and wait until it has; nothing happens if it does not run."""
        process = self.process
        if process is None:
            return
        processes.send(number, process)
        processes.resume(process)
        assert self._process is not None
        try:
            self._process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(f"{self.name} did not stop in {SECONDS_TO_STOP:.0f} s.\n{self.end_of_log()}") from None
        self._ended()

    def kill(self) -> None:
        """End all processes of the server at once, as a crash does."""
        if self.process is not None:
            processes.kill(self.process)
            assert self._process is not None
            self._process.wait()
            self._ended()

    def pause(self) -> None:
        """Let the server hang: its connections stay, and nothing answers."""
        processes.pause(self._running())

    def resume(self) -> None:
        """Let a server that hangs go on."""
        processes.resume(self._running())

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server's first process."""
        processes.send(number, self._running())

    def end_of_log(self) -> str:
        """Return what the server said last, for an error."""
        lines = self.log.read_text(errors="replace").splitlines()[-LINES_OF_A_LOG:]
        return f"The end of {self.log}:\n\n" + "\n".join(lines)

    def close(self) -> None:
        """Kill the server if it runs, and remove its directory; nothing happens the second time."""
        if not self.directory.exists():
            return
        self.kill()
        shutil.rmtree(self.directory)
        self._guard.dismiss()

    def _running(self) -> int:
        process = self.process
        if process is None:
            raise ServerError(f"{self.name} does not run.\n{self.end_of_log()}")
        return process

    def _ended(self) -> None:
        # The id may become that of another process from now on.
        self._process = None
        self._guard.watch(0)
