"""The store's picture of nodes follows the world, and nodes that cannot be seen do not vanish."""

from __future__ import annotations

from datetime import UTC, datetime

from inferplane.controllers.inventory import DeclaredNodes, InventoryController
from inferplane.domain.inventory import Gpu, Node, NodeHealth
from inferplane.store.sql import Change, Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REAL = Node("local", "host", "local", "NVIDIA-A100", 1, 80, gpus=(Gpu(0, "GPU-aa"),))
DECLARED = tuple(Node("worker-1", f"gpu-{n}", "a2", "NVIDIA-A100", 1, 80, simulated=True) for n in range(2))


class Machine:
    """A source that says what it is told to say."""

    def __init__(self, *nodes: Node, problem: str = "") -> None:
        self.answer: tuple[tuple[Node, ...], str] = (nodes, problem)

    async def nodes(self) -> tuple[tuple[Node, ...], str]:
        return self.answer


async def stored(store: Store) -> dict[str, list[Node]]:
    async with store.read() as tx:
        nodes = await tx.list_nodes()
    return {cluster: [n for n in nodes if n.cluster == cluster] for cluster in {n.cluster for n in nodes}}


async def events(store: Store) -> list[str]:
    async with store.read() as tx:
        return [event.message for event in await tx.list_audit(kind="InventoryChanged")]


async def test_a_pass_saves_what_there_is_and_the_next_one_nothing(store: Store) -> None:
    changes: list[Change] = []
    controller = InventoryController(
        store, {"local": Machine(REAL), "worker-1": DeclaredNodes(DECLARED)}, lambda: NOW
    )
    await controller.refresh()
    assert await stored(store) == {"local": [REAL], "worker-1": list(DECLARED)}
    assert sorted(await events(store)) == [
        "cluster local has 1 GPU on 1 node",
        "cluster worker-1 has 2 GPUs (simulated) on 2 nodes",
    ]
    store.subscribe(changes.append)
    await controller.refresh()
    assert (len(await events(store)), changes) == (2, [])


async def test_a_lost_gpu_is_noticed(store: Store) -> None:
    machine = Machine(REAL)
    controller = InventoryController(store, {"local": machine}, lambda: NOW)
    assert await controller.reconcile("local") is not None, "it looks again"
    lost = Node("local", "host", "local", "NVIDIA-A100", 1, 80, gpus=(Gpu(0, healthy=False),))
    machine.answer = ((lost,), "")
    await controller.reconcile("local")
    assert await stored(store) == {"local": [lost]}


async def test_a_machine_that_cannot_tell_any_more_keeps_its_nodes_unhealthy(store: Store) -> None:
    machine = Machine(problem="no driver")
    controller = InventoryController(store, {"local": machine}, lambda: NOW)
    await controller.refresh()
    assert await stored(store) == {}
    machine.answer = ((REAL,), "")
    await controller.refresh()
    machine.answer = ((), "the driver does not answer")
    await controller.refresh()
    (node,) = (await stored(store))["local"]
    assert (node.health, node.gpus) == (NodeHealth.UNHEALTHY, REAL.gpus)
    machine.answer = ((REAL,), "")
    await controller.refresh()
    assert await stored(store) == {"local": [REAL]}


async def test_declared_nodes_go_when_they_are_declared_no_longer(store: Store) -> None:
    await InventoryController(store, {"worker-1": DeclaredNodes(DECLARED)}, lambda: NOW).refresh()
    later = InventoryController(store, {"local": Machine(problem="no driver")}, lambda: NOW)
    assert await later.keys() == ["local", "worker-1"]
    await later.refresh()
    assert await stored(store) == {}
