"""The blob cache stays within its bounds, and dead processes' files go."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from relstorage.blobs import CachedBlobs
from relstorage.blobs.clean import main
from relstorage.blobs.cleaning import STILL_TOO_LARGE, BackgroundCleaner, clean
from relstorage.blobs.files import try_lock
from relstorage.blobs.scratch import ABANDONED_AFTER, Scratch, sweep
from relstorage.errors import LayoutError

LONG_AGO = 1_000_000_000


@pytest.fixture
def cache(tmp_path):
    """A cache of 100 blobs of 100 bytes, oid 0 used least recently and oid 99 most recently, all long ago."""
    blobs = CachedBlobs(str(tmp_path / "blobs"))

    def download(path):
        Path(path).write_bytes(b"x" * 100)
        return True

    for oid in range(100):
        os.utime(blobs.load(oid, 1, download), (LONG_AGO + oid, LONG_AGO))
    yield blobs
    blobs.close()


def cached_oids(blobs) -> set[int]:
    return {oid for oid, _ in blobs.all_revisions()}


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.02)


def test_the_least_recently_used_files_are_removed(cache):
    result = clean(cache.path, 4000)
    assert result == (4000, 60, 6000)
    assert cached_oids(cache) == set(range(60, 100))


def test_a_file_that_was_used_again_stays(cache):
    cache.load(0, 1, lambda path: False)
    clean(cache.path, 4000)
    assert cached_oids(cache) == {0, *range(61, 100)}


def test_as_few_files_are_removed_as_make_the_rest_fit(cache):
    assert clean(cache.path, 9950).removed_files == 1
    assert cached_oids(cache) == set(range(1, 100))


def test_nothing_is_removed_from_a_cache_that_fits(cache):
    assert clean(cache.path, 10000) == (10000, 0, 0)


def test_files_used_just_now_are_spared(cache):
    for oid in range(90):
        cache.load(oid, 1, lambda path: False)
    assert clean(cache.path, 4000, keep_seconds=3600) == (9000, 10, 1000)
    assert cached_oids(cache) == set(range(90))


def test_only_blobs_are_counted_and_removed(cache):
    notes = Path(cache.path, "1", "notes.txt")
    notes.write_bytes(b"x" * 100000)
    os.utime(notes, (LONG_AGO - 1, LONG_AGO - 1))
    clean(cache.path, 0)
    assert cached_oids(cache) == set()
    assert notes.exists()


def test_partial_downloads_of_older_programs_are_removed_when_they_are_old(cache):
    old, young = Path(cache.path, "1", "0.01.blob.tmp"), Path(cache.path, "1", "0.02.blob.dl")
    old.touch()
    young.touch()
    os.utime(old, (LONG_AGO, LONG_AGO))
    clean(cache.path, 10000)
    assert not old.exists()
    assert young.exists()


def test_a_file_that_is_used_while_the_cleaner_works_is_spared(cache):
    def uses_blob_7():
        cache.load(7, 1, lambda path: False)
        return False

    clean(cache.path, 0, stopped=uses_blob_7)
    assert cached_oids(cache) == {7}


def test_cleaning_also_removes_what_dead_processes_left(cache):
    dead = Scratch(os.path.join(cache.path, "tmp"))
    left = Path(dead.new_file())
    left.touch()
    dead.close()
    clean(cache.path, 10000)
    assert not left.exists()


@pytest.mark.parametrize("layout", ["bushy", None])
def test_a_directory_that_is_no_cache_is_never_cleaned(cache, layout):
    marker = Path(cache.path, ".layout")
    marker.unlink()
    if layout is not None:
        marker.write_text(layout)
    with pytest.raises(LayoutError):
        clean(cache.path, 0)
    assert cached_oids(cache) == set(range(100))


def test_one_process_at_a_time_cleans(cache):
    held = try_lock(os.path.join(cache.path, "check_size.lock"))
    assert clean(cache.path, 0) is None
    held.close()
    assert clean(cache.path, 0) == (0, 100, 10000)


def test_cleaning_stops_when_it_is_told_to(cache):
    answers = iter([False, False, True])
    assert clean(cache.path, 0, stopped=lambda: next(answers)) == (9800, 2, 200)
    assert cached_oids(cache) == set(range(2, 100))


def test_the_program_cleans(cache):
    assert main([cache.path, "4000"]) == 0
    assert cached_oids(cache) == set(range(60, 100))


def test_the_program_tells_when_too_much_is_in_use(cache):
    cache.load(99, 1, lambda path: False)
    assert main([cache.path, "0", "--keep-seconds", "3600"]) == STILL_TOO_LARGE
    assert cached_oids(cache) == {99}


def test_the_program_refuses_a_directory_that_is_no_cache(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path), "0"])
    assert exit_.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("external", [False, True])
def test_a_cache_that_is_too_large_is_cleaned_when_it_is_opened(cache, external):
    blobs = CachedBlobs(cache.path, max_size=5000, check_percent=20, external_cleaner=external)
    wait_until(lambda: cached_oids(blobs) == set(range(60, 100)))
    blobs.close()


@pytest.mark.parametrize("committing", [False, True])
def test_a_cache_is_cleaned_after_enough_was_written(cache, committing):
    blobs = CachedBlobs(cache.path, max_size=10000, check_percent=10, keep_seconds=0)
    wait_until(lambda: cached_oids(blobs) == set(range(10, 100)))
    for oid in range(100, 130):
        source = Path(blobs.temporary_directory(), "source")
        source.write_bytes(b"y" * 100)
        if committing:
            staged = blobs.begin()
            staged.add(oid, str(source))
            staged.committed(1)
        else:
            blobs.load(oid, 1, lambda path, source=source: bool(source.replace(path)))
    wait_until(lambda: len(cached_oids(blobs)) == 90)
    assert cached_oids(blobs) == set(range(40, 130))
    blobs.close()


def test_a_cache_of_files_in_use_is_cleaned_later(cache):
    for oid in range(100):
        os.utime(cache.load(oid, 1, lambda path: False))
    blobs = CachedBlobs(cache.path, max_size=5000, check_percent=20, keep_seconds=1.5)
    wait_until(lambda: len(cached_oids(blobs)) == 40)
    blobs.close()


def test_closing_ends_the_thread(cache):
    before = set(threading.enumerate())
    blobs = CachedBlobs(cache.path, max_size=5000)
    assert set(threading.enumerate()) - before
    blobs.close()
    assert set(threading.enumerate()) == before


def test_an_unbounded_cache_has_no_thread(cache):
    before = set(threading.enumerate())
    blobs = CachedBlobs(cache.path)
    assert set(threading.enumerate()) == before
    blobs.close()


def test_a_cleaner_survives_a_failure(cache, caplog):
    marker = Path(cache.path, ".layout")
    marker.write_text("broken")
    cleaner = BackgroundCleaner(cache.path, 5000, 20)
    wait_until(lambda: "Could not clean" in caplog.text)
    marker.write_text("zeocache")
    cleaner.written(5000)
    wait_until(lambda: len(cached_oids(cache)) == 40)
    cleaner.close()


# --- uncommitted files


def test_each_process_has_its_own_temporary_directory(tmp_path):
    first, second = Scratch(str(tmp_path)), Scratch(str(tmp_path))
    assert first.path() == first.path() != second.path()
    assert os.listdir(first.path()) == []
    first.close()
    second.close()


def test_closing_removes_an_empty_temporary_directory(tmp_path):
    scratch = Scratch(str(tmp_path))
    scratch.path()
    scratch.close()
    assert os.listdir(tmp_path) == []


def test_closing_leaves_files_that_may_be_in_use_to_the_next_process(tmp_path):
    scratch = Scratch(str(tmp_path))
    left = Path(scratch.new_file())
    left.touch()
    scratch.close()
    assert left.exists()
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_files_of_a_live_process_stay(tmp_path):
    scratch = Scratch(str(tmp_path))
    used = Path(scratch.new_file())
    used.touch()
    sweep(str(tmp_path), now=time.time() + 100 * ABANDONED_AFTER)
    assert used.exists()
    scratch.close()


def test_files_of_a_killed_process_go_when_the_next_one_needs_a_directory(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from relstorage.blobs.scratch import Scratch\n"
        "path = Scratch(sys.argv[1]).path()\n"
        "os.mkdir(path + '/savepoints')\n"
        "open(path + '/savepoints/uncommitted', 'w').close()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    assert list(tmp_path.glob("*/savepoints/uncommitted"))
    scratch = Scratch(str(tmp_path))
    scratch.path()
    assert not list(tmp_path.glob("*/savepoints/uncommitted"))
    assert len(os.listdir(tmp_path)) == 2
    scratch.close()


def test_a_dead_directory_of_another_host_goes_only_after_a_week(tmp_path):
    (tmp_path / "elsewhere@1-abc").mkdir()
    (tmp_path / "elsewhere@1-abc.lock").touch()
    (tmp_path / "elsewhere@1-abc" / "uncommitted").touch()
    sweep(str(tmp_path))
    assert len(os.listdir(tmp_path)) == 2
    sweep(str(tmp_path), now=time.time() + ABANDONED_AFTER + 60)
    assert os.listdir(tmp_path) == []


def test_a_host_whose_name_begins_with_ours_is_another_host(tmp_path):
    (tmp_path / f"{socket.gethostname()}-2@1-abc").mkdir()
    (tmp_path / f"{socket.gethostname()}-2@1-abc.lock").touch()
    sweep(str(tmp_path))
    assert len(os.listdir(tmp_path)) == 2


def test_loose_files_of_other_programs_go_only_after_a_week(tmp_path):
    (tmp_path / "BUCabc").touch()
    (tmp_path / "savepoints").mkdir()
    (tmp_path / "savepoints" / "data").touch()
    sweep(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["BUCabc", "savepoints"]
    sweep(str(tmp_path), now=time.time() + ABANDONED_AFTER + 60)
    assert os.listdir(tmp_path) == []


def test_a_temporary_directory_that_was_taken_for_abandoned_comes_back(tmp_path):
    scratch = Scratch(str(tmp_path))
    first = scratch.path()
    os.rmdir(first)
    os.remove(f"{first}.lock")
    assert os.path.isdir(scratch.path())
    scratch.close()
