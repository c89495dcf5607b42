"""What a pack does differently on PostgreSQL: it reads fewer states, keeps lists in rows, removes before it locks."""

from __future__ import annotations

# ruff: noqa: F811 (a fixture and the parameter that asks for it have one name)
import pickle
import time
from contextlib import closing

import pytest
from postgresql_faults import in_thread
from postgresql_target import Postgres, address  # noqa: F401  a fixture is found by its name
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64, z64

from relstorage import packing
from relstorage.packing.mark import mark
from relstorage.packing.progress import Reporter
from relstorage.references import references
from relstorage.testing.records import add, change, commit, state
from relstorage.testing.target import (  # noqa: F401  fixtures are found by their names
    DatabaseUnderTest,
    database,
    free,
    own_transaction,
    preserving,
    pytest_generate_tests,
    target,
)

TARGET = Postgres()


class _Stop(Exception):
    pass


def _garbage(storage, count):
    """Store a root and objects that nothing refers to; return their oids."""
    oids = [storage.new_oid() for _ in range(count)]
    commit(storage, (z64, z64, state(0)), *((oid, z64, state(1)) for oid in oids))
    return oids


def _pack(storage, **how):
    return packing.pack(storage.database, None, referencesf, **how)


def _until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_while_a_batch_deletes_others_commit(database):
    packer, writer = database.open(commit_lock_timeout=20), database.open(commit_lock_timeout=1)
    gone = _garbage(packer, 10)
    oid, tid = add(writer, 1)
    root_tid = writer.load(z64)[1]
    commit(writer, (z64, root_tid, pickle.dumps(None, 3) + _state_with([u64(oid)])))
    with closing(database.target.connect(database.backend_options)) as other:
        cursor = other.cursor()

        def hold(report):
            if report.phase == "sweep" and not report.done:
                relation = "current_object" if database.keep_history else "object_state"
                cursor.execute(f"SELECT 1 FROM {relation} WHERE zoid = {u64(gone[5])} FOR SHARE")

        packed = in_thread(lambda: _pack(packer, progress=hold))
        _until(lambda: database.execute("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))
        for number in range(5):
            tid = change(writer, oid, tid, number)
        assert not packed.done()
        other.rollback()
        assert packed.result(20).removed_objects == 10
    writer.poll_invalidations()
    assert writer.load(oid)[1] == tid


def _state_with(oids):
    """Return the second pickle of a record that refers to these."""
    return b"\x80\x03](" + b"".join(b"C\x08" + p64(oid) + b"Q" for oid in oids) + b"e."


def _utf8(oid):
    return oid.decode("latin-1").encode()


#: How the protocols of pickles write a reference: those that say which they are, and the older ones.
NEWER = (
    lambda oid: b"C\x08" + oid + b"Q",
    lambda oid: b"U\x08" + oid + b"q\x01Q",
    lambda oid: b"(C\x08" + oid + b"q\x01cbuiltins\ndict\nq\x02tq\x03Q",
    lambda oid: b"B\x08\0\0\0" + oid + b"Q",
    lambda oid: b"T\x08\0\0\0" + oid + b"Q",
    lambda oid: b"X" + len(_utf8(oid)).to_bytes(4, "little") + _utf8(oid) + b"Q",
)
OLDER = (
    lambda oid: b"U\x08" + oid + b"Q",
    lambda oid: b"S" + repr(oid)[1:].encode() + b"\nQ",
    lambda oid: b"V" + b"".join(b"\\u%04x" % byte for byte in oid) + b"\nQ",
    lambda oid: b"P" + oid + b"\n",
)
SPELLINGS = [
    lambda oid, spell=spell, kind=kind, own=own: b"%b}.%b](%be." % (kind, own, spell(oid))
    for kind, own, spells in ((b"\x80\x03", b"\x80\x03", NEWER), (b"\x80\x02", b"", OLDER), (b"", b"", OLDER))
    for spell in spells
]


def test_no_reference_is_missed_for_how_it_is_written_or_damaged(database):
    storage = database.open()
    storage.new_oid()
    shared = storage.database
    oid = 1 << 20
    records, children = [], []
    for spelling in SPELLINGS:
        for place in range(len(spelling(p64(oid))) + 1):
            # What begins with the last is none of ZODB's, and stops a pack.
            for damage in (b"", b"\xff", b"\x08", b"Q", b".")[: 5 if place else 4]:
                oid += 1
                child = oid + 0x10000
                whole = spelling(p64(child))
                records.append((p64(oid), whole[:place] + damage + whole[place + bool(damage) :]))
                children.append(p64(child))
    root = b"\x80\x03}." + _state_with([u64(each) for each, _ in records])
    commit(
        storage, (z64, z64, root), *((each, z64, data) for each, data in records),
        *((each, z64, state(1)) for each in children),
    )  # fmt: skip
    marks = []
    session = shared.adapter.open_session("pack")
    for find in (references, lambda data: references(data)):
        session.begin_snapshot()
        marks.append(mark(session, shared.statements, None, True, find, Reporter(shared.hooks, None)))
    session.close()
    apart, every = marks
    assert 0 < apart.removable_objects < len(children)
    assert apart.objects_to_remove == every.objects_to_remove
    assert (apart.objects, apart.reachable, apart.removable_bytes) == (
        every.objects, every.reachable, every.removable_bytes
    )  # fmt: skip


@pytest.mark.parametrize("start", (1, 1 << 33, 1 << 62))
def test_oids_of_any_size_are_followed(database, start):
    storage = database.open()
    commit(
        storage,
        (z64, z64, b"\x80\x03}." + _state_with([start + 1])),
        *((p64(start + number), z64, b"\x80\x03}." + _state_with([start + number + 2])) for number in range(1, 9)),
        (p64(start + 9), z64, state(1)),
        (p64(start + 10), z64, state(1)),
    )
    assert _pack(storage).removed_objects == 5
    storage.poll_invalidations()
    assert [number for number in range(1, 11) if _there(storage, p64(start + number))] == [1, 3, 5, 7, 9]


def _there(storage, oid):
    try:
        return bool(storage.load(oid))
    except KeyError:
        return False

