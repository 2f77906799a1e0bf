"""The store's picture of nodes follows the world, and nodes that cannot be seen do not vanish."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import text

from inferplane.controllers.inventory import (
    REFRESH_SECONDS,
    DeclaredNodes,
    InventoryController,
    nodes_to_keep,
)
from inferplane.domain import gpu_request as gpr
from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus, Selection
from inferplane.domain.inventory import Gpu, Node, NodeHealth, node_uses
from inferplane.domain.workspace import Workspace
from inferplane.engines.nvml import Device, nodes_of
from inferplane.store.sql import Change, Store, Tx

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


# --- Nothing vanishes under those who hold it ----------------------------------------------------

GIB = 1024**3
A = Device(0, "GPU-a", "NVIDIA A100", 80 * GIB)
B = Device(1, "GPU-b", "Tesla T4", 15 * GIB)
C = Device(2, "GPU-c", "Tesla T4", 15 * GIB)
BOX = nodes_of("local", "box", (A, B, C))
A100, T4 = "box-nvidia-a100-80gb", "box-tesla-t4-15gb"


def holder(node: str, *indexes: int) -> GpuRequest:
    """A request that holds GPUs of `local`."""
    asked = GpuRequest("gpr-1", "one", "default", Selection("local"), NOW, NOW)
    return gpr.started(gpr.granted(asked, Grant("local", ((node, indexes),)), NOW), NOW)


def said(nodes: tuple[Node, ...]) -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Name → health, all indexes, indexes that may be granted."""
    return {
        each.name: (each.health.value, tuple(gpu.index for gpu in each.gpus), each.indexes) for each in nodes
    }


def test_a_lost_gpu_stays_where_it_was_known() -> None:
    seen = nodes_of("local", "box", (A, B, Device(2)))
    assert said(nodes_to_keep(BOX, seen, "")) == {
        A100: ("Healthy", (0,), (0,)),
        T4: ("Healthy", (1, 2), (1,)),
    }


def test_a_kind_of_which_every_gpu_is_lost_stays_and_comes_back() -> None:
    for devices in ((A, Device(1), Device(2)), (Device(0), B, C)):
        kept = nodes_to_keep(BOX, nodes_of("local", "box", devices), "")
        lost = {each.index for each in devices if each.lost}
        for node in kept:
            is_lost = {gpu.index for gpu in node.gpus} <= lost
            assert node.health is (NodeHealth.UNHEALTHY if is_lost else NodeHealth.HEALTHY)
        assert {node.name for node in kept} == {A100, T4}
        assert nodes_to_keep(kept, nodes_of("local", "box", devices), "") == kept, "and nothing moves again"
        assert nodes_to_keep(kept, BOX, "") == BOX


def test_a_kind_that_is_gone_stays_as_long_as_somebody_holds_some_of_it() -> None:
    seen = nodes_of("local", "box", (B, C))
    assert nodes_to_keep(BOX, seen, "") == seen
    kept = nodes_to_keep(BOX, seen, "", frozenset({A100}))
    assert said(kept) == {A100: ("Unhealthy", (0,), (0,)), T4: ("Healthy", (1, 2), (1, 2))}


def test_a_node_that_is_only_called_something_else_now_does_not_stay_twice() -> None:
    old = (replace(BOX[0], name="box", host=""), replace(BOX[1], name="box-1", host=""))
    assert nodes_to_keep(old, BOX, "", frozenset({"box", "box-1"})) == BOX
    (one, two) = node_uses(BOX, [holder("box-1", 2)])
    assert (one.free, two.free) == ((0,), (1,))


def test_of_a_machine_with_another_name_a_held_node_is_held_on_any() -> None:
    seen = nodes_of("local", "crate", (B, C))
    kept = nodes_to_keep(BOX, seen, "", frozenset({A100}))
    assert {node.name: node.host for node in kept} == {"crate-tesla-t4-15gb": "crate", A100: ""}


def test_indexes_that_mean_other_devices_wait_until_nothing_is_held() -> None:
    seen = nodes_of("local", "box", (replace(B, index=0), replace(C, index=1)))  # the first card is gone
    kept = nodes_to_keep(BOX, seen, "", frozenset({T4}))
    assert {node.health for node in kept} == {NodeHealth.UNHEALTHY}
    assert [node.gpus for node in kept] == [node.gpus for node in BOX]
    assert nodes_to_keep(kept, seen, "", frozenset({T4})) == kept
    assert nodes_to_keep(kept, seen, "") == seen


def test_a_lost_device_that_comes_back_elsewhere_is_known_while_something_is_held() -> None:
    held = frozenset({A100})
    box = nodes_of("local", "box", (A, B))
    lost = nodes_to_keep(box, nodes_of("local", "box", (Device(0), B)), "", held)
    assert said(lost) == {A100: ("Unhealthy", (0,), ()), T4: ("Healthy", (1,), (1,))}
    assert nodes_to_keep(lost, nodes_of("local", "box", (Device(0), B)), "", held) == lost
    # Another card has its index now, and whoever holds index 0 computes on the one with index 2.
    seen = nodes_of("local", "box", (replace(A, uuid="GPU-z"), B, replace(A, index=2)))
    kept = nodes_to_keep(lost, seen, "", held)
    assert said(kept) == {A100: ("Unhealthy", (0,), ()), T4: ("Unhealthy", (1,), (1,))}
    assert nodes_to_keep(kept, seen, "", held) == kept
    assert nodes_to_keep(kept, seen, "") == seen
    assert nodes_to_keep(lost, box, "", held) == box, "back where it was"


def test_another_card_in_its_place_waits_until_nothing_is_held() -> None:
    seen = nodes_of("local", "box", (replace(A, uuid="GPU-z"), B, C))
    kept = nodes_to_keep(BOX, seen, "", frozenset({A100}))
    assert {node.health for node in kept} == {NodeHealth.UNHEALTHY}
    assert nodes_to_keep(kept, seen, "") == seen


async def test_a_held_node_goes_once_it_is_given_back(store: Store) -> None:
    await InventoryController(store, {"local": Machine(*BOX)}, lambda: NOW).refresh()
    async with store.transaction() as tx:
        await tx.add_workspace(Workspace("default", ("local",), NOW))
        await tx.insert_gpu_request(request := holder(A100, 0))
    controller = InventoryController(store, {}, lambda: NOW)  # the cluster is configured no longer
    assert await controller.reconcile("local") == REFRESH_SECONDS, "what stays is looked at again"
    (node,) = (await stored(store))["local"]
    assert (node.name, node.health) == (A100, NodeHealth.UNHEALTHY)
    async with store.transaction() as tx:
        version = await tx.save_gpu_request(ending := gpr.draining(request, ProvisioningStatus.COMPLETE, NOW))
        await tx.save_gpu_request(gpr.ended(replace(ending, version=version), NOW))
    assert await controller.reconcile("local") is None
    assert await stored(store) == {}


async def test_a_node_that_is_granted_while_it_goes_stays(postgres_url: str) -> None:
    """The grant comes between the look and the writing. SQLite would make it wait; PostgreSQL does not."""
    store, other = await Store.open(postgres_url), await Store.open(postgres_url)
    try:
        await InventoryController(store, {"local": Machine(*BOX)}, lambda: NOW).refresh()
        async with store.transaction() as tx:
            await tx.add_workspace(Workspace("default", ("local",), NOW))
        async with other.transaction() as tx:
            await tx.advance_generation(await tx.generation())
            await tx.insert_gpu_request(holder(A100, 0))
            going = asyncio.create_task(InventoryController(store, {}, lambda: NOW).reconcile("local"))
            while not await waits_for_a_lock(tx):
                assert not going.done(), "it did not wait for the grant"
                await asyncio.sleep(0.01)
        await going
        assert [node.name for node in (await stored(store))["local"]] == [A100]
    finally:
        await store.close()
        await other.close()


async def waits_for_a_lock(tx: Tx) -> bool:
    """Whether any session waits for another. (`pg_stat_activity` would say the same thing all transaction long.)"""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return bool((await tx._connection.execute(waiting)).scalar_one())
