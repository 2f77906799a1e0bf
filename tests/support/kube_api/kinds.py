"""What kinds of objects the emulated cluster knows, and how each is addressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Raw = dict[str, Any]

KSERVE = "serving.kserve.io"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind as one version of the API serves it."""

    group: str
    """"" for the core group."""
    version: str
    name: str
    """`InferenceService`."""
    plural: str
    namespaced: bool = True
    subresources: tuple[str, ...] = ()
    counted: bool = False
    """Whether metadata.generation counts changes of the spec."""
    short: tuple[str, ...] = ()
    custom: bool = False
    """Defined by a CustomResourceDefinition."""
    only_create: bool = False
    """A question put as an object: nothing is kept."""
    dns_label: bool = False
    """Names without dots."""

    @property
    def resource(self) -> str:
        """`inferenceservices.serving.kserve.io`, `pods`: how messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        """`serving.kserve.io/v1beta1`, `v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def has_status(self) -> bool:
        """Whether `/status` is apart."""
        return "status" in self.subresources


def _core(name: str, plural: str, *subresources: str, **more: Any) -> Kind:
    return Kind("", "v1", name, plural, subresources=subresources, **more)


_RBAC = "rbac.authorization.k8s.io"
_QUESTIONS = "authorization.k8s.io"

BUILT_IN = (
    _core("Namespace", "namespaces", "status", "finalize", namespaced=False, short=("ns",), dns_label=True),
    _core("Node", "nodes", "status", namespaced=False, short=("no",)),
    _core("PersistentVolume", "persistentvolumes", "status", namespaced=False, short=("pv",)),
    _core("Secret", "secrets"),
    _core("ServiceAccount", "serviceaccounts", "token", short=("sa",)),
    _core("ResourceQuota", "resourcequotas", "status", short=("quota",)),
    _core("LimitRange", "limitranges", short=("limits",)),
    _core("Pod", "pods", "status", "log", "eviction", counted=True, short=("po",)),
    _core("Event", "events", short=("ev",)),
    _core("Service", "services", "status", short=("svc",), dns_label=True),
    _core("Endpoints", "endpoints", short=("ep",)),
    _core("ConfigMap", "configmaps", short=("cm",)),
    _core("PersistentVolumeClaim", "persistentvolumeclaims", "status", short=("pvc",)),
    Kind(
        "apps",
        "v1",
        "Deployment",
        "deployments",
        subresources=("status", "scale"),
        counted=True,
        short=("deploy",),
    ),
    Kind(
        "apps",
        "v1",
        "ReplicaSet",
        "replicasets",
        subresources=("status", "scale"),
        counted=True,
        short=("rs",),
    ),
    Kind("apps", "v1", "StatefulSet", "statefulsets", subresources=("status", "scale"), counted=True),
    Kind("apps", "v1", "DaemonSet", "daemonsets", subresources=("status",), counted=True),
    Kind("batch", "v1", "Job", "jobs", subresources=("status",), counted=True),
    Kind(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        subresources=("status",),
        short=("hpa",),
    ),
    Kind(
        "networking.k8s.io",
        "v1",
        "Ingress",
        "ingresses",
        subresources=("status",),
        counted=True,
        short=("ing",),
    ),
    Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", counted=True, short=("netpol",)),
    Kind("networking.k8s.io", "v1", "IngressClass", "ingressclasses", namespaced=False),
    Kind(
        "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", subresources=("status",), counted=True
    ),
    Kind("coordination.k8s.io", "v1", "Lease", "leases"),
    Kind("storage.k8s.io", "v1", "StorageClass", "storageclasses", namespaced=False),
    Kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    Kind(_RBAC, "v1", "Role", "roles"),
    Kind(_RBAC, "v1", "RoleBinding", "rolebindings"),
    Kind(_RBAC, "v1", "ClusterRole", "clusterroles", namespaced=False),
    Kind(_RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
    Kind(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        namespaced=False,
        subresources=("status",),
        counted=True,
        short=("crd",),
    ),
    Kind(_QUESTIONS, "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", False, only_create=True),
    Kind(_QUESTIONS, "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", False, only_create=True),
    Kind(_QUESTIONS, "v1", "SubjectAccessReview", "subjectaccessreviews", False, only_create=True),
    Kind("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", False, only_create=True),
    Kind("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", False, only_create=True),
)

OF_KSERVE = (
    Kind(
        KSERVE,
        "v1beta1",
        "InferenceService",
        "inferenceservices",
        subresources=("status",),
        counted=True,
        short=("isvc",),
        custom=True,
    ),
    Kind(KSERVE, "v1alpha1", "ServingRuntime", "servingruntimes", counted=True, custom=True),
    Kind(
        KSERVE,
        "v1alpha1",
        "ClusterServingRuntime",
        "clusterservingruntimes",
        namespaced=False,
        counted=True,
        custom=True,
    ),
)


def kind_of_crd(crd: Mapping[str, Any]) -> Kind:
    """The kind that a CustomResourceDefinition defines (its storage version)."""
    spec = crd["spec"]
    version = next((each for each in spec["versions"] if each.get("storage")), spec["versions"][0])
    names = spec["names"]
    return Kind(
        spec["group"],
        version["name"],
        names["kind"],
        names["plural"],
        namespaced=spec.get("scope", "Namespaced") == "Namespaced",
        subresources=tuple(version.get("subresources") or ()),
        counted=True,
        short=tuple(names.get("shortNames") or ()),
        custom=True,
    )


def crd_of(kind: Kind) -> Raw:
    """The CustomResourceDefinition of a custom kind, without its schema (which is megabytes)."""
    version: Raw = {"name": kind.version, "served": True, "storage": True}
    if kind.subresources:
        version["subresources"] = {each: {} for each in kind.subresources}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.resource},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": list(kind.short),
            },
            "versions": [version],
        },
        "status": {
            "acceptedNames": {"kind": kind.name, "plural": kind.plural},
            "conditions": [
                {"type": "NamesAccepted", "status": "True", "reason": "NoConflicts"},
                {"type": "Established", "status": "True", "reason": "InitialNamesAccepted"},
            ],
            "storedVersions": [kind.version],
        },
    }


def plain_node(name: str, gpus: int) -> Raw:
    """A Node that is well, with plenty of everything and so many GPUs."""
    room = {"cpu": "256", "memory": "2Ti", "nvidia.com/gpu": str(gpus), "pods": "1000"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "node.kubernetes.io/instance-type": f"a2-ultragpu-{gpus}g",
                "nvidia.com/gpu.count": str(gpus),
                "nvidia.com/gpu.memory": "81920",
                "nvidia.com/gpu.present": "true",
                "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
            },
        },
        "spec": {},
        "status": {
            "allocatable": room,
            "capacity": room,
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "message": "kubelet is posting ready status",
                }
            ],
        },
    }
