"""What a cycle decided, each with a machine's reason and a sentence for a person.

A cycle over a hundred thousand requests decides mostly waits, and nobody reads most of them. So a wait
keeps what it was decided from, and its position, holders and sentences are worked out when asked for.
They speak of the moment of the snapshot.

Sentences are written for the request's own workspace: requests of other workspaces are not named in them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import overload

from inferplane.domain.gpu_request import GpuRequest, Grant, Selection
from inferplane.domain.quantity import format_duration
from inferplane.scheduler.ordering import aged_points
from inferplane.scheduler.placement import Floor, Pool, PoolKey
from inferplane.scheduler.snapshot import Switches

HOLDERS_SHOWN_MAX = 5
ALTERNATIVES_SHOWN_MAX = 3


class GrantReason(StrEnum):
    """Why it was granted now."""

    IN_TURN = "InTurn"  # nobody ahead of it waits for these GPUs
    BACKFILLED = "Backfilled"  # somebody ahead waits, and is not delayed by this


class WaitReason(StrEnum):
    """Why it was not granted now."""

    GPUS_HELD = "GpusHeld"  # too few GPUs of the kind are free
    FRAGMENTED = "Fragmented"  # enough are free, but not together on enough nodes
    WOULD_DELAY_HEAD = "WouldDelayHead"  # they are free, and promised to somebody ahead
    AWAITING_EVICTION = "AwaitingEviction"  # lower priorities are yielding to it
    TOO_MANY_REQUESTS = "TooManyRequests"  # the workspace holds as many as its policy allows
    POLICY_FORBIDS = "PolicyForbids"  # the policy has changed since it was queued
    NO_SUCH_CLUSTER = "NoSuchCluster"  # no cluster that was named exists and may be used
    NO_SUCH_SHAPE = "NoSuchShape"  # no node is of the kind asked for
    LARGER_THAN_CLUSTER = "LargerThanCluster"  # it would not fit even if everything were free
    NODES_UNHEALTHY = "NodesUnhealthy"  # it would fit if all nodes were in order


NEVER = frozenset(
    {
        WaitReason.POLICY_FORBIDS,
        WaitReason.NO_SUCH_CLUSTER,
        WaitReason.NO_SUCH_SHAPE,
        WaitReason.LARGER_THAN_CLUSTER,
        WaitReason.NODES_UNHEALTHY,
    }
)
"""Waits that no end of another request will end. They hold nobody up."""


class EvictionReason(StrEnum):
    """Why somebody is evicted."""

    HIGHER_PRIORITY = "HigherPriority"


@dataclass(frozen=True, slots=True)
class GrantDecision:
    """`request_id` gets `grant`. `passed` is the request ahead that was let wait, when backfilled."""

    request_id: str
    grant: Grant
    reason: GrantReason
    passed: str = ""
    order_note: str = ""

    @property
    def message(self) -> str:
        """One sentence."""
        each = len(self.grant.nodes[0][1])
        nodes = len(self.grant.nodes)
        what = _gpus(each) if nodes == 1 else f"{_gpus(each)} on each of {nodes} nodes"
        shape = f" ({self.grant.gpu_shape})" if self.grant.gpu_shape else ""
        said = f"granted {what}{shape} of cluster {self.grant.cluster}"
        if self.reason is GrantReason.BACKFILLED:
            said += "; an earlier request waits for more and is not delayed by this"
        return said + (f"; {self.order_note}" if self.order_note else "")


@dataclass(frozen=True, slots=True)
class Eviction:
    """`victim_id` must yield to `newcomer_id`, which waits until the GPUs are seen free."""

    victim_id: str
    newcomer_id: str
    victim_priority: int
    newcomer_priority: int
    newcomer_workspace: str
    gpus: int
    reason: EvictionReason = EvictionReason.HIGHER_PRIORITY

    @property
    def message(self) -> str:
        """One sentence, for the victim."""
        return (
            f"its {_gpus(self.gpus)} of priority {self.victim_priority} go to {self.newcomer_id}, "
            f"which has priority {self.newcomer_priority}"
        )


@dataclass(frozen=True, slots=True)
class Holding:
    """One request that holds GPUs somebody waits for, and until when: the end that its own view shows."""

    request_id: str
    name: str
    workspace: str
    gpus: int
    until: datetime
    draining: bool
    renews: bool


class Cause:
    """Why a group of alike requests waits. Shared by all of them, and worked out only when read.

    `head` is the request ahead that is promised the GPUs (its own id for the one first in line);
    `detail` a sentence where the reason alone does not say enough.
    """

    __slots__ = ("_holdings", "detail", "evicting", "group", "head", "pools", "reason", "seen", "start")

    def __init__(
        self,
        reason: WaitReason,
        seen: Circumstances,
        pools: Sequence[Pool],
        group: frozenset[PoolKey],
        *,
        head: str = "",
        start: datetime | None = None,
        detail: str = "",
        evicting: tuple[str, ...] = (),
    ) -> None:
        self.reason = reason
        self.seen = seen
        self.pools = pools
        self.group = group
        self.head = head
        self.start = start
        self.detail = detail
        self.evicting = evicting
        self._holdings: tuple[Holding, ...] | None = None

    def holdings(self) -> tuple[Holding, ...]:
        """Who holds GPUs of these pools, soonest to end first; at most HOLDERS_SHOWN_MAX."""
        if self._holdings is None:
            found = {
                holder.request.id: holder
                for pool in self.pools
                for slot in pool.slots
                for holder, _ in slot.held.values()
            }
            first = sorted(found.values(), key=lambda each: (each.ends_at, each.request.id))
            self._holdings = tuple(
                Holding(
                    each.request.id,
                    each.request.name,
                    each.request.workspace,
                    each.gpus,
                    each.told_end,
                    each.draining,
                    each.request.auto_renew,
                )
                for each in first[:HOLDERS_SHOWN_MAX]
            )
        return self._holdings


class Circumstances:
    """What all decisions of one cycle share: its floor, its order, and who waits for which pools."""

    __slots__ = ("floor", "groups", "moved", "now", "overlaps", "switches")

    def __init__(self, now: datetime, floor: Floor, moved: Mapping[str, int], switches: Switches) -> None:
        self.now = now
        self.floor = floor
        self.moved = moved
        self.switches = switches
        self.groups: dict[frozenset[PoolKey], list[int]] = {}  # pools → ranks that wait for them
        self.overlaps: dict[frozenset[PoolKey], list[list[int]]] = {}

    def position(self, group: frozenset[PoolKey], rank: int) -> int:
        """1 + how many that wait ahead of `rank` compete for one of the pools of `group`."""
        rivals = self.overlaps.get(group)
        if rivals is None:
            rivals = self.overlaps[group] = self.rivals(group)
        return 1 + sum(bisect_left(ranks, rank) for ranks in rivals)

    def rivals(self, group: frozenset[PoolKey]) -> list[list[int]]:
        """The ranks so far of those who wait for one of the pools of `group`."""
        return [ranks for pools, ranks in self.groups.items() if pools & group or pools == group]

    def order_note(self, request: GpuRequest) -> str:
        """How ageing and fair share changed this request's place, or ""."""
        return order_note(request, self.now, self.moved, self.switches)


def order_note(request: GpuRequest, now: datetime, moved: Mapping[str, int], switches: Switches) -> str:
    """How ageing and fair share changed this request's place in line, or ""."""
    notes = []
    if switches.ageing is not None and (points := aged_points(request, now, switches.ageing)):
        waited = format_duration(now - request.queued_at)
        notes.append(f"waiting for {waited} has added {points} to its priority of {request.priority}")
    if places := moved.get(request.id):
        if places < 0:
            notes.append(f"{-places} places further ahead, because its workspace has used less than others")
        else:
            notes.append(f"{places} places further behind, because its workspace has used more than others")
    return "; ".join(notes)


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """`request` is not granted. `rank` counts all that are in line, from 0; it is not the position.

    Two waits are equal when they say the same of the same request.
    """

    request: GpuRequest
    rank: int
    cause: Cause = field(repr=False)

    @property
    def request_id(self) -> str:
        """Who waits."""
        return self.request.id

    @property
    def reason(self) -> WaitReason:
        """Why, for machines."""
        return self.cause.reason

    @property
    def starts_by(self) -> datetime | None:
        """For the first in line for its GPUs: when it is promised to start, by what is known."""
        return self.cause.start if self.cause.head == self.request.id else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wait) and self._said() == other._said()

    def __hash__(self) -> int:
        return hash(self._said())

    def _said(self) -> tuple[object, ...]:
        return (self.request, self.rank, self.reason, self.starts_by, self.cause.head, self.cause.detail)

    @property
    def position(self) -> int:
        """Its place among those that wait for GPUs it could use; 1 is next."""
        return self.cause.seen.position(self.cause.group, self.rank)

    @property
    def holders(self) -> tuple[Holding, ...]:
        """Who holds the GPUs it could use, soonest to end first; at most HOLDERS_SHOWN_MAX."""
        return self.cause.holdings()

    @property
    def ahead_id(self) -> str:
        """The request ahead to which the GPUs are promised, or ""."""
        return self.cause.head if self.cause.head != self.request.id else ""

    @property
    def free_gpus(self) -> int:
        """GPUs free right now on the nodes it could use."""
        return sum(slot.free for pool in self.cause.pools for slot in pool.slots)

    @property
    def message(self) -> str:
        """Why, in one sentence; who is first, who holds what until when, what changed its place."""
        parts = [f"{self._why()}"]
        if self.reason not in NEVER:
            parts.insert(0, f"position {self.position}")
            if self.reason is not WaitReason.TOO_MANY_REQUESTS and (held := self._held()):
                parts.append(held)
        if note := self.cause.seen.order_note(self.request):
            parts.append(note)
        return "; ".join(parts)

    @property
    def what_would_change_it(self) -> str:
        """What would let it start sooner, in one sentence, whoever may use what: see `remedy`."""
        return self.remedy(None)

    def remedy(self, clusters: Container[str] | None, gpu_shapes: Container[str] = ()) -> str:
        """What would let it start sooner, in one sentence.

        Names only what its workspace may use: GPUs of these clusters (None: all), of these shapes (empty: all).
        """
        if self.reason in NEVER or self.reason is WaitReason.TOO_MANY_REQUESTS:
            return _REMEDIES[self.reason]
        others = self.alternatives(clusters, gpu_shapes)
        if others:
            named = ", ".join(f"{key.gpu_shape} ({key.instance_type}) on {key.cluster}" for key in others)
            return f"Free right now: {named}. {_REMEDIES[self.reason]}"
        return _REMEDIES[self.reason]

    def alternatives(
        self, clusters: Container[str] | None = None, gpu_shapes: Container[str] = ()
    ) -> tuple[PoolKey, ...]:
        """Pools outside its selection where as many GPUs on as many nodes are free and nobody waits.

        Only of `clusters` (None: all) and `gpu_shapes` (empty: all). At most ALTERNATIVES_SHOWN_MAX.
        """
        selection = self.request.selection
        found = (
            key
            for key, pool in self.cause.seen.floor.pools.items()
            if key not in self.cause.group
            and (clusters is None or key.cluster in clusters)
            and (not gpu_shapes or key.gpu_shape in gpu_shapes)
            and key.memory_gb >= selection.memory_gb
            and not pool.contested
            and pool.fits(selection.gpus_per_node, selection.nodes)
        )
        return tuple(key for key, _ in zip(found, range(ALTERNATIVES_SHOWN_MAX), strict=False))

    def _why(self) -> str:
        if self.cause.detail:
            return self.cause.detail
        selection = self.request.selection
        needed = needed_by(selection)
        match self.reason:
            case WaitReason.FRAGMENTED:
                where = "one node" if selection.nodes == 1 else "enough nodes"
                return f"{needed}; {are_free(self.free_gpus)}, but not together on {where}"
            case WaitReason.WOULD_DELAY_HEAD:
                return f"{needed}, free, but promised to a request ahead that this one would delay"
            case WaitReason.AWAITING_EVICTION:
                yielding = len(self.cause.evicting)
                return f"{needed}; {counted(yielding, 'request')} of lower priority must yield"
            case _:
                return f"{needed}; {are_free(self.free_gpus)}"

    def _held(self) -> str:
        said = []
        for holding in self.holders:
            own = holding.workspace == self.request.workspace
            who = holding.name if own else "a request of another workspace"
            if holding.draining:
                said.append(f"{who} is giving back {_gpus(holding.gpus)}")
            else:
                renews = ", unless it is renewed" if holding.renews else ""
                said.append(f"{who} holds {_gpus(holding.gpus)} until {instant(holding.until)}{renews}")
        return ", ".join(said)


class Waits(Sequence[Wait]):
    """All waits of one cycle, in the order of the line.

    Made of three flat lists, because a hundred thousand small objects that nobody asks for cost more
    than deciding them: each `Wait` is built when it is looked at.
    """

    __slots__ = ("_causes", "_ranks", "_requests")

    def __init__(self, requests: list[GpuRequest], ranks: list[int], causes: list[Cause]) -> None:
        self._requests = requests
        self._ranks = ranks
        self._causes = causes

    def __len__(self) -> int:
        return len(self._requests)

    @overload
    def __getitem__(self, index: int) -> Wait: ...
    @overload
    def __getitem__(self, index: slice) -> Waits: ...
    def __getitem__(self, index: int | slice) -> Wait | Waits:
        if isinstance(index, slice):
            return Waits(self._requests[index], self._ranks[index], self._causes[index])
        return Wait(self._requests[index], self._ranks[index], self._causes[index])

    def __iter__(self) -> Iterator[Wait]:
        return map(Wait, self._requests, self._ranks, self._causes)

    def causes(self) -> Iterator[tuple[str, Cause]]:
        """(id of the request, why it waits) of each, without building the waits."""
        return ((request.id, cause) for request, cause in zip(self._requests, self._causes, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Waits) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Waits({list(self)!r})"


@dataclass(frozen=True, slots=True)
class Decisions:
    """What one cycle decided. Every queued request of the snapshot is in `grants` or in `waits`.

    To be acted on in this order: evictions (begin to drain), grants, waits (only told).
    """

    grants: tuple[GrantDecision, ...]
    waits: Waits
    evictions: tuple[Eviction, ...]

    def wait_of(self, request_id: str) -> Wait | None:
        """The wait of one request, or None. For single questions; it looks through all."""
        return next((each for each in self.waits if each.request_id == request_id), None)

    def grant_of(self, request_id: str) -> GrantDecision | None:
        """The grant of one request, or None. For single questions; it looks through all."""
        return next((each for each in self.grants if each.request_id == request_id), None)


class Basis(StrEnum):
    """What an estimate rests on."""

    FITS_NOW = "FitsNow"
    KNOWN_ENDS = "KnownEnds"
    EXTRAPOLATED = "Extrapolated"
    UNKNOWN = "Unknown"


_ASSUMPTIONS = {
    Basis.FITS_NOW: "the GPUs are free now and nobody ahead needs them",
    Basis.KNOWN_ENDS: "every request ahead runs for its whole exit duration, and nobody new comes with a "
    "higher priority",
    Basis.EXTRAPOLATED: "the line moves on as fast as its first part does, which alone was worked out",
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """When a request is expected to be granted. `start` is None only where nothing known would let it start.

    `detail` says why there is no estimate, or what else the estimate assumes.
    """

    request_id: str
    start: datetime | None
    basis: Basis
    position: int
    detail: str = ""

    @property
    def assumption(self) -> str:
        """What has to be so for the estimate to hold, or why there is none."""
        said = [each for each in (_ASSUMPTIONS.get(self.basis, ""), self.detail) if each]
        return "; ".join(said)

    def wait(self, now: datetime) -> timedelta | None:
        """How long until then; None without an estimate."""
        return None if self.start is None else max(timedelta(0), self.start - now)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One kind of node that would do, with when its turn would come. Soonest first in a list of them."""

    pool: PoolKey
    gpus_per_node: int
    estimate: Estimate
    explanation: str


@dataclass(frozen=True, slots=True)
class Renewal:
    """Whether a request may go on past its deadline, and the request ahead that wants its GPUs if not."""

    extend: bool
    message: str
    waiting_id: str = ""


_REMEDIES = {
    WaitReason.GPUS_HELD: "An earlier release, another shape or cluster, or a higher priority.",
    WaitReason.FRAGMENTED: "Fewer GPUs on each node, an earlier release, or another shape or cluster.",
    WaitReason.WOULD_DELAY_HEAD: "A shorter exit duration, another shape or cluster, or a higher priority.",
    WaitReason.AWAITING_EVICTION: "Nothing to do; it starts as soon as the GPUs are seen free.",
    WaitReason.TOO_MANY_REQUESTS: "Release or delete another request of the workspace.",
    WaitReason.POLICY_FORBIDS: "Ask within the workspace's policy, or ask an Owner to change it.",
    WaitReason.NO_SUCH_CLUSTER: "Name a cluster of the inventory that the workspace may use.",
    WaitReason.NO_SUCH_SHAPE: "Ask for a shape and instance type of the inventory.",
    WaitReason.LARGER_THAN_CLUSTER: "Ask for fewer GPUs on each node, or fewer nodes.",
    WaitReason.NODES_UNHEALTHY: "A node of this kind must become healthy, or ask for fewer nodes.",
}


def needs(selection: Selection) -> str:
    """`4 GPUs`, or `4 GPUs on each of 2 nodes`."""
    if selection.nodes == 1:
        return _gpus(selection.gpus_per_node)
    return f"{_gpus(selection.gpus_per_node)} on each of {selection.nodes} nodes"


def needed_by(selection: Selection) -> str:
    """`1 GPU is needed`, `4 GPUs on each of 2 nodes are needed`."""
    return f"{needs(selection)} {'is' if selection.gpus == 1 else 'are'} needed"


def are_free(count: int) -> str:
    """`none is free`, `1 is free`, `2 are free`."""
    return f"{count or 'none'} {'are' if count > 1 else 'is'} free"


def listed(words: Iterable[str]) -> str:
    """`a, b` in order, or `none`."""
    return ", ".join(sorted(set(words))) or "none"


def _gpus(count: int) -> str:
    return counted(count, "GPU")


def counted(count: int, noun: str) -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"


def instant(at: datetime) -> str:
    """A moment to the second, in UTC."""
    return at.strftime("%Y-%m-%d %H:%M:%SZ")
