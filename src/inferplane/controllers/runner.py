"""The loop that all controllers share.

A controller says how to list its keys and how to reconcile one; the runner brings the workers, the
wake-ups, the regular second look and the pauses after failures. A pass that raises is logged with
its key and tried again with backoff: a loop here never ends by itself and never fails silently.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Protocol

from inferplane.controllers.workqueue import WorkQueue
from inferplane.domain.errors import StaleLease, StaleVersion
from inferplane.observability import get_logger

RESYNC_SECONDS = 30.0
"""Everybody is looked at again within this time, or with many within a time in which they are so few a second:"""
RESYNC_PASSES_A_SECOND_MAX = 10.0
RESYNC_SECONDS_MAX = 300.0
RESYNC_RETRY_SECONDS = 2.0
AGAIN_SECONDS_MIN = 0.02
"""Whoever asks to be looked at again at once gets this pause: no mistake in a plan may take a whole core."""
WORKERS = 8

log = get_logger("controllers")


def resync_seconds(count: int) -> float:
    """How long regular looks at so many keys are spread over."""
    return min(RESYNC_SECONDS_MAX, max(RESYNC_SECONDS, count / RESYNC_PASSES_A_SECOND_MAX))


def spread(keys: Iterable[str], seconds: float) -> list[tuple[str, float]]:
    """Every key with a delay, evenly over the time: a burst of regular looks would keep news waiting."""
    listed = list(keys)
    return [(key, seconds * index / len(listed)) for index, key in enumerate(listed)]


def pause_seconds(again_after: float, speed: float) -> float:
    """How long a key rests that a controller wants to see again after so much time of its clock."""
    return max(AGAIN_SECONDS_MIN, again_after / speed)


class Controller(Protocol):
    """What a runner drives."""

    name: str

    def keys(self) -> Awaitable[Iterable[str]]:
        """Every key there is; asked at the start and regularly, so that a lost hint only costs time."""

    def reconcile(self, key: str) -> Awaitable[float | None]:
        """Take the next step for `key`; return the seconds after which to look again, or None."""


class Runner:
    """Runs one controller until `close`.

    `speed` is how many seconds of the controller's clock go by in a real one: what it asks to be woken
    after is divided by it. Our own pauses, between tries and between regular looks, stay real.
    """

    def __init__(self, controller: Controller, *, workers: int = WORKERS, speed: float = 1.0) -> None:
        self._controller = controller
        self._speed = speed
        self._workers = workers
        self._queue = WorkQueue(asyncio.get_running_loop().time)
        self._tasks: list[asyncio.Task[None]] = []
        self._all = asyncio.Event()

    def wake(self, key: str) -> None:
        """Something may have changed for `key`. Call from the event loop's thread."""
        self._queue.put(key)

    def wake_all(self) -> None:
        """More keys may be ours to look at than before: look at all of them now."""
        self._all.set()

    async def start(self) -> None:
        """Look at every key once, then on every wake-up and regularly."""
        for key in await self._controller.keys():
            self._queue.put(key)
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        self._tasks.append(asyncio.create_task(self._resync()))

    async def close(self) -> None:
        """Stop after the passes under way have been interrupted; passes are safe to interrupt anywhere."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            try:
                await self._pass(key)
            finally:
                self._queue.done(key)

    async def _pass(self, key: str) -> None:
        try:
            again_after = await self._controller.reconcile(key)
        except StaleVersion:
            # Somebody wrote in between: read again, decide again.
            self._queue.put_after(key, AGAIN_SECONDS_MIN)
        except StaleLease as error:  # another control plane does it now
            self._queue.forget_failures(key)
            log.info("stood down", controller=self._controller.name, key=key, why=error.message)
        except Exception:  # whatever one key's pass runs into must not stop the loop for the others
            pause = self._queue.put_backoff(key)
            log.exception("pass failed", controller=self._controller.name, key=key, retry_in_seconds=pause)
        else:
            self._queue.forget_failures(key)
            if again_after is not None:
                self._queue.put_after(key, pause_seconds(again_after, self._speed))

    async def _resync(self) -> None:
        pause = RESYNC_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._all.wait()
            at_once = self._all.is_set()
            self._all.clear()
            try:
                keys = list(await self._controller.keys())
                pause = resync_seconds(len(keys))
                for key, delay in spread(keys, pause):
                    self._queue.put_after(key, 0.0 if at_once else delay)
            except Exception:  # the store may be away for a while; the loop has to outlive that
                pause = RESYNC_RETRY_SECONDS
                log.exception("listing keys failed", controller=self._controller.name)
