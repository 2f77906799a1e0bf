"""Kubernetes' Nodes → the inventory's nodes. Pure: dicts as the API server sends them in, values out.

A machine offers GPUs as *resources* (`nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`, …) of which pods ask for a
number. Each kind of resource becomes one node of the inventory: the usual one has the machine's own name, any
other is called `<machine>/<resource without its domain>`, as in `gpu-7/mig-1g.10gb`. `place_of` reads such a
name back, for whoever has to write affinity and limits.

Which device a pod gets is Kubernetes' own choice, so the indexes here only count: 0 … n-1. Where the device
plugin offers fewer than there are (`allocatable` below `capacity`), the last of them are unhealthy.

What the labels do not say is not invented: a shape is then the resource's own name, memory 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from inferplane.domain.gpu_request import GPUS_PER_NODE_MAX, MEMORY_GB_MAX
from inferplane.domain.inventory import Gpu, Node, NodeHealth
from inferplane.engines.kserve.raw import Raw, condition, items, mapping

NVIDIA = "nvidia.com/gpu"
SHARED = "nvidia.com/gpu.shared"
MIG_PREFIX = "nvidia.com/mig-"
OTHERS = ("amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe")
PLACE_SEPARATOR = "/"
UNKNOWN_TYPE = "unknown"
NODES_MAX = 10_000

TOLERATED_TAINTS = frozenset({NVIDIA, *OTHERS})
"""Keys of taints that keep machines for pods with GPUs; our pods on GPUs tolerate them."""

_OF_HEALTH = frozenset({"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"})
_KEEPS_OUT = frozenset({"NoSchedule", "NoExecute"})
_MEBIBYTES_PER_GB = 1024
_MEMORY_IN_NAME = re.compile(r"(\d+)\s?GB", re.IGNORECASE)
_PROVIDERS = {"aws": "aws", "gce": "gcp", "azure": "azure"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where GPUs of an inventory node are asked for: the machine's name and the resource."""

    machine: str
    resource: str


def place_of(node_name: str) -> Place:
    """What the inventory's name of a node says."""
    machine, separator, kind = node_name.partition(PLACE_SEPARATOR)
    if not separator:
        return Place(machine, NVIDIA)
    if f"nvidia.com/{kind}" == SHARED or kind.startswith("mig-"):
        return Place(machine, f"nvidia.com/{kind}")
    return Place(machine, next((each for each in OTHERS if _suffix(each) == kind), f"nvidia.com/{kind}"))


def nodes_of(cluster: str, nodes: Iterable[Raw]) -> tuple[Node, ...]:
    """Every kind of GPU of every machine, by name; machines without GPUs are left out."""
    found = [part for node in nodes for part in _parts(cluster, node)]
    return tuple(sorted(found, key=lambda each: each.name)[:NODES_MAX])


def health_of(node: Raw) -> NodeHealth:
    """Whether new pods of ours can land there.

    Unhealthy where the kubelet is not Ready, or no longer heard of. Unschedulable where somebody cordoned it,
    deletes it, or keeps it for others by a taint that our pods do not tolerate.
    """
    if condition(node, "Ready").get("status") != "True":
        return NodeHealth.UNHEALTHY
    spec = mapping(node, "spec")
    kept_for_others = any(
        taint.get("effect") in _KEEPS_OUT and taint.get("key") not in TOLERATED_TAINTS | _OF_HEALTH
        for taint in items(spec, "taints")
    )
    is_leaving = bool(mapping(node, "metadata").get("deletionTimestamp"))
    if spec.get("unschedulable") is True or kept_for_others or is_leaving:
        return NodeHealth.UNSCHEDULABLE
    return NodeHealth.HEALTHY


def _parts(cluster: str, node: Raw) -> list[Node]:
    metadata, status = mapping(node, "metadata"), mapping(node, "status")
    labels = mapping(metadata, "labels")
    capacity, allocatable = mapping(status, "capacity"), mapping(status, "allocatable")
    machine = str(metadata.get("name", ""))
    health = health_of(node)
    parts = []
    for resource in sorted(capacity):
        count = min(_whole(capacity.get(resource)), GPUS_PER_NODE_MAX)
        if not _is_gpu(resource) or count < 1 or not machine:
            continue
        usable = min(_whole(allocatable.get(resource)), count)
        product = _product(labels, resource)
        parts.append(
            Node(
                cluster=cluster,
                name=machine if resource == NVIDIA else f"{machine}{PLACE_SEPARATOR}{_suffix(resource)}",
                instance_type=_label(
                    labels, "node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type"
                )
                or UNKNOWN_TYPE,
                gpu_shape=product or _suffix(resource),
                gpu_count=count,
                memory_gb=min(_memory_gb(labels, resource, product), MEMORY_GB_MAX),
                health=health,
                gpus=()
                if usable == count
                else tuple(Gpu(index, model_name=product, healthy=index < usable) for index in range(count)),
                gpu_model_name=product,
                cloud_provider=_PROVIDERS.get(
                    str(mapping(node, "spec").get("providerID", "")).split(":")[0], ""
                ),
                region=_label(
                    labels, "topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"
                ),
            )
        )
    return parts


def _is_gpu(resource: str) -> bool:
    return resource in {NVIDIA, SHARED, *OTHERS} or resource.startswith(MIG_PREFIX)


def _suffix(resource: str) -> str:
    """What names a kind in the inventory. AMD's is `gpu` like NVIDIA's, so the maker is told along."""
    maker, _, kind = resource.partition("/")
    return kind if maker == "nvidia.com" else f"{maker.split('.')[-2]}-{kind}"


def _product(labels: Raw, resource: str) -> str:
    """The kind of device in its maker's words, "" where nothing says it."""
    if resource.startswith("nvidia.com/"):
        of_kind = _label(labels, f"{resource}.product") if resource != SHARED else ""
        product = of_kind or _label(labels, f"{NVIDIA}.product")
        if not product:
            product = _label(
                labels, "cloud.google.com/gke-accelerator", "karpenter.k8s.aws/instance-gpu-name"
            )
        if resource.startswith(MIG_PREFIX) and product and not of_kind:
            return f"{product}-{_suffix(resource).upper()}"
        if resource == SHARED and product and not product.endswith("-SHARED"):
            return f"{product}-SHARED"
        return product
    return _label(labels, f"{resource}.product-name", f"{resource}.product")


def _memory_gb(labels: Raw, resource: str, product: str) -> int:
    """Of one device, in whole GB: as labelled (MiB), else as its name says, else 0."""
    named = f"{NVIDIA if resource == SHARED else resource}.memory"
    labelled = _label(labels, named)
    if not labelled and resource == NVIDIA:
        labelled = _label(labels, "karpenter.k8s.aws/instance-gpu-memory")
    if _whole(labelled):
        return max(1, round(_whole(labelled) / _MEBIBYTES_PER_GB))
    if vram := re.fullmatch(r"(\d+)G", _label(labels, f"{resource}.vram")):
        return int(vram.group(1))
    said = _MEMORY_IN_NAME.findall(_suffix(resource) if resource.startswith(MIG_PREFIX) else product)
    return int(said[-1]) if said else 0


def _label(labels: Raw, *names: str) -> str:
    return next((value for name in names if isinstance(value := labels.get(name), str) and value), "")


def _whole(value: object) -> int:
    """A count as Kubernetes writes it ("4"); 0 for what is none."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
