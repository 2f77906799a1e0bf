"""Questions about waits have a thread of their own, and bounds.

An answer takes a simulation of everything that lies ahead. That must not keep the admission controller,
or anybody else who works in threads, from working: so questions are answered one after the other in
one thread of their own, only so many wait for their turn and only for so long, and each has so long to be worked out. What is
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
        self._asked: dict[str, int] = {}  # by workspace
        self._thread: ThreadPoolExecutor | None = None

    @asynccontextmanager
    async def place(self, workspace: str, places_max: int, own_max: int) -> AsyncIterator[None]:
        """One of `places_max` places among those that ask, and of `own_max` of the workspace.

        Raises RateLimited when there is none.
        """
        own = self._asked.get(workspace, 0)
        if own >= own_max:
            raise _too_many(f"{own_max} questions of workspace {workspace} are being answered already")
        if sum(self._asked.values()) >= places_max:
            raise _too_many(f"{places_max} questions about waits are being answered already")
        self._asked[workspace] = own + 1
        try:
            yield
        finally:
            self._asked[workspace] -= 1
            if not self._asked[workspace]:
                del self._asked[workspace]

    async def answer(self, work: Callable[[KeepGoing], T], seconds_max: float, line_seconds_max: float) -> T:
        """What `work` returns, which runs in the thread when its turn comes.

        What it is given says no after `seconds_max`, and once nobody waits for the answer any more: it
        should then come to an end. Raises RateLimited when its turn does not come within `line_seconds_max`.
        """
        gone = late = False

        def run() -> T:
            until = time.monotonic() + seconds_max
            return work(lambda: not gone and time.monotonic() < until)

        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "questions")
        waiting = self._thread.submit(run)

        def give_up() -> None:
            nonlocal late
            late = waiting.cancel()  # says no once it is its turn

        timer = asyncio.get_running_loop().call_later(line_seconds_max, give_up)
        try:
            return await asyncio.wrap_future(waiting)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not late or (task is not None and task.cancelling()):
                raise
            raise _too_many("questions about waits take too long at the moment") from None
        finally:
            timer.cancel()
            gone = True


def _too_many(message: str) -> RateLimited:
    return RateLimited(message, reason="TooManyQuestions", next_action="Ask again in a moment.")
