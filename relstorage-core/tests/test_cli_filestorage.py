"""The commands on storages that are not ours."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path

import pytest
import transaction
import ZODB
from click.testing import CliRunner
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage

from relstorage.cli import main, zodbconvert, zodbpack


def section(name, folder, blobs=True):
    blob_dir = f"  blob-dir {folder}/blobs\n" if blobs else ""
    return f"<filestorage {name}>\n  path {folder}/Data.fs\n{blob_dir}</filestorage>\n"


class Place:
    """Two directories for FileStorages, and a file for both."""

    def __init__(self, path: Path):
        self.source, self.destination = path / "source", path / "destination"
        self.source.mkdir()
        self.destination.mkdir()
        self.config = path / "convert.conf"
        self.storage = path / "storage.conf"
        self.configure()

    def configure(self, source_blobs=True, destination_blobs=True):
        self.config.write_text(
            section("source", self.source, source_blobs) + section("destination", self.destination, destination_blobs)
        )
        self.storage.write_text(section("", self.source))

    def open(self, folder):
        return closing(ZODB.DB(FileStorage(str(folder / "Data.fs"), blob_dir=str(folder / "blobs"))))

    def fill(self, *numbers):
        with self.open(self.source) as database:
            for number in numbers:
                with database.transaction(f"number {number}") as connection:
                    connection.root()[number] = PersistentMapping(blob=Blob(b"blob %d" % number))

    def convert(self, *options):
        return CliRunner().invoke(zodbconvert, [*options, str(self.config)])

    def content(self, folder):
        with self.open(folder) as database, database.transaction() as connection:
            found = {}
            for number, each in connection.root().items():
                with each["blob"].open() as stream:
                    found[number] = stream.read()
            return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["ZODB.FileStorage.FileStorage"], "fsync", None)
    yield Place(tmp_path)
    transaction.abort()


def test_convert_copies_transactions_and_blobs(place):
    place.fill(1, 2, 3)
    result = place.convert("--verify")
    assert result.exit_code == 0, result.output
    assert "Copied 4 transactions" in result.stdout
    assert "3 blobs: the same in both" in result.stdout
    assert place.content(place.destination) == {1: b"blob 1", 2: b"blob 2", 3: b"blob 3"}


def test_a_destination_with_data_is_refused_unchanged(place):
    place.fill(1)
    place.convert()
    place.fill(2)
    before = (place.destination / "Data.fs").read_bytes()
    result = place.convert()
    assert result.exit_code == 1
    assert "has data already" in result.stderr
    assert "Traceback" not in result.output
    assert (place.destination / "Data.fs").read_bytes() == before


def test_incremental_copies_what_came_since(place):
    place.fill(1)
    place.convert()
    place.fill(2, 3)
    result = place.convert("--incremental", "--verify", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["transactions"], summary["verified"]["differences"]) == (2, 0)
    assert set(place.content(place.destination)) == {1, 2, 3}


def test_incremental_into_an_empty_destination_copies_everything(place):
    place.fill(1)
    assert place.convert("--incremental", "--verify").exit_code == 0
    assert set(place.content(place.destination)) == {1}


def test_incremental_refuses_a_destination_with_transactions_of_its_own(place):
    place.fill(1)
    place.convert()
    with place.open(place.destination) as database, database.transaction() as connection:
        connection.root()["own"] = 1
    place.fill(2)
    result = place.convert("--incremental")
    assert result.exit_code == 1
    assert "the source does not have it" in result.stderr


def test_incremental_refuses_a_source_that_ends_earlier(place):
    place.fill(1)
    place.convert()
    with place.open(place.destination) as database, database.transaction() as connection:
        connection.root()["own"] = 1
    result = place.convert("--incremental")
    assert result.exit_code == 1
    assert "before that" in result.stderr


def test_what_cannot_be_cleared_is_left_alone(place):
    place.fill(1)
    place.convert()
    result = place.convert("--clear")
    assert result.exit_code == 1
    assert "cannot be cleared" in result.stderr
    assert set(place.content(place.destination)) == {1}


def test_a_dry_run_counts_and_creates_nothing(place):
    place.fill(1, 2)
    result = place.convert("--dry-run")
    assert result.exit_code == 0, result.output
    assert "Would copy 3 transactions" in result.stdout
    assert not (place.destination / "Data.fs").exists()


@pytest.mark.parametrize("options", [("--clear", "--incremental"), ("--dry-run", "--verify"), ("--no-such-option",)])
def test_options_that_make_no_sense_are_a_usage_error(place, options):
    assert place.convert(*options).exit_code == 2


def test_blobs_without_a_blob_directory_in_the_destination_are_not_dropped_silently(place):
    place.configure(destination_blobs=False)
    place.fill(1)
    result = place.convert()
    assert result.exit_code == 1
    assert "the destination has no blob directory" in result.stderr


def test_blobs_without_a_blob_directory_in_the_source_are_not_dropped_silently(place):
    place.fill(1)
    place.configure(source_blobs=False)
    result = place.convert()
    assert result.exit_code == 1
    assert "the source has no blob directory" in result.stderr


def test_blobs_are_left_behind_where_that_is_wanted(place):
    place.configure(destination_blobs=False)
    place.fill(1)
    result = place.convert("--no-blobs", "--verify")
    assert result.exit_code == 0, result.output
    assert "and 0 blobs" in result.stdout


def lose_a_blob(folder):
    lost = next(path for path in (folder / "blobs").rglob("*.blob"))
    os.remove(lost)


def test_a_blob_that_the_source_has_lost_is_reported(place):
    place.fill(1, 2)
    lose_a_blob(place.source)
    result = place.convert("--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["blobs"], summary["missing_blobs"], len(summary["missing"])) == (1, 1, 1)


def test_verify_after_the_copy_finds_a_blob_that_differs(place, monkeypatch):
    place.fill(1)
    monkeypatch.setattr("relstorage.storage.copying.shutil.copyfileobj", lambda source, copy, size: copy.write(b"x"))
    result = place.convert("--verify")
    assert result.exit_code == 1
    assert "the blobs differ" in result.stdout


def test_verify_after_the_copy_finds_a_record_that_is_missing(place, monkeypatch):
    place.fill(1)
    from relstorage.storage.copying import SingleTarget

    put = SingleTarget.put
    monkeypatch.setattr(SingleTarget, "put", lambda self, record, blob: None if blob else put(self, record, blob))
    result = place.convert("--verify")
    assert result.exit_code == 1
    assert "only the source has it" in result.stdout


@pytest.mark.parametrize(
    "text",
    [
        "<filestorage source>\n",
        "<nosuchstorage source>\n</nosuchstorage>\n",
        "<filestorage source>\n path /tmp/a\n</filestorage>\n",
    ],
)
def test_a_configuration_that_cannot_be_read_is_one_message(place, text):
    place.config.write_text(text)
    result = place.convert()
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")


def test_debug_shows_the_traceback_of_an_error(place):
    place.config.write_text("<nosuchstorage source>\n</nosuchstorage>\n")
    result = place.convert("--debug")
    assert result.exception is not None
    assert not isinstance(result.exception, SystemExit)


def verify(place, *options):
    return CliRunner().invoke(main, ["verify", *options, str(place.storage)])


def test_verify_finds_nothing_in_a_sound_storage(place):
    place.fill(1, 2)
    result = verify(place)
    assert result.exit_code == 0, result.output
    assert "No problem was found" in result.stdout


def test_verify_finds_a_missing_blob(place):
    place.fill(1, 2)
    lose_a_blob(place.source)
    result = verify(place, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["storages"][0]["counts"]["missing-blob"] == 1
    assert verify(place, "--no-blobs").exit_code == 0


def test_verify_finds_a_dangling_reference(place):
    with closing(FileStorage(str(place.source / "Data.fs"))) as storage:
        database = ZODB.DB(storage)
        with database.transaction() as connection:
            connection.root()["a"] = PersistentMapping()
        with database.transaction() as connection:
            oid, tid = connection.root()["a"]._p_oid, connection.root()["a"]._p_serial
        with closing(database):
            meta = TransactionMetaData()
            storage.tpc_begin(meta)
            storage.deleteObject(oid, tid, meta)
            storage.tpc_vote(meta)
            storage.tpc_finish(meta)
    result = verify(place, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)["storages"][0]
    assert report["counts"]["dangling"] == 1
    assert f"refers to object {int.from_bytes(oid, 'big'):#x}" in report["findings"][0]["detail"]


def test_verify_counts_what_cannot_be_reached(place):
    place.fill(1)
    with place.open(place.source) as database, database.transaction() as connection:
        del connection.root()[1]
    result = verify(place, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["storages"][0]["unreachable"] == 2


def test_pack_packs_every_storage_of_a_file(place):
    place.fill(1)
    place.convert()
    for folder in (place.source, place.destination):
        with place.open(folder) as database, database.transaction() as connection:
            del connection.root()[1]
    place.storage.write_text(section("a", place.source) + section("b", place.destination))
    result = CliRunner().invoke(zodbpack, ["--days", "0", str(place.storage)])
    assert result.exit_code == 0, result.output
    for folder in (place.source, place.destination):
        with place.open(folder) as database:
            assert len(database.storage) == 1


def test_pack_refuses_what_only_our_storages_can_do(place):
    place.fill(1)
    result = CliRunner().invoke(zodbpack, ["--prepack", str(place.storage)])
    assert result.exit_code == 1
    assert "--prepack needs a <relstorage> section" in result.stderr


def test_info_shows_a_foreign_storage(place):
    place.fill(1)
    result = CliRunner().invoke(main, ["info", "--json", str(place.storage)])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)["storages"][0]
    assert (facts["objects"], facts["keeps_history"], facts["backend"]) == (3, True, None)


@pytest.mark.parametrize("command", [[], ["convert"], ["pack"], ["verify"], ["info"], ["plugins"]])
def test_the_help_of_every_command_tells_the_exit_status(command):
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    assert "Exit status:" in result.stdout
