"""Two controllers and a store, on a clock that the test moves: who gets the GPUs, and what everybody is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from threading import Thread

import pytest
import pytest_asyncio

from inferplane.controllers.admission import CYCLE, AdmissionController, GrantIdleSince, Pace, save_changes
from inferplane.controllers.admission_plan import Picture, plan
from inferplane.controllers.endpoints import EndpointController
from inferplane.domain.endpoint import (
    EndpointSpec,
    GpuSpec,
    InferenceEndpoint,
    ModelSpec,
    PublicState,
    PublicStatus,
    ReplicaId,
    Scaling,
    public_state,
)
from inferplane.domain.errors import StaleVersion
from inferplane.domain.events import Event
from inferplane.domain.gpu_request import (
    REQUEUES_AFTER_FAILURE_MAX,
    CoarseStatus,
    GpuRequest,
    Grant,
    ProvisioningStatus,
    Selection,
    early_released,
    granted,
    started,
)
from inferplane.domain.inventory import Node, NodeHealth, held_gpus
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import Cluster, Workspace, WorkspacePolicy
from inferplane.engines.port import StartReplica
from inferplane.engines.simulated import Script, SimulatedEngine
from inferplane.gateway.route_table import EndpointRoutes
from inferplane.scheduler import Snapshot
from inferplane.store.sql import Store, Tx

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NO_PAUSES = Pace(tell_seconds=0.0, short_pass_seconds=float("inf"))
PASSES_MAX = 60
TRIES_MAX = 20
HOUR = timedelta(hours=1)
A100_NODE = Node("local", "gpu", "a2", "NVIDIA-A100", 1, 80, simulated=True)


class Routes:
    """A gateway that confirms at once."""

    def __init__(self) -> None:
        self.table: dict[str, EndpointRoutes] = {}

    def set(self, routes: EndpointRoutes) -> None:
        self.table[routes.uid] = routes

    def remove(self, uid: str) -> None:
        self.table.pop(uid, None)

    def confirmed(self, uid: str) -> EndpointRoutes | None:
        return self.table.get(uid)


class World:
    """A platform without a platform: what runs on which GPU is checked at every step."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = T0
        self.engine = SimulatedEngine(lambda: self.now, usual=Script(stop_seconds=2.0))
        self.routes = Routes()
        self.idle: dict[str, datetime] = {}
        self.restart()

    def restart(self) -> None:
        """New controllers, which remember nothing."""
        self.endpoints = EndpointController(self.store, {"local": self.engine}, self.routes, lambda: self.now)
        self.admission = AdmissionController(
            self.store, lambda: self.now, idle_since=self.idle.get, pace=NO_PAUSES
        )

    async def prepare(self) -> None:
        async with self.store.transaction() as tx:
            await tx.put_cluster(Cluster("local", "local", T0))
            for name in ("red", "blue"):
                await tx.add_workspace(Workspace(name, ("local",), T0))
            await tx.save_nodes("local", [A100_NODE])

    def play(self, **scripts: Script) -> None:
        """What becomes of endpoints of these names: on a new engine, with new controllers."""
        self.engine = SimulatedEngine(lambda: self.now, scripts, usual=Script(stop_seconds=2.0))
        self.restart()

    async def deploy(self, workspace: str, name: str, **wish: object) -> str:
        """An endpoint with its first request, as the service makes them."""
        gpu = replace(GpuSpec(Selection("local", gpu_shape="NVIDIA-A100", instance_type="a2")), **wish)  # type: ignore[arg-type]
        endpoint = InferenceEndpoint(
            uid=(name.encode().hex() + "0" * 12)[:12],
            workspace=workspace,
            cluster="local",
            name=name,
            namespace=f"{workspace}-{name}",
            spec=EndpointSpec(ModelSpec("sklearn", f"/models/{name}"), scaling=Scaling(1, 1), gpu=gpu),
            generation=1,
            created_at=self.now,
            created_by="owner",
        )
        async with self.store.transaction() as tx:
            await tx.insert_endpoint(endpoint, {})
        await self.ask(endpoint)
        return endpoint.uid

    async def ask(self, endpoint: InferenceEndpoint) -> None:
        gpu = endpoint.spec.gpu
        assert gpu is not None
        async with self.store.transaction() as tx:
            number = len(await tx.list_gpu_requests(endpoint_uid=endpoint.uid))
            request = GpuRequest(
                id=f"gpr-{endpoint.name}-{number}",
                name=f"{endpoint.name}-gpr-{number}",
                workspace=endpoint.workspace,
                selection=gpu.selection,
                created_at=self.now,
                queued_at=self.now,
                exit_duration=gpu.exit_duration,
                priority=gpu.priority,
                endpoint_uid=endpoint.uid,
                endpoint_name=endpoint.name,
                idle_timeout=gpu.idle_timeout,
                enforce_idle=gpu.enforce_idle,
                enable_eviction=gpu.enable_eviction,
                requeue_on_failure=gpu.requeue_on_failure,
                auto_renew=gpu.auto_renew,
            )
            await tx.insert_gpu_request(request)

    async def delete(self, uid: str) -> None:
        async with self.store.transaction() as tx:
            endpoint = await tx.get_endpoint_by_uid(uid)
            assert endpoint is not None
            await tx.update_endpoint_spec(
                replace(endpoint, deletion_requested_at=self.now, generation=endpoint.generation + 1)
            )

    async def set_stopped(self, uid: str, stopped: bool) -> None:
        async with self.store.transaction() as tx:
            endpoint = await tx.get_endpoint_by_uid(uid)
            assert endpoint is not None
            spec = replace(endpoint.spec, stopped=stopped)
            await tx.update_endpoint_spec(replace(endpoint, spec=spec, generation=endpoint.generation + 1))

    async def turn(self, seconds: float = 1.0) -> None:
        """One pass of everything, then some time."""
        await self._pass(self.admission, CYCLE)
        async with self.store.read() as tx:
            uids = await tx.endpoint_uids()
        for uid in uids:
            await self._pass(self.endpoints, uid)
        await self.check_ledger()
        self.now += timedelta(seconds=seconds)

    async def turn_at_once(self) -> None:
        """As `turn`, with everybody at work at the same time."""
        async with self.store.read() as tx:
            uids = await tx.endpoint_uids()
        await asyncio.gather(
            self._pass(self.admission, CYCLE), *(self._pass(self.endpoints, uid) for uid in uids)
        )
        await self.check_ledger()
        self.now += timedelta(seconds=1)

    async def meddle(self, chance: Random, uids: list[str], number: int) -> None:
        """Do something that a person might do at this moment."""
        known = [uid for uid in uids if await self.state(uid) is not None]
        deed = chance.choice(["deploy", "deploy", "delete", "stop", "start", "release", "wait", "late"])
        if deed == "deploy" or not known:
            priority = chance.choice([50, 101, 250])
            wish = {
                "priority": priority,
                "enable_eviction": True,
                "requeue_on_failure": chance.random() < 0.5,
            }
            duration = timedelta(seconds=chance.choice([5, 60, 3600]))
            name = f"e{number}"
            uids.append(await self.deploy("red", name, exit_duration=duration, **wish))
            return
        uid = chance.choice(known)
        async with self.store.read() as tx:
            endpoint = await tx.get_endpoint_by_uid(uid)
            requests = await tx.list_gpu_requests(endpoint_uid=uid)
        if endpoint is None or endpoint.deletion_requested_at is not None:
            return
        if deed == "delete":
            await self.delete(uid)
        elif deed == "stop":
            await self.set_stopped(uid, True)
        elif deed == "start":
            await self.set_stopped(uid, False)
            if all(each.has_ended or each.status is ProvisioningStatus.DRAINING for each in requests):
                await self.ask(endpoint)
        elif deed == "release" and requests[-1:] and requests[-1].status is ProvisioningStatus.SUCCESSFUL:
            async with self.store.transaction() as tx:
                await tx.save_gpu_request(early_released(requests[-1], self.now))
        elif deed == "late":
            self.now += timedelta(seconds=chance.randrange(120))

    async def _pass(self, controller: AdmissionController | EndpointController, key: str) -> None:
        for _ in range(TRIES_MAX):
            try:
                await controller.reconcile(key)
            except StaleVersion:
                continue
            return
        pytest.fail(f"the pass for {key} is never let through")

    async def until(self, uid: str, status: PublicStatus) -> PublicState:
        """Turn after turn until the endpoint is as it should be."""
        state = None
        for _ in range(PASSES_MAX):
            state = await self.state(uid)
            if state is not None and state.status is status:
                return state
            await self.turn()
        pytest.fail(f"{uid} is not {status}: {state}; {await self.requests()}")

    async def until_gone(self, uid: str) -> None:
        for _ in range(PASSES_MAX):
            if await self.state(uid) is None:
                return
            await self.turn()
        pytest.fail(f"{uid} is still there: {await self.state(uid)}")

    async def check_ledger(self) -> None:
        """No GPU is held twice, and every server runs on GPUs that its endpoint holds."""
        async with self.store.read() as tx:
            live = await tx.list_gpu_requests(live_only=True)
        for holdings in held_gpus(live).values():
            taken = [index for holding in holdings for index in holding.gpus]
            assert len(taken) == len(set(taken)), holdings
        for replica in self.engine.running():
            mine = [each.grant for each in live if each.endpoint_uid == replica.endpoint_uid]
            held = [grant.nodes for grant in mine if grant is not None]
            assert self.gpus_of(replica) in held, f"{replica} runs on GPUs that are not its own"

    def gpus_of(self, replica: ReplicaId) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The GPUs that a replica was started with last."""
        return next(
            action.gpus
            for _, action in reversed(self.engine.steps)
            if isinstance(action, StartReplica) and action.id == replica
        )

    async def state(self, uid: str) -> PublicState | None:
        async with self.store.read() as tx:
            endpoint = await tx.get_endpoint_by_uid(uid)
        return None if endpoint is None else public_state(endpoint)

    async def requests(self) -> list[GpuRequest]:
        async with self.store.read() as tx:
            return await tx.list_gpu_requests()

    async def request_of(self, uid: str) -> GpuRequest:
        async with self.store.read() as tx:
            return (await tx.list_gpu_requests(endpoint_uid=uid))[-1]

    async def note_of(self, uid: str) -> WaitNote | None:
        request = await self.request_of(uid)
        async with self.store.read() as tx:
            return (await tx.wait_notes([request.id])).get(request.id)

    async def holders(self) -> int:
        return sum(each.holds_gpus for each in await self.requests())

    async def events(self, uid: str) -> list[Event]:
        async with self.store.read() as tx:
            return await tx.list_events(endpoint_uid=uid, limit=200)


@pytest_asyncio.fixture
async def world(store: Store) -> AsyncIterator[World]:
    one = World(store)
    await one.prepare()
    yield one


async def test_two_workspaces_share_one_gpu_one_after_the_other(world: World) -> None:
    a = await world.deploy("red", "a", exit_duration=HOUR, auto_renew=False)
    await world.until(a, PublicStatus.RUNNING)
    b = await world.deploy("blue", "b")
    waiting = await world.until(b, PublicStatus.QUEUED)
    await world.turn()
    waiting = await world.until(b, PublicStatus.QUEUED)
    assert waiting.reason is ReasonCode.AWAITING_GPU
    assert "position 1" in waiting.message
    assert "a request of another workspace holds 1 GPU until" in waiting.message
    assert "estimated start 2026-01-01 01:00:" in waiting.message
    note = await world.note_of(b)
    assert note is not None
    assert note.position == 1
    assert note.estimated_start is not None
    await world.delete(a)
    await world.until_gone(a)
    await world.until(b, PublicStatus.RUNNING)
    assert world.now < T0 + timedelta(minutes=1)
    await world.delete(b)
    await world.until_gone(b)
    await world.turn()
    assert await world.holders() == 0
    assert [each.status for each in await world.requests()] == [ProvisioningStatus.EARLY_RELEASED] * 2
    assert world.routes.table == {}


async def test_the_model_is_fetched_while_its_endpoint_waits(world: World) -> None:
    a = await world.deploy("red", "a")
    await world.until(a, PublicStatus.RUNNING)
    b = await world.deploy("blue", "b")
    await world.until(b, PublicStatus.QUEUED)
    await world.turn()
    assert [uid for uid, action in world.engine.steps if type(action).__name__ == "FetchModel"] == [a, b]
    assert [replica.endpoint_uid for replica in world.engine.running()] == [a]


async def test_a_high_priority_evicts_a_low_one_which_runs_again_afterwards(world: World) -> None:
    low = await world.deploy("red", "low", priority=50, enable_eviction=True, requeue_on_failure=True)
    await world.until(low, PublicStatus.RUNNING)
    high = await world.deploy(
        "blue", "high", priority=250, enable_eviction=True, exit_duration=HOUR, auto_renew=False
    )
    await world.until(high, PublicStatus.RUNNING)
    evicted = await world.until(low, PublicStatus.QUEUED)
    newcomer = (await world.request_of(high)).id
    assert newcomer in evicted.message
    for _ in range(3):
        await world.turn()
    waiting = await world.until(low, PublicStatus.QUEUED)
    assert waiting.message.startswith(
        "position 1; 1 GPU is needed; none is free; a request of another workspace"
    )
    assert f"evicted before by {newcomer}: its 1 GPU of priority 50 go to {newcomer}" in waiting.message
    assert "estimated start 2026-01-01 01:00:" in waiting.message
    victim = await world.request_of(low)
    assert (victim.status, victim.evicted_by) == (ProvisioningStatus.QUEUED, newcomer)
    assert (victim.retry_count, victim.delayed_count) == (1, 1)
    told = {event.kind: event for event in await world.events(low)}
    assert told["GprEvicted"].data["by"] == newcomer
    assert told["GprEvicted"].reason is ReasonCode.EVICTED
    await world.delete(high)
    await world.until_gone(high)
    await world.until(low, PublicStatus.RUNNING)


async def test_who_does_not_allow_eviction_is_not_evicted(world: World) -> None:
    low = await world.deploy("red", "low", priority=50)
    await world.until(low, PublicStatus.RUNNING)
    high = await world.deploy("blue", "high", priority=250, enable_eviction=True)
    await world.until(high, PublicStatus.QUEUED)
    for _ in range(5):
        await world.turn()
    state = await world.state(low)
    assert state is not None
    assert state.status is PublicStatus.RUNNING


async def test_one_evicted_by_who_renews_itself_is_told_why_there_is_no_estimate(world: World) -> None:
    low = await world.deploy("red", "low", priority=50, enable_eviction=True, requeue_on_failure=True)
    await world.until(low, PublicStatus.RUNNING)
    high = await world.deploy("blue", "high", priority=250, enable_eviction=True)
    await world.until(high, PublicStatus.RUNNING)
    await world.turn()
    waiting = await world.until(low, PublicStatus.QUEUED)
    assert "position 1" in waiting.message
    assert "there is no estimate: what holds the GPUs is renewed" in waiting.message


BAD_MODEL = Script(
    exits=99,
    exit_reason=ReasonCode.MODEL_LOAD_FAILED,
    exit_after_seconds=1.0,
    load_seconds=5.0,
    stop_seconds=2.0,
)


@pytest.mark.parametrize("requeue", [False, True])
async def test_a_model_that_cannot_be_loaded_gives_its_gpus_back_at_once_and_does_not_come_back_by_itself(
    world: World, requeue: bool
) -> None:
    world.play(bad=BAD_MODEL)
    bad = await world.deploy("red", "bad", requeue_on_failure=requeue)
    other = await world.deploy("blue", "other")
    await world.until(other, PublicStatus.RUNNING)
    assert world.now < T0 + timedelta(minutes=1)
    for _ in range(10):
        await world.turn(60)
    failed = await world.until(bad, PublicStatus.FAILED)
    assert failed.reason is ReasonCode.MODEL_LOAD_FAILED
    assert failed.exit is not None
    assert "Then `inferplane start bad` asks for GPUs again" in failed.next_action
    assert failed.next_retry_at is None
    request = await world.request_of(bad)
    assert (request.status, request.failure_code) == (
        ProvisioningStatus.FAILED,
        ReasonCode.MODEL_LOAD_FAILED,
    )
    assert request.failure_reason.startswith("ModelLoadFailed: ")
    assert [each.kind for each in await world.events(bad)].count("GprGranted") == 1

    # Mended, started again: the failures of the first try hold nothing up.
    await world.delete(other)
    await world.until_gone(other)
    world.play()
    async with world.store.read() as tx:
        endpoint = await tx.get_endpoint_by_uid(bad)
    assert endpoint is not None
    await world.ask(endpoint)
    again = world.now
    await world.until(bad, PublicStatus.RUNNING)
    assert world.now < again + timedelta(seconds=20)
    assert await world.holders() == 1


async def test_who_cannot_have_its_model_leaves_the_line_before_anybody_makes_room_for_it(
    world: World,
) -> None:
    missing = Script(fetch_failures=99, fetch_reason=ReasonCode.MODEL_NOT_FOUND)
    world.play(lost=missing)
    low = await world.deploy("red", "low", priority=50, enable_eviction=True)
    await world.until(low, PublicStatus.RUNNING)
    async with world.store.transaction() as tx:  # nobody may be evicted for the moment
        await tx.save_nodes("local", [])
    lost = await world.deploy("blue", "lost", priority=250, enable_eviction=True, requeue_on_failure=True)
    failed = await world.until(lost, PublicStatus.FAILED)
    await world.turn()
    async with world.store.transaction() as tx:
        await tx.save_nodes("local", [A100_NODE])
    for _ in range(5):
        await world.turn()
    failed = await world.until(lost, PublicStatus.FAILED)
    assert failed.reason is ReasonCode.MODEL_NOT_FOUND
    assert "`inferplane start lost`" in failed.next_action
    assert (await world.request_of(lost)).status is ProvisioningStatus.FAILED
    await world.until(low, PublicStatus.RUNNING)

    # The same again: what is known of the model from before is not held against it, what is found out is.
    async with world.store.read() as tx:
        endpoint = await tx.get_endpoint_by_uid(lost)
    assert endpoint is not None
    assert endpoint.spec.gpu is not None
    humble = replace(endpoint.spec.gpu, priority=1)
    await world.ask(replace(endpoint, spec=replace(endpoint.spec, gpu=humble)))
    await world.turn()
    assert (await world.request_of(lost)).status is ProvisioningStatus.QUEUED
    for _ in range(5):
        await world.turn()
    assert [each.status for each in await world.requests() if each.endpoint_uid == lost] == [
        ProvisioningStatus.FAILED
    ] * 2


async def test_one_that_never_becomes_ready_gives_its_gpus_back_after_the_start_limit(world: World) -> None:
    world.play(slow=Script(load_seconds=1e9, stop_seconds=2.0))
    slow = await world.deploy("red", "slow")
    await world.until(slow, PublicStatus.LOADING)
    other = await world.deploy("blue", "other")
    await world.turn(3000)
    await world.until(slow, PublicStatus.LOADING)
    await world.turn(1000)
    await world.until(other, PublicStatus.RUNNING)
    failed = await world.until(slow, PublicStatus.FAILED)
    assert failed.reason is ReasonCode.START_TIMEOUT
    assert failed.message == (
        "it was not ready within 1h5m0s of getting its GPUs; last it was Loading: "
        "the model server is loading the model"
    )
    assert "`inferplane start slow`" in failed.next_action


async def test_an_exit_duration_shorter_than_the_start_says_so_and_is_not_tried_for_ever(
    world: World,
) -> None:
    world.play(brief=Script(load_seconds=30.0, stop_seconds=1.0))
    brief = await world.deploy("red", "brief", exit_duration=timedelta(seconds=5), requeue_on_failure=True)
    for _ in range(120):
        await world.turn()
    failed = await world.until(brief, PublicStatus.FAILED)
    assert failed.reason is ReasonCode.START_TIMEOUT
    assert "its exit duration of 0h0m5s was over before it was ready" in failed.message
    kinds = [each.kind for each in await world.events(brief)]
    assert kinds.count("GprGranted") == 1 + REQUEUES_AFTER_FAILURE_MAX
    assert await world.holders() == 0


async def test_what_became_ready_while_nobody_looked_keeps_its_gpus(world: World) -> None:
    world.play(slow=Script(load_seconds=600.0))
    slow = await world.deploy("red", "slow")
    await world.until(slow, PublicStatus.LOADING)
    world.now += 3 * HOUR
    world.restart()
    await world.until(slow, PublicStatus.RUNNING)
    assert (await world.request_of(slow)).failure_code is None


async def test_an_endpoint_whose_request_was_released_says_by_whom(world: World) -> None:
    world.play(a=Script(stop_seconds=5.0))
    a = await world.deploy("red", "a")
    await world.until(a, PublicStatus.RUNNING)
    await world.turn()
    async with world.store.transaction() as tx:
        await tx.save_gpu_request(early_released(await world.request_of(a), world.now, by="ann"))
    draining = await world.until(a, PublicStatus.FAILED)
    assert draining.reason is ReasonCode.GPU_RELEASED
    assert draining.message == (
        "its GPU request a-gpr-0 was released by ann; they are held until its model servers have ended"
    )
    assert (await world.request_of(a)).coarse_status is CoarseStatus.RELEASED
    for _ in range(10):
        await world.turn()
    released = await world.until(a, PublicStatus.FAILED)
    assert released.message == "its GPU request a-gpr-0 was released by ann"
    assert "Start the endpoint again" in released.next_action


async def test_the_exit_duration_ends_an_endpoint_that_does_not_renew(world: World) -> None:
    a = await world.deploy("red", "a", exit_duration=HOUR, auto_renew=False)
    await world.until(a, PublicStatus.RUNNING)
    await world.turn()
    world.now += HOUR
    world.restart()
    over = await world.until(a, PublicStatus.FAILED)
    assert over.reason is ReasonCode.EXIT_DURATION_REACHED
    assert "1h0m0s" in over.message
    for _ in range(5):
        await world.turn()
    assert (await world.request_of(a)).status is ProvisioningStatus.COMPLETE
    assert world.engine.running() == ()
    assert await world.holders() == 0


async def test_an_endpoint_renews_itself_while_nobody_waits_and_gives_way_when_somebody_does(
    world: World,
) -> None:
    a = await world.deploy("red", "a", exit_duration=HOUR)
    await world.until(a, PublicStatus.RUNNING)
    await world.turn()
    world.now += HOUR
    await world.turn()
    state = await world.state(a)
    assert state is not None
    assert state.status is PublicStatus.RUNNING
    assert "GprRenewed" in [event.kind for event in await world.events(a)]
    b = await world.deploy("blue", "b", exit_duration=timedelta(minutes=10), auto_renew=False)
    await world.until(b, PublicStatus.QUEUED)
    world.now += HOUR
    await world.until(b, PublicStatus.RUNNING)
    again = await world.until(a, PublicStatus.QUEUED)
    assert "position 1" in again.message
    assert [each.status for each in await world.requests() if each.endpoint_uid == a] == [
        ProvisioningStatus.COMPLETE,
        ProvisioningStatus.QUEUED,
    ]
    await world.turn()
    world.now += timedelta(minutes=10)
    await world.until(a, PublicStatus.RUNNING)


async def test_idle_gpus_are_released_only_after_the_timeout_of_measured_idleness(world: World) -> None:
    a = await world.deploy("red", "a", idle_timeout=timedelta(minutes=5), enforce_idle=True)
    world.idle[a] = T0 - HOUR  # what was before the start does not count
    await world.until(a, PublicStatus.RUNNING)
    running_since = world.now
    await world.turn(240)
    world.idle[a] = world.now  # a request came
    await world.turn(200)
    await world.turn(0)
    state = await world.state(a)
    assert state is not None
    assert state.status is PublicStatus.RUNNING
    assert world.now > running_since + timedelta(minutes=5)
    world.now += timedelta(minutes=5)
    over = await world.until(a, PublicStatus.FAILED)
    assert over.reason is ReasonCode.IDLE_TIMEOUT
    for _ in range(5):
        await world.turn()
    assert (await world.request_of(a)).status is ProvisioningStatus.TIMED_OUT


async def test_stopping_gives_the_gpus_back_and_starting_asks_anew(world: World) -> None:
    a = await world.deploy("red", "a")
    await world.until(a, PublicStatus.RUNNING)
    await world.set_stopped(a, True)
    for _ in range(6):
        await world.turn()
    assert await world.holders() == 0
    state = await world.state(a)
    assert state is not None
    assert state.status is PublicStatus.STOPPED
    await world.set_stopped(a, False)
    async with world.store.read() as tx:
        endpoint = await tx.get_endpoint_by_uid(a)
    assert endpoint is not None
    await world.ask(endpoint)
    await world.until(a, PublicStatus.RUNNING)


async def test_new_gpus_asked_for_while_the_old_ones_drain_are_used_only_after_that(world: World) -> None:
    async with world.store.transaction() as tx:
        await tx.save_nodes("local", [replace(A100_NODE, gpu_count=2)])
    a = await world.deploy("red", "a")
    await world.until(a, PublicStatus.RUNNING)
    first = await world.request_of(a)
    async with world.store.transaction() as tx:
        await tx.save_gpu_request(early_released(first, world.now))
        endpoint = await tx.get_endpoint_by_uid(a)
    assert endpoint is not None
    await world.ask(endpoint)
    for _ in range(8):
        await world.turn()
    await world.until(a, PublicStatus.RUNNING)
    second = await world.request_of(a)
    assert second.grant is not None
    assert first.grant is not None
    assert second.grant.nodes != first.grant.nodes


async def test_a_start_at_the_same_moment_keeps_the_request(world: World) -> None:
    """Somebody starts the endpoint after admission has seen it stopped, and relies on its request."""
    await world.until(await world.deploy("red", "a"), PublicStatus.RUNNING)
    await world.turn()
    b = await world.deploy("blue", "b")
    await world.set_stopped(b, True)
    async with world.store.read() as tx:
        live = tuple(await tx.list_gpu_requests(live_only=True))
        endpoints = await tx.endpoints_by_uid([b])
        nodes = tuple(await tx.list_nodes())
        generation = await tx.generation()
    picture = Picture(Snapshot(world.now, nodes, live[1:]), endpoints, generation=generation)
    decided = plan(picture)
    assert [change.after for change in decided.changes] == [None]
    await world.set_stopped(b, False)
    with pytest.raises(StaleVersion):
        await save_changes(world.store, decided.changes, picture)
    assert (await world.request_of(b)).status is ProvisioningStatus.QUEUED


async def test_what_waits_for_something_that_is_not_there_says_so_and_holds_nobody_up(world: World) -> None:
    async with world.store.transaction() as tx:
        await tx.put_policy(WorkspacePolicy("red", gpu_shapes=("NVIDIA-H100",)))
    a = await world.deploy("red", "a")
    b = await world.deploy("blue", "b")
    await world.until(b, PublicStatus.RUNNING)
    state = await world.until(a, PublicStatus.QUEUED)
    assert state.reason is ReasonCode.QUOTA_EXCEEDED
    assert "position" not in state.message


async def test_a_request_without_an_endpoint_runs_from_its_grant_to_its_end(world: World) -> None:
    selection = Selection("local", gpu_shape="NVIDIA-A100", instance_type="a2")
    request = GpuRequest("gpr-x", "mine", "red", selection, T0, T0, exit_duration=HOUR)
    async with world.store.transaction() as tx:
        await tx.insert_gpu_request(request)
    await world.turn()
    await world.turn()
    (seen,) = await world.requests()
    assert (seen.status, seen.started_at is not None) == (ProvisioningStatus.SUCCESSFUL, True)
    world.now += HOUR
    world.restart()
    await world.turn()
    (seen,) = await world.requests()
    assert (seen.status, seen.holds_gpus) == (ProvisioningStatus.COMPLETE, False)
    async with world.store.read() as tx:
        kinds = [event.kind for event in await tx.list_audit(workspace="red", limit=50)]
    assert sorted(kinds) == ["GprDraining", "GprEnded", "GprGranted", "GprStarted"]


async def test_use_is_counted_for_fair_share(world: World) -> None:
    a = await world.deploy("red", "a")
    await world.until(a, PublicStatus.RUNNING)
    began = world.now
    await world.turn(3600)
    await world.delete(a)
    await world.until_gone(a)
    async with world.store.read() as tx:
        usage = await tx.load_usage()
    assert usage.keys() == {"red"}
    assert 3500 < usage["red"] <= (world.now - began).total_seconds() + 60


async def test_waits_are_told_at_a_pace_and_soon_enough(world: World) -> None:
    await world.until(await world.deploy("red", "a"), PublicStatus.RUNNING)
    seldom = Pace(tell_seconds=3600.0, short_pass_seconds=float("inf"))
    slow = AdmissionController(world.store, lambda: world.now, pace=seldom)
    b = await world.deploy("blue", "b")
    await slow.reconcile(CYCLE)
    assert await world.note_of(b) is not None, "the first is told at once"
    c = await world.deploy("blue", "c")
    pause = await slow.reconcile(CYCLE)
    assert await world.note_of(c) is None
    assert pause is not None
    assert 3000 < pause <= 3600
    await world.turn()
    note = await world.note_of(c)
    assert note is not None
    assert note.position == 2


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database of each kind, for several platforms."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.db'}"
    return str(request.getfixturevalue("postgres_url"))


def by_another_platform(url: str, act: Callable[[Store], Awaitable[object]]) -> GrantIdleSince:
    """Lets another platform act when a pass first asks who is idle: it has read nearly everything by then."""
    acted = False

    async def connect_and_act() -> None:
        other = await Store.open(url)
        try:
            await act(other)
        finally:
            await other.close()

    def idle_since(_grant: Grant) -> None:
        nonlocal acted
        if not acted:
            acted = True
            thread = Thread(target=lambda: asyncio.run(connect_and_act()))
            thread.start()
            thread.join()

    return idle_since


def asks(request_id: str, priority: int = 100) -> GpuRequest:
    selection = Selection("local", gpu_shape="NVIDIA-A100", instance_type="a2")
    return GpuRequest(request_id, request_id, "red", selection, T0, T0, priority=priority)


@pytest_asyncio.fixture
async def one_waits(shared_url: str) -> AsyncIterator[Store]:
    """There is one GPU, and one request for it; another one is in use."""
    held = replace(A100_NODE, name="held")
    holder = granted(replace(asks("gpr-h"), enforce_idle=True), Grant("local", (("held", (0,)),)), T0)
    store = await Store.open(shared_url)
    async with store.transaction() as tx:
        await tx.put_cluster(Cluster("local", "simulated", T0))
        await tx.add_workspace(Workspace("red", ("local",), T0))
        await tx.save_nodes("local", [A100_NODE, held])
        await tx.insert_gpu_request(asks("gpr-a"))
        await tx.insert_gpu_request(started(holder, T0))
    yield store
    await store.close()


async def statuses(store: Store) -> dict[str, ProvisioningStatus]:
    async with store.read() as tx:
        return {each.id: each.status for each in await tx.list_gpu_requests()}


async def test_two_platforms_on_one_database_do_not_grant_a_gpu_twice(
    one_waits: Store, shared_url: str
) -> None:
    """Each grants the only GPU to another request, so no row tells them of each other."""

    async def grant_it_to_another(store: Store) -> None:
        async with store.transaction() as tx:
            await tx.insert_gpu_request(asks("gpr-b", priority=250))
        await AdmissionController(store, lambda: T0).reconcile(CYCLE)

    meanwhile = by_another_platform(shared_url, grant_it_to_another)
    slow = AdmissionController(one_waits, lambda: T0, grant_idle_since=meanwhile)
    with pytest.raises(StaleVersion):
        await slow.reconcile(CYCLE)
    await slow.reconcile(CYCLE)
    seen = await statuses(one_waits)
    assert seen["gpr-a"] is ProvisioningStatus.QUEUED
    assert seen["gpr-b"] in {ProvisioningStatus.PROVISIONING, ProvisioningStatus.SUCCESSFUL}


async def forbid(tx: Tx) -> None:
    await tx.put_policy(WorkspacePolicy("red", gpu_shapes=("NVIDIA-H100",)))


async def lose_the_node(tx: Tx) -> None:
    await tx.save_nodes(
        "local", [replace(A100_NODE, health=NodeHealth.UNHEALTHY), replace(A100_NODE, name="held")]
    )


async def forget_the_cluster(tx: Tx) -> None:
    await tx.delete_cluster("local")


async def take_the_cluster_away(tx: Tx) -> None:
    await tx.update_workspace(Workspace("red", (), T0))


@pytest.mark.parametrize("write", [forbid, lose_the_node, forget_the_cluster, take_the_cluster_away])
async def test_what_gpus_are_granted_from_changes_while_a_pass_decides(
    one_waits: Store, shared_url: str, write: Callable[[Tx], Awaitable[None]]
) -> None:
    async def act(store: Store) -> None:
        async with store.transaction() as tx:
            await write(tx)

    meanwhile = by_another_platform(shared_url, act)
    controller = AdmissionController(one_waits, lambda: T0, grant_idle_since=meanwhile)
    with pytest.raises(StaleVersion):
        await controller.reconcile(CYCLE)
    await controller.reconcile(CYCLE)
    assert (await statuses(one_waits))["gpr-a"] is ProvisioningStatus.QUEUED


async def test_a_pass_that_loses_its_race_rests_too(one_waits: Store, shared_url: str) -> None:
    """Else a huge queue in which somebody always writes would take all the time there is."""

    async def act(store: Store) -> None:
        async with store.transaction() as tx:
            await forbid(tx)

    everything_is_long = Pace(short_pass_seconds=0.0)
    controller = AdmissionController(
        one_waits,
        lambda: T0,
        grant_idle_since=by_another_platform(shared_url, act),
        speed=1e6,
        pace=everything_is_long,
    )
    with pytest.raises(StaleVersion):
        await controller.reconcile(CYCLE)
    pause = await controller.reconcile(CYCLE)
    assert pause is not None
    assert pause > 0
    async with one_waits.read() as tx:
        assert await tx.wait_notes() == {}, "it has not looked"


async def test_both_databases_keep_the_promise(postgres_url: str) -> None:
    store = await Store.open(postgres_url)
    world = World(store)
    await world.prepare()
    low = await world.deploy("red", "low", priority=50, enable_eviction=True, requeue_on_failure=True)
    await world.until(low, PublicStatus.RUNNING)
    high = await world.deploy("blue", "high", priority=250, enable_eviction=True)
    await world.until(high, PublicStatus.RUNNING)
    await world.delete(high)
    await world.until_gone(high)
    await world.until(low, PublicStatus.RUNNING)
    await world.set_stopped(low, True)
    await world.until(low, PublicStatus.STOPPED)
    for _ in range(6):
        await world.turn()
    assert await world.holders() == 0
    await store.close()


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_people_do_meanwhile_no_gpu_is_used_twice_and_none_is_left_held(
    world: World, seed: int
) -> None:
    """Both controllers at once, while endpoints come, stop, start, lose their GPUs and go."""
    chance = Random(seed)
    async with world.store.transaction() as tx:
        await tx.save_nodes("local", [replace(A100_NODE, gpu_count=2)])
    uids: list[str] = []
    for number in range(24):
        await world.meddle(chance, uids, number)
        await world.turn_at_once()
        if chance.random() < 0.1:
            world.restart()
    for uid in uids:
        if await world.state(uid) is not None:
            await world.delete(uid)
    for uid in uids:
        await world.until_gone(uid)
    await world.turn()
    assert await world.holders() == 0
    assert all(each.has_ended for each in await world.requests())
    assert world.engine.running() == ()
