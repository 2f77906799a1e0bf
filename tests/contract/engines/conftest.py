"""One fixture, every engine: the contract suite asks nothing about which it has."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine_world import SHORT, STAND_IN, ModelsAtHand, now, processes_of
from inferplane.domain.endpoint import Replica
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.local.launch import server_environment
from inferplane.engines.local.launchers import FreshLauncher
from inferplane.engines.local.zygote import ForkLauncher
from inferplane.engines.port import Engine
from inferplane.engines.simulated import SimulatedEngine


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
