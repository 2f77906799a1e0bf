"""Everything that the platform does in a cluster, as Kubernetes' authorization names it.

The one list: the check of a cluster asks for each of these, the Helm chart grants them, and a test compares
what is really called with what stands here. `WORKSPACE_READS` and `WORKSPACE_WRITES` are what a workspace's
own kubeconfig may do in its namespaces. Kubernetes lets nobody grant what they may not do themselves, so
`PLATFORM` holds those too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CORE = ""
APPS = "apps"
KSERVE = "serving.kserve.io"
CRDS = "apiextensions.k8s.io"
RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """One verb on one kind of thing. `needed_for` is for a person; `optional` where all else works without."""

    group: str
    resource: str
    verb: str
    needed_for: str = ""
    optional: bool = False

    @property
    def name(self) -> str:
        """As kubectl writes it: `create inferenceservices.serving.kserve.io`."""
        return f"{self.verb} {self.resource}{'.' if self.group else ''}{self.group}"


def _each(
    group: str, resource: str, verbs: str, needed_for: str, *, optional: bool = False
) -> list[Permission]:
    return [Permission(group, resource, verb, needed_for, optional) for verb in verbs.split()]


_ENDPOINTS = "endpoints"
_TOLD = "telling what an endpoint does"
_ACCESS = "kubeconfigs of workspaces"

PLATFORM: tuple[Permission, ...] = (
    *_each(CORE, "namespaces", "get list watch create patch delete", _ENDPOINTS),
    *_each(CORE, "serviceaccounts", "get create patch delete", _ENDPOINTS),
    *_each(CORE, "secrets", "get create patch delete", "credentials of storage"),
    *_each(CORE, "resourcequotas", "get create patch delete", "quotas of policies"),
    *_each(KSERVE, "inferenceservices", "get list watch create patch delete", _ENDPOINTS),
    *_each(CORE, "pods", "get list watch", _TOLD),
    *_each(CORE, "pods/log", "get", "logs"),
    *_each(CORE, "events", "get list watch", _TOLD),
    *_each(APPS, "deployments", "get list watch", _TOLD),
    *_each(APPS, "replicasets", "get list watch", _TOLD),
    *_each("networking.k8s.io", "ingresses", "get list watch", "addresses of endpoints"),
    *_each(CORE, "nodes", "get list watch", "GPUs"),
    *_each(KSERVE, "servingruntimes", "get list", "choosing runtimes"),
    *_each(KSERVE, "clusterservingruntimes", "get list", "choosing runtimes"),
    *_each(CORE, "configmaps", "get", "KServe's mode and version", optional=True),
    *_each(CRDS, "customresourcedefinitions", "get", "KServe's presence", optional=True),
    *_each(CORE, "serviceaccounts/token", "create", _ACCESS, optional=True),
    *_each(RBAC, "roles", "get list create patch delete", _ACCESS, optional=True),
    *_each(RBAC, "rolebindings", "get list create patch delete", _ACCESS, optional=True),
    *_each(CORE, "services", "get list watch", _ACCESS, optional=True),
    *_each(KSERVE, "inferenceservices", "update", _ACCESS, optional=True),
)

WORKSPACE_READS: tuple[Permission, ...] = (
    *_each(CORE, "pods", "get list watch", ""),
    *_each(CORE, "pods/log", "get", ""),
    *_each(CORE, "events", "get list watch", ""),
    *_each(CORE, "services", "get list watch", ""),
    *_each(APPS, "deployments", "get list watch", ""),
    *_each(APPS, "replicasets", "get list watch", ""),
    *_each(KSERVE, "inferenceservices", "get list watch", ""),
)
WORKSPACE_WRITES: tuple[Permission, ...] = (
    *WORKSPACE_READS,
    *_each(KSERVE, "inferenceservices", "create update patch delete", ""),
)


def rules_of(permissions: Iterable[Permission]) -> list[dict[str, list[str]]]:
    """The same as rules of a Role, by group and resource, verbs in the order in which they stand here."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in permissions:
        verbs = found.setdefault((each.group, each.resource), [])
        if each.verb not in verbs:
            verbs.append(each.verb)
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": verbs}
        for (group, resource), verbs in sorted(found.items())
    ]
