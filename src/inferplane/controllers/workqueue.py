"""A queue of keys for control loops: coalesced, one worker a key, with delays and backoff.

A key says *look at this*, never *this happened*. Asking for a key that already waits changes
nothing; asking for one that is being worked on makes it come again once it is done. So a burst of
hints costs one pass, and no two workers ever hold the same key.

The bookkeeping (`Schedule`) is plain state over a clock reading passed in; `WorkQueue` adds the
waiting.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_MAX_SECONDS = 30.0


@dataclass(slots=True)
class Schedule:
    """Which keys are due when. Times are seconds on a monotonic clock."""

    _due_at: dict[str, float] = field(default_factory=dict)
    _heap: list[tuple[float, int, str]] = field(default_factory=list)
    _working: set[str] = field(default_factory=set)
    _again_at: dict[str, float] = field(default_factory=dict)
    _failures: dict[str, int] = field(default_factory=dict)
    _sequence: int = 0

    def ask(self, key: str, at: float) -> None:
        """Have `key` looked at no later than `at`; an earlier appointment stands."""
        if key in self._working:
            self._again_at[key] = min(at, self._again_at.get(key, at))
            return
        if key in self._due_at and self._due_at[key] <= at:
            return
        self._due_at[key] = at
        self._sequence += 1
        heapq.heappush(self._heap, (at, self._sequence, key))

    def take(self, now: float) -> str | None:
        """The key that has been due longest (then first asked first), or None when none is due."""
        while self._heap:
            at, _, key = self._heap[0]
            if self._due_at.get(key) != at:
                heapq.heappop(self._heap)  # superseded by an earlier appointment
                continue
            if at > now:
                return None
            heapq.heappop(self._heap)
            del self._due_at[key]
            self._working.add(key)
            return key
        return None

    def done(self, key: str) -> None:
        """The worker has finished with `key`; what was asked meanwhile becomes an appointment."""
        self._working.discard(key)
        again_at = self._again_at.pop(key, None)
        if again_at is not None:
            self.ask(key, again_at)

    def next_at(self) -> float | None:
        """When the next key is due, or None."""
        while self._heap and self._due_at.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def failed(self, key: str) -> float:
        """Count a failure of `key`; return how many seconds to wait before the next try."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        return min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(failures, 16))

    def succeeded(self, key: str) -> None:
        """Forget the failures of `key`."""
        self._failures.pop(key, None)

    def __len__(self) -> int:
        return len(self._due_at) + len(self._working)


class WorkQueue:
    """`Schedule` for asyncio: workers await `get`, and call `done` whatever happened."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._schedule = Schedule()
        self._monotonic = monotonic
        self._changed = asyncio.Event()

    def put(self, key: str) -> None:
        """Have `key` looked at now."""
        self.put_after(key, 0.0)

    def put_after(self, key: str, seconds: float) -> None:
        """Have `key` looked at in `seconds`, or earlier if that was asked before."""
        self._schedule.ask(key, self._monotonic() + max(0.0, seconds))
        self._changed.set()

    def put_backoff(self, key: str) -> float:
        """Have `key` looked at after its next pause; return the pause in seconds."""
        pause = self._schedule.failed(key)
        self.put_after(key, pause)
        return pause

    def forget_failures(self, key: str) -> None:
        """The last pass over `key` went well."""
        self._schedule.succeeded(key)

    def done(self, key: str) -> None:
        """Release `key` for other workers."""
        self._schedule.done(key)
        self._changed.set()

    async def get(self) -> str:
        """Wait for the next due key and claim it until `done`."""
        while True:
            key = self._schedule.take(self._monotonic())
            if key is not None:
                if self._schedule.next_at() is not None:
                    self._changed.set()  # another worker may find one due as well
                return key
            self._changed.clear()
            next_at = self._schedule.next_at()
            timeout = None if next_at is None else max(0.0, next_at - self._monotonic())
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def __len__(self) -> int:
        return len(self._schedule)
