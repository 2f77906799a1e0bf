"""Workspaces, and the clusters they may use. *Workspace* = *slice workspace* = `sliceName`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from inferplane.domain.cluster import ClusterConnection, ClusterReport


@dataclass(frozen=True, slots=True)
class Workspace:
    """A tenant: who shares endpoints, and on which clusters. `namespaces` are Kubernetes' own."""

    name: str
    clusters: tuple[str, ...]
    created_at: datetime
    namespaces: tuple[str, ...] = ()
    username: str = ""
    email: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where model servers run. `engine` is `local`, `kserve` or `simulated`.

    `connection` is None for what is no Kubernetes. `ingress_address` is where requests to its endpoints go, ""
    where the cluster itself says so. `report` is what was found when it was last looked at.
    """

    name: str
    engine: str
    created_at: datetime
    domain: str = ""
    ingress_address: str = ""
    connection: ClusterConnection | None = None
    report: ClusterReport | None = None


@dataclass(frozen=True, slots=True)
class WorkspacePolicy:
    """What an Owner allows one workspace. None and () mean: no limit beyond the platform's own.

    `max_gpus_per_request` counts the GPUs of all nodes of one request; `max_memory_gb_per_request` adds
    up the memory of all of them. `max_requests` bounds the requests that have not ended, `max_queued`
    those among them that wait. `auto_eviction` lets every request of the workspace take part in
    eviction, whether it says so itself or not.
    """

    workspace: str
    priority_lowest: int = 1
    priority_highest: int = 299
    max_requests: int | None = None
    max_queued: int = 100
    max_exit_duration: timedelta | None = None
    gpu_shapes: tuple[str, ...] = ()
    max_gpus_per_request: int | None = None
    max_memory_gb_per_request: int | None = None
    max_endpoints: int | None = None
    requeue_on_failure: bool = False
    auto_eviction: bool = False
    enforce_idle_timeout: bool = False
