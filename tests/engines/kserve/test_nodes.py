"""Node lists of a real Kubernetes, and what makers and clouds write on theirs, as the inventory has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inferplane.domain.inventory import Node, NodeHealth
from inferplane.engines.kserve.nodes import Place, health_of, nodes_of, place_of

FOLDER = Path(__file__).parents[2] / "golden" / "kserve" / "nodes"
A100 = Node(
    cluster="east",
    name="node1",
    instance_type="a2-ultragpu-4g",
    gpu_shape="NVIDIA-A100-SXM4-80GB",
    gpu_count=4,
    memory_gb=80,
    gpu_model_name="NVIDIA-A100-SXM4-80GB",
)


def recorded(name: str) -> list[dict[str, Any]]:
    content = json.loads((FOLDER / f"{name}.json").read_text())
    items: list[dict[str, Any]] = content["items"]
    return items


@pytest.mark.parametrize(
    ("recording", "health"),
    [
        ("gpu", NodeHealth.HEALTHY),
        ("after", NodeHealth.HEALTHY),
        ("cordoned", NodeHealth.UNSCHEDULABLE),
        ("notready", NodeHealth.UNHEALTHY),
        ("notready-later", NodeHealth.UNHEALTHY),
    ],
)
def test_a_real_node_with_gpus(recording: str, health: NodeHealth) -> None:
    [node] = nodes_of("east", recorded(recording))
    assert (node.health, node.schedulable) == (health, health is NodeHealth.HEALTHY)
    assert {**_fields(node), "health": None} == {**_fields(A100), "health": None}
    assert node.indexes == (0, 1, 2, 3)


def test_a_machine_without_gpus_is_no_part_of_the_inventory() -> None:
    assert nodes_of("east", recorded("before-gpu")) == ()


def test_every_kind_of_gpu_of_a_machine_is_a_node_of_its_own() -> None:
    nodes = nodes_of(
        "east",
        [
            machine(
                "gpu-7.internal",
                {
                    "nvidia.com/gpu": "1",
                    "nvidia.com/mig-1g.10gb": "7",
                    "nvidia.com/mig-3g.40gb": "2",
                    "cpu": "8",
                },
                {
                    "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
                    "nvidia.com/gpu.memory": "81920",
                    "nvidia.com/mig-1g.10gb.product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb",
                    "nvidia.com/mig-1g.10gb.memory": "9728",
                },
            )
        ],
    )
    assert [(each.name, each.gpu_shape, each.gpu_count, each.memory_gb, each.host) for each in nodes] == [
        ("gpu-7.internal", "NVIDIA-A100-SXM4-80GB", 1, 80, ""),
        ("gpu-7.internal/mig-1g.10gb", "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", 7, 10, ""),
        ("gpu-7.internal/mig-3g.40gb", "NVIDIA-A100-SXM4-80GB-MIG-3G.40GB", 2, 40, ""),
    ]
    assert [place_of(each.name) for each in nodes] == [
        Place("gpu-7.internal", "nvidia.com/gpu"),
        Place("gpu-7.internal", "nvidia.com/mig-1g.10gb"),
        Place("gpu-7.internal", "nvidia.com/mig-3g.40gb"),
    ]


@pytest.mark.parametrize(
    ("resource", "labels", "expected"),
    [
        ("nvidia.com/gpu", {}, ("n", "gpu", 0)),
        ("nvidia.com/gpu", {"cloud.google.com/gke-accelerator": "nvidia-l4"}, ("n", "nvidia-l4", 0)),
        ("nvidia.com/gpu", {"nvidia.com/gpu.product": "Tesla-T4", "nvidia.com/gpu.memory": "15360"}, ("n", "Tesla-T4", 15)),
        ("nvidia.com/gpu", {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, ("n", "NVIDIA-H100-80GB-HBM3", 80)),
        (
            "nvidia.com/gpu",
            {"karpenter.k8s.aws/instance-gpu-name": "a10g", "karpenter.k8s.aws/instance-gpu-memory": "22888"},
            ("n", "a10g", 22),
        ),
        (
            "nvidia.com/gpu.shared",
            {"nvidia.com/gpu.product": "Tesla-T4", "nvidia.com/gpu.memory": "15360"},
            ("n/gpu.shared", "Tesla-T4-SHARED", 15),
        ),
        (
            "amd.com/gpu",
            {"amd.com/gpu.product-name": "AMD_Instinct_MI300X", "amd.com/gpu.vram": "192G"},
            ("n/amd-gpu", "AMD_Instinct_MI300X", 192),
        ),
        ("gpu.intel.com/i915", {}, ("n/intel-i915", "intel-i915", 0)),
    ],
)  # fmt: skip
def test_shapes_are_what_labels_say(
    resource: str, labels: dict[str, str], expected: tuple[str, str, int]
) -> None:
    [node] = nodes_of("east", [machine("n", {resource: "2"}, labels)])
    assert (node.name, node.gpu_shape, node.memory_gb) == expected
    assert place_of(node.name) == Place("n", resource)


def test_devices_that_the_plugin_withdrew_are_unhealthy() -> None:
    raw = machine("n", {"nvidia.com/gpu": "4"})
    raw["status"]["allocatable"]["nvidia.com/gpu"] = "3"
    [node] = nodes_of("east", [raw])
    assert (node.gpu_count, node.indexes) == (4, (0, 1, 2))


@pytest.mark.parametrize(
    ("taint", "health"),
    [
        ({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}, NodeHealth.HEALTHY),
        ({"key": "dedicated", "value": "training", "effect": "NoSchedule"}, NodeHealth.UNSCHEDULABLE),
        ({"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}, NodeHealth.UNSCHEDULABLE),
        ({"key": "spot", "effect": "PreferNoSchedule"}, NodeHealth.HEALTHY),
    ],
)
def test_a_taint_that_our_pods_do_not_tolerate_keeps_them_out(
    taint: dict[str, str], health: NodeHealth
) -> None:
    raw = machine("n", {"nvidia.com/gpu": "1"})
    raw["spec"]["taints"] = [taint]
    assert health_of(raw) is health


def test_where_a_machine_is() -> None:
    raw = machine("n", {"nvidia.com/gpu": "1"}, {"topology.kubernetes.io/region": "europe-west4"})
    raw["spec"]["providerID"] = "gce://project/europe-west4-a/n"
    [node] = nodes_of("east", [raw])
    assert (node.cloud_provider, node.region, node.instance_type) == ("gcp", "europe-west4", "unknown")


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"metadata": None, "status": [], "spec": "x"},
        {"metadata": {"name": "n"}, "status": {"capacity": {"nvidia.com/gpu": "many"}}},
        {"metadata": {"name": "n"}, "status": {"capacity": {"nvidia.com/gpu": "-1"}}},
        {"metadata": {"name": "n"}, "status": {"capacity": {"nvidia.com/gpu": {}}, "conditions": [None]}},
    ],
)
def test_what_is_no_node_of_ours_is_passed_over(raw: dict[str, Any]) -> None:
    assert nodes_of("east", [raw]) == ()
    assert health_of(raw) is NodeHealth.UNHEALTHY


def machine(name: str, resources: dict[str, str], labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {},
        "status": {
            "capacity": resources,
            "allocatable": dict(resources),
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _fields(node: Node) -> dict[str, Any]:
    return {name: getattr(node, name) for name in Node.__slots__}
