"""How long a request that is only asked about would wait, on each kind of node that would do.

The plain way is a forecast for each kind, with the request put in line for it. With many kinds and a long
line that is many times the same simulation: who is ahead of the request does not notice it, and those
behind it only where it takes something from them. So one simulation answers for all kinds at once. The
request stands in its line like a ghost, and at each walk, when its turn would come, it is asked for each
kind whether it would be granted there. That is the answer, as long as it would not have changed anything
for anybody before. What could change something, looked for at each walk until the answer is known:
- it would evict somebody;
- somebody behind it, in the same part of the floor, could be granted GPUs or could evict;
- somebody's renewal would be refused because of it.
Kinds for which that happens are *on their own*: each gets a simulation with the request really in line,
of its part of the floor only where parts cannot influence each other. A *part* is a set of kinds of node
that are tied together by requests that would take several of them, or by a policy that counts requests.

Sentences speak of today: who holds the GPUs now, and how many are ahead in line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from inferplane.domain.gpu_request import GpuRequest, Selection, takes_part_in_eviction
from inferplane.scheduler.cycle import EVICTIONS_PER_CYCLE_MAX, Choices, Lane, Walk, waiting_requests
from inferplane.scheduler.decisions import (
    NEVER,
    Basis,
    Candidate,
    Cause,
    Decisions,
    Estimate,
    WaitReason,
    are_free,
    counted,
    instant,
    needed_by,
)
from inferplane.scheduler.forecast import (
    FORECAST_REQUESTS_MAX,
    OUT_OF_TIME,
    Replay,
    always,
    pools_of,
)
from inferplane.scheduler.ordering import Order
from inferplane.scheduler.placement import Floor, Holder, PoolKey, matches
from inferplane.scheduler.snapshot import Snapshot

WAIT_TIME_CANDIDATES_MAX = 32
PARTS_STEP_REQUESTS = 1000
"""So many requests are sorted into parts before it is asked again whether to go on."""

HOLDERS_NAMED_MAX = 3


def wait_times(
    snapshot: Snapshot, request: GpuRequest, keep_going: Callable[[], bool] = always
) -> tuple[Candidate, ...]:
    """For a request that is not in the queue: each kind of node that would do, soonest first.

    `request` is queued (its `queued_at` decides its age). Nothing is stored. Kinds of node that
    can never hold it come last, without an estimate and with the reason. At most WAIT_TIME_CANDIDATES_MAX.
    From when on `keep_going` says no, kinds that are not worked out yet have no estimate, and say so. It is
    asked before each stage and each walk: with 100,000 in line on 10,000 nodes a few tenths of a second apart.
    """
    asked = [
        _Asked(key, gpus, replace(request, selection=pinned_to(request.selection, key)))
        for key, gpus in _kinds(snapshot, request)
    ]
    if not asked:
        return ()
    try:
        _check_time(keep_going)
        ghost = _Ghost(snapshot, asked, keep_going)
        ghost.live()
        for each in asked:
            if each.estimate is None:
                _check_time(keep_going)
                _on_its_own(snapshot, each, ghost, keep_going)
    except _OutOfTime:
        for each in asked:
            if each.estimate is None:
                each.estimate = Estimate(request.id, None, Basis.UNKNOWN, each.position, OUT_OF_TIME)
    return tuple(sorted(map(_candidate, asked), key=lambda each: (*_start_order(each.estimate), each.pool)))


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


def _kinds(snapshot: Snapshot, request: GpuRequest) -> list[tuple[PoolKey, int]]:
    policy = snapshot.policy(request.workspace)
    usable = snapshot.usable_clusters
    allowed = None if usable is None else usable.get(request.workspace, frozenset())
    sizes: dict[PoolKey, int] = {}
    for node in snapshot.nodes:
        key = PoolKey(node.cluster, node.gpu_shape, node.instance_type, node.memory_gb)
        if (allowed is None or key.cluster in allowed) and matches(request.selection, key, policy):
            sizes[key] = max(sizes.get(key, 0), node.gpu_count)
    return sorted(sizes.items())[:WAIT_TIME_CANDIDATES_MAX]


class _OutOfTime(Exception):
    """`keep_going` said no."""


def _check_time(keep_going: Callable[[], bool]) -> None:
    if not keep_going():
        raise _OutOfTime


class _Asked:
    """One kind of node, and what is known of the request there. `request` is pinned to it."""

    __slots__ = (
        "alone",
        "cause",
        "estimate",
        "first",
        "gpus_per_node",
        "key",
        "position",
        "request",
        "today",
    )

    def __init__(self, key: PoolKey, gpus_per_node: int, request: GpuRequest) -> None:
        self.key = key
        self.gpus_per_node = gpus_per_node
        self.request = request
        self.today = _Today(0, fits=False, holders=())
        self.position = 0
        self.first: Cause | None = None  # why it would wait, as of now
        self.cause: Cause | None = None  # and at the latest walk
        self.alone = False  # it would change something for others, so the ghost cannot tell
        self.estimate: Estimate | None = None


@dataclass(frozen=True, slots=True)
class _Today:
    """What is the case now on one kind of node. `holders` are soonest to end first."""

    free: int
    fits: bool
    holders: tuple[Holder, ...]


# --- One simulation for all kinds ------------------------------------------------------------------


class _Ghost(Replay):
    """The simulation without the request, which is asked about at its place in each line."""

    def __init__(self, snapshot: Snapshot, asked: list[_Asked], keep_going: Callable[[], bool]) -> None:
        super().__init__(snapshot, keep_going=keep_going)
        self.candidates = asked
        self.ghost = asked[0].request
        # As of now: the first walk changes who holds what.
        self._held = {
            holder.request.id: (sorted(pools_of(holder)), holder.draining)
            for holder in self.floor.holders.values()
        }
        self._parts: _Parts | None = None
        for each in asked:
            each.today = self._today(each)

    @property
    def parts(self) -> _Parts:
        """The parts of the floor: most of the work, and only needed once something waits. Raises _OutOfTime."""
        if self._parts is None:
            _check_time(self.keep_going)
            self._parts = _Parts(
                self.snapshot, self.floor, self.choices, self.candidates, self._held, self.keep_going
            )
        return self._parts

    def live(self) -> None:
        """Find the estimates of all candidates that do not turn out to be on their own. Raises _OutOfTime."""
        _check_time(self.keep_going)
        line = self._line(waiting_requests(self.snapshot))
        places = [each.id for each in line.requests]
        worked_out = line.requests[:FORECAST_REQUESTS_MAX]
        if self.ghost.id not in places[:FORECAST_REQUESTS_MAX]:
            worked_out = (*worked_out, self.ghost)
        self.truncated = len(worked_out) < len(line.requests)
        self.asked = frozenset(each.id for each in worked_out)
        waiting = {each.id: each for each in worked_out if each.id != self.ghost.id}
        _check_time(self.keep_going)
        self._begin(waiting, Order(worked_out, line.moved))
        while self._goes_on():
            self._advance(waiting)
        for each in self._open():
            each.estimate = self._none(each)

    def _today(self, asked: _Asked) -> _Today:
        pool = self.floor.pools.get(asked.key)
        if pool is None:
            return asked.today
        found = {
            holder.request.id: holder for slot in pool.slots for holder, count in slot.held.values() if count
        }
        soonest = sorted(found.values(), key=lambda each: (each.ends_at, each.request.id))
        wish = asked.request.selection
        # Copies: the holders themselves go on living in the simulation.
        return _Today(
            pool.free,
            pool.fits(wish.gpus_per_node, wish.nodes),
            tuple(
                Holder(each.request, each.ends_at, each.granted_at, each.draining, each.gpus)
                for each in soonest
            ),
        )

    def _open(self) -> list[_Asked]:
        return [each for each in self.candidates if each.estimate is None and not each.alone]

    def _none(self, asked: _Asked) -> Estimate:
        return Estimate(self.ghost.id, None, Basis.UNKNOWN, asked.position, self.why_unknown(asked.cause))

    def _is_over(self) -> bool:
        return not self._open()

    def _line(self, waiting: Iterable[GpuRequest]) -> Order:
        return super()._line([*waiting, self.ghost])

    def _decide(self, order: Order) -> Decisions:
        place = next(index for index, each in enumerate(order.requests) if each.id == self.ghost.id)
        behind = order.requests[place + 1 :]
        without = Order((*order.requests[:place], *behind), order.moved)
        walk = Walk(self.floor, without, self.snapshot, self.now, self.choices)
        return walk.decisions(place, lambda: self._look(walk, behind))

    def _look(self, walk: Walk, behind: tuple[GpuRequest, ...]) -> None:
        """It is the ghost's turn: what would become of it on each kind of node?"""
        waits: list[tuple[_Asked, Lane]] = []
        for each in self._open():
            lane = walk.lane_of(each.request)
            if each.first is None:
                ahead = walk.seen.rivals(lane.group)
                each.position = 1 + sum(map(len, ahead))
            each.cause = walk.barred(each.request, lane)
            if each.cause is not None:  # it would not even look, which nobody notices
                if each.cause.reason in NEVER:
                    each.estimate = self._none(each)
            elif walk.find(each.request, lane) is not None:
                now = self.now <= self.snapshot.now
                each.position = 0 if now else each.position
                basis = Basis.FITS_NOW if now else Basis.KNOWN_ENDS
                each.estimate = Estimate(self.ghost.id, self.now, basis, each.position, self.behind())
            else:
                each.cause = Cause(walk.reason(each.request, lane)[0], walk.seen, lane.pools, lane.group)
                waits.append((each, lane))
            each.first = each.first or each.cause
        touchy = self._touchy(walk, behind) if waits else frozenset()
        for each, lane in waits:
            disturbs = bool(touchy) and self.parts.of(each.key) in touchy
            each.alone = disturbs or self._would_evict(each, walk, lane)

    def _would_evict(self, asked: _Asked, walk: Walk, lane: Lane) -> bool:
        """Whether it might ask somebody to yield; not whether that would be the cheapest."""
        policy = self.snapshot.policy(asked.request.workspace)
        if not self.snapshot.switches.eviction or not takes_part_in_eviction(asked.request, policy):
            return False
        if len(walk.evictions) >= EVICTIONS_PER_CYCLE_MAX:
            return False
        return any(
            walk.may_evict(asked.request, holder)
            for pool in lane.pools
            if not pool.contested
            for slot in pool.slots
            for holder, _ in slot.held.values()
        )

    def _touchy(self, walk: Walk, behind: tuple[GpuRequest, ...]) -> frozenset[PoolKey]:
        """Parts of the floor where somebody behind could be granted something, or could evict."""
        found: set[PoolKey] = set()
        strongest: dict[PoolKey, int] = {}
        eviction = self.snapshot.switches.eviction
        for request in behind:
            pools = self.choices.of(request).pools
            if not pools or (part := self.parts.of(pools[0].key)) in found:
                continue
            wish = request.selection
            if any(pool.fits(wish.gpus_per_node, wish.nodes) for pool in pools):
                found.add(part)
            elif eviction and self._takes_part(request):
                strongest[part] = max(request.priority, strongest.get(part, 0))
        if strongest:
            for holder in walk.floor.holders.values():
                if not holder.draining and self._takes_part(holder.request):
                    parts = {self.parts.of(slot.pool.key) for slot, _ in holder.parts}
                    found |= {each for each in parts if holder.request.priority < strongest.get(each, 0)}
        return frozenset(found)

    def _takes_part(self, request: GpuRequest) -> bool:
        return takes_part_in_eviction(request, self.snapshot.policy(request.workspace))

    def _is_wanted(self, holder: Holder, again: GpuRequest, waiting: dict[str, GpuRequest]) -> bool:
        if super()._is_wanted(holder, again, waiting):
            return True
        line = [each.id for each in self._line([*waiting.values(), again]).requests]
        if line.index(self.ghost.id) < line.index(again.id):
            held = pools_of(holder)
            for each in self._open():
                each.alone = each.alone or each.key in held
        return False


# --- Parts of the floor ----------------------------------------------------------------------------


class _Parts:
    """Which kinds of node are tied together. A part is named by one of its kinds."""

    def __init__(
        self,
        snapshot: Snapshot,
        floor: Floor,
        choices: Choices,
        asked: list[_Asked],
        held_now: Mapping[str, tuple[list[PoolKey], bool]],
        keep_going: Callable[[], bool],
    ) -> None:
        """`held_now`: by request, where it holds GPUs, and whether it gives them back. Raises _OutOfTime."""
        self._snapshot = snapshot
        self._boss = {key: key for key in floor.pools}
        self._of_request: dict[str, list[PoolKey]] = {}
        counted_together: dict[str, list[PoolKey]] = {}
        for each in asked:
            counted_together.setdefault(each.request.workspace, []).append(each.key)
        for number, request in enumerate(snapshot.requests, start=1):
            if number % PARTS_STEP_REQUESTS == 0:
                _check_time(keep_going)
            held, draining = held_now.get(request.id, ([], True))
            keys = [] if request.has_ended else [pool.key for pool in choices.of(request).pools]
            self._tie(keys)
            self._tie(held)
            if self._may_come_back(request):  # whether it does is decided where it holds
                self._tie([*keys, *held])
            keys = [*keys, *held] if draining else held
            if keys:
                self._of_request[request.id] = keys
                counted_together.setdefault(request.workspace, []).extend(keys)
        for workspace, keys in counted_together.items():
            if snapshot.policy(workspace).max_requests is not None:
                self._tie(keys)
        machines: dict[str, list[PoolKey]] = {}
        for key, pool in floor.pools.items():
            if any(slot.node.host for slot in pool.slots):
                machines.setdefault(key.cluster, []).append(key)
        for cluster in machines:
            self._tie([key for key in floor.pools if key.cluster == cluster])

    def of(self, key: PoolKey) -> PoolKey:
        """The part to which this kind of node belongs."""
        boss = self._boss.get(key, key)
        while boss != self._boss.get(boss, boss):
            boss = self._boss[boss]
        return boss

    def around(self, snapshot: Snapshot, key: PoolKey) -> Snapshot:
        """The part of the picture that has to do with `key`; all of it where parts influence each other.

        They do where the order of the line changes with time or use, or an eviction may become possible
        by waiting: then it matters when something ends elsewhere.
        """
        switches = snapshot.switches
        protected = any(each.evicted_at is not None for each in snapshot.requests)
        if switches.ageing is not None or switches.fair_share is not None or protected:
            return snapshot
        part = self.of(key)
        return replace(
            snapshot,
            nodes=tuple(
                node
                for node in snapshot.nodes
                if self.of(PoolKey(node.cluster, node.gpu_shape, node.instance_type, node.memory_gb)) == part
            ),
            requests=tuple(
                each
                for each in snapshot.requests
                if any(self.of(key) == part for key in self._of_request.get(each.id, ()))
            ),
        )

    def _may_come_back(self, request: GpuRequest) -> bool:
        policy = self._snapshot.policy(request.workspace)
        requeues = request.requeue_on_failure or policy.requeue_on_failure
        return request.auto_renew or (requeues and takes_part_in_eviction(request, policy))

    def _tie(self, keys: list[PoolKey]) -> None:
        for key in keys[1:]:
            self._boss[self.of(key)] = self.of(keys[0])


# --- One simulation for one kind -------------------------------------------------------------------


def _on_its_own(snapshot: Snapshot, asked: _Asked, ghost: _Ghost, keep_going: Callable[[], bool]) -> None:
    request = asked.request
    around = ghost.parts.around(snapshot, asked.key)
    _check_time(keep_going)
    replay = Replay(replace(around, requests=(*around.requests, request)), request.id, keep_going)
    asked.estimate = replay.run()[request.id]
    asked.first = dict(replay.first_waits.causes()).get(request.id, asked.first)


# --- Sentences -------------------------------------------------------------------------------------


def _candidate(asked: _Asked) -> Candidate:
    assert asked.estimate is not None
    return Candidate(asked.key, asked.gpus_per_node, asked.estimate, _explained(asked, asked.estimate))


def _explained(asked: _Asked, estimate: Estimate) -> str:
    """Why it would wait, or why not, by what is the case today."""
    wish, today, cause = asked.request.selection, asked.today, asked.first
    needed = needed_by(wish)
    if estimate.basis is Basis.FITS_NOW:
        return f"{needed}; {are_free(today.free)}, and nobody ahead in line needs them"
    if cause is not None and cause.reason is WaitReason.LARGER_THAN_CLUSTER:
        return f"{needed}; {_too_small(asked)}"
    if cause is None and estimate.start is None:
        said = [needed]  # there was no time to look at what is free
    elif cause is not None and cause.detail:
        said = [cause.detail]
    else:
        said = [f"{needed}; {_what_is_free(wish, today, cause)}"]
    if cause is not None and cause.reason in NEVER:
        return said[0]
    if estimate.position > 1:
        said.append(
            f"{counted(estimate.position - 1, 'request')} ahead in line "
            f"{'wants' if estimate.position == 2 else 'want'} GPUs of this kind"
        )
    if cause is not None and cause.reason is not WaitReason.TOO_MANY_REQUESTS:
        said += _holders(asked)
    if estimate.start is None:
        said.append(f"there is no estimate, because {estimate.detail}")
    return "; ".join(said)


def _too_small(asked: _Asked) -> str:
    if asked.request.selection.gpus_per_node > asked.gpus_per_node:
        return f"a node of this kind has only {asked.gpus_per_node}"
    return "the cluster has too few such nodes"


def _what_is_free(wish: Selection, today: _Today, cause: Cause | None) -> str:
    free = are_free(today.free)
    if cause is not None and cause.evicting:
        return f"{free}, and {counted(len(cause.evicting), 'request')} of lower priority would have to yield"
    if today.fits:
        return f"{free}, but promised to requests ahead in line"
    if today.free >= wish.gpus:
        return f"{free}, but not together on {'one node' if wish.nodes == 1 else f'{wish.nodes} nodes'}"
    return free


def _holders(asked: _Asked) -> list[str]:
    said = []
    shown = asked.today.holders[:HOLDERS_NAMED_MAX]
    for holder in shown:
        own = holder.request.workspace == asked.request.workspace
        who = holder.request.name if own else "a request of another workspace"
        gpus = counted(holder.gpus, "GPU")
        if holder.draining:
            said.append(f"{who} is giving back {gpus}")
        else:
            renews = ", unless it is renewed" if holder.request.auto_renew else ""
            said.append(f"{who} holds {gpus} until {instant(holder.told_end)}{renews}")
    more = len(asked.today.holders) - len(shown)
    if more:
        said.append(f"{counted(more, 'request')} more {'holds' if more == 1 else 'hold'} others for longer")
    return [", ".join(said)] if said else []


def _start_order(estimate: Estimate) -> tuple[bool, timedelta]:
    if estimate.start is None:
        return True, timedelta(0)
    return False, estimate.start - datetime.min.replace(tzinfo=estimate.start.tzinfo)
