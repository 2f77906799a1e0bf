"""A stream gives up what it holds, however early its client goes, and is counted from the beginning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
from litestar.types import Receive, Scope, Send
from prometheus_client import CollectorRegistry, Gauge

from inferplane.api.answers import EventStream
from inferplane.api.streams import Streams, first_line, follow
from inferplane.domain.errors import RateLimited
from inferplane.engines.port import EngineError, LogLine
from inferplane.services.context import Limits


class Log:
    """A log that says nothing; `readers` counts those that read it."""

    def __init__(self, failure: str = "") -> None:
        self.readers = 0
        self.failure = failure

    async def lines(self) -> AsyncIterator[LogLine]:
        self.readers += 1
        try:
            if self.failure:
                raise EngineError(self.failure)
            await asyncio.Event().wait()
            yield LogLine("r1-0", "never")
        finally:
            self.readers -= 1


class Platform:
    """As much of a platform as a stream asks for."""

    limits = Limits()


def streams(most: int) -> Streams:
    return Streams(most, Gauge("streams", "open", registry=CollectorRegistry()))


async def allowed() -> bool:
    return True


async def opened(counted: Streams, log: Log) -> EventStream:
    async with AsyncExitStack() as held:
        held.enter_context(counted.place())
        lines = await held.enter_async_context(first_line(log.lines()))
        return EventStream(follow(cast("Any", Platform()), counted, lines, allowed), held.pop_all())


@pytest.mark.parametrize("gone", ["before it begins", "at once", "later"])
async def test_a_client_that_goes_leaves_nothing_behind(gone: str) -> None:
    counted, log = streams(1), Log()
    stream = await opened(counted, log)
    assert log.readers == 1

    async def receive() -> MutableMapping[str, Any]:
        if gone == "later":
            await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(_: MutableMapping[str, Any]) -> None:
        if gone == "before it begins":
            await asyncio.Event().wait()

    serving = asyncio.create_task(stream(cast("Scope", {}), cast("Receive", receive), cast("Send", send)))
    if gone == "before it begins":
        await asyncio.sleep(0)
        serving.cancel()
    async with asyncio.timeout(20):
        await asyncio.wait({serving})
    assert log.readers == 0
    with counted.place():
        assert len(asyncio.all_tasks()) == 1


async def test_a_stream_counts_from_the_moment_it_was_let_in() -> None:
    counted = streams(2)
    log = Log()
    first, second = await opened(counted, log), await opened(counted, log)
    with pytest.raises(RateLimited):
        await opened(counted, log)
    await first.held.aclose()
    third = await opened(counted, log)
    for stream in (second, third):
        await stream.held.aclose()
    assert log.readers == 0


async def test_a_log_that_is_not_there_takes_no_place() -> None:
    counted = streams(1)
    for _ in range(2):
        with pytest.raises(EngineError):
            await opened(counted, Log("no log"))
    with counted.place():
        pass
