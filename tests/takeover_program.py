"""What is done to one database in turns by RelStorage and by this project. The same file runs in both environments, and
gets the same configuration, because that is what users do.

    python takeover_program.py zodb.conf '[["make"], ["dump"]]'

carries out the commands, which are functions of this module, and prints a JSON list of what they return. It uses only
what Python 3.7 and ZODB 5 have.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time

import transaction
import ZODB.config
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob, is_blob_record
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import POSKeyError
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64, z64

NEW_OBJECTS = 200
#: More than one piece of a blob, with the default options.
LARGE = 4_500_000


class Interrupted(Exception):
    """Stands for whatever ended a prepack half-way."""


# --- commands: each gets an open database and the words after its name, and returns something for JSON


def make(db):
    """Fill an empty database with all that collects in one over the years."""
    connection = db.open()
    root = connection.root()
    root["title"] = "Müller's library"
    commit("Begin", user="müller")
    root["tree"] = OOBTree({f"key-{number:03}": PersistentMapping(number=number) for number in range(300)})
    root["lost"] = PersistentMapping(child=PersistentMapping(child=PersistentMapping(name="grandchild")))
    root["orphan"] = PersistentMapping(name="orphan")
    commit("Import", user="admin", source="catalogue", count=300)
    root["blobs"] = PersistentMapping(
        small=Blob(b"small"), large=Blob(content("large", LARGE)), empty=Blob(b""), changed=Blob(b"before")
    )
    commit("Scan")
    for number in range(0, 300, 30):
        root["tree"][f"key-{number:03}"]["number"] = -number
    commit("Correct")
    write_blob(root["blobs"]["changed"], b"after")
    commit("Change a blob")
    orphan = root["orphan"]
    del root["lost"], root["orphan"]
    commit("Lose a branch")
    oid, tid = orphan._p_oid, orphan._p_serial
    connection.close()
    delete(db, oid, tid)
    if db.supportsUndo():
        rename(db, "A mistake")
        undo(db, "Rename to A mistake")
    rename(db, "Library")


def make_past(db):
    """Have a past, which is packed where there is history."""
    connection = db.open()
    root = connection.root()
    root["past"] = PersistentMapping(number=0, lost=PersistentMapping(name="past"), blob=Blob(b"past"))
    commit("Past: begin", user="founder")
    root["past"]["number"] = 1
    write_blob(root["past"]["blob"], b"less past")
    commit("Past: change")
    del root["past"]["lost"]
    commit("Past: lose")
    connection.close()
    db.pack()


def undo_creation(db):
    """Undo the transaction that made an object."""
    connection = db.open()
    mistakes = connection.root()["mistakes"] = PersistentMapping()
    commit("Get ready for mistakes")
    mistakes["first"] = PersistentMapping(name="mistake", blob=Blob(b"mistake"))
    commit("Create by mistake")
    connection.close()
    undo(db, "Create by mistake")


def split_large_objects(db):
    """Have RelStorage 2.1 put a blob of this program into several large objects, as it does with one beyond 2 GiB."""
    mover = type(db.storage._adapter.mover)
    assert mover.postgresql_blob_chunk_maxsize > LARGE
    mover.postgresql_blob_chunk_maxsize = 1 << 20


def change_large_blob(db):
    """Change a blob of several pieces, and undo that where there is history: two revisions have one content then."""
    connection = db.open()
    write_blob(connection.root()["blobs"]["large"], content("changed", LARGE))
    commit("Change the large blob")
    connection.close()
    if db.supportsUndo():
        undo(db, "Change the large blob")


def prepack(db):
    """Find garbage, and leave it for a pack that nobody starts."""
    db.storage.pack(time.time(), referencesf, prepack_only=True)


def interrupt_prepack(db):
    """Have a prepack end half-way, as when its process dies."""
    left = [20]

    def until_interrupted(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted
        return referencesf(*arguments)

    try:
        db.storage.pack(time.time(), until_interrupted, prepack_only=True)
    except Interrupted:
        return
    raise AssertionError("the prepack ran to its end")


def rename(db, title):
    """Change one object."""
    connection = db.open()
    connection.root()["title"] = title
    commit(f"Rename to {title}")
    connection.close()


def link(db, oid):
    """Make an object reachable again, as a process can that has not forgotten it."""
    connection = db.open()
    connection.root()["found"] = connection.get(p64(oid))
    commit("Find it again")
    connection.close()


def undo(db, description):
    """Undo the newest transaction with this description."""
    [found] = [each for each in db.undoLog(0, 1000) if text(each["description"]) == description][:1]
    db.undo(found["id"], transaction.get())
    commit(f"Undo: {description}")


def write(db, label):
    """Add, change and remove objects and blobs; return the oids of the new objects."""
    connection = db.open()
    root = connection.root()
    root[f"new-{label}"] = PersistentMapping(
        {f"{number}": PersistentMapping(label=label) for number in range(NEW_OBJECTS)}
    )
    root["tree"]["key-007"]["seen"] = label
    root["tree"][f"{label}"] = PersistentMapping(label=label)
    root["blobs"][label] = Blob(content(label, LARGE))
    write_blob(root["blobs"]["changed"], content(label, 100))
    root["lost"] = PersistentMapping(child=PersistentMapping(label=label))
    commit(f"Write: {label}", user=label, label=label)
    del root["lost"]
    commit(f"Lose: {label}")
    oids = [u64(each._p_oid) for each in root[f"new-{label}"].values()]
    connection.close()
    return oids


def write_for_ever(db):
    """Commit, tell what was committed, and go on until killed."""
    connection = db.open()
    root = connection.root()
    number = 0
    while True:
        number += 1
        root["count"] = number
        root[f"counted-{number}"] = PersistentMapping(number=number)
        root["blobs"][f"counted-{number}"] = Blob(content("counted", number * 1000))
        commit(f"Count {number}")
        print(number, flush=True)


def count(db):
    """Return how far ``write_for_ever`` came, after a look at all it wrote."""
    connection = db.open()
    root = connection.root()
    for number in range(1, root["count"] + 1):
        assert root[f"counted-{number}"]["number"] == number
        with root["blobs"][f"counted-{number}"].open() as file:
            assert file.read() == content("counted", number * 1000)
    return root["count"]


def pack(db):
    """Remove history and garbage."""
    db.pack()


def use_prepack_state(db):
    """Remove what the last prepack found."""
    db.storage.pack(time.time(), referencesf, skip_prepack=True)


def oids(db):
    """Return the oids of all objects."""
    return sorted(u64(oid) for oid, _, _ in current_records(db.storage))


def garbage(db):
    """Return the oids of the objects that cannot be reached from the root."""
    reached, _ = walk(db.storage)
    return sorted(set(oids(db)) - {u64(oid) for oid in reached})


def dangling(db):
    """Return the oids that reachable objects refer to and that do not exist."""
    return sorted(u64(oid) for oid in walk(db.storage)[1])


def dump(db):
    """Return all that the storage's interfaces show."""
    storage = db.storage
    # What was before a pack, RelStorage does not show in the history of an object. Without history all is packed.
    packed = {each.tid for each in storage.iterator() if each.status == "p"} if db.supportsUndo() else set()
    shown = {
        "last transaction": u64(storage.lastTransaction()),
        "objects": {u64(oid): [u64(tid), digest(data)] for oid, tid, data in current_records(storage)},
        "blobs": {
            u64(oid): blob_digest(storage, oid, tid)
            for oid, tid, data in current_records(storage)
            if is_blob_record(data)
        },
        "transactions": [describe(each) for each in storage.iterator()],
        "history of the root": [
            [u64(each["tid"]), text(each["user_name"]), text(each["description"]), each["size"]]
            for each in storage.history(z64, size=1000)
            if each["tid"] not in packed
        ],
        "dangling": dangling(db),
    }
    if db.supportsUndo():
        shown["undo log"] = [
            [text(each["id"]), text(each["user_name"]), text(each["description"]), each.get("source")]
            for each in db.undoLog(0, 1000)
        ]
        shown["old blobs"] = [
            blob_digest(storage, record.oid, record.tid)
            for each in storage.iterator()
            for record in each
            if record.data and is_blob_record(record.data)
        ]
    return shown


# --- what they are made of


def commit(note, user="", **extended):
    current = transaction.get()
    current.note(note)
    if user:
        current.user = user
    for name, value in extended.items():
        current.setExtendedInfo(name, value)
    current.commit()


def delete(db, oid, tid):
    """Remove an object as zc.zodbdgc does."""
    metadata = TransactionMetaData("", "Remove an orphan", {})
    db.storage.tpc_begin(metadata)
    try:
        db.storage.deleteObject(oid, tid, metadata)
    except AttributeError:
        # RelStorage 2.1 cannot where there is history.
        db.storage.tpc_abort(metadata)
        return
    db.storage.tpc_vote(metadata)
    db.storage.tpc_finish(metadata)


def write_blob(blob, data):
    with blob.open("w") as file:
        file.write(data)


def content(label, size):
    numbers = "".join(f"{label} {number}\n" for number in range(size // (len(label) + 2) + 1))
    return numbers.encode()[:size]


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def blob_digest(storage, oid, tid):
    with open(storage.loadBlob(oid, tid), "rb") as file:
        return digest(file.read())


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def describe(record):
    return [
        u64(record.tid),
        record.status,
        text(record.user),
        text(record.description),
        sorted(record.extension.items()),
        sorted([u64(each.oid), each.data and digest(each.data)] for each in record),
    ]


def current_records(storage):
    if not hasattr(storage, "record_iternext"):
        # RelStorage 2.1.
        for oid in sorted({record.oid for each in storage.iterator() for record in each}):
            try:
                data, tid = storage.load(oid)
            except POSKeyError:
                continue
            yield oid, tid, data
        return
    following = None
    while True:
        oid, tid, data, following = storage.record_iternext(following)
        # RelStorage shows deleted objects here, without a state.
        if data:
            yield oid, tid, data
        if following is None:
            return


def walk(storage):
    """Return what can be reached from the root and exists, and what does not exist."""
    reached, missing, pending = set(), set(), [z64]
    while pending:
        oid = pending.pop()
        if oid in reached or oid in missing:
            continue
        try:
            data = storage.load(oid)[0]
        except POSKeyError:
            missing.add(oid)
            continue
        reached.add(oid)
        referencesf(data, pending)
    return reached, missing


def run(configuration, commands):
    """Carry out commands, each with the database opened and closed for it; return what they return."""
    results = []
    for name, *words in commands:
        db = ZODB.config.databaseFromURL(configuration)
        try:
            results.append(globals()[name](db, *words))
        finally:
            transaction.abort()
            db.close()
    return json.loads(json.dumps(results))


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
