"""ZConfig: ``%import relstorage`` and the sections it gives, and the reference page of their keys."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import ZConfig
from zope.component import getGlobalSiteManager

import relstorage.config.sections
from relstorage.config import zconfig
from relstorage.config.reference import page
from relstorage.config.sections import SectionTypes
from relstorage.errors import PluginUnavailable, UnknownPlugin
from relstorage.interfaces import IBackend
from relstorage.options import Options, declared
from relstorage.plugins import Plugins

SCHEMA = """
<schema>
  <import package="ZODB"/>
  <multisection type="ZODB.storage" name="*" attribute="storages"/>
</schema>
"""


def read(text):
    schema = ZConfig.loadSchemaFile(io.StringIO(SCHEMA))
    config, _ = ZConfig.loadConfigFile(schema, io.StringIO(text), url="file:///etc/zodb.conf")
    return config.storages[0]


def section(backend="<example-db>\nhost db\n</example-db>", options=""):
    """Return the storage of a file in which the backend's section begins at line 3 and the options come after it."""
    return read(f"%import relstorage\n<relstorage>\n{backend}\n{options}\n</relstorage>\n")


@pytest.fixture
def core_alone(monkeypatch):
    """Let configurations find no plug-in at all."""
    types = SectionTypes("relstorage.config.sections.types", lambda: Plugins(lambda group: ()))
    monkeypatch.setattr(relstorage.config.sections, "types", types)


def test_a_third_party_backend_has_a_section(example):
    storage = section(options="keep-history false")
    assert storage.adapter.backend == "example"
    assert storage.adapter.options.host == "db"
    assert storage.options == Options(keep_history=False)


def test_every_name_of_a_section_can_be_used(example):
    assert section("<exampledb>\nhost db\n</exampledb>").adapter.backend == "example"


def test_what_is_not_written_has_its_default(example):
    storage = section()
    assert storage.options == Options()
    assert storage.adapter.options == type(storage.adapter.options)(host="db")


def test_keys_may_have_underscores_or_capitals(example):
    storage = section("<example-db>\nHost db\n</example-db>", "keep_history false\nBlob-Cache_Size 1MB")
    assert storage.options == Options(keep_history=False, blob_cache_size=1 << 20)


def test_a_former_name_of_a_key_is_accepted(example):
    assert section("<example-db>\nserver db\n</example-db>").adapter.options.host == "db"


def test_a_nested_option_is_a_section_of_its_own(example):
    storage = section("<example-db>\nhost db\n<settings>\nWork_Mem 64MB\nx 1\n</settings>\n</example-db>")
    assert storage.adapter.options.settings == {"Work_Mem": "64MB", "x": "1"}


def test_a_key_without_effect_warns_and_says_what_to_do(example):
    with pytest.warns(DeprecationWarning, match="'poll-interval' no longer has an effect"):
        section(options="poll-interval 3")
    with pytest.warns(DeprecationWarning, match="'named-pipe' no longer has an effect. Use 'host'."):
        section("<example-db>\nhost db\nnamed_pipe true\n</example-db>")


@pytest.mark.parametrize(
    ("body", "options", "line", "said"),
    [
        ("hots db", "", 4, "no option 'hots'; did you mean 'host'?"),
        ("host db\nport many", "", 5, "'port' cannot have this value: 'many' is not a whole number"),
        ("host db\nmode QUICK", "", 5, "'QUICK' is none of FAST, SAFE"),
        ("port 1", "", 5, "no values for 'host'"),
        ("host a\nserver b", "", 5, "'server' does not support multiple values"),
        ("host db", "keep-histroy false", 6, "no option 'keep-histroy'; did you mean 'keep-history'?"),
        ("host db", "keep-history maybe", 6, "'maybe' is neither true nor false"),
        ("host db", "blob-cache-size 10XB", 6, "'10XB' is not a size"),
    ],
)
def test_what_is_wrong_is_reported_with_its_line(example, body, options, line, said):
    with pytest.raises(ZConfig.ConfigurationError) as wrong:
        section(f"<example-db>\n{body}\n</example-db>", options)
    assert said in str(wrong.value)
    assert wrong.value.lineno == line
    assert wrong.value.url == "file:///etc/zodb.conf"


def test_a_section_that_nobody_has_is_reported_with_its_line(example):
    with pytest.raises(ZConfig.ConfigurationError, match="'example'") as wrong:
        section("<example>\nhost db\n</example>")
    assert wrong.value.lineno == 3


def test_a_storage_without_a_backend_is_reported_with_its_line(example):
    with pytest.raises(ZConfig.ConfigurationError, match="relstorage.adapter") as wrong:
        section("", "keep-history true")
    assert wrong.value.lineno == 5


@pytest.mark.parametrize("name", ["postgresql", "mysql", "oracle", "sqlite3", "sqlite"])
@pytest.mark.parametrize("body", ["", "host db", "data-dir /srv/zodb"])
def test_the_section_of_our_own_backend_that_is_not_installed_says_what_to_type(core_alone, name, body):
    distribution = f"relstorage-{name.rstrip('3')}"
    with pytest.raises(UnknownPlugin, match=f"is not installed. Try: pip install {distribution}$"):
        section(f"<{name}>\n{body}\n</{name}>")


def test_a_section_within_the_section_of_a_missing_backend_does_not_hide_what_to_type(core_alone):
    with pytest.raises(UnknownPlugin, match="Try: pip install relstorage-sqlite$"):
        section("<sqlite3>\n<pragmas>\ncache_size 8MB\n</pragmas>\n</sqlite3>")


def test_the_section_of_a_broken_backend_says_why_and_spares_the_others(example, install):
    install(
        "example-broken", {"relstorage.backends": {"broken": "example_broken:backend"}}, example_broken="import nix"
    )
    assert section().adapter.backend == "example"
    with pytest.raises(PluginUnavailable, match="'broken' of example-broken cannot be imported: No module named 'nix'"):
        section("<broken>\nhost db\n</broken>")


def test_a_backend_registered_by_hand_has_its_section(example):
    from example_backend import ExampleBackend, ExampleOptions

    class OtherOptions(ExampleOptions):
        pass

    class Other(ExampleBackend):
        options_class = OtherOptions

    before = section()
    other = Other()
    getGlobalSiteManager().registerUtility(other, IBackend, "example")
    try:
        during = section()
    finally:
        getGlobalSiteManager().unregisterUtility(other, IBackend, "example")
    after = section()
    classes = [type(storage.adapter.options).__name__ for storage in (before, during, after)]
    assert classes == ["ExampleOptions", "OtherOptions", "ExampleOptions"]


def test_the_same_schema_follows_what_is_installed(example):
    # ZODB.config keeps one schema for the life of the process, and ZConfig the functions that it found for it.
    from example_backend import ExampleBackend, ExampleOptions

    class Other(ExampleBackend):
        options_class = type("OtherOptions", (ExampleOptions,), {})

    schema = ZConfig.loadSchemaFile(io.StringIO(SCHEMA))
    text = "%import relstorage\n<relstorage>\n<example-db>\nhost db\n</example-db>\n</relstorage>\n"

    def options_class():
        storage = ZConfig.loadConfigFile(schema, io.StringIO(text))[0].storages[0]
        return type(storage.adapter.options).__name__

    assert options_class() == "ExampleOptions"
    other = Other()
    getGlobalSiteManager().registerUtility(other, IBackend, "example")
    try:
        assert options_class() == "OtherOptions"
    finally:
        getGlobalSiteManager().unregisterUtility(other, IBackend, "example")


def test_reading_the_sections_again_adds_nothing(example):
    types = SectionTypes("x")
    assert types.component() == types.component()
    assert types.v0.relstorage
    with pytest.raises(AttributeError):
        types.v1  # noqa: B018  to ask for it is enough to fail


def test_a_name_of_a_section_belongs_to_one_backend(example, install):
    text = (
        "from example_backend import ExampleBackend\n"
        "class B(ExampleBackend):\n    name = 'greedy'\n    sections = ('greedy', 'example-db', 'relstorage')\n"
        "backend = B()\n"
    )
    install("example-greedy", {"relstorage.backends": {"greedy": "example_greedy:backend"}}, example_greedy=text)
    assert section().adapter.backend == "example"
    assert section("<greedy>\nhost db\n</greedy>").adapter.backend == "greedy"


def test_opening_a_section_opens_its_backend_with_its_options(example, monkeypatch):
    opened = []
    monkeypatch.setattr(zconfig, "open_storage", lambda *arguments: opened.append(arguments) or "the storage")
    storage = section(options="read-only true")
    assert storage.open() == "the storage"
    assert opened == [("example", storage.adapter.options, Options(read_only=True))]


def test_a_section_is_a_storage_of_a_zodb_section(example, monkeypatch):
    import ZODB.config
    from ZODB.MappingStorage import MappingStorage

    monkeypatch.setattr(zconfig, "open_storage", lambda *arguments: MappingStorage("opened"))
    db = ZODB.config.databaseFromString(
        "%import relstorage\n<zodb main>\n<relstorage>\n<example-db>\nhost db\n</example-db>\n</relstorage>\n</zodb>\n"
    )
    assert db.storage.getName() == "opened"
    db.close()


def test_the_component_documents_every_key(example):
    component = SectionTypes("x").component()
    for each in declared(Options):
        assert f'<key name="{each.key}"' in component
        assert each.doc.replace("&", "&amp;") in component


def test_the_reference_page_describes_every_option_of_a_backend(example):
    text = page(Plugins(), ["example"])
    for each in (*declared(Options), *declared(Plugins().load("relstorage.backends", "example").options_class)):
        assert f"\n### {each.key}\n\n{each.doc}\n\nType: {each.type.name}" in text
    for removed in Options.removed:
        assert f"| `{removed.key}` | {removed.instead} |" in text
    assert "the section `<example-db>` or `<exampledb>`" in text
    assert "It is required. Also accepted as `server`." in text


def test_keys_convert_to_simple_values():
    assert zconfig.mapping(SimpleNamespace(values={"a": "1"})) == {"a": "1"}
