"""Hooks: who is told what, and what an observer cannot do to the storage."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

from relstorage.errors import InvalidPlugin
from relstorage.hooks import HookRelay, HookSpecs, check_observer, hookimpl, make_hooks
from relstorage.plugins import Plugins

NAMES = [name for name in vars(HookSpecs) if name.startswith("relstorage_")]


class Recorder:
    def __init__(self):
        self.told = []

    @hookimpl
    def relstorage_committed(self, tid, seconds):
        self.told.append((tid, seconds))


class Broken:
    @hookimpl
    def relstorage_committed(self):
        raise RuntimeError("the monitoring server is down")


def test_an_observer_gets_the_arguments_it_asks_for():
    recorder = Recorder()
    HookRelay([("recorder", recorder)]).relstorage_committed(tid=5, oids_count=2, seconds=0.5)
    assert recorder.told == [(5, 0.5)]


def test_the_relay_knows_which_hooks_have_a_listener():
    relay = HookRelay([("recorder", Recorder())])
    assert {name for name in NAMES if relay.listens(name)} == {"relstorage_committed"}


def test_nobody_listens_to_a_relay_without_observers():
    assert not any(HookRelay().listens(name) for name in NAMES)


def test_asking_for_a_hook_that_does_not_exist_fails():
    with pytest.raises(KeyError):
        HookRelay().listens("relstorage_comitted")


@pytest.mark.parametrize("place", [0, 1])
def test_an_observer_that_raises_is_logged_and_stops_no_other(place, caplog):
    recorder = Recorder()
    observers = [("recorder", recorder)]
    observers.insert(place, ("broken", Broken()))
    HookRelay(observers).relstorage_committed(tid=5, oids_count=2, seconds=0.5)
    assert recorder.told == [(5, 0.5)]
    assert "relstorage_committed of the plug-in 'broken' failed" in caplog.text
    assert "the monitoring server is down" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_every_hook_is_documented_and_can_be_told(name):
    spec = getattr(HookSpecs, name)
    assert spec.__doc__
    arguments = [argument for argument in inspect.signature(spec).parameters if argument != "self"]
    told = []
    source = f"def {name}({', '.join(arguments)}):\n    told.append(({', '.join(arguments)},))\n"
    namespace = {"told": told}
    exec(source, namespace)
    observer = ModuleType("observer")
    setattr(observer, name, hookimpl(namespace[name]))
    facts = {argument: number for number, argument in enumerate(arguments)}
    getattr(HookRelay([("observer", observer)]), name)(**facts)
    assert told == [tuple(facts.values())]


def test_an_unknown_hook_is_refused():
    class Misspelled:
        @hookimpl
        def relstorage_comitted(self, tid):
            pass

    with pytest.raises(InvalidPlugin, match="'stats'.*unknown hook 'relstorage_comitted'"):
        check_observer("stats", Misspelled())


def test_an_unknown_argument_is_refused():
    class Asking:
        @hookimpl
        def relstorage_committed(self, password):
            pass

    with pytest.raises(InvalidPlugin, match="password"):
        check_observer("stats", Asking())


def test_an_installed_observer_is_told(install):
    install(
        "example-statistics",
        {"relstorage": {"statistics": "example_statistics"}},
        example_statistics=(
            "from relstorage.hooks import hookimpl\n"
            "polls = []\n"
            "@hookimpl\n"
            "def relstorage_polled(view, changed):\n"
            "    polls.append((view, changed))\n"
        ),
    )
    make_hooks(Plugins()).relstorage_polled(view=7, changed=None)
    import example_statistics

    assert example_statistics.polls == [(7, None)]


def test_an_installed_observer_that_cannot_be_loaded_is_logged_and_left_out(install, caplog):
    install("example-statistics", {"relstorage": {"statistics": "example_missing"}})
    relay = make_hooks(Plugins())
    assert not relay.listens("relstorage_polled")
    assert "'statistics' of example-statistics cannot be imported: No module named 'example_missing'" in caplog.text
