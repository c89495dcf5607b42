"""The state cache that all connections of one process share.

Polls flow in through ``learn``, loads and own commits through ``remember``, and reads come out of ``lookup``. The rules
that keep a reader from seeing a revision of another moment are in ``states``; ``docs/explanation/cache.md`` explains
them.
"""

from __future__ import annotations

from collections.abc import Callable

from .codecs import CODECS, Codec
from .states import CacheStatistics, StateCache
from .trace import TracedStateCache, Tracer

__all__ = ["CODECS", "CacheStatistics", "Codec", "StateCache", "TracedStateCache", "Tracer", "open_cache"]


def open_cache(
    limit: int,
    *,
    object_max: int = 16384,
    log_limit: int = 100_000,
    codec: Codec | None = None,
    trace: Callable[..., None] | None = None,
) -> StateCache:
    """Return a state cache, a tracing one if ``trace`` (usually a ``Tracer``) is given.

    The parameters are those of ``StateCache``.
    """
    if trace is None:
        return StateCache(limit, object_max=object_max, log_limit=log_limit, codec=codec)
    return TracedStateCache(limit, object_max=object_max, log_limit=log_limit, codec=codec, trace=trace)
