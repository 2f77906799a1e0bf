"""Where those who ask meet those who answer: requests held, traffic measured, and what became of endpoints.

    activator  → holds a request, forwards it, lets it go
    meter      → what the gateway counted, every few seconds
    controller ← the traffic of one endpoint, as a value to decide by
    controller → what there is of the endpoint now: addresses, or why there are none
    activator  ← waits for that

Kept in memory only. After a restart of ours nothing is held, and what was measured is measured again: the
decision treats what it does not know as no reason to take anything away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from inferplane.autoscaler import History, Sample, Traffic
from inferplane.gateway.traffic import Count

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is of an endpoint. `addresses` are those of replicas that answer.

    Where there are none, `reason`, `message` and `next_action` say why; `hopeless` means that waiting does
    not help, `next_retry_at` when the platform tries again nevertheless. `rests_since` is set while it is scaled to zero: when its last request was over.
    """

    addresses: tuple[str, ...] = ()
    reason: str = ""
    message: str = ""
    next_action: str = ""
    hopeless: bool = False
    rests_since: datetime | None = None
    next_retry_at: datetime | None = None


GONE = Standing(
    reason="NotFound", message="there is no such endpoint", next_action="Check the name.", hopeless=True
)


STOPPING = Standing(
    reason="Stopping",
    message="the platform is stopping",
    next_action="Send the request again.",
    hopeless=True,
)


@dataclass(slots=True)
class _Known:
    """What is known of one endpoint."""

    held: int = 0
    forwarding: int = 0
    last_forward: datetime | None = None
    history: History = History()
    on_traffic: bool = False
    standing: Standing | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Held:
    """A request that waits for a replica of one endpoint."""

    def __init__(self, uid: str, known: _Known) -> None:
        self.uid = uid
        self._known = known
        self._waits = True
        known.held += 1

    @property
    def standing(self) -> Standing | None:
        """What the controller said last of the endpoint; None before it said anything."""
        return self._known.standing

    async def changed(self) -> None:
        """Return when the controller next says something new of it."""
        await self._known.changed.wait()

    def release(self) -> None:
        """It waits no more."""
        if self._waits:
            self._waits = False
            self._known.held -= 1


class Demand:
    """One per platform. `idle_since` is the meter's, `wake` asks the controller for a pass."""

    def __init__(
        self,
        clock: Clock,
        wake: Callable[[str], None],
        idle_since: Callable[[str], datetime | None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._wake = wake
        self._idle_since = idle_since
        self._known: dict[str, _Known] = {}

    # --- the activator's side -----------------------------------------------------------------------

    @contextmanager
    def hold(self, uid: str) -> Iterator[Held]:
        """A request waits for a replica; the controller hears of it at once."""
        held = Held(uid, self._of(uid))
        self._wake(uid)
        try:
            yield held
        finally:
            held.release()

    @contextmanager
    def forward(self, uid: str) -> Iterator[None]:
        """A request is on its way to a replica and back, past the gateway's own counters."""
        known = self._of(uid)
        known.forwarding += 1
        try:
            yield
        finally:
            known.forwarding -= 1
            known.last_forward = self._clock()

    # --- the meter's side ---------------------------------------------------------------------------

    def measured(self, counts: Mapping[str, Count], at: datetime) -> None:
        """What the gateway counted by `at`, by endpoint uid.

        Of endpoints whose number of replicas depends on it a history is kept, and those with traffic are
        looked at again.
        """
        for uid, count in counts.items():
            known = self._of(uid)
            sample = Sample(at, count.total, count.active + known.forwarding)
            before = known.history.samples[-1] if known.history.samples else None
            known.history = known.history.add(sample) if known.on_traffic else History((sample,))
            if known.on_traffic and (sample.active or before is None or before.requests != count.total):
                self._wake(uid)

    # --- the controller's side ----------------------------------------------------------------------

    def traffic(self, uid: str) -> Traffic:
        """What to decide by."""
        known = self._known.get(uid)
        if known is None:
            return Traffic(idle_since=self._idle_since(uid))
        return Traffic(known.history, known.held, self._idle(uid, known))

    def tell(self, uid: str, standing: Standing, *, on_traffic: bool = False) -> None:
        """What there is of the endpoint now; whoever waits for it looks."""
        known = self._of(uid)
        known.on_traffic = on_traffic
        if known.standing != standing:
            known.standing = standing
            known.changed.set()
            known.changed = asyncio.Event()

    def close(self) -> None:
        """Let nobody wait any longer: the platform is stopping."""
        for uid in list(self._known):
            self.tell(uid, STOPPING)

    def forget(self, uid: str) -> None:
        """The endpoint is gone; whoever waits for it hears that."""
        if uid in self._known:
            self.tell(uid, GONE)
            del self._known[uid]

    # --- everybody's --------------------------------------------------------------------------------

    def idle_since(self, uid: str) -> datetime | None:
        """When the last request was over, asleep or awake; None while there is one or nobody can tell."""
        known = self._known.get(uid)
        if known is None:
            return self._idle_since(uid)
        resting = known.standing.rests_since if known.standing is not None else None
        if resting is not None and not known.held and not known.forwarding:
            return resting
        return self._idle(uid, known)

    def _idle(self, uid: str, known: _Known) -> datetime | None:
        measured = self._idle_since(uid)
        if known.held or known.forwarding or measured is None:
            return None
        return max(measured, known.last_forward or measured)

    def _of(self, uid: str) -> _Known:
        return self._known.setdefault(uid, _Known())
