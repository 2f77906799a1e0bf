"""Clusters: where model servers run, and what they have of GPUs.

Those of the configuration file are registered at every start, with an engine behind them. One that is
registered here is known and can be given to workspaces; it works once an engine runs for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from inferplane.domain.access import Caller, Role, Verb
from inferplane.domain.errors import AlreadyExists, Conflict, NotFound, Problem
from inferplane.domain.inventory import node_uses
from inferplane.domain.names import check_name
from inferplane.domain.workspace import Cluster
from inferplane.services.context import Platform
from inferplane.services.findings import Findings, check_optional_text
from inferplane.services.trail import entry, facts

ENGINES = ("local", "simulated")
KSERVE = "kserve"
IN_THE_FILE = "Declare it as [[cluster]] in the configuration file and start again."
SHOWN_MAX = 50


@dataclass(frozen=True, slots=True)
class Capacity:
    """Nodes and GPUs of a cluster; `free` are the GPUs that a new request could have."""

    nodes: int = 0
    gpus: int = 0
    free: int = 0


@dataclass(frozen=True, slots=True)
class ClusterSeen:
    """A cluster, what it has, and what keeps it from being used ("" for nothing)."""

    cluster: Cluster
    capacity: Capacity
    problem: str


@dataclass(frozen=True, slots=True)
class ClusterDraft:
    """What is asked of a cluster."""

    name: str
    engine: str
    domain: str = ""
    connection: str = ""


async def list_clusters(platform: Platform, caller: Caller) -> list[ClusterSeen]:
    """All for an Owner, those of one's workspace otherwise; by name."""
    caller.require(Verb.READ_CLUSTERS)
    async with platform.store.read() as tx:
        clusters = await tx.list_clusters()
        if caller.role is not Role.OWNER:
            mine = (await tx.get_workspace(caller.workspace)).clusters
            clusters = [each for each in clusters if each.name in mine]
        uses = node_uses(await tx.list_nodes(), await tx.list_gpu_requests(live_only=True))
    capacities: dict[str, Capacity] = {}
    for use in uses:
        so_far = capacities.get(use.node.cluster, Capacity())
        capacities[use.node.cluster] = Capacity(
            so_far.nodes + 1, so_far.gpus + use.node.gpu_count, so_far.free + len(use.free)
        )
    return [
        ClusterSeen(each, capacities.get(each.name, Capacity()), problem_of(platform, each))
        for each in clusters
    ]


async def register(platform: Platform, caller: Caller, draft: ClusterDraft) -> str:
    """Make a cluster known; returns its name. Raises Invalid with all details, AlreadyExists."""
    caller.require(Verb.MANAGE_CLUSTERS)
    findings = Findings()
    findings.check(check_name, draft.name, "name")
    findings.check(check_optional_text, draft.domain, "domain", platform.limits.text_characters_max)
    if draft.engine == KSERVE or draft.connection:
        findings.add(
            "clusters of Kubernetes cannot be connected yet",
            field="engine" if draft.engine == KSERVE else "kubeconfigRef",
            reason="NotAvailableYet",
            next_action=f"Use one of the engines {', '.join(ENGINES)}.",
        )
    elif draft.engine not in ENGINES:
        findings.add(
            f"“{draft.engine[:40]}” is no engine",
            field="engine",
            reason="UnknownEngine",
            next_action=f"Use one of {', '.join(ENGINES)}.",
        )
    findings.raise_any()
    now = platform.clock()
    cluster = Cluster(draft.name, draft.engine, now, draft.domain.strip())
    async with platform.store.transaction() as tx:
        if draft.name in {each.name for each in await tx.list_clusters()}:
            raise AlreadyExists(
                f"cluster {draft.name} is registered already", reason="ClusterExists", field="name"
            )
        await tx.put_cluster(cluster)
        await tx.append_event(
            entry(
                now, caller, "ClusterRegistered", f"cluster {draft.name} was registered", after=facts(cluster)
            )
        )
    return draft.name


async def unregister(platform: Platform, caller: Caller, name: str) -> None:
    """Forget a cluster that nobody uses. Raises NotFound, Conflict."""
    caller.require(Verb.MANAGE_CLUSTERS)
    async with platform.store.transaction() as tx:
        known = {each.name: each for each in await tx.list_clusters()}
        if name not in known:
            raise NotFound(f"cluster {name[:80]} is not registered", reason="ClusterNotFound", field="name")
        if name in platform.engines:
            raise Conflict(
                f"an engine is running for cluster {name}",
                reason="ClusterDeclared",
                field="name",
                next_action="Take it out of the configuration file, start again, then delete it.",
            )
        using = [each.name for each in await tx.list_workspaces() if name in each.clusters]
        if using:
            raise Conflict(
                f"cluster {name} is used by workspaces: {', '.join(using[:SHOWN_MAX])}",
                reason="ClusterInUse",
                field="name",
                next_action="Take it from them first.",
                details=tuple(
                    Problem("workspaceName", "UsesCluster", f"workspace {each} uses it")
                    for each in using[:SHOWN_MAX]
                ),
            )
        await tx.delete_cluster(name)
        await tx.append_event(
            entry(
                platform.clock(),
                caller,
                "ClusterDeleted",
                f"cluster {name} was forgotten",
                before=facts(known[name]),
            )
        )


def problem_of(platform: Platform, cluster: Cluster) -> str:
    """What keeps the cluster from being used, or ""."""
    if cluster.name in platform.engines:
        return ""
    return f"no engine is running for cluster {cluster.name}. {IN_THE_FILE}"
