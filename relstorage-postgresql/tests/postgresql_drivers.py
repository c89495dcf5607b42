"""The drivers that are tested, and what to type where the module behind one is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from relstorage.errors import PluginError
from relstorage.plugins import BACKENDS, installed

TEXT_DRIVERS = ("psycopg2", "psycopg2cffi", "pg8000")
DRIVERS = ("psycopg", *TEXT_DRIVERS)


def usable_driver(name: str, missing: Callable[..., NoReturn]) -> Any:
    """Return a driver; skip the test loudly where its module is not installed."""
    plugins = installed()
    try:
        return plugins.driver_for(plugins.load(BACKENDS, "postgresql"), name)
    except PluginError as problem:
        missing(f"{name}: {problem}", fail=True)
