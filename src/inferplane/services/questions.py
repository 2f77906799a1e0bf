"""Questions about waits have a thread of their own, and bounds.

An answer takes a simulation of everything that lies ahead. That must not keep the admission controller,
or anybody else who works in threads, from working: so questions are answered one after the other in
one thread of their own, only so many wait for their turn, and each has so long to be worked out. What is
known by then is the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from inferplane.domain.errors import RateLimited

T = TypeVar("T")

KeepGoing = Callable[[], bool]


class Questions:
    """A thread for answers, and how many are asked for at the moment. Belongs to one event loop."""

    def __init__(self) -> None:
        self._asked = 0
        self._thread: ThreadPoolExecutor | None = None

    @asynccontextmanager
    async def place(self, places_max: int) -> AsyncIterator[None]:
        """One of `places_max` places among those that ask. Raises RateLimited when there is none."""
        if self._asked >= places_max:
            raise RateLimited(
                f"{places_max} questions about waits are being answered already",
                reason="TooManyQuestions",
                next_action="Ask again in a moment.",
            )
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1

    async def answer(self, work: Callable[[KeepGoing], T], seconds_max: float) -> T:
        """What `work` returns, which runs in the thread when its turn comes.

        What it is given says no after `seconds_max`, and once nobody waits for the answer any more: it
        should then come to an end.
        """
        gone = False

        def run() -> T:
            until = time.monotonic() + seconds_max
            return work(lambda: not gone and time.monotonic() < until)

        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "questions")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        finally:
            gone = True
