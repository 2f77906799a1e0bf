"""Real processes: a stand-in model server that starts fast and misbehaves on demand."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from engine_world import SHORT, STAND_IN, ModelsAtHand, now, processes_of
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.local.launchers import FreshLauncher

MakeEngine = Callable[[], LocalEngine]


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


@pytest.fixture
def models(home: Path) -> ModelsAtHand:
    return ModelsAtHand(home.parent / "models")


@pytest.fixture
def wakes() -> list[str]:
    """Uids that the engine announced."""
    return []


@pytest.fixture
def make_engine(home: Path, models: ModelsAtHand) -> MakeEngine:
    """Another engine over the same home, as after a restart of the control plane."""

    def make() -> LocalEngine:
        return LocalEngine(
            home=home,
            models=models,
            clock=now,
            launcher=FreshLauncher(STAND_IN),
            limits=SHORT,
            environment={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "INFERPLANE_DATABASE_URL": "secret"},
        )

    return make


@pytest.fixture
async def engine(make_engine: MakeEngine, wakes: list[str]) -> AsyncIterator[LocalEngine]:
    one = make_engine()
    await one.start(wakes.append)
    yield one
    await one.close(stop_servers=True)
