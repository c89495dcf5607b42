"""`zodbpack` on SQLite."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest
import transaction
import ZODB
from click.testing import CliRunner
from persistent.mapping import PersistentMapping

import relstorage
from relstorage.cli import main, zodbpack


class Place:
    """A database with one object below the root, one that is garbage, and some old revisions."""

    def __init__(self, path, keep_history):
        self.options = {"data_dir": str(path / "data"), "keep_history": keep_history}
        self.config = path / "storage.conf"
        self.config.write_text(
            f"%import relstorage\n<zodb>\n<relstorage>\n  keep-history {str(keep_history).lower()}\n"
            f"  <sqlite3>\n    data-dir {path}/data\n  </sqlite3>\n</relstorage>\n</zodb>\n"
        )
        with closing(ZODB.DB(relstorage.open("sqlite", **self.options))) as database:
            with database.transaction() as connection:
                connection.root()["kept"], connection.root()["gone"] = PersistentMapping(), PersistentMapping()
            with database.transaction() as connection:
                del connection.root()["gone"]

    def pack(self, *options):
        return CliRunner().invoke(zodbpack, [*options, str(self.config)])

    def report(self, *options):
        result = self.pack("--json", *options)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["storages"][0]["report"]

    def objects(self):
        with closing(relstorage.open("sqlite", **self.options)) as storage:
            return len(storage)


@pytest.fixture(params=[False, True], ids=["history-free", "history-preserving"])
def place(tmp_path, request):
    yield Place(tmp_path, request.param)
    transaction.abort()


@pytest.mark.parametrize("days", ["0", "-1"])
def test_a_pack_removes_garbage(place, days):
    assert place.report("-d", days)["removed_objects"] == 1
    assert place.objects() == 2


def test_the_last_day_is_kept_unless_told_otherwise(place):
    place.report()
    assert place.objects() == 3


def test_a_prepack_removes_nothing_and_its_mark_is_used_later(place):
    assert place.report("--days", "0", "--prepack")["removable_objects"] == 1
    assert place.objects() == 3
    assert place.report("--use-prepack-state")["removed_objects"] == 1
    assert place.objects() == 2


def test_without_a_mark_there_is_nothing_to_use(place):
    result = place.pack("--use-prepack-state")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert place.objects() == 3


def test_a_dry_run_removes_nothing(place):
    result = place.pack("--days", "0", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "1 objects can be removed. Nothing was removed" in result.stdout
    assert place.objects() == 3


@pytest.mark.parametrize("option", ["--dry-run", "--check-refs-only"])
def test_looking_at_a_database_that_is_not_there_makes_none(place, tmp_path, option):
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    result = place.pack(option)
    assert result.exit_code == 1
    assert not (tmp_path / "data").exists()


def test_references_are_checked_without_removing_anything(place):
    result = place.pack("--check-refs-only")
    assert result.exit_code == 0, result.output
    assert "every reference from the root leads to an object" in result.stdout
    assert place.objects() == 3


def test_a_broken_reference_is_told_by_the_exit_status(place, tmp_path):
    with closing(sqlite3.connect(tmp_path / "data" / "main.sqlite3")) as connection:
        connection.execute("DELETE FROM object_state WHERE zoid = 1")
        if place.options["keep_history"]:
            connection.execute("DELETE FROM current_object WHERE zoid = 1")
        connection.commit()
    result = place.pack("--check-refs-only")
    assert result.exit_code == 1
    assert "object 0x0 refers to 0x1" in result.stderr


def test_a_pack_that_is_stopped_says_how_to_go_on(place, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("relstorage.cli.pack.pack", stop)
    result = place.pack("--days", "0")
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr


def test_a_database_that_does_not_exist_is_not_made(place, tmp_path):
    place.config.write_text(place.config.read_text().replace("/data", "/dtaa"))
    result = place.pack()
    assert result.exit_code == 1
    assert "has no tables" in result.output
    assert not (tmp_path / "dtaa").exists()


def test_a_database_of_an_older_version_is_migrated_first(place, tmp_path):
    with closing(sqlite3.connect(tmp_path / "data" / "main.sqlite3")) as connection, connection:
        for table in ("rs_meta", "rs_removed", "rs_pack_run", "rs_pack_garbage"):
            connection.execute(f"DROP TABLE {table}")
    assert place.report("-d", "0")["removed_objects"] == 1


def test_days_must_be_a_number(place):
    assert place.pack("--days", "many").exit_code == 2


def test_modes_exclude_each_other(place):
    assert place.pack("--prepack", "--dry-run").exit_code == 2


def test_the_old_and_the_new_name_are_the_same_command():
    assert main.commands["pack"] is zodbpack
