"""Options: names, values, and what is said about wrong ones."""

from __future__ import annotations

import dataclasses
import logging
from typing import ClassVar

import pytest

from relstorage.errors import ConfigurationError
from relstorage.options import (
    BOOL,
    BYTE_SIZE,
    COUNT,
    DIRECTORY,
    MAPPING,
    PATH,
    PERCENT,
    SECONDS,
    STRING,
    WORDS,
    BackendOptions,
    OptionDeclaration,
    OptionNames,
    Options,
    OptionType,
    RemovedOption,
    choice,
    declared,
    option,
    options_class,
    split_keywords,
)

# The keys of <relstorage> in RelStorage 4.3, and their defaults.
RELSTORAGE_4 = {
    "name": None,
    "read-only": False,
    "keep-history": True,
    "create-schema": True,
    "blob-dir": None,
    "shared-blob-dir": False,
    "blob-cache-size": None,
    "blob-cache-size-check": 10,
    "blob-cache-size-check-external": False,
    "blob-chunk-size": 1 << 20,
    "replica-conf": None,
    "ro-replica-conf": None,
    "replica-timeout": 600.0,
    "revert_when_stale": False,
    "pack-gc": True,
    "pack-prepack-only": False,
    "pack-skip-prepack": False,
    "pack-batch-timeout": 15.0,
    "cache-servers": (),
    "cache-module-name": "relstorage.pylibmc_wrapper",
    "cache-prefix": "",
    "cache-local-mb": 10,
    "cache-local-object-max": 16384,
    "cache-local-compression": "none",
    "cache-local-dir": None,
    "cache-delta-size-limit": 100_000,
    "commit-lock-timeout": 30,
    "commit-lock-id": 0,
}
RELSTORAGE_4_IGNORED = [
    "poll-interval",
    "pack-commit-busy-delay",
    "cache-local-storage",
    "cache-local-dir-count",
    "cache-local-dir-read-count",
    "cache-local-dir-compress",
    "cache-local-dir-write-max-size",
    # arguments of its URIs that never had an effect
    "pack_dry_run",
    "pack_duty_cycle",
    "pack_max_delay",
]


@options_class
class ServerOptions(BackendOptions):
    host: str = option(STRING, None, "The server.", required=True, aliases=("server",))
    password: str = option(STRING, "", "The password.", secret=True)
    pin: int = option(COUNT, 0, "The number of the card.", secret=True)
    settings: dict = option(MAPPING, None, "Settings.")
    removed: ClassVar = (RemovedOption("named_pipe", "Use 'host'."),)


@pytest.mark.parametrize("key", RELSTORAGE_4)
def test_every_option_of_relstorage_4_is_declared_with_its_default(key):
    assert getattr(Options(), key.replace("-", "_")) == RELSTORAGE_4[key]
    assert OptionNames(Options).find(key).default == RELSTORAGE_4[key]


@pytest.mark.parametrize("key", RELSTORAGE_4_IGNORED)
def test_an_option_without_effect_is_accepted_and_says_what_to_do_instead(key, caplog):
    with pytest.warns(DeprecationWarning, match="no longer has an effect. [A-Z'].*[.]$") as warned:
        assert Options(**{key: "1"}) == Options()
    assert "no longer has an effect" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    assert warned[0].filename == __file__


def test_the_former_name_of_an_argument_is_accepted():
    assert Options(blob_cache_chunk_size="2MB").blob_chunk_size == 2 << 20


@pytest.mark.parametrize("name", ["keep_history", "keep-history", "Keep-History", "KEEP_HISTORY"])
def test_dashes_underscores_and_case_mean_the_same_in_a_name(name):
    assert Options(**{name: False}).keep_history is False


def test_none_stands_for_the_default():
    assert Options(cache_prefix=None, blob_chunk_size=None) == Options()


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(ConfigurationError, match="no option 'keep_histroy'; did you mean 'keep_history'"):
        Options(keep_histroy=False)


def test_a_suggestion_is_spelled_like_the_question():
    with pytest.raises(ConfigurationError, match="did you mean 'keep-history'"):
        Options(**{"keep-histroy": "false"})


def test_a_name_like_no_other_is_refused_without_a_suggestion():
    with pytest.raises(ConfigurationError, match="no option 'xyzzy'$"):
        Options(xyzzy=1)


def test_two_spellings_of_one_option_are_refused():
    with pytest.raises(ConfigurationError, match="'server' and 'host' are the same option"):
        ServerOptions(host="a", server="b")


@pytest.mark.parametrize(
    ("type", "written", "value"),
    [
        (BOOL, "true", True),
        (BOOL, " Yes ", True),
        (BOOL, "on", True),
        (BOOL, "1", True),
        (BOOL, 1, True),
        (BOOL, "false", False),
        (BOOL, "no", False),
        (BOOL, "OFF", False),
        (BOOL, 0, False),
        (COUNT, "12", 12),
        (COUNT, 12, 12),
        (PERCENT, "10", 10),
        (PERCENT, "10%", 10),
        (PERCENT, 100, 100),
        (SECONDS, "1.5", 1.5),
        (SECONDS, 30, 30.0),
        (BYTE_SIZE, "10", 10),
        (BYTE_SIZE, "10kb", 10240),
        (BYTE_SIZE, "10 MB", 10 << 20),
        (BYTE_SIZE, "1GB", 1 << 30),
        (BYTE_SIZE, 4096, 4096),
        (WORDS, "a:1 b:2", ("a:1", "b:2")),
        (WORDS, "a:1,b:2", ("a:1", "b:2")),
        (WORDS, ["a:1"], ("a:1",)),
        (MAPPING, {"a": 1}, {"a": "1"}),
        (choice("none", "ZLIB"), "zlib", "ZLIB"),
    ],
)
def test_a_value_is_converted(type, written, value):
    converted = type.convert(written)
    assert (converted, converted.__class__) == (value, value.__class__)


@pytest.mark.parametrize(
    ("type", "written"),
    [
        (BOOL, ""),
        (BOOL, "maybe"),
        (BOOL, 2),
        (COUNT, "-1"),
        (COUNT, "1.5"),
        (COUNT, True),
        (PERCENT, "101"),
        (PERCENT, "1MB"),
        (SECONDS, "soon"),
        (SECONDS, "-1"),
        (SECONDS, "nan"),
        (SECONDS, "inf"),
        (BYTE_SIZE, "10XB"),
        (BYTE_SIZE, "-1"),
        (BYTE_SIZE, -1),
        (BYTE_SIZE, "1.5MB"),
        (BYTE_SIZE, ""),
        (STRING, 5),
        (PATH, ""),
        (PATH, 5),
        (WORDS, 5),
        (MAPPING, "a=1"),
        (choice("none", "zlib"), "lzma"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(type, written):
    with pytest.raises(ValueError, match="."):
        type.convert(written)


def test_a_wrong_value_is_reported_with_the_name_of_its_option():
    with pytest.raises(ConfigurationError, match="option 'blob-cache-size'.*'10XB' is not a size"):
        Options(blob_cache_size="10XB")


def test_a_path_is_absolute_and_knows_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Options(blob_dir="~/blobs").blob_dir == str(tmp_path / "blobs")
    assert Options(blob_dir="blobs").blob_dir == str(tmp_path / "blobs")
    assert Options(blob_dir=tmp_path).blob_dir == str(tmp_path)


def test_a_directory_exists_or_can_be_made(tmp_path):
    assert DIRECTORY.convert(tmp_path) == str(tmp_path)
    assert DIRECTORY.convert(tmp_path / "new") == str(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_directory_below_a_missing_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be made"):
        DIRECTORY.convert(tmp_path / "typo" / "data")


def test_a_file_is_not_a_directory(tmp_path):
    tmp_path.joinpath("file").write_text("")
    with pytest.raises(ValueError, match="is not a directory"):
        DIRECTORY.convert(tmp_path / "file")


def test_a_missing_required_option_is_named():
    with pytest.raises(ConfigurationError, match="required and missing: host"):
        ServerOptions(password="x")


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().keep_history = False  # type: ignore[misc]


def test_replace_makes_other_options():
    assert dataclasses.replace(Options(cache_local_mb=3), keep_history="no") == Options(
        cache_local_mb=3, keep_history=False
    )


def test_a_secret_is_not_shown():
    options = ServerOptions(host="db", password="sesame")
    assert options.password == "sesame"
    assert "sesame" not in repr(options)
    assert "db" in repr(options)


def test_a_wrong_secret_is_not_shown():
    with pytest.raises(ConfigurationError, match="option 'pin'") as refused:
        ServerOptions(host="db", pin="sesame")
    assert "sesame" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_secret_that_its_type_can_explain_without_showing_is_explained():
    def convert(value):
        raise ConfigurationError("it lacks a sign")

    each = OptionDeclaration("password", OptionType("sentence", convert), "", "The password.", secret=True)
    with pytest.raises(ConfigurationError, match="'password' cannot have this value: it lacks a sign"):
        each.convert("sesame")


def test_parts_of_a_nested_option_have_a_dot():
    assert ServerOptions(**{"host": "db", "settings.a": 1, "settings.b": "x"}).settings == {"a": "1", "b": "x"}


def test_a_nested_option_given_whole_and_in_parts_is_refused():
    with pytest.raises(ConfigurationError, match="the same option"):
        ServerOptions(**{"host": "db", "settings.a": 1, "settings": {}})


def test_an_option_without_parts_refuses_them():
    with pytest.raises(ConfigurationError, match="'host' has no parts"):
        ServerOptions(**{"host.name": "db"})


def test_keywords_are_split_between_backend_and_storage():
    backend, storage = split_keywords(ServerOptions, {"host": "db", "keep-history": "no", "driver": "fast"})
    assert backend == ServerOptions(host="db", driver="fast")
    assert storage == Options(keep_history=False)


def test_a_keyword_that_neither_has_is_refused():
    with pytest.raises(ConfigurationError, match="no option 'hots'; did you mean 'host'"):
        split_keywords(ServerOptions, {"hots": "db"})


def test_a_removed_option_of_a_backend_warns_among_keywords():
    with pytest.warns(DeprecationWarning, match="'named-pipe' no longer has an effect. Use 'host'."):
        split_keywords(ServerOptions, {"host": "db", "named_pipe": True})


@pytest.mark.parametrize("each", declared(Options), ids=lambda each: each.name)
def test_every_option_is_documented_in_one_sentence(each):
    assert each.doc.endswith(".")
    assert ". " not in each.doc
    assert each.type.nested or each.default is None or each.convert(each.default) == each.default
