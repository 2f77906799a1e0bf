"""Looking hosts up: bounded, and with an end for whoever waits."""

from __future__ import annotations

import asyncio
import threading

import pytest

from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.client import HttpClients
from inferplane.modelstore.failure import FetchFailed
from inferplane.modelstore.limits import StoreLimits


class StuckResolver:
    """Answers nobody until `go` is set; counts who asked."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str) -> bool:
        self.asked.append(host)
        self.go.wait(20)
        return True


async def test_a_hanging_look_up_keeps_its_place_until_its_thread_ends() -> None:
    resolver = StuckResolver()
    clients = HttpClients({}, StoreLimits(lookups_at_once=1, lookup_seconds=0.02), resolver)
    try:
        with pytest.raises(FetchFailed) as caught:
            await clients.check_host("slow.example", "https://slow.example/m")
        assert caught.value.reason is ReasonCode.HOST_NOT_FOUND
        # The next one waits for the place, not for the first one's patience: so threads stay bounded.
        second = asyncio.create_task(clients.check_host("next.example", "https://next.example/m"))
        done, _ = await asyncio.wait({second}, timeout=0.1)
        assert not done
        assert resolver.asked == ["slow.example"]
    finally:
        resolver.go.set()
    async with asyncio.timeout(20):
        await second
    assert resolver.asked == ["slow.example", "next.example"]
