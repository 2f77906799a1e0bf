"""What is free: computed from nodes and grants, never remembered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from inferplane.domain import gpu_request as gpr
from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus, Selection
from inferplane.domain.inventory import Gpu, Node, NodeHealth, NodeState, node_uses, shape_summaries

NOW = datetime(2026, 1, 5, tzinfo=UTC)
NODE = Node("worker-1", "a", "a2", "A100", 4, 80)
ASKED = GpuRequest("gpr-1", "one", "team", Selection("worker-1", gpus_per_node=2), NOW, NOW)
RESERVED = gpr.granted(ASKED, Grant("worker-1", (("a", (1, 2)),)), NOW)
RUNNING = gpr.started(RESERVED, NOW)
ENDING = gpr.draining(RUNNING, ProvisioningStatus.COMPLETE, NOW)


@pytest.mark.parametrize(
    ("request_", "free", "state"),
    [
        (ASKED, (0, 1, 2, 3), NodeState.AVAILABLE),
        (RESERVED, (0, 3), NodeState.RESERVED),
        (RUNNING, (0, 3), NodeState.RESERVED),
        (ENDING, (0, 3), NodeState.RESERVED),
        (gpr.ended(ENDING, NOW), (0, 1, 2, 3), NodeState.AVAILABLE),
    ],
)
def test_gpus_are_held_from_the_grant_until_they_are_seen_free(
    request_: GpuRequest, free: tuple[int, ...], state: NodeState
) -> None:
    (use,) = node_uses([NODE], [request_])
    assert (use.free, use.state) == (free, state)


@pytest.mark.parametrize("health", [NodeHealth.UNHEALTHY, NodeHealth.UNSCHEDULABLE])
def test_a_node_out_of_order_has_nothing_free_and_keeps_its_holders(health: NodeHealth) -> None:
    (use,) = node_uses([replace(NODE, health=health)], [RUNNING])
    assert use.free == ()
    assert [each.gpus for each in use.holdings] == [(1, 2)]


def test_a_broken_gpu_is_not_free() -> None:
    gpus = tuple(Gpu(index, healthy=index != 3) for index in range(4))
    (use,) = node_uses([replace(NODE, gpus=gpus)], [])
    assert use.free == (0, 1, 2)


def test_a_grant_counts_on_its_own_cluster_only() -> None:
    uses = node_uses([replace(NODE, cluster="worker-2"), NODE], [RUNNING])
    assert [(each.node.cluster, each.free) for each in uses] == [
        ("worker-1", (0, 3)),
        ("worker-2", (0, 1, 2, 3)),
    ]


def test_alike_nodes_are_one_row() -> None:
    nodes = [NODE, replace(NODE, name="b"), replace(NODE, name="c", gpu_count=8), replace(NODE, cluster="x")]
    assert [(each.cluster, each.gpus_per_node, each.nodes) for each in shape_summaries(nodes)] == [
        ("worker-1", 4, 2),
        ("worker-1", 8, 1),
        ("x", 4, 1),
    ]
    assert [each.cluster for each in shape_summaries(nodes, ["x"])] == ["x"]
