"""The processes of a server. A `Guard` is a small program that outlives the one that started it: when that one is gone,
however it went, the guard ends the server and removes its directory.

As a program (`python processes.py DIRECTORY`) this module is the guard. It reads from its standard input which process
to end; the end of the input is the end of the one who wrote it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

DISMISSED = "dismissed"
SECONDS_TO_SHUT_DOWN = 10.0


def _parents() -> dict[int, int]:
    """Return the parent of every process that has not ended. (A zombie has ended.)"""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # The name, in parentheses, may contain anything.
                state, parent, *_ = entry.joinpath("stat").read_text().rpartition(")")[2].split()
                if state not in "ZX":
                    parents[int(entry.name)] = int(parent)
    return parents


def descendants(process: int) -> list[int]:
    """Return the ids of the processes that come from this one, the nearest first, without itself."""
    parents = _parents()
    found = [process]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def are_gone(processes: list[int], seconds: float) -> bool:
    """Wait until none of the processes is left, and tell whether it came to that."""
    deadline = time.monotonic() + seconds
    while not _parents().keys().isdisjoint(processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def send(number: signal.Signals, *processes: int) -> None:
    """Send a signal to those of the processes that still exist."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def pause(process: int) -> list[int]:
    """Stop a process and all that come from it, and return their ids. What is stopped starts no others."""
    stopped: list[int] = []
    found = [process]
    while set(found).difference(stopped):
        send(signal.SIGSTOP, *found)
        stopped = found
        found = [process, *descendants(process)]
    return stopped


def resume(process: int) -> None:
    """Let a paused process and all that come from it go on."""
    send(signal.SIGCONT, *descendants(process), process)


def kill(process: int) -> None:
    """End a process and all that come from it at once, with no chance to do anything more, and wait for that."""
    family = pause(process)
    send(signal.SIGKILL, *family)
    are_gone(family, SECONDS_TO_SHUT_DOWN)


class Guard:
    """What ends a server and removes its directory after the death of the current process."""

    def __init__(self, directory: Path) -> None:
        # In a session of its own, so that Ctrl-C is not for it.
        self._program = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(directory)],
            stdin=subprocess.PIPE,
            cwd="/",
            text=True,
            start_new_session=True,
        )

    def watch(self, process: int) -> None:
        """Make this the process to end; 0 is none."""
        self._tell(str(process))

    def dismiss(self) -> None:
        """Tell the guard that nothing is left to do."""
        self._tell(DISMISSED)
        assert self._program.stdin is not None
        self._program.stdin.close()
        self._program.wait()

    def _tell(self, word: str) -> None:
        assert self._program.stdin is not None
        print(word, file=self._program.stdin, flush=True)


def _told() -> Iterator[str]:
    for line in sys.stdin:
        yield line.strip()


def guard(directory: Path) -> None:
    """Wait for the end of the input, then end the server and remove the directory."""
    process = 0
    for word in _told():
        if word == DISMISSED:
            return
        process = int(word)
    if process:
        # Its own shutdown comes first, because it removes its shared memory; PostgreSQL's immediate one is quick.
        send(signal.SIGQUIT, process)
        resume(process)
        if not are_gone([process], SECONDS_TO_SHUT_DOWN):
            kill(process)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
