from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.modelstore.limits import StoreLimits
from inferplane.modelstore.store import ModelStore, Source
from range_server import RangeServer

Fetched = Callable[[ModelStore, str, Source], Coroutine[Any, Any, ArtifactState]]
OpenStore = Callable[..., Awaitable[ModelStore]]

DEADLINE_SECONDS = 20.0


class SteppingClock:
    """A second later each time it is asked, so that every moment is different."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
async def server() -> AsyncIterator[RangeServer]:
    running = RangeServer()
    await running.start()
    yield running
    await running.close()


@pytest.fixture
def limits() -> StoreLimits:
    return StoreLimits(
        backoff_first_seconds=0.01,
        backoff_max_seconds=0.05,
        read_seconds=5.0,
        notify_seconds=0.02,
        disk_reserve_bytes=0,
    )


@pytest.fixture
async def open_store(tmp_path: Path, limits: StoreLimits) -> AsyncIterator[OpenStore]:
    """Open a store on `<tmp_path>/store` (again): the one opened before is closed first."""
    opened: list[ModelStore] = []
    clock = SteppingClock()

    async def open_it(
        *,
        cache_bytes_max: int = 1 << 30,
        environment: Mapping[str, str] | None = None,
        limits: StoreLimits = limits,
        free_bytes: Callable[[Path], int] | None = None,
    ) -> ModelStore:
        if opened:
            await opened.pop().close()
        store = ModelStore(
            tmp_path / "store",
            clock=clock,
            cache_bytes_max=cache_bytes_max,
            environment=environment,
            limits=limits,
            free_bytes=free_bytes,
        )
        await store.start()
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_store: OpenStore) -> ModelStore:
    return await open_store()


@pytest.fixture
def fetched() -> Fetched:
    """Request a source and wait until it is here or has failed."""

    async def fetch(store: ModelStore, uid: str, source: Source) -> ArtifactState:
        changed = asyncio.Event()
        store.request(uid, source, changed.set)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while store.state(uid).phase is ArtifactPhase.FETCHING:
                await changed.wait()
                changed.clear()
        return store.state(uid)

    return fetch
