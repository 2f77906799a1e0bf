"""The admission controller's shell: read everything, plan, save, tell.

There is one key, because who gets GPUs depends on everybody. A pass reads one picture from the store,
lets `admission_plan.plan` decide, and saves all changes with their events in one transaction. Each is
guarded by its row's version, and all of them by the generation of what they were decided from: if another
pass was saved in between, or nodes, policies or workspaces changed, nothing is saved and the pass is made
again. So no GPU is granted twice even where two platforms should ever work on one database.
Then those that still wait are told where they stand.

Whoever runs this wakes it on every change that the store announces: a request, an endpoint, nodes, a
policy. The work of a pass is done in a thread, and a pass that took long is followed by a rest as
long, so that a huge queue slows only itself.

What is kept in memory is only there to save work: what was last said of each wait, and when to rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from inferplane.controllers.admission_plan import (
    NODE_GRACE,
    AdmissionPlan,
    Picture,
    RequestChange,
    notes,
    plan,
)
from inferplane.controllers.endpoint_news import PlannedEvent
from inferplane.controllers.leases import Holding, Sole
from inferplane.domain.events import Event
from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus
from inferplane.domain.lease import PLATFORM_LEASE, Fence
from inferplane.domain.wait_note import WaitNote
from inferplane.engines.port import Clock
from inferplane.observability import get_logger
from inferplane.scheduler import Snapshot, Switches
from inferplane.scheduler.ordering import usage_now
from inferplane.store.sql import Store, Tx

ACTOR = "admission"
CYCLE = "cycle"
IdleSince = Callable[[str], datetime | None]
GrantIdleSince = Callable[[Grant], datetime | None]

log = get_logger("controllers.admission")


@dataclass(frozen=True, slots=True)
class Pace:
    """How much work at most, in real seconds.

    Waits are put into words every `tell_seconds`: that takes a simulation of everything that lies ahead.
    A pass that took longer than `short_pass_seconds` is followed by a rest as long as it took.
    """

    tell_seconds: float = 1.0
    short_pass_seconds: float = 0.05


class AdmissionController:
    """Gives GPUs to requests and takes them back. Its only key is CYCLE.

    `idle_since(endpoint_uid)` is when the endpoint's GPUs were last used; None means that they are in use,
    or that nobody knows. `grant_idle_since` says the same of GPUs that a request without an endpoint holds.
    Without them nobody is ever idle. `switches` are the scheduler's. `speed` is how
    many seconds of `clock` go by in a real one; the pace is a matter of real ones. `leases` say whether this
    control plane is the one that gives out GPUs.
    """

    name = "admission"

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        switches: Switches | None = None,
        idle_since: IdleSince | None = None,
        grant_idle_since: GrantIdleSince | None = None,
        speed: float = 1.0,
        pace: Pace | None = None,
        leases: Holding | None = None,
    ) -> None:
        self._store = store
        self._leases = leases or Sole()
        self._epoch: int | None = None  # in which the memory below was made
        self._clock = clock
        self._switches = switches or Switches()
        self._idle_since = idle_since
        self._grant_idle_since = grant_idle_since
        self._speed = speed
        self._pace = pace or Pace()
        self._said: dict[str, WaitNote] | None = None  # None: what the store has is not read yet
        self._tell_at = 0.0
        self._rest_until = 0.0
        self._awake_since: datetime | None = None

    async def keys(self) -> Iterable[str]:
        """The one there is."""
        return (CYCLE,)

    async def reconcile(self, key: str) -> float | None:
        """One pass over all requests; returns when to look again. Raises StaleVersion."""
        assert key == CYCLE
        began = time.monotonic()
        if began < self._rest_until:
            return (self._rest_until - began) * self._speed
        fence = self._leases.fence(PLATFORM_LEASE)
        if fence is None:  # somebody else gives out GPUs; taking over wakes this again
            return None
        if fence.epoch != self._epoch:
            self._epoch, self._said, self._awake_since = fence.epoch, None, None
        try:
            return await self._pass(fence)
        finally:  # a pass that was in vain took as long as another
            took = time.monotonic() - began
            if took > self._pace.short_pass_seconds:
                self._rest_until = began + 2 * took

    async def _pass(self, fence: Fence) -> float | None:
        async with self._store.read() as tx:
            picture = await self._read(tx)
            if self._said is None:
                self._said = await tx.wait_notes()
        if picture is None:
            self._said = {}
            return None
        decided = await asyncio.to_thread(plan, picture)
        if decided.changes:
            await save_changes(self._store, decided.changes, picture, fence)
        pauses = [decided.look_again_seconds, await self._tell(decided, fence)]
        return min((pause for pause in pauses if pause is not None), default=None)

    async def _read(self, tx: Tx) -> Picture | None:
        """The picture; None where there is no request, which is how most platforms are most of the time.

        The generation comes first: should anything below be newer, saving fails, and nothing is older.
        Then requests: an endpoint that is read later may know more than they do, never less.
        """
        generation = await tx.generation()
        requests = await tx.list_gpu_requests(live_only=True)
        if not requests:
            return None
        uids = sorted({each.endpoint_uid for each in requests if each.endpoint_uid})
        snapshot = Snapshot(
            now=self._clock(),
            nodes=tuple(await tx.list_nodes()),
            requests=tuple(requests),
            policies={each.workspace: each for each in await tx.list_policies()},
            usable_clusters={each.name: frozenset(each.clusters) for each in await tx.list_workspaces()},
            switches=self._switches,
        )
        used = usage_now(snapshot, await tx.load_usage(), await tx.usage_at())
        measured = {} if self._idle_since is None else {uid: self._idle_since(uid) for uid in uids}
        if self._grant_idle_since is not None:
            measured |= {
                each.id: self._grant_idle_since(each.grant)
                for each in requests
                if not each.endpoint_uid and each.enforce_idle and each.grant is not None
            }
        self._awake_since = self._awake_since or snapshot.now
        endpoints = await tx.endpoints_by_uid(uids)
        clusters = {
            each.name: each.report for each in await tx.list_clusters() if each.connection is not None
        }
        for uid, endpoint in endpoints.items():
            if (
                endpoint.cluster in clusters
            ):  # its requests take the cluster's own ingress: nobody here sees them
                measured.pop(uid, None)
        answering = frozenset(
            name
            for name, report in clusters.items()
            if report is not None and report.reachable and snapshot.now - report.since >= NODE_GRACE
        )
        return Picture(
            replace(snapshot, usage=used), endpoints, measured, self._awake_since, generation, answering
        )

    async def _tell(self, decided: AdmissionPlan, fence: Fence) -> float | None:
        """Tell those that wait where they stand, if it is time; returns when it will be, if it is not."""
        assert self._said is not None
        waiting = {each.id for each in decided.snapshot.requests if each.status is ProvisioningStatus.QUEUED}
        # Who left the line has no note in the store any more; coming back, it has to be told anew.
        self._said = {each: note for each, note in self._said.items() if each in waiting}
        if not waiting:
            return None
        began = time.monotonic()
        if began < self._tell_at:
            return (self._tell_at - began) * self._speed
        news = await asyncio.to_thread(notes, decided, self._said)
        if news:
            async with self._store.transaction(durable=False, fence=fence) as tx:
                await tx.save_wait_notes(news)
            self._said |= news
        pause = max(self._pace.tell_seconds, time.monotonic() - began)
        self._tell_at = time.monotonic() + pause
        return pause * self._speed if waiting - self._said.keys() else None


async def save_changes(
    store: Store, changes: tuple[RequestChange, ...], picture: Picture, fence: Fence | None = None
) -> None:
    """All or nothing. Raises StaleVersion where `picture`, from which they were decided, no longer holds, and
    StaleLease where somebody else gives out GPUs now.

    What was used up to now is saved along: from here on others may hold GPUs than until here.
    """
    snapshot = picture.snapshot
    relied_on = {change.relies_on.uid: change.relies_on for change in changes if change.relies_on}
    async with store.transaction(fence=fence) as tx:
        await tx.advance_generation(picture.generation)
        for uid, endpoint in sorted(relied_on.items()):
            # Writes nothing new: it fails if the row was changed, and makes who changes it now try again.
            await tx.save_endpoint_status(uid, endpoint.version, endpoint.status)
        for change in changes:
            await _save_request(tx, change)
        await tx.save_usage(snapshot.usage, snapshot.now)
        for change in changes:
            for event in change.events:
                await tx.append_event(_event(change, event, snapshot.now))
    for change in changes:
        for event in change.events:
            log.info(event.message, kind=event.kind)


async def _save_request(tx: Tx, change: RequestChange) -> None:
    if change.after is None:
        assert change.before is not None
        await tx.save_gpu_request(change.before)  # deleting has no guard of its own
        await tx.delete_gpu_request(change.before.id)
    elif change.before is None:
        await tx.insert_gpu_request(change.after)
    else:
        await tx.save_gpu_request(change.after)


def _event(change: RequestChange, event: PlannedEvent, now: datetime) -> Event:
    about = change.after or change.before
    assert isinstance(about, GpuRequest)
    return Event(
        at=now,
        kind=event.kind,
        message=event.message,
        actor=ACTOR,
        workspace=about.workspace,
        endpoint=about.endpoint_name,
        endpoint_uid=about.endpoint_uid,
        reason=event.reason,
        data=event.data,
        gpu_request_id=about.id,
    )
