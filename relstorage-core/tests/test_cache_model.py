"""The state cache against a plain list of commits: whatever the order in which readers, writers and polls arrive, a
lookup returns what the database has at that view, or nothing."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relstorage.cache import CODECS, open_cache
from relstorage.cache.changelog import EVERYTHING
from relstorage.cache.entries import OVERHEAD
from relstorage.ids import to_bytes

OIDS = range(6)
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
viewers = st.integers(0, 3)
states = st.one_of(st.none(), st.integers(1, 900).map(lambda size: bytes([size % 251]) * size))


class CacheMachine(RuleBasedStateMachine):
    @initialize(
        keeps_history=st.booleans(),
        limit=st.sampled_from([0, 900, 1500, 2500, 100_000]),
        log_limit=st.sampled_from([0, 3, 8, 1000]),
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
        self.viewers = [Viewer() for _ in range(4)]
        self.commits: list[tuple[int, dict[int, bytes | None]]] = []

    def check(self, oid: int, view: int) -> None:
        expected = self.cache.contains(oid, view)
        found = self.cache.lookup(oid, view)
        assert (found is not None) == expected
        if found is not None:
            tid, state = self.database.at(oid, view)
            assert found == (state, to_bytes(tid)), f"oid {oid} at {view}"

    def length_as_kept(self, state: bytes) -> int:
        return len(state) if self.codec is None else min(len(state), len(self.codec.compress(state)))

    # --- the database moves on

    @rule(changes=st.dictionaries(oids, states, min_size=1, max_size=3))
    def commit(self, changes: dict[int, bytes | None]) -> None:
        self.commits.append((self.database.commit(changes), changes))

    @rule()
    def zap(self) -> None:
        self.database.zap()

    @precondition(lambda self: self.commits)
    @rule(which=st.integers(0, 100))
    def remember_own_commit(self, which: int) -> None:
        tid, changes = self.commits.pop(which % len(self.commits))
        for oid, state in changes.items():
            if state is not None:
                self.cache.remember(oid, tid, state, tid)

    # --- a viewer polls: it reads the horizon and asks in one step, and tells the cache in another

    @rule(number=viewers, snapshot=st.integers(0, 3))
    def ask(self, number: int, snapshot: int) -> None:
        viewer = self.viewers[number]
        since = self.cache.horizon
        # A snapshot may be older than the database; never older than the viewer or what it asks from.
        upto = max(self.database.last - snapshot, since, viewer.view or 0, 10)
        viewer.poll = (None, upto, []) if since < 0 else (since, upto, self.database.poll(since, upto))

    @rule(number=viewers)
    def learn(self, number: int) -> None:
        viewer = self.viewers[number]
        if viewer.poll is None:
            return
        since, upto, changes = viewer.poll
        viewer.poll = None
        self.cache.learn(since, upto, changes)
        before, viewer.view = viewer.view, upto
        assert upto <= self.cache.horizon
        logged = self.cache.changes(before, upto) if before is not None else None
        if logged is not None:
            truth = self.database.poll(before, upto)
            assert [tid for _, tid in logged] == sorted(tid for _, tid in logged)
            assert all(before < tid <= upto for _, tid in logged)
            assert {oid for oid, _ in logged} >= {oid for oid, _ in truth}
            assert set(logged) >= set(truth)
        elif before is not None and before <= upto:
            assert before < self.cache.floor

    @rule(number=viewers)
    def fall_behind(self, number: int) -> None:
        """A poll that asked from above the horizon, as after clear()."""
        viewer = self.viewers[number]
        if viewer.poll is None and self.cache.horizon + 2 < self.database.last:
            since = self.cache.horizon + 2
            viewer.poll = (since, self.database.last, self.database.poll(since, self.database.last))

    # --- a viewer reads: it looks up, loads in one step, and tells the cache in another

    @rule(number=viewers, oid=oids)
    def read(self, number: int, oid: int) -> None:
        view = self.viewers[number].view
        if view is not None:
            self.check(oid, view)

    @rule(number=viewers, oid=oids)
    def load(self, number: int, oid: int) -> None:
        viewer = self.viewers[number]
        if viewer.view is not None:
            tid, state = self.database.at(oid, viewer.view)
            viewer.load = None if state is None else (oid, tid, state, viewer.view)

    @rule(number=viewers)
    def remember(self, number: int) -> None:
        viewer = self.viewers[number]
        if viewer.load is not None:
            self.cache.remember(*viewer.load)
            viewer.load = None

    @rule(oid=oids, back=st.integers(0, 8))
    def read_in_the_past(self, oid: int, back: int) -> None:
        if self.cache.horizon - back >= 10:
            self.check(oid, self.cache.horizon - back)

    # --- the rest

    @rule(some=st.sets(oids))
    def forget(self, some: set[int]) -> None:
        self.cache.forget(some)
        assert not any(self.cache.contains(oid, self.cache.horizon) for oid in some)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        for viewer in self.viewers:
            viewer.view = None
        assert self.cache.statistics().entries == 0

    @invariant()
    def no_view_would_be_answered_wrongly(self) -> None:
        for oid, entry in self.cache._residents.entries.items():
            record = entry.record
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
        assert statistics.log_length <= self.log_limit
        assert statistics.floor <= statistics.horizon
        for oid, entry in entries.items():
            assert entry.oid == oid
            assert kept[oid] < OBJECT_MAX


CacheMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestCacheAgainstTheModel = CacheMachine.TestCase
