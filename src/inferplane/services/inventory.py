"""Which GPUs there are, who holds them, and which of them a workspace can ask for."""

from __future__ import annotations

from dataclasses import dataclass

from inferplane.domain.access import Caller, Role, Verb
from inferplane.domain.inventory import Node, NodeUse, ShapeSummary, node_uses, shape_summaries
from inferplane.services.context import Platform
from inferplane.store.sql import Tx


@dataclass(frozen=True, slots=True)
class Inventory:
    """Every node a caller may see. `unmanaged` ones belong to no registered cluster."""

    managed: tuple[NodeUse, ...]
    unmanaged: tuple[NodeUse, ...]


async def list_nodes(platform: Platform, caller: Caller) -> Inventory:
    """All nodes for an Owner, those of the own workspace's clusters otherwise; by cluster and name."""
    caller.require(Verb.READ_GPUS)
    async with platform.store.read() as tx:
        registered = {each.name for each in await tx.list_clusters()}
        nodes = await _visible(tx, caller, registered)
        uses = node_uses(nodes, await tx.list_gpu_requests(live_only=True))
    return Inventory(
        tuple(use for use in uses if use.node.cluster in registered),
        tuple(use for use in uses if use.node.cluster not in registered),
    )


async def list_shapes(platform: Platform, caller: Caller, workspace: str) -> tuple[ShapeSummary, ...]:
    """What a workspace can ask for; without one, what is there at all. Raises NotFound."""
    caller.require(Verb.READ_GPUS, workspace)
    async with platform.store.read() as tx:
        if not workspace:
            return shape_summaries(await tx.list_nodes())
        clusters = (await tx.get_workspace(workspace)).clusters
        policy = await tx.get_policy(workspace)
        found = shape_summaries(await tx.list_nodes(), clusters)
    shapes = policy.gpu_shapes
    return tuple(each for each in found if not shapes or each.gpu_shape in shapes)


async def _visible(tx: Tx, caller: Caller, registered: set[str]) -> list[Node]:
    nodes = list(await tx.list_nodes())
    if caller.role is Role.OWNER:
        return nodes
    mine = frozenset((await tx.get_workspace(caller.workspace)).clusters) & registered
    return [node for node in nodes if node.cluster in mine]
