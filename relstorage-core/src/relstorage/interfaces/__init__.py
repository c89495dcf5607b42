"""The contracts. A plug-in implements these; ``relstorage.testing`` checks that it keeps them."""

from relstorage.interfaces.backends import IAdapter, ICommitSteps, ISchema
from relstorage.interfaces.plugins import IBackend, IDriver, ISharedStates, IStateCache
from relstorage.interfaces.sessions import ISession

__all__ = ["IAdapter", "IBackend", "ICommitSteps", "IDriver", "ISchema", "ISession", "ISharedStates", "IStateCache"]
