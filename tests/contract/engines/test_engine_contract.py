"""What `engines.port` promises, asked of every engine."""

from __future__ import annotations

from typing import Protocol

import pytest

from engine_world import endpoint, first_replica, see, target, wait_for_state, wait_until
from inferplane.domain.artifact import ArtifactPhase
from inferplane.domain.endpoint import InferenceEndpoint, Replica, ReplicaState
from inferplane.engines.port import (
    Engine,
    EngineError,
    FetchModel,
    LogLine,
    Observation,
    Release,
    StartReplica,
    StopReplica,
)

READY, EXITED = ReplicaState.READY, ReplicaState.EXITED


class World(Protocol):
    """As in conftest."""

    engine: Engine
    wakes: list[str]

    def restart(self) -> Engine: ...
    def kill(self, replica: Replica) -> None: ...


async def running(engine: Engine, one: InferenceEndpoint) -> Replica:
    await engine.apply(target(one), FetchModel())
    await wait_until(lambda: _present(engine, one), "the model")
    await engine.apply(target(one), StartReplica(first_replica(one)))
    return await wait_for_state(engine, first_replica(one), READY)


async def _present(engine: Engine, one: InferenceEndpoint) -> bool:
    return (await engine.observe(one.uid)).artifact(1).phase is ArtifactPhase.PRESENT


async def read_logs(engine: Engine, uid: str, *, replica: str = "", previous: bool = False) -> list[LogLine]:
    return [line async for line in engine.logs(uid, replica=replica, previous=previous)]


async def test_of_an_unknown_endpoint_there_is_nothing(world: World) -> None:
    assert await world.engine.observe("ffffffffffff") == Observation()
    assert await world.engine.owned() == frozenset()
    await world.engine.release_orphan("ffffffffffff")


async def test_steps_may_be_repeated(world: World) -> None:
    one = endpoint()
    first = await running(world.engine, one)
    for action in (FetchModel(), StartReplica(first.id), FetchModel(), StartReplica(first.id)):
        await world.engine.apply(target(one), action)
    again = await see(world.engine, first.id)
    assert again is not None
    assert (again.pid, again.state) == (first.pid, READY)
    for _ in range(2):
        await world.engine.apply(target(one), StopReplica(first.id, 10))
    await wait_for_state(world.engine, first.id, EXITED)
    await world.engine.apply(target(one), StopReplica(first.id, 10))
    for _ in range(2):
        await world.engine.apply(target(one), Release())
    assert await world.engine.observe(one.uid) == Observation()


async def test_a_server_needs_a_model(world: World) -> None:
    one = endpoint()
    with pytest.raises(EngineError):
        await world.engine.apply(target(one), StartReplica(first_replica(one)))


async def test_a_ready_replica_has_an_address_a_process_and_two_moments(world: World) -> None:
    replica = await running(world.engine, endpoint())
    assert replica.address.startswith("unix:")
    assert replica.pid is not None
    assert replica.started_at is not None
    assert replica.ready_at is not None
    assert replica.started_at.tzinfo is not None
    assert replica.model is not None
    assert replica.exit is None


async def test_steps_and_ends_are_announced(world: World) -> None:
    one = endpoint()
    replica = await running(world.engine, one)
    await wait_until(lambda: _true(one.uid in world.wakes), "a wake-up")
    world.wakes.clear()
    world.kill(replica)
    await wait_until(lambda: _true(one.uid in world.wakes), "a wake-up for the end")
    assert set(world.wakes) == {one.uid}


async def test_an_ended_replica_stays_listed_with_the_same_exit_until_it_is_started(world: World) -> None:
    one = endpoint()
    replica = await running(world.engine, one)
    world.kill(replica)
    ended = await wait_for_state(world.engine, replica.id, EXITED)
    assert ended.exit is not None
    assert (ended.exit.exit_code, ended.exit.signal) == (None, "SIGKILL")
    assert ended.exit.message
    assert await see(world.engine, replica.id) == ended
    await world.engine.apply(target(one), StartReplica(replica.id))
    again = await wait_for_state(world.engine, replica.id, READY)
    assert again.exit is None
    assert again.pid != replica.pid


async def test_what_runs_is_not_released(world: World) -> None:
    one = endpoint()
    replica = await running(world.engine, one)
    with pytest.raises(EngineError):
        await world.engine.apply(target(one), Release())
    observation = await world.engine.observe(one.uid)
    assert set(observation.left) == {"model files", "log files"}
    assert await world.engine.owned() == {one.uid}
    await world.engine.apply(target(one), StopReplica(replica.id, 10))
    await wait_for_state(world.engine, replica.id, EXITED)
    await world.engine.apply(target(one), Release())
    assert await world.engine.observe(one.uid) == Observation()
    assert await world.engine.owned() == frozenset()


async def test_another_engine_over_the_same_world_sees_the_same(world: World) -> None:
    one = endpoint()
    before = await running(world.engine, one)
    await world.engine.close(stop_servers=False)
    engine = world.restart()
    await engine.start(world.wakes.append)
    assert await see(engine, before.id) == before
    await engine.apply(target(one), StartReplica(before.id))
    after = await see(engine, before.id)
    assert after is not None
    assert after.pid == before.pid
    assert await engine.owned() == {one.uid}
    world.wakes.clear()
    world.kill(before)
    ended = await wait_for_state(engine, before.id, EXITED)
    assert ended.exit is not None
    assert one.uid in world.wakes


async def test_an_orphan_is_undone_even_while_it_runs(world: World) -> None:
    one = endpoint()
    await running(world.engine, one)
    await world.engine.release_orphan(one.uid)
    assert await world.engine.observe(one.uid) == Observation()
    assert await world.engine.owned() == frozenset()


async def test_endpoints_do_not_touch_each_other(world: World) -> None:
    left, right = endpoint("aaaaaaaaaaaa"), endpoint("bbbbbbbbbbbb")
    kept = await running(world.engine, right)
    await running(world.engine, left)
    await world.engine.release_orphan(left.uid)
    assert await see(world.engine, kept.id) == kept
    assert await world.engine.owned() == {right.uid}


async def test_logs_of_this_run_and_of_the_one_before(world: World) -> None:
    one = endpoint()
    with pytest.raises(EngineError):
        await read_logs(world.engine, one.uid)
    replica = await running(world.engine, one)
    first = await read_logs(world.engine, one.uid)
    assert first
    assert {line.replica for line in first} == {"r1-0"}
    with pytest.raises(EngineError):
        await read_logs(world.engine, one.uid, previous=True)
    with pytest.raises(EngineError):
        await read_logs(world.engine, one.uid, replica="r9-9")
    world.kill(replica)
    await wait_for_state(world.engine, replica.id, EXITED)
    await world.engine.apply(target(one), StartReplica(replica.id))
    await wait_for_state(world.engine, replica.id, READY)
    previous = await read_logs(world.engine, one.uid, replica="r1-0", previous=True)
    assert previous[: len(first)] == first


async def test_a_preflight_changes_nothing(world: World) -> None:
    checks = await world.engine.preflight(target(endpoint()))
    assert [check for check in checks if not check.ok] == []
    assert all((check.reason is None) == check.ok for check in checks)
    assert await world.engine.owned() == frozenset()


async def _true(value: bool) -> bool:
    return value
