"""What the platform asks of a cluster beside running endpoints on it. A local one has nothing to say to this.

* `look` never raises for a cluster that is away, refuses the credentials or answers nonsense: that is what the
  report says. It takes `LOOK_SECONDS_MAX` at most.
* Whatever is asked for reaches only the cluster that the link was made for, with the credentials that were
  known when it was made; other credentials are another link.
* No credential appears in a report, an error or a log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from inferplane.domain.cluster import ClusterReport
from inferplane.domain.errors import Unavailable
from inferplane.domain.inventory import Node
from inferplane.domain.workspace import Cluster

LOOK_SECONDS_MAX = 20.0


@dataclass(frozen=True, slots=True)
class WorkspaceAccess:
    """Who is to get into a cluster: a workspace, where, and whether only to read.

    `namespaces` are the workspace's own, which are made where they are not there; `of_endpoints` are those of its
    endpoints, as far as they are there. `seconds` is how long the token is to be good for; the cluster may make
    it shorter.
    """

    workspace: str
    namespaces: Sequence[str]
    of_endpoints: Sequence[str]
    may_write: bool
    seconds: int


class ClusterLink(Protocol):
    """A connection to one Kubernetes cluster. See the module's docstring for the promises."""

    async def look(self, *, thorough: bool = True) -> ClusterReport:
        """Reachability, versions, permissions, KServe, runtimes, GPUs, as they are now.

        Without `thorough` only the reachability, and for the rest what the last thorough look found.
        """

    async def nodes(self) -> tuple[tuple[Node, ...], str]:
        """The nodes with GPUs there are now, and, when they cannot be told, why ("" otherwise)."""

    async def workspace_kubeconfig(self, access: WorkspaceAccess) -> str:
        """A kubeconfig (YAML) with an expiring token and only that workspace's rights. Raises EngineError."""

    async def workspaces(self) -> frozenset[str]:
        """The workspaces that have a way into this cluster. Raises EngineError."""

    async def revoke_workspace(self, workspace: str) -> None:
        """End every token of a workspace there, and take its rights away. Raises EngineError."""

    async def close(self) -> None:
        """Give back what it holds."""


class ClusterLinks(Protocol):
    """The links to registered clusters."""

    def of(self, cluster: str) -> ClusterLink | None:
        """The link to a registered cluster; None for what is no Kubernetes, or is not connected yet."""

    async def try_out(self, cluster: Cluster, kubeconfig: str) -> ClusterReport:
        """What a look at this cluster finds, without anything being kept. Raises Invalid for credentials
        that cannot be meant.
        """

    def changed(self, cluster: str) -> None:
        """A hint: something was registered, changed or forgotten."""


class NoLinks:
    """Of a platform that cannot reach any Kubernetes."""

    def of(self, cluster: str) -> ClusterLink | None:  # noqa: ARG002 - there is none
        """None."""
        return None

    async def try_out(self, cluster: Cluster, kubeconfig: str) -> ClusterReport:  # noqa: ARG002 - as above
        """Raises Unavailable."""
        raise Unavailable(f"this platform cannot connect to clusters, so not to {cluster.name}")

    def changed(self, cluster: str) -> None:
        """Nobody is told."""
