"""Endpoints of a cluster that is configured no longer: nothing starts, and everything comes to its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from inferplane.controllers.admission import CYCLE, AdmissionController, Pace
from inferplane.controllers.endpoints import EndpointController
from inferplane.domain import gpu_request as gpr
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    GpuSpec,
    InferenceEndpoint,
    ModelSpec,
    PublicStatus,
    Replica,
    ReplicaId,
    ReplicaState,
    public_state,
)
from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus, Selection
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.workspace import Workspace
from inferplane.engines.port import (
    Action,
    Engine,
    EngineError,
    LogLine,
    Observation,
    Release,
    StopReplica,
    Target,
)
from inferplane.gateway.route_table import EndpointRoutes
from inferplane.store.sql import Store

T0 = datetime(2026, 1, 5, tzinfo=UTC)
UID = "0123456789ab"
SERVER = Replica(ReplicaId(UID, 1, 0), ReplicaState.READY, "unix:/run/a.sock", pid=1, started_at=T0)
GPU = GpuSpec(Selection("east"))


@dataclass
class Gateway:
    """Confirms at once."""

    routes: dict[str, EndpointRoutes] = field(default_factory=dict)

    def set(self, routes: EndpointRoutes) -> None:
        self.routes[routes.uid] = routes

    def remove(self, uid: str) -> None:
        self.routes.pop(uid, None)

    def confirmed(self, uid: str) -> EndpointRoutes | None:
        return self.routes.get(uid)


@dataclass
class Leftovers:
    """What is left on the machine: one server, and files. `stuck` servers do not end."""

    servers: dict[str, Replica] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    stuck: bool = False
    released: list[str] = field(default_factory=list)

    async def start(self, wake: object) -> None:
        """Nothing to find."""

    async def close(self, *, stop_servers: bool) -> None:
        """Nothing to stop."""

    async def observe(self, uid: str) -> Observation:
        found = (self.servers[uid],) if uid in self.servers else ()
        return Observation(replicas=found, left=("log files",) if uid in self.files else ())

    async def apply(self, target: Target, action: Action) -> None:
        uid = target.endpoint.uid
        match action:
            case StopReplica():
                if self.stuck:
                    raise EngineError("it does not end")
                self.servers.pop(uid, None)
            case Release():
                self.files.discard(uid)
            case _:
                raise AssertionError(f"{action} on a cluster that is configured no longer")

    async def owned(self) -> frozenset[str]:
        return frozenset(self.files | self.servers.keys() | {"model-of-another"})

    async def release_orphan(self, uid: str) -> None:
        self.servers.pop(uid, None)
        self.files.discard(uid)
        self.released.append(uid)

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


@dataclass
class World:
    """A platform whose cluster `east` is gone, with one endpoint on it that ran."""

    store: Store
    retired: Leftovers | None = None
    engines: Mapping[str, Engine] = field(default_factory=dict)
    gateway: Gateway = field(default_factory=Gateway)
    now: datetime = T0

    def __post_init__(self) -> None:
        retired: dict[str, Engine] = {} if self.retired is None else {"east": self.retired}
        self.controller = EndpointController(
            self.store, self.engines, self.gateway, lambda: self.now, retired=retired
        )
        pace = Pace(tell_seconds=0.0, short_pass_seconds=float("inf"))
        self.admission = AdmissionController(self.store, lambda: self.now, pace=pace)

    async def settle(self) -> None:
        for _ in range(8):
            self.now += timedelta(seconds=1)
            await self.controller.reconcile(UID)
            await self.admission.reconcile(CYCLE)

    async def endpoint(self) -> InferenceEndpoint | None:
        async with self.store.read() as tx:
            return await tx.get_endpoint_by_uid(UID)

    async def gpu_requests(self) -> list[tuple[str, ProvisioningStatus]]:
        async with self.store.read() as tx:
            return [(each.name, each.status) for each in await tx.list_gpu_requests()]

    async def has(self, *, gpu: bool = False, deleted: bool = False, stopped: bool = False) -> None:
        status = EndpointStatus(observed_generation=1, replicas=(SERVER,), routed=("r1-0",))
        endpoint = InferenceEndpoint(
            uid=UID,
            workspace="team",
            cluster="east",
            name="iris",
            namespace="team-iris-abc123",
            spec=EndpointSpec(ModelSpec("sklearn", "/m"), gpu=GPU if gpu else None, stopped=stopped),
            generation=1,
            created_at=T0,
            created_by="ann",
            status=status,
            deletion_requested_at=T0 if deleted else None,
        )
        async with self.store.transaction() as tx:
            await tx.add_workspace(Workspace("team", ("east",), T0))
            await tx.insert_endpoint(endpoint, {})
            if gpu:
                asked = GpuRequest("gpr-1", "one", "team", Selection("east"), T0, T0, endpoint_uid=UID)
                held = gpr.granted(asked, Grant("east", (("gone", (0,)),)), T0)
                await tx.insert_gpu_request(gpr.started(held, T0))
        await self.controller.restore_routes()


async def test_a_deleted_endpoint_goes_and_gives_back_its_gpus(store: Store) -> None:
    world = World(store)
    await world.has(gpu=True, deleted=True)
    await world.settle()
    assert await world.endpoint() is None
    assert [status for _, status in await world.gpu_requests()] == [ProvisioningStatus.EARLY_RELEASED]
    assert world.gateway.routes == {}
    async with store.read() as tx:
        (event,) = await tx.list_audit(kind="EndpointDeleted")
    assert "cluster east is not configured" in event.message


async def test_a_stopped_endpoint_gives_back_its_gpus(store: Store) -> None:
    world = World(store)
    await world.has(gpu=True, stopped=True)
    await world.settle()
    assert [status for _, status in await world.gpu_requests()] == [ProvisioningStatus.EARLY_RELEASED]
    endpoint = await world.endpoint()
    assert endpoint is not None
    assert public_state(endpoint).status is PublicStatus.STOPPED


async def test_an_endpoint_that_nobody_deleted_says_why_it_does_not_run(store: Store) -> None:
    leftovers = Leftovers({UID: SERVER}, {UID})
    world = World(store, leftovers)
    await world.has()
    await world.settle()
    endpoint = await world.endpoint()
    assert endpoint is not None
    state = public_state(endpoint)
    assert (state.status, state.reason) == (PublicStatus.FAILED, ReasonCode.CLUSTER_UNREACHABLE)
    assert "no engine is configured for cluster east" in state.message
    assert "configuration" in state.next_action
    assert world.gateway.routes[UID].upstreams == ()
    assert world.gateway.routes[UID].unavailable_reason == "ClusterUnreachable"
    assert (leftovers.servers, leftovers.files) == ({}, {UID}), "what it printed stays until it is deleted"
    before = endpoint.version
    await world.settle()
    again = await world.endpoint()
    assert again is not None
    assert again.version == before, "nothing is written as long as nothing changes"


async def test_gpus_are_not_free_and_the_endpoint_says_why_while_something_of_it_runs(store: Store) -> None:
    leftovers = Leftovers({UID: SERVER}, {UID}, stuck=True)
    world = World(store, leftovers)
    await world.has(gpu=True, deleted=True)
    await world.settle()
    assert [status for _, status in await world.gpu_requests()] == [ProvisioningStatus.DRAINING]
    endpoint = await world.endpoint()
    assert endpoint is not None
    state = public_state(endpoint)
    assert state.status is PublicStatus.TERMINATING
    assert state.message.startswith("being deleted; left: 1 model server, log files, GPUs; ")
    assert "it does not end" in state.message
    leftovers.stuck = False
    await world.settle()
    assert await world.endpoint() is None
    assert [status for _, status in await world.gpu_requests()] == [ProvisioningStatus.EARLY_RELEASED]
    assert (leftovers.servers, leftovers.files) == ({}, set())


async def test_while_it_goes_it_names_the_cluster_that_is_not_there(store: Store) -> None:
    world = World(store)
    await world.has(gpu=True, deleted=True)
    await world.controller.reconcile(UID)  # its GPUs are still held
    endpoint = await world.endpoint()
    assert endpoint is not None
    state = public_state(endpoint)
    assert "left: " in state.message
    assert state.message.endswith("no engine is configured for cluster east")


async def test_what_a_cluster_left_goes_once_another_engine_serves_its_endpoints(store: Store) -> None:
    leftovers, now_serving = Leftovers({UID: SERVER}, {UID}), Leftovers()
    world = World(store, leftovers, {"east": now_serving})
    await world.has()
    await world.controller.sweep_orphans()
    assert leftovers.released == [UID, "model-of-another"]
    assert now_serving.released == ["model-of-another"], "what it may serve is left alone"


async def test_the_janitor_leaves_what_endpoints_of_a_retired_cluster_still_have(store: Store) -> None:
    leftovers = Leftovers({UID: SERVER, "ba9876543210": replace(SERVER, pid=2)}, {UID})
    world = World(store, leftovers)
    await world.has()
    await world.controller.sweep_orphans()
    assert leftovers.released == ["ba9876543210", "model-of-another"]
