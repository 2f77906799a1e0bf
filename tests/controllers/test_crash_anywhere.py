"""The controller is killed before and after every single step it takes, and must end the same.

The world (processes, model files, the gateway's confirmed routes) and the store outlive the
controller; the controller's own memory does not. For each n the n-th step is the last thing that
happens, then a new controller goes on. The end must be the same for every n: what was wished is
there exactly once, what was deleted has left nothing.

With GPUs there are two controllers, and each commit is a step too. (Killed before it, they leave what they
left after the step before.) At no moment do two servers run on one GPU.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from inferplane.controllers.admission import CYCLE, AdmissionController, Pace
from inferplane.controllers.endpoints import EndpointController
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    GpuSpec,
    InferenceEndpoint,
    ModelSpec,
    PublicStatus,
    Replica,
    ReplicaState,
    Scaling,
    public_state,
)
from inferplane.domain.errors import StaleVersion
from inferplane.domain.events import Event
from inferplane.domain.gpu_request import GpuRequest, ProvisioningStatus, Selection
from inferplane.domain.inventory import Node
from inferplane.domain.lease import Fence
from inferplane.domain.preflight import Check
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.engines.port import (
    Action,
    Engine,
    FetchModel,
    LogLine,
    Observation,
    Release,
    StartReplica,
    StopReplica,
    Target,
)
from inferplane.gateway.route_table import EndpointRoutes
from inferplane.store.sql import Store, Tx

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NO_PAUSES = Pace(tell_seconds=0.0, short_pass_seconds=float("inf"))
UID = "0123456789ab"
STEPS_MAX = 400


class Killed(BaseException):
    """`kill -9`: nothing in the controller may catch it."""


@dataclass
class Fuse:
    """Burns through at the n-th step; counts on so that a test knows how many steps there are."""

    blows_at: int | None = None
    steps: int = 0

    def step(self) -> None:
        self.steps += 1
        if self.blows_at is not None and self.steps == self.blows_at:
            raise Killed


@dataclass
class World:
    """What outlives the controller: files, processes, the gateway's routes, the time."""

    now: datetime = T0
    files: set[str] = field(default_factory=set)
    processes: dict[str, dict[str, Replica]] = field(default_factory=dict)
    routes: dict[str, EndpointRoutes] = field(default_factory=dict)
    starts: int = 0
    gpus: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)  # (node, GPU) → who runs there

    def occupy(self, uid: str, replica: str, gpus: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
        for node, indexes in gpus:
            for index in indexes:
                assert (node, index) not in self.gpus, f"{uid} on the GPU of {self.gpus[node, index]}"
                self.gpus[node, index] = (uid, replica)

    def tick(self) -> None:
        """A second passes: what was loading is ready, what was stopping is gone."""
        self.now += timedelta(seconds=1)
        for uid, replicas in self.processes.items():
            for name, replica in list(replicas.items()):
                if replica.state is ReplicaState.LOADING:
                    replicas[name] = replace(replica, state=ReplicaState.READY, ready_at=self.now)
                if replica.state is ReplicaState.STOPPING:
                    del replicas[name]
                    self.gpus = {gpu: who for gpu, who in self.gpus.items() if who != (uid, name)}


class FusedEngine:
    """An engine over the world; each call is two steps, one before its effect and one after."""

    def __init__(self, world: World, fuse: Fuse) -> None:
        self._world = world
        self._fuse = fuse

    async def start(self, wake: object) -> None:
        """Nothing to find."""

    async def close(self, *, stop_servers: bool) -> None:
        """Nothing to stop."""

    async def observe(self, uid: str) -> Observation:
        self._fuse.step()
        present = uid in self._world.files
        here = ArtifactState(ArtifactPhase.PRESENT, path="/m", finished_at=T0)
        return Observation(
            {1: here} if present else {},
            tuple(self._world.processes.get(uid, {}).values()),
            ("model files",) if present else (),
        )

    async def apply(self, target: Target, action: Action) -> None:
        self._fuse.step()
        uid, world = target.endpoint.uid, self._world
        running = world.processes.setdefault(uid, {})
        match action:
            case FetchModel():
                world.files.add(uid)
            case StartReplica(id=replica_id, gpus=gpus):
                assert replica_id.name not in running, "started twice"
                world.starts += 1
                world.occupy(uid, replica_id.name, gpus)
                address = f"unix:/s/{replica_id.name}"
                running[replica_id.name] = Replica(
                    replica_id, ReplicaState.LOADING, address, started_at=world.now
                )
            case StopReplica(id=replica_id):
                routed = world.routes.get(uid)
                assert routed is None or replica_id.name not in {u.replica for u in routed.upstreams}
                running[replica_id.name] = replace(running[replica_id.name], state=ReplicaState.STOPPING)
            case Release():
                assert not running, "released while servers run"
                world.files.discard(uid)
                del world.processes[uid]
        self._fuse.step()

    async def owned(self) -> frozenset[str]:
        return frozenset(self._world.files | set(self._world.processes))

    async def release_orphan(self, uid: str) -> None:
        raise AssertionError(f"{uid} should never become an orphan")

    async def logs(
        self,
        uid: str,
        *,
        replica: str = "",
        previous: bool = False,
        follow: bool = False,
        tail_lines: int = 200,
    ) -> AsyncIterator[LogLine]:
        no_lines: tuple[LogLine, ...] = ()
        for line in no_lines:
            yield line

    async def preflight(self, target: Target) -> tuple[Check, ...]:
        return ()


class FusedRoutes:
    """A gateway that confirms at once."""

    def __init__(self, world: World, fuse: Fuse) -> None:
        self._world = world
        self._fuse = fuse

    def set(self, routes: EndpointRoutes) -> None:
        self._fuse.step()
        self._world.routes[routes.uid] = routes
        self._fuse.step()

    def remove(self, uid: str) -> None:
        self._fuse.step()
        self._world.routes.pop(uid, None)
        self._fuse.step()

    def confirmed(self, uid: str) -> EndpointRoutes | None:
        return self._world.routes.get(uid)


def make_endpoint() -> InferenceEndpoint:
    return InferenceEndpoint(
        uid=UID,
        workspace="default",
        cluster="local",
        name="iris",
        namespace="default-iris-abc123",
        spec=EndpointSpec(ModelSpec("sklearn", "/m"), scaling=Scaling(2, 2)),
        generation=1,
        created_at=T0,
        created_by="owner",
    )


async def insert(store: Store) -> None:
    async with store.transaction() as tx:
        await tx.insert_endpoint(make_endpoint(), {})
        await tx.append_event(Event(T0, "EndpointCreated", "", "owner", "default", "iris", UID))


async def ask_for_deletion(store: Store, now: datetime) -> None:
    async with store.transaction() as tx:
        endpoint = await tx.get_endpoint_by_uid(UID)
        assert endpoint is not None
        await tx.update_endpoint_spec(
            replace(endpoint, deletion_requested_at=now, generation=endpoint.generation + 1)
        )


def controller(store: Store, world: World, fuse: Fuse) -> EndpointController:
    engine: Engine = FusedEngine(world, fuse)
    return EndpointController(store, {"local": engine}, FusedRoutes(world, fuse), lambda: world.now)


async def run_until_settled(store: Store, world: World, fuse: Fuse) -> None:
    """Pass after pass until two in a row change nothing."""
    one = controller(store, world, fuse)
    quiet = 0
    for _ in range(STEPS_MAX):
        async with store.read() as tx:
            before = await tx.get_endpoint_by_uid(UID)
        await one.reconcile(UID)
        world.tick()
        async with store.read() as tx:
            after = await tx.get_endpoint_by_uid(UID)
        quiet = quiet + 1 if before == after else 0
        if quiet == 3:
            return
    pytest.fail("the controller never settles")


async def run_with_a_kill(store: Store, world: World, n: int) -> int:
    """Kill at step n, then go on with a new controller; return how many steps the first one took."""
    fuse = Fuse(blows_at=n)
    try:
        await run_until_settled(store, world, fuse)
    except Killed:
        await run_until_settled(store, world, Fuse())
    return fuse.steps


async def test_creating_ends_the_same_wherever_the_controller_is_killed(tmp_path: Path) -> None:
    n, steps = 1, STEPS_MAX
    while n <= steps:
        store = await _fresh(tmp_path / f"c{n}")
        world = World()
        await insert(store)
        taken = await run_with_a_kill(store, world, n)
        if taken < n:
            steps = n - 1  # the fuse was never reached: every step has been tried
        async with store.read() as tx:
            endpoint = await tx.get_endpoint_by_uid(UID)
        assert endpoint is not None
        assert public_state(endpoint).status is PublicStatus.RUNNING, n
        assert sorted(world.processes[UID]) == ["r1-0", "r1-1"], n
        assert world.starts == 2, n
        await store.close()
        n += 1
    assert n > 10, "there were steps to be killed at"


async def test_deleting_ends_the_same_wherever_the_controller_is_killed(tmp_path: Path) -> None:
    n, steps = 1, STEPS_MAX
    while n <= steps:
        store = await _fresh(tmp_path / f"d{n}")
        world = World()
        await insert(store)
        await run_until_settled(store, world, Fuse())
        await ask_for_deletion(store, world.now)
        taken = await run_with_a_kill(store, world, n)
        if taken < n:
            steps = n - 1
        async with store.read() as tx:
            assert await tx.get_endpoint_by_uid(UID) is None, n
        assert (world.files, world.processes, world.routes) == (set(), {}, {}), n
        await store.close()
        n += 1
    assert n > 10, "there were steps to be killed at"


async def test_deletion_during_creation_leaves_nothing(tmp_path: Path) -> None:
    for passes in range(6):
        store = await _fresh(tmp_path / f"p{passes}")
        world = World()
        await insert(store)
        one = controller(store, world, Fuse())
        for _ in range(passes):
            await one.reconcile(UID)
            world.tick()
        await ask_for_deletion(store, world.now)
        await run_until_settled(store, world, Fuse())
        assert (world.files, world.processes, world.routes) == (set(), {}, {}), passes
        await store.close()


async def _fresh(path: Path) -> Store:
    store = await Store.open(f"sqlite:///{path}")
    async with store.transaction() as tx:
        await tx.put_cluster(Cluster("local", "local", T0))
        await tx.add_workspace(Workspace("default", ("local",), T0))
    return store


# --- GPUs -------------------------------------------------------------------------------------------

LOW, HIGH = "a" * 12, "b" * 12
GPU = Selection("local", gpu_shape="NVIDIA-A100", instance_type="a2")


class FusedStore:
    """A store whose every commit is a step, after which it may end."""

    def __init__(self, store: Store, fuse: Fuse) -> None:
        self._store = store
        self._fuse = fuse
        self.read = store.read

    @asynccontextmanager
    async def transaction(self, *, durable: bool = True, fence: Fence | None = None) -> AsyncIterator[Tx]:
        # Our kills are not power cuts: the disk need not be waited for.
        async with self._store.transaction(durable=False, fence=fence) as tx:
            yield tx
        self._fuse.step()


async def deploy(store: Store, world: World, uid: str, priority: int) -> None:
    """An endpoint with its request, as the service makes them: together."""
    gpu = GpuSpec(GPU, priority=priority, enable_eviction=True, requeue_on_failure=True)
    name = f"p{priority}"
    endpoint = replace(
        make_endpoint(),
        uid=uid,
        name=name,
        created_at=world.now,
        spec=EndpointSpec(ModelSpec("sklearn", "/m"), gpu=gpu),
    )
    request = GpuRequest(
        id=f"gpr-{name}",
        name=f"{name}-gpr",
        workspace="default",
        selection=GPU,
        created_at=world.now,
        queued_at=world.now,
        priority=priority,
        endpoint_uid=uid,
        endpoint_name=name,
        enable_eviction=True,
        requeue_on_failure=True,
        auto_renew=True,
    )
    async with store.transaction() as tx:
        await tx.insert_endpoint(endpoint, {})
        await tx.insert_gpu_request(request)


async def undeploy(store: Store, world: World, uid: str) -> None:
    async with store.transaction() as tx:
        endpoint = await tx.get_endpoint_by_uid(uid)
        assert endpoint is not None
        await tx.update_endpoint_spec(
            replace(endpoint, deletion_requested_at=world.now, generation=endpoint.generation + 1)
        )


async def run_both_until_settled(real: Store, world: World, fuse: Fuse) -> None:
    """Pass after pass of both controllers until two rounds in a row change nothing."""
    store = cast("Store", FusedStore(real, fuse))
    endpoints = controller(store, world, fuse)
    admission = AdmissionController(store, lambda: world.now, pace=NO_PAUSES)
    quiet, before = 0, await _everything(real)
    for _ in range(STEPS_MAX):
        await _reconcile(admission.reconcile, CYCLE)
        async with real.read() as tx:
            uids = await tx.endpoint_uids()
        for uid in uids:
            await _reconcile(endpoints.reconcile, uid)
        world.tick()
        after = await _everything(real)
        quiet = quiet + 1 if before == after else 0
        before = after
        if quiet == 2:
            return
    pytest.fail("the controllers never settle")


async def _reconcile(reconcile: Callable[[str], Awaitable[object]], key: str) -> None:
    try:
        await reconcile(key)
    except StaleVersion:
        await reconcile(key)


async def _everything(store: Store) -> tuple[list[InferenceEndpoint], list[GpuRequest]]:
    async with store.read() as tx:
        return await tx.list_endpoints(), await tx.list_gpu_requests()


Wish = Callable[[Store, World], Awaitable[None]]


async def ends_with_kills(
    tmp_path: Path, before: Wish, wish: Wish
) -> AsyncIterator[tuple[Store, World, int]]:
    """What is there in the end after `wish`, for a kill at every step; `before` has come about already."""
    (tmp_path / "before").mkdir()
    store = await _fresh(tmp_path / "before" / "db")
    start = World()
    async with store.transaction() as tx:
        await tx.save_nodes("local", [Node("local", "gpu", "a2", "NVIDIA-A100", 1, 80, simulated=True)])
    await before(store, start)
    await run_both_until_settled(store, start, Fuse())
    await wish(store, start)
    await store.close()
    n, steps = 1, STEPS_MAX
    while n <= steps:
        shutil.copytree(tmp_path / "before", tmp_path / f"n{n}")
        store = await Store.open(f"sqlite:///{tmp_path / f'n{n}' / 'db'}")
        world, fuse = deepcopy(start), Fuse(blows_at=n)
        try:
            await run_both_until_settled(store, world, fuse)
            steps = n  # the fuse was not reached: every step has been tried
        except Killed:
            await run_both_until_settled(store, world, Fuse())
        yield store, world, n
        await store.close()
        shutil.rmtree(tmp_path / f"n{n}")
        n += 1
    assert n > 20, "there were steps to be killed at"


async def statuses(store: Store) -> dict[str, PublicStatus]:
    return {each.uid: public_state(each).status for each in (await _everything(store))[0]}


async def nothing(store: Store, world: World) -> None:
    """Nothing comes before."""


async def deploy_low(store: Store, world: World) -> None:
    await deploy(store, world, LOW, 50)


async def deploy_high(store: Store, world: World) -> None:
    await deploy(store, world, HIGH, 250)


async def deploy_both(store: Store, world: World) -> None:
    await deploy_low(store, world)
    await run_both_until_settled(store, world, Fuse())
    await deploy_high(store, world)


async def undeploy_high(store: Store, world: World) -> None:
    await undeploy(store, world, HIGH)


async def test_a_grant_comes_into_use_once_wherever_both_are_killed(tmp_path: Path) -> None:
    async for store, world, n in ends_with_kills(tmp_path, nothing, deploy_low):
        assert await statuses(store) == {LOW: PublicStatus.RUNNING}, n
        (request,) = (await _everything(store))[1]
        assert request.status is ProvisioningStatus.SUCCESSFUL, n
        assert (world.gpus, world.starts) == ({("gpu", 0): (LOW, "r1-0")}, 1), n


async def test_an_eviction_ends_the_same_wherever_both_are_killed(tmp_path: Path) -> None:
    async for store, world, n in ends_with_kills(tmp_path, deploy_low, deploy_high):
        assert await statuses(store) == {LOW: PublicStatus.QUEUED, HIGH: PublicStatus.RUNNING}, n
        victim, newcomer = (await _everything(store))[1]
        assert (victim.status, victim.retry_count) == (ProvisioningStatus.QUEUED, 1), n
        assert victim.evicted_by == newcomer.id, n
        assert world.gpus == {("gpu", 0): (HIGH, "r1-0")}, n


async def test_the_evicted_one_runs_again_wherever_both_are_killed(tmp_path: Path) -> None:
    async for store, world, n in ends_with_kills(tmp_path, deploy_both, undeploy_high):
        assert await statuses(store) == {LOW: PublicStatus.RUNNING}, n
        assert world.gpus == {("gpu", 0): (LOW, "r1-0")}, n
        low, high = (await _everything(store))[1]
        assert (low.holds_gpus, high.holds_gpus) == (True, False), n
        assert high.status is ProvisioningStatus.EARLY_RELEASED, n
        assert world.routes.keys() == world.files == world.processes.keys() == {LOW}, n
