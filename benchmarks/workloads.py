"""The workloads that one process can do. Each is a pair of functions: *prepare* runs once per database and is never
timed, *run* is called once per round and times only the operation itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subject import NotAvailable, Stopwatch, Subject, WrongResult, leaves, record_count, tree
from ZODB.blob import Blob
from ZODB.Connection import Connection
from ZODB.FileStorage import FileStorage
from ZODB.interfaces import IBlobStorage, IMVCCStorage

Step = Callable[[Subject], Any]
Run = Callable[[Subject, Stopwatch], None]


@dataclass(frozen=True)
class Workload:
    """One thing to measure; *fresh* asks for a new, empty database in every round."""

    run: Run
    unit: str
    prepare: Step | None = None
    fresh: bool = False


def populate(subject: Subject) -> None:
    subject.populate("objects", subject.sizes.objects)


def open_existing(subject: Subject, watch: Stopwatch) -> None:
    """Configuration text to loaded root object, in a process that has imported everything."""
    for _ in range(subject.sizes.opens):
        with watch():
            db = subject.open_database()
            connection = db.open()
            connection.root()["objects"]
        connection.close()
        db.close()


def open_process(subject: Subject, watch: Stopwatch) -> None:
    """The start of an interpreter to the loaded root object, with all imports."""
    worker = str(Path(__file__).with_name("worker.py"))
    path = Path(subject.directory, "open.conf")
    path.write_text(subject.config)
    with watch():
        process = subprocess.Popen([sys.executable, worker, "--open", str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        line = process.stdout.readline()
    process.communicate()
    if line != b"opened\n":
        raise WrongResult(f"a new process could not open the database (exit status {process.returncode})")


def add(subject: Subject, watch: Stopwatch) -> None:
    count = subject.sizes.objects
    with subject.database() as db, subject.connection(db) as connection:
        connection.root()["added"] = tree(subject.payloads(count))
        with watch(count):
            connection.transaction_manager.commit()


def update(subject: Subject, watch: Stopwatch) -> None:
    with subject.database() as db, subject.connection(db) as connection:
        objects = leaves(connection, "objects")
        for each in objects:
            each.data = subject.data()
        with watch(len(objects)):
            connection.transaction_manager.commit()


def activate(objects: list, watch: Stopwatch) -> None:
    with watch(len(objects)):
        for each in objects:
            each._p_activate()


def cold(subject: Subject, watch: Stopwatch) -> None:
    """Every cache of the process and of the disk directory is empty."""
    subject.empty_cache_directory()
    with subject.database() as db, subject.connection(db) as connection:
        activate(leaves(connection, "objects"), watch)


def prefetch(subject: Subject, watch: Stopwatch) -> None:
    subject.empty_cache_directory()
    with subject.database() as db, subject.connection(db) as connection:
        # ZODB puts an adapter, which always has it, before a storage that does not do MVCC itself.
        if not hasattr(connection._storage if IMVCCStorage.providedBy(db.storage) else db.storage, "prefetch"):
            raise NotAvailable("the storage has no prefetch")
        objects = leaves(connection, "objects")
        with watch(len(objects)):
            connection.prefetch(objects)
            for each in objects:
                each._p_activate()


def fill(connection: Connection) -> list:
    objects = leaves(connection, "objects")
    for each in objects:
        each._p_activate()
    return objects


def warm(subject: Subject, watch: Stopwatch) -> None:
    """An other connection of the process has read everything; this one has an empty object cache."""
    with subject.database() as db, subject.connection(db) as first:
        fill(first)
        with subject.connection(db) as second:
            activate(leaves(second, "objects"), watch)


def hot(subject: Subject, watch: Stopwatch) -> None:
    """A new transaction of a connection that has all objects in its object cache."""
    with subject.database() as db, subject.connection(db) as connection:
        objects = fill(connection)
        connection.transaction_manager.abort()
        with watch(len(objects)):
            connection.transaction_manager.begin()
            for each in objects:
                len(each.data)


def storage_load_cached(subject: Subject, watch: Stopwatch) -> None:
    """``load`` of a connection's storage, for states that the process has read before."""
    passes = subject.sizes.load_passes
    with subject.database() as db, subject.connection(db) as connection:
        oids = [each._p_oid for each in fill(connection)]
        load = connection._storage.load
        with watch(len(oids) * passes):
            for _ in range(passes):
                for oid in oids:
                    load(oid)


def storage_load_cold(subject: Subject, watch: Stopwatch) -> None:
    """``load`` of a connection's storage, every cache empty: what ``cold`` costs without ZODB's own work."""
    subject.empty_cache_directory()
    with subject.database() as db, subject.connection(db) as connection:
        oids = [each._p_oid for each in leaves(connection, "objects")]
        load = connection._storage.load
        with watch(len(oids)):
            for oid in oids:
                load(oid)


def commit_one(subject: Subject, watch: Stopwatch) -> None:
    with subject.database() as db, subject.connection(db) as connection:
        objects = fill(connection)
        manager = connection.transaction_manager
        with watch.many() as samples:
            for number in range(subject.sizes.commits):
                manager.begin()
                objects[number % len(objects)].data = subject.data()
                start = time.perf_counter()
                manager.commit()
                samples.append(time.perf_counter() - start)


def empty_transaction(subject: Subject, watch: Stopwatch) -> None:
    """Begin (which polls) and abort, with a connection that has something loaded."""
    count = subject.sizes.transactions
    with subject.database() as db, subject.connection(db, explicit=True) as connection:
        fill(connection)
        manager = connection.transaction_manager
        manager.abort()
        with watch(count):
            for _ in range(count):
                manager.begin()
                manager.abort()
        manager.begin()


def make_garbage(subject: Subject) -> None:
    """Store the pack objects, then unlink every second one."""
    subject.populate("packed", subject.sizes.pack_objects)
    with subject.database() as db, subject.connection(db) as connection:
        for inner in connection.root()["packed"].items:
            inner.items = inner.items[::2]
        connection.transaction_manager.commit()
    time.sleep(0.1)  # the pack time must be later than the commit, on clocks with coarse ticks too


def pack(subject: Subject, watch: Stopwatch) -> None:
    """The first pack of a database; afterwards all that is reachable must load, and nothing else may remain."""
    with subject.database() as db:
        with watch():
            db.pack()
        with subject.connection(db) as connection:
            kept = leaves(connection, "packed")
            for each in kept:
                if len(each.data) != subject.sizes.size:
                    raise WrongResult("an object changed in the pack")
            expected = len(kept) + len(connection.root()["packed"].items) + 2
        found = record_count(db.storage)
        if found != expected:
            raise WrongResult(f"{found} records remain after the pack, {expected} are reachable")


def make_source(subject: Subject) -> None:
    """Write a FileStorage of many transactions with ten objects each."""
    source = os.path.join(subject.directory, "source.fs")
    config = f"<zodb>\n<filestorage>\npath {source}\n</filestorage>\n</zodb>"
    writer = Subject(config, subject.directory, subject.cache, subject.sizes)
    with writer.database() as db, writer.connection(db) as connection:
        for number in range(subject.sizes.convert_transactions):
            connection.root()[f"tree-{number}"] = tree(writer.payloads(10))
            connection.transaction_manager.commit()


def convert(subject: Subject, watch: Stopwatch) -> None:
    """``copyTransactionsFrom`` into an empty storage; per transaction."""
    count = subject.sizes.convert_transactions
    source = FileStorage(os.path.join(subject.directory, "source.fs"), read_only=True)
    destination = subject.open_storage()
    try:
        if not hasattr(destination, "copyTransactionsFrom"):
            raise NotAvailable("the storage has no copyTransactionsFrom")
        with watch(count):
            destination.copyTransactionsFrom(source)
    finally:
        destination.close()
        source.close()
    with subject.database() as db, subject.connection(db) as connection:
        copied = sum(len(leaves(connection, f"tree-{number}")) for number in range(count))
    if copied != 10 * count:
        raise WrongResult(f"{copied} objects arrived, {10 * count} were sent")


def store_blobs(subject: Subject, watch: Stopwatch, name: str, count: int, size: int) -> None:
    """Commit blobs whose files are already written; the upload is the commit."""
    with subject.database() as db, subject.connection(db) as connection:
        if not IBlobStorage.providedBy(db.storage):
            raise NotAvailable("the storage has no blobs as configured")
        blobs = []
        for _ in range(count):
            blob = Blob()
            with blob.open("w") as file:
                file.write(subject.random.randbytes(size))
            blobs.append(blob)
        connection.root()[name] = blobs
        with watch(count):
            connection.transaction_manager.commit()


def read_blobs(subject: Subject, watch: Stopwatch, name: str, count: int, size: int) -> None:
    subject.empty_cache_directory()
    with subject.database() as db, subject.connection(db) as connection:
        blobs = connection.root()[name]
        read = 0
        with watch(count):
            for blob in blobs:
                with blob.open("r") as file:
                    read += len(file.read())
        if read != count * size:
            raise WrongResult(f"{read} bytes of blobs came back, {count * size} were stored")


def blob_upload(subject: Subject, watch: Stopwatch) -> None:
    store_blobs(subject, watch, "large", 1, subject.sizes.blob_size)


def blob_upload_small(subject: Subject, watch: Stopwatch) -> None:
    store_blobs(subject, watch, "small", subject.sizes.small_blobs, subject.sizes.small_blob_size)


def prepare_download(subject: Subject) -> None:
    blob_upload(subject, Stopwatch())


def prepare_download_small(subject: Subject) -> None:
    blob_upload_small(subject, Stopwatch())


def blob_download(subject: Subject, watch: Stopwatch) -> None:
    read_blobs(subject, watch, "large", 1, subject.sizes.blob_size)


def blob_download_small(subject: Subject, watch: Stopwatch) -> None:
    read_blobs(subject, watch, "small", subject.sizes.small_blobs, subject.sizes.small_blob_size)


WORKLOADS = {
    "open": Workload(open_existing, "open", populate),
    "open_process": Workload(open_process, "process", populate),
    "add": Workload(add, "object"),
    "update": Workload(update, "object", populate),
    "cold": Workload(cold, "object", populate),
    "prefetch": Workload(prefetch, "object", populate),
    "warm": Workload(warm, "object", populate),
    "hot": Workload(hot, "object", populate),
    "storage_load_cold": Workload(storage_load_cold, "call", populate),
    "storage_load_cached": Workload(storage_load_cached, "call", populate),
    "commit_one": Workload(commit_one, "commit", populate),
    "empty_transaction": Workload(empty_transaction, "transaction", populate),
    "pack": Workload(pack, "pack", make_garbage, fresh=True),
    "convert": Workload(convert, "transaction", make_source, fresh=True),
    "blob_upload": Workload(blob_upload, "blob"),
    "blob_upload_small": Workload(blob_upload_small, "blob"),
    "blob_download": Workload(blob_download, "blob", prepare_download),
    "blob_download_small": Workload(blob_download_small, "blob", prepare_download_small),
}
