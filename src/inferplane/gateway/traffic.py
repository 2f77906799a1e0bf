"""Since when an endpoint has had no requests: read from Envoy's counters.

Envoy counts the requests that it has sent to each endpoint's replicas, and goes on counting while the
control plane is away. What was seen last is therefore kept in a file: after a restart, a counter that
has not moved means that nothing came in the meantime, and the idle time goes on from where it was.

    nothing measured yet, or requests in flight → None (busy, as far as anybody knows)
    else → when the counter was last seen to move, or first seen at all

It is a measurement every few seconds, so it lags by that much; it never calls idle what is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from inferplane.gateway.admin import Admin, AdminUnreachable
from inferplane.gateway.series import Counters, Served, Tally, by_upstream, counted
from inferplane.observability import get_logger

POLL_SECONDS = 2.0
_COUNTERS = r"^cluster\.[^.]+\.upstream_rq_(total|active)$"

log = get_logger("gateway.traffic")

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Count:
    """Requests of one endpoint: sent so far, and in flight."""

    total: int = 0
    active: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What is remembered of one endpoint: the counter, since when it stands still, whether it is busy."""

    total: int
    since: datetime
    busy: bool = False


def counts_of(statistics: Mapping[str, int]) -> dict[str, Count]:
    """Requests by endpoint uid, from Envoy's statistics, over all its revisions.

    An upstream is `<workspace>/<endpoint>/<uid>/r<revision>`, and `…/<key id>` where keys are counted apart.
    """
    totals: dict[str, int] = {}
    active: dict[str, int] = {}
    for name, value in statistics.items():
        upstream, _, counter = name.removeprefix("cluster.").rpartition(".")
        uid = _uid(upstream)
        if not uid:
            continue
        sums = active if counter.endswith("_active") else totals
        sums[uid] = sums.get(uid, 0) + value
    return {uid: Count(totals.get(uid, 0), active.get(uid, 0)) for uid in totals | active}


def _uid(upstream: str) -> str:
    parts = upstream.split("/")
    return parts[2] if len(parts) in (4, 5) else ""


class Requests:
    """Requests of each endpoint, counted so that the number only grows while its upstreams come and go.

    See `series.Tally`, which does this for everything that is counted of a revision.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._totals: dict[str, int] = {}

    def add(self, statistics: Mapping[str, int]) -> dict[str, Count]:
        """The counts after a look at everybody. An endpoint without upstreams is forgotten."""
        present = {
            name.removeprefix("cluster.").rpartition(".")[0]: value
            for name, value in statistics.items()
            if not name.endswith("_active")
        }
        counts = counts_of(statistics)
        totals = {uid: self._totals.get(uid, 0) for uid in counts}
        for upstream, value in present.items():
            if uid := _uid(upstream):
                before = self._last.get(upstream, 0)
                totals[uid] += value if value < before else value - before
        self._last, self._totals = present, totals
        return {uid: Count(totals[uid], count.active) for uid, count in counts.items()}


def observe(before: Mapping[str, Seen], counts: Mapping[str, Count], now: datetime) -> dict[str, Seen]:
    """What to remember after a look. Endpoints without counters (no replica) are forgotten."""
    after = {}
    for uid, count in counts.items():
        known = before.get(uid)
        busy = count.active > 0
        if known is None:
            after[uid] = Seen(count.total, now, busy)
            continue
        # A counter that went back to nothing belongs to a new Envoy: that alone is no request.
        moved = count.total != known.total and count.total > 0
        still = not moved and not busy and not known.busy
        after[uid] = Seen(count.total, known.since if still else now, busy)
    return after


class TrafficMeter:
    """Looks at a gateway's counters regularly. `file` is where what was seen is kept.

    `on_look` hears of every look: the requests of each endpoint, and when that was.
    """

    def __init__(
        self,
        admin_socket: Path,
        file: Path,
        clock: Clock,
        *,
        poll_seconds: float = POLL_SECONDS,
        on_look: Callable[[Mapping[str, Count], datetime], None] = lambda _counts, _at: None,
    ) -> None:
        self._admin = Admin(admin_socket)
        self._file = file
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._on_look = on_look
        self._seen: dict[str, Seen] = {}
        self._requests = Requests()
        self._tally = Tally()
        self._counting = asyncio.Lock()
        self._measured = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up what was seen before, look once, and then regularly."""
        self._seen = read_seen(self._file)
        await self.look()
        self._task = asyncio.create_task(self._look_forever())

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._admin.close()

    def idle_since(self, uid: str) -> datetime | None:
        """When the endpoint's last request was over; None while it has some, or before anything is known."""
        seen = self._seen.get(uid)
        return None if seen is None or seen.busy or not self._measured else seen.since

    async def counters(self, uid: str = "") -> Mapping[Served, Counters]:
        """What Envoy has counted by revision, with times; of one endpoint, or of all.

        They only grow while the revision has a replica and we run. Raises AdminUnreachable.
        """
        async with self._counting:  # an older look after a newer one would seem to begin anew
            text = await self._admin.prometheus(counted(uid))
            # Thousands of histograms take a while to read.
            found = by_upstream(text) if uid else await asyncio.to_thread(by_upstream, text)
            return self._tally.add(found, uid)

    async def look(self) -> None:
        """One look. While Envoy does not answer, nobody is idle."""
        try:
            statistics = await self._admin.numbers(_COUNTERS, unused=True)
        except AdminUnreachable:
            self._measured = False
            return
        now = self._clock()
        # As Envoy has it, because the next process of ours compares with what it reads itself.
        seen = observe(self._seen, counts_of(statistics), now)
        self._measured = True
        if seen != self._seen:
            self._seen = seen
            write_seen(self._file, seen)
        self._on_look(self._requests.add(statistics), now)

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self.look()
            except Exception:  # a meter that dies silently would let busy GPUs be called idle
                self._measured = False
                log.exception("cannot measure traffic")


def read_seen(file: Path) -> dict[str, Seen]:
    """What was written; nothing when that cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(uid): Seen(int(total), datetime.fromisoformat(since), bool(busy))
            for uid, (total, since, busy) in content.items()
        }
    return {}


def write_seen(file: Path, seen: Mapping[str, Seen]) -> None:
    """Replace the file in one step. On a full disk it stays as it was; idle times then restart with us."""
    content = {uid: (each.total, each.since.isoformat(), each.busy) for uid, each in sorted(seen.items())}
    partial = file.with_name(file.name + ".new")
    try:
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        log.warning("cannot keep what was seen of traffic", error=str(error))
