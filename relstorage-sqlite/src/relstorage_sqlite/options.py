"""The options of an SQLite database, beside those of every storage."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, unquote

from relstorage.errors import ConfigurationError
from relstorage.options import COUNT, DIRECTORY, BackendOptions, OptionType, choice, option, options_class

log = logging.getLogger(__name__)

_SIZE = re.compile(r"(\d+)\s*(kb|mb|gb)", re.IGNORECASE)
_UNITS = {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}


# What this backend decides about itself. RelStorage overruled these without a word.
_OURS = {
    "busy_timeout": "Use the option 'commit-lock-timeout'.",
    "journal_mode": "It is always WAL.",
    "synchronous": "Use the option 'synchronous'.",
}


def _to_pragmas(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a mapping of names to values")
    pragmas = {str(name).strip().lower(): item for name, item in value.items()}
    for name in pragmas.keys() & _OURS:
        log.warning("The pragma %r has no effect. %s", name, _OURS[name])
    return {name: _pragma(name, item) for name, item in pragmas.items() if name not in _OURS}


def _pragma(name: str, value: Any) -> str:
    """Return the text of a pragma's value. ``8MB`` becomes bytes, or what SQLite expects in their place."""
    text = str(value).strip()
    if not re.fullmatch(r"\w+", name) or not re.fullmatch(r"[-+.\w]+( ?[kmgKMG][bB])?", text):
        raise ValueError(f"{name} {text!r} is not the name and value of a pragma")
    size = _SIZE.fullmatch(text)
    if size is None:
        return text
    amount = int(size[1]) * _UNITS[size[2].lower()]
    # A positive cache_size counts pages; a negative one counts KiB.
    # https://www.sqlite.org/pragma.html#pragma_cache_size
    return str(-(amount // 1024)) if name == "cache_size" else str(amount)


PRAGMAS = OptionType("names and values", _to_pragmas, nested=True)


@options_class
class SqliteOptions(BackendOptions):
    """The options of an SQLite database."""

    data_dir: str = option(
        DIRECTORY,
        None,
        "The directory of the database's file, on a local disk; it is made if only its last part is missing.",
        required=True,
        aliases=("path",),
    )
    synchronous: str = option(
        choice("FULL", "NORMAL"),
        "FULL",
        "With FULL a commit survives a power cut; NORMAL is faster, and a power cut may undo the last commits.",
    )
    gevent_yield_interval: int = option(
        COUNT,
        100,
        "After how many instructions of SQLite's virtual machine a gevent driver lets other greenlets run.",
        unit="instructions",
    )
    pragmas: dict[str, str] = option(
        PRAGMAS, None, "Pragmas to set on every connection, by name; sizes may be written with KB, MB or GB."
    )

    @classmethod
    def from_uri(cls, parts: SplitResult, arguments: dict[str, str]) -> dict[str, str]:
        """Return the directory, which is the path of the URI: ``sqlite:///srv/zodb``."""
        if parts.netloc:
            raise ConfigurationError(
                "the URI names a host, and SQLite has none; begin the path with a third slash: 'sqlite:///srv/zodb'"
            )
        path = unquote(parts.path)
        return {"data_dir": path} if path.strip("/") else {}
