"""When each waiting request would start: the cycle replayed on a simulated clock.

The clock jumps from one known end to the next. At each, the GPUs are given back and the same walk as in
the real cycle is made over those that still wait; what it grants then is the estimate. So an estimate is
exactly as good as the ends it rests on, and says so. Nobody new arrives in the simulation.

A holder that renews itself ends only if somebody ahead of it in line wants its GPUs, as in `renewal`;
it then goes back into the line.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from inferplane.domain.gpu_request import GpuRequest, ProvisioningStatus, Selection, wants_requeue
from inferplane.scheduler.cycle import decide, waiting_requests
from inferplane.scheduler.decisions import (
    NEVER,
    Basis,
    Candidate,
    Decisions,
    Estimate,
    Renewal,
    Wait,
    WaitReason,
)
from inferplane.scheduler.ordering import Order, advance_usage, order_queue
from inferplane.scheduler.placement import SOONEST_END, Floor, Holder, PoolKey, matches
from inferplane.scheduler.snapshot import Snapshot

FORECAST_REQUESTS_MAX = 512
"""So many, first in line, are worked out; the others are extrapolated and say so."""

FORECAST_WALKS_MAX = 2000
"""So many ends are looked at; who has not started by then has no estimate."""

WAIT_TIME_CANDIDATES_MAX = 32


def forecast(snapshot: Snapshot) -> Mapping[str, Estimate]:
    """An estimate for every queued request, by id.

    Never now for something that must wait; None where nothing that is known would let it start, and why.
    Exact for the first FORECAST_REQUESTS_MAX in line if every request runs for its exit duration.
    """
    return _Replay(snapshot).run()


def wait_times(snapshot: Snapshot, request: GpuRequest) -> tuple[Candidate, ...]:
    """For a request that is not in the queue: each kind of node that would do, soonest first.

    `request` is queued (its `queued_at` decides its age). Nothing is stored. Kinds of node that
    can never hold it come last, without an estimate and with the reason. At most WAIT_TIME_CANDIDATES_MAX.
    """
    policy = snapshot.policy(request.workspace)
    allowed = (
        None if snapshot.usable_clusters is None else snapshot.usable_clusters.get(request.workspace, ())
    )
    sizes: dict[PoolKey, int] = {}
    for node in snapshot.nodes:
        key = PoolKey(node.cluster, node.gpu_shape, node.instance_type, node.memory_gb)
        if (allowed is None or key.cluster in allowed) and matches(request.selection, key, policy):
            sizes[key] = max(sizes.get(key, 0), node.gpu_count)
    candidates = []
    for key in sorted(sizes)[:WAIT_TIME_CANDIDATES_MAX]:
        pinned = replace(request, selection=pinned_to(request.selection, key))
        with_it = replace(snapshot, requests=(*snapshot.requests, pinned))
        replay = _Replay(with_it, until=request.id)
        estimate = replay.run()[request.id]
        said = replay.first_waits.get(request.id)
        candidates.append(
            Candidate(key, sizes[key], estimate, said.message if said is not None else estimate.assumption)
        )
    return tuple(sorted(candidates, key=lambda each: (*_start_order(each.estimate), each.pool)))


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
    held = _pools_of(holder)
    wanting = next(
        (each for each in decisions.waits if each.request_id in ahead and _competes(each, held)), None
    )
    if wanting is None:
        return Renewal(True, "nobody ahead of it waits for its GPUs")
    return Renewal(False, "a request ahead of it waits for its GPUs", wanting.request_id)


def pinned_to(selection: Selection, key: PoolKey) -> Selection:
    """The same wish for one kind of node only."""
    return replace(
        selection,
        cluster_name=key.cluster,
        preferred_clusters=(),
        auto_cluster=False,
        auto_gpu=False,
        gpu_shape=key.gpu_shape,
        instance_type=key.instance_type,
        memory_gb=key.memory_gb,
    )


class _Replay:
    """One simulation. Used once."""

    def __init__(self, snapshot: Snapshot, until: str = "") -> None:
        self.snapshot = snapshot
        self.until = until  # stop as soon as this one has started
        self.now = snapshot.now
        self.floor = Floor(snapshot)
        self.usage = dict(snapshot.usage)
        self.starts: dict[str, datetime] = {}
        self.first_waits: dict[str, Wait] = {}
        self.latest_waits: dict[str, Wait] = {}
        self.renewed_in_vain: set[str] = set()
        self.ends: list[tuple[datetime, str]] = []
        self.walks = 0

    def run(self) -> Mapping[str, Estimate]:
        line = order_queue(waiting_requests(self.snapshot), self.now, self.usage, self.snapshot.switches)
        worked_out = list(line.requests[:FORECAST_REQUESTS_MAX])
        if self.until and all(each.id != self.until for each in worked_out):
            worked_out += [each for each in line.requests if each.id == self.until]
        self.asked = frozenset(each.id for each in worked_out)
        waiting = {each.id: each for each in worked_out}
        self.truncated = len(worked_out) < len(line.requests)
        positions = self._first_walk(waiting, line)
        while self._goes_on(waiting):
            self._advance(waiting)
        estimates = {each.id: self._estimate(each, positions) for each in worked_out}
        pace = self._pace()
        for rank, each in enumerate(line.requests):
            if each.id not in estimates:
                estimates[each.id] = self._extrapolated(each, rank, pace)
        return estimates

    # --- The clock -----------------------------------------------------------------------------

    def _first_walk(self, waiting: dict[str, GpuRequest], line: Order) -> dict[str, int]:
        self.ends = [(holder.ends_at, holder.request.id) for holder in self.floor.holders.values()]
        heapq.heapify(self.ends)
        decisions = self._walk(waiting, Order(tuple(waiting.values()), line.moved))
        self.first_waits = {each.request_id: each for each in decisions.waits}
        return {each.request_id: each.position for each in decisions.waits}

    def _goes_on(self, waiting: dict[str, GpuRequest]) -> bool:
        if not self.ends or self.walks >= FORECAST_WALKS_MAX:
            return False
        if self.until and self.until in self.starts:
            return False
        if not any(self.latest_waits[each].reason not in NEVER for each in waiting if each in self.asked):
            return False
        return any(each not in self.renewed_in_vain for _, each in self.ends)

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
            order = order_queue(waiting.values(), self.now, self.usage, self.snapshot.switches)
            self._walk(waiting, order)

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
        held = _pools_of(holder)
        line = order_queue([*waiting.values(), again], self.now, self.usage, self.snapshot.switches)
        for each in line.requests:
            if each.id == again.id:
                return False
            wait = self.latest_waits.get(each.id)
            if wait is not None and _competes(wait, held):
                return True
        return False

    def _walk(self, waiting: dict[str, GpuRequest], order: Order) -> Decisions:
        self.walks += 1
        decisions = decide(self.floor, order, self.snapshot, self.now)
        for grant in decisions.grants:
            self.starts.setdefault(grant.request_id, self.now)
            del waiting[grant.request_id]
            heapq.heappush(self.ends, (self.floor.holders[grant.request_id].ends_at, grant.request_id))
        for eviction in decisions.evictions:
            victim = self.floor.holders[eviction.victim_id]
            heapq.heappush(self.ends, (victim.ends_at, eviction.victim_id))
        if decisions.grants or decisions.evictions:
            self.renewed_in_vain.clear()
        self.latest_waits = {each.request_id: each for each in decisions.waits}
        return decisions

    # --- What comes of it ----------------------------------------------------------------------

    def _estimate(self, request: GpuRequest, positions: dict[str, int]) -> Estimate:
        position = positions.get(request.id, 0)
        start = self.starts.get(request.id)
        if start is not None:
            basis = Basis.FITS_NOW if start <= self.snapshot.now else Basis.KNOWN_ENDS
            behind = (
                f"only the first {FORECAST_REQUESTS_MAX} in line were looked at" if self.truncated else ""
            )
            return Estimate(request.id, start, basis, position, behind)
        return Estimate(request.id, None, Basis.UNKNOWN, position, self._why_unknown(request))

    def _why_unknown(self, request: GpuRequest) -> str:
        wait = self.latest_waits.get(request.id)
        if wait is not None and wait.reason in NEVER:
            return wait.cause.detail
        if self.walks >= FORECAST_WALKS_MAX:
            return f"it does not start within the next {FORECAST_WALKS_MAX} ends of other requests"
        if wait is not None and wait.reason is WaitReason.TOO_MANY_REQUESTS:
            return f"{wait.cause.detail}, and none of them is known to end"
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


def _pools_of(holder: Holder | None) -> frozenset[PoolKey]:
    return frozenset() if holder is None else frozenset(slot.pool.key for slot, _ in holder.parts)


def _competes(wait: Wait, held: frozenset[PoolKey]) -> bool:
    return wait.reason not in NEVER and not held.isdisjoint(wait.cause.group)


def _start_order(estimate: Estimate) -> tuple[bool, timedelta]:
    if estimate.start is None:
        return True, timedelta(0)
    return False, estimate.start - datetime.min.replace(tzinfo=estimate.start.tzinfo)
