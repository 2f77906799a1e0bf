"""Controllers of which another control plane does the work, before they begin and in the midst of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from inferplane.controllers.admission import CYCLE, AdmissionController
from inferplane.controllers.endpoints import EndpointController
from inferplane.controllers.inventory import DeclaredNodes, InventoryController
from inferplane.controllers.runner import Runner
from inferplane.domain.endpoint import EndpointSpec, EndpointStatus, InferenceEndpoint, ModelSpec
from inferplane.domain.errors import StaleLease
from inferplane.domain.inventory import Node
from inferplane.domain.lease import LEASE_LASTS, Fence, cluster_lease
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.engines.port import Action, Target
from inferplane.engines.simulated import SimulatedEngine
from inferplane.gateway.absent import AbsentGateway
from inferplane.store.sql import Store

NOW = datetime(2026, 1, 5, tzinfo=UTC)
OURS, THEIRS = "east", "west"


def endpoint_on(cluster: str) -> InferenceEndpoint:
    spec = EndpointSpec(ModelSpec("sklearn", storage_uri="s3://models/iris"))
    return InferenceEndpoint(
        f"uid-{cluster}", "default", cluster, f"on-{cluster}", "n", spec, 1, NOW, created_by="o"
    )


@dataclass
class Held:
    """Says so of these leases, for so many questions about each."""

    fences: dict[str, Fence] = field(default_factory=dict)
    questions: int = 1_000

    def fence(self, name: str) -> Fence | None:
        self.questions -= 1
        return self.fences.get(name) if self.questions >= 0 else None


class CountedEngine(SimulatedEngine):
    """Counts what is done to it."""

    def __init__(self) -> None:
        super().__init__(lambda: NOW)
        self.acts: list[Action] = []

    async def apply(self, target: Target, action: Action) -> None:
        self.acts.append(action)
        await super().apply(target, action)


@pytest_asyncio.fixture
async def filled(store: Store) -> AsyncIterator[Store]:
    """An endpoint on each of two clusters."""
    async with store.transaction() as tx:
        for name in (OURS, THEIRS):
            await tx.put_cluster(Cluster(name, "simulated", NOW))
        await tx.add_workspace(Workspace("default", (OURS, THEIRS), NOW))
        for name in (OURS, THEIRS):
            await tx.insert_endpoint(endpoint_on(name), {})
    yield store


async def lease_of(store: Store, cluster: str, holder: str) -> Fence:
    name = cluster_lease(cluster)
    async with store.transaction() as tx:
        known = {each.name: each for each in await tx.list_leases()}
        seen = known[name].epoch if name in known else 0
        later = known[name].expires_at if name in known else NOW
        epoch = await tx.take_lease(name, seen, holder, later, LEASE_LASTS)
    assert epoch is not None
    return Fence(name, holder, epoch)


async def status_of(store: Store, cluster: str) -> EndpointStatus:
    async with store.read() as tx:
        found = await tx.get_endpoint_by_uid(f"uid-{cluster}")
    assert found is not None
    return found.status


async def test_only_what_is_ours_is_looked_at(filled: Store) -> None:
    engines = {OURS: CountedEngine(), THEIRS: CountedEngine()}
    held = Held({cluster_lease(OURS): await lease_of(filled, OURS, "me")})
    controller = EndpointController(filled, engines, AbsentGateway(), lambda: NOW, leases=held)
    assert list(await controller.keys()) == [f"uid-{OURS}"]
    for name in (OURS, THEIRS):
        await controller.reconcile(f"uid-{name}")
    assert engines[OURS].acts
    assert engines[THEIRS].acts == []
    assert await status_of(filled, THEIRS) == EndpointStatus()


async def test_a_status_is_not_written_over_that_of_who_took_over(filled: Store) -> None:
    engine = CountedEngine()
    old = await lease_of(filled, OURS, "me")
    await lease_of(filled, OURS, "other")
    held = Held({cluster_lease(OURS): old})  # it does not know yet
    controller = EndpointController(filled, {OURS: engine}, AbsentGateway(), lambda: NOW, leases=held)
    with pytest.raises(StaleLease):
        await controller.reconcile(f"uid-{OURS}")
    assert await status_of(filled, OURS) == EndpointStatus()
    assert engine.acts == []


async def test_nothing_is_done_once_the_lease_is_lost_between_the_status_and_the_act(filled: Store) -> None:
    engine = CountedEngine()
    held = Held({cluster_lease(OURS): await lease_of(filled, OURS, "me")}, questions=1)
    controller = EndpointController(filled, {OURS: engine}, AbsentGateway(), lambda: NOW, leases=held)
    with pytest.raises(StaleLease):
        await controller.reconcile(f"uid-{OURS}")
    assert await status_of(filled, OURS) != EndpointStatus()
    assert engine.acts == []


async def test_orphans_of_others_are_left_to_them(filled: Store) -> None:
    engines = {OURS: CountedEngine(), THEIRS: CountedEngine()}
    everything = EndpointController(filled, engines, AbsentGateway(), lambda: NOW)
    for name in (OURS, THEIRS):
        await everything.reconcile(f"uid-{name}")
    async with filled.transaction() as tx:
        for name in (OURS, THEIRS):
            await tx.remove_endpoint(f"uid-{name}")
    held = Held({cluster_lease(OURS): await lease_of(filled, OURS, "me")})
    controller = EndpointController(filled, engines, AbsentGateway(), lambda: NOW, leases=held)
    await controller.sweep_orphans()
    assert await engines[OURS].owned() == frozenset()
    assert await engines[THEIRS].owned() == {f"uid-{THEIRS}"}


async def test_nodes_of_others_are_left_to_them(filled: Store) -> None:
    sources = {
        name: DeclaredNodes((Node(name, "n", "t", "A100", 1, 80, simulated=True),)) for name in (OURS, THEIRS)
    }
    held = Held({cluster_lease(OURS): await lease_of(filled, OURS, "me")})
    await InventoryController(filled, sources, lambda: NOW, leases=held).refresh()
    async with filled.read() as tx:
        assert [node.cluster for node in await tx.list_nodes()] == [OURS]


async def test_gpus_are_given_out_by_one(filled: Store) -> None:
    controller = AdmissionController(filled, lambda: NOW, leases=Held())
    assert await controller.reconcile(CYCLE) is None


class Deposed:
    """Runs into a lease that has gone, until it has it."""

    name = "deposed"

    def __init__(self) -> None:
        self.passes = 0
        self.has_it = False
        self.looked = asyncio.Event()

    async def keys(self) -> Iterable[str]:
        return ("key",)

    async def reconcile(self, key: str) -> float | None:
        self.passes += 1
        self.looked.set()
        if not self.has_it:
            raise StaleLease("it has gone")
        return None


async def test_a_runner_stands_down_and_is_called_back() -> None:
    controller = Deposed()
    runner = Runner(controller, workers=1)
    await runner.start()
    async with asyncio.timeout(20):
        await controller.looked.wait()
        controller.looked.clear()
        controller.has_it = True
        runner.wake_all()
        await controller.looked.wait()
    await runner.close()
    assert controller.passes == 2
