"""One fixture, every engine: the contract suite asks nothing about which it has."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine_world import SHORT, STAND_IN, ModelsAtHand, now, processes_of, see, wait_until
from inferplane.domain.endpoint import InferenceEndpoint, Replica, ReplicaId, ReplicaState
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.local.launch import server_environment
from inferplane.engines.local.launchers import FreshLauncher
from inferplane.engines.local.zygote import ForkLauncher
from inferplane.engines.port import Engine
from inferplane.engines.simulated import SimulatedEngine
from kube_api import Behaving, Failure, needs_recordings
from kube_world import KubeWorld, kube_world


@dataclass
class World:
    """An engine that was started, and the two things the port has no word for.

    `restart` gives the engine of a control plane that was killed and started again; `kill` ends a
    server from outside.
    """

    engine: Engine
    restart: Callable[[], Engine]
    kill: Callable[[Replica], None]
    wakes: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small scikit-learn model."""
    import joblib
    from sklearn.linear_model import LinearRegression

    path = tmp_path_factory.mktemp("model") / "model.joblib"
    joblib.dump(LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0]), path)
    return path


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder with a short path; whatever still runs in it is killed and reported."""
    folder = Path(tempfile.mkdtemp(prefix="ip-"))
    yield folder / "home"
    left = processes_of(folder)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    assert left == [], "a test left processes behind"


@pytest.fixture(params=["fresh", "forked", "simulated"])
async def world(request: pytest.FixtureRequest, home: Path, model_file: Path) -> AsyncIterator[World]:
    engines: list[Engine] = []
    wakes: list[str] = []
    if request.param == "simulated":
        simulated = SimulatedEngine(now)
        one = World(simulated, lambda: simulated, lambda replica: simulated.end(replica.id), wakes)
        engines.append(simulated)
    else:

        def local() -> Engine:
            engine = _local(request.param, home, model_file)
            engines.append(engine)
            return engine

        one = World(local(), local, _kill, wakes)
    await one.engine.start(wakes.append)
    yield one
    for engine in engines[:-1]:
        await engine.close(stop_servers=False)
    await engines[-1].close(stop_servers=True)
    await asyncio.sleep(0)


@dataclass
class AnyWorld:
    """An engine of whatever kind, and what the shared suite needs besides.

    `again` is a control plane that was killed and started again; `away` and `back` are the same for engines of this
    machine, and for a cluster that it does not answer for a while. `doom` is
    before a start that shall fail, `ruin` after it; `count` is how many servers or InferenceServices of it there are.
    """

    engine: Engine
    again: Callable[[], Awaitable[Engine]]
    away: Callable[[], Awaitable[None]]
    back: Callable[[], Awaitable[Engine]]
    doom: Callable[[InferenceEndpoint], None]
    ruin: Callable[[InferenceEndpoint, ReplicaId], Awaitable[None]]
    count: Callable[[InferenceEndpoint], Awaitable[int]]


@pytest.fixture(params=["local", "simulated", pytest.param("kserve", marks=needs_recordings)])
async def any_world(
    request: pytest.FixtureRequest, home: Path, model_file: Path, tmp_path: Path
) -> AsyncIterator[AnyWorld]:
    if request.param == "kserve":
        async with kube_world(tmp_path) as there, Behaving(there.api) as kserve:
            yield await _on_a_cluster(there, kserve)
        return
    engines: list[Engine] = []
    simulated = SimulatedEngine(now)

    def made() -> Engine:
        engine = simulated if request.param == "simulated" else _local("fresh", home, model_file)
        engines.append(engine)
        return engine

    async def again() -> Engine:
        await engines[-1].close(stop_servers=False)
        engine = made()
        await engine.start(lambda _: None)
        return engine

    async def away() -> None:
        await engines[-1].close(stop_servers=False)

    async def ruin(one: InferenceEndpoint, replica: ReplicaId) -> None:
        if request.param == "simulated":
            simulated.end(replica)
            return

        async def is_killed() -> bool:
            seen = await see(engines[-1], replica)
            if seen is None or seen.pid is None:
                return False
            with suppress(ProcessLookupError):
                os.kill(seen.pid, signal.SIGKILL)
            return True

        await wait_until(is_killed, "a process to kill")

    async def count(one: InferenceEndpoint) -> int:
        seen = await engines[-1].observe(one.uid)
        return sum(each.state is not ReplicaState.EXITED for each in seen.replicas)

    first = made()
    await first.start(lambda _: None)
    yield AnyWorld(first, again, away, again, lambda _: None, ruin, count)
    for engine in engines[:-1]:
        await engine.close(stop_servers=False)
    await engines[-1].close(stop_servers=True)
    await asyncio.sleep(0)


async def _on_a_cluster(there: KubeWorld, kserve: Behaving) -> AnyWorld:
    engine = await there.started()

    async def again() -> Engine:
        await there.engines[-1].close(stop_servers=True)
        return await there.started()

    async def away() -> None:
        there.api.faults.away()

        async def is_said() -> bool:
            return (await engine.observe("0123456789ab")).unreachable is not None

        await wait_until(is_said, "its absence to be said")

    async def back() -> Engine:
        await there.api.faults.back()
        return engine

    def doom(one: InferenceEndpoint) -> None:
        kserve.fail(one.namespace, Failure.CRASH_LOOP)

    async def ruin(one: InferenceEndpoint, replica: ReplicaId) -> None:
        """KServe does it."""

    async def count(one: InferenceEndpoint) -> int:
        return len(there.api.store.list("InferenceService", one.namespace))

    return AnyWorld(engine, again, away, back, doom, ruin, count)


def _local(kind: str, home: Path, model_file: Path) -> LocalEngine:
    environment = {"PATH": os.environ["PATH"]}
    launcher: FreshLauncher | ForkLauncher = FreshLauncher(STAND_IN)
    if kind == "forked":
        launcher = ForkLauncher(
            directory=home / "forkserver",
            sockets=home / "s",
            environment=server_environment(environment, (), threads=1),
            formats=("sklearn",),
            # Not a program: a test of the forked kind must not pass by way of the other.
            otherwise=FreshLauncher(("/nowhere/no-program",)),
            limits=SHORT,
        )
    return LocalEngine(
        home=home,
        models=ModelsAtHand(home.parent / "models", model_file),
        clock=now,
        launcher=launcher,
        limits=SHORT,
        environment=environment,
    )


def _kill(replica: Replica) -> None:
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
