"""What can go wrong between a program and an API server, on demand.

A fault concerns the requests that `when` picks (all by default), `times` times or until `clear()`. Faults are asked
in the order in which they were set; the first that concerns a request decides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kube_api.server import Logged


class Fault(Enum):
    """What is done to a request."""

    ANSWER = "answer"
    """An error status instead of an answer; nothing was done."""
    LOST_ANSWER = "lost answer"
    """What was asked is done, and the connection closed without an answer."""
    HANG = "hang"
    """No answer at all, until the client gives up."""
    SLOW = "slow"
    """The answer, later."""


@dataclass(slots=True)
class Planned:
    """One fault that is set."""

    fault: Fault
    when: Callable[[Logged], bool]
    left: int | None
    """How often more; None: until cleared."""
    status: int = 500
    retry_after_s: int | None = None
    seconds: float = 0.0
    every: int = 1
    """Only every n-th request that it concerns."""
    seen: int = 0


class Faults:
    """The switchboard of one KubeApi. All methods are for the loop that the server runs on."""

    def __init__(
        self,
        refuse: Callable[[], None],
        listen: Callable[[], Awaitable[None]],
        cut: Callable[[bool], int],
    ) -> None:
        self._refuse = refuse
        self._listen = listen
        self._cut = cut
        self._planned: list[Planned] = []

    def too_many(
        self,
        *,
        retry_after_s: int = 1,
        times: int | None = None,
        when: Callable[[Logged], bool] = lambda _: True,
    ) -> None:
        """429 with Retry-After."""
        self._planned.append(Planned(Fault.ANSWER, when, times, status=429, retry_after_s=retry_after_s))

    def error(
        self,
        status: int = 500,
        *,
        times: int | None = None,
        every: int = 1,
        when: Callable[[Logged], bool] = lambda _: True,
    ) -> None:
        """An error status (500, 503, …). `every=2`: half of the requests."""
        self._planned.append(Planned(Fault.ANSWER, when, times, status=status, every=every))

    def half(self, status: int = 500) -> None:
        """Every other request fails."""
        self.error(status, every=2)

    def lose_answer(self, *, times: int | None = 1, when: Callable[[Logged], bool] = lambda _: True) -> None:
        """The write is done, and its answer never arrives."""
        self._planned.append(Planned(Fault.LOST_ANSWER, when, times))

    def hang(self, *, times: int | None = None, when: Callable[[Logged], bool] = lambda _: True) -> None:
        """The request is taken and never answered."""
        self._planned.append(Planned(Fault.HANG, when, times))

    def slow(
        self, seconds: float, *, times: int | None = None, when: Callable[[Logged], bool] = lambda _: True
    ) -> None:
        """The answer comes after so long."""
        self._planned.append(Planned(Fault.SLOW, when, times, seconds=seconds))

    def away(self) -> None:
        """Connections are refused and those there are closed, until `back()`. The port stays ours."""
        self._refuse()

    async def back(self) -> None:
        """Listens again, at the same address."""
        await self._listen()

    def cut_watches(self, *, mid_line: bool = True) -> int:
        """Cuts every open watch at once, in the middle of an event where `mid_line`; how many there were."""
        return self._cut(mid_line)

    def clear(self) -> None:
        """No more faults, but for `away`, which `back` ends."""
        self._planned.clear()

    def pick(self, request: Logged) -> Planned | None:
        """The fault for a request, if any; counts it. For the server."""
        for planned in self._planned:
            if not planned.when(request):
                continue
            planned.seen += 1
            if planned.seen % planned.every:
                continue
            if planned.left is not None:
                planned.left -= 1
                if planned.left <= 0:
                    self._planned.remove(planned)
            return planned
        return None
