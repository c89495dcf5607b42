"""What a plug-in must be: the contracts of the objects that entry points name.

Importing a plug-in object must be cheap and must not need the DB-API module or the client library behind it;
whether those can be had is what ``check`` answers.
"""

from __future__ import annotations

from zope.interface import Attribute, Interface


class IBackend(Interface):
    """A kind of database. Entry point group ``relstorage.backends``; also a named ``zope.component`` utility."""

    name = Attribute("The name of the entry point, lower case: 'postgresql'.")
    title = Attribute("The name for people: 'PostgreSQL'.")
    sections = Attribute("The names of the ZConfig sections that configure it, the preferred one first.")
    schemes = Attribute("The schemes of URIs that name one of its databases: ('postgresql', 'postgres').")
    options_class = Attribute("The class of its options: a subclass of ``relstorage.options.BackendOptions``.")
    drivers = Attribute("The full names of its own drivers, in the order in which ``driver auto`` tries them.")
    requires = Attribute("What to give to ``pip install`` to get it: 'relstorage-postgresql'.")

    def adapter(options, storage_options, driver):
        """Return an ``IAdapter`` for one database; nothing is connected yet.

        ``options`` is an instance of ``options_class``, ``storage_options`` of ``relstorage.options.Options``, and
        ``driver`` an ``IDriver`` of this backend whose ``check`` has passed.
        """


class IDriver(Interface):
    """A way to reach a backend. Entry point group ``relstorage.drivers``, entry point name ``<backend>.<driver>``."""

    name = Attribute("The name of the entry point: 'sqlite.sqlite3'.")
    backend = Attribute("The name of the backend it serves: 'sqlite'.")
    aliases = Attribute("Other names that ``driver`` may give it; case, blanks and dashes do not count.")
    distribution = Attribute("What to give to ``pip install`` where its module is missing: 'psycopg[c]'.")

    def check():
        """Raise ``ImportError`` or ``PluginUnavailable`` with the reason if the driver cannot work in this process."""

    def classify(exception):
        """Return the ``relstorage.errors.Failure`` that an exception of this driver means.

        It decides by error codes, never by the text of a message. What it does not know is ``Failure.OTHER``.
        """

    def open_session(settings, role):
        """Connect and return a new ``ISession`` in the role 'load', 'store' or 'pack'.

        ``settings`` is a matter between a backend and its drivers; each backend documents its own as part of its
        contract.
        """


class IStateCache(Interface):
    """A cache of states that many processes share. Entry point group ``relstorage.caches``."""

    name = Attribute("The name of the entry point: 'memcache.pylibmc'.")
    aliases = Attribute("Other values of ``cache-module-name`` that select it.")
    distribution = Attribute("What to give to ``pip install`` where its module is missing: 'pylibmc'.")

    def check():
        """Raise ``ImportError`` or ``PluginUnavailable`` with the reason if the cache cannot work in this process."""

    def connect(servers, prefix):
        """Return an ``ISharedStates`` for one database.

        ``servers`` are the words of ``cache-servers``; ``prefix`` begins every key and differs between databases.
        """


class ISharedStates(Interface):
    """The states of one database in a shared cache.

    A revision ``(oid, tid)`` never changes, so that nothing here is ever invalidated or flushed. Every method may be
    called from any thread. Whatever an implementation raises counts as a miss.
    """

    def get_states(revisions):
        """Return the states that the cache has, as a mapping of ``(oid, tid)`` to bytes."""

    def set_states(states):
        """Remember the states of a mapping of ``(oid, tid)`` to bytes."""

    def close():
        """Let go of the servers."""
