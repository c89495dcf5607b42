"""Every error of this project. Each says what was attempted, on what, and what to do.

Errors that a new attempt of the same transaction may cure are ``transaction.interfaces.TransientError``;
the others are permanent until somebody acts.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from transaction.interfaces import TransientError
from ZODB.POSException import ConflictError, ReadConflictError, StorageError


class Failure(Enum):
    """What an exception of a driver means; see ``IDriver.classify``."""

    DISCONNECTED = "disconnected"
    LOCK_TIMEOUT = "lock timeout"
    LOCK_BUSY = "lock busy"
    DEADLOCK = "deadlock"
    READ_ONLY = "read-only"
    OUT_OF_SPACE = "out of space"
    CORRUPT = "corrupt"
    SNAPSHOT_LOST = "snapshot lost"
    OTHER = "other"


class RelStorageError(StorageError):
    """Base of most errors here. One that is not a ``TransientError`` too is permanent until somebody acts."""


# --- plug-ins and configuration


class PluginError(RelStorageError):
    """A plug-in could not be used."""


class UnknownPlugin(PluginError):
    """No installed distribution offers this name."""


class PluginUnavailable(PluginError):
    """The plug-in is installed but does not work here. ``attempts`` maps each name that was tried to the reason."""

    def __init__(self, message: str, attempts: dict[str, str] | None = None):
        super().__init__(message)
        self.attempts = attempts or {}


class DuplicatePlugin(PluginError):
    """Two distributions offer the same name."""


class InvalidPlugin(PluginError):
    """The plug-in's object does not keep the contract of its group."""


class ConfigurationError(RelStorageError, ValueError):
    """An option is unknown, or its value cannot be used."""


# --- the database as a whole


class LayoutError(RelStorageError):
    """The database is not what the options say. Nothing was changed in it."""


class WrongHistoryMode(LayoutError):
    """The database keeps history and the options say it does not, or the other way round."""


class NewerSchema(LayoutError):
    """A newer version of this project wrote the database."""


class NotADatabase(LayoutError):
    """The file or schema holds something that is not a ZODB."""


class SchemaMissing(LayoutError):
    """The tables do not exist and the options forbid creating them."""


class SchemaOutdated(SchemaMissing):
    """The tables are those of an older version, and the options forbid migrating them."""


class OutOfSpace(RelStorageError):
    """The server or the disk has no room left; nothing of the transaction was kept."""


class ReadOnlyDatabase(RelStorageError):
    """The server or file does not accept writes."""


class CommitOutcomeUnknown(RelStorageError):
    """The connection was lost during a commit, and the database cannot be asked whether it happened.

    It is not a ``TransientError``: the transaction may be there, and must not be run again unseen.
    """


class CorruptDatabase(RelStorageError):
    """The database reports that its own files are damaged."""


class DriverError(RelStorageError):
    """The driver reported an error that has no other class here."""


# --- errors that a retry may cure


class TransientStorageError(RelStorageError, TransientError):
    """Base of the errors that a new attempt of the transaction may cure."""


class Disconnected(TransientStorageError):
    """The connection to the database is lost. The next transaction connects again."""


class SnapshotLost(Disconnected, ReadConflictError):
    """The snapshot that this transaction read from is gone; it must start again."""

    def __init__(self, message: str):
        ReadConflictError.__init__(self, message)


class StaleConnectionError(TransientStorageError, ReadConflictError):
    """The replica that this storage reads from has not received what the storage has seen or written already."""

    def __init__(self, message: str):
        ReadConflictError.__init__(self, message)


class ServerReplaced(TransientStorageError, ReadConflictError):
    """The server was restarted or replaced since this transaction began, and may lack what the transaction read."""

    def __init__(self, message: str):
        ReadConflictError.__init__(self, message)


class LockError(TransientStorageError):
    """A lock could not be had. ``waited`` is in seconds; ``holder`` names who has it, where the database tells."""

    def __init__(self, message: str, *, oids: tuple[int, ...] = (), waited: float = 0.0, holder: str | None = None):
        super().__init__(message)
        self.oids = oids
        self.waited = waited
        self.holder = holder


class UnableToAcquireCommitLockError(LockError):
    """Another transaction held the commit lock for longer than ``commit-lock-timeout``."""


class UnableToAcquirePackUndoLockError(RelStorageError):
    """Another pack of this database is running."""


class UnableToLockRowsToModifyError(LockError, ConflictError):
    """Another transaction is changing the same objects."""

    def __init__(self, message: str, **facts: Any):
        ConflictError.__init__(self, message)
        LockError.__init__(self, message, **facts)


class UnableToLockRowsToReadCurrentError(LockError, ReadConflictError):
    """Another transaction is changing objects that must stay as they were read."""

    def __init__(self, message: str, **facts: Any):
        ReadConflictError.__init__(self, message)
        LockError.__init__(self, message, **facts)


class UnableToLockRowsDeadlockError(UnableToLockRowsToModifyError):
    """The database broke a deadlock between this transaction and another."""


class VoteReadConflictError(ReadConflictError):
    """An object that must stay as it was read has changed or is gone."""


class RemovedReferenceError(ReadConflictError):
    """A stored object refers to one that a pack or a deletion removed after this transaction began."""


# --- packing


class PackError(RelStorageError):
    """A pack was refused or could not go on; what it had removed until then is consistent."""


class MarkIncomplete(PackError):
    """There is no complete mark to sweep. Nothing was removed."""


class UnreadableState(PackError):
    """A data record is not a pickle that ZODB can read, so what it refers to is not known for certain."""


# --- copying


class CopyError(RelStorageError):
    """A copy was refused or could not go on; what it had copied until then is complete and durable."""
