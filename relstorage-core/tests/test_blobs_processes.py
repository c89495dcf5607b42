"""Many processes share one blob cache: downloads, cleaning and sudden death at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from relstorage.blobs import CachedBlobs
from relstorage.blobs.cleaning import clean

DOWNLOADS_SLOWLY = """
import os, sys, time
from relstorage.blobs import CachedBlobs
cache, log, ready, start = sys.argv[1:]

def download(path):
    with open(log, "a") as file:
        file.write("download\\n")
    with open(path, "wb") as file:
        for _ in range(10):
            file.write(b"x" * 100_000)
            file.flush()
            time.sleep(0.05)
    return True

blobs = CachedBlobs(cache)
open(ready, "w").close()
while not os.path.exists(start):
    time.sleep(0.01)
with blobs.open(5, 7, download) as file:
    assert file.read() == b"x" * 1_000_000
blobs.close()
"""

HANGS_IN_A_DOWNLOAD = """
import sys, time
from relstorage.blobs import CachedBlobs
cache, started = sys.argv[1:]

def download(path):
    with open(path, "wb") as file:
        file.write(b"half of the con")
        file.flush()
        open(started, "w").close()
        time.sleep(600)

CachedBlobs(cache).load(5, 7, download)
"""

READS_AT_RANDOM = """
import random, sys
from relstorage.blobs import CachedBlobs
cache, seed, external = sys.argv[1:]
chance = random.Random(int(seed))
blobs = CachedBlobs(cache, max_size=20_000, check_percent=10, keep_seconds=0,
                    external_cleaner=external == "True")
for number in range(1500):
    oid = chance.randrange(100)
    expected = b"%04d" % oid * 250

    def download(path):
        with open(path, "wb") as file:
            file.write(expected)
        return True

    if number % 10:
        with blobs.open(oid, 7, download) as file:
            assert file.read() == expected, oid
    else:
        source = blobs.temporary_directory() + "/source"
        with open(source, "wb") as file:
            file.write(expected)
        staged = blobs.begin()
        staged.add(oid, source)
        staged.place(7)
        staged.committed(7)
blobs.close()
"""


def python(program: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)])


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"waited for a minute for {path}"
        time.sleep(0.01)


def test_a_blob_that_many_processes_want_at_once_is_downloaded_once(tmp_path):
    log, start = tmp_path / "log", tmp_path / "start"
    ready = [tmp_path / f"ready{number}" for number in range(4)]
    processes = [python(DOWNLOADS_SLOWLY, tmp_path / "blobs", log, each, start) for each in ready]
    for each in ready:
        wait_for(each)
    start.touch()
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    assert log.read_text() == "download\n"


@pytest.fixture
def hanging_download(tmp_path):
    """A process that is in the middle of downloading blob 5 of tid 7."""
    started = tmp_path / "started"
    process = python(HANGS_IN_A_DOWNLOAD, tmp_path / "blobs", started)
    try:
        wait_for(started)
        yield process
    finally:
        process.kill()
        process.wait()


def downloads(path: str) -> bool:
    Path(path).write_bytes(b"the whole content")
    return True


def test_a_process_killed_in_a_download_neither_blocks_others_nor_leaves_files(tmp_path, hanging_download):
    hanging_download.send_signal(signal.SIGKILL)
    hanging_download.wait()
    # Were the dead process' lock still held, this would take longer than any test may.
    with closing(CachedBlobs(str(tmp_path / "blobs"), patience=86400)) as blobs:
        assert Path(blobs.load(5, 7, downloads)).read_bytes() == b"the whole content"
        assert os.listdir(blobs.temporary_directory()) == []
        names = {each.name for each in (tmp_path / "blobs").rglob("*") if each.is_file()}
        own_lock = os.path.basename(f"{blobs.temporary_directory()}.lock")
        assert names == {".layout", ".boot", ".lock", "0.0000000000000007.blob", own_lock}


def test_a_download_that_hangs_elsewhere_is_not_waited_for_without_end(tmp_path, hanging_download):
    with closing(CachedBlobs(str(tmp_path / "blobs"), patience=0.1)) as blobs:
        assert Path(blobs.load(5, 7, downloads)).read_bytes() == b"the whole content"
    assert hanging_download.poll() is None


@pytest.mark.parametrize("external", [False, True])
def test_readers_writers_and_cleaners_at_once_see_only_whole_files_and_the_bound_holds(tmp_path, external):
    cache = tmp_path / "blobs"
    seeds = [int.from_bytes(os.urandom(4), "big") for _ in range(3)]
    print("seeds", seeds)
    processes = [python(READS_AT_RANDOM, cache, seed, external) for seed in seeds]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert clean(str(cache), 18_000, keep_seconds=0).size <= 18_000
    with closing(CachedBlobs(str(cache))) as blobs:
        for oid, tid in blobs.all_revisions():
            with blobs.open(oid, tid, lambda path: False) as file:
                assert file.read() == b"%04d" % oid * 250
        assert os.listdir(blobs.temporary_directory()) == []
