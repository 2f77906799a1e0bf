"""Templates: what a request made from one asks for, and which one a workspace uses unasked."""

from __future__ import annotations

from inferplane.domain.gpr_template import BoundCluster, GprTemplate, GprTemplateBinding
from inferplane.domain.gpu_request import Selection


def test_a_template_asks_for_what_it_says() -> None:
    template = GprTemplate("big", "worker-1", 4, 2, 80, "NVIDIA-A100", "a2")
    assert template.selection == Selection(
        cluster_name="worker-1",
        gpu_shape="NVIDIA-A100",
        instance_type="a2",
        memory_gb=80,
        gpus_per_node=4,
        nodes=2,
    )
    assert template.selection.gpus == 8


def test_each_cluster_of_a_binding_has_its_own_default() -> None:
    binding = GprTemplateBinding("team", (BoundCluster("a", "small", ("small", "big")), BoundCluster("b")))
    assert [binding.default_template(cluster) for cluster in ("a", "b", "c")] == ["small", "", ""]
