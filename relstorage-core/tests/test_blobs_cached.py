"""A local cache of blobs that a database keeps."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from ZODB.blob import Blob, BlobFile
from ZODB.POSException import POSKeyError

from relstorage.blobs import CachedBlobs
from relstorage.errors import LayoutError, OutOfSpace, TransientStorageError

TID = 0x03D167F919308700
LONG_AGO = 1_000_000_000
IN_THE_FUTURE = 4_000_000_000


class Downloads:
    """What a database hands out, and how often it was asked."""

    def __init__(self, content: bytes | None):
        self.content = content
        self.count = 0

    def __call__(self, path: str) -> bool:
        self.count += 1
        if self.content is None:
            return False
        Path(path).write_bytes(self.content)
        return True


def never(path: str) -> bool:
    raise AssertionError("must not be downloaded")


def stage(blobs, oid: int, content: bytes):
    source = Path(blobs.temporary_directory()) / "uncommitted"
    source.write_bytes(content)
    staged = blobs.begin()
    path = staged.add(oid, str(source))
    return staged, path


@pytest.fixture
def opening(tmp_path):
    """Opens caches, and closes them when the test ends."""
    with ExitStack() as stack:

        def open_cache(kind=CachedBlobs, path=tmp_path / "blobs", **options):
            return stack.enter_context(closing(kind(str(path), **options)))

        yield open_cache


@pytest.fixture
def blobs(opening):
    return opening()


@pytest.mark.parametrize(
    ("oid", "expected"),
    [(1, "1/0.040d310d25626133.blob"), (996, "996/0.040d310d25626133.blob"), (1003, "6/1.040d310d25626133.blob")],
)
def test_files_have_the_names_that_relstorage_gives_them(blobs, oid, expected):
    # Taken from a cache that RelStorage 4.3 made.
    assert blobs.load(oid, 0x040D310D25626133, Downloads(b"x")) == os.path.join(blobs.path, expected)
    assert Path(blobs.path, ".layout").read_text() == "zeocache"


def test_an_existing_cache_is_used(tmp_path, opening):
    (tmp_path / "6").mkdir()
    (tmp_path / ".layout").write_text("zeocache")
    (tmp_path / "6" / ".lock").write_text(" 4711\n")
    (tmp_path / "6" / "1.040d310d25626133.blob").write_bytes(b"cached long ago")
    blobs = opening(path=tmp_path)
    assert Path(blobs.load(1003, 0x040D310D25626133, never)).read_bytes() == b"cached long ago"
    assert list(blobs.all_revisions()) == [(1003, 0x040D310D25626133)]


@pytest.mark.parametrize("layout", ["bushy", "lawn"])
def test_a_directory_of_shared_blobs_is_refused(tmp_path, layout):
    (tmp_path / ".layout").write_text(layout)
    with pytest.raises(LayoutError, match="shared-blob-dir"):
        CachedBlobs(str(tmp_path))


def test_an_unmarked_directory_with_files_is_refused_and_not_marked(tmp_path):
    (tmp_path / "0x01").mkdir()
    with pytest.raises(LayoutError, match="not empty"):
        CachedBlobs(str(tmp_path))
    assert os.listdir(tmp_path) == ["0x01"]


def test_a_blob_is_downloaded_once(blobs):
    download = Downloads(b"content")
    assert Path(blobs.load(1, TID, download)).read_bytes() == b"content"
    assert Path(blobs.load(1, TID, download)).read_bytes() == b"content"
    assert download.count == 1


def test_a_blob_that_the_database_does_not_have_is_a_key_error(blobs):
    with pytest.raises(POSKeyError):
        blobs.load(1, TID, Downloads(None))
    with pytest.raises(POSKeyError):
        blobs.open(1, TID, Downloads(None))
    assert list(blobs.all_revisions()) == []


def test_an_empty_blob_is_a_blob(blobs):
    assert Path(blobs.load(1, TID, Downloads(b""))).read_bytes() == b""
    assert Path(blobs.load(1, TID, never)).read_bytes() == b""


def test_an_empty_blob_of_which_the_download_wrote_no_file_is_a_blob(blobs):
    assert Path(blobs.load(1, TID, lambda path: True)).read_bytes() == b""


def test_a_failed_download_leaves_nothing(blobs):
    def breaks(path):
        Path(path).write_bytes(b"half of")
        raise ConnectionError

    with pytest.raises(ConnectionError):
        blobs.load(1, TID, breaks)
    assert list(blobs.all_revisions()) == []
    assert os.listdir(blobs.temporary_directory()) == []


def test_a_download_that_does_not_fit_on_the_disk_says_so(blobs):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")

    def fills_the_disk(path):
        with open("/dev/full", "wb", 0) as full:
            full.write(b"content")
        return True

    with pytest.raises(OutOfSpace):
        blobs.load(1, TID, fills_the_disk)


def test_nobody_sees_a_file_before_it_is_complete(blobs):
    def slow(path):
        Path(path).write_bytes(b"half")
        assert list(blobs.all_revisions()) == []
        Path(path).write_bytes(b"half and half")
        return True

    assert Path(blobs.load(1, TID, slow)).read_bytes() == b"half and half"


def test_where_a_restart_of_the_machine_cannot_be_told_a_download_is_flushed_before_it_gets_its_name(
    opening, monkeypatch
):
    flushed = []

    def recording(path):
        flushed.append((path, list(blobs.all_revisions())))

    monkeypatch.setattr("relstorage.blobs.cached.current_boot", lambda: None)
    monkeypatch.setattr("relstorage.blobs.cached.sync_file", recording)
    blobs = opening()
    blobs.load(1, TID, Downloads(b"content"))
    ((path, seen),) = flushed
    assert path.startswith(blobs.temporary_directory())
    assert seen == []


@pytest.mark.parametrize(
    ("marker", "newest", "kept"),
    [
        ("an earlier boot", LONG_AGO, {1200}),
        # The clock of the machine may be wrong after the restart.
        ("an earlier boot", IN_THE_FUTURE, {1200}),
        # Without a marker the time must tell what was written before the restart.
        (None, LONG_AGO, {1200}),
        (None, IN_THE_FUTURE, {0, 600, 1200}),
    ],
)
def test_what_was_written_shortly_before_the_machine_restarted_is_dropped(opening, monkeypatch, marker, newest, kept):
    monkeypatch.setattr("relstorage.blobs.cached.current_boot", lambda: "this boot")
    blobs = opening()
    for age in (0, 600, 1200):
        os.utime(blobs.load(age, TID, Downloads(b"content")), (newest, newest - age))
    again = opening()
    assert len(list(again.all_revisions())) == 3
    boot = Path(blobs.path, ".boot")
    assert boot.read_text() == "this boot"
    boot.unlink() if marker is None else boot.write_text(marker)
    after = opening()
    assert set(after.all_revisions()) == {(age, TID) for age in kept}
    assert boot.read_text() == "this boot"


def test_a_cached_file_is_read_only(blobs):
    assert os.stat(blobs.load(1, TID, Downloads(b"content"))).st_mode & 0o222 == 0


def test_a_use_is_noted_without_changing_the_modification_time(blobs):
    path = blobs.load(1, TID, Downloads(b"content"))
    os.utime(path, (1000, 2000))
    blobs.load(1, TID, never)
    facts = os.stat(path)
    assert facts.st_atime > 1000000
    assert facts.st_mtime == 2000


def test_a_commit_moves_the_file_into_the_cache_without_a_second_copy(blobs):
    staged, path = stage(blobs, 1, b"content")
    before = os.stat(path).st_ino
    staged.prepare()
    staged.place(TID)
    staged.committed(TID)
    assert os.stat(blobs.load(1, TID, never)).st_ino == before
    assert os.listdir(blobs.temporary_directory()) == []


def test_a_blob_is_not_in_the_cache_before_the_commit(blobs):
    staged, _ = stage(blobs, 1, b"content")
    staged.prepare()
    staged.place(TID)
    assert list(blobs.all_revisions()) == []


def test_an_abort_leaves_nothing(blobs):
    staged, _ = stage(blobs, 1, b"content")
    staged.place(TID)
    staged.aborted()
    assert list(blobs.all_revisions()) == []
    assert os.listdir(blobs.temporary_directory()) == []


def test_a_commit_need_not_fill_the_cache(opening):
    blobs = opening(keep_committed=False)
    staged, _ = stage(blobs, 1, b"content")
    staged.committed(TID)
    assert list(blobs.all_revisions()) == []
    assert os.listdir(blobs.temporary_directory()) == []


def test_a_committed_blob_larger_than_the_cache_is_not_kept(opening):
    blobs = opening(max_size=100)
    small, _ = stage(blobs, 1, b"x" * 100)
    small.committed(TID)
    large, _ = stage(blobs, 2, b"x" * 101)
    large.committed(TID)
    assert list(blobs.all_revisions()) == [(1, TID)]


def test_a_cache_that_cannot_be_written_does_not_fail_the_commit(blobs, caplog):
    Path(blobs.path, "1").write_text("in the way")
    staged, _ = stage(blobs, 1, b"content")
    with caplog.at_level(logging.WARNING):
        staged.committed(TID)
    assert "it will be downloaded" in caplog.text
    assert os.listdir(blobs.temporary_directory()) == []


def test_an_undo_stages_nothing_because_the_database_copies(blobs):
    blobs.load(1, TID, Downloads(b"content"))
    staged = blobs.begin()
    assert not staged.add_revision(1, TID)
    assert not staged


def test_open_returns_an_ordinary_file_or_the_file_of_a_blob(blobs):
    with blobs.open(1, TID, Downloads(b"content")) as file:
        assert not isinstance(file, BlobFile)
        assert file.read() == b"content"
    blob = Blob()
    with blobs.open(1, TID, never, blob) as file:
        assert isinstance(file, BlobFile)
        assert file.blob is blob
        assert file.read() == b"content"


class Vanishing(CachedBlobs):
    """A cache whose files are removed just before they can be opened, some times."""

    times = 0

    def load(self, oid, tid, download):
        path = super().load(oid, tid, download)
        if self.times:
            self.times -= 1
            os.remove(path)
        return path


def test_open_downloads_again_what_was_removed_before_it_could_be_opened(opening):
    blobs = opening(Vanishing)
    blobs.times = 3
    download = Downloads(b"content")
    with blobs.open(1, TID, download) as file:
        assert file.read() == b"content"
    assert download.count == 4


def test_open_gives_up_when_files_vanish_all_the_time(opening):
    blobs = opening(Vanishing)
    blobs.times = 1000
    with pytest.raises(TransientStorageError, match="blob-cache-size"):
        blobs.open(1, TID, Downloads(b"content"))


def test_an_open_file_stays_readable_when_it_leaves_the_cache(blobs):
    with blobs.open(1, TID, Downloads(b"content")) as file:
        blobs.clear()
        assert file.read() == b"content"


def test_forgetting_drops_revisions(blobs):
    for tid in (TID, TID + 1):
        blobs.load(1, tid, Downloads(b"content"))
    assert blobs.forget([(1, TID), (2, TID)]) == 1
    assert blobs.revisions(1) == [TID + 1]


def test_revisions_of_objects_in_the_same_folder_are_told_apart(blobs):
    for oid in (1, 998, 1 + 11 * 997):
        blobs.load(oid, TID + oid, Downloads(b"content"))
    assert blobs.revisions(998) == [TID + 998]
    assert blobs.revisions(1) == [TID + 1]
    assert blobs.revisions(3) == []
    assert set(blobs.all_revisions()) == {(oid, TID + oid) for oid in (1, 998, 1 + 11 * 997)}
