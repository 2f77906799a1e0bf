"""What is remembered of traffic: points for charts, and the window that a rollout is judged by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from inferplane.domain.rollout import RevisionTraffic
from inferplane.gateway.history import POINTS_MAX, SERIES_MAX, TrafficHistory
from inferplane.gateway.route_table import Upstream
from inferplane.gateway.series import Counters, Served

T0 = datetime(2026, 1, 1, tzinfo=UTC)
UID = "0123456789ab"
WINDOW = timedelta(seconds=30)


class Envoy:
    """Counters that a test moves, and its clock."""

    def __init__(self) -> None:
        self.now = T0
        self.counters: dict[Served, Counters] = {}

    def clock(self) -> datetime:
        return self.now

    async def read(self, uid: str) -> Mapping[Served, Counters]:
        return {served: one for served, one in self.counters.items() if uid in ("", served.uid)}

    def serve(self, revision: int, requests: int, errors: int = 0, seconds: float = 0.01) -> None:
        """So many more requests of a revision, each of which took `seconds`."""
        served = Served("w", "iris", UID, revision)
        before = self.counters.get(served, Counters())
        total = before.requests + requests
        bounds = dict(before.buckets)
        buckets = tuple(
            (bound, bounds.get(bound, 0) + (requests if seconds <= bound else 0))
            for bound in (0.01, 0.1, 1.0)
        )
        self.counters[served] = Counters(
            requests=total,
            classes={2: before.classes.get(2, 0) + requests - errors, 5: before.failed + errors},
            seconds=before.seconds + requests * seconds,
            answered=total,
            buckets=buckets,
        )


async def test_points_tell_what_happened_between_two_looks() -> None:
    envoy = Envoy()
    history = TrafficHistory(envoy.read, envoy.clock)
    envoy.serve(1, 100)
    await history.sample()
    envoy.now += timedelta(seconds=10)
    envoy.serve(1, 50, errors=5, seconds=0.1)
    await history.sample()
    (point,) = history.points(UID)[1]
    assert (point.requests, point.errors, point.seconds) == (50, 5, 10.0)
    assert round(point.concurrency, 3) == 0.5
    assert point.p95_seconds is not None
    assert 0.01 < point.p95_seconds <= 0.1


async def test_who_comes_between_two_looks_counts_from_its_first_request_and_nobody_does_at_the_first() -> (
    None
):
    envoy = Envoy()
    history = TrafficHistory(envoy.read, envoy.clock)
    envoy.serve(1, 1000)
    await history.sample()
    envoy.now += timedelta(seconds=10)
    envoy.serve(2, 7)
    await history.sample()
    assert 1 not in history.points(UID), "who knows when those came"
    assert [point.requests for point in history.points(UID)[2]] == [7]


async def test_the_first_requests_of_a_revision_that_is_watched_judge_it() -> None:
    envoy = Envoy()
    history = TrafficHistory(envoy.read, envoy.clock)
    history.by_revision(UID, WINDOW)
    envoy.serve(1, 1000)
    await history.watch()
    envoy.now += timedelta(seconds=1)
    envoy.serve(2, 5, errors=5)
    await history.watch()
    found = history.by_revision(UID, WINDOW)
    assert (found[1].requests, found[2].requests, found[2].errors) == (0, 5, 5)


async def test_points_tell_how_many_replicas_there_were_and_the_size_of_batches() -> None:
    envoy, asked = Envoy(), list[list[str]]()

    async def rows(uids: Iterable[str]) -> Mapping[tuple[str, int], float]:
        asked.append(list(uids))
        return {(UID, 1): 7.5, (UID, 2): 1.0}

    there = [Upstream("r1-0", "unix:/a"), Upstream("r1-1", "unix:/b"), Upstream("r2-0", "unix:/c")]
    history = TrafficHistory(envoy.read, envoy.clock, replicas=lambda _uid: there, batch_rows=rows)
    for requests in (1, 5, 0):
        envoy.serve(1, requests)
        await history.sample()
        envoy.now += timedelta(seconds=10)
    told = [(point.replicas, point.batch_rows) for point in history.points(UID)[1]]
    assert told == [(2, 7.5), (2, None)]
    assert asked == [[UID]], "only who had requests is asked"


async def test_an_hour_is_kept_of_who_had_requests_and_nothing_of_who_had_none() -> None:
    envoy = Envoy()
    history = TrafficHistory(envoy.read, envoy.clock)
    envoy.serve(1, 0)
    for _ in range(POINTS_MAX + 10):
        await history.sample()
        envoy.now += timedelta(seconds=10)
        envoy.serve(2, 1)
    assert 1 not in history.points(UID)
    assert len(history.points(UID)[2]) == POINTS_MAX


async def test_no_more_than_so_many_series_are_kept_and_the_busy_ones_first() -> None:
    envoy = Envoy()
    history = TrafficHistory(envoy.read, envoy.clock)
    everybody = [Served("w", f"e{each}", f"{each:012x}", 1) for each in range(SERIES_MAX + 5)]
    for total in (1, 2):
        envoy.counters = {served: Counters(requests=total, answered=total) for served in everybody}
        await history.sample()
    envoy.counters = {s: Counters(requests=3 if s.uid == everybody[9].uid else 2) for s in everybody}
    await history.sample()
    assert history.points(everybody[0].uid) == {}
    assert history.points(everybody[9].uid)


async def test_a_revision_is_judged_by_the_last_window_in_which_it_had_requests() -> None:
    envoy = Envoy()
    history = TrafficHistory(envoy.read, envoy.clock)
    assert history.by_revision(UID, WINDOW) == {}
    envoy.serve(1, 1000, errors=1000)
    envoy.serve(2, 0)
    await history.watch()
    for _ in range(40):  # the base serves well for 40 s, the candidate fails a tenth
        envoy.now += timedelta(seconds=1)
        envoy.serve(1, 10)
        envoy.serve(2, 10, errors=1)
        await history.watch()
        history.by_revision(UID, WINDOW)
    found = history.by_revision(UID, WINDOW)
    assert found[2] == RevisionTraffic(300, 30, found[2].latency_p95_ms)
    for _ in range(60):  # the base has none any more; its last window counts
        envoy.now += timedelta(seconds=1)
        envoy.serve(2, 10)
        await history.watch()
        history.by_revision(UID, WINDOW)
    found = history.by_revision(UID, WINDOW)
    assert (found[1].requests, found[1].errors) == (300, 0)
    assert (found[2].requests, found[2].errors) == (300, 0)


async def test_who_is_not_asked_about_any_more_is_watched_no_longer() -> None:
    envoy = Envoy()
    history = TrafficHistory(envoy.read, envoy.clock)
    history.by_revision(UID, WINDOW)
    envoy.serve(1, 1)
    await history.watch()
    envoy.now += timedelta(seconds=31)
    await history.watch()
    assert history.by_revision(UID, WINDOW) == {}


async def test_a_new_envoy_begins_its_counters_anew() -> None:
    envoy = Envoy()
    history = TrafficHistory(envoy.read, envoy.clock)
    envoy.serve(1, 500)
    await history.sample()
    envoy.counters = {}
    envoy.serve(1, 7)
    envoy.now += timedelta(seconds=10)
    await history.sample()
    assert history.points(UID)[1][-1].requests == 7
