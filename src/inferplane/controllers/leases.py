"""The leases that this control plane holds: taken, renewed, lost, given back.

One round about every second, and at once when another process says that it gave leases back: renew what is
held, take what is wanted and free. Whoever is about to act asks `fence` first. It answers by this process's
own steady clock, counted from before the renewal was sent, so a holder that hears nothing from the database
stops before the database lets anybody else begin. What it writes shows the fence (`Store.transaction`), and
what it does in a cluster shows the epoch: a process that was stopped in the midst of a pass changes nothing
when it goes on after its lease has gone.

On SQLite there is one control plane, by the claim on the file; then everything is held (`Sole`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from inferplane.domain.errors import StaleLease
from inferplane.domain.lease import (
    LEASE_LASTS,
    PLATFORM_LEASE,
    RELUCTANT_PATIENCE,
    Fence,
    Lease,
    cluster_lease,
    is_out_of_time,
    to_take,
)
from inferplane.observability import get_logger
from inferplane.store.dialect import Hint
from inferplane.store.sql import Store

AT_ONCE = timedelta(0)
RENEW_SECONDS = 1.0
MARGIN_SECONDS = 1.0
"""So long before a lease would expire nothing is begun under it any more."""
ROUND_SECONDS_MAX = 3.0
"""A round that takes longer is given up: the database is not answering."""

log = get_logger("controllers.leases")


class Holding(Protocol):
    """What controllers need of leases."""

    def fence(self, name: str) -> Fence | None:
        """What to show when writing under this lease; None when it is not ours, so that nothing may be done."""


class Sole:
    """For a control plane that has the database to itself."""

    def fence(self, name: str) -> Fence | None:
        """Everything is ours."""
        return Fence(name)


def check(holding: Holding, fence: Fence) -> None:
    """Raises StaleLease unless the lease is ours, in this epoch, right now."""
    if holding.fence(fence.name) != fence:
        raise StaleLease(f"the lease {fence.name} is not held any more")


def wanted_leases(able: Collection[str]) -> Callable[[Sequence[str]], Mapping[str, timedelta]]:
    """What a control plane wants that has engines for the clusters `able`, which may change.

    Of the others, registered and without an engine here, nobody may have one: then their endpoints are wound
    down by somebody. Those who have one go first.
    """

    def wanted(registered: Sequence[str]) -> Mapping[str, timedelta]:
        names = {cluster_lease(each): RELUCTANT_PATIENCE for each in registered}
        names |= {cluster_lease(each): AT_ONCE for each in able}
        return {PLATFORM_LEASE: AT_ONCE, **names}

    return wanted


@dataclass(frozen=True, slots=True)
class _Held:
    epoch: int
    until: float  # by the steady clock


class Leases:
    """Holds for `holder` the leases that `wanted`, given the registered clusters, says: names, with how long
    each must have been free before.

    A lease for which somebody has to be patient is not renewed, so that others get their turn. `holder`
    must be of one process at a time; the same one after a restart takes its leases again at once.
    `ticks` is a steady clock in seconds. `gained` and `lost` are told the name, on the event loop.
    """

    def __init__(
        self,
        store: Store,
        holder: str,
        wanted: Callable[[Sequence[str]], Mapping[str, timedelta]],
        ticks: Callable[[], float],
        *,
        gained: Callable[[str], None] = lambda _: None,
        lost: Callable[[str], None] = lambda _: None,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._store = store
        self._holder = holder
        self._wanted = wanted
        self._ticks = ticks
        self._gained = gained
        self._lost = lost
        self._now = now  # None: the database's
        self._held: dict[str, _Held] = {}
        self._told: set[str] = set()  # names of which `gained` was told and `lost` was not
        self._refused: set[str] = set()  # names of which somebody was told since that they are not ours
        self._out_of_time: dict[
            str, tuple[Lease, float]
        ] = {}  # as seen since that moment by the steady clock
        self._hint = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stop_hints: Callable[[], None] = lambda: None

    def fence(self, name: str) -> Fence | None:
        """See `Holding`."""
        held = self._held.get(name)
        if held is None or self._ticks() >= held.until - MARGIN_SECONDS:
            self._refused.add(name)
            return None
        return Fence(name, self._holder, held.epoch)

    async def start(self) -> None:
        """Take what is free at once, then go on by itself. Raises Unavailable."""
        await self.round()
        self._stop_hints = self._store.on_hint(self._on_hint)
        self._task = asyncio.create_task(self._go_on(), name="leases")

    async def close(self) -> None:
        """Let others have what is held. Nothing may be done under it any more."""
        self._stop_hints()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        held, self._held = {name: each.epoch for name, each in self._held.items()}, {}
        if not held:
            return
        try:
            async with asyncio.timeout(ROUND_SECONDS_MAX), self._store.transaction() as tx:
                now = await tx.database_now() if self._now is None else self._now()
                await tx.release_leases(held, self._holder, now)
        except Exception as error:  # noqa: BLE001 - whatever it was, they expire by themselves
            log.warning("leases could not be given back", error=str(error))

    async def round(self) -> None:
        """Renew what is held and take what is free. Raises Unavailable."""
        began = self._ticks()
        until = began + LEASE_LASTS.total_seconds()
        async with self._store.transaction(durable=False) as tx:
            wanted = self._wanted(await tx.cluster_names())
            # What somebody has to be patient for is only borrowed, and ends by itself.
            mine = {
                name: each.epoch
                for name, each in self._held.items()
                if wanted.get(name, RELUCTANT_PATIENCE) == AT_ONCE
            }
            now = await tx.database_now() if self._now is None else self._now()
            ours = await tx.renew_leases(mine, self._holder, now, LEASE_LASTS)
            leases = await tx.list_leases()
        # A lease that went to somebody else, or is wanted no longer, is not held.
        kept = {name: _Held(mine[name], until) for name in ours}
        kept |= {
            name: each
            for name, each in self._held.items()
            if wanted.get(name, AT_ONCE) != AT_ONCE and each.until > began
        }
        self._held = kept
        for found in to_take(
            leases, wanted, self._holder, self._held, now, self._unchanged(leases, now, began)
        ):
            await self._take(found)
        self._tell()

    def _unchanged(self, leases: list[Lease], now: datetime, ticks: float) -> dict[str, timedelta]:
        """How long each lease that is out of time has been seen as it is."""
        seen = {each.name: (each, ticks) for each in leases if is_out_of_time(each, now)}
        before = self._out_of_time
        self._out_of_time = {
            name: before[name] if name in before and before[name][0] == each else (each, since)
            for name, (each, since) in seen.items()
        }
        return {name: timedelta(seconds=ticks - since) for name, (_, since) in self._out_of_time.items()}

    def _on_hint(self, hint: Hint) -> None:
        if hint is Hint.LEASES:
            self._hint.set()

    async def _take(self, found: Lease | str) -> None:
        name, epoch = (found, 0) if isinstance(found, str) else (found.name, found.epoch)
        began = self._ticks()
        async with self._store.transaction() as tx:
            now = await tx.database_now() if self._now is None else self._now()
            taken = await tx.take_lease(name, epoch, self._holder, now, LEASE_LASTS)
        if taken is not None:
            self._held[name] = _Held(taken, began + LEASE_LASTS.total_seconds())

    def _tell(self) -> None:
        """Tell of what has changed hands, and of what was not to be used for a while and is again."""
        told = self._told - self._refused  # whoever was sent away in between has to be called back
        self._refused = set()
        usable = {name for name in self._held if self.fence(name) is not None}
        for name in sorted(self._told - usable):
            log.info("a lease has gone", lease=name)
            self._lost(name)
        for name in sorted(usable - told):
            log.info("a lease is ours", lease=name, epoch=self._held[name].epoch)
            self._gained(name)
        self._told = usable

    async def _go_on(self) -> None:
        answering = True
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_SECONDS):
                    await self._hint.wait()
            self._hint.clear()
            try:
                async with asyncio.timeout(ROUND_SECONDS_MAX):
                    await self.round()
                answering = True
            except Exception as error:  # noqa: BLE001 - the loop must outlive whatever the database does
                if answering:
                    log.warning("leases cannot be renewed", error=str(error) or type(error).__name__)
                answering = False
                self._tell()
