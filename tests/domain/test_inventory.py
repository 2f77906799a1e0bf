"""What is free: computed from nodes and grants, never remembered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from inferplane.domain import gpu_request as gpr
from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus, Selection
from inferplane.domain.inventory import Gpu, Machines, Node, NodeHealth, NodeState, node_uses, shape_summaries

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


GPUS = tuple(Gpu(index, f"GPU-{index}") for index in range(4))
BIG = Node("local", "box-a100-80gb", "local", "A100", 2, 80, gpus=GPUS[:2], host="box")
SMALL = Node("local", "box-t4-15gb", "local", "T4", 2, 15, gpus=GPUS[2:], host="box")


def held_under(name: str, *indexes: int, shape: str = "A100", memory_gb: int = 80) -> GpuRequest:
    grant = Grant("local", ((name, indexes),), shape, "local", memory_gb)
    asked = replace(ASKED, selection=Selection("local", gpus_per_node=len(indexes)))
    return gpr.started(gpr.granted(asked, grant, NOW), NOW)


@pytest.mark.parametrize("name", ["box", "box-1", "another-name", "box-a100-80gb"])
def test_an_index_that_is_held_under_any_name_of_the_machine_is_not_free(name: str) -> None:
    uses = node_uses([BIG, SMALL], [held_under(name, 1)])
    assert [each.free for each in uses] == [(0,), (2, 3)]
    assert [[holding.gpus for holding in each.holdings] for each in uses] == [[(1,)], []]


def test_a_node_that_was_stored_before_it_named_its_machine_speaks_of_every_machine_of_its_cluster() -> None:
    old = replace(BIG, name="box", host="", health=NodeHealth.UNHEALTHY)
    elsewhere = replace(BIG, cluster="local-2")
    uses = node_uses([BIG, SMALL, old, elsewhere], [held_under("box", 0, 2)])
    free = {(each.node.cluster, each.node.name): each.free for each in uses}
    assert free == {
        ("local", "box-a100-80gb"): (1,),
        ("local", "box-t4-15gb"): (3,),
        ("local", "box"): (),
        ("local-2", "box-a100-80gb"): (0, 1),
    }


def test_nodes_of_other_machines_keep_their_own_indexes() -> None:
    other = replace(BIG, name="other-a100-80gb", host="other")
    uses = node_uses([BIG, other], [held_under("box-a100-80gb", 0)])
    assert [each.free for each in uses] == [(1,), (0, 1)]


@pytest.mark.parametrize(
    ("nodes", "name", "in_order"),
    [
        ([BIG, SMALL], "box-a100-80gb", True),
        ([BIG, SMALL], "box", True),  # renamed: the same indexes of the same kind are there
        ([SMALL], "box-a100-80gb", False),
        ([replace(BIG, gpus=GPUS[:1])], "box", False),
        ([replace(BIG, health=NodeHealth.UNHEALTHY)], "box-a100-80gb", False),
        ([replace(BIG, health=NodeHealth.UNSCHEDULABLE)], "box-a100-80gb", True),
        ([replace(BIG, gpus=(GPUS[0], replace(GPUS[1], healthy=False)))], "box-a100-80gb", False),
        ([replace(NODE, cluster="local", name="other")], "box-a100-80gb", False),
        ([], "box-a100-80gb", False),
    ],
)
def test_a_grant_is_in_order_while_its_gpus_are_there_and_healthy(
    nodes: list[Node], name: str, in_order: bool
) -> None:
    grant = held_under(name, 0, 1).grant
    assert grant is not None
    assert Machines(nodes).is_in_order(grant) is in_order


def test_alike_nodes_are_one_row() -> None:
    nodes = [NODE, replace(NODE, name="b"), replace(NODE, name="c", gpu_count=8), replace(NODE, cluster="x")]
    assert [(each.cluster, each.gpus_per_node, each.nodes) for each in shape_summaries(nodes)] == [
        ("worker-1", 4, 2),
        ("worker-1", 8, 1),
        ("x", 4, 1),
    ]
    assert [each.cluster for each in shape_summaries(nodes, ["x"])] == ["x"]
