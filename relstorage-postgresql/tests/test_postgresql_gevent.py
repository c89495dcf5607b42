"""Every driver under gevent: in a process that is monkey-patched, waiting for the server stops one greenlet alone.

All that a program of these tests says to the server goes through a relay, which is a greenlet of the same program. A
driver that waited in any other way than gevent's would keep the relay from running, and wait for ever.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from postgresql_drivers import DRIVERS, usable_driver
from postgresql_target import Postgres

from relstorage_postgresql import dsn

RELAY = '''
from gevent import monkey
monkey.patch_all()

import faulthandler, json, sys

import gevent
from gevent.server import StreamServer
from gevent.socket import create_connection

faulthandler.dump_traceback_later(100, exit=True)
options = json.loads(sys.argv[1])
keep_history = options.pop("keep_history", False)
host, port = options.pop("server")


def pass_on(source, target):
    try:
        while data := source.recv(4096):
            target.sendall(data)
    except OSError:
        pass
    finally:
        target.close()
        source.close()


def relay(client, address):
    server = create_connection((host, port))
    gevent.joinall([gevent.spawn(pass_on, client, server), gevent.spawn(pass_on, server, client)])


listener = StreamServer(("127.0.0.1", 0), relay)
listener.start()
options["dsn"] = options["dsn"].format(port=listener.server_port)
ticks = 0


def tick():
    global ticks
    while True:
        gevent.sleep(0.005)
        ticks += 1


gevent.spawn(tick)
'''

WAITING = '''
from relstorage.sql import Statement
from relstorage_postgresql import dsn
from relstorage_postgresql.drivers.settings import SessionSettings
from relstorage.plugins import installed

backend = installed().load("relstorage.backends", "postgresql")
driver = installed().driver_for(backend, options["driver"])
settings = SessionSettings(dsn.parse(options["dsn"]), "the database", schema=options["schema"], lock_timeout=60.0)
holder, waiter, watcher = [driver.open_session(settings, "store") for _ in range(3)]
holder.script("CREATE TABLE counter (value bigint)", "INSERT INTO counter VALUES (0)")

def increase(session):
    session.begin_write()
    session.run(Statement("increase", "UPDATE counter SET value = value + 1", (), ()))
    session.run(Statement("increase", "UPDATE counter SET value = value + 1", (), ()))

def increase_and_commit(session):
    increase(session)
    session.commit()

increase(holder)
waiting = gevent.spawn(increase_and_commit, waiter)
BLOCKED = """SELECT count(*) FROM pg_locks WHERE NOT granted AND transactionid IN (
    SELECT transactionid FROM pg_locks WHERE granted AND pid IN (
        SELECT pid FROM pg_locks WHERE relation = 'counter'::regclass))"""
while not watcher.script(BLOCKED)[0][0]:
    gevent.sleep(0.005)
before = ticks
while ticks < before + 20:
    watcher.script("SELECT 1")
holder.commit()
waiting.get()
print(watcher.script("SELECT value FROM counter")[0][0])
'''

WORKING = '''
import transaction, ZODB, relstorage
from BTrees.Length import Length
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob

storage = relstorage.open("postgresql", keep_history=keep_history, **options)
db = ZODB.DB(storage)
with db.transaction() as connection:
    connection.root()["length"] = Length()
    connection.root()["own"] = [PersistentMapping() for _ in range(3)]
    connection.root()["large"] = "x" * 3_000_000
    connection.root()["blob"] = Blob(b"y" * 3_000_000)

def work(number):
    manager = transaction.TransactionManager(explicit=True)
    connection = db.open(manager)
    for _ in range(10):
        with manager:
            connection.root()["length"].change(1)
            connection.root()["own"][number]["value"] = "z" * 20_000
        connection.cacheMinimize()
        with manager:
            assert len(connection.root()["large"]) == 3_000_000
            with connection.root()["blob"].open() as file:
                assert len(file.read()) == 3_000_000
    connection.close()

gevent.joinall([gevent.spawn(work, number) for number in range(3)], raise_error=True)
with db.transaction() as connection:
    print(connection.root()["length"]())
db.pack()
db.close()
'''


@pytest.fixture
def target(postgres_address):
    made = Postgres()
    made.address = postgres_address
    return made


@pytest.fixture(params=DRIVERS)
def run(request, target, missing, tmp_path):
    """Return a function that runs a program with a driver and returns what it prints."""
    pytest.importorskip("gevent", reason="gevent is not installed: pip install 'relstorage-postgresql[gevent]'")
    usable_driver(request.param, missing)
    database = target.new_database(tmp_path)
    parameters = dsn.parse(target.address)
    server = [parameters["host"], int(parameters.get("port", 5432))]
    # TLS is the server's offer to libpq, and not what is tested here.
    through = dsn.format({**parameters, "host": "127.0.0.1", "port": "{port}", "sslmode": "disable"})

    def run(program, **options):
        options = {**database, **options, "dsn": through, "driver": request.param, "server": server}
        command = [sys.executable, "-c", RELAY + program, json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield run
    target.remove_database(database)


def test_a_greenlet_that_waits_for_a_lock_lets_the_others_run(run):
    assert run(WAITING) == "4\n"


@pytest.mark.parametrize("keep_history", [False, True], ids=["free", "history"])
def test_greenlets_commit_and_load_at_the_same_time(run, keep_history, tmp_path):
    assert run(WORKING, keep_history=keep_history, blob_dir=str(tmp_path / "blobs")) == "30\n"
