"""Clean a blob cache once: ``python -m relstorage.blobs.clean DIRECTORY SIZE``."""

from __future__ import annotations

import argparse
import logging

from relstorage.blobs.cleaning import STILL_TOO_LARGE, clean
from relstorage.errors import LayoutError


def main(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m relstorage.blobs.clean",
        description="Remove the least recently used files of a blob cache until at most SIZE bytes are left.",
        epilog=f"The exit status is {STILL_TOO_LARGE} if more is left: files in use, or another cleaner.",
    )
    parser.add_argument("directory", help="the blob-dir of a storage with shared-blob-dir false")
    parser.add_argument("size", type=int, help="how many bytes may stay")
    parser.add_argument("--keep-seconds", type=float, default=5.0, help="spare what was used within so many seconds")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    try:
        result = clean(parsed.directory, parsed.size, keep_seconds=parsed.keep_seconds)
    except LayoutError as error:
        parser.error(str(error))
    return STILL_TOO_LARGE if result is None or result.size > parsed.size else 0


if __name__ == "__main__":
    raise SystemExit(main())
