"""ZODB's own storage tests, one test of ours for each of theirs.

They are unittest cases and doctests that expect a storage in ``_storage`` or a factory of storages. Here they are
listed, then run one at a time against the database under test.
"""

from __future__ import annotations

import doctest
import os
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
from ZODB.tests import (
    BasicStorage,
    ConflictResolution,
    HistoryStorage,
    IteratorStorage,
    MTStorage,
    PackableStorage,
    PersistentStorage,
    ReadOnlyStorage,
    RecoveryStorage,
    RevisionStorage,
    StorageTestBase,
    Synchronization,
    TransactionalUndoStorage,
    testblob,
    testMVCCMappingStorage,
)

from relstorage.testing.target import DatabaseUnderTest, mode_name

__all__ = ["test_of_zodb"]


class _Case(StorageTestBase.StorageTestBase):
    """The base of the cases: it opens ``_storage`` on the database that the suite puts into ``database``."""

    database: DatabaseUnderTest

    def setUp(self) -> None:
        super().setUp()
        self.open()

    def open(self, **options: Any) -> None:
        self._storage = self.database.open(**options)

    def _new_storage_client(self) -> Any:
        return self.database.open()


class BasicCase(
    _Case,
    BasicStorage.BasicStorage,
    PackableStorage.PackableStorage,
    MTStorage.MTStorage,
    Synchronization.SynchronizedStorage,
    ConflictResolution.ConflictResolvingStorage,
    PersistentStorage.PersistentStorage,
    ReadOnlyStorage.ReadOnlyStorage,
    testMVCCMappingStorage.MVCCTests,
):
    """What holds with and without history."""


class HistoryCase(
    _Case,
    TransactionalUndoStorage.TransactionalUndoStorage,
    ConflictResolution.ConflictResolvingTransUndoStorage,
    IteratorStorage.IteratorStorage,
    IteratorStorage.ExtendedIteratorStorage,
    RevisionStorage.RevisionStorage,
    PackableStorage.PackableUndoStorage,
    HistoryStorage.HistoryStorage,
):
    """What needs history."""

    # The bytes of a transaction's extension come back as they were given.
    use_extension_bytes = True


class RecoveryCase(_Case, RecoveryStorage.RecoveryStorage):
    """Copying transactions into another database."""

    def setUp(self) -> None:
        super().setUp()
        self._dst = self.database.another().open()


_WRONG_PARTITION = "replaces os.rename and expects what ZODB.blob.rename_or_copy_blob logs then"
#: Tests that cannot apply to a storage like ours, and why.
NOT_APPLICABLE = {
    "testTransactionalUndoIterator": "expects data_txn, the origin of a state, which the tables do not have room for; "
    "the suite undoes several transactions in one in test_several_transactions_can_be_undone_in_one",
    "cached-blob_packing_txt": "looks for files through FileStorage's fshelper; see TestBlobs",
    "shared-blob_packing_txt": "looks for files through FileStorage's fshelper; see TestBlobs",
    "cached-testblob.commit_from_wrong_partition": _WRONG_PARTITION,
    "shared-testblob.commit_from_wrong_partition": _WRONG_PARTITION,
}
_OLD_REVISIONS = "reads old revisions, which do not exist without history"
NOT_APPLICABLE_WITHOUT_HISTORY = {
    "testPackAllRevisions": _OLD_REVISIONS,
    "testPackJustOldRevisions": _OLD_REVISIONS,
    "testPackOnlyOneObject": _OLD_REVISIONS,
}
#: Examples of a document that are left out, by a part of their source, and why.
LEFT_OUT = {
    "blob_transaction.txt": {
        "os.path.join(blob_dir, 'tmp')": "each process has a temporary directory of its own below tmp",
        **({"open(blob.committed(), 'w')": "root may write to read-only files"} if os.geteuid() == 0 else {}),
    }
}
#: Mistakes in a document's examples: what they say, and what they mean.
CORRECTED = {"blob_transaction.txt": {"storeBlob(new_oid, '\\0'*8": "storeBlob(new_oid, b'\\0'*8"}}


@dataclass(frozen=True)
class ZodbTest:
    """One of ZODB's tests: its name, and how to make the case that runs it, given a database."""

    name: str
    make: Callable[[DatabaseUnderTest], Any]


def _cases(case_class: type[_Case]) -> Iterator[ZodbTest]:
    for method in unittest.defaultTestLoader.getTestCaseNames(case_class):
        yield ZodbTest(method, partial(_case, case_class, method))


def _case(case_class: type[_Case], method: str, database: DatabaseUnderTest) -> unittest.TestCase:
    case = case_class(method)
    case.database = database
    return case


class _Storages:
    """The factory that the blob suite asks for storages by name; each name is a database of its own."""

    def __init__(self, database: DatabaseUnderTest | None, shared: bool):
        self._database = database
        self._shared = shared
        self._named: dict[str, DatabaseUnderTest] = {}

    def __call__(self, name: str, blob_dir: str, **options: Any) -> Any:
        assert self._database is not None
        found = self._named.get(name)
        if found is None:
            found = self._named[name] = self._database.another() if self._named else self._database
        return found.open(blob_dir=blob_dir, shared_blob_dir=self._shared, **options)


def _blob_suite(keep_history: bool, shared: bool, database: DatabaseUnderTest | None = None) -> list[tuple[str, Any]]:
    storages = _Storages(database, shared)
    prefix = "Shared" if shared else "Cached"
    suite = unittest.TestSuite()
    suite.addTest(
        testblob.storage_reusable_suite(
            prefix, storages, test_blob_storage_recovery=True, test_packing=keep_history, test_undo=keep_history
        )
    )
    if keep_history:
        # The document wants a storage whose pack leaves garbage alone.
        suite.addTest(PackableStorage.IExternalGC_suite(lambda: storages("gc", "gc-blobs", pack_gc=False)))
    return [(f"{prefix.lower()}-{case.id().rpartition('tests.')[2]}", case) for case in _flat(suite)]


def _flat(suite: Any) -> Iterator[Any]:
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from _flat(each)
        else:
            if isinstance(each, doctest.DocFileCase):
                _adapt(each._dt_test)
            yield each


def _adapt(document: doctest.DocTest) -> None:
    parts = LEFT_OUT.get(document.name, {})
    document.examples = [each for each in document.examples if not any(part in each.source for part in parts)]
    for wrong, right in CORRECTED.get(document.name, {}).items():
        for example in document.examples:
            example.source = example.source.replace(wrong, right)


def _blob_test(keep_history: bool, shared: bool, name: str, database: DatabaseUnderTest) -> Any:
    return dict(_blob_suite(keep_history, shared, database))[name]


@cache
def zodb_tests(keep_history: bool) -> tuple[ZodbTest, ...]:
    """Return all of ZODB's tests for a history mode."""
    tests = list(_cases(BasicCase))
    if keep_history:
        tests += [*_cases(HistoryCase), *_cases(RecoveryCase)]
    for shared in (False, True):
        for name, _ in _blob_suite(keep_history, shared):
            tests.append(ZodbTest(name, partial(_blob_test, keep_history, shared, name)))
    return tuple(tests)


def _choose(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize(
        "keep_history, zodb_test",
        [
            pytest.param(mode, test, id=f"{mode_name(mode)}-{test.name}", marks=_marks(mode, test))
            for mode in (False, True)
            for test in zodb_tests(mode)
        ],
    )


def _marks(keep_history: bool, test: ZodbTest) -> tuple[Any, ...]:
    reason = NOT_APPLICABLE.get(test.name)
    if reason is None and not keep_history:
        reason = NOT_APPLICABLE_WITHOUT_HISTORY.get(test.name)
    return (pytest.mark.skip(reason=reason),) if reason else ()


# ZODB's tests leave files and connections open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_of_zodb(database: DatabaseUnderTest, zodb_test: ZodbTest) -> None:
    result = unittest.TestResult()
    zodb_test.make(database).run(result)
    if result.skipped:
        pytest.skip(result.skipped[0][1])
    problems = [text for _, text in (*result.errors, *result.failures)]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


test_of_zodb.choose_parameters = _choose
