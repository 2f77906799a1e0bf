"""Keeps the store's picture of nodes and GPUs as the world is.

One pass per cluster, at the start, regularly, and for clusters that are gone from the configuration:
ask the cluster's source, compare, save if different. Level-triggered like every controller: nothing is
remembered here, and a pass may be repeated or lost.

A source that had nodes and now cannot tell (the driver is being replaced, say) does not make them
vanish: they stay, unhealthy, so that nothing new is placed there and those who hold them are seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from inferplane.domain.events import Event
from inferplane.domain.inventory import Node, NodeHealth
from inferplane.engines.port import Clock
from inferplane.observability import get_logger
from inferplane.store.sql import Store

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

    def __init__(self, store: Store, sources: Mapping[str, NodeSource], clock: Clock) -> None:
        self._store = store
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
        source = self._sources.get(key)
        seen, problem = ((), "") if source is None else await source.nodes()
        async with self._store.read() as tx:
            stored = tuple(await tx.list_nodes(key))
        wanted = nodes_to_keep(stored, seen, problem)
        if problem and problem != self._problems.get(key):
            log.info("no GPUs are found", cluster=key, why=problem)
        self._problems[key] = problem
        if sorted(wanted, key=_by_name) != sorted(stored, key=_by_name):
            await self._save(key, wanted)
        return REFRESH_SECONDS if source is not None else None

    async def _save(self, cluster: str, nodes: tuple[Node, ...]) -> None:
        message = inventory_sentence(cluster, nodes)
        async with self._store.transaction() as tx:
            await tx.save_nodes(cluster, nodes)
            await tx.append_event(Event(self._clock(), "InventoryChanged", message, ACTOR))
        log.info("inventory changed", cluster=cluster, nodes=len(nodes))


def nodes_to_keep(stored: tuple[Node, ...], seen: tuple[Node, ...], problem: str) -> tuple[Node, ...]:
    """What the store should say. Nodes that cannot be seen for a `problem` stay, unless only declared."""
    if seen or not problem:
        return seen
    return tuple(replace(node, health=NodeHealth.UNHEALTHY) for node in stored if not node.simulated)


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
