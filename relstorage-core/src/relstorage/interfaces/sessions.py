"""What a driver gives to the core: sessions that execute statements and return rows."""

from __future__ import annotations

from zope.interface import Attribute, Interface


class ISession(Interface):
    """One open connection to the database, used by one thread at a time.

    Statements are ``relstorage.sql.Statement`` objects; parameters are a tuple in the statement's declared order.
    Every method that reaches the database raises errors of ``relstorage.errors`` only, never the driver's.
    A session whose connection is lost raises ``Disconnected`` from then on; its user closes it and opens another.
    """

    role = Attribute("'load', 'store' or 'pack'")
    lost = Attribute("True once the connection is known to be gone, and between transactions if it is to be left")
    in_transaction = Attribute("True between begin and commit or rollback")
    may_lag = Attribute("True if it reads from a copy that may be behind the database; ``incarnation`` finds out")

    def incarnation():
        """Return what differs after the server was restarted or another took its place; None where nothing can.

        A server that comes back may lack what was seen there before. With ``may_lag``, return a pair: what differs for
        each copy, and what differs when the copy gets its changes from somewhere else, None if it gets none now.
        Asked within a transaction, after its first statement.
        """

    def begin_snapshot():
        """Start a read-only transaction in which every statement sees the same committed state.

        One that is open is rolled back first.

        The snapshot may be taken as late as with the first statement, so that both take one round trip.
        """

    def begin_write(timeout=None):
        """Start a transaction that writes.

        Its statements see what others have committed meanwhile. Each lock is waited for ``timeout`` seconds at most
        (the session's own by default). On an embedded database this takes the write lock.
        Raise ``UnableToAcquireCommitLockError`` when the lock cannot be had in time.
        """

    def commit():
        """Make the transaction's changes permanent, durable as the options demand when it returns."""

    def rollback(another_follows=False):
        """End the transaction without its changes. Do nothing outside of one; never raise for a lost connection.

        With ``another_follows``, the next one begins at once, so that the end may travel with its beginning.
        """

    def row(statement, parameters=()):
        """Return the first row, or None."""

    def rows(statement, parameters=()):
        """Return all rows in a list."""

    def stream(statement, parameters=()):
        """Iterate over the rows without holding them all in memory."""

    def run(statement, parameters=()):
        """Execute; return how many rows were changed."""

    def run_many(statement, many):
        """Execute once for each tuple of parameters in the iterable ``many``, or do what amounts to that."""

    def close():
        """Release the connection. Never raise."""
