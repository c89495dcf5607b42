"""What an error of the server means, told by its SQLSTATE alone, and the error of ours that says so.

The codes are in appendix A of PostgreSQL's manual: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

from relstorage.errors import (
    CorruptDatabase,
    Disconnected,
    DriverError,
    Failure,
    OutOfSpace,
    ReadOnlyDatabase,
    RelStorageError,
    SnapshotLost,
    UnableToAcquireCommitLockError,
    UnableToLockRowsDeadlockError,
)

UNIQUE_VIOLATION = "23505"

_STATES = {
    "25006": Failure.READ_ONLY,  # read_only_sql_transaction
    "25P02": Failure.SNAPSHOT_LOST,  # in_failed_sql_transaction: an error before this one ended the transaction
    "25P03": Failure.DISCONNECTED,  # idle_in_transaction_session_timeout
    "40001": Failure.SNAPSHOT_LOST,  # serialization_failure: on a standby, what the snapshot needs was removed
    "40P01": Failure.DEADLOCK,
    "53100": Failure.OUT_OF_SPACE,  # disk_full
    "53200": Failure.OUT_OF_SPACE,  # out_of_memory, lock tables included
    "53300": Failure.DISCONNECTED,  # too_many_connections
    "55P03": Failure.LOCK_TIMEOUT,  # lock_not_available
    "57P01": Failure.DISCONNECTED,  # admin_shutdown
    "57P02": Failure.DISCONNECTED,  # crash_shutdown
    "57P03": Failure.DISCONNECTED,  # cannot_connect_now
    "57P05": Failure.DISCONNECTED,  # idle_session_timeout
    "72000": Failure.SNAPSHOT_LOST,  # snapshot_too_old
    "XX001": Failure.CORRUPT,  # data_corrupted
    "XX002": Failure.CORRUPT,  # index_corrupted
}


def meaning(sqlstate: str | None) -> Failure:
    """Return what a SQLSTATE means; without one, the connection broke before the server could say anything."""
    if sqlstate is None:
        return Failure.DISCONNECTED
    if sqlstate.startswith("08"):
        return Failure.DISCONNECTED
    return _STATES.get(sqlstate, Failure.OTHER)


def translate(failure: Failure, message: str, attempt: str, name: str, lock_timeout: float) -> RelStorageError:
    """Return the error to raise. ``message`` is the server's, without secrets; ``attempt`` says what was done."""
    where = f"{name} ({attempt})"
    if failure is Failure.DISCONNECTED:
        return Disconnected(f"{where}: the connection is lost: {message}")
    if failure is Failure.LOCK_TIMEOUT:
        return UnableToAcquireCommitLockError(
            f"{where}: another transaction has held a lock for {lock_timeout:g} seconds: {message}. Raise "
            "commit-lock-timeout, or look in pg_locks for who holds it.",
            waited=lock_timeout,
        )
    if failure is Failure.DEADLOCK:
        return UnableToLockRowsDeadlockError(f"{where}: the server broke a deadlock: {message}. Run it again.")
    if failure is Failure.SNAPSHOT_LOST:
        return SnapshotLost(f"{where}: the server gave the snapshot up: {message}. Run the transaction again.")
    if failure is Failure.READ_ONLY:
        return ReadOnlyDatabase(
            f"{where}: the server accepts no writes: {message}. It may be a standby: check where the dsn, or "
            "replica-conf, leads."
        )
    if failure is Failure.OUT_OF_SPACE:
        return OutOfSpace(f"{where}: the server has run out of room: {message}. Nothing of the transaction was kept.")
    if failure is Failure.CORRUPT:
        return CorruptDatabase(f"{where}: the server finds its files damaged: {message}. Restore them from a backup.")
    return DriverError(f"{where}: {message}")


class AlreadyThere(DriverError):
    """A row with the same key was committed by another transaction."""
