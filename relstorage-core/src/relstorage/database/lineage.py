"""Notice that the server came back as another one: restarted after a crash, or replaced by a standby.

Such a server may lack what was seen before. So a new state cache takes the place of the one that was filled until then,
each storage tells ZODB at its next poll that everything may have changed, and a transaction that began before is not
committed after. A reader that is in the middle of a transaction goes on with the former cache, into which nothing of
the new server's comes, as long as it can.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from relstorage.errors import Disconnected

log = logging.getLogger(__name__)


class Lineage:
    """What one process knows of the server's incarnations, and of copies that are read in its place.

    ``new_cache`` makes an empty state cache, ``forget`` drops what else was learned from a former server.
    """

    def __init__(self, name: str, new_cache: Callable[[], Any], forget: Callable[[], None]):
        self._name = name
        self._new_cache = new_cache
        self._forget = forget
        self._lock = threading.Lock()
        self._known: Any = None
        #: Incarnations that another one has followed. Who is still connected to one reads what may be no more.
        self._former: set[Any] = set()
        #: What is read instead of the server, and where each has its changes from.
        self._copies: dict[Any, Any] = {}
        #: Whether any copy was read, which may be behind the server or, for a moment, ahead of it.
        self.has_copies = False
        #: The state cache of the incarnation.
        self.cache = new_cache()

    def follow(self, session: Any) -> Any:
        """Take note of the incarnation that a session in a transaction is connected to; return its state cache.

        Raise ``Disconnected``, and close the session, if another incarnation has followed.
        """
        # Before the question, so that it is not the cache of a later incarnation.
        cache = self.cache
        incarnation = session.incarnation()
        if session.may_lag:
            copy, source = incarnation
            if copy in self._copies and source in (None, self._copies[copy]):
                return cache
            return self._follow_copy(copy, source)
        return cache if incarnation == self._known else self._follow_server(session, incarnation)

    def _follow_server(self, session: Any, incarnation: Any) -> Any:
        with self._lock:
            if incarnation in self._former:
                session.close()
                raise Disconnected(f"{self._name}: another server has taken this one's place. Connect again.")
            known, self._known = self._known, incarnation
            if known not in (None, incarnation):
                self._former.add(known)
                self._start_over()
            return self.cache

    def _follow_copy(self, copy: Any, source: Any) -> Any:
        with self._lock:
            if copy in self._copies:
                # It may have another server's changes from now on.
                news = source not in (None, self._copies[copy])
            else:
                # What was read elsewhere may be more than it has and will ever get.
                news = bool(self._copies) or self._known is not None
            if copy not in self._copies or source is not None:
                self._copies[copy] = source
            self.has_copies = True
            if news:
                self._start_over()
            return self.cache

    def _start_over(self) -> None:
        former, self.cache = self.cache, self._new_cache()
        former.drop_states()
        self._forget()
        log.warning("%s was restarted or replaced by another server; what was read before is forgotten", self._name)
