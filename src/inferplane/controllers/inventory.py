"""Keeps the store's picture of nodes and GPUs as the world is.

One pass per cluster, at the start, regularly, and for clusters that are gone from the configuration:
ask the cluster's source, compare, save if different. Level-triggered like every controller: nothing is
remembered here, and a pass may be repeated or lost.

Nothing vanishes under those who hold it (`nodes_to_keep`). A source that had nodes and now cannot tell
(the driver is being replaced, every GPU is lost) leaves them as they were, unhealthy; so does one that
says nothing of a node of which something is held. A node comes back as it was when it is seen again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from inferplane.controllers.leases import Holding, Sole
from inferplane.domain.events import Event
from inferplane.domain.inventory import Gpu, Node, NodeHealth, held_gpus
from inferplane.domain.lease import Fence, cluster_lease
from inferplane.engines.port import Clock
from inferplane.observability import get_logger
from inferplane.store.sql import Store, Tx

ACTOR = "inventory"
REFRESH_SECONDS = 30.0

log = get_logger("controllers.inventory")


class NodeSource(Protocol):
    """Where a cluster's nodes are learned from."""

    async def nodes(self) -> tuple[tuple[Node, ...], str]:
        """The nodes there are now, and, when there are none, why ("" when that is as it should be)."""


class DeclaredNodes:
    """Nodes that are written in the configuration: always there, always healthy."""

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self._nodes = nodes

    async def nodes(self) -> tuple[tuple[Node, ...], str]:
        """What was declared."""
        return self._nodes, ""


class InventoryController:
    """Keys are cluster names. Who depends on nodes hears of a change from the store."""

    name = "inventory"

    def __init__(
        self,
        store: Store,
        sources: Mapping[str, NodeSource],
        clock: Clock,
        *,
        leases: Holding | None = None,
    ) -> None:
        self._store = store
        self._leases = leases or Sole()
        self._sources = sources
        self._clock = clock
        self._problems: dict[str, str] = {}  # what was logged last, so that it is logged once

    async def keys(self) -> Iterable[str]:
        """Every cluster with a source, and every cluster of which nodes are stored."""
        async with self._store.read() as tx:
            stored = {node.cluster for node in await tx.list_nodes()}
        return sorted(stored | set(self._sources))

    async def refresh(self) -> None:
        """One pass over every cluster."""
        for cluster in await self.keys():
            await self.reconcile(cluster)

    async def reconcile(self, key: str) -> float | None:
        """Save the cluster's nodes if they differ from what is stored; return when to look again."""
        fence = self._leases.fence(cluster_lease(key))
        if fence is None:  # whoever looks after the cluster does it
            return None
        source = self._sources.get(key)
        seen, problem = ((), "") if source is None else await source.nodes()
        if problem and problem != self._problems.get(key):
            log.info("no GPUs are found", cluster=key, why=problem)
        self._problems[key] = problem
        async with self._store.read() as tx:
            stored, wanted = await _stored_and_wanted(tx, key, seen, problem)
        if _differ(stored, wanted):
            wanted = await self._save(key, seen, problem, fence)
        return REFRESH_SECONDS if source is not None or wanted else None

    async def _save(
        self, cluster: str, seen: tuple[Node, ...], problem: str, fence: Fence
    ) -> tuple[Node, ...]:
        """Save what is to be kept, with what is held now; returns it."""
        async with self._store.transaction(fence=fence) as tx:
            # First, so that no grant of a node that is about to go is saved between the look and the end.
            await tx.advance_generation()
            stored, wanted = await _stored_and_wanted(tx, cluster, seen, problem)
            if not _differ(stored, wanted):
                return wanted
            wanted = with_health_since(stored, wanted, self._clock())
            await tx.save_nodes(cluster, wanted)
            message = inventory_sentence(cluster, wanted)
            await tx.append_event(Event(self._clock(), "InventoryChanged", message, ACTOR))
        log.info("inventory changed", cluster=cluster, nodes=len(wanted))
        return wanted


def nodes_to_keep(
    stored: tuple[Node, ...],
    seen: tuple[Node, ...],
    problem: str,
    held: frozenset[str] = frozenset(),
) -> tuple[Node, ...]:
    """What the store should say, given what is `stored`, `seen` now, and the names of nodes that are `held`.

    1. Nodes that cannot be seen for a `problem` stay, unhealthy, unless they were only declared.
    2. A machine whose GPU indexes mean other devices than before stays as it was, unhealthy, until nothing
       of it is held: servers still run on devices that now have the indexes of others.
    3. A lost GPU stays on the node where it was known, which stays for it. While anything is held it is not
       forgotten which device it was: it may come back with another index, and somebody else in its place.
    4. A held node that is seen no longer stays, unhealthy, unless its GPUs are seen under another name.
    """
    if not seen and problem:
        return tuple(_unhealthy(node) for node in stored if not node.simulated or node.name in held)
    if held and _renumbered(stored, seen):
        return tuple(_unhealthy(node) for node in stored)
    present = _with_lost_at_home(stored, seen)
    if held:
        present = _with_lost_known(stored, present)
    now = {node.name: node for node in present}
    hosts = {node.host for node in seen}
    for node in stored:
        if node.name in held and node.name not in now and not _is_renamed(node, seen):
            # Of a machine that is called something else now, it can only be said that it is some machine.
            host = node.host if not hosts or node.host in hosts else ""
            now[node.name] = replace(_unhealthy(node), host=host)
    return tuple(now.values())


def with_health_since(stored: Iterable[Node], wanted: Iterable[Node], now: datetime) -> tuple[Node, ...]:
    """The wanted nodes, each that is not healthy with since when: from before if it was so already, else `now`."""
    before = {each.name: each for each in stored}
    found = []
    for node in wanted:
        known = before.get(node.name)
        as_before = known is not None and known.health is node.health
        since = known.health_since if known is not None and as_before else now
        found.append(replace(node, health_since=None if node.health is NodeHealth.HEALTHY else since))
    return tuple(found)


def _unhealthy(node: Node) -> Node:
    return replace(node, health=NodeHealth.UNHEALTHY)


def _renumbered(stored: tuple[Node, ...], seen: tuple[Node, ...]) -> bool:
    """Whether a device has another index than before, or an index of a machine another device."""
    index_of = {gpu.uuid: gpu.index for node in stored for gpu in node.gpus if gpu.uuid}
    device_at = {(node.host, gpu.index): gpu.uuid for node in stored for gpu in node.gpus if gpu.uuid}
    return any(
        index_of.get(gpu.uuid, gpu.index) != gpu.index
        or device_at.get((node.host, gpu.index), gpu.uuid) != gpu.uuid
        for node in seen
        for gpu in node.gpus
        if gpu.uuid
    )


def _is_renamed(node: Node, seen: tuple[Node, ...]) -> bool:
    """Whether the same GPUs are listed under another name: then they are held there (`Machines`)."""
    there = {gpu.index: gpu.uuid for each in seen if each.host for gpu in each.gpus}
    return bool(node.gpus) and all(
        gpu.index in there and there[gpu.index] in ("", gpu.uuid) for gpu in node.gpus
    )


def _with_lost_at_home(stored: tuple[Node, ...], seen: tuple[Node, ...]) -> list[Node]:
    """`seen`, with the lost GPUs moved to where they were before: what is lost no longer says its kind.

    A node of which every GPU is lost is there again, unhealthy.
    """
    homes = {gpu.index: node for node in stored if node.host for gpu in node.gpus}
    nodes = {node.name: node for node in seen}
    for node in seen:
        for gpu in node.gpus:
            home = homes.get(gpu.index)
            if gpu.healthy or gpu.uuid or home is None or home.host != node.host or home.name == node.name:
                continue
            nodes[node.name] = _with_gpus(
                nodes[node.name], [each for each in nodes[node.name].gpus if each != gpu]
            )
            there = nodes.get(home.name) or _unhealthy(replace(home, gpus=()))
            nodes[home.name] = _with_gpus(there, [*there.gpus, gpu])
    return list(nodes.values())


def _with_lost_known(stored: tuple[Node, ...], present: list[Node]) -> list[Node]:
    """`present`, with what is known of the lost GPUs of the same machine: which devices they were."""
    known = {(node.host, gpu.index): gpu.uuid for node in stored for gpu in node.gpus if gpu.uuid}
    return [
        _with_gpus(
            node,
            [
                gpu if gpu.uuid or gpu.healthy else replace(gpu, uuid=known.get((node.host, gpu.index), ""))
                for gpu in node.gpus
            ],
        )
        if any(not gpu.uuid and not gpu.healthy for gpu in node.gpus)
        else node
        for node in present
    ]


def _with_gpus(node: Node, gpus: Iterable[Gpu]) -> Node:
    ordered = tuple(sorted(gpus, key=lambda each: each.index))
    return replace(node, gpus=ordered, gpu_count=len(ordered))


async def _stored_and_wanted(
    tx: Tx, cluster: str, seen: tuple[Node, ...], problem: str
) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    stored = tuple(await tx.list_nodes(cluster))
    held = await _held_nodes(tx, cluster) if _differ(stored, seen) else frozenset()
    return stored, nodes_to_keep(stored, seen, problem, held)


async def _held_nodes(tx: Tx, cluster: str) -> frozenset[str]:
    """The names under which something of the cluster is held."""
    holdings = held_gpus(await tx.list_gpu_requests(live_only=True))
    return frozenset(name for there, name in holdings if there == cluster)


def _differ(one: tuple[Node, ...], other: tuple[Node, ...]) -> bool:
    return sorted(one, key=_by_name) != sorted(other, key=_by_name)


def inventory_sentence(cluster: str, nodes: tuple[Node, ...]) -> str:
    """One line on what a cluster has."""
    gpus = sum(node.gpu_count for node in nodes)
    unhealthy = sum(not node.schedulable for node in nodes)
    simulated = " (simulated)" if nodes and all(node.simulated for node in nodes) else ""
    rest = f", {unhealthy} of them not usable" if unhealthy else ""
    return f"cluster {cluster} has {_count(gpus, 'GPU')}{simulated} on {_count(len(nodes), 'node')}{rest}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _by_name(node: Node) -> str:
    return node.name
