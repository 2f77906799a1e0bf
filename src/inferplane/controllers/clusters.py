"""Keeps an engine running for every registered cluster of Kubernetes, and looks at each of them regularly.

Clusters are registered, changed and forgotten while the platform runs, by any process that works on the same
store. A pass compares what the store says of one cluster with what is connected here: it connects, connects
anew (other credentials), or takes down. What it makes is seen by everybody who holds the mappings of
`RunningEngines`: the endpoint controller, the inventory, the services. Level-triggered like every controller.

A look (`ClusterLink.look`) takes seconds where a cluster is away, so a pass belongs to one cluster and others
go on beside it. What was found is saved where it differs from what is known, and now and then to say that
somebody still looks. Taking down leaves everything in the cluster as it is: it runs on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from inferplane.controllers.inventory import NodeSource
from inferplane.controllers.leases import Holding, Sole
from inferplane.domain.cluster import ClusterConnection, ClusterReport
from inferplane.domain.errors import InferplaneError, NotFound
from inferplane.domain.events import Event
from inferplane.domain.inventory import Node
from inferplane.domain.lease import Fence, cluster_lease
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.workspace import Cluster
from inferplane.engines.away import AwayEngine
from inferplane.engines.clusters import ClusterLink
from inferplane.engines.port import Clock, Engine, EngineError
from inferplane.observability import get_logger
from inferplane.store.sql import Store

ACTOR = "clusters"
LOOK_SECONDS = 30.0
AWAY_LOOK_SECONDS = 10.0
CONNECTING_MAX = 50
STILL_LOOKING = timedelta(minutes=5)
THOROUGH = timedelta(minutes=10)
"""So often everything is asked anew; in between only whether the cluster answers."""

log = get_logger("controllers.clusters")


@dataclass(frozen=True, slots=True)
class Connected:
    """One cluster as it is connected here."""

    engine: Engine
    link: ClusterLink


Connect = Callable[[Cluster, str], Connected]
"""Makes an engine and a link of a cluster and its kubeconfig ("" where none was handed over); contacts nobody.

Raises Invalid for credentials that cannot be meant.
"""


@dataclass(frozen=True, slots=True)
class _Credentials:
    """What a connection was made of; anything else wants another one."""

    connection: ClusterConnection
    domain: str
    ingress_address: str
    kubeconfig: str = field(repr=False)


@dataclass(slots=True)
class RunningEngines:
    """The engines that run, by cluster name: those of the configuration, and those that come and go.

    The mappings are shared with whoever needs them, and changed by the cluster controller only.
    """

    engines: dict[str, Engine] = field(default_factory=dict)
    sources: dict[str, NodeSource] = field(default_factory=dict)
    links: dict[str, ClusterLink] = field(default_factory=dict)


class UntoldNodes:
    """The nodes of a cluster that cannot be connected to: those that are known stay, out of order."""

    def __init__(self, problem: str) -> None:
        self._problem = problem

    async def nodes(self) -> tuple[tuple[Node, ...], str]:
        """None, and why."""
        return (), self._problem


class Links:
    """The links to registered clusters, for services."""

    def __init__(self, running: RunningEngines, connect: Connect, wake: Callable[[str], None]) -> None:
        self._running = running
        self._connect = connect
        self._wake = wake

    def of(self, cluster: str) -> ClusterLink | None:
        """The link to a registered cluster that is connected here."""
        return self._running.links.get(cluster)

    async def try_out(self, cluster: Cluster, kubeconfig: str) -> ClusterReport:
        """What a look at it finds; nothing is kept. Raises Invalid."""
        connected = self._connect(cluster, kubeconfig)
        try:
            return await connected.link.look()
        finally:
            await connected.engine.close(stop_servers=False)
            await connected.link.close()

    def changed(self, cluster: str) -> None:
        """Have a pass now."""
        self._wake(cluster)


class ClusterController:
    """Keys are cluster names.

    `wake(endpoint_uid)` is what engines announce by; `changed(cluster)` hears what came, went or answers again.
    Every control plane is connected to every cluster, and who holds a cluster's lease looks at it: of two that look,
    one might see what the other does not, and they would contradict each other for ever.
    """

    name = "clusters"

    def __init__(
        self,
        store: Store,
        running: RunningEngines,
        connect: Connect,
        clock: Clock,
        *,
        wake: Callable[[str], None],
        changed: Callable[[str], None] = lambda _: None,
        leases: Holding | None = None,
    ) -> None:
        self._store = store
        self._leases = leases or Sole()
        self._running = running
        self._connect = connect
        self._clock = clock
        self._wake = wake
        self._changed = changed
        self._credentials: dict[str, _Credentials] = {}
        self._looked_at: dict[str, datetime] = {}  # when everything was asked last

    async def keys(self) -> Iterable[str]:
        """Every cluster of Kubernetes that is registered, and every one that is connected here."""
        async with self._store.read() as tx:
            registered = {each.name for each in await tx.list_clusters() if each.connection is not None}
        return sorted(registered | set(self._credentials))

    async def connect_all(self) -> None:
        """Connect to every registered cluster, without looking at any: what runs there is known from then on."""
        gate = asyncio.Semaphore(CONNECTING_MAX)

        async def connect(name: str) -> None:
            cluster, kubeconfig = await self._registered(name)
            if cluster is not None:
                async with gate:  # one that is away takes some seconds
                    await self._keep_connected(cluster, kubeconfig)

        await asyncio.gather(*(connect(name) for name in await self.keys()))

    async def reconcile(self, key: str) -> float | None:
        """Connect, connect anew or take down; then look. Returns when to look again."""
        cluster, kubeconfig = await self._registered(key)
        if cluster is None:
            await self._take_down(key)
            return None
        problem = await self._keep_connected(cluster, kubeconfig)
        fence = self._leases.fence(cluster_lease(key))
        if fence is None:
            return LOOK_SECONDS
        link = self._running.links.get(key)
        if problem or link is None:
            now = self._clock()
            found = ClusterReport(now, reachable=False, since=now, message=problem)
        else:
            thorough = self._is_due(key)
            found = await link.look(thorough=thorough)
            if thorough and found.reachable:
                self._looked_at[key] = found.at
                await self._revoke_strangers(key, link)
            elif not found.reachable:
                self._looked_at.pop(key, None)
        await self._save(cluster, found.after(cluster.report), fence)
        return LOOK_SECONDS if found.reachable else AWAY_LOOK_SECONDS

    async def close(self) -> None:
        """Take down every connection; what runs in the clusters runs on."""
        for name in sorted(self._credentials):
            await self._take_down(name)

    def _is_due(self, name: str) -> bool:
        """Whether everything is to be asked: at first, after the cluster was away, and now and then."""
        last = self._looked_at.pop(name, None)
        if last is None or self._clock() - last >= THOROUGH:
            return True
        self._looked_at[name] = last
        return False

    async def _revoke_strangers(self, name: str, link: ClusterLink) -> None:
        """Close the way in for workspaces that are gone, or no longer have this cluster."""
        async with self._store.read() as tx:
            mine = {each.name for each in await tx.list_workspaces() if name in each.clusters}
        try:
            for workspace in sorted(await link.workspaces() - mine):
                await link.revoke_workspace(workspace)
                log.info("a workspace's way into a cluster is closed", cluster=name, workspace=workspace)
        except EngineError as error:  # the others wait for the next thorough look
            log.warning("ways into a cluster could not be closed", cluster=name, error=error.message)

    async def _registered(self, name: str) -> tuple[Cluster | None, str]:
        """The cluster if it is one of Kubernetes, and its kubeconfig."""
        async with self._store.read() as tx:
            try:
                cluster = await tx.get_cluster(name)
            except NotFound:
                return None, ""
            return (cluster if cluster.connection is not None else None), await tx.cluster_kubeconfig(name)

    async def _keep_connected(self, cluster: Cluster, kubeconfig: str) -> str:
        """Have a connection with these credentials; what keeps it from being made, or ""."""
        assert cluster.connection is not None
        wanted = _Credentials(cluster.connection, cluster.domain, cluster.ingress_address, kubeconfig)
        if self._credentials.get(cluster.name) == wanted:
            return ""
        try:
            connected = self._connect(cluster, kubeconfig)
        except InferplaneError as error:
            # What is connected stays: the endpoints' word is better than none.
            if cluster.name not in self._running.engines:
                self._running.engines[cluster.name] = AwayEngine(error.message, self._clock())
                self._running.sources[cluster.name] = UntoldNodes(error.message)
            return error.message
        await self._take_down(cluster.name)
        self._running.links[cluster.name] = connected.link
        self._running.sources[cluster.name] = connected.link
        self._running.engines[cluster.name] = connected.engine
        try:
            await connected.engine.start(self._wake)
        except BaseException:  # the next pass makes a connection of its own and tries again
            problem = "the connection to the cluster could not be started"
            del self._running.links[cluster.name]
            self._running.engines[cluster.name] = AwayEngine(problem, self._clock())
            self._running.sources[cluster.name] = UntoldNodes(problem)
            await connected.engine.close(stop_servers=False)
            await connected.link.close()
            raise
        self._credentials[cluster.name] = wanted  # only of what runs: it is not started again
        log.info("cluster connected", cluster=cluster.name, by=cluster.connection.source)
        self._changed(cluster.name)
        return ""

    async def _take_down(self, name: str) -> None:
        if self._credentials.pop(name, None) is None:
            if isinstance(self._running.engines.get(name), AwayEngine):
                del self._running.engines[name]
                self._running.sources.pop(name, None)
            return
        self._looked_at.pop(name, None)
        engine = self._running.engines.pop(name, None)
        link = self._running.links.pop(name, None)
        self._running.sources.pop(name, None)
        if engine is not None:
            await engine.close(stop_servers=False)
        if link is not None:
            await link.close()
        log.info("cluster disconnected", cluster=name)
        self._changed(name)

    async def _save(self, cluster: Cluster, report: ClusterReport, fence: Fence) -> None:
        """Keep what was found, if it is news, or if nobody has said for a while that somebody looks."""
        before = cluster.report
        if report.says_the_same(before) and before is not None and report.at - before.at < STILL_LOOKING:
            return
        async with self._store.transaction(durable=False, fence=fence) as tx:
            await tx.save_cluster_report(cluster.name, report)
            if before is None or before.reachable != report.reachable:
                await tx.append_event(_event(cluster.name, report))
        if before is None or before.reachable != report.reachable:
            log.info(
                "cluster looked at", cluster=cluster.name, reachable=report.reachable, why=report.message
            )
            self._changed(cluster.name)


def _event(name: str, report: ClusterReport) -> Event:
    if report.reachable:
        said = (
            f"cluster {name} answers: Kubernetes {report.version}"
            if report.version
            else f"cluster {name} answers"
        )
        return Event(report.at, "ClusterReachable", said, ACTOR)
    return Event(
        report.at,
        "ClusterUnreachable",
        f"cluster {name} does not answer: {report.message}",
        ACTOR,
        reason=ReasonCode.CLUSTER_UNREACHABLE,
    )
