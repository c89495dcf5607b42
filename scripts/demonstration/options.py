"""The command line of the demonstration, read twice: by scripts/demo.py, which can show help before anything is
installed, and by scripts/demo_job.py, which does the work."""

from __future__ import annotations

import argparse
from pathlib import Path


def existing_file(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path}")
    return path


def existing_directory(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {path}")
    return path


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def parser(root: Path) -> argparse.ArgumentParser:
    """Return the parser; `root` is the repository."""
    result = argparse.ArgumentParser(
        prog="demo.py",
        description="Convert a Zope database into SQLite, read all of it, commit, undo, pack and verify, with figures.",
        epilog="Exits with 0 only if nothing was lost or changed on the way. A given Data.fs is only read.",
    )
    result.add_argument(
        "--data-fs", type=existing_file, metavar="FILE", help="a FileStorage (default: one made with Zope)"
    )
    result.add_argument("--blobs", type=existing_directory, metavar="DIRECTORY", help="the blob directory of --data-fs")
    result.add_argument(
        "--documents",
        type=positive,
        default=5000,
        metavar="N",
        help="documents in the Zope database that is made; each brings some four objects (default: %(default)s)",
    )
    result.add_argument("--seed", type=int, default=1, help="seed of the content that is made (default: %(default)s)")
    result.add_argument(
        "--directory",
        type=Path,
        default=root / ".demo",
        metavar="DIRECTORY",
        help="where everything is made; its subdirectory sqlite is replaced (default: %(default)s)",
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return result


def parsed(root: Path) -> argparse.Namespace:
    """Return the options of this process's command line."""
    result = parser(root)
    options = result.parse_args()
    if options.blobs and not options.data_fs:
        result.error("--blobs belongs to --data-fs; give both")
    return options
