"""What the gateway saw of each revision over time, kept in memory: for charts, and to judge a rollout.

Two looks at Envoy's counters, both regular:

* every SAMPLE_SECONDS at everybody, kept as finished numbers for an hour (`points`);
* every WATCH_SECONDS at the endpoints of which a rollout is under way (`by_revision`), kept as counters,
  so that any window can be asked for.

Whoever had requests between two looks is also asked for the size of its batches (`gateway.batches`).

All of it is lost with the process. A rollout is then judged by what comes, and charts begin anew.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from inferplane.domain.rollout import RevisionTraffic
from inferplane.gateway.admin import AdminUnreachable
from inferplane.gateway.route_table import Upstream
from inferplane.gateway.series import Counters, Served, render
from inferplane.observability import get_logger

SAMPLE_SECONDS = 10.0
POINTS_MAX = 360
"""An hour of points."""
SERIES_MAX = 2_000
"""Revisions of which points are kept; beyond it, those that were quiet for longest are forgotten."""
WATCH_SECONDS = 1.0
WATCHED_FOR = timedelta(seconds=30)
"""How long an endpoint stays watched after it was last asked about."""
WATCH_SAMPLES_MAX = 180
BUSY_SHARE_MAX = 0.05
"""Reading thousands of counters takes a while: no more than this share of the time is spent on it."""

log = get_logger("gateway.history")

Clock = Callable[[], datetime]
Read = Callable[[str], Awaitable[Mapping[Served, Counters]]]
Replicas = Callable[[str], Iterable[Upstream]]
BatchRows = Callable[[Iterable[str]], Awaitable[Mapping[tuple[str, int], float]]]
"""Rows in one call of the model since the last time, by uid and revision, of the endpoints that are named."""


@dataclass(frozen=True, slots=True)
class Point:
    """One revision over `seconds` up to `at`. `errors` are answers with 5xx. Times are None without answers.

    `concurrency` is how many requests were with its replicas on average. `replicas` got requests at `at`;
    `batch_rows` is how many rows one call of the model had, None where nobody counts that.
    """

    at: datetime
    seconds: float
    requests: int
    errors: int
    concurrency: float
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None
    replicas: int = 0
    batch_rows: float | None = None


@dataclass(frozen=True, slots=True)
class _Look:
    at: datetime
    counters: Counters


_NOTHING = Counters()


class TrafficHistory:
    """`read(uid)` asks Envoy for the counters of one endpoint, of everybody for ""; it may raise
    AdminUnreachable. `replicas(uid)` are those that may get requests now."""

    def __init__(
        self,
        read: Read,
        clock: Clock,
        *,
        replicas: Replicas = lambda _uid: (),
        batch_rows: BatchRows | None = None,
    ) -> None:
        self._read = read
        self._clock = clock
        self._replicas = replicas
        self._batch_rows = batch_rows
        self._last: dict[Served, _Look] = {}
        self._looked_at: datetime | None = None
        self._points: OrderedDict[Served, deque[Point]] = OrderedDict()
        self._watched: dict[str, datetime] = {}
        self._watched_at: dict[str, datetime] = {}
        self._looks: dict[str, dict[int, deque[_Look]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Look regularly."""
        self._tasks = [
            asyncio.create_task(self._forever(SAMPLE_SECONDS, self.sample)),
            asyncio.create_task(self._forever(WATCH_SECONDS, self.watch)),
        ]

    async def close(self) -> None:
        """Stop looking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    # --- asked ------------------------------------------------------------------------------------

    def points(self, uid: str) -> dict[int, tuple[Point, ...]]:
        """What is kept of an endpoint, oldest first, by revision."""
        return {served.revision: tuple(kept) for served, kept in self._points.items() if served.uid == uid}

    def by_revision(self, uid: str, window: timedelta) -> dict[int, RevisionTraffic]:
        """Each revision in the last `window` in which it had requests. Watches the endpoint from now on."""
        self._watched[uid] = self._clock()
        return {
            revision: traffic_in(tuple(looks), window) for revision, looks in self._looks.get(uid, {}).items()
        }

    async def text(self) -> str:
        """Every counter as Prometheus text, read now. Raises AdminUnreachable."""
        return render(await self._read(""))

    # --- looking ----------------------------------------------------------------------------------

    async def sample(self) -> None:
        """One look at everybody."""
        counters = await self._read("")
        now = self._clock()
        made: dict[Served, Point] = {}
        # Who was not there at the last look counts from nothing; at our first look nobody knows since when.
        began, self._looked_at = self._looked_at, now
        unseen = None if began is None else _Look(began, _NOTHING)
        for served, present in counters.items():
            before = self._last.get(served, unseen)
            self._last[served] = _Look(now, present)
            if before is not None:
                made[served] = point_between(before.counters, before.at, present, now)
        busy = dict.fromkeys(served.uid for served, point in made.items() if point.requests)
        sizes = await self._batch_rows(busy) if self._batch_rows is not None and busy else {}
        for served, point in made.items():
            kept = self._points.get(served)
            if kept is None and not point.requests:
                continue
            serving = sum(each.revision == served.revision for each in self._replicas(served.uid))
            rows = sizes.get((served.uid, served.revision)) if point.requests else None
            point = replace(point, replicas=serving, batch_rows=rows)
            if kept is None:
                kept = self._points[served] = deque(maxlen=POINTS_MAX)
            kept.append(point)
            if point.requests:
                self._points.move_to_end(served)
        for served in self._last.keys() - counters.keys():
            del self._last[served]
            self._points.pop(served, None)
        while len(self._points) > SERIES_MAX:
            self._points.popitem(last=False)

    async def watch(self) -> None:
        """One look at each endpoint that was asked about a moment ago."""
        now = self._clock()
        self._watched = {uid: at for uid, at in self._watched.items() if now - at < WATCHED_FOR}
        self._looks = {uid: looks for uid, looks in self._looks.items() if uid in self._watched}
        self._watched_at = {uid: at for uid, at in self._watched_at.items() if uid in self._watched}
        for uid in tuple(self._watched):
            counters = await self._read(uid)
            at = self._clock()
            began = self._watched_at.get(uid)
            self._watched_at[uid] = at
            looks = self._looks.setdefault(uid, {})
            for served, present in counters.items():
                kept = looks.setdefault(served.revision, deque(maxlen=WATCH_SAMPLES_MAX))
                if not kept and began is not None:
                    kept.append(_Look(began, _NOTHING))  # a revision's first requests judge it, too
                kept.append(_Look(at, present))

    async def _forever(self, seconds: float, look: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await look()
            except AdminUnreachable:
                pass  # a gap in a chart, or a moment in which nothing is judged
            except Exception:  # a history that dies silently would let a bad revision go on
                log.exception("cannot look at traffic")
            await asyncio.sleep(max(seconds, (loop.time() - began) / BUSY_SHARE_MAX))


def point_between(before: Counters, since: datetime, present: Counters, now: datetime) -> Point:
    """What happened between two looks."""
    came = present.since(before)
    seconds = max((now - since).total_seconds(), 0.001)
    return Point(
        at=now,
        seconds=seconds,
        requests=came.requests,
        errors=came.failed,
        concurrency=came.seconds / seconds,
        p50_seconds=came.quantile_seconds(0.5),
        p95_seconds=came.quantile_seconds(0.95),
        p99_seconds=came.quantile_seconds(0.99),
    )


def traffic_in(looks: tuple[_Look, ...], window: timedelta) -> RevisionTraffic:
    """What came in the last `window` in which anything did. `looks` are in order of time."""
    if len(looks) < 2:
        return RevisionTraffic()
    last = len(looks) - 1
    while last > 0 and looks[last].counters.requests == looks[last - 1].counters.requests:
        last -= 1
    if last == 0:
        return RevisionTraffic()
    first = last - 1
    while first > 0 and looks[last].at - looks[first].at < window:
        first -= 1
    came = looks[last].counters.since(looks[first].counters)
    p95 = came.quantile_seconds(0.95)
    return RevisionTraffic(came.requests, came.failed, None if p95 is None else p95 * 1000.0)
