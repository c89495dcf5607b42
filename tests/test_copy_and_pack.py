"""A copy into a database and a pack of it keep out of each other's way."""

from __future__ import annotations

import pytest
import ZODB
from ZODB.serialize import referencesf

import relstorage
from relstorage.errors import UnableToAcquirePackUndoLockError


@pytest.fixture
def source(tmp_path):
    storage = relstorage.open("sqlite", data_dir=tmp_path / "source")
    ZODB.DB(storage.new_instance()).close()
    storage = relstorage.open("sqlite", data_dir=tmp_path / "source")
    yield storage
    storage.close()


@pytest.fixture
def destination(tmp_path):
    storage = relstorage.open("sqlite", data_dir=tmp_path / "destination")
    yield storage
    storage.close()


def test_a_copy_is_refused_during_a_pack(source, destination):
    with destination.database.adapter.pack_lock(0.0), pytest.raises(UnableToAcquirePackUndoLockError):
        destination.copyTransactionsFrom(source)
    assert len(destination) == 0


def test_a_pack_is_refused_during_a_copy(source, destination, tmp_path):
    refused = []

    class PackedMeanwhile:
        """The source, and somebody who packs the destination while it is read."""

        def __getattr__(self, name):
            return getattr(source, name)

        def iterator(self, *bounds):
            with pytest.raises(UnableToAcquirePackUndoLockError) as caught:
                destination.new_instance().pack(None, referencesf)
            refused.append(caught.value)
            yield from source.iterator(*bounds)

    destination.copyTransactionsFrom(PackedMeanwhile())
    assert len(refused) == 1
    assert len(destination) == 1


def test_after_a_copy_the_database_can_be_packed(source, destination):
    destination.copyTransactionsFrom(source)
    destination.pack(None, referencesf)
    assert len(destination) == 1
