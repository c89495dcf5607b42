"""The scripts that a newcomer runs first: what they refuse, and which differences the demonstration notices."""

from __future__ import annotations

import importlib
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob, BlobStorage
from ZODB.FileStorage import FileStorage

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPTS / script), *words], capture_output=True, text=True)


def test_an_unknown_python_is_refused_in_a_sentence() -> None:
    done = run("test.py", "--python", "3.99")

    assert done.returncode == 2
    assert "There is no Python 3.99 here" in done.stderr
    assert "Traceback" not in done.stderr


def test_blobs_without_their_database_are_refused() -> None:
    done = run("demo.py", "--blobs", str(SCRIPTS))

    assert done.returncode == 2
    assert "--blobs belongs to --data-fs" in done.stderr


@pytest.mark.parametrize("script", ["demo.py", "test.py"])
def test_help_needs_no_environment(script: str) -> None:
    # -S hides what is installed.
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(SCRIPTS)!r}); sys.argv[:] = [{script!r}, '--help']; "
        f"runpy.run_path({str(SCRIPTS / script)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert "usage:" in done.stdout


@pytest.fixture
def survey(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("demonstration.survey")


def file_storage(directory: Path) -> Any:
    directory.mkdir()
    return BlobStorage(str(directory / "blobs"), FileStorage(str(directory / "Data.fs")))


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """A database with history, a blob, and an object that nothing refers to any more."""
    database = ZODB.DB(file_storage(tmp_path / "source"))
    with database.transaction("Begin") as connection:
        connection.root()["kept"] = PersistentMapping(blob=Blob(b"first"))
        connection.root()["dropped"] = PersistentMapping()
    with database.transaction("Change") as connection:
        del connection.root()["dropped"]
        with connection.root()["kept"]["blob"].open("w") as stream:
            stream.write(b"second")
    with closing(database):
        yield database
    transaction.abort()


def ignore(count: int) -> None:
    """Take no notice of progress."""


def test_a_survey_counts_all_revisions_and_blobs(survey: ModuleType, source: Any) -> None:
    found = survey.survey(source.storage, ignore)

    assert (found.transactions, found.revisions, found.objects, found.blobs) == (3, 7, 4, 2)
    assert found.blob_bytes == len(b"first") + len(b"second")


def test_a_walk_finds_what_is_reachable(survey: ModuleType, source: Any) -> None:
    found = survey.walk(source, ignore)

    assert (found.objects, found.blobs, found.blob_bytes, found.broken) == (3, 1, len(b"second"), 0)


def test_a_copy_has_the_checksum_of_its_source(survey: ModuleType, source: Any, tmp_path: Path) -> None:
    with closing(file_storage(tmp_path / "copy")) as copy:
        copy.copyTransactionsFrom(source.storage)

        assert survey.survey(copy, ignore).checksum == survey.survey(source.storage, ignore).checksum


def test_a_blob_that_changed_on_the_way_changes_the_checksum(survey: ModuleType, source: Any, tmp_path: Path) -> None:
    with closing(file_storage(tmp_path / "copy")) as copy:
        copy.copyTransactionsFrom(source.storage)
        blob = next((tmp_path / "copy" / "blobs").rglob("*.blob"))
        blob.chmod(0o600)
        blob.write_bytes(b"damage")

        assert survey.survey(copy, ignore).checksum != survey.survey(source.storage, ignore).checksum


def test_a_description_that_was_lost_on_the_way_changes_the_checksum(
    survey: ModuleType, source: Any, tmp_path: Path
) -> None:
    class Forgetful:
        """What copyTransactionsFrom needs of a storage, with every description left out."""

        loadBlob = source.storage.loadBlob

        def iterator(self) -> Any:
            for entry in source.storage.iterator():
                entry.description = b""
                yield entry

    with closing(file_storage(tmp_path / "copy")) as copy:
        copy.copyTransactionsFrom(Forgetful())

        assert survey.survey(copy, ignore).revisions == survey.survey(source.storage, ignore).revisions
        assert survey.survey(copy, ignore).checksum != survey.survey(source.storage, ignore).checksum
