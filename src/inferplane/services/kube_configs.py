"""Kubeconfigs for workspaces: a way into a cluster that ends by itself and reaches no further.

What a caller may do there follows from the role: who may only read here may only read there. The namespaces
are the workspace's own ones and those of its endpoints on that cluster, as they are at the moment of asking;
for an endpoint that is made later, ask again.
"""

from __future__ import annotations

import asyncio
import re

from inferplane.domain.access import PERMISSIONS, Caller, Verb
from inferplane.domain.errors import Conflict, Forbidden, Invalid, Unavailable
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.clusters import LOOK_SECONDS_MAX, WorkspaceAccess
from inferplane.engines.port import EngineError
from inferplane.services.context import Platform
from inferplane.services.trail import entry

KUBECONFIG_SECONDS = 8 * 3600
"""How long a kubeconfig works: a working day."""

NAMESPACES_MAX = 500
_OF_KUBERNETES = re.compile(r"kube-.*|default|kserve|istio-system|knative-serving|inferplane-system")


async def kube_config(platform: Platform, caller: Caller, name: str, cluster: str = "") -> str:
    """A kubeconfig (YAML) for the workspace on one of its clusters; the first of Kubernetes where none is named.

    Raises NotFound; Invalid (NotKubernetes) for a cluster that is no Kubernetes; Unavailable when the
    cluster does not answer, Forbidden when it refuses.
    """
    caller.require(Verb.READ_WORKSPACE, name)
    async with platform.store.read() as tx:
        workspace = await tx.get_workspace(name)
        clusters = {each.name: each for each in await tx.list_clusters()}
        endpoints = await tx.list_endpoints(name)
    on_kubernetes = [each for each in workspace.clusters if each in clusters and clusters[each].connection]
    chosen = cluster or next(iter([*on_kubernetes, *workspace.clusters]), "")
    if chosen not in workspace.clusters or chosen not in clusters:
        raise Invalid(
            f"workspace {name} does not use a cluster named “{chosen[:80]}”",
            reason="ClusterNotInWorkspace",
            field="clusterName",
            next_action=f"Its clusters are: {', '.join(workspace.clusters)}.",
        )
    if clusters[chosen].connection is None:
        raise Invalid(
            f"cluster {chosen} is no Kubernetes cluster (its engine is {clusters[chosen].engine}), so there is no kubeconfig",
            reason="NotKubernetes",
            field="clusterName",
            next_action="Use this API or the command line; nothing on this cluster needs a kubeconfig.",
        )
    link = platform.links.of(chosen)
    if link is None:
        raise Unavailable(
            f"cluster {chosen} is not connected", reason="ClusterUnreachable", field="clusterName"
        )
    own = [
        each.namespace for each in endpoints if each.cluster == chosen and each.deletion_requested_at is None
    ]
    access = WorkspaceAccess(
        workspace=name,
        namespaces=_own_namespaces(workspace.namespaces, len(own)),
        of_endpoints=sorted(own),
        may_write=caller.role in PERMISSIONS[Verb.WRITE_ENDPOINT],
        seconds=KUBECONFIG_SECONDS,
    )
    try:
        async with asyncio.timeout(LOOK_SECONDS_MAX):
            text = await link.workspace_kubeconfig(access)
    except TimeoutError as error:
        raise Unavailable(
            f"cluster {chosen} did not answer within {LOOK_SECONDS_MAX:g} seconds",
            reason="ClusterUnreachable",
        ) from error
    except EngineError as error:
        if error.reason == ReasonCode.CLUSTER_FORBIDDEN:
            raise Forbidden(
                f"cluster {chosen} does not let the platform make kubeconfigs: {error.message}",
                reason="ClusterForbidden",
                next_action=f"An Owner sees what is missing with `inferplane cluster check {chosen}`.",
            ) from error
        raise Unavailable(
            f"cluster {chosen} could not make a kubeconfig: {error.message}", reason=error.reason
        ) from error
    async with platform.store.transaction() as tx:
        await tx.append_event(
            entry(
                platform.clock(),
                caller,
                "KubeConfigMade",
                f"a kubeconfig for workspace {name} on cluster {chosen} was made",
                workspace=name,
                data={
                    "cluster": chosen,
                    "mayWrite": access.may_write,
                    "namespaces": [*access.namespaces, *access.of_endpoints],
                },
            )
        )
    return text


def _own_namespaces(declared: tuple[str, ...], others: int) -> tuple[str, ...]:
    """Raises Conflict for what belongs to the cluster itself, or is too much."""
    refused = [each for each in declared if _OF_KUBERNETES.fullmatch(each)]
    if refused:
        raise Conflict(
            f"namespace {refused[0]} belongs to the cluster itself, so no workspace gets rights in it",
            reason="NamespaceReserved",
            field="namespaces",
            next_action="Take it out of the workspace's namespaces.",
        )
    if len(declared) + others > NAMESPACES_MAX:
        raise Conflict(
            f"the workspace has {len(declared) + others} namespaces there; a kubeconfig is made for"
            f" {NAMESPACES_MAX} at most",
            reason="TooManyNamespaces",
        )
    return declared
