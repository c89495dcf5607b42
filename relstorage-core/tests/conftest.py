"""Distributions that exist only for a test, with real metadata on ``sys.path``."""

from __future__ import annotations

import importlib
import sys

import pytest

EXAMPLE = """
from typing import ClassVar

from zope.interface import implementer

from relstorage.errors import Failure
from relstorage.interfaces import IBackend, IDriver
from relstorage.options import (
    BOOL, COUNT, STRING, MAPPING, BackendOptions, RemovedOption, choice, option, options_class
)


@options_class
class ExampleOptions(BackendOptions):
    host: str = option(STRING, None, "The server.", required=True, aliases=("server",))
    passwd: str = option(STRING, "", "The password.", secret=True)
    port: int = option(COUNT, 4711, "The port.")
    compress: bool = option(BOOL, False, "Whether to compress.")
    mode: str = option(choice("FAST", "SAFE"), "SAFE", "How to go about it.")
    settings: dict = option(MAPPING, None, "Settings of the server.")

    removed: ClassVar = (RemovedOption("named_pipe", "Use 'host'."),)

    @classmethod
    def from_uri(cls, parts, arguments):
        found = {"host": parts.hostname} if parts.hostname else {}
        if "squeeze" in arguments:
            found["compress"] = arguments.pop("squeeze")
        return found


@implementer(IBackend)
class ExampleBackend:
    name = "example"
    title = "Example"
    sections = ("example-db", "exampledb")
    schemes = ("example", "ex")
    options_class = ExampleOptions
    drivers = ("example.fast", "example.slow")
    requires = "example-backend"

    def adapter(self, options, storage_options, driver):
        return (options, storage_options, driver)


@implementer(IDriver)
class ExampleDriver:
    backend = "example"
    distribution = "example-client[binary]"

    def __init__(self, name, aliases=(), missing=None):
        self.name = name
        self.aliases = aliases
        self.missing = missing

    def check(self):
        if self.missing:
            raise ImportError(self.missing)

    def classify(self, exception):
        return Failure.OTHER

    def open_session(self, settings, role):
        raise NotImplementedError


backend = ExampleBackend()
fast = ExampleDriver("example.fast", aliases=("gevent Fast",), missing="No module named 'fastclient'")
slow = ExampleDriver("example.slow", aliases=("Slow Connector/Python",))
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that puts a distribution with a module and entry points on ``sys.path``."""
    installed: list[str] = []

    def install(
        distribution: str, entry_points: dict[str, dict[str, str]], version: str = "1.0", **modules: str
    ) -> None:
        where = tmp_path / "site" / distribution
        info = where / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = []
        for group, names in entry_points.items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
        info.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")
        for name, text in modules.items():
            where.joinpath(f"{name}.py").write_text(text)
            installed.append(name)
        monkeypatch.syspath_prepend(str(where))
        importlib.invalidate_caches()

    yield install
    for name in installed:
        sys.modules.pop(name, None)


@pytest.fixture
def example(install):
    """Install a third-party backend ``example`` with the drivers ``fast``, which lacks its client, and ``slow``."""
    install(
        "example-backend",
        {
            "relstorage.backends": {"example": "example_backend:backend"},
            "relstorage.drivers": {"example.fast": "example_backend:fast", "example.slow": "example_backend:slow"},
        },
        version="1.2",
        example_backend=EXAMPLE,
    )
