"""Where a request fits: the floor with its pools and nodes, and the choice of GPUs on it.

A *pool* is all nodes of a cluster that are alike (shape, instance type, memory). Within a pool the nodes
lie in levels by how many GPUs are free, so "do n nodes have g free GPUs" is a few additions and "which" is
a walk from the tightest level up. Taking the tightest that does keeps large holes whole.

A *reservation* is what the first request that waits for a pool is promised: n nodes, and from when. Who
comes later may use those nodes only until then, or only what the promise leaves over (`slack`).

The floor is a working copy: a cycle (cycle.py) builds one, changes it, and nobody else sees it change.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import nsmallest
from operator import attrgetter

from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus, Selection
from inferplane.domain.inventory import Machines, Node
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.scheduler.snapshot import Snapshot, Switches

SOONEST_END = timedelta(seconds=1)
"""What is overdue, or about to end, is expected to end this much after now: soon, but never at once."""

_NOW = datetime.min.replace(tzinfo=UTC)
"""Sorts before every instant: what is free already."""


@dataclass(frozen=True, slots=True, order=True)
class PoolKey:
    """What the nodes of a pool have in common."""

    cluster: str
    gpu_shape: str
    instance_type: str
    memory_gb: int


class Holder:
    """A request that holds GPUs, as the floor sees it. `parts` are (slot, bit mask of GPU indexes)."""

    __slots__ = ("draining", "ends_at", "gpus", "granted_at", "parts", "request")

    def __init__(
        self, request: GpuRequest, ends_at: datetime, granted_at: datetime, draining: bool, gpus: int = 0
    ) -> None:
        self.request = request
        self.ends_at = ends_at
        self.granted_at = granted_at
        self.draining = draining
        self.gpus = gpus
        self.parts: list[tuple[Slot, int]] = []

    @property
    def told_end(self) -> datetime:
        """The end that its owner is told: when it has to give its GPUs back, not when they are seen free."""
        return min(self.ends_at, self.request.ends_at or self.ends_at)


class Slot:
    """A node on the floor. `free_mask` has a bit for each GPU index that can be granted now."""

    __slots__ = ("capacity", "free", "free_mask", "held", "node", "ordinal", "pool", "whole_mask")

    def __init__(self, node: Node, pool: Pool, ordinal: int) -> None:
        self.node = node
        self.pool = pool
        self.ordinal = ordinal
        self.whole_mask = _mask(node.indexes) if node.schedulable else 0
        self.free_mask = self.whole_mask
        self.capacity = self.free = self.whole_mask.bit_count()
        self.held: dict[str, tuple[Holder, int]] = {}  # request id → holder, GPUs of this node


class Pool:
    """Nodes that are alike. `levels[f]` are the ordinals of the nodes with f free GPUs, ascending."""

    __slots__ = ("at_least", "contested", "free", "head", "key", "levels", "slots", "soonest")

    def __init__(self, key: PoolKey) -> None:
        self.key = key
        self.slots: list[Slot] = []
        self.levels: list[list[int]] = []
        self.at_least: list[int] = []  # at_least[g]: nodes that could ever give g GPUs
        self.free = 0  # GPUs free on all nodes together
        self.contested = False  # somebody waits for this pool, so who comes later is a backfill
        self.head: Reservation | None = None
        self.soonest: dict[tuple[int, int], tuple[datetime, dict[int, int]] | None] = {}

    def settle(self) -> None:
        """Sort the nodes into levels, once all are there and all holders are seated."""
        largest = max(slot.capacity for slot in self.slots)
        self.levels = [[] for _ in range(largest + 1)]
        self.at_least = [0] * (largest + 1)
        for slot in self.slots:
            self.levels[slot.free].append(slot.ordinal)
            self.at_least[slot.capacity] += 1
            self.free += slot.free
        for gpus in range(largest, 0, -1):
            self.at_least[gpus - 1] += self.at_least[gpus]

    def nodes_with_capacity(self, gpus: int) -> int:
        """How many nodes could ever give `gpus` GPUs, the way they are now."""
        return self.at_least[gpus] if gpus < len(self.at_least) else 0

    def fits(self, gpus: int, nodes: int) -> bool:
        """Whether `nodes` nodes have `gpus` free GPUs each, reservations aside."""
        for level in self.levels[gpus:]:
            nodes -= len(level)
            if nodes <= 0:
                return True
        return False

    def find(self, gpus: int, nodes: int, promise: Reservation | None) -> list[Slot] | None:
        """The tightest `nodes` nodes with `gpus` free GPUs each, leaving `promise` what it needs."""
        if not self.fits(gpus, nodes):
            return None
        slack: Mapping[int, int] = promise.slack if promise is not None else {}
        found: list[Slot] = []
        for level in self.levels[gpus:]:
            for ordinal in level:
                if slack.get(ordinal, gpus) >= gpus:
                    found.append(self.slots[ordinal])
                    if len(found) == nodes:
                        return found
        return None

    def earliest(self, gpus: int, nodes: int) -> tuple[datetime, dict[int, int]] | None:
        """When `nodes` nodes will have `gpus` free GPUs each by the known ends, and what they leave over.

        None when that never happens. Remembered until the pool changes.
        """
        key = (gpus, nodes)
        if key not in self.soonest:
            self.soonest[key] = self._earliest(gpus, nodes)
        return self.soonest[key]

    def _earliest(self, gpus: int, nodes: int) -> tuple[datetime, dict[int, int]] | None:
        ready = [
            (at, slot.ordinal)
            for slot in self.slots
            if slot.capacity >= gpus and (at := _ready_at(slot, gpus)) is not None
        ]
        if len(ready) < nodes:
            return None
        chosen = nsmallest(nodes, ready)
        start = chosen[-1][0]
        slack = {ordinal: _free_at(self.slots[ordinal], start) - gpus for _, ordinal in chosen}
        return start, slack

    def move(self, slot: Slot, free_mask: int) -> None:
        """Note that other GPUs of `slot` are free now."""
        self.soonest.clear()
        before, slot.free_mask = slot.free, free_mask
        slot.free = free_mask.bit_count()
        self.free += slot.free - before
        if before != slot.free:
            level = self.levels[before]
            del level[bisect_left(level, slot.ordinal)]
            insort(self.levels[slot.free], slot.ordinal)


class Reservation:
    """The first request in line for a pool, when it will start, and what it leaves of its nodes."""

    __slots__ = ("pool", "request", "slack", "start")

    def __init__(self, request: GpuRequest, pool: Pool, start: datetime, slack: dict[int, int]) -> None:
        self.request = request
        self.pool = pool
        self.start = start
        self.slack = slack


class Floor:
    """All pools, who holds what, and what is free."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.switches = snapshot.switches
        self.pools: dict[PoolKey, Pool] = {}
        self.holders: dict[str, Holder] = {}
        self.held_by: dict[str, int] = {}  # workspace → requests that hold GPUs
        self.held_gpus: dict[str, int] = {}  # workspace → GPUs they hold
        self.clusters: set[str] = set()
        slots: dict[tuple[str, str], Slot] = {}
        for node in sorted(snapshot.nodes, key=attrgetter("cluster", "name")):
            if (node.cluster, node.name) in slots:
                continue
            key = PoolKey(node.cluster, node.gpu_shape, node.instance_type, node.memory_gb)
            pool = self.pools.get(key)
            if pool is None:
                pool = self.pools[key] = Pool(key)
                self.clusters.add(node.cluster)
            slot = slots[node.cluster, node.name] = Slot(node, pool, len(pool.slots))
            pool.slots.append(slot)
        self.machines = Machines(slot.node for slot in slots.values())
        for request in sorted((each for each in snapshot.requests if each.holds_gpus), key=attrgetter("id")):
            self._seat(request, slots, snapshot.now)
        self.pools = {key: self.pools[key] for key in sorted(self.pools)}
        for pool in self.pools.values():
            pool.settle()

    def _seat(self, request: GpuRequest, slots: Mapping[tuple[str, str], Slot], now: datetime) -> None:
        """Take what `request` already holds, on every node that has the same GPUs.

        GPUs that are gone, or held twice, count for nothing.
        """
        assert request.grant is not None
        holder = Holder(
            request,
            expected_end(request, now, self.switches),
            request.granted_at or now,
            request.status is ProvisioningStatus.DRAINING,
        )
        for name, indexes in request.grant.nodes:
            for node in self.machines.nodes_of(request.grant.cluster, name):
                slot = slots[node.cluster, node.name]
                mask = slot.free_mask & _mask(indexes)
                if not mask and node.name != name:
                    continue
                slot.free_mask &= ~mask
                slot.free = slot.free_mask.bit_count()
                holder.parts.append((slot, mask))
                _, before = slot.held.get(request.id, (holder, 0))
                slot.held[request.id] = (holder, before + mask.bit_count())
        self._enter(holder, request.grant.gpus)

    def is_in_order(self, holder: Holder) -> bool:
        """Whether all its GPUs are still there and healthy. One that was seated here is: it got what is."""
        grant = holder.request.grant
        return grant is None or self.machines.is_in_order(grant)

    def grant(self, request: GpuRequest, slots: list[Slot], now: datetime) -> Grant:
        """Give `request` GPUs on each of `slots`: the lowest free indexes. They must be free."""
        gpus = request.selection.gpus_per_node
        holder = Holder(request, expected_end_of_new(request, now, self.switches), now, draining=False)
        nodes = []
        for slot in sorted(slots, key=attrgetter("ordinal")):
            mask = _lowest_bits(slot.free_mask, gpus)
            slot.pool.move(slot, slot.free_mask & ~mask)
            slot.held[request.id] = (holder, gpus)
            holder.parts.append((slot, mask))
            nodes.append((slot.node.name, _indexes(mask)))
        self._enter(holder, gpus * len(slots))
        key = slots[0].pool.key
        return Grant(key.cluster, tuple(nodes), key.gpu_shape, key.instance_type, key.memory_gb)

    def release(self, holder: Holder) -> None:
        """Its GPUs are seen free."""
        for slot, mask in holder.parts:
            slot.held.pop(holder.request.id, None)
            slot.pool.move(slot, slot.free_mask | mask & slot.whole_mask)
        del self.holders[holder.request.id]
        self.held_by[holder.request.workspace] -= 1
        self.held_gpus[holder.request.workspace] -= holder.gpus

    def _enter(self, holder: Holder, gpus: int) -> None:
        workspace = holder.request.workspace
        holder.gpus = gpus
        self.holders[holder.request.id] = holder
        self.held_by[workspace] = self.held_by.get(workspace, 0) + 1
        self.held_gpus[workspace] = self.held_gpus.get(workspace, 0) + gpus

    def end_at(self, holder: Holder, at: datetime, *, draining: bool) -> None:
        """Expect `holder` to end at another time than before."""
        holder.ends_at = at
        holder.draining = draining
        for slot, _ in holder.parts:
            slot.pool.soonest.clear()

    def candidates(
        self, selection: Selection, policy: WorkspacePolicy, usable: Callable[[str], bool]
    ) -> list[Pool]:
        """Pools in which `selection` could ever be placed, by preference: see `preference`.

        Leaves out what the policy forbids there; whether the pool is large enough is not asked.
        """
        pools = [
            pool
            for key, pool in self.pools.items()
            if usable(key.cluster) and matches(selection, key, policy)
        ]
        return sorted(pools, key=lambda pool: preference(selection, pool.key))


def expected_end(request: GpuRequest, now: datetime, switches: Switches) -> datetime:
    """When a holder's GPUs are expected to be seen free: its known end, never before the next second."""
    if request.status is ProvisioningStatus.DRAINING:
        end = (request.draining_since or now) + switches.draining
    elif request.ends_at is not None:
        end = request.ends_at + switches.draining
    else:
        starts_at = max(now, (request.granted_at or now) + switches.provisioning)
        end = starts_at + request.exit_duration + switches.draining
    return max(end, now + SOONEST_END)


def expected_end_of_new(request: GpuRequest, now: datetime, switches: Switches) -> datetime:
    """When the GPUs would be free again if they were granted now."""
    return now + max(SOONEST_END, switches.provisioning + request.exit_duration + switches.draining)


def matches(selection: Selection, key: PoolKey, policy: WorkspacePolicy) -> bool:
    """Whether nodes like these are what was asked for, and allowed."""
    if not selection.auto_cluster:
        named = selection.preferred_clusters or (selection.cluster_name,)
        if key.cluster not in named:
            return False
    if not selection.auto_gpu:
        if selection.gpu_shape and selection.gpu_shape != key.gpu_shape:
            return False
        if selection.instance_type and selection.instance_type != key.instance_type:
            return False
    return key.memory_gb >= selection.memory_gb and allows(policy, selection, key)


def allows(policy: WorkspacePolicy, selection: Selection, key: PoolKey) -> bool:
    """Whether the policy lets the workspace have these GPUs in this number."""
    if policy.gpu_shapes and key.gpu_shape not in policy.gpu_shapes:
        return False
    memory_max = policy.max_memory_gb_per_request
    return memory_max is None or selection.gpus * key.memory_gb <= memory_max


def preference(selection: Selection, key: PoolKey) -> tuple[int, int]:
    """Lower is better: the preferred cluster, then the smallest memory that does."""
    clusters = selection.preferred_clusters
    return (clusters.index(key.cluster) if clusters else 0, key.memory_gb)


def spare(slots: list[Slot], gpus: int) -> int:
    """GPUs left over on the nodes chosen; the fewer, the tighter the fit."""
    return sum(slot.free for slot in slots) - gpus * len(slots)


def _ready_at(slot: Slot, gpus: int) -> datetime | None:
    """When `slot` will have `gpus` free GPUs; the beginning of time if it has them now."""
    free = slot.free
    if free >= gpus:
        return _NOW
    for holder, count in sorted(slot.held.values(), key=_end_of):
        free += count
        if free >= gpus:
            return holder.ends_at
    return None


def _free_at(slot: Slot, at: datetime) -> int:
    return slot.free + sum(count for holder, count in slot.held.values() if holder.ends_at <= at)


def _end_of(held: tuple[Holder, int]) -> datetime:
    return held[0].ends_at


def _mask(indexes: tuple[int, ...]) -> int:
    mask = 0
    for index in indexes:
        mask |= 1 << index
    return mask


def _lowest_bits(mask: int, count: int) -> int:
    taken = 0
    for _ in range(count):
        bit = mask & -mask
        taken |= bit
        mask ^= bit
    return taken


def _indexes(mask: int) -> tuple[int, ...]:
    return tuple(_bits(mask))


def _bits(mask: int) -> Iterator[int]:
    while mask:
        bit = mask & -mask
        yield bit.bit_length() - 1
        mask ^= bit
