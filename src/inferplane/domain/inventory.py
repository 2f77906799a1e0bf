"""Clusters, nodes and GPUs, and the arithmetic of what is free.

Capacity is free when it is *seen* free: a request holds its GPUs from the moment it is granted until it
has left Draining, that is until the engine has shown that nothing runs on them any more. Nothing here
subtracts counters; what is free is computed from the nodes and the grants each time, so it cannot drift.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from inferplane.domain.gpu_request import GpuRequest


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
    0 … `gpu_count` - 1, all healthy.
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
    held = held_gpus(requests)
    uses = []
    for node in sorted(nodes, key=lambda each: (each.cluster, each.name)):
        holdings = held.get((node.cluster, node.name), ())
        taken = {index for holding in holdings for index in holding.gpus}
        free = tuple(index for index in node.indexes if index not in taken) if node.schedulable else ()
        uses.append(NodeUse(node, holdings, free))
    return tuple(uses)


def shape_summaries(nodes: Iterable[Node], clusters: Iterable[str] | None = None) -> tuple[ShapeSummary, ...]:
    """One row per kind of node in `clusters` (None: all), ordered by cluster, type, shape, memory and size."""
    allowed = None if clusters is None else frozenset(clusters)
    counts: dict[tuple[str, str, str, int, int], int] = {}
    for node in nodes:
        if allowed is None or node.cluster in allowed:
            key = (node.cluster, node.instance_type, node.gpu_shape, node.memory_gb, node.gpu_count)
            counts[key] = counts.get(key, 0) + 1
    return tuple(ShapeSummary(*key, nodes=count) for key, count in sorted(counts.items()))
