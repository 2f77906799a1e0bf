"""Clusters, nodes and GPUs, and the arithmetic of what is free.

Capacity is free when it is *seen* free: a request holds its GPUs from the moment it is granted until it
has left Draining, that is until the engine has shown that nothing runs on them any more. Nothing here
subtracts counters; what is free is computed from the nodes and the grants each time, so it cannot drift.

A machine with GPUs of several kinds is several nodes, one for each kind, which share the machine's GPU
indexes (`Node.host`). So an index that is held under the name of one of them is held on all (`Machines`):
names may change under those who hold something, the machine's own indexes are the same device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from inferplane.domain.gpu_request import GpuRequest, Grant


class NodeHealth(StrEnum):
    """Whether a node may receive new work. What already runs there is a matter for its engine."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    UNSCHEDULABLE = "Unschedulable"  # a person took it out of use; what runs there runs on


class NodeState(StrEnum):
    """Whether anything of a node is held, in the API's words."""

    AVAILABLE = "NODE_AVAILABLE"
    RESERVED = "NODE_RESERVED"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device as its driver names it. `index` is its place within the node, from 0."""

    index: int
    uuid: str = ""
    model_name: str = ""
    healthy: bool = True


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with GPUs of one shape. `memory_gb` is per GPU; `simulated` means no hardware is behind it.

    `gpus` may be left empty where nothing is known of the single devices; their indexes are then
    0 … `gpu_count` - 1, all healthy. `health_since` is since when it has not been healthy, None where that is not
    known; nodes that differ in nothing else are equal. `host` names the machine where GPU indexes are the machine's own and
    not the node's; "" where the node is all there is to them.
    """

    cluster: str
    name: str
    instance_type: str
    gpu_shape: str
    gpu_count: int
    memory_gb: int
    health: NodeHealth = NodeHealth.HEALTHY
    simulated: bool = False
    gpus: tuple[Gpu, ...] = ()
    gpu_model_name: str = ""
    cloud_provider: str = ""
    region: str = ""
    host: str = ""
    health_since: datetime | None = field(default=None, compare=False)

    @property
    def indexes(self) -> tuple[int, ...]:
        """Indexes of the GPUs that may be granted, ascending."""
        if not self.gpus:
            return tuple(range(self.gpu_count))
        return tuple(sorted(gpu.index for gpu in self.gpus if gpu.healthy))

    @property
    def schedulable(self) -> bool:
        """Whether new work may be placed here."""
        return self.health is NodeHealth.HEALTHY


@dataclass(frozen=True, slots=True)
class NodeHolding:
    """What one request holds of one node."""

    request: GpuRequest
    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NodeUse:
    """One node with who holds what of it. `free` are the indexes that a new grant could have."""

    node: Node
    holdings: tuple[NodeHolding, ...]
    free: tuple[int, ...]

    @property
    def state(self) -> NodeState:
        """Reserved as soon as one GPU is held."""
        return NodeState.RESERVED if self.holdings else NodeState.AVAILABLE


@dataclass(frozen=True, slots=True, order=True)
class ShapeSummary:
    """One row of what a workspace can ask for: nodes that are alike, counted."""

    cluster: str
    instance_type: str
    gpu_shape: str
    memory_gb: int
    gpus_per_node: int
    nodes: int


class Machines:
    """Which nodes a grant's (node, GPU indexes) speaks of, where several nodes may be one machine."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes: dict[tuple[str, str], Node] = {}
        self._parts: dict[tuple[str, str], list[Node]] = {}  # (cluster, host) → its nodes
        self._all_parts: dict[str, list[Node]] = {}  # cluster → its nodes with a host
        for node in nodes:
            self._nodes.setdefault((node.cluster, node.name), node)
            if node.host:
                self._parts.setdefault((node.cluster, node.host), []).append(node)
                self._all_parts.setdefault(node.cluster, []).append(node)

    def nodes_of(self, cluster: str, name: str) -> tuple[Node, ...]:
        """The node of this name, if there is one, and all others on which the same indexes are held.

        Under a name that says of no machine whose it is (a node that is gone, or was stored before nodes
        said so) the indexes count on every machine of the cluster: better one too many than one twice.
        """
        named = self._nodes.get((cluster, name))
        if named is not None and named.host:
            others = self._parts[cluster, named.host]
        else:
            others = self._all_parts.get(cluster, [])
        first = () if named is None else (named,)
        return (*first, *(each for each in others if each is not named))

    def is_in_order(self, grant: Grant) -> bool:
        """Whether every GPU of `grant` is where it was granted, and nothing is known against it."""
        return all(self._has(grant, name, indexes) for name, indexes in grant.nodes)

    def _has(self, grant: Grant, name: str, indexes: tuple[int, ...]) -> bool:
        named = self._nodes.get((grant.cluster, name))
        if named is not None:
            return _offers(named, indexes)
        return any(
            _offers(each, indexes)
            for each in self.nodes_of(grant.cluster, name)  # the node may only have changed its name
            if (each.gpu_shape, each.memory_gb) == (grant.gpu_shape, grant.memory_gb)
        )


def _offers(node: Node, indexes: tuple[int, ...]) -> bool:
    return node.health is not NodeHealth.UNHEALTHY and set(indexes) <= set(node.indexes)


def held_gpus(requests: Iterable[GpuRequest]) -> Mapping[tuple[str, str], tuple[NodeHolding, ...]]:
    """(cluster, node) → what is held there, by request id. Draining requests still hold."""
    found: dict[tuple[str, str], list[NodeHolding]] = {}
    for request in sorted((each for each in requests if each.holds_gpus), key=lambda each: each.id):
        assert request.grant is not None
        for node, gpus in request.grant.nodes:
            found.setdefault((request.grant.cluster, node), []).append(NodeHolding(request, gpus))
    return {key: tuple(holdings) for key, holdings in found.items()}


def node_uses(nodes: Iterable[Node], requests: Iterable[GpuRequest]) -> tuple[NodeUse, ...]:
    """Every node with its holders, ordered by cluster and name."""
    nodes = sorted(nodes, key=lambda each: (each.cluster, each.name))
    machines = Machines(nodes)
    held: dict[tuple[str, str], list[NodeHolding]] = {}
    for (cluster, name), holdings in held_gpus(requests).items():
        for node in machines.nodes_of(cluster, name):
            here = holdings if node.name == name else _held_here(node, holdings)
            held.setdefault((cluster, node.name), []).extend(here)
    uses = []
    for node in nodes:
        holders = tuple(sorted(held.get((node.cluster, node.name), ()), key=lambda each: each.request.id))
        taken = {index for holding in holders for index in holding.gpus}
        free = tuple(index for index in node.indexes if index not in taken) if node.schedulable else ()
        uses.append(NodeUse(node, holders, free))
    return tuple(uses)


def _held_here(node: Node, holdings: Iterable[NodeHolding]) -> list[NodeHolding]:
    """What of `holdings`, which are under another name, is a GPU of `node`."""
    present = {gpu.index for gpu in node.gpus} if node.gpus else set(range(node.gpu_count))
    found = ((each.request, tuple(i for i in each.gpus if i in present)) for each in holdings)
    return [NodeHolding(request, gpus) for request, gpus in found if gpus]


def shape_summaries(nodes: Iterable[Node], clusters: Iterable[str] | None = None) -> tuple[ShapeSummary, ...]:
    """One row per kind of node in `clusters` (None: all), ordered by cluster, type, shape, memory and size."""
    allowed = None if clusters is None else frozenset(clusters)
    counts: dict[tuple[str, str, str, int, int], int] = {}
    for node in nodes:
        if allowed is None or node.cluster in allowed:
            key = (node.cluster, node.instance_type, node.gpu_shape, node.memory_gb, node.gpu_count)
            counts[key] = counts.get(key, 0) + 1
    return tuple(ShapeSummary(*key, nodes=count) for key, count in sorted(counts.items()))
