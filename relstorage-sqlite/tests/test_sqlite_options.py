"""The options of SQLite, by every way to configure it."""

from __future__ import annotations

import io
from urllib.parse import quote

import pytest
import ZConfig

from relstorage.config import zconfig, zodburi
from relstorage.errors import ConfigurationError
from relstorage.options import Options, split_keywords
from relstorage_sqlite.options import SqliteOptions

SCHEMA = """
<schema>
  <import package="ZODB"/>
  <section type="ZODB.storage" name="*" attribute="storage"/>
</schema>
"""


@pytest.fixture
def opened(monkeypatch):
    calls = []
    for module in (zconfig, zodburi):
        monkeypatch.setattr(module, "open_storage", lambda *arguments: calls.append(arguments))
    return calls


def from_file(section, opened):
    schema = ZConfig.loadSchemaFile(io.StringIO(SCHEMA))
    text = f"%import relstorage\n<relstorage>\n{section}\n</relstorage>\n"
    ZConfig.loadConfigFile(schema, io.StringIO(text), url="file:///etc/zodb.conf")[0].storage.open()
    return opened.pop()


def from_uri(uri, opened):
    zodburi.resolve(uri)[0]()
    return opened.pop()


def test_every_option_means_the_same_by_every_way(tmp_path, opened):
    by_file = from_file(
        f"<sqlite3>\ndata-dir {tmp_path}\ndriver sqlite3\nsynchronous normal\ngevent_yield_interval 50\n"
        "<pragmas>\ncache_size 8MB\nthreads 2\n</pragmas>\n</sqlite3>",
        opened,
    )
    by_uri = from_uri(
        f"sqlite://{quote(str(tmp_path))}?driver=sqlite3&synchronous=normal&gevent_yield_interval=50"
        "&pragmas.cache_size=8MB&pragmas.threads=2",
        opened,
    )
    by_keywords = split_keywords(
        SqliteOptions,
        {
            "data_dir": tmp_path,
            "driver": "sqlite3",
            "synchronous": "NORMAL",
            "gevent_yield_interval": 50,
            "pragmas": {"cache_size": "8MB", "threads": 2},
        },
    )
    assert by_file == by_uri == ("sqlite", *by_keywords)
    assert by_keywords[0].pragmas == {"cache_size": "-8192", "threads": "2"}
    assert by_keywords[0].synchronous == "NORMAL"


def test_a_commit_is_durable_by_default(tmp_path):
    assert SqliteOptions(data_dir=tmp_path).synchronous == "FULL"


@pytest.mark.parametrize("section", ["sqlite3", "sqlite"])
@pytest.mark.parametrize("key", ["data-dir", "data_dir", "path"])
def test_the_section_and_the_directory_have_former_names(tmp_path, opened, section, key):
    name, options, _ = from_file(f"<{section}>\n{key} {tmp_path}\n</{section}>", opened)
    assert (name, options) == ("sqlite", SqliteOptions(data_dir=tmp_path))


@pytest.mark.parametrize("argument", ["data_dir", "data-dir", "path"])
def test_the_directory_may_be_an_argument_of_the_uri(tmp_path, opened, argument):
    assert from_uri(f"sqlite://?{argument}={tmp_path}", opened) == (
        "sqlite",
        SqliteOptions(data_dir=tmp_path),
        Options(),
    )


def test_the_path_of_a_uri_is_decoded(tmp_path, opened):
    tmp_path.joinpath("my data").mkdir()
    options = from_uri(f"sqlite://{tmp_path}/my%20data", opened)[1]
    assert options.data_dir == str(tmp_path / "my data")


def test_a_host_in_a_uri_is_refused():
    with pytest.raises(ConfigurationError, match="SQLite has none; begin the path with a third slash"):
        zodburi.resolve("sqlite://srv/zodb")


def test_the_directory_is_required():
    with pytest.raises(ConfigurationError, match="required and missing: data-dir"):
        zodburi.resolve("sqlite://?synchronous=FULL")


def test_a_directory_that_cannot_be_made_is_reported_with_its_line(tmp_path, opened):
    with pytest.raises(ZConfig.DataConversionError, match="cannot be made") as wrong:
        from_file(f"<sqlite3>\ndata-dir {tmp_path}/typo/data\n</sqlite3>", opened)
    assert wrong.value.lineno == 4


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("cache_size", "8MB", "-8192"),
        ("cache_size", "-4000", "-4000"),
        ("cache_size", "2000", "2000"),
        ("mmap_size", "1 GB", str(1 << 30)),
        ("Page_Size", "8kb", "8192"),
        ("temp_store", "MEMORY", "MEMORY"),
        ("wal_autocheckpoint", 500, "500"),
    ],
)
def test_a_pragma_may_have_a_size(tmp_path, name, written, value):
    assert SqliteOptions(data_dir=tmp_path, pragmas={name: written}).pragmas == {name.lower(): value}


@pytest.mark.parametrize(("name", "value"), [("x; drop table y", "1"), ("x", "1; drop table y"), ("x", "")])
def test_what_is_no_pragma_is_refused(tmp_path, name, value):
    with pytest.raises(ConfigurationError, match="is not the name and value of a pragma"):
        SqliteOptions(data_dir=tmp_path, pragmas={name: value})


@pytest.mark.parametrize("name", ["journal_mode", "Busy_Timeout", "synchronous"])
def test_a_pragma_that_is_not_for_the_user_is_left_out_and_says_why(tmp_path, name, caplog):
    assert SqliteOptions(data_dir=tmp_path, pragmas={name: "1", "threads": 2}).pragmas == {"threads": "2"}
    assert f"The pragma '{name.lower()}' has no effect." in caplog.text
