"""Long answers: endpoints as they change, log lines as they are printed.

A watcher is woken by the store's announcements and reads each changed endpoint once, however often
it was announced meanwhile; nothing here asks the store on a timer, except whether the caller's key
still exists, which the heartbeat does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import msgspec
from prometheus_client import Gauge

from inferplane.api.answers import HEARTBEAT, event
from inferplane.domain.access import Caller
from inferplane.domain.endpoint import InferenceEndpoint
from inferplane.domain.errors import InferplaneError, RateLimited
from inferplane.domain.storage_uri import redacted
from inferplane.engines.port import LogLine
from inferplane.services import endpoints
from inferplane.services.context import Platform
from inferplane.services.endpoints import Filter
from inferplane.store.sql import Change
from inferplane.wire.endpoints import EndpointItem, LogLineItem
from inferplane.wire.paths import ADDED, DELETED, LOG_LINE, MODIFIED, STREAM_ERROR

LOG_LINES_AHEAD_MAX = 1000
FIRST_LINE_SECONDS = 0.25
"""How long a followed log may take to say that there is no such log, before the stream begins."""

StillAllowed = Callable[[], Awaitable[bool]]
Render = Callable[[InferenceEndpoint], EndpointItem]


@dataclass(slots=True)
class Streams:
    """The streams that are open: bounded in number, and ended together when the API goes down."""

    streams_max: int
    gauge: Gauge
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _open: int = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among those that are open, from now on. Raises RateLimited when there is none."""
        if self._open >= self.streams_max:
            raise RateLimited(
                f"{self.streams_max} streams are open already",
                reason="TooManyStreams",
                next_action="Close streams that nobody reads, or try again later.",
            )
        self._open += 1
        self.gauge.set(self._open)
        try:
            yield
        finally:
            self._open -= 1
            self.gauge.set(self._open)


async def watch(
    platform: Platform,
    streams: Streams,
    caller: Caller,
    wanted: Filter,
    render: Render,
    still_allowed: StillAllowed,
) -> AsyncGenerator[bytes, None]:
    """First every endpoint as ADDED, then a comment, then each change until the client goes."""
    changed: dict[str, None] = {}
    awake = asyncio.Event()

    def on_change(change: Change) -> None:
        if (not wanted.workspace or change.workspace == wanted.workspace) and caller.may_see(
            change.workspace
        ):
            changed[change.endpoint_uid] = None
            awake.set()

    # Subscribed before the first read, so that no change falls between the two.
    unsubscribe = platform.store.subscribe(on_change)
    known: dict[str, tuple[EndpointItem, bytes]] = {}
    try:
        async for endpoint in _all(platform, caller, wanted):
            item = render(endpoint)
            known[endpoint.uid] = (item, msgspec.json.encode(item))
            yield event(ADDED, item)
        yield b": that was all; changes follow\n\n"
        while await _woken(awake, streams.ended, platform.limits.heartbeat_seconds):
            if not await still_allowed():
                return
            if not awake.is_set():
                yield HEARTBEAT
                continue
            awake.clear()
            while changed:
                uid = next(iter(changed))
                del changed[uid]
                found = await endpoints.by_uid(platform, uid)
                if found is not None and not endpoints.matches(found, wanted):
                    found = None  # for this watcher it is gone, or was never there
                message = _difference(uid, found, known, render)
                if message is not None:
                    yield message
    finally:
        unsubscribe()


async def follow(
    platform: Platform,
    streams: Streams,
    lines: AsyncIterator[LogLine],
    still_allowed: StillAllowed,
) -> AsyncGenerator[bytes, None]:
    """Each line as it comes; ends when the engine's log does, or the client goes."""
    waiting: asyncio.Queue[LogLine | InferplaneError | None] = asyncio.Queue(LOG_LINES_AHEAD_MAX)
    reader = asyncio.create_task(_read_into(waiting, lines))
    ended = asyncio.create_task(streams.ended.wait())
    loop = asyncio.get_running_loop()
    ask_again_at = loop.time() + platform.limits.heartbeat_seconds
    try:
        while True:
            if loop.time() >= ask_again_at:  # by the clock: a busy log has no silence to ask in
                if not await still_allowed():
                    return
                ask_again_at = loop.time() + platform.limits.heartbeat_seconds
            getting = asyncio.create_task(waiting.get())
            try:
                await asyncio.wait(
                    {getting, ended},
                    timeout=platform.limits.heartbeat_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                entry = getting.result() if getting.done() else HEARTBEAT
            finally:
                getting.cancel()
            if ended.done() and entry is HEARTBEAT:
                return
            if isinstance(entry, bytes):
                yield entry
            elif isinstance(entry, LogLine):
                yield event(LOG_LINE, LogLineItem(entry.replica, entry.text))
            elif entry is None:
                return
            else:
                yield event(STREAM_ERROR, {"reason": entry.reason, "message": redacted(entry.message)})
                return
    finally:
        for task in (reader, ended):
            task.cancel()
        await asyncio.gather(reader, ended, return_exceptions=True)


@asynccontextmanager
async def first_line(lines: AsyncIterator[LogLine]) -> AsyncIterator[AsyncIterator[LogLine]]:
    """The same lines, after having waited a moment for the error that says that there are none.

    A stream that has begun cannot turn into an error any more, so this is done before. With the block
    ends the reading, whether or not anybody has begun to take the lines.
    """
    first = asyncio.ensure_future(anext(lines, None))
    try:
        await asyncio.wait({first}, timeout=FIRST_LINE_SECONDS)
        if first.done():
            first.result()  # raises what the engine raised
        yield _resumed(first, lines)
    finally:
        first.cancel()
        with suppress(asyncio.CancelledError, InferplaneError):
            await first
        if isinstance(lines, AsyncGenerator):
            await lines.aclose()


async def _resumed(
    first: asyncio.Future[LogLine | None], lines: AsyncIterator[LogLine]
) -> AsyncGenerator[LogLine, None]:
    line = await first
    if line is None:
        return
    yield line
    async for line in lines:
        yield line


async def _read_into(
    waiting: asyncio.Queue[LogLine | InferplaneError | None], lines: AsyncIterator[LogLine]
) -> None:
    """Read ahead, so that a heartbeat never has to interrupt the engine in the middle of a line."""
    try:
        if isinstance(lines, AsyncGenerator):
            async with aclosing(lines) as closing:
                async for line in closing:
                    await waiting.put(line)
        else:
            async for line in lines:
                await waiting.put(line)
    except InferplaneError as error:
        await waiting.put(error)
    else:
        await waiting.put(None)


async def _woken(awake: asyncio.Event, ended: asyncio.Event, seconds: float) -> bool:
    """Wait for a change or the heartbeat's time; False when everything is to end."""
    tasks = [asyncio.create_task(awake.wait()), asyncio.create_task(ended.wait())]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return not ended.is_set()


async def _all(platform: Platform, caller: Caller, wanted: Filter) -> AsyncIterator[InferenceEndpoint]:
    position = ""
    while True:
        page = await endpoints.list_endpoints(platform, caller, wanted, continue_from=position)
        for endpoint in page.endpoints:
            yield endpoint
        if not page.continue_from:
            return
        position = page.continue_from


def _difference(
    uid: str,
    found: InferenceEndpoint | None,
    known: dict[str, tuple[EndpointItem, bytes]],
    render: Render,
) -> bytes | None:
    """The event that brings a watcher up to date on one endpoint, or None when nothing shows."""
    before = known.get(uid)
    if found is None:
        if before is None:
            return None
        del known[uid]
        return event(DELETED, before[0])
    item = render(found)
    encoded = msgspec.json.encode(item)
    if before is not None and before[1] == encoded:
        return None
    known[uid] = (item, encoded)
    return event(MODIFIED if before is not None else ADDED, item)
