"""One API for the whole folder; every test has workspaces and keys of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api_world import Client, ScriptedEngine, World
from gpu_world import GpuWorld


@pytest.fixture(scope="session")
def running_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("api")) as world:
        yield world


@pytest.fixture
def world(running_world: World) -> Iterator[World]:
    """The API, with what a test may have bent straightened afterwards."""
    yield running_world
    running_world.later = running_world.later * 0
    running_world.unready = {"gateway": ""}
    engine = running_world.engine
    engine.failure, engine.hangs, engine.checks = "", False, ScriptedEngine().checks


@pytest.fixture
def owner(world: World) -> Client:
    return world.owner


@pytest.fixture
def team(world: World) -> str:
    """A workspace on cluster local."""
    return world.workspace()


@pytest.fixture(scope="session")
def gpu_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuWorld]:
    """Another installation, with GPUs. Every test has workspaces of its own in it, and shares the GPUs."""
    with GpuWorld(tmp_path_factory.mktemp("gpus")) as world:
        yield world


@pytest.fixture
def gpus(gpu_world: GpuWorld) -> Iterator[GpuWorld]:
    """The GPUs, all free afterwards."""
    yield gpu_world
    gpu_world.later = gpu_world.later * 0

    async def free() -> None:
        async with gpu_world.store.transaction() as tx:
            for request in await tx.list_gpu_requests():
                await tx.delete_gpu_request(request.id)

    gpu_world.do(free())
