"""How a session on an SQLite file is to be opened."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SessionSettings:
    """What a driver of this backend gets to open a session."""

    path: str
    #: Seconds to wait for a lock.
    lock_timeout: float = 30.0
    #: EXTRA, FULL, NORMAL or OFF.
    synchronous: str = "FULL"
    #: Pragmas in the order in which they are set.
    pragmas: dict[str, str] = field(default_factory=dict)
    #: How many virtual-machine instructions run before a gevent driver lets others run.
    yield_interval: int = 100

    def synchronous_for(self, role: str) -> str:
        """Return the setting of a session: a pack waits for the disk at its end only, with a store session's commit."""
        return "NORMAL" if role == "pack" else self.synchronous
