"""The reference pages of errors, hooks and contracts are what the docstrings give, and leave nothing out."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from relstorage import errors, hooks, interfaces

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("reference")


def headings(page: str) -> set[str]:
    lines = (REFERENCE / page).read_text(encoding="utf-8").splitlines()
    return {line.lstrip("# ") for line in lines if line.startswith("#")}


def test_the_pages_are_current(generator: ModuleType) -> None:
    outdated = [path.name for path, text in generator.pages().items() if path.read_text(encoding="utf-8") != text]
    assert outdated == [], "Run: python scripts/reference.py"


def test_every_error_has_a_heading() -> None:
    own = {
        name
        for name, each in vars(errors).items()
        if inspect.isclass(each) and issubclass(each, Exception) and each.__module__ == errors.__name__
    }
    assert own - headings("errors-and-hooks.md") == set()


def test_every_hook_has_a_heading() -> None:
    names = {name for name in vars(hooks.HookSpecs) if name.startswith("relstorage_")}
    assert names - headings("errors-and-hooks.md") == set()


def test_every_contract_has_a_heading() -> None:
    assert {*interfaces.__all__} - headings("plugin-contracts.md") == set()
