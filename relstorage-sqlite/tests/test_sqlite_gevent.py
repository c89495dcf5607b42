"""The driver for gevent: in a process that is monkey-patched, a long read lets other greenlets run."""

from __future__ import annotations

import subprocess
import sys

import pytest

import relstorage
from relstorage.errors import PluginUnavailable

PROGRAM = """
from gevent import monkey
monkey.patch_all()
import sys, gevent, transaction, ZODB, relstorage
from persistent.mapping import PersistentMapping

storage = relstorage.open("sqlite", data_dir=sys.argv[1], keep_history=False, driver="gevent sqlite3",
                          gevent_yield_interval=10, cache_local_mb=0)
db = ZODB.DB(storage)
with db.transaction() as connection:
    connection.root()["many"] = [PersistentMapping() for _ in range(2000)]
ticks = []

def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0)

other = gevent.spawn(tick)
gevent.sleep(0)
before = len(ticks)
reader = storage.new_instance()
reader.poll_invalidations()
reader.prefetch([number.to_bytes(8, "big") for number in range(2000)])
print(len(ticks) - before)
other.kill()
reader.release()
db.close()
"""


@pytest.fixture(autouse=True)
def gevent():
    reason = "the driver for gevent needs gevent: pip install 'relstorage-sqlite[gevent]'"
    return pytest.importorskip("gevent", reason=reason)


def test_other_greenlets_run_during_a_query(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "data")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_it_is_refused_where_nothing_is_patched(tmp_path):
    with pytest.raises(PluginUnavailable, match="monkey-patched"):
        relstorage.open("sqlite", data_dir=tmp_path / "data", driver="gevent sqlite3")


def test_the_ordinary_driver_is_chosen_where_nothing_is_patched(tmp_path):
    storage = relstorage.open("sqlite", data_dir=tmp_path / "data")
    assert storage.database.adapter.driver == "sqlite.sqlite3"
    storage.close()
