"""Workspaces and clusters on the wire. Workspace = slice workspace."""

from __future__ import annotations

from datetime import datetime

import msgspec

from inferplane.wire.endpoints import CheckItem


class WriteWorkspace(msgspec.Struct, frozen=True, rename="camel"):
    """`POST` and `PUT /slice-workspace`. A PUT replaces clusters and namespaces."""

    workspace_name: str
    clusters: list[str]
    namespaces: list[str]
    username: str
    email: str


class UpdateWorkspace(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`PUT /slice-workspace`: what is absent stays as it is."""

    workspace_name: str
    clusters: list[str] | None = None
    namespaces: list[str] | None = None
    username: str | None = None
    email: str | None = None


class WorkspaceName(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to a create."""

    workspace_name: str


class DeleteWorkspace(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`DELETE /slice-workspace`. `force` deletes what is active in it first."""

    workspace_name: str
    force: bool | None = None


class KubeConfigRequest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`POST /slice-workspace/kube-config`."""

    workspace_name: str
    cluster_name: str | None = None


class NamespaceItem(msgspec.Struct, frozen=True, rename="camel"):
    """A Kubernetes namespace and the clusters that have it."""

    namespace: str
    clusters: tuple[str, ...] = ()


class WorkspaceItem(msgspec.Struct, frozen=True, rename="camel"):
    """One workspace as listed. Strict: no other key."""

    name: str
    overlay_network_deployment_mode: str = ""
    max_clusters: int = 0
    slice_description: str = ""
    clusters: tuple[str, ...] = ()
    namespaces: tuple[NamespaceItem, ...] = ()


class WorkspaceList(msgspec.Struct, frozen=True, rename="camel"):
    """Strict: no other key."""

    workspaces: tuple[WorkspaceItem, ...] = ()


class KubeConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to `POST /slice-workspace/kube-config`: YAML with an expiring token."""

    kube_config: str


class WriteCluster(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`POST /cluster`. `engine` is `local`, `kserve` or `simulated`; all below `domain` is for `kserve`.

    Exactly one of `kubeconfig` (its text, which is kept as a secret), `kubeconfigRef` (an absolute path on the
    platform's machine) and `inCluster` (the platform's own service account). `force` registers a cluster
    that does not answer.
    """

    name: str
    engine: str
    domain: str | None = None
    ingress_address: str | None = None
    kubeconfig: str | None = None
    kubeconfig_ref: str | None = None
    context: str | None = None
    in_cluster: bool | None = None
    drift: str | None = None
    force: bool | None = None

    def __repr__(self) -> str:
        """Without the kubeconfig."""
        return f"WriteCluster(name={self.name!r}, engine={self.engine!r}, …)"


class UpdateCluster(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`PUT /cluster`: what is absent stays as it is."""

    name: str
    domain: str | None = None
    ingress_address: str | None = None
    kubeconfig: str | None = None
    kubeconfig_ref: str | None = None
    context: str | None = None
    in_cluster: bool | None = None
    drift: str | None = None
    force: bool | None = None

    def __repr__(self) -> str:
        """Without the kubeconfig."""
        return f"UpdateCluster(name={self.name!r}, …)"


class ClusterRef(msgspec.Struct, frozen=True, rename="camel"):
    """Body of a cluster's delete and of its check."""

    name: str


class ClusterReportItem(msgspec.Struct, frozen=True, rename="camel"):
    """What was found when a cluster of Kubernetes was looked at. `since`: since when it is reachable, or not."""

    reachable: bool
    checked_at: datetime
    since: datetime
    message: str = ""
    server: str = ""
    version: str = ""
    kserve_version: str = ""
    kserve_mode: str = ""
    runtimes: tuple[str, ...] = ()
    checks: tuple[CheckItem, ...] = ()


class ClusterRegistered(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Answer to a registration, a change and a check; `report` for clusters of Kubernetes."""

    name: str
    report: ClusterReportItem | None = None


class ClusterCapacity(msgspec.Struct, frozen=True, rename="camel"):
    """What a cluster has of GPUs; `free` are those that a new request could have."""

    nodes: int = 0
    gpus: int = 0
    free: int = 0


class ClusterItem(msgspec.Struct, frozen=True, rename="camel"):
    """One registered cluster.

    `reachable` says whether it answered when it was last looked at; for what is no Kubernetes, whether this
    platform has an engine for it. `message` is what keeps it from being used. `connection` (where the
    credentials come from), `drift` and `report` are told to Owners only, and only of Kubernetes.
    """

    name: str
    engine: str
    domain: str = ""
    ingress_address: str = ""
    reachable: bool = True
    message: str = ""
    engine_version: str = ""
    capacity: ClusterCapacity = ClusterCapacity()
    created_at: datetime | None = None
    connection: str = ""
    drift: str = ""
    report: ClusterReportItem | None = None


class ClusterList(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /cluster/list`."""

    items: tuple[ClusterItem, ...] = ()
