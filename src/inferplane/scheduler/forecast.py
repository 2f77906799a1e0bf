"""When each waiting request would start: the cycle replayed on a simulated clock.

The clock jumps from one known end to the next. At each, the GPUs are given back and the same walk as in
the real cycle is made over those that still wait; what it grants then is the estimate. So an estimate is
exactly as good as the ends it rests on, and says so. Nobody new arrives in the simulation.

A holder that renews itself ends only if somebody ahead of it in line wants its GPUs, as in `renewal`;
it then goes back into the line.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from inferplane.domain.gpu_request import GpuRequest, ProvisioningStatus, wants_requeue
from inferplane.scheduler.cycle import Choices, decide, waiting_requests
from inferplane.scheduler.decisions import (
    NEVER,
    Basis,
    Cause,
    Decisions,
    Estimate,
    Renewal,
    WaitReason,
    Waits,
)
from inferplane.scheduler.ordering import Order, advance_usage, order_queue
from inferplane.scheduler.placement import SOONEST_END, Floor, Holder, PoolKey
from inferplane.scheduler.snapshot import Snapshot

FORECAST_REQUESTS_MAX = 512
"""So many, first in line, are worked out; the others are extrapolated and say so."""

FORECAST_WALKS_MAX = 2000
"""So many ends are looked at; who has not started by then has no estimate."""

OUT_OF_TIME = "working it out would have taken too long"

_NO_WAITS = Waits([], [], [])


def always() -> bool:
    """Never stop before the end."""
    return True


def forecast(snapshot: Snapshot) -> Mapping[str, Estimate]:
    """An estimate for every queued request, by id.

    Never now for something that must wait; None where nothing that is known would let it start, and why.
    Exact for the first FORECAST_REQUESTS_MAX in line if every request runs for its exit duration.
    """
    return Replay(snapshot).run()


def renewal(snapshot: Snapshot, request: GpuRequest) -> Renewal:
    """Whether a holder may go on past its deadline: it may unless somebody ahead of it wants its GPUs, or
    these are gone or out of order: asking again, it gets some that work.

    Ahead means: in the line as it would be if the holder asked again now.
    """
    again = _asking_again(request, snapshot.now)
    line = order_queue([*waiting_requests(snapshot), again], snapshot.now, snapshot.usage, snapshot.switches)
    floor = Floor(snapshot)
    holder = floor.holders.get(request.id)
    if holder is not None and not floor.is_in_order(holder):
        return Renewal(False, "its GPUs are gone or out of order")
    decisions = decide(floor, _without(line, again.id), snapshot, snapshot.now)
    place = next(index for index, each in enumerate(line.requests) if each.id == again.id)
    ahead = {each.id for each in line.requests[:place]}
    held = pools_of(holder)
    wanting = next(
        (each for each in decisions.waits if each.request_id in ahead and competes(each.cause, held)), None
    )
    if wanting is None:
        return Renewal(True, "nobody ahead of it waits for its GPUs")
    return Renewal(False, "a request ahead of it waits for its GPUs", wanting.request_id)


class Replay:
    """One simulation. Used once. `until` is a request: it stops as soon as that one has started.

    It also stops where `keep_going` says no, and then has no estimate for those who have not started.
    """

    def __init__(self, snapshot: Snapshot, until: str = "", keep_going: Callable[[], bool] = always) -> None:
        self.snapshot = snapshot
        self.until = until
        self.keep_going = keep_going
        self.given_up = False
        self.now = snapshot.now
        self.floor = Floor(snapshot)
        self.choices = Choices(self.floor, snapshot)
        self.usage = dict(snapshot.usage)
        self.starts: dict[str, datetime] = {}
        self.first_waits: Waits = _NO_WAITS
        self.latest_waits: Waits = _NO_WAITS
        self.renewed_in_vain: set[str] = set()
        self.ends: list[tuple[datetime, str]] = []
        self.walks = 0

    def run(self) -> Mapping[str, Estimate]:
        """Live through it; an estimate for every queued request, by id."""
        line = order_queue(waiting_requests(self.snapshot), self.now, self.usage, self.snapshot.switches)
        worked_out = list(line.requests[:FORECAST_REQUESTS_MAX])
        if self.until and all(each.id != self.until for each in worked_out):
            worked_out += [each for each in line.requests if each.id == self.until]
        self.asked = frozenset(each.id for each in worked_out)
        waiting = {each.id: each for each in worked_out}
        self.truncated = len(worked_out) < len(line.requests)
        decisions = self._begin(waiting, Order(tuple(worked_out), line.moved))
        positions = {each.request_id: each.position for each in decisions.waits}
        while self._goes_on():
            self._advance(waiting)
        causes = dict(self.latest_waits.causes())
        estimates = {each.id: self._estimate(each, positions, causes.get(each.id)) for each in worked_out}
        pace = self._pace()
        for rank, each in enumerate(line.requests):
            if each.id not in estimates:
                estimates[each.id] = self._extrapolated(each, rank, pace)
        return estimates

    # --- The clock -----------------------------------------------------------------------------

    def _begin(self, waiting: dict[str, GpuRequest], line: Order) -> Decisions:
        """The walk at the first moment; `waiting` in the order of `line`."""
        self.ends = [(holder.ends_at, holder.request.id) for holder in self.floor.holders.values()]
        heapq.heapify(self.ends)
        decisions = self._walk(waiting, line)
        self.first_waits = decisions.waits
        return decisions

    def _goes_on(self) -> bool:
        if not self.ends or self.walks >= FORECAST_WALKS_MAX:
            return False
        if self._is_over():
            return False
        if not self.keep_going():
            self.given_up = True
            return False
        return any(each not in self.renewed_in_vain for _, each in self.ends)

    def _is_over(self) -> bool:
        """Whether there is nothing to find out any more."""
        if self.until and self.until in self.starts:
            return True
        waits = self.latest_waits.causes()
        return not any(cause.reason not in NEVER for each, cause in waits if each in self.asked)

    def _advance(self, waiting: dict[str, GpuRequest]) -> None:
        """Go to the next known end, give back what ends there, and walk along the line again."""
        before, self.now = self.now, self.ends[0][0]
        if (fair_share := self.snapshot.switches.fair_share) is not None:
            self.usage = advance_usage(self.usage, self.floor.held_gpus, self.now - before, fair_share)
        changed = False
        while self.ends and self.ends[0][0] <= self.now:
            at, request_id = heapq.heappop(self.ends)
            ending = self.floor.holders.get(request_id)
            if ending is not None and ending.ends_at == at:  # else it was moved, or has gone
                self._end(ending, waiting)
                changed = True
        if changed:
            self._walk(waiting, self._line(waiting.values()))

    def _line(self, waiting: Iterable[GpuRequest]) -> Order:
        return order_queue(waiting, self.now, self.usage, self.snapshot.switches)

    def _end(self, holder: Holder, waiting: dict[str, GpuRequest]) -> None:
        """Give its GPUs back, or let it go on; either may change what those that wait can have."""
        request = holder.request
        if request.auto_renew and not holder.draining:
            again = _asking_again(request, self.now)
            if self.floor.is_in_order(holder) and not self._is_wanted(holder, again, waiting):
                self.floor.end_at(
                    holder, holder.ends_at + max(request.exit_duration, SOONEST_END), draining=False
                )
                heapq.heappush(self.ends, (holder.ends_at, request.id))
                self.renewed_in_vain.add(request.id)
                return
            waiting[again.id] = again
        elif holder.draining and self._comes_back(request):
            waiting[request.id] = replace(request, status=ProvisioningStatus.QUEUED, grant=None)
        self.floor.release(holder)

    def _comes_back(self, request: GpuRequest) -> bool:
        if request.status is ProvisioningStatus.DRAINING and request.ending_as not in (
            ProvisioningStatus.EVICTED,
            ProvisioningStatus.FAILED,
        ):
            return False
        as_ended = replace(request, status=ProvisioningStatus.EVICTED)
        return wants_requeue(as_ended, self.snapshot.policy(request.workspace))

    def _is_wanted(self, holder: Holder, again: GpuRequest, waiting: dict[str, GpuRequest]) -> bool:
        held = pools_of(holder)
        causes = dict(self.latest_waits.causes())
        for each in self._line([*waiting.values(), again]).requests:
            if each.id == again.id:
                return False
            cause = causes.get(each.id)
            if cause is not None and competes(cause, held):
                return True
        return False

    def _decide(self, order: Order) -> Decisions:
        return decide(self.floor, order, self.snapshot, self.now, self.choices)

    def _walk(self, waiting: dict[str, GpuRequest], order: Order) -> Decisions:
        self.walks += 1
        decisions = self._decide(order)
        for grant in decisions.grants:
            self.starts.setdefault(grant.request_id, self.now)
            del waiting[grant.request_id]
            heapq.heappush(self.ends, (self.floor.holders[grant.request_id].ends_at, grant.request_id))
        for eviction in decisions.evictions:
            victim = self.floor.holders[eviction.victim_id]
            heapq.heappush(self.ends, (victim.ends_at, eviction.victim_id))
        if decisions.grants or decisions.evictions:
            self.renewed_in_vain.clear()
        self.latest_waits = decisions.waits
        return decisions

    # --- What comes of it ----------------------------------------------------------------------

    def _estimate(self, request: GpuRequest, positions: dict[str, int], cause: Cause | None) -> Estimate:
        position = positions.get(request.id, 0)
        start = self.starts.get(request.id)
        if start is not None:
            basis = Basis.FITS_NOW if start <= self.snapshot.now else Basis.KNOWN_ENDS
            return Estimate(request.id, start, basis, position, self.behind())
        return Estimate(request.id, None, Basis.UNKNOWN, position, self.why_unknown(cause))

    def behind(self) -> str:
        """What else an estimate assumes: that nobody counts who is too far behind; or ""."""
        return f"only the first {FORECAST_REQUESTS_MAX} in line were looked at" if self.truncated else ""

    def why_unknown(self, cause: Cause | None) -> str:
        """Why who still waits for `cause` has no estimate."""
        if cause is not None and cause.reason in NEVER:
            return cause.detail
        if self.given_up:
            return OUT_OF_TIME
        if self.walks >= FORECAST_WALKS_MAX:
            return f"it does not start within the next {FORECAST_WALKS_MAX} ends of other requests"
        if cause is not None and cause.reason is WaitReason.TOO_MANY_REQUESTS:
            return f"{cause.detail}, and none of them is known to end"
        return "what holds the GPUs is renewed as long as nobody ahead of it waits, so its end is not known"

    def _pace(self) -> timedelta | None:
        """How long one place in line takes, by what was worked out; None if nothing was."""
        later = [each for each in self.starts.values() if each > self.snapshot.now]
        return (max(later) - self.snapshot.now) / FORECAST_REQUESTS_MAX if later else None

    def _extrapolated(self, request: GpuRequest, rank: int, pace: timedelta | None) -> Estimate:
        if pace is None:
            return Estimate(request.id, None, Basis.UNKNOWN, rank + 1, "nobody ahead of it has an estimate")
        start = self.snapshot.now + max(SOONEST_END, pace * (rank + 1))
        return Estimate(request.id, start, Basis.EXTRAPOLATED, rank + 1)


def _asking_again(request: GpuRequest, now: datetime) -> GpuRequest:
    return replace(request, status=ProvisioningStatus.QUEUED, queued_at=now, grant=None)


def _without(line: Order, request_id: str) -> Order:
    return Order(tuple(each for each in line.requests if each.id != request_id), line.moved)


def pools_of(holder: Holder | None) -> frozenset[PoolKey]:
    """The pools in which it holds GPUs; none for None."""
    return frozenset() if holder is None else frozenset(slot.pool.key for slot, _ in holder.parts)


def competes(cause: Cause, held: frozenset[PoolKey]) -> bool:
    """Whether who waits for `cause` wants GPUs of one of these pools."""
    return cause.reason not in NEVER and not held.isdisjoint(cause.group)
