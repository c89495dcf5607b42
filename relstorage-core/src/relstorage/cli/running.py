"""How a command runs: its log, its exit status, what an error and Ctrl-C look like.

Results go to standard output; progress, log and errors to standard error. An error that somebody can do something
about is one message; the traceback is for ``--debug``.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import click
import ZConfig
from rich.console import Console
from rich.logging import RichHandler
from zc.lockfile import LockError
from ZODB.loglevels import TRACE
from ZODB.POSException import POSError

from relstorage.errors import ConfigurationError, PluginError

OK = 0
PROBLEM = 1
USAGE = 2
INTERRUPTED = 130

EXIT_STATUS = f"""\b
Exit status:
  {OK}    everything is as it should be
  {PROBLEM}    a problem was found, or the operation failed
  {USAGE}    the command line or the configuration cannot be used
  {INTERRUPTED}  you stopped it with Ctrl-C
"""

_EXPECTED = (POSError, ZConfig.ConfigurationError, LockError, OSError)

Function = TypeVar("Function", bound=Callable[..., Any])


class Failure(click.ClickException):
    """The operation failed; the message says why."""

    exit_code = PROBLEM


class Unusable(click.ClickException):
    """The configuration cannot be used; the message says why."""

    exit_code = USAGE


class Command(click.Command):
    """A command with a log. ``interrupted`` is what to say when it is stopped in the middle."""

    def __init__(self, *arguments: Any, interrupted: str = "Nothing was changed.", **facts: Any):
        facts.setdefault("epilog", EXIT_STATUS)
        super().__init__(*arguments, **facts)
        self._interrupted = interrupted
        self.params += [
            click.Option(["--debug"], is_flag=True, help="Log everything, and show the traceback of an error."),
            click.Option(["--trace"], is_flag=True, help="Log even more than with --debug."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        debug, trace = ctx.params.pop("debug"), ctx.params.pop("trace")
        ctx.with_resource(_logging(TRACE if trace else logging.DEBUG if debug else logging.WARNING))
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(f"Stopped. {self._interrupted}", err=True)
            ctx.exit(INTERRUPTED)
        except _EXPECTED as error:
            if debug or trace:
                raise
            unusable = isinstance(error, (ConfigurationError, PluginError, ZConfig.ConfigurationError))
            raise (Unusable if unusable else Failure)(str(error) or type(error).__name__) from error


def json_option(function: Function) -> Function:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Write the result to stdout as JSON.")(function)


def configuration_argument(function: Function) -> Function:
    """Add the argument of a command that works on storages."""
    return click.argument("configuration", metavar="CONFIG")(function)


def write_json(result: Any) -> None:
    """Write a result to standard output."""
    click.echo(json.dumps(result, indent=2))


class Interruption:
    """Ctrl-C as a question that the work asks when it can stop; a second one stops it at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interruption:
        self._previous: Any = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # Not through sys.stderr, which the signal may have interrupted in the middle of a write.
        os.write(2, b"Stopping after this transaction. Press Ctrl-C again to stop at once.\n")


@contextmanager
def _logging(level: int) -> Iterator[None]:
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        source = " %(name)s:" if level < logging.INFO else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s{source} %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("relstorage.cli")
    before = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(level)
    # The lines of progress are part of what a command does, at any level.
    ours.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        ours.setLevel(before[1])
