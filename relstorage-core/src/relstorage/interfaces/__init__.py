"""The contracts. A plug-in implements these; ``relstorage.testing`` checks that it keeps them."""

from relstorage.interfaces.backends import IAdapter, IBlobStore, ICommitSteps, ISchema
from relstorage.interfaces.plugins import IBackend, IDriver, ISharedStates, IStateCache
from relstorage.interfaces.sessions import ISession

__all__ = [
    "IAdapter",
    "IBackend",
    "IBlobStore",
    "ICommitSteps",
    "IDriver",
    "ISchema",
    "ISession",
    "ISharedStates",
    "IStateCache",
]
