"""The endpoint controller's shell: load, observe, plan, save, apply.

One pass per endpoint and wake-up. The decision is `endpoint_plan.plan`; this module only gathers
its inputs and performs its outcome, in an order that a `kill -9` between any two lines survives:
the status (with its failure counts and events) is saved before the actions are taken, and every
action is harmless when taken twice.

An endpoint whose cluster is configured no longer has no engine. It is wound down: what is left of the cluster
on this machine (`retired`) is ended, and deletes, stops and drains come to their end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

from inferplane.controllers.endpoint_gpus import NO_GPUS, EndpointGpus, gpus_of
from inferplane.controllers.endpoint_news import PlannedEvent
from inferplane.controllers.endpoint_plan import NOBODY_ASKED, Plan, plan, plan_without_engine
from inferplane.controllers.endpoint_routes import routes_of, with_keys
from inferplane.controllers.leases import Holding, Sole, check
from inferplane.domain.endpoint import (
    EndpointStatus,
    InferenceEndpoint,
    PublicStatus,
    ReplicaId,
    public_state,
)
from inferplane.domain.endpoint_access import Access, EndpointKey
from inferplane.domain.errors import StaleLease
from inferplane.domain.events import Event
from inferplane.domain.lease import Fence, cluster_lease
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.rollout import RevisionTraffic
from inferplane.engines.port import (
    Action,
    Clock,
    Engine,
    EngineAway,
    EngineError,
    FetchModel,
    Observation,
    StartReplica,
    Target,
)
from inferplane.gateway.demand import Demand, Standing
from inferplane.gateway.route_table import EndpointRoutes
from inferplane.observability import get_logger
from inferplane.store.sql import Store, Tx

ACTOR = "controller"
JANITOR_SECONDS = 60.0
ENGINE_RETRY_SECONDS = 2.0
HOPELESS = frozenset({PublicStatus.FAILED, PublicStatus.STOPPED, PublicStatus.TERMINATING})

log = get_logger("controllers.endpoints")


class Routes(Protocol):
    """What the controller needs of the gateway."""

    def set(self, routes: EndpointRoutes) -> None:
        """Have these routes for their endpoint."""

    def remove(self, uid: str) -> None:
        """Have no routes for the endpoint."""

    def confirmed(self, uid: str) -> EndpointRoutes | None:
        """The routes by which requests may still be sent."""


class EndpointController:
    """Brings endpoints to what their specs say. Keys are endpoint uids.

    `engines` are those of the configured clusters, `retired` those of clusters that were configured once
    and may have something left here. Both by cluster name; one name may be in both, when a cluster was
    given another engine. `leases` say for which clusters this control plane is the one that acts: of others'
    endpoints it does nothing at all. `by_revision` tells what the gateway saw of each revision in the last window of so much time.
    """

    name = "endpoints"

    def __init__(
        self,
        store: Store,
        engines: Mapping[str, Engine],
        routes: Routes,
        clock: Clock,
        *,
        retired: Mapping[str, Engine] | None = None,
        demand: Demand | None = None,
        by_revision: Callable[[str, timedelta], Mapping[int, RevisionTraffic]] | None = None,
        leases: Holding | None = None,
    ) -> None:
        self._store = store
        self._leases = leases or Sole()
        self._engines = engines
        self._retired = retired or {}
        self._demand = demand or Demand(clock, lambda _: None)
        self._by_revision = by_revision or (lambda _uid, _window: NOBODY_ASKED)
        self._routes = routes
        self._clock = clock
        self._janitor: asyncio.Task[None] | None = None

    async def keys(self) -> Iterable[str]:
        """Every endpoint the store knows, of clusters that are ours to look after."""
        async with self._store.read() as tx:
            clusters = await tx.endpoint_clusters()
        ours = {each for each in set(clusters.values()) if self._fence(each) is not None}
        return [uid for uid, cluster in clusters.items() if cluster in ours]

    async def keys_of(self, cluster: str) -> list[str]:
        """Every endpoint of the cluster."""
        async with self._store.read() as tx:
            clusters = await tx.endpoint_clusters()
        return [uid for uid, each in clusters.items() if each == cluster]

    def _fence(self, cluster: str) -> Fence | None:
        return self._leases.fence(cluster_lease(cluster))

    async def restore_routes(self) -> None:
        """Give the gateway the routes of the last run, before anything is published.

        Without this a restart of ours would publish an empty table and stop traffic for a moment.
        """
        async with self._store.read() as tx:
            endpoints = await tx.list_endpoints()
            now = self._clock()
            for endpoint in endpoints:
                if endpoint.deletion_requested_at is None:
                    keys = await tx.keys_that_matter(endpoint, now)
                    self._routes.set(with_keys(routes_of(endpoint), keys))

    async def reconcile(self, key: str) -> float | None:
        """Take the next step for one endpoint; return when to look again."""
        async with self._store.read() as tx:
            endpoint = await tx.get_endpoint_by_uid(key)
            gpus = await _read_gpus(tx, endpoint) if endpoint is not None else NO_GPUS
        if endpoint is None:
            self._routes.remove(key)
            self._demand.forget(key)
            return None
        fence = self._fence(endpoint.cluster)
        if fence is None:  # whoever holds the lease does it; taking it over wakes every key
            return None
        engine = self._engines.get(endpoint.cluster)
        rollout = endpoint.spec.rollout
        asked = NOBODY_ASKED if rollout is None else self._by_revision(key, rollout.guard.window)
        decide = partial(plan, traffic=self._demand.traffic(key), by_revision=asked)
        if engine is None:
            engine, decide = self._retired.get(endpoint.cluster), partial(plan_without_engine)
        now = self._clock()
        # After the store was read: what is seen is newer than what is known of the GPUs, never older.
        observation = Observation() if engine is None else await engine.observe(key)
        next_step = decide(endpoint, observation, self._routes.confirmed(key), now, gpus)
        return await self._perform(endpoint, engine, next_step, now, fence)

    async def _perform(
        self,
        endpoint: InferenceEndpoint,
        engine: Engine | None,
        next_step: Plan,
        now: datetime,
        fence: Fence,
    ) -> float | None:
        if next_step.finished:
            await self._finish(endpoint, now, fence)
            return None
        endpoint = await self._save(endpoint, next_step.status, next_step.events, now, fence)
        if next_step.routes is None:
            self._routes.remove(endpoint.uid)
        else:
            self._routes.set(with_keys(next_step.routes, await self._keys_of(endpoint)))
        self._demand.tell(endpoint.uid, standing_of(endpoint, next_step), on_traffic=next_step.on_traffic)
        if engine is None:
            assert not next_step.actions, "of what is not there nothing is left to do"
            return next_step.look_again_seconds
        return await self._apply(endpoint, engine, next_step, fence)

    async def _keys_of(self, endpoint: InferenceEndpoint) -> list[EndpointKey]:
        """Read last: a key that was revoked meanwhile is refused by the routes of this very step."""
        if endpoint.spec.access is Access.OPEN:
            return []
        async with self._store.read() as tx:
            return await tx.keys_that_matter(endpoint, self._clock())

    async def _apply(
        self, endpoint: InferenceEndpoint, engine: Engine, next_step: Plan, fence: Fence
    ) -> float | None:
        if not next_step.actions:  # as most passes have it: then nobody needs the secret either
            return next_step.look_again_seconds
        async with self._store.read() as tx:
            target = Target(endpoint, await tx.endpoint_secret(endpoint.uid))
        try:
            for action in next_step.actions:
                check(self._leases, fence)
                await engine.apply(_at_revision(target, action), action)
        except EngineAway as error:
            log.warning("a cluster does not answer", cluster=endpoint.cluster, error=error.message)
            return ENGINE_RETRY_SECONDS
        except EngineError as error:
            log.warning(
                "engine refused a step", endpoint=endpoint.name, uid=endpoint.uid, error=error.message
            )
            await self._save_problem(endpoint, ReasonCode.ENGINE_ERROR, error.message, fence)
            return ENGINE_RETRY_SECONDS
        return next_step.look_again_seconds

    async def _save(
        self,
        endpoint: InferenceEndpoint,
        status: EndpointStatus,
        events: tuple[PlannedEvent, ...],
        now: datetime,
        fence: Fence,
    ) -> InferenceEndpoint:
        """Write status and events in one transaction, unless nothing changed. Raises StaleVersion, StaleLease.

        Not durable: after a power cut the world is observed anew anyway.
        """
        if status == endpoint.status and not events:
            return endpoint
        async with self._store.transaction(durable=False, fence=fence) as tx:
            version = await tx.save_endpoint_status(endpoint.uid, endpoint.version, status)
            for event in events:
                await tx.append_event(_event(endpoint, event, now))
        return replace(endpoint, status=status, version=version)

    async def _save_problem(
        self, endpoint: InferenceEndpoint, reason: ReasonCode, message: str, fence: Fence
    ) -> None:
        status = replace(
            endpoint.status,
            observed_generation=endpoint.generation,
            problem=reason,
            problem_message=message,
        )
        changed = status != endpoint.status
        events = (PlannedEvent("EndpointProblem", message, reason),) if changed else ()
        await self._save(endpoint, status, events, self._clock(), fence)

    async def _finish(self, endpoint: InferenceEndpoint, now: datetime, fence: Fence) -> None:
        said = "nothing is left of it"
        if endpoint.cluster not in self._engines:
            said += f" here; cluster {endpoint.cluster} is not configured, so it was not asked"
        async with self._store.transaction(fence=fence) as tx:
            await tx.remove_endpoint(endpoint.uid)
            await tx.append_event(_event(endpoint, PlannedEvent("EndpointDeleted", said), now))
        self._routes.remove(endpoint.uid)
        self._demand.forget(endpoint.uid)
        log.info("endpoint deleted", endpoint=endpoint.name, workspace=endpoint.workspace, uid=endpoint.uid)

    # --- what no endpoint owns ---------------------------------------------------------------------

    def start_janitor(self) -> None:
        """Clear away what engines hold for endpoints that the store does not know, now and regularly."""
        self._janitor = asyncio.create_task(self._sweep_forever())

    async def close(self) -> None:
        """Stop the janitor."""
        if self._janitor is not None:
            self._janitor.cancel()
            await asyncio.gather(self._janitor, return_exceptions=True)
            self._janitor = None

    async def sweep_orphans(self) -> None:
        """One sweep. Engines are asked first: an endpoint's row is there before anything of it is."""
        for cluster, engine in (*sorted(self._engines.items()), *sorted(self._retired.items())):
            fence = self._fence(cluster)
            if fence is None:
                continue
            owned = await engine.owned()
            async with self._store.read() as tx:
                known = set(await tx.endpoint_uids())
            if engine is self._retired.get(cluster):
                known -= await self._served_elsewhere(cluster)
            for uid in sorted(owned - known):
                log.warning("clearing away what no endpoint owns", cluster=cluster, uid=uid)
                try:
                    check(self._leases, fence)
                    await engine.release_orphan(uid)
                except EngineError as error:  # the others go; the next sweep tries this one again
                    log.warning("an orphan stays for now", cluster=cluster, uid=uid, error=error.message)

    async def _served_elsewhere(self, cluster: str) -> set[str]:
        """Endpoints of a retired engine's cluster that another engine, of the same name, serves now."""
        if cluster not in self._engines:
            return set()
        async with self._store.read() as tx:
            return {each.uid for each in await tx.list_endpoints(cluster=cluster)}

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self.sweep_orphans()
            except StaleLease as error:  # whoever has it now sweeps
                log.info("sweep ended early", why=error.message)
            except Exception:  # one failed sweep must not end the janitor; the next one tries again
                log.exception("sweep failed")
            await asyncio.sleep(JANITOR_SECONDS)


def _at_revision(target: Target, action: Action) -> Target:
    """The target as of the revision that the step is about."""
    match action:
        case FetchModel(revision) | StartReplica(ReplicaId(revision=revision)):
            return replace(target, endpoint=target.endpoint.at_revision(revision))
        case _:
            return target


async def _read_gpus(tx: Tx, endpoint: InferenceEndpoint) -> EndpointGpus:
    """What the endpoint's GPU requests say; nothing for an endpoint that never had any."""
    if endpoint.spec.gpu is None and endpoint.status.gpu is None:
        return NO_GPUS
    requests = await tx.list_gpu_requests(endpoint_uid=endpoint.uid)
    if not requests:
        return NO_GPUS
    newest = requests[-1].id
    notes = await tx.wait_notes([newest])
    return gpus_of(requests, notes.get(newest), await tx.get_policy(endpoint.workspace))


def _event(endpoint: InferenceEndpoint, event: PlannedEvent, now: datetime) -> Event:
    return Event(
        at=now,
        kind=event.kind,
        message=event.message,
        actor=ACTOR,
        workspace=endpoint.workspace,
        endpoint=endpoint.name,
        endpoint_uid=endpoint.uid,
        reason=event.reason,
        data=event.data,
    )


def standing_of(endpoint: InferenceEndpoint, step: Plan) -> Standing:
    """What those who hold a request for it should know: where to send it, or why they wait."""
    addresses = tuple(upstream.address for upstream in step.routes.upstreams) if step.routes else ()
    scale = endpoint.status.scale
    rests_since = None
    if endpoint.is_asleep and scale is not None:
        rests_since = scale.last_request_at or scale.since
    if addresses:
        return Standing(addresses, rests_since=rests_since)
    state = public_state(endpoint)
    return Standing(
        reason=state.reason.value if state.reason is not None else state.status.value,
        message=state.message,
        next_action=state.next_action,
        hopeless=state.status in HOPELESS,
        rests_since=rests_since,
        next_retry_at=state.next_retry_at,
    )
