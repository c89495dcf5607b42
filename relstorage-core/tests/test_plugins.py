"""Plug-ins: found by name, verified, chosen, overridden, and explained when they cannot be had."""

from __future__ import annotations

import subprocess
import sys

import pytest
from zope.component import getGlobalSiteManager
from zope.interface import implementer
from zope.interface.verify import verifyObject

from relstorage.errors import DuplicatePlugin, Failure, InvalidPlugin, PluginUnavailable, UnknownPlugin
from relstorage.interfaces import IBackend, IDriver
from relstorage.options import BOOL, BackendOptions, option, options_class
from relstorage.plugins import BACKENDS, CACHES, DRIVERS, GROUPS, HOOKS, Plugins


@pytest.fixture
def nothing():
    """The plug-ins of the core alone."""
    return Plugins(lambda group: ())


@pytest.fixture
def register():
    """Return a function that registers a utility until the test ends."""
    registered = []
    manager = getGlobalSiteManager()

    def register(utility, interface, name):
        manager.registerUtility(utility, interface, name)
        registered.append((utility, interface, name))

    yield register
    for entry in registered:
        manager.unregisterUtility(*entry)


@implementer(IBackend)
class Substitute:
    name = title = requires = "example"
    sections = ("example-db",)
    schemes = ("example",)
    options_class = BackendOptions
    drivers = ()

    def adapter(self, options, storage_options, driver):
        raise NotImplementedError


@implementer(IDriver)
class SubstituteDriver:
    name = "example.another"
    backend = "example"
    aliases = ("Number 1",)
    distribution = ""

    def check(self):
        pass

    def classify(self, exception):
        return Failure.OTHER

    def open_session(self, settings, role):
        raise NotImplementedError


# --- names


def test_names_are_read_without_importing_anything(install):
    install("example-broken", {BACKENDS: {"broken": "example_broken:backend"}}, example_broken="raise SystemExit")
    assert "broken" in Plugins().names(BACKENDS)
    assert "example_broken" not in sys.modules


def test_the_core_alone_has_no_names(nothing):
    assert {group: nothing.names(group) for group in GROUPS} == dict.fromkeys(GROUPS, ())


def test_the_core_imports_no_backend():
    code = "import sys; sys.modules['relstorage_sqlite'] = None\n" + "\n".join(
        f"import relstorage.{module}" for module in ("plugins", "hooks", "options", "interfaces")
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


# --- loading


def test_an_installed_third_party_backend_is_loaded(example):
    backend = Plugins().load(BACKENDS, "example")
    assert backend.title == "Example"
    assert verifyObject(IBackend, backend)


def test_a_backend_is_found_by_its_scheme(example):
    assert Plugins().backend_for_scheme("ex").name == "example"


def test_the_second_scheme_of_our_own_backend_says_what_to_install(nothing):
    with pytest.raises(
        UnknownPlugin, match="backend 'postgresql' is not installed. Try: pip install relstorage-postgresql"
    ):
        nothing.backend_for_scheme("postgres")


@pytest.mark.parametrize("name", ["sqlite", "postgresql", "mysql", "oracle"])
def test_our_own_backend_that_is_not_installed_says_what_to_type(nothing, name):
    with pytest.raises(UnknownPlugin) as unknown:
        nothing.load(BACKENDS, name)
    assert str(unknown.value) == f"backend '{name}' is not installed. Try: pip install relstorage-{name}"


def test_our_own_cache_that_is_not_installed_says_what_to_type(nothing):
    with pytest.raises(
        UnknownPlugin, match="cache 'memcache.pylibmc' is not installed. Try: pip install relstorage-memcache"
    ):
        nothing.load(CACHES, "memcache.pylibmc")


def test_a_misspelled_name_is_answered_with_a_near_one(nothing):
    with pytest.raises(UnknownPlugin, match="backend 'postgresq' is not installed. Did you mean 'postgresql'?"):
        nothing.load(BACKENDS, "postgresq")


def test_a_misspelled_name_is_answered_with_an_installed_third_party_one(example):
    with pytest.raises(UnknownPlugin, match="Did you mean 'example'?"):
        Plugins().load(BACKENDS, "exampel")


def test_a_name_like_no_other_is_answered_without_a_guess(nothing):
    with pytest.raises(UnknownPlugin, match="^backend 'xyzzy' is not installed.$"):
        nothing.load(BACKENDS, "xyzzy")


def test_two_distributions_with_one_name_are_both_named(example, install):
    install("second-example", {BACKENDS: {"example": "example_backend:backend"}})
    with pytest.raises(DuplicatePlugin, match="example-backend and second-example both offer the backend 'example'"):
        Plugins().load(BACKENDS, "example")


@pytest.mark.parametrize("text", ["import example_missing", "raise RuntimeError('no licence')", "backend = ="])
def test_a_plugin_that_cannot_be_imported_is_broken_rather_than_unknown(install, text):
    install("example-broken", {BACKENDS: {"broken": "example_broken:backend"}}, example_broken=text)
    with pytest.raises(PluginUnavailable, match="'broken' of example-broken cannot be imported: .") as broken:
        Plugins().load(BACKENDS, "broken")
    assert broken.value.__cause__ is not None
    assert set(broken.value.attempts) == {"broken"}


def test_all_violations_of_the_contract_are_reported_together(nothing, register):
    class Wrong:
        name = "other"
        options_class = dict

        def adapter(self):
            raise NotImplementedError

    register(Wrong(), IBackend, "wrong")
    with pytest.raises(InvalidPlugin) as invalid:
        nothing.load(BACKENDS, "wrong")
    message = str(invalid.value)
    for part in ("IBackend", "sections", "drivers", "title", "adapter", "'other'", "options_class", "does not"):
        assert part in message


def test_a_backend_must_not_take_the_name_of_an_option_of_every_storage(nothing, register):
    @options_class
    class Taking(BackendOptions):
        pack_gc: bool = option(BOOL, True, "Taken.")
        mode: bool = option(BOOL, True, "Half taken.", aliases=("name", "poll-interval"))

    class Greedy(Substitute):
        options_class = Taking

    register(Greedy(), IBackend, "example")
    with pytest.raises(InvalidPlugin, match="options name, pack_gc, poll_interval have names or aliases of"):
        nothing.load(BACKENDS, "example")


def test_a_driver_serves_the_backend_that_its_name_begins_with(nothing, register):
    class Stray(SubstituteDriver):
        name = "other.third"

    register(Stray(), IDriver, "other.third")
    with pytest.raises(InvalidPlugin, match="'backend' is 'example', but its name is 'other.third'"):
        nothing.load(DRIVERS, "other.third")


def test_an_installed_plugin_is_verified(install):
    install("example-wrong", {BACKENDS: {"wrong": "example_wrong:backend"}}, example_wrong="backend = object()")
    with pytest.raises(InvalidPlugin, match="the backend 'wrong' does not keep the contract IBackend"):
        Plugins().load(BACKENDS, "wrong")


def test_a_plugin_is_verified_once(example, monkeypatch):
    plugins = Plugins()
    first = plugins.load(BACKENDS, "example")
    monkeypatch.setattr(type(first), "title", None)
    monkeypatch.delattr(type(first), "adapter")
    assert plugins.load(BACKENDS, "example") is first


# --- override


def test_a_registered_utility_wins_over_an_entry_point(example, register):
    substitute = Substitute()
    register(substitute, IBackend, "example")
    assert Plugins().load(BACKENDS, "example") is substitute


def test_a_registered_utility_settles_a_duplicate(example, install, register):
    install("second-example", {BACKENDS: {"example": "example_backend:backend"}})
    substitute = Substitute()
    register(substitute, IBackend, "example")
    assert Plugins().load(BACKENDS, "example") is substitute


def test_a_registered_utility_needs_no_entry_point(nothing, register):
    register(Substitute(), IBackend, "example")
    assert nothing.names(BACKENDS) == ("example",)


def test_a_registered_utility_is_verified(nothing, register):
    register(object(), IBackend, "example")
    with pytest.raises(InvalidPlugin, match="'example' does not keep the contract IBackend"):
        nothing.load(BACKENDS, "example")


# --- drivers


def test_auto_takes_the_first_driver_that_works(example):
    plugins = Plugins()
    assert plugins.driver_for(plugins.load(BACKENDS, "example")).name == "example.slow"


def test_auto_follows_the_order_of_the_backend(example):
    plugins = Plugins()
    backend = plugins.load(BACKENDS, "example")
    plugins.load(DRIVERS, "example.fast").missing = None
    assert plugins.driver_for(backend, "auto").name == "example.fast"


def test_auto_comes_to_the_drivers_of_others_last(example, register):
    register(SubstituteDriver(), IDriver, "example.another")
    plugins = Plugins()
    backend = plugins.load(BACKENDS, "example")
    assert plugins.driver_for(backend).name == "example.slow"
    plugins.load(DRIVERS, "example.slow").missing = "gone"
    assert plugins.driver_for(backend).name == "example.another"


@pytest.mark.parametrize(
    "choice", ["slow", "SLOW", "example.slow", "Slow Connector/Python", "slow-connector-python", " slow "]
)
def test_a_driver_is_chosen_by_any_spelling_of_its_name_or_alias(example, choice):
    plugins = Plugins()
    assert plugins.driver_for(plugins.load(BACKENDS, "example"), choice).name == "example.slow"


def test_a_driver_of_others_is_chosen_by_name(example, register):
    register(SubstituteDriver(), IDriver, "example.another")
    plugins = Plugins()
    backend = plugins.load(BACKENDS, "example")
    assert plugins.driver_for(backend, "another").name == "example.another"
    assert plugins.driver_for(backend, "number-1").name == "example.another"


@pytest.mark.parametrize("choice", ["fast", "gevent fast"])
def test_a_chosen_driver_that_does_not_work_is_not_replaced_by_another(example, choice):
    plugins = Plugins()
    with pytest.raises(PluginUnavailable) as unavailable:
        plugins.driver_for(plugins.load(BACKENDS, "example"), choice)
    message = str(unavailable.value)
    assert f"the driver '{choice}' of the backend 'example' does not work here" in message
    assert "No module named 'fastclient'. Try: pip install 'example-client[binary]'" in message
    assert "slow" not in message


def test_when_no_driver_works_each_is_listed_with_its_reason_and_remedy(example):
    plugins = Plugins()
    backend = plugins.load(BACKENDS, "example")
    plugins.load(DRIVERS, "example.slow").missing = "the library is too old"
    with pytest.raises(PluginUnavailable) as unavailable:
        plugins.driver_for(backend)
    assert str(unavailable.value) == (
        "no driver of the backend 'example' works here:\n"
        "  example.fast: No module named 'fastclient'. Try: pip install 'example-client[binary]'\n"
        "  example.slow: the library is too old. Try: pip install 'example-client[binary]'"
    )
    assert list(unavailable.value.attempts) == ["example.fast", "example.slow"]


def test_an_unknown_driver_is_answered_with_those_there_are(example):
    plugins = Plugins()
    with pytest.raises(UnknownPlugin, match="no driver 'slwo'. It has: fast, slow. Did you mean 'slow'?"):
        plugins.driver_for(plugins.load(BACKENDS, "example"), "slwo")


def test_a_backend_without_drivers_says_so(nothing):
    with pytest.raises(PluginUnavailable, match="it has no driver at all"):
        nothing.driver_for(Substitute())


# --- describing


def test_every_installed_plugin_is_described(example):
    found = {each.name: each for each in Plugins().describe() if each.distribution == "example-backend"}
    assert list(found) == ["example", "example.fast", "example.slow"]
    assert found["example"].version == "1.2"
    assert found["example"].installed and found["example"].usable
    assert found["example.slow"].usable
    assert found["example.fast"].installed and not found["example.fast"].usable
    assert found["example.fast"].reason == "No module named 'fastclient'"
    assert found["example.fast"].remedy == "pip install 'example-client[binary]'"


def test_our_own_plugins_that_are_not_installed_are_described_with_what_to_type(nothing):
    found = {(each.group, each.name): each for each in nothing.describe()}
    mysql = found[BACKENDS, "mysql"]
    assert (mysql.installed, mysql.usable) == (False, False)
    assert mysql.reason == "backend 'mysql' is not installed."
    assert mysql.remedy == "pip install relstorage-mysql"
    assert found[CACHES, "memcache.pylibmc"].remedy == "pip install relstorage-memcache"


def test_a_broken_plugin_is_described_with_the_reason(install):
    install("example-broken", {HOOKS: {"broken": "example_broken"}}, example_broken="import example_missing")
    broken = next(each for each in Plugins().describe() if each.name == "broken")
    assert (broken.group, broken.installed, broken.usable) == (HOOKS, True, False)
    assert "No module named 'example_missing'" in broken.reason


def test_duplicates_are_described_with_both_distributions(example, install):
    install("second-example", {BACKENDS: {"example": "example_backend:backend"}}, version="3")
    found = next(each for each in Plugins().describe() if each.name == "example")
    assert {*found.distribution.split(" and ")} == {"example-backend", "second-example"}
    assert not found.usable
    assert "both offer" in found.reason
