"""The state cache against a plain list of commits: whatever the order in which readers, writers and polls arrive, a
lookup returns what the database has at that view, or nothing."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relstorage.cache import CODECS, open_cache
from relstorage.cache.entries import OPEN, OVERHEAD
from relstorage.ids import EVERYTHING, to_bytes

OIDS = range(4)
OBJECT_MAX = 800


class ModelDatabase:
    """Every revision of every object; None is a removed object."""

    def __init__(self, keeps_history: bool) -> None:
        self.keeps_history = keeps_history
        self.last = 10
        self.revisions: dict[int, list[tuple[int, bytes | None]]] = {oid: [(10, b"first")] for oid in OIDS}
        self.zaps: list[int] = []

    def commit(self, changes: dict[int, bytes | None]) -> int:
        self.last += 1
        for oid, state in changes.items():
            self.revisions[oid].append((self.last, state))
        return self.last

    def zap(self) -> None:
        self.commit({oid: None for oid in OIDS})
        self.zaps.append(self.last)

    def at(self, oid: int, view: int) -> tuple[int, bytes | None]:
        return [(tid, state) for tid, state in self.revisions[oid] if tid <= view][-1]

    def poll(self, since: int, upto: int) -> list[tuple[int, int]]:
        found = [(EVERYTHING, tid) for tid in self.zaps if since < tid <= upto]
        for oid in OIDS:
            tids = [tid for tid, _ in self.revisions[oid] if since < tid <= upto and tid not in self.zaps]
            found += [(oid, tid) for tid in (tids if self.keeps_history else tids[-1:])]
        return found


class Viewer:
    """One connection: its view, and the steps that it has begun and not ended."""

    def __init__(self) -> None:
        self.view: int | None = None
        self.poll: tuple[int | None, int, list[tuple[int, int]]] | None = None
        self.load: tuple[int, int, bytes, int] | None = None


oids = st.sampled_from(OIDS)
viewers = st.integers(0, 2)
states = st.integers(0, 900).map(lambda size: bytes([size % 251]) * size or None)
rarely = st.sampled_from([False] * 7 + [True])
mostly = st.sampled_from([True, True, False])


class CacheMachine(RuleBasedStateMachine):
    #: How often the situations that matter occurred, in all runs together.
    seen: Counter[str] = Counter()

    @initialize(
        keeps_history=st.booleans(),
        limit=st.sampled_from([100_000, 2500, 1500, 900, 0]),
        log_limit=st.sampled_from([1000, 8, 3, 0]),
        codec=st.sampled_from(["none", "zlib"]),
        traced=st.booleans(),
    )
    def open(self, keeps_history: bool, limit: int, log_limit: int, codec: str, traced: bool) -> None:
        self.database = ModelDatabase(keeps_history)
        self.limit = limit
        self.log_limit = log_limit
        self.codec = CODECS[codec]
        self.cache = open_cache(
            limit,
            object_max=OBJECT_MAX,
            log_limit=log_limit,
            codec=self.codec,
            trace=(lambda *args, **kw: None) if traced else None,
        )
        self.viewers = [Viewer() for _ in range(3)]
        self.commits: list[tuple[int, dict[int, bytes | None]]] = []

    def length_as_kept(self, state: bytes) -> int:
        return len(state) if self.codec is None else min(len(state), len(self.codec.compress(state)))

    # --- the database moves on; a commit is remembered now or later

    @rule(changes=st.dictionaries(oids, states, min_size=1, max_size=2), at_once=mostly)
    def commit(self, changes: dict[int, bytes | None], at_once: bool) -> None:
        self.commits.append((self.database.commit(changes), changes))
        if at_once:
            self.remember_own_commit(0)

    @precondition(lambda self: self.commits)
    @rule(which=st.integers(0, 5))
    def remember_own_commit(self, which: int) -> None:
        tid, changes = self.commits.pop(-1 - which % len(self.commits))
        for oid, state in changes.items():
            if state is not None:
                self.cache.remember(oid, tid, state, tid)

    # --- a viewer polls: it reads the horizon and asks in one step, and tells the cache then or in another

    @rule(number=viewers, snapshot=st.integers(0, 2), at_once=mostly)
    def poll(self, number: int, snapshot: int, at_once: bool) -> None:
        viewer = self.viewers[number]
        if viewer.poll is None:
            since = self.cache.horizon
            # A snapshot may be older than the database; never older than the viewer or what it asks from.
            upto = max(self.database.last - snapshot, since, viewer.view or 0, 10)
            viewer.poll = (None, upto, []) if since < 0 else (since, upto, self.database.poll(since, upto))
            if not at_once:
                return
        since, upto, changes = viewer.poll
        viewer.poll = None
        self.seen["late poll"] += upto < self.cache.horizon
        self.cache.learn(since, upto, changes)
        before, viewer.view = viewer.view, upto
        assert upto <= self.cache.horizon
        if before is not None:
            self.check_log(before, upto)

    def check_log(self, since: int, upto: int) -> None:
        logged = self.cache.changes(since, upto)
        if logged is None:
            self.seen["log too short"] += 1
            assert since < self.cache.floor
            return
        self.seen["log answered"] += bool(logged)
        assert [tid for _, tid in logged] == sorted(tid for _, tid in logged)
        assert all(since < tid <= upto for _, tid in logged)
        assert set(logged) >= set(self.database.poll(since, upto))

    # --- a viewer reads: it looks up and loads in one step, and tells the cache then or in another

    @rule(number=viewers, some=st.lists(oids, min_size=1, max_size=6), at_once=mostly)
    def read(self, number: int, some: list[int], at_once: bool) -> None:
        viewer = self.viewers[number]
        if viewer.load is not None:
            load, viewer.load = viewer.load, None
            self.seen["late load"] += load[3] < self.cache.horizon
            self.cache.remember(*load)
        if viewer.view is None:
            self.poll(number, 0, True)
        for oid in some:
            tid, state = self.database.at(oid, viewer.view)
            found = self.cache.lookup(oid, viewer.view)
            if found is not None:
                self.seen["hit"] += 1
                assert found == (state, to_bytes(tid)), f"oid {oid} at {viewer.view}"
            elif state is not None:
                load = (oid, tid, state, viewer.view)
                if at_once:
                    self.cache.remember(*load)
                else:
                    viewer.load = load

    # --- what happens rarely

    @rule(number=viewers, really=rarely, what=st.sampled_from(["zap", "forget", "gap", "clear"]), some=st.sets(oids))
    def disturb(self, number: int, really: bool, what: str, some: set[int]) -> None:
        if not really:
            return
        self.seen[what] += 1
        if what == "zap":
            self.database.zap()
        elif what == "forget":
            self.cache.forget(some)
            assert not any(self.cache.contains(oid, self.cache.horizon) for oid in some)
        elif what == "gap":
            # A poll that asked from above the horizon, as one that was under way while another thread cleared.
            since = min(self.cache.horizon + 2, self.database.last)
            self.viewers[number].poll = (since, self.database.last, self.database.poll(since, self.database.last))
            # Clearing takes the views with it: nobody asks for the changes since one from before.
            self.viewers[number].view = None
        else:
            self.cache.clear()
            for viewer in self.viewers:
                viewer.view = None
            assert self.cache.statistics().entries == 0

    # --- what always holds

    @invariant()
    def no_view_would_be_answered_wrongly(self) -> None:
        for oid, entry in self.cache._residents.entries.items():
            record = entry.record
            self.seen["closed entry"] += entry.until < OPEN
            for view in range(10, self.cache.horizon + 1):
                if self.cache.contains(oid, view):
                    tid, state = self.database.at(oid, view)
                    assert record == (state, to_bytes(tid)), f"oid {oid} at {view}"

    @invariant()
    def bytes_are_exact(self) -> None:
        statistics = self.cache.statistics()
        entries = self.cache._residents.entries
        kept = {oid: self.length_as_kept(entry.record[0]) for oid, entry in entries.items()}
        assert statistics.bytes == sum(kept.values()) + OVERHEAD * len(kept) <= self.limit
        assert statistics.entries == len(entries)
        self.seen["evictions"] += statistics.evictions
        assert statistics.log_length <= self.log_limit
        assert statistics.floor <= statistics.horizon
        for oid, entry in entries.items():
            assert entry.oid == oid
            assert kept[oid] < OBJECT_MAX


def test_no_interleaving_makes_the_cache_answer_wrongly():
    CacheMachine.seen.clear()
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=150,
            stateful_step_count=60,
            deadline=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    print(CacheMachine.seen)
    # A model that never gets there shows nothing.
    assert CacheMachine.seen["hit"] > 100
    assert CacheMachine.seen["closed entry"] > 20
    for situation in ("late poll", "late load", "log answered", "log too short", "evictions", "zap", "gap", "clear"):
        assert CacheMachine.seen[situation] > 0, situation
