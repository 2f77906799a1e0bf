"""The scheduler's rules, one picture each. `world` builds them; see conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from random import Random
from typing import Any

import pytest

from inferplane.domain.gpu_request import GpuRequest, ProvisioningStatus, Selection, draining
from inferplane.domain.inventory import Gpu, NodeHealth
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.scheduler import Ageing, FairShare, Switches, forecast, renewal, schedule, wait_times
from inferplane.scheduler.cycle import EVICTIONS_PER_CYCLE_MAX
from inferplane.scheduler.decisions import Basis, Decisions, GrantReason, Wait, WaitReason
from inferplane.scheduler.ordering import usage_now

World = Any  # the builder class of conftest.py
Ids = Callable[..., list[str]]


def granted(decisions: Decisions) -> list[str]:
    return [each.request_id for each in decisions.grants]


def the_wait(decisions: Decisions, request_id: str) -> Wait:
    wait = decisions.wait_of(request_id)
    assert wait is not None
    return wait


# --- Order -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({"priority": 150}, {"priority": 101, "since": 99}, id="priority before age"),
        pytest.param({"since": 5}, {"since": 4}, id="age before id"),
        pytest.param({}, {}, id="then id"),
    ],
)
def test_who_is_next(first: dict[str, Any], second: dict[str, Any], world: World, ids: Ids) -> None:
    one, two = (1, 2) if first == second else (2, 1)  # the id speaks against it wherever it can
    line = [world.waits(two, 8, **second), world.waits(one, 8, **first)]
    if first == second:
        line = [world.waits(1, 8), world.waits(2, 8)]
    decisions = schedule(world.snapshot([world.node("a")], line))
    assert granted(decisions) == ids(one if first != second else 1)


def test_ageing_raises_who_waits_and_says_so(world: World, ids: Ids) -> None:
    line = [world.waits(1, 8, priority=100, since=60), world.waits(2, 8, priority=103)]
    plain = schedule(world.snapshot([world.node("a")], line))
    aged = schedule(world.snapshot([world.node("a")], line, replace(world.exact, ageing=Ageing())))
    assert granted(plain) == ids(2)
    assert granted(aged) == ids(1)
    assert "waiting for 1h0m0s has added 6 to its priority of 100" in aged.grants[0].message


def test_fair_share_lets_who_used_least_go_first_and_says_so(world: World, ids: Ids) -> None:
    line = [
        world.waits(1, 8, since=9, workspace="much"),
        world.waits(2, 8, since=8, workspace="much"),
        world.waits(3, 8, since=1, workspace="little"),
    ]
    switches = replace(world.exact, fair_share=FairShare())
    decisions = schedule(world.snapshot([world.node("a")], line, switches, usage={"much": 1e6}))
    assert granted(decisions) == ids(3)
    assert "because its workspace has used less than others" in decisions.grants[0].message
    assert "because its workspace has used more than others" in decisions.waits[0].message


def test_fair_share_takes_turns(world: World, ids: Ids) -> None:
    line = [world.waits(n, 2, since=9 - n, workspace="a") for n in range(1, 5)]
    line += [world.waits(n, 2, workspace="b") for n in range(5, 7)]
    switches = replace(world.exact, fair_share=FairShare())
    assert granted(schedule(world.snapshot([world.node("x")], line, switches))) == ids(1, 5, 2, 6)


# --- Place -------------------------------------------------------------------------------------


def test_the_tightest_hole_is_filled_and_the_large_one_kept(world: World) -> None:
    floor = [world.node("a"), world.node("b")]
    held = world.holds(9, {"b": (0, 1, 2, 3, 4)})
    decisions = schedule(world.snapshot(floor, [held, world.waits(1, 2)]))
    assert decisions.grants[0].grant.nodes == (("b", (5, 6)),)


def test_a_gang_gets_all_of_its_nodes_or_none(world: World, ids: Ids) -> None:
    floor = [world.node("a"), world.node("b")]
    line = [world.waits(1, 8, nodes=2)]
    assert schedule(world.snapshot(floor, line)).grants[0].grant.nodes == (
        ("a", tuple(range(8))),
        ("b", tuple(range(8))),
    )
    with_one_taken = schedule(world.snapshot(floor, [*line, world.holds(9, {"a": (3,)})]))
    assert not with_one_taken.grants
    wait = the_wait(with_one_taken, ids(1)[0])
    assert wait.reason is WaitReason.GPUS_HELD
    assert "r9 holds 1 GPU until 2026-01-05 13:00:00Z" in wait.message
    assert wait.position == 1
    assert wait.starts_by == world.at(60)


def test_the_end_that_is_told_is_the_holders_own(world: World, ids: Ids) -> None:
    """The allowance for draining moves the expected start, and nobody's end."""
    line = [world.waits(1, 8), world.holds(9, {"a": (3,)})]
    allowing = Switches(draining=timedelta(seconds=10))
    wait = the_wait(schedule(world.snapshot([world.node("a")], line, allowing)), ids(1)[0])
    assert "r9 holds 1 GPU until 2026-01-05 13:00:00Z" in wait.message
    assert wait.starts_by == world.at(60) + timedelta(seconds=10)


def test_what_drains_is_still_held(world: World, ids: Ids) -> None:
    ending = draining(world.holds(9, {"a": tuple(range(8))}), ProvisioningStatus.COMPLETE, world.now)
    decisions = schedule(world.snapshot([world.node("a")], [ending, world.waits(1, 8)]))
    assert not decisions.grants
    assert "r9 is giving back 8 GPUs" in the_wait(decisions, ids(1)[0]).message


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(preferred_clusters=("west", "east"), gpu_shape="A100"), ("west", "A100")),
        (Selection(auto_cluster=True, gpu_shape="A100"), ("east", "A100")),
        (Selection(auto_cluster=True, auto_gpu=True, memory_gb=20), ("west", "L4")),
        (Selection(auto_cluster=True, auto_gpu=True, memory_gb=60), ("east", "A100")),
        (Selection(cluster_name="west", auto_gpu=True, memory_gb=60), ("west", "A100")),
    ],
)
def test_clusters_by_precedence_and_gpus_by_memory(
    selection: Selection, expected: tuple[str, str], world: World
) -> None:
    floor = [
        world.node("e", cluster="east"),
        world.node("w", cluster="west"),
        world.node("l", cluster="west", shape="L4", memory_gb=24),
    ]
    grant = schedule(world.snapshot(floor, [world.waits(1, selection=selection)])).grants[0].grant
    assert (grant.cluster, grant.gpu_shape) == expected


@pytest.mark.parametrize(
    ("request_fields", "fields", "reason", "says"),
    [
        ({"gpus": 16}, {}, WaitReason.LARGER_THAN_CLUSTER, "no node that it may use has as many"),
        ({"gpus": 8, "nodes": 3}, {}, WaitReason.LARGER_THAN_CLUSTER, "has more than 2 such nodes"),
        ({"gpus": 8, "nodes": 2}, {}, WaitReason.NODES_UNHEALTHY, "only 1 of 2 such nodes is in order"),
        (
            {"selection": Selection(cluster_name="nowhere", gpu_shape="A100")},
            {},
            WaitReason.NO_SUCH_CLUSTER,
            "are in nowhere",
        ),
        (
            {"selection": Selection(cluster_name="worker-1", gpu_shape="B200", instance_type="b")},
            {},
            WaitReason.NO_SUCH_SHAPE,
            "which has A100 (a100-8, 80 GB)",
        ),
        ({}, {"usable_clusters": {}}, WaitReason.NO_SUCH_CLUSTER, "its workspace may use"),
        ({"priority": 250}, {}, WaitReason.POLICY_FORBIDS, "its priority 250 is outside 1 to 200"),
        ({"minutes": 6000}, {}, WaitReason.POLICY_FORBIDS, "longer than 48h0m0s"),
    ],
)
def test_what_can_never_start_says_why(
    request_fields: dict[str, Any],
    fields: dict[str, Any],
    reason: WaitReason,
    says: str,
    world: World,
    ids: Ids,
) -> None:
    policy = WorkspacePolicy("team", priority_highest=200, max_exit_duration=timedelta(hours=48))
    floor = [world.node("a"), world.node("b", health=NodeHealth.UNHEALTHY)]
    snapshot = world.snapshot(floor, [world.waits(1, **request_fields)], policies=[policy], **fields)
    wait = the_wait(schedule(snapshot), ids(1)[0])
    assert wait.reason is reason
    assert says in wait.message
    assert wait.what_would_change_it
    estimate = forecast(snapshot)[wait.request_id]
    assert (estimate.start, estimate.basis) == (None, Basis.UNKNOWN)
    assert says in estimate.assumption


def test_a_workspace_holds_no_more_than_its_policy_allows(world: World, ids: Ids) -> None:
    policy = WorkspacePolicy("team", max_requests=2)
    line = [world.waits(n, 1, since=9 - n) for n in (1, 2, 3)]
    decisions = schedule(world.snapshot([world.node("a")], line, policies=[policy]))
    assert granted(decisions) == ids(1, 2)
    assert the_wait(decisions, ids(3)[0]).reason is WaitReason.TOO_MANY_REQUESTS


# --- Backfill ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minutes", "gpus", "outcome"),
    [
        pytest.param(60, 4, GrantReason.BACKFILLED, id="ends just in time"),
        pytest.param(61, 4, WaitReason.WOULD_DELAY_HEAD, id="a minute too long"),
        pytest.param(600, 2, GrantReason.BACKFILLED, id="long, on what the head leaves over"),
        pytest.param(600, 3, WaitReason.WOULD_DELAY_HEAD, id="long, on what the head needs"),
    ],
)
def test_backfill_never_delays_the_head(
    minutes: int, gpus: int, outcome: object, world: World, ids: Ids
) -> None:
    """Four GPUs are held for another hour; the head needs six of the eight."""
    held = world.holds(9, {"a": (0, 1, 2, 3)}, left=60)
    head = world.waits(1, 6, since=30)
    later = world.waits(2, gpus, minutes=minutes)
    decisions = schedule(world.snapshot([world.node("a")], [held, head, later]))
    assert the_wait(decisions, ids(1)[0]).starts_by == world.at(60)
    decided = decisions.grant_of(ids(2)[0]) or decisions.wait_of(ids(2)[0])
    assert decided is not None
    assert decided.reason is outcome
    if isinstance(decided, Wait):
        assert decided.position == 2
        assert decided.ahead_id == ids(1)[0]


def test_without_backfill_nobody_passes(world: World, ids: Ids) -> None:
    held = world.holds(9, {"a": (0, 1, 2, 3)})
    line = [world.waits(1, 6, since=30), world.waits(2, 1, minutes=1)]
    switches = replace(world.exact, backfill=False)
    decisions = schedule(world.snapshot([world.node("a")], [held, *line], switches))
    assert [each.request_id for each in decisions.waits] == ids(1, 2)


def test_who_waits_for_other_gpus_holds_nobody_up(world: World, ids: Ids) -> None:
    floor = [world.node("a"), world.node("l", shape="L4", memory_gb=24)]
    held = world.holds(9, {"a": tuple(range(8))})
    other = Selection(cluster_name="worker-1", gpu_shape="L4")
    line = [world.waits(1, 8, since=30), world.waits(2, 8, minutes=9999, selection=other)]
    decisions = schedule(world.snapshot(floor, [held, *line]))
    assert granted(decisions) == ids(2)
    assert decisions.grants[0].reason is GrantReason.IN_TURN


# --- Eviction ----------------------------------------------------------------------------------


def test_the_higher_priority_takes_what_it_needs_and_no_more(world: World, ids: Ids) -> None:
    held = [
        world.holds(7, {"a": (0, 1, 2, 3)}, priority=50, enable_eviction=True),
        world.holds(8, {"a": (4, 5)}, priority=50, enable_eviction=True),
        world.holds(9, {"a": (6, 7)}, priority=50, enable_eviction=True),
    ]
    newcomer = world.waits(1, 4, priority=250, enable_eviction=True)
    decisions = schedule(world.snapshot([world.node("a")], [*held, newcomer]))
    assert [each.victim_id for each in decisions.evictions] == ids(7)
    assert "go to gpr-00000001-0000, which has priority 250" in decisions.evictions[0].message
    wait = the_wait(decisions, ids(1)[0])
    assert wait.reason is WaitReason.AWAITING_EVICTION
    assert wait.starts_by == world.at(0) + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("victim", "newcomer", "why"),
    [
        ({"priority": 250}, {}, "an equal is not evicted"),
        ({"enable_eviction": False}, {}, "the victim takes no part"),
        ({}, {"enable_eviction": False}, "the newcomer takes no part"),
        ({"evicted_at": "a minute ago"}, {}, "it was evicted a short while ago"),
        ({"left": 0.01}, {}, "it ends by itself at once"),
    ],
)
def test_nobody_is_evicted_when(
    victim: dict[str, Any], newcomer: dict[str, Any], why: str, world: World
) -> None:
    fields = {"priority": 50, "enable_eviction": True} | victim
    if "evicted_at" in fields:
        fields["evicted_at"] = world.at(-1)
    held = world.holds(9, {"a": tuple(range(8))}, **fields)
    asks = world.waits(1, 8, **{"priority": 250, "enable_eviction": True, **newcomer})
    assert not schedule(world.snapshot([world.node("a")], [held, asks])).evictions, why


def test_nobody_is_evicted_for_somebody_else(world: World) -> None:
    """What would be freed belongs to the request ahead, which does not evict."""
    held = world.holds(9, {"a": tuple(range(8))}, priority=50, enable_eviction=True)
    ahead = world.waits(1, 8, priority=250, since=9)
    behind = world.waits(2, 8, priority=250, enable_eviction=True)
    assert not schedule(world.snapshot([world.node("a")], [held, ahead, behind])).evictions


def test_a_policy_can_let_a_whole_workspace_take_part(world: World) -> None:
    held = world.holds(9, {"a": tuple(range(8))}, priority=50)
    asks = world.waits(1, 8, priority=250)
    policy = WorkspacePolicy("team", auto_eviction=True)
    assert schedule(world.snapshot([world.node("a")], [held, asks], policies=[policy])).evictions


@pytest.mark.parametrize("victim_says", [False, True])
@pytest.mark.parametrize("newcomer_says", [False, True])
@pytest.mark.parametrize("victims_policy", [False, True])
@pytest.mark.parametrize("newcomers_policy", [False, True])
def test_eviction_is_between_two_who_take_part_each_by_itself_or_by_its_policy(
    world: World, victim_says: bool, newcomer_says: bool, victims_policy: bool, newcomers_policy: bool
) -> None:
    held = world.holds(9, {"a": tuple(range(8))}, priority=50, workspace="red", enable_eviction=victim_says)
    asks = world.waits(1, 8, priority=250, workspace="blue", enable_eviction=newcomer_says)
    policies = [
        WorkspacePolicy("red", auto_eviction=victims_policy),
        WorkspacePolicy("blue", auto_eviction=newcomers_policy),
    ]
    decided = schedule(world.snapshot([world.node("a")], [held, asks], policies=policies))
    expected = (victim_says or victims_policy) and (newcomer_says or newcomers_policy)
    assert bool(decided.evictions) is expected


def test_one_cycle_evicts_only_so_many(world: World) -> None:
    count = EVICTIONS_PER_CYCLE_MAX + 20
    low = {"priority": 50, "enable_eviction": True}
    high = {"priority": 250, "enable_eviction": True}
    floor, requests = [], []
    for number in range(count):
        cluster = f"c{number}"
        floor.append(world.node("n", 1, cluster=cluster))
        requests.append(world.holds(1000 + number, {"n": (0,)}, cluster=cluster, **low))
        requests.append(world.waits(number, selection=Selection(cluster, gpu_shape="A100"), **high))
    assert len(schedule(world.snapshot(floor, requests)).evictions) == EVICTIONS_PER_CYCLE_MAX


def test_the_fewest_are_evicted_as_counted_by_trying_all(world: World) -> None:
    for seed in range(200):
        chance = Random(seed)
        floor = [world.node(name) for name in "abc"]
        held: list[GpuRequest] = []
        for node in floor:
            left = list(range(8))
            while left:
                gpus = min(len(left), chance.choice([1, 2, 3, 4]))
                fields = {"priority": chance.choice([50, 60, 300]), "enable_eviction": chance.random() < 0.8}
                held.append(world.holds(100 + len(held), {node.name: tuple(left[:gpus])}, **fields))
                left = left[gpus:]
        needed = chance.choice([1, 2, 4, 6])
        newcomer = world.waits(1, needed, priority=250, enable_eviction=True)
        decisions = schedule(world.snapshot(floor, [*held, newcomer]))
        fewest = min(
            (
                size
                for node in floor
                for size in range(1, 9)
                for group in combinations(
                    [h for h in held if h.grant and h.grant.nodes[0][0] == node.name and h.priority < 250],
                    size,
                )
                if all(h.enable_eviction for h in group) and sum(h.selection.gpus for h in group) >= needed
            ),
            default=0,
        )
        assert len(decisions.evictions) == fewest, seed


# --- Explanations ------------------------------------------------------------------------------


def test_other_workspaces_are_not_named_in_messages(world: World, ids: Ids) -> None:
    held = world.holds(9, {"a": tuple(range(8))}, workspace="secret")
    wait = the_wait(schedule(world.snapshot([world.node("a")], [held, world.waits(1, 8)])), ids(1)[0])
    assert "a request of another workspace holds 8 GPUs" in wait.message
    assert "r9" not in wait.message
    assert wait.holders[0].workspace == "secret", "who may see it can still be told"


def test_what_would_change_it_names_what_is_free_elsewhere(world: World, ids: Ids) -> None:
    floor = [world.node("a"), world.node("b", cluster="worker-2")]
    held = world.holds(9, {"a": tuple(range(8))})
    wait = the_wait(schedule(world.snapshot(floor, [held, world.waits(1, 8)])), ids(1)[0])
    assert wait.what_would_change_it.startswith("Free right now: A100 (a100-8) on worker-2.")


def test_enough_in_all_but_not_together_is_called_fragmented(world: World, ids: Ids) -> None:
    floor = [world.node("a"), world.node("b")]
    held = [world.holds(8, {"a": (0, 1, 2, 3)}), world.holds(9, {"b": (0, 1, 2, 3)})]
    wait = the_wait(schedule(world.snapshot(floor, [*held, world.waits(1, 6)])), ids(1)[0])
    assert wait.reason is WaitReason.FRAGMENTED
    assert "8 are free, but not together" in wait.message


def test_the_position_counts_only_who_competes(world: World, ids: Ids) -> None:
    floor = [world.node("a"), world.node("l", shape="L4", memory_gb=24)]
    small = Selection(cluster_name="worker-1", gpu_shape="L4")
    either = Selection(cluster_name="worker-1", auto_gpu=True, memory_gb=20)
    held = world.holds(9, {"a": tuple(range(8)), "l": tuple(range(8))})
    line = [
        world.waits(1, 8, since=5),
        world.waits(2, 8, since=4, selection=small),
        world.waits(3, 8, since=3, selection=small),
        world.waits(4, 8, since=2, selection=either),
    ]
    decisions = schedule(world.snapshot(floor, [held, *line]))
    assert [each.position for each in decisions.waits] == [1, 1, 2, 4]


# --- Forecast, renewal, wait times -------------------------------------------------------------


def test_the_forecast_runs_the_line_forward(world: World, ids: Ids) -> None:
    held = world.holds(9, {"a": tuple(range(8))}, left=60)
    line = [world.waits(1, 8, since=2, minutes=30), world.waits(2, 8, since=1)]
    estimates = forecast(world.snapshot([world.node("a")], [held, *line]))
    assert [estimates[each].start for each in ids(1, 2)] == [world.at(60), world.at(90)]
    assert [estimates[each].position for each in ids(1, 2)] == [1, 2]
    assert "runs for its whole exit duration" in estimates[ids(2)[0]].assumption


def test_what_is_overdue_is_soon_but_never_now(world: World, ids: Ids) -> None:
    held = world.holds(9, {"a": tuple(range(8))}, left=-5)
    estimates = forecast(world.snapshot([world.node("a")], [held, world.waits(1, 8)]))
    assert estimates[ids(1)[0]].start == world.now + timedelta(seconds=1)


@pytest.mark.parametrize(("priority", "extends"), [(50, True), (101, False), (250, False)])
def test_a_holder_that_renews_goes_on_unless_somebody_ahead_waits(
    priority: int, extends: bool, world: World, ids: Ids
) -> None:
    held = world.holds(9, {"a": tuple(range(8))}, auto_renew=True)
    waiting = world.waits(1, 8, priority=priority, since=1)
    snapshot = world.snapshot([world.node("a")], [held, waiting])
    assert renewal(snapshot, held).extend is extends
    estimate = forecast(snapshot)[ids(1)[0]]
    assert (estimate.start is None) is extends
    assert ("renewed" in estimate.assumption) is extends


def test_who_waits_for_other_gpus_does_not_stop_a_renewal(world: World) -> None:
    floor = [world.node("a"), world.node("l", shape="L4", memory_gb=24)]
    held = world.holds(9, {"a": tuple(range(8))}, auto_renew=True)
    full = world.holds(8, {"l": tuple(range(8))})
    other = Selection(cluster_name="worker-1", gpu_shape="L4")
    waiting = world.waits(1, 8, priority=250, selection=other)
    assert renewal(world.snapshot(floor, [held, full, waiting]), held).extend


@pytest.mark.parametrize("why", ["gone", "unhealthy"])
def test_who_holds_what_is_gone_or_out_of_order_does_not_go_on(why: str, world: World, ids: Ids) -> None:
    nodes = [world.node("a", health=NodeHealth.UNHEALTHY)] if why == "unhealthy" else []
    held = world.holds(9, {"a": tuple(range(8))}, auto_renew=True)
    snapshot = world.snapshot([*nodes, world.node("b")], [held])
    answer = renewal(snapshot, held)
    assert not answer.extend
    assert "gone or out of order" in answer.message
    forecast(world.snapshot(nodes, [held, world.waits(1, 8)]))  # and it comes to an end


def test_an_index_held_under_an_older_name_of_the_node_is_not_granted_again(world: World, ids: Ids) -> None:
    one = replace(world.node("box-a100-80gb", 2), host="box")
    other = replace(
        world.node("box-l4-24gb", 1, shape="L4", memory_gb=24), host="box", gpus=(Gpu(2, "GPU-2"),)
    )
    held = world.holds(9, {"box": (0,)}, left=30)
    line = [
        world.waits(1, 1, since=3),
        world.waits(2, 1, since=2),
        world.waits(3, 1, since=1, selection=Selection(cluster_name="worker-1", gpu_shape="L4")),
    ]
    snapshot = world.snapshot([one, other], [held, *line])
    decisions = schedule(snapshot)
    assert [each.grant.nodes for each in decisions.grants] == [
        (("box-a100-80gb", (1,)),),
        (("box-l4-24gb", (2,)),),
    ]
    assert granted(decisions) == ids(1, 3)
    assert forecast(snapshot)[ids(2)[0]].start == world.at(30)


def test_wait_times_list_every_candidate_soonest_first(world: World) -> None:
    floor = [
        world.node("a", cluster="east"),
        world.node("b", cluster="west"),
        world.node("l", cluster="west", shape="L4", memory_gb=24),
        world.node("s", 4, cluster="west", shape="H100"),
    ]
    requests = [
        world.holds(8, {"a": tuple(range(8))}, cluster="east", left=90),
        world.holds(9, {"b": tuple(range(8))}, cluster="west", left=30),
    ]
    anything = Selection(auto_cluster=True, auto_gpu=True, memory_gb=20)
    snapshot = world.snapshot(floor, requests)
    found = wait_times(snapshot, world.waits(1, 8, selection=anything))
    shown = [(each.pool.cluster, each.pool.gpu_shape, each.estimate.wait(world.now)) for each in found]
    assert shown == [
        ("west", "L4", timedelta(0)),
        ("west", "A100", timedelta(minutes=30)),
        ("east", "A100", timedelta(minutes=90)),
        ("west", "H100", None),
    ]
    assert found[0].estimate.basis is Basis.FITS_NOW
    assert all(each.explanation for each in found)


def test_a_long_line_is_extrapolated_and_says_so(world: World) -> None:
    held = world.holds(9999, {"a": tuple(range(8))}, left=60)
    line = [world.waits(number, 8, since=2000 - number, minutes=10) for number in range(600)]
    estimates = forecast(world.snapshot([world.node("a")], [held, *line]))
    last = estimates[line[-1].id]
    assert last.basis is Basis.EXTRAPOLATED
    assert last.start is not None
    assert abs(last.start - world.at(60 + 10 * 599)) < timedelta(hours=12)
    starts = [estimates[each.id].start for each in line]
    assert starts == sorted(starts, key=lambda each: each or world.now)


def test_use_grows_with_what_is_held_and_fades(world: World) -> None:
    switches = Switches(fair_share=FairShare(half_life=timedelta(hours=1)))
    held = world.holds(1, {"a": (0,)}, workspace="red")
    snapshot = world.snapshot([world.node("a")], [held, world.waits(2, workspace="blue")], switches)
    before = {"blue": 100.0, "old": 1.5}
    assert usage_now(snapshot, before, None) == before
    used = usage_now(snapshot, before, world.at(-60))
    assert used["blue"] == pytest.approx(50)
    assert 2000 < used["red"] < 3600
    assert "old" not in used
