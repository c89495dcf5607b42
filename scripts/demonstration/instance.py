"""A Zope instance with content. `make` lets Zope's own programs create the instance and fill it, and returns the paths
of the Data.fs and the blobs that it leaves."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CONTENT = Path(__file__).with_name("zope_content.py")

FILESTORAGE = re.compile(r"<filestorage>.*?</filestorage>", re.DOTALL)
WITH_BLOBS = """<blobstorage>
     blob-dir $INSTANCE/var/blobs
     <filestorage>
       path $INSTANCE/var/Data.fs
     </filestorage>
   </blobstorage>"""


class Source(NamedTuple):
    """A FileStorage: its file, and its blob directory if it has one."""

    data_fs: Path
    blobs: Path | None


class InstanceError(Exception):
    """Zope did not do what was asked; the text holds what it said."""


def make(directory: Path, documents: int, seed: int) -> Source:
    """Make the instance in `directory`, or find it there from an earlier run with the same content."""
    source = Source(directory / "var" / "Data.fs", directory / "var" / "blobs")
    stamp = directory / "content.stamp"
    made_from = f"{documents} {seed} {hashlib.sha256(CONTENT.read_bytes()).hexdigest()}"
    if stamp.is_file() and stamp.read_text() == made_from:
        return source

    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    programs = Path(sys.executable).parent
    run(programs / "mkwsgiinstance", "-d", directory, "-u", f"admin:{secrets.token_urlsafe(12)}", "-p", sys.executable)
    configuration = directory / "etc" / "zope.conf"
    text, replaced = FILESTORAGE.subn(lambda _: WITH_BLOBS, configuration.read_text())
    if replaced != 1:
        raise InstanceError(f"{configuration} has {replaced} <filestorage> sections where one was expected.")
    configuration.write_text(text)
    run(programs / "zconsole", "run", configuration, CONTENT, documents, seed)
    stamp.write_text(made_from)
    return source


def run(*command: object) -> None:
    """Run one of Zope's programs silently."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise InstanceError(f"{' '.join(words)} failed (status {done.returncode}):\n{done.stdout[-4000:]}")
