"""What a backend's adapter offers: sessions, statements, schema, commit, object ids, locks."""

from __future__ import annotations

from zope.interface import Attribute, Interface


class IAdapter(Interface):
    """One database, opened through one driver, with one history mode. Shared by all threads of a process."""

    name = Attribute("What identifies the database in logs and sort keys. Never holds a password.")
    backend = Attribute("The backend's name")
    driver = Attribute("The driver's name")
    keep_history = Attribute("True if all revisions are kept until packed")
    uses_options = Attribute("The names of the storage's options that only some backends use, and this one does")
    opens_ahead = Attribute("True if opening takes so long that a store session is opened before a commit wants it")
    statements = Attribute("The ``relstorage.sql.Statements`` of the dialect and history mode")
    schema = Attribute("An ISchema")
    commit_steps = Attribute("An ICommitSteps")
    blob_store = Attribute("An IBlobStore")

    def open_session(role):
        """Return a new ISession in the role 'load', 'store' or 'pack'.

        What a pack session commits need not be durable before the next commit of a store session is; it must then be.
        """

    def reserve_oids(session, count, at_least=0):
        """Set a range of object ids aside that nobody else gets, and make that durable.

        Every id returned is larger than any stored or reserved before, and larger than ``at_least``. Where the adapter
        ``opens_ahead``, it is called once with a ``count`` of 0, which may set nothing aside.
        Must not be called within a transaction of ``session``. Return a ``range``.
        """

    def pack_lock(timeout):
        """Return a context manager that holds the database-wide pack lock.

        It raises ``UnableToAcquirePackUndoLockError`` when another process holds it for longer than ``timeout``
        seconds. The lock vanishes with the process that holds it.
        """

    def size():
        """Return the approximate size of the database in bytes."""

    def server():
        """Return the product and version of the database's server or library, for people: 'PostgreSQL 15.7'."""

    def close():
        """Release everything; the adapter is not used afterwards."""


class ISchema(Interface):
    """Detects, creates, migrates and verifies the tables."""

    def prepare(create):
        """Bring the database to the newest schema and return its identity, a ``relstorage.database.schema.Identity``.

        Detect the layout first. Raise a ``LayoutError`` and change nothing if it is not a database of the adapter's
        history mode. With ``create`` false change nothing at all, and raise if a change would be needed.
        """

    def zap(session):
        """Remove every row of data within the session's write transaction, keeping tables and identity."""


class IBlobStore(Interface):
    """How blobs get into the database and out of it. The tables are the backend's; ``Statements`` has what the core
    must know of them."""

    def put(session, oid, tid, path):
        """Store the bytes of a file as the blob of a revision, within the session's write transaction.

        Without history, do nothing for a revision that is older than the current one.
        """

    def get(session, oid, tid, path):
        """Write a blob to a file, within a transaction; return False, and write nothing, if there is no such blob."""


class ICommitSteps(Interface):
    """The part of a commit that talks to the database.

    Stateless: the session holds the transaction, and ``StagedCommit.progress`` what one step must tell the next.
    """

    lock_is_fair = Attribute("True if those who wait for the commit lock get it in the order in which they came")

    def rehearse(session):
        """Do what a commit does, without effect, so that the first one of a new session takes no longer than others.

        It is called in the background where the adapter ``opens_ahead``.
        """

    def vote(session, commit):
        """Send what the commit staged, lock the objects, and say what stands against it.

        ``commit`` is a ``relstorage.database.commit.StagedCommit``; the result is a ``Verdict`` of that module. Raise
        ``VoteReadConflictError`` when an object that must be current is not, and a ``LockError`` when locks cannot be
        had.
        """

    def prepare(session, commit, resolved):
        """Do what can be done before the commit lock, so that ``finish`` is short and does not fail.

        ``resolved`` are the oids whose staged state changed by conflict resolution since ``vote``.
        """

    def finish(session, commit, before_commit=None):
        """Take the commit lock, choose the tid, make the staged records current, commit; return the tid.

        ``before_commit(tid)`` is called under the lock, before the commit; without it the tid need not be known here
        before the commit, which may save a round trip. When this method raises, nothing was kept, unless it raises
        ``Disconnected``, or what is no ``Exception``: then ``committed_tid`` tells. It returns only when the
        transaction is durable.
        """

    def committed_tid(session, commit):
        """Return the tid of a commit whose answer was lost, None if it did not and will not happen.

        ``session`` is another session, which is not in a transaction. Raise an error if nobody can tell.
        """

    def lock_and_choose_tid(session, drained=False):
        """Begin a write transaction, take the commit lock and return a new tid, for packing and maintenance.

        With ``drained``, no transaction is between its vote and its end while the lock is held: what this transaction
        changes, every other has either ended before or finds when it votes.
        """
