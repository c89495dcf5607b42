"""`relstorage plugins`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from relstorage.cli import main


def run(*words):
    return CliRunner().invoke(main, ["plugins", *words])


def by_name(result):
    return {(each["group"], each["name"]): each for each in json.loads(result.stdout)}


def test_json_describes_each_plugin(example):
    result = run("--json")
    assert result.exit_code == 0
    found = by_name(result)
    backend = found["relstorage.backends", "example"]
    assert (backend["installed"], backend["usable"], backend["distribution"]) == (True, True, "example-backend")
    fast = found["relstorage.drivers", "example.fast"]
    assert (fast["usable"], fast["remedy"]) == (False, "pip install 'example-client[binary]'")


def test_the_table_says_what_to_type_for_a_backend_that_is_not_installed():
    result = run()
    assert result.exit_code == 0
    assert "Try: pip install relstorage-oracle" in result.stdout


def test_check_passes_when_a_backend_lacks_one_of_several_clients(example):
    assert run("--check").exit_code == 0


@pytest.mark.parametrize(("words", "status"), [((), 0), (("--check",), 1), (("--check", "--json"), 1)])
def test_check_fails_for_a_plugin_that_is_broken(install, words, status):
    install("broken", {"relstorage.backends": {"broken": "no_such_module:backend"}})
    assert run(*words).exit_code == status
