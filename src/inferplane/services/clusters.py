"""Clusters: where model servers run."""

from __future__ import annotations

from inferplane.domain.access import Caller, Role, Verb
from inferplane.domain.workspace import Cluster
from inferplane.services.context import Platform


async def list_clusters(platform: Platform, caller: Caller) -> list[Cluster]:
    """All for an Owner, those of one's workspace otherwise; by name."""
    caller.require(Verb.READ_CLUSTERS)
    async with platform.store.read() as tx:
        clusters = await tx.list_clusters()
        if caller.role is Role.OWNER:
            return clusters
        mine = (await tx.get_workspace(caller.workspace)).clusters
    return [cluster for cluster in clusters if cluster.name in mine]


def problem_of(platform: Platform, cluster: Cluster) -> str:
    """What keeps the cluster from being used, or ""."""
    return "" if cluster.name in platform.engines else f"no engine is running for cluster {cluster.name}"
