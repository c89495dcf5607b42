"""URIs, and that keyword arguments, ZConfig files and URIs mean the same by every option."""

from __future__ import annotations

import io
from urllib.parse import quote, urlencode

import pytest
import ZConfig
import zodburi as zodburi_package
from ZODB.DemoStorage import DemoStorage
from ZODB.MappingStorage import MappingStorage

from relstorage.config import zconfig, zodburi
from relstorage.errors import ConfigurationError, UnknownPlugin
from relstorage.options import Options, declared, split_keywords
from relstorage.plugins import BACKENDS, Plugins

SCHEMA = """
<schema>
  <import package="ZODB"/>
  <section type="ZODB.storage" name="*" attribute="storage"/>
</schema>
"""


@pytest.fixture
def opened(monkeypatch):
    """Return the list of what was opened, as name, options of the backend and options of the storage."""
    calls = []

    def open_storage(*arguments):
        calls.append(arguments)
        return MappingStorage("opened")

    monkeypatch.setattr(zodburi, "open_storage", open_storage)
    monkeypatch.setattr(zconfig, "open_storage", open_storage)
    return calls


def options_of(uri, opened):
    factory, _ = zodburi.resolve(uri)
    factory()
    return opened.pop()


def test_a_uri_names_a_backend_and_its_options(example, opened):
    name, backend, storage = options_of("example://db?port=1&keep_history=false&blob_cache_size=1MB", opened)
    assert (name, backend.host, backend.port) == ("example", "db", 1)
    assert storage == Options(keep_history=False, blob_cache_size=1 << 20)


def test_nothing_is_opened_before_the_factory_is_called(example, opened):
    zodburi.resolve("example://db")
    assert opened == []


def test_a_second_scheme_names_the_same_backend(example, opened):
    assert options_of("ex://db", opened)[0] == "example"


def test_percent_encoding_is_decoded(example, opened):
    secret = "p&=#/?% ü+"
    _, backend, _ = options_of(f"example://db?passwd={quote(secret, safe='')}", opened)
    assert backend.passwd == secret


def test_a_hash_is_an_ordinary_character(example, opened):
    assert options_of("example://db?passwd=a#b", opened)[1].passwd == "a#b"


def test_parts_of_a_nested_option_have_a_dot(example, opened):
    assert options_of("example://db?settings.work_mem=1MB&settings.x=2", opened)[1].settings == {
        "work_mem": "1MB",
        "x": "2",
    }


def test_keywords_of_the_database_are_left_to_zodburi(example, opened):
    uri = "example://db?connection_pool_size=3&connection_cache_size=100&database_name=main&keep_history=0"
    factory, keywords = zodburi.resolve(uri)
    assert keywords == {"connection_pool_size": "3", "connection_cache_size": "100", "database_name": "main"}
    assert zodburi_package._get_dbkw(keywords) == {"pool_size": 3, "cache_size": 100, "database_name": "main"}


def test_demostorage_keeps_changes_in_memory(example, opened):
    storage = zodburi.resolve("example://db?demostorage=true")[0]()
    assert isinstance(storage, DemoStorage)
    assert storage.base.getName() == "opened"
    storage.close()


def test_demostorage_can_be_turned_off(example, opened):
    assert isinstance(zodburi.resolve("example://db?demostorage=0")[0](), MappingStorage)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("keep_histroy=1", "no option 'keep_histroy'; did you mean 'keep_history'?"),
        ("keep-histroy=1", "did you mean 'keep-history'?"),
        ("prot=1", "did you mean 'port'?"),
        ("conection_pool_size=1", "did you mean 'connection_pool_size'?"),
        ("demo_storage=1", "did you mean 'demostorage'?"),
        ("setings.x=1", "no option 'setings.x'"),
        ("port=many", "'port' cannot have this value: 'many' is not a whole number"),
        ("port=", "'port' cannot have this value"),
        ("port=1&port=2", "gives 'port' twice"),
        ("host=other", "gives host both before and after its '?'"),
        ("server=other", "the same option"),
        ("port.x=1", "'port' has no parts"),
        ("demostorage=maybe", "'demostorage' cannot have this value"),
    ],
)
def test_a_wrong_argument_is_refused(example, arguments, said):
    with pytest.raises(ConfigurationError) as refused:
        zodburi.resolve(f"example://db?{arguments}")
    assert said in str(refused.value)


def test_a_refusal_does_not_show_the_password(example):
    with pytest.raises(ConfigurationError) as refused:
        zodburi.resolve("example://user:sesame@db?passwd=sesame&port=x")
    assert "sesame" not in str(refused.value)


def test_a_required_option_that_is_missing_is_named(example):
    with pytest.raises(ConfigurationError, match="required and missing: host"):
        zodburi.resolve("example://?port=1")


def test_an_argument_without_effect_warns(example):
    with pytest.warns(DeprecationWarning, match="'pack-dry-run' no longer has an effect"):
        zodburi.resolve("example://db?pack_dry_run=1")


def test_a_scheme_may_name_the_driver(example, opened):
    name, backend, _ = options_of("example+slow://db?port=1", opened)
    assert (name, backend.host, backend.driver) == ("example", "db", "slow")
    assert options_of("ex+Slow://db", opened)[1].driver == "slow"


@pytest.mark.parametrize("argument", ["driver=slow", "Driver=fast"])
def test_a_driver_in_the_scheme_and_in_an_argument_is_refused(example, argument):
    with pytest.raises(ConfigurationError, match="gives driver both before and after"):
        zodburi.resolve(f"example+slow://db?{argument}")


def test_a_backend_may_understand_arguments_that_are_not_options(example, opened):
    assert options_of("example://db?squeeze=1", opened)[1].compress is True
    with pytest.raises(ConfigurationError, match="gives compress both before and after"):
        zodburi.resolve("example://db?squeeze=1&compress=1")


@pytest.mark.parametrize("rest", ["se#same@db", "se[same@db", "se]same@db", "se\u2100same@db", "se\tsame@db"])
def test_an_awkward_password_before_the_question_mark_reaches_the_backend(example, opened, rest):
    assert options_of(f"example://u:{rest}?port=1", opened)[1].host == "db"


@pytest.mark.parametrize("rest", ["u:se?same@db", "db?passwd=sesame&ses%20ame=1", "db?passwd=se&same@x=1"])
def test_what_cannot_be_a_name_is_not_shown(example, rest):
    with pytest.raises(ConfigurationError, match="is not the name of an option; write '%3F'") as refused:
        zodburi.resolve(f"example://{rest}")
    assert "se" not in str(refused.value).partition("write")[0].replace("these", "")


def test_what_is_not_a_uri_is_refused():
    with pytest.raises(ConfigurationError, match="begins with a scheme"):
        zodburi.resolve("/srv/zodb")


@pytest.mark.parametrize(
    ("scheme", "backend"),
    [
        ("postgres", "postgresql"),
        ("postgres+psycopg2", "postgresql"),
        ("postgresql", "postgresql"),
        ("mysql", "mysql"),
        ("oracle", "oracle"),
        ("sqlite", "sqlite"),
    ],
)
def test_the_scheme_of_our_own_backend_that_is_not_installed_says_what_to_type(scheme, backend):
    resolve = zodburi.Resolver(lambda: Plugins(lambda group: ()))
    with pytest.raises(UnknownPlugin, match=f"'{backend}' is not installed. Try: pip install relstorage-{backend}"):
        resolve(f"{scheme}://user:password@host/db")


def test_a_backend_that_reads_nothing_before_the_question_mark_refuses_it(example, monkeypatch):
    options_class = Plugins().load(BACKENDS, "example").options_class
    monkeypatch.delattr(options_class, "from_uri")
    with pytest.raises(ConfigurationError, match=r"write 'example://\?'"):
        zodburi.resolve("example://db?port=1")
    with pytest.raises(ConfigurationError, match="required and missing: host"):
        zodburi.resolve("example://?port=1")


# --- the same by every way

WRITTEN = {
    "boolean": ("true", "false"),
    "integer": ("5", "6"),
    "integer from 0 up": ("5", "6"),
    "percentage": ("20", "21"),
    "seconds": ("5", "6.5"),
    "byte size": ("5", "2MB"),
    "string": ("other", "another"),
    "path": ("/srv/blobs", "/srv/other"),
    "words": ("a:1 b:2", "c"),
}


def written(each):
    """Return the text of a value that is not the default."""
    if each.type.name.startswith("one of "):
        texts = each.type.name.removeprefix("one of ").split(", ")
    else:
        texts = WRITTEN[each.type.name]
    return next(text for text in texts if each.convert(text) != each.default)


def every_way(opened, values):
    """Return the options that keyword arguments, a ZConfig file and a URI make of the same texts."""
    backend = Plugins().load(BACKENDS, "example")
    own = {each.name for each in declared(backend.options_class)}
    yield ("example", *split_keywords(backend.options_class, values))

    inner = "\n".join(f"{name.replace('_', '-')} {text}" for name, text in values.items() if name in own)
    outer = "\n".join(f"{name.replace('_', '-')} {text}" for name, text in values.items() if name not in own)
    text = f"%import relstorage\n<relstorage>\n{outer}\n<example-db>\n{inner}\n</example-db>\n</relstorage>\n"
    schema = ZConfig.loadSchemaFile(io.StringIO(SCHEMA))
    ZConfig.loadConfigFile(schema, io.StringIO(text))[0].storage.open()
    yield opened.pop()

    yield options_of("example://?" + urlencode(values), opened)


@pytest.mark.parametrize("each", declared(Options), ids=lambda each: each.name)
def test_an_option_of_every_storage_means_the_same_by_every_way(example, opened, each):
    results = list(every_way(opened, {"host": "db", each.name: written(each)}))
    assert results[0] == results[1] == results[2]
    value = getattr(results[0][2], each.name)
    assert value == each.convert(written(each)) != each.default


@pytest.mark.parametrize("name", ["driver", "host", "passwd", "port", "compress", "mode"])
def test_an_option_of_a_backend_means_the_same_by_every_way(example, opened, name):
    options_class = Plugins().load(BACKENDS, "example").options_class
    each = next(each for each in declared(options_class) if each.name == name)
    results = list(every_way(opened, {"host": "db", name: written(each)}))
    assert results[0] == results[1] == results[2]
    assert getattr(results[0][1], name) == each.convert(written(each)) != each.default


def test_the_defaults_are_the_same_by_every_way(example, opened):
    results = list(every_way(opened, {"host": "db"}))
    assert results[0] == results[1] == results[2]
    assert results[0][2] == Options()


@pytest.mark.parametrize("removed", Options.removed, ids=lambda removed: removed.name)
@pytest.mark.filterwarnings("ignore:The option:DeprecationWarning")
def test_an_option_without_effect_has_none_by_every_way(example, opened, removed):
    results = list(every_way(opened, {"host": "db", removed.name: "1"}))
    assert results[0] == results[1] == results[2]
    assert results[0][2] == Options()
