"""A shared blob directory: the only place of the blobs, in FileStorage's layouts."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import transaction
from ZODB import DB
from ZODB.blob import Blob, BlobFile, FilesystemHelper
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSKeyError
from ZODB.utils import p64, u64

from relstorage.blobs import SharedBlobs
from relstorage.blobs.files import room_needed
from relstorage.blobs.layout import mark
from relstorage.errors import LayoutError, OutOfSpace

TID = 0x03D167F919308700


def written(folder, content: bytes, name: str = "uncommitted") -> str:
    path = Path(folder) / name
    path.write_bytes(content)
    return str(path)


def commit(blobs, oid: int, tid: int, content: bytes) -> None:
    staged = blobs.begin()
    staged.add(oid, written(blobs.temporary_directory(), content))
    staged.prepare()
    staged.place(tid)
    staged.committed(tid)


def tree(path) -> set[str]:
    """The directories and files below a blob directory, without what belongs to uncommitted data."""
    found = {str(each.relative_to(path)) for each in Path(path).rglob("*")}
    return {each for each in found if not each.startswith("tmp") and each != ".layout"}


@pytest.fixture
def opening(tmp_path):
    """Opens shared directories, and closes them when the test ends."""
    with ExitStack() as stack:

        def open_directory(path=tmp_path / "blobs"):
            return stack.enter_context(closing(SharedBlobs(str(path))))

        yield open_directory


@pytest.fixture
def blobs(opening):
    return opening()


@pytest.mark.parametrize("layout", ["bushy", "lawn"])
def test_a_committed_blob_is_where_zodb_looks_for_it(tmp_path, opening, layout):
    FilesystemHelper(str(tmp_path / "blobs"), layout).create()
    blobs = opening()
    commit(blobs, 0x1234, TID, b"content")
    expected = FilesystemHelper(str(tmp_path / "blobs"), layout).getBlobFilename(p64(0x1234), p64(TID))
    assert blobs.load(0x1234, TID) == expected
    assert Path(expected).read_bytes() == b"content"


def test_the_directory_of_a_file_storage_can_be_used(tmp_path, opening):
    db = DB(FileStorage(str(tmp_path / "Data.fs"), blob_dir=str(tmp_path / "blobs")))
    connection = db.open()
    connection.root()["blob"] = blob = Blob(b"from FileStorage")
    transaction.commit()
    blob._p_activate()
    oid, tid = u64(blob._p_oid), u64(blob._p_serial)
    db.close()
    blobs = opening()
    assert Path(blobs.load(oid, tid)).read_bytes() == b"from FileStorage"
    assert list(blobs.all_revisions()) == [(oid, tid)]


def test_a_new_directory_gets_the_bushy_layout(tmp_path):
    SharedBlobs(str(tmp_path / "new" / "blobs"))
    assert (tmp_path / "new" / "blobs" / ".layout").read_text() == "bushy"


def test_an_unmarked_directory_with_files_is_lawn_as_in_zodb(tmp_path):
    (tmp_path / "0x01").mkdir()
    SharedBlobs(str(tmp_path))
    assert (tmp_path / ".layout").read_text() == "lawn"


def test_a_half_created_directory_is_new(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "lost+found").mkdir()
    SharedBlobs(str(tmp_path))
    assert (tmp_path / ".layout").read_text() == "bushy"


@pytest.mark.parametrize(
    ("layout", "reason"), [("zeocache", "Set shared-blob-dir to false"), ("another", "'another' is unknown")]
)
def test_a_directory_of_another_kind_is_refused(tmp_path, layout, reason):
    (tmp_path / ".layout").write_text(layout)
    with pytest.raises(LayoutError, match=reason):
        SharedBlobs(str(tmp_path))
    assert os.listdir(tmp_path) == [".layout"]


def test_a_marker_is_never_overwritten(tmp_path):
    assert mark(str(tmp_path), "bushy") == "bushy"
    assert mark(str(tmp_path), "zeocache") == "bushy"
    assert os.listdir(tmp_path) == [".layout"]


def test_processes_that_open_a_new_directory_at_once_agree_on_its_layout(tmp_path):
    program = "import sys; from relstorage.blobs import SharedBlobs; SharedBlobs(sys.argv[1]).temporary_directory()"
    command = [sys.executable, "-c", program, str(tmp_path / "blobs")]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    assert (tmp_path / "blobs" / ".layout").read_text() == "bushy"
    assert tree(tmp_path / "blobs") == set()


def test_a_staged_file_is_no_longer_where_it_came_from(blobs):
    source = written(blobs.temporary_directory(), b"mine")
    staged = blobs.begin()
    path = staged.add(1, source)
    assert not os.path.exists(source)
    assert Path(path).read_bytes() == b"mine"
    assert list(staged) == [(1, path)]
    assert staged


def test_nothing_is_staged_at_first(blobs):
    assert not blobs.begin()


def test_a_file_of_another_file_system_is_copied_and_removed(blobs):
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(blobs.path).st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    source = written("/dev/shm", b"far away", f"relstorage-test-{os.getpid()}")
    try:
        staged = blobs.begin()
        staged.add(1, source)
        staged.place(TID)
        staged.committed(TID)
        assert not os.path.exists(source)
    finally:
        Path(source).unlink(missing_ok=True)
    assert Path(blobs.load(1, TID)).read_bytes() == b"far away"


def test_the_second_file_of_an_object_replaces_the_first(blobs):
    staged = blobs.begin()
    first = staged.add(1, written(blobs.temporary_directory(), b"first"))
    second = staged.add(1, written(blobs.temporary_directory(), b"second"))
    assert list(staged) == [(1, second)]
    assert not os.path.exists(first)


def test_a_blob_cannot_be_loaded_before_it_is_placed(blobs):
    staged = blobs.begin()
    staged.add(1, written(blobs.temporary_directory(), b"content"))
    with pytest.raises(POSKeyError):
        blobs.load(1, TID)
    staged.place(TID)
    assert blobs.load(1, TID)


def test_everything_is_flushed_before_place_returns(blobs, monkeypatch):
    flushed = []
    fsync = os.fsync

    def recording(descriptor):
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to learn which file is flushed")
    staged = blobs.begin()
    path = staged.add(0x0100, written(blobs.temporary_directory(), b"content"))
    monkeypatch.setattr(os, "fsync", recording)
    staged.prepare()
    assert flushed == [path]
    staged.place(TID)
    folder = os.path.dirname(blobs.load(0x0100, TID))
    parents = [folder]
    while folder != blobs.path:
        folder = os.path.dirname(folder)
        parents.append(folder)
    assert sorted(flushed[1:]) == sorted(parents)


def test_place_flushes_what_was_not_prepared(blobs, monkeypatch):
    flushed = []
    monkeypatch.setattr("relstorage.blobs.shared.sync_file", flushed.append)
    staged = blobs.begin()
    path = staged.add(1, written(blobs.temporary_directory(), b"content"))
    staged.place(TID)
    assert flushed == [path]


def test_a_committed_file_is_read_only(blobs):
    commit(blobs, 1, TID, b"content")
    assert os.stat(blobs.load(1, TID)).st_mode & 0o222 == 0


def test_an_abort_removes_staged_files(blobs):
    staged = blobs.begin()
    path = staged.add(1, written(blobs.temporary_directory(), b"content"))
    staged.aborted()
    assert not os.path.exists(path)
    assert not staged
    staged.aborted()


def test_an_abort_removes_placed_files_and_their_directories(blobs):
    staged = blobs.begin()
    staged.add(1, written(blobs.temporary_directory(), b"content"))
    staged.add(2**40, written(blobs.temporary_directory(), b"content"))
    staged.place(TID)
    assert tree(blobs.path) != set()
    staged.aborted()
    assert tree(blobs.path) == set()
    assert os.listdir(blobs.temporary_directory()) == []


def test_an_abort_after_a_place_that_failed_half_way_removes_what_was_placed(blobs):
    staged = blobs.begin()
    staged.add(1, written(blobs.temporary_directory(), b"content"))
    vanishing = staged.add(2, written(blobs.temporary_directory(), b"content"))
    staged.prepare()
    os.remove(vanishing)
    with pytest.raises(FileNotFoundError):
        staged.place(TID)
    assert blobs.load(1, TID)
    staged.aborted()
    assert tree(blobs.path) == set()


def test_an_abort_does_not_touch_other_revisions(blobs):
    commit(blobs, 1, TID, b"committed")
    staged = blobs.begin()
    staged.add(1, written(blobs.temporary_directory(), b"aborted"))
    staged.place(TID + 1)
    staged.aborted()
    assert blobs.revisions(1) == [TID]


def test_a_revision_that_is_restored_again_survives_the_abort(blobs):
    commit(blobs, 1, TID, b"committed")
    staged = blobs.begin()
    staged.add(1, written(blobs.temporary_directory(), b"again"))
    staged.place(TID)
    staged.aborted()
    assert Path(blobs.load(1, TID)).read_bytes() == b"committed"
    assert os.listdir(blobs.temporary_directory()) == []


def test_a_revision_can_be_restored_again(blobs):
    commit(blobs, 1, TID, b"before")
    commit(blobs, 1, TID, b"after")
    assert Path(blobs.load(1, TID)).read_bytes() == b"after"
    assert os.listdir(blobs.temporary_directory()) == []


def test_an_abort_after_the_commit_changes_nothing(blobs):
    staged = blobs.begin()
    staged.add(1, written(blobs.temporary_directory(), b"content"))
    staged.place(TID)
    staged.committed(TID)
    staged.aborted()
    assert blobs.revisions(1) == [TID]


def test_an_undo_gives_an_object_an_older_blob_again(blobs):
    commit(blobs, 1, TID, b"old")
    commit(blobs, 1, TID + 1, b"new")
    staged = blobs.begin()
    assert staged.add_revision(1, TID)
    staged.place(TID + 2)
    staged.committed(TID + 2)
    assert Path(blobs.load(1, TID + 2)).read_bytes() == b"old"
    blobs.forget([(1, TID)])
    assert Path(blobs.load(1, TID + 2)).read_bytes() == b"old"


def test_an_aborted_undo_keeps_the_older_blob(blobs):
    commit(blobs, 1, TID, b"old")
    staged = blobs.begin()
    staged.add_revision(1, TID)
    staged.place(TID + 2)
    staged.aborted()
    assert blobs.revisions(1) == [TID]


def test_a_missing_revision_cannot_be_staged_again(blobs):
    staged = blobs.begin()
    assert not staged.add_revision(1, TID)
    assert not staged


def test_an_empty_blob_is_a_blob(blobs):
    commit(blobs, 1, TID, b"")
    assert Path(blobs.load(1, TID)).read_bytes() == b""


def test_a_missing_blob_is_a_key_error_that_names_the_file(blobs):
    def never(path):
        raise AssertionError("a shared directory downloads nothing")

    with pytest.raises(POSKeyError, match="No blob file at"):
        blobs.load(1, TID, never)
    with pytest.raises(POSKeyError, match="No blob file at"):
        blobs.open(1, TID, never)


def test_open_returns_an_ordinary_file_or_the_file_of_a_blob(blobs):
    commit(blobs, 1, TID, b"content")
    with blobs.open(1, TID) as file:
        assert not isinstance(file, BlobFile)
        assert file.read() == b"content"
    blob = Blob()
    with blobs.open(1, TID, blob=blob) as file:
        assert isinstance(file, BlobFile)
        assert file.blob is blob
        assert file.read() == b"content"


def test_forgetting_removes_a_revision_and_leaves_the_others(blobs):
    commit(blobs, 1, TID, b"old")
    commit(blobs, 1, TID + 1, b"new")
    assert blobs.forget([(1, TID), (2, TID)]) == 1
    assert blobs.revisions(1) == [TID + 1]


def test_forgetting_the_last_revision_removes_the_empty_directories(blobs):
    commit(blobs, 1, TID, b"content")
    # RelStorage locks in the directory of the blob and leaves the file there.
    Path(blobs.load(1, TID)).with_name(".lock").touch()
    blobs.forget([(1, TID)])
    assert tree(blobs.path) == set()


def test_an_open_file_stays_readable_when_its_revision_is_forgotten(blobs):
    commit(blobs, 1, TID, b"content")
    with blobs.open(1, TID) as file:
        blobs.forget([(1, TID)])
        assert file.read() == b"content"


def test_all_revisions_are_found(blobs):
    expected = {(0, TID), (1, TID), (1, TID + 1), (2**40 + 7, 1)}
    for oid, tid in expected:
        commit(blobs, oid, tid, b"content")
    staged = blobs.begin()
    staged.add(5, written(blobs.temporary_directory(), b"uncommitted"))
    assert set(blobs.all_revisions()) == expected
    assert blobs.revisions(1) == [TID, TID + 1]
    assert blobs.revisions(9) == []


def test_clearing_removes_every_committed_file(blobs):
    for oid in (0, 1, 2, 300, 2**40):
        commit(blobs, oid, TID, b"content")
    blobs.clear()
    assert tree(blobs.path) == set()


def test_no_room_is_an_error_that_says_where():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with (
        pytest.raises(OutOfSpace, match="in /dev"),
        room_needed("writing", "/dev/full"),
        open("/dev/full", "wb", 0) as full,
    ):
        full.write(b"content")


def test_placing_and_aborting_in_the_same_directories_at_once_loses_nothing(tmp_path):
    program = """
import sys
from relstorage.blobs import SharedBlobs
path, oid = sys.argv[1], int(sys.argv[2])
blobs = SharedBlobs(path, durable=False)
for tid in range(1, 400):
    staged = blobs.begin()
    source = blobs.temporary_directory() + '/source'
    with open(source, 'wb') as file:
        file.write(b'%d %d' % (oid, tid))
    staged.add(oid, source)
    staged.place(tid)
    if tid % 20:
        staged.aborted()
    else:
        staged.committed(tid)
        blobs.forget([(oid, tid - 20)])
blobs.close()
"""
    command = [sys.executable, "-c", program, str(tmp_path / "blobs")]
    processes = [subprocess.Popen([*command, str(oid)]) for oid in (1, 2, 3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    blobs = SharedBlobs(str(tmp_path / "blobs"))
    assert set(blobs.all_revisions()) == {(1, 380), (2, 380), (3, 380)}
    assert Path(blobs.load(2, 380)).read_bytes() == b"2 380"
