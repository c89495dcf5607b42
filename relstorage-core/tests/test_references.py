"""References out of data records, compared with ZODB's own reading of records that ZODB's own writer made."""

from __future__ import annotations

import contextlib
import copyreg
import io
import pickle
import re
import sys
import types
import zlib

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from persistent import Persistent
from persistent.wref import WeakRef
from ZODB.serialize import ObjectWriter, referencesf

from relstorage.errors import RelStorageError, UnreadableState
from relstorage.ids import to_bytes, to_int
from relstorage.references import (
    checked_references,
    choose,
    class_name,
    possible_references,
    references,
    untransformed,
)

# --- records, written by ZODB's ObjectWriter with classes of an application that is gone when they are read


class Thing(Persistent):
    """Is referred to by oid and class."""


class Argued(Persistent):
    """Is referred to by oid alone."""

    def __getnewargs__(self):
        return ("an argument",)


class Plain:
    """Is pickled within the record."""

    def __init__(self, value):
        self.value = value


class Reduced(Plain):
    """Is pickled as a call."""

    def __reduce__(self):
        return Reduced, (self.value,)


class Grown(list):
    """Is pickled as an empty object to which items are appended."""


APPLICATION = "gone_application"
CLASSES = (Thing, Argued, Plain, Reduced, Grown)
for _class in CLASSES:
    _class.__module__ = APPLICATION


class Database:
    """As much of a DB and its connection as ObjectWriter asks."""

    xrefs = True

    def __init__(self, name, databases):
        self.database_name = name
        self.databases = databases
        databases[name] = self

    def db(self):
        return self

    def get_connection(self, name):
        return self.databases[name]

    def _implicitlyAdding(self, oid):
        return False

    def new_oid(self):
        raise AssertionError("every object of these tests has an oid")

    # Connection.register, for objects that are changed after they have got their jar.
    def register(self, obj):
        pass


HERE = Database("here", _databases := {})
THERE = Database("there", _databases)


def persistent(cls, oid, database=HERE):
    obj = cls.__new__(cls)
    obj._p_jar, obj._p_oid = database, to_bytes(oid)
    return obj


def weak(target):
    reference = WeakRef.__new__(WeakRef)
    reference.oid, reference.dm = target._p_oid, target._p_jar
    reference.database_name = target._p_jar.database_name
    return reference


def record(state, cls=Thing):
    """Return the record of an object with this state. The application can be imported only while it is written."""
    obj = persistent(cls, 1)
    # A class's own __getstate__ would need the state in the object's dictionary; the writer takes any.
    obj.__dict__["state"] = state
    application = types.ModuleType(APPLICATION)
    for each in CLASSES:
        setattr(application, each.__name__, each)
    sys.modules[APPLICATION] = application
    try:
        return ObjectWriter(obj).serialize(obj)
    finally:
        del sys.modules[APPLICATION]


def bytes_of(oids):
    return [to_bytes(oid) for oid in oids]


# Small, ASCII-only and large oids: Python 2's pickles tell them apart.
oids = st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1))
databases = st.sampled_from((HERE, THERE))
instances = st.builds(persistent, st.sampled_from((Thing, Argued)), oids, databases)
atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.binary(min_size=8, max_size=8),
    instances,
    instances.map(weak),
)
graphs = st.recursive(
    atoms,
    lambda values: st.one_of(
        st.lists(values),
        st.lists(values).map(tuple),
        st.lists(values).map(Grown),
        st.dictionaries(st.one_of(st.text(), st.integers(), st.binary()), values),
        st.sets(st.integers()),
        values.map(Plain),
        values.map(Reduced),
    ),
    max_leaves=40,
)


@given(graphs, st.sampled_from((Thing, Argued)))
def test_references_are_what_zodb_finds(state, cls):
    data = record(state, cls)
    assert bytes_of(references(data)) == referencesf(data)
    assert bytes_of(checked_references(data)) == referencesf(data)


@given(graphs)
def test_no_module_is_imported(state):
    data = record(state)
    before = set(sys.modules)
    references(data)
    class_name(data)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (persistent(Thing, 7), [7]),
        (persistent(Argued, 7), [7]),
        (weak(persistent(Thing, 7)), []),
        (weak(persistent(Thing, 7, THERE)), []),
        (persistent(Thing, 7, THERE), []),
        (persistent(Argued, 7, THERE), []),
    ],
    ids=["oid-and-class", "oid", "weak", "weak-other-database", "other-database-with-class", "other-database"],
)
def test_only_strong_references_within_the_database_are_followed(reference, expected):
    assert references(record([reference])) == expected


def test_a_record_of_many_references_larger_than_any_read_ahead():
    count = 20_000
    data = record([[persistent(Thing, oid), "filler " * 3] for oid in range(count)])
    assert len(data) > 2 * 131_072
    assert references(data) == list(range(count))


def test_an_object_referred_to_by_its_class_description_is_found():
    # A persistent class: the description of the class is itself a reference.
    assert references(b"\x80\x03C\x08\0\0\0\0\0\0\x01\x02Q." + b"\x80\x03}.") == [0x102]


# --- records of older writers


class Reference:
    """Is pickled as a persistent reference by ``by_protocol``."""

    def __init__(self, value):
        self.value = value


def by_protocol(protocol, *references_):
    """Return a record written by a plain pickler, as other programs than ZODB write them."""
    file = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.value if isinstance(obj, Reference) else None

    Pickler(file, protocol).dump((("gone_application", "Thing"), None))
    Pickler(file, protocol).dump({"values": [Reference(each) for each in references_]})
    return file.getvalue()


def pair(oid):
    # An oid and its class, as (MARK oid GLOBAL TUPLE BINPERSID); the string is spelled by the caller.
    return b"(" + oid + b"cgone_application\nThing\ntQ"


@pytest.mark.parametrize("oid", [0, 7, 0x7F7F, 0x8081, 0x0A0D0A, 2**63 - 1])
@pytest.mark.parametrize(
    "spelled",
    [
        lambda raw: b"U\x08" + raw,
        lambda raw: b"T\x08\0\0\0" + raw,
        lambda raw: b"C\x08" + raw,
        lambda raw: b"B\x08\0\0\0" + raw,
        lambda raw: b"S'" + "".join(f"\\x{byte:02x}" for byte in raw).encode() + b"'\n",
        lambda raw: b"V" + "".join(f"\\u{byte:04x}" for byte in raw).encode() + b"\n",
        lambda raw: b"X" + len(text := raw.decode("latin-1").encode()).to_bytes(4, "little") + text,
    ],
    ids=["U", "T", "C", "B", "S", "V", "X"],
)
@pytest.mark.parametrize("form", [lambda oid: oid + b"Q", pair], ids=["oid", "oid-and-class"])
class TestEverySpellingOfAnOid:
    def test_is_read(self, spelled, oid, form):
        data = b"(cgone_application\nThing\nNt.]" + form(spelled(to_bytes(oid))) + b"a."
        assert references(data) == [oid]

    def test_is_found_in_a_record_that_cannot_be_read(self, spelled, oid, form):
        data = b"(cgone_application\nThing\nNt.]\xff" + form(spelled(to_bytes(oid))) + b"a."
        with pytest.raises(UnreadableState):
            references(data)
        assert oid in possible_references(data, lambda each: True)


def test_a_record_of_python_2_with_text_that_is_not_ascii_is_read():
    data = b"(cgone_application\nThing\nNt.}(U\x03\xc3\xa9!" + pair(b"U\x08" + to_bytes(0x8081)) + b"u."
    assert references(data) == [0x8081]


# Written by cPickle of Python 2.7, in protocol 1 and 2: text that is not ASCII, an object of an old class, a strong
# reference with and without class, a weak one, and one to another database.
PYTHON_2_PROTOCOL_1 = (
    "2828550a6f6c642e6d6f64756c65710155055468696e6771027471034e7471042e7d71012855016128550800000000000000"
    "0771024e747103515802000000c3a963636f70795f7265670a5f7265636f6e7374727563746f720a710428635f5f6d61696e"
    "5f5f0a5468696e670a7105635f5f6275696c74696e5f5f0a6f626a6563740a71064e74527107550362c3a971085d71092855"
    "080000000000008081710a515d710b285501772855080000000000000009710c74710d65516555016e5d710e2855016d2855"
    "017855080000000000000003710f4e7471106551752e"
)
PYTHON_2_PROTOCOL_2 = (
    "8002550a6f6c642e6d6f64756c65710155055468696e6771028671034e8671042e80027d7101285501615508000000000000"
    "000771024e867103515802000000c3a9635f5f6d61696e5f5f0a5468696e670a7104298171057d710662550362c3a971075d"
    "710828550800000000000080817109515d710a2855017755080000000000000009710b85710c65516555016e5d710d285501"
    "6d55017855080000000000000003710e4e87710f6551752e"
)


@pytest.mark.parametrize("written", [PYTHON_2_PROTOCOL_1, PYTHON_2_PROTOCOL_2], ids=["protocol-1", "protocol-2"])
def test_a_record_that_python_2_wrote_is_read(written):
    data = bytes.fromhex(written)
    assert references(data) == [7, 0x8081]
    assert class_name(data) == "old.module.Thing"


def test_the_oldest_weak_reference_is_not_followed():
    assert references(b"(cgone_application\nThing\nNt.](U\x08" + to_bytes(7) + b"lQa.") == []


def test_a_reference_as_a_line_of_text_is_read():
    assert references(b"cgone_application\nThing\n.(lp0\nPabcdefgh\na.") == [to_int(b"abcdefgh")]


@pytest.mark.parametrize("protocol", [1, 2, 3])
def test_every_protocol_that_zodb_reads_is_read(protocol):
    # Protocols 1 and 2 have no bytes: Python 3 writes a call in their place, which only ASCII text avoids.
    oid = to_bytes(7) if protocol == 3 else to_bytes(7).decode("ascii")
    data = by_protocol(protocol, oid, (oid, None), ["w", (oid,)])
    assert references(data) == [7, 7]
    assert bytes_of(references(data)) == referencesf(data)


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_protocol_that_zodb_cannot_read_keeps_what_it_may_refer_to(protocol):
    data = by_protocol(protocol, to_bytes(7), (to_bytes(0x8081), None))
    with pytest.raises(UnreadableState):
        references(data)
    assert {7, 0x8081} <= set(possible_references(data, lambda oid: True))


@pytest.mark.parametrize("protocol", [1, 2])
def test_an_oid_written_as_a_call_keeps_what_it_may_refer_to(protocol):
    data = by_protocol(protocol, to_bytes(0x8081))
    with pytest.raises(UnreadableState):
        references(data)
    assert 0x8081 in possible_references(data, lambda oid: True)


def test_a_class_behind_an_extension_code_is_not_imported():
    copyreg.add_extension("gone_application", "Extended", 0x7FFF)
    try:
        data = record([persistent(Thing, 7)]).replace(b"cgone_application\nThing\n", b"\x83\xff\x7f")
        assert references(data) == [7]
    finally:
        copyreg.remove_extension("gone_application", "Extended", 0x7FFF)


# --- damaged records

# A damaged "r" can name a place far out in the table of what a pickle repeats, for which zodbpickle then asks memory.
# These records have none, neither in their text nor among the bytes that replace others.
plain_text = st.text(alphabet="abcdefghijklmnopq ", max_size=30)
referring = st.lists(st.tuples(plain_text, st.sampled_from((Thing, Argued)), oids), min_size=1, max_size=10)


MEMO_JUMP = re.compile(rb"r.(?:[^\0]|.[^\0])", re.DOTALL)


@st.composite
def damaged(draw):
    """Return what a record referred to, and the record with bytes outside of its oids replaced, inserted or removed."""
    contents = draw(referring)
    truth = {oid for _, _, oid in contents}
    data = record([(text, persistent(cls, oid)) for text, cls, oid in contents], cls=Thing)
    kept = set()
    for oid in truth:
        for match in re.finditer(re.escape(to_bytes(oid)), data):
            kept.update(range(match.start(), match.end()))
    for at in sorted(draw(st.sets(st.integers(0, len(data) - 1), min_size=1, max_size=4)), reverse=True):
        if at not in kept:
            data = data[:at] + draw(st.binary(max_size=2)) + data[at + 1 :]
    assume(not MEMO_JUMP.search(data))
    return truth, data


@given(damaged())
@settings(max_examples=300)
def test_a_damaged_record_is_read_or_reported_and_loses_no_reference(case):
    truth, data = case
    with contextlib.suppress(UnreadableState):
        references(data)
    assert truth <= set(possible_references(data, lambda oid: oid in truth))


@given(graphs, st.data())
def test_a_truncated_record_is_reported_and_keeps_what_is_left(state, data):
    whole = record([state, persistent(Thing, 0x123456)])
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(UnreadableState):
        checked_references(whole[:end])
    if to_bytes(0x123456) in whole[:end]:
        assert 0x123456 in possible_references(whole[:end], lambda oid: True)


def test_a_record_cut_within_its_references_is_reported():
    whole = record([persistent(Thing, 7), "text", persistent(Argued, 9)])
    for end in range(whole.index(b"C\x08") + 2, len(whole)):
        with pytest.raises(UnreadableState):
            references(whole[:end])


def test_a_record_that_lost_the_mark_of_its_only_reference_is_parsed():
    data = record(persistent(Thing, 7))
    assert data.count(b"Q") == 1
    with pytest.raises(UnreadableState):
        references(data.replace(b"Q", b"\xff"))


@pytest.mark.parametrize("data", [b"", b".", b"..", b"not a pickle", b"}.", b"\x80\x03N."])
def test_what_is_no_record_is_reported(data):
    with pytest.raises(UnreadableState):
        checked_references(data)


@pytest.mark.parametrize("pid", [b"N", b"K\x08", b"U\x07\0\0\0\0\0\0\0", b"U\x09\0\0\0\0\0\0\0\0\0", b")", b"U\x00"])
def test_a_reference_that_is_no_oid_is_reported(pid):
    with pytest.raises(UnreadableState):
        references(b"N." + pid + b"Q.")


def test_the_report_names_size_class_and_reason_but_shows_no_content():
    data = record({"password": "secret", "other": persistent(Thing, 7)})[:-1]
    with pytest.raises(UnreadableState) as caught:
        references(data)
    assert isinstance(caught.value, RelStorageError)
    assert f"{len(data)} bytes" in str(caught.value)
    assert "gone_application.Thing" in str(caught.value)
    assert "EOFError" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_possible_references_asks_once_for_each_number_and_answers_in_order():
    asked = []

    def exists(oid):
        asked.append(oid)
        return oid in (7, 9)

    assert possible_references(to_bytes(9) + to_bytes(7) + to_bytes(9), exists) == [7, 9]
    assert len(asked) == len(set(asked))


def test_possible_references_offers_no_number_that_cannot_be_an_oid():
    assert 2**64 - 1 not in possible_references(b"\xff" * 8, lambda oid: True)


# --- records that a storage wrapper transformed


def compressed(data):
    return b".z" + zlib.compress(data)


def test_a_compressed_record_is_read():
    data = record([persistent(Thing, 7), "text" * 10])
    assert references(compressed(data)) == [7]
    assert class_name(compressed(data)) == "gone_application.Thing"


def test_a_compressed_record_is_returned_as_zodb_wrote_it_and_others_unchanged():
    data = record("text" * 10)
    assert untransformed(compressed(data)) == data
    assert untransformed(data) is data


def test_a_damaged_compressed_record_keeps_what_is_left():
    data = compressed(record([persistent(Thing, 7), "text" * 10]))[:-4] + b"oops"
    with pytest.raises(UnreadableState):
        references(data)
    assert 7 in possible_references(data, lambda oid: True)


@pytest.mark.parametrize("data", [b".Eencrypted", b".Eencrypted."])
def test_a_record_that_hides_its_oids_is_refused(data):
    with pytest.raises(UnreadableState, match="wrapper"):
        references(data)
    with pytest.raises(UnreadableState, match="wrapper"):
        possible_references(data, lambda oid: True)


# --- the function that ZODB passes to pack


def test_zodbs_own_function_is_replaced():
    assert choose(referencesf) is references


def test_the_function_of_a_wrapper_is_called():
    def unwrapping(data, oids=None):
        return referencesf(data[2:], oids)

    assert choose(unwrapping)(b".x" + record([persistent(Thing, 7)])) == [7]


def test_an_error_in_the_function_of_a_wrapper_is_reported():
    def failing(data, oids=None):
        raise LookupError("no key")

    with pytest.raises(UnreadableState, match="LookupError: no key"):
        choose(failing)(record([]))


# --- names of classes


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (record([]), "gone_application.Thing"),
        (record([], Argued), "gone_application.Argued"),
        (b"(cold.module\nThing\nq\x01Nt.}.", "old.module.Thing"),
        (b"((U\x03oldU\x05ThingtNt.}.", "old.Thing"),
        (by_protocol(2), "gone_application.Thing"),
        (b"\x80\x03C\x08\0\0\0\0\0\0\0\x07Q.}.", "(unknown)"),
        (b"c" + b"x" * 5000 + b"\ny\n.}.", "(unknown)"),
        (b".zbroken", "(unknown)"),
        (b"", "(unknown)"),
    ],
)
def test_the_class_is_named_without_importing_it(data, expected):
    assert class_name(data) == expected
