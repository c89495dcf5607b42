#!/usr/bin/env python3
"""Convert a Zope database into SQLite and use it, from nothing: an environment with Zope and this project, a Zope
instance with content if you have no Data.fs at hand, then the whole way through conversion, reading, committing,
undoing, packing and verifying, with figures."""

from __future__ import annotations

import subprocess
import sys

from bootstrap import ROOT, Environment, Interpreter, run_as_program, say
from demonstration.options import parsed


def main() -> int:
    # A wrong option, or --help, is answered before anything is installed.
    parsed(ROOT)
    environment = Environment("demo", Interpreter.find(None))
    environment.prepare()
    say("Starting the demonstration")
    command = [environment.python, ROOT / "scripts" / "demo_job.py", *sys.argv[1:]]
    try:
        return subprocess.run([str(word) for word in command]).returncode
    except KeyboardInterrupt:
        # The terminal sent the signal to the demonstration too, which has told about it.
        return 130


if __name__ == "__main__":
    run_as_program(main)
