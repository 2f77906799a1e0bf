"""The engine in memory: everything follows from the script and the clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from engine_world import endpoint, first_replica, see, target
from inferplane.domain.artifact import ArtifactPhase
from inferplane.domain.endpoint import ReplicaId, ReplicaState
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.port import EngineError, FetchModel, StartReplica, StopReplica
from inferplane.engines.simulated import Script, SimulatedEngine

ONE = endpoint()
ID = first_replica(ONE)


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def move(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def playing(clock: Clock, script: Script) -> SimulatedEngine:
    return SimulatedEngine(clock, {ONE.name: script})


async def phase(engine: SimulatedEngine) -> ArtifactPhase:
    return (await engine.observe(ONE.uid)).artifact(1).phase


async def state(engine: SimulatedEngine, replica: ReplicaId = ID) -> ReplicaState | None:
    found = await see(engine, replica)
    return None if found is None else found.state


async def start(engine: SimulatedEngine) -> None:
    await engine.apply(target(ONE), FetchModel())
    await engine.apply(target(ONE), StartReplica(ID))


async def test_a_fetch_takes_its_time_fails_as_told_and_then_succeeds(clock: Clock) -> None:
    engine = playing(
        clock, Script(fetch_seconds=10, fetch_failures=1, fetch_reason=ReasonCode.MODEL_NOT_FOUND)
    )
    await engine.apply(target(ONE), FetchModel())
    clock.move(5)
    artifact = (await engine.observe(ONE.uid)).artifact(1)
    assert (artifact.phase, artifact.received_bytes, artifact.eta_seconds) == (ArtifactPhase.FETCHING, 500, 5)
    clock.move(5)
    artifact = (await engine.observe(ONE.uid)).artifact(1)
    assert (artifact.phase, artifact.reason) == (ArtifactPhase.FAILED, ReasonCode.MODEL_NOT_FOUND)
    await engine.apply(target(ONE), FetchModel())
    clock.move(10)
    assert await phase(engine) is ArtifactPhase.PRESENT


async def test_a_slow_start_then_a_hang(clock: Clock) -> None:
    engine = playing(clock, Script(start_seconds=1, load_seconds=2, unresponsive_after_seconds=3))
    await start(engine)
    seen = []
    for seconds in (0, 1, 2, 3):
        clock.move(seconds)
        seen.append(await state(engine))
    assert seen == [
        ReplicaState.STARTING,
        ReplicaState.LOADING,
        ReplicaState.READY,
        ReplicaState.UNRESPONSIVE,
    ]


async def test_a_server_that_ends_twice_and_then_stays(clock: Clock) -> None:
    engine = playing(clock, Script(exits=2, exit_after_seconds=1, exit_code=7))
    await engine.apply(target(ONE), FetchModel())
    for _ in range(2):
        await engine.apply(target(ONE), StartReplica(ID))
        clock.move(1)
        ended = await see(engine, ID)
        assert ended is not None
        assert ended.exit is not None
        assert ended.exit.exit_code == 7
    await engine.apply(target(ONE), StartReplica(ID))
    clock.move(100)
    assert await state(engine) is ReplicaState.READY


async def test_a_stop_takes_its_time_but_no_more_than_its_grace(clock: Clock) -> None:
    engine = playing(clock, Script(stop_seconds=60))
    await start(engine)
    await engine.apply(target(ONE), StopReplica(ID, 5))
    assert await state(engine) is ReplicaState.STOPPING
    clock.move(5)
    ended = await see(engine, ID)
    assert ended is not None
    assert ended.exit is not None
    assert ended.exit.signal == "SIGKILL"
    assert engine.running() == ()


async def test_refused_steps_change_nothing_and_are_not_listed(clock: Clock) -> None:
    engine = playing(clock, Script(refused_steps=1))
    with pytest.raises(EngineError):
        await engine.apply(target(ONE), FetchModel())
    assert await phase(engine) is ArtifactPhase.ABSENT
    await start(engine)
    assert engine.steps == [(ONE.uid, FetchModel()), (ONE.uid, StartReplica(ID))]
    assert engine.running() == (ID,)


async def test_what_time_brings_about_is_announced_by_whoever_keeps_the_time(clock: Clock) -> None:
    due: list[tuple[float, Callable[[], None]]] = []
    wakes: list[str] = []
    engine = SimulatedEngine(
        clock,
        usual=Script(fetch_seconds=5, start_seconds=1, load_seconds=2, stop_seconds=9),
        later=lambda seconds, call: due.append((seconds, call)),
    )
    await engine.start(wakes.append)
    await engine.apply(target(ONE), FetchModel())
    clock.move(6)
    await engine.apply(target(ONE), StartReplica(ID))
    await engine.apply(target(ONE), StopReplica(ID, 4))
    assert [round(seconds) for seconds, _ in due] == [5, 1, 3, 4]
    wakes.clear()
    for _, call in due:
        call()
    assert wakes == [ONE.uid] * 4
    await engine.close(stop_servers=True)
    due[0][1]()
    assert len(wakes) == 4, "after the close nothing is announced"
