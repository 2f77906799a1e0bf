"""One cycle: a snapshot in, decisions out.

1. Lay out the floor: nodes in pools, holders on them, what is free.
2. Put the waiting requests in line (ordering.py).
3. Walk along the line. A request is granted where it fits now; or it waits, and
   a. if nobody ahead of it waits for a pool, lower priorities may be asked to yield there (preemption.py),
   b. if nobody ahead of it is promised GPUs of a pool, it is promised the soonest there: it is the pool's
      *head*, and whoever comes behind may only take what does not delay it (backfill).

The walk is short because along it a request that failed makes all alike fail: free GPUs only become fewer
and promises only more. Requests with the same selection and the same rules form a *lane*; once a lane's
requests fail from some exit duration on, those behind are told so without looking at a node again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from inferplane.domain.gpu_request import (
    GpuRequest,
    ProvisioningStatus,
    Selection,
    policy_problems,
    takes_part_in_eviction,
)
from inferplane.domain.quantity import format_duration
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.scheduler.decisions import (
    Cause,
    Circumstances,
    Decisions,
    Eviction,
    GrantDecision,
    GrantReason,
    WaitReason,
    Waits,
    listed,
    needed_by,
    order_note,
)
from inferplane.scheduler.ordering import Order, order_queue
from inferplane.scheduler.placement import (
    SOONEST_END,
    Floor,
    Holder,
    Pool,
    PoolKey,
    Reservation,
    Slot,
    expected_end_of_new,
    preference,
    spare,
)
from inferplane.scheduler.preemption import choose_victims
from inferplane.scheduler.snapshot import Snapshot

EVICTIONS_PER_CYCLE_MAX = 64
"""A brake: no single cycle asks more requests than this to yield, whatever the line looks like."""


def schedule(snapshot: Snapshot) -> Decisions:
    """Decide who gets GPUs, who waits and why, and who has to yield. Pure and total."""
    floor = Floor(snapshot)
    order = order_queue(waiting_requests(snapshot), snapshot.now, snapshot.usage, snapshot.switches)
    return decide(floor, order, snapshot, snapshot.now)


def waiting_requests(snapshot: Snapshot) -> list[GpuRequest]:
    """The queued requests of a snapshot, in no particular order."""
    return [each for each in snapshot.requests if each.status is ProvisioningStatus.QUEUED]


def decide(
    floor: Floor, order: Order, snapshot: Snapshot, now: datetime, choices: Choices | None = None
) -> Decisions:
    """Walk along `order` once. Changes `floor`: grants are seated, victims are expected to end soon.

    `snapshot` is asked only for its rules (policies, clusters, switches), so that the forecast can
    go on with the same rules at another `now`. `choices` are remembered from walk to walk.
    """
    return Walk(floor, order, snapshot, now, choices).decisions()


@dataclass(frozen=True, slots=True)
class Choice:
    """Where requests with one selection under the same rules could ever go, or why nowhere."""

    pools: list[Pool]
    preferences: list[tuple[int, int]]
    group: frozenset[PoolKey]
    never: WaitReason | None = None
    detail: str = ""


class Choices:
    """What each selection can choose from: it depends on the nodes and the rules, so it outlasts a walk."""

    def __init__(self, floor: Floor, snapshot: Snapshot) -> None:
        self.floor = floor
        self.snapshot = snapshot
        self._rules_of: dict[str, int] = {}
        self._numbers: dict[tuple[object, ...], int] = {}
        self._found: dict[tuple[Selection, int], Choice] = {}

    def rules(self, workspace: str) -> int:
        """Equal for workspaces with equal rules on what and where."""
        number = self._rules_of.get(workspace)
        if number is None:
            policy = self.snapshot.policy(workspace)
            usable = self.snapshot.usable_clusters
            key = (
                usable if usable is None else usable.get(workspace, frozenset()),
                policy.gpu_shapes,
                policy.max_gpus_per_request,
                policy.max_memory_gb_per_request,
            )
            number = self._rules_of[workspace] = self._numbers.setdefault(key, len(self._numbers))
        return number

    def of(self, request: GpuRequest) -> Choice:
        """What `request` can choose from."""
        key = (request.selection, self.rules(request.workspace))
        choice = self._found.get(key)
        if choice is None:
            choice = self._found[key] = self._look(request)
        return choice

    def _look(self, request: GpuRequest) -> Choice:
        selection, workspace = request.selection, request.workspace
        policy = self.snapshot.policy(workspace)
        usable = _usable(self.snapshot, workspace)
        found = self.floor.candidates(selection, policy, usable)
        gpus, nodes = selection.gpus_per_node, selection.nodes
        pools = [pool for pool in found if pool.nodes_with_capacity(gpus) >= nodes]
        never, detail = None, ""
        problems = [
            each
            for each in policy_problems(request, policy)
            if each.field not in ("priority", "exitDuration")
        ]
        if problems:
            never, detail = WaitReason.POLICY_FORBIDS, problems[0].message
        elif not pools:
            never, detail = _why_never(selection, found, self.floor, usable, policy)
        return Choice(
            pools,
            [preference(selection, pool.key) for pool in pools],
            frozenset(pool.key for pool in pools),
            never,
            detail,
        )


class Lane:
    """All requests with one choice in one walk: who of them waits, and what is known to fail."""

    __slots__ = ("cause", "fails_from", "group", "never", "pools", "preferences", "ranks")

    def __init__(self, choice: Choice, ranks: list[int]) -> None:
        self.pools = choice.pools
        self.preferences = choice.preferences
        self.group = choice.group
        self.ranks = ranks  # of those that wait for exactly these pools
        self.never: Cause | None = None
        self.fails_from: timedelta | None = None  # requests at least this long fail, for `cause`
        self.cause: Cause | None = None


class Walk:
    """The state of one walk along the line. Used once."""

    def __init__(
        self, floor: Floor, order: Order, snapshot: Snapshot, now: datetime, choices: Choices | None = None
    ) -> None:
        self.floor = floor
        self.order = order
        self.snapshot = snapshot
        self.now = now
        self.switches = snapshot.switches
        self.seen = Circumstances(now, floor, order.moved, snapshot.switches)
        self.lanes: dict[tuple[Selection, int], Lane] = {}
        self.choices = choices or Choices(floor, snapshot)
        self.grants: list[GrantDecision] = []
        self.evictions: list[Eviction] = []
        self.promised: dict[str, int] = {}  # workspace → its requests that are heads
        for pool in floor.pools.values():
            pool.contested = False
            pool.head = None

    def decisions(self, pause_at: int = -1, looks: Callable[[], None] | None = None) -> Decisions:
        """Walk, and say what was decided. `looks` is called before the request at `pause_at` in line has
        its turn (or after the last one): whoever would stand there can be asked about then.
        """
        requests: list[GpuRequest] = []
        ranks: list[int] = []
        causes: list[Cause] = []
        for rank, request in enumerate(self.order.requests):
            if rank == pause_at and looks is not None:
                looks()
            lane = self.lane_of(request)
            cause = self.barred(request, lane) or self._grant_or_wait(request, lane)
            if cause is not None:
                requests.append(request)
                ranks.append(rank)
                causes.append(cause)
                lane.ranks.append(rank)
        if pause_at >= len(self.order.requests) and looks is not None:
            looks()
        return Decisions(tuple(self.grants), Waits(requests, ranks, causes), tuple(self.evictions))

    # --- Before anything is looked for ---------------------------------------------------------

    def lane_of(self, request: GpuRequest) -> Lane:
        """The lane of all that are like `request`."""
        key = (request.selection, self.choices.rules(request.workspace))
        lane = self.lanes.get(key)
        if lane is None:
            choice = self.choices.of(request)
            lane = self.lanes[key] = Lane(choice, self.seen.groups.setdefault(choice.group, []))
            if choice.never is not None:
                lane.never = self._cause(choice.never, lane, detail=choice.detail)
        return lane

    def barred(self, request: GpuRequest, lane: Lane) -> Cause | None:
        """Why there is no need to look for GPUs, or None."""
        if lane.never is not None:
            return lane.never
        policy = self.snapshot.policies.get(request.workspace)
        cause = None if policy is None else self._forbidden(request, policy, lane)
        if cause is None and lane.fails_from is not None and request.exit_duration >= lane.fails_from:
            return lane.cause
        return cause

    def _forbidden(self, request: GpuRequest, policy: WorkspacePolicy, lane: Lane) -> Cause | None:
        """What the policy says against this request at this moment; None if nothing."""
        longest = policy.max_exit_duration
        if not policy.priority_lowest <= request.priority <= policy.priority_highest:
            allowed = f"{policy.priority_lowest} to {policy.priority_highest}"
            detail = f"its priority {request.priority} is outside {allowed}, which the workspace may use"
            return self._cause(WaitReason.POLICY_FORBIDS, lane, detail=detail)
        if longest is not None and request.exit_duration > longest:
            detail = (
                f"its exit duration {format_duration(request.exit_duration)} is longer than "
                f"{format_duration(longest)}, which is the workspace's longest"
            )
            return self._cause(WaitReason.POLICY_FORBIDS, lane, detail=detail)
        most = policy.max_requests
        holding = self.floor.held_by.get(request.workspace, 0)
        promised = self.promised.get(request.workspace, 0)  # or a backfill could use up what a head needs
        if most is not None and holding + promised >= most:
            ahead = ""
            if promised:
                ahead = f", and {promised} ahead of it {'is' if promised == 1 else 'are'} promised some"
            detail = f"its workspace holds GPUs for {_requests(holding)}{ahead}; its policy allows {most} at a time"
            return self._cause(WaitReason.TOO_MANY_REQUESTS, lane, detail=detail)
        return None

    # --- One request ---------------------------------------------------------------------------

    def _grant_or_wait(self, request: GpuRequest, lane: Lane) -> Cause | None:
        """Grant it (None), or say why it waits, having promised it what can be promised."""
        place = self.find(request, lane)
        if place is not None:
            self._grant(request, *place)
            return None
        cause = self._evict(request, lane) or self._promise(request, lane)
        for pool in lane.pools:
            pool.contested = True
        if all(pool.head is not None or not self.switches.backfill for pool in lane.pools):
            reason, fits = self.reason(request, lane)
            lane.fails_from = request.exit_duration if fits else timedelta(0)
            lane.cause = self._cause(reason, lane, head=_first_head(lane))
        return cause

    def find(self, request: GpuRequest, lane: Lane) -> tuple[Pool, list[Slot]] | None:
        """The best place that is free now and promised to nobody ahead for as long as it would be taken."""
        gpus, nodes = request.selection.gpus_per_node, request.selection.nodes
        would_end_at = expected_end_of_new(request, self.now, self.switches)
        best: tuple[Pool, list[Slot]] | None = None
        best_key = (0, 0, 0)
        for pool, wish in zip(lane.pools, lane.preferences, strict=True):
            if best is not None and wish > best_key[:2]:
                break
            if pool.contested and not self.switches.backfill:
                continue
            promise = pool.head if pool.head is not None and would_end_at > pool.head.start else None
            slots = pool.find(gpus, nodes, promise)
            if slots is not None:
                key = (*wish, spare(slots, gpus))
                if best is None or key < best_key:
                    best, best_key = (pool, slots), key
        return best

    def _grant(self, request: GpuRequest, pool: Pool, slots: list[Slot]) -> None:
        head = pool.head
        if head is not None and expected_end_of_new(request, self.now, self.switches) > head.start:
            for slot in slots:
                if slot.ordinal in head.slack:
                    head.slack[slot.ordinal] -= request.selection.gpus_per_node
        grant = self.floor.grant(request, slots, self.now)
        self.grants.append(
            GrantDecision(
                request.id,
                grant,
                GrantReason.BACKFILLED if pool.contested else GrantReason.IN_TURN,
                passed=head.request.id if head is not None else "",
                order_note=order_note(request, self.now, self.order.moved, self.switches),
            )
        )

    def _promise(self, request: GpuRequest, lane: Lane) -> Cause:
        """Promise it the soonest start in a pool that is promised to nobody yet, if there is one."""
        reason, _ = self.reason(request, lane)
        soonest = self._soonest(request, lane)
        if soonest is None:
            return self._cause(reason, lane, head=_first_head(lane))
        start, slack, pool = soonest
        self._make_head(request, pool, start, slack)
        return self._cause(reason, lane, head=request.id, start=start)

    def _make_head(self, request: GpuRequest, pool: Pool, start: datetime, slack: dict[int, int]) -> None:
        pool.head = Reservation(request, pool, start, dict(slack))
        self.promised[request.workspace] = self.promised.get(request.workspace, 0) + 1

    def _soonest(self, request: GpuRequest, lane: Lane) -> tuple[datetime, dict[int, int], Pool] | None:
        gpus, nodes = request.selection.gpus_per_node, request.selection.nodes
        best: tuple[datetime, dict[int, int], Pool] | None = None
        for pool in lane.pools:  # by preference, so that of equal starts the preferred one is kept
            if pool.head is None and (self.switches.backfill or not pool.contested):
                found = pool.earliest(gpus, nodes)
                if found is not None and (best is None or found[0] < best[0]):
                    best = (*found, pool)
        return best

    def _evict(self, request: GpuRequest, lane: Lane) -> Cause | None:
        """Ask lower priorities to yield, where that helps this request and nobody else; None if not.

        Only in pools for which nobody ahead waits: what is freed there would be theirs. And only if it
        starts sooner by it, which also keeps a newcomer from evicting again while its victims drain.
        """
        room = EVICTIONS_PER_CYCLE_MAX - len(self.evictions)
        pools = [pool for pool in lane.pools if not pool.contested]
        if not (self.switches.eviction and pools and room > 0 and self._takes_part(request)):
            return None
        freed_at = self.now + max(self.switches.draining, SOONEST_END)
        soonest = self._soonest(request, lane)
        if soonest is not None and soonest[0] <= freed_at:
            return None
        selection = request.selection
        choice = choose_victims(
            pools,
            selection.gpus_per_node,
            selection.nodes,
            lambda holder: self.may_evict(request, holder),
            self.now,
        )
        if choice is None or len(choice[1]) > room:
            return None
        pool, victims = choice
        for victim in victims:
            self.floor.end_at(victim, freed_at, draining=True)
            self.evictions.append(
                Eviction(
                    victim.request.id,
                    request.id,
                    victim.request.priority,
                    request.priority,
                    request.workspace,
                    victim.gpus,
                )
            )
        found = pool.earliest(selection.gpus_per_node, selection.nodes)
        assert found is not None  # choose_victims promises that it fits afterwards
        start, slack = found
        self._make_head(request, pool, start, slack)
        return self._cause(
            WaitReason.AWAITING_EVICTION,
            lane,
            head=request.id,
            start=start,
            evicting=tuple(victim.request.id for victim in victims),
        )

    def may_evict(self, newcomer: GpuRequest, holder: Holder) -> bool:
        """Whether `holder` would have to yield to `newcomer` if that helped."""
        victim = holder.request
        if holder.draining or victim.priority >= newcomer.priority or not self._takes_part(victim):
            return False
        if holder.granted_at >= self.now:  # given in this very cycle: ageing had put it ahead
            return False
        protected_until = victim.evicted_at and victim.evicted_at + self.switches.eviction_protection
        return protected_until is None or protected_until <= self.now

    def _takes_part(self, request: GpuRequest) -> bool:
        return takes_part_in_eviction(request, self.snapshot.policy(request.workspace))

    def reason(self, request: GpuRequest, lane: Lane) -> tuple[WaitReason, bool]:
        """Why it does not fit, and whether it would if nothing were promised to anybody."""
        selection = request.selection
        gpus, nodes = selection.gpus_per_node, selection.nodes
        if any(pool.fits(gpus, nodes) for pool in lane.pools):
            return WaitReason.WOULD_DELAY_HEAD, True
        if any(pool.free >= gpus * nodes for pool in lane.pools):
            return WaitReason.FRAGMENTED, False
        return WaitReason.GPUS_HELD, False

    def _cause(
        self,
        reason: WaitReason,
        lane: Lane,
        *,
        head: str = "",
        start: datetime | None = None,
        detail: str = "",
        evicting: tuple[str, ...] = (),
    ) -> Cause:
        return Cause(
            reason,
            self.seen,
            lane.pools,
            lane.group,
            head=head,
            start=start,
            detail=detail,
            evicting=evicting,
        )


def _usable(snapshot: Snapshot, workspace: str) -> Callable[[str], bool]:
    if snapshot.usable_clusters is None:
        return lambda _: True
    return snapshot.usable_clusters.get(workspace, frozenset()).__contains__


def _first_head(lane: Lane) -> str:
    return next((pool.head.request.id for pool in lane.pools if pool.head is not None), "")


def _why_never(
    selection: Selection,
    found: list[Pool],
    floor: Floor,
    usable: Callable[[str], bool],
    policy: WorkspacePolicy,
) -> tuple[WaitReason, str]:
    """Why no pool could ever take `selection`; `found` are those of the right kind, all too small."""
    gpus, nodes = selection.gpus_per_node, selection.nodes
    if found:
        whole = max(sum(slot.node.gpu_count >= gpus for slot in pool.slots) for pool in found)
        able = max(pool.nodes_with_capacity(gpus) for pool in found)
        if whole >= nodes:
            return (
                WaitReason.NODES_UNHEALTHY,
                f"{needed_by(selection)}; {_in_order(able, whole)}",
            )
        return (
            WaitReason.LARGER_THAN_CLUSTER,
            f"{needed_by(selection)}; {_at_most(whole)}",
        )
    clusters = {key.cluster for key in floor.pools if usable(key.cluster)}
    if not selection.auto_cluster:
        clusters &= set(selection.preferred_clusters or (selection.cluster_name,))
        if not clusters:
            named = listed(selection.preferred_clusters or (selection.cluster_name,))
            return WaitReason.NO_SUCH_CLUSTER, f"no GPUs that its workspace may use are in {named}"
    kinds = [_kind(key) for key in floor.pools if key.cluster in clusters]
    wanted = (
        f"with at least {selection.memory_gb} GB"
        if selection.auto_gpu
        else f"{selection.gpu_shape} ({selection.instance_type})"
    )
    allowed = f", of which its policy allows {listed(policy.gpu_shapes)}" if policy.gpu_shapes else ""
    return (
        WaitReason.NO_SUCH_SHAPE,
        f"no node {wanted} is in {listed(clusters)}, which has {listed(kinds)}{allowed}",
    )


def _in_order(able: int, whole: int) -> str:
    if whole == 1:
        return "the only such node is not in order"
    return f"only {able} of {whole} such nodes {'is' if able == 1 else 'are'} in order"


def _at_most(nodes: int) -> str:
    if nodes == 0:
        return "no node that it may use has as many"
    return f"no cluster it may use has more than {nodes} such node{'' if nodes == 1 else 's'}"


def _kind(key: PoolKey) -> str:
    return f"{key.gpu_shape} ({key.instance_type}, {key.memory_gb} GB)"


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count or 'no'} requests"
