"""Whether an endpoint's host name leads to its cluster's ingress, asked of DNS and remembered.

Asking takes as long as DNS takes, so nobody waits for it: a describe waits `WAIT_SECONDS` at most, and else says
that it is not known yet; the answer is there for the next one. Answers are remembered for a while, the same
question is asked once at a time, and how many are remembered is bounded.

DNS as this machine sees it. A client elsewhere may see something else, so what is found is a hint and never
changes what an endpoint does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from ipaddress import ip_address

WAIT_SECONDS = 0.5
ANSWER_SECONDS = 5.0
REMEMBERED_SECONDS = 30.0
REMEMBERED_MAX = 2_000
ADDRESSES_SHOWN_MAX = 5

Resolve = Callable[[str], Awaitable[Collection[str]]]
"""The IP addresses of a host name; none where it has none. Raises OSError where nobody can tell."""


@dataclass(frozen=True, slots=True)
class NameFinding:
    """What DNS says of a host name. `leads_there` is None while nobody knows; `message` is "" where it does."""

    leads_there: bool | None
    message: str = ""


UNKNOWN = NameFinding(None)


class Names:
    """Asks and remembers. `seconds` is a clock that only goes forward."""

    def __init__(self, resolve: Resolve, seconds: Callable[[], float]) -> None:
        self._resolve = resolve
        self._seconds = seconds
        self._known: dict[tuple[str, str], tuple[float, NameFinding]] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[NameFinding]] = {}

    async def check(self, host: str, address: str) -> NameFinding:
        """Whether `host` resolves to `address`, an IP address or a name. Answers soon; never raises."""
        if not host or not address:
            return UNKNOWN
        question = (host.lower().rstrip("."), address.lower().strip("[]"))
        known = self._known.get(question)
        if known is not None and self._seconds() - known[0] < REMEMBERED_SECONDS:
            return known[1]
        task = self._asking.get(question)
        if task is None:
            task = asyncio.create_task(self._ask(*question))
            self._asking[question] = task
            task.add_done_callback(lambda _: self._asking.pop(question, None))
        done, _ = await asyncio.wait((task,), timeout=WAIT_SECONDS)
        if done:
            return task.result()
        return known[1] if known is not None else UNKNOWN

    async def close(self) -> None:
        """Ask no more."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, host: str, address: str) -> NameFinding:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await self._addresses(host)
                wanted = await self._addresses(address)
        except (TimeoutError, OSError):
            finding = NameFinding(None, f"whether {host} resolves to {address} could not be found out")
        else:
            finding = _judge(host, address, found, wanted)
        while len(self._known) >= REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        self._known[host, address] = (self._seconds(), finding)
        return finding

    async def _addresses(self, host: str) -> frozenset[str]:
        try:
            return frozenset({ip_address(host).compressed})
        except ValueError:
            return frozenset(ip_address(each).compressed for each in await self._resolve(host))


def _judge(host: str, address: str, found: frozenset[str], wanted: frozenset[str]) -> NameFinding:
    if found & wanted:
        return NameFinding(leads_there=True)
    if not found:
        return NameFinding(leads_there=False, message=f"{host} does not resolve; it should lead to {address}")
    shown = ", ".join(sorted(found)[:ADDRESSES_SHOWN_MAX])
    return NameFinding(leads_there=False, message=f"{host} resolves to {shown}; it should lead to {address}")
