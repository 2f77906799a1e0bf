"""What holds for every floor and every line, found by looking at thousands of random ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferplane.domain import gpu_request as gpr
from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus, Selection
from inferplane.domain.inventory import Node, NodeHealth
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.scheduler import (
    Ageing,
    Decisions,
    FairShare,
    Snapshot,
    Switches,
    forecast,
    schedule,
    wait_times,
)
from inferplane.scheduler.decisions import NEVER, Basis, WaitReason
from inferplane.scheduler.ordering import advance_usage, aged_priority, order_queue
from inferplane.scheduler.placement import PoolKey, matches
from inferplane.scheduler.questions import pinned_to

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
EXACT = Switches(provisioning=timedelta(0), draining=timedelta(0))

SHAPES = {"A100": 80, "H100": 80, "L4": 24}
CLUSTERS = ("east", "west")
WORKSPACES = ("blue", "green", "red")


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


# --- Random worlds -----------------------------------------------------------------------------


class Chance(Random):
    """A seeded source of choices. Hypothesis draws the seed and the sizes, and shrinks the sizes."""

    def minutes_ago(self, most: int) -> datetime:
        return NOW - minutes(self.randint(0, most))


def a_node(chance: Chance, index: int) -> Node:
    shape, gpus = chance.choice(list(SHAPES)), chance.choice([1, 2, 4, 8])
    health = chance.choice([*[NodeHealth.HEALTHY] * 6, *NodeHealth])
    cluster = chance.choice(CLUSTERS)
    return Node(cluster, f"n{index}", f"{shape}-{gpus}", shape, gpus, SHAPES[shape], health)


def a_selection(chance: Chance) -> Selection:
    where: list[dict[str, Any]] = [
        {"cluster_name": "east"},
        {"cluster_name": "west"},
        {"auto_cluster": True},
        {"preferred_clusters": ("west", "east")},
    ]
    what: list[dict[str, Any]] = [{"gpu_shape": shape} for shape in SHAPES]
    what.append({"auto_gpu": True, "memory_gb": 20})
    return Selection(
        **chance.choice(where),
        **chance.choice(what),
        gpus_per_node=chance.choice([1, 1, 2, 4, 8]),
        nodes=chance.choice([1, 1, 1, 2, 3]),
    )


def a_request(chance: Chance, number: int, selections: list[Selection]) -> GpuRequest:
    since = chance.minutes_ago(300)
    return GpuRequest(
        id=f"gpr-{number:08x}-0000",
        name=f"r{number}",
        workspace=chance.choice(WORKSPACES),
        selection=chance.choice(selections),
        created_at=since,
        queued_at=since,
        exit_duration=minutes(chance.randint(1, 240)),
        priority=chance.choice([50, 101, 101, 150, 250]),
        enable_eviction=chance.random() < 0.5,
        requeue_on_failure=chance.random() < 0.5,
    )


def holders(chance: Chance, count: int, floor: list[Node], selections: list[Selection]) -> list[GpuRequest]:
    """Requests that hold a part of the floor, some of them draining or still provisioning."""
    free = {(node.cluster, node.name): list(node.indexes) for node in floor}
    found: list[GpuRequest] = []
    for number in range(count):
        request = a_request(chance, 1000 + number, selections)
        cluster = chance.choice(CLUSTERS)
        parts: list[tuple[str, tuple[int, ...]]] = []
        for node in chance.sample(floor, len(floor)):
            left = free[node.cluster, node.name]
            wanted = chance.choice([1, 1, 2, 4, 8])
            if node.cluster == cluster and len(left) >= wanted and len(parts) < chance.choice([1, 1, 3]):
                parts.append((node.name, tuple(left[:wanted])))
                del left[:wanted]
        if not parts:
            continue
        began = chance.minutes_ago(100)
        holder = gpr.granted(request, Grant(cluster, tuple(sorted(parts))), began)
        state = chance.choice(["running", "running", "running", "provisioning", "draining"])
        if state != "provisioning":
            holder = gpr.started(holder, began)
        if state == "draining":
            holder = gpr.draining(holder, ProvisioningStatus.COMPLETE, NOW)
        found.append(holder)
    return found


def some_switches(chance: Chance) -> Switches:
    return Switches(
        ageing=chance.choice([None, Ageing(points=5, every=timedelta(minutes=10))]),
        fair_share=chance.choice([None, FairShare()]),
        backfill=chance.random() < 0.7,
        eviction=chance.random() < 0.7,
        provisioning=timedelta(0),
        draining=timedelta(0),
    )


def a_policy(chance: Chance, workspace: str) -> WorkspacePolicy:
    return WorkspacePolicy(
        workspace,
        priority_highest=chance.choice([299, 299, 200]),
        max_requests=chance.choice([None, None, 1, 2]),
        max_exit_duration=chance.choice([None, None, minutes(60)]),
        gpu_shapes=chance.choice([(), (), ("A100",), ("A100", "L4")]),
        max_gpus_per_request=chance.choice([None, None, 4]),
        max_memory_gb_per_request=chance.choice([None, None, 320]),
        auto_eviction=chance.random() < 0.5,
    )


def a_snapshot(seed: int, node_count: int, queue_length: int, holder_count: int) -> Snapshot:
    chance = Chance(seed)
    floor = [a_node(chance, index) for index in range(node_count)]
    selections = [a_selection(chance) for _ in range(chance.choice([1, 2, 4, 8]))]
    usable = {"blue": frozenset({"east"}), "green": frozenset(CLUSTERS)}
    waiting = [a_request(chance, number, selections) for number in range(queue_length)]
    limited = [name for name in WORKSPACES if chance.random() < 0.3]
    return Snapshot(
        NOW,
        tuple(floor),
        tuple(waiting + holders(chance, holder_count, floor, selections)),
        {name: a_policy(chance, name) for name in limited},
        usable_clusters=chance.choice([None, None, None, usable]),
        usage={"blue": chance.uniform(0, 1e6)},
        switches=some_switches(chance),
    )


def snapshots() -> st.SearchStrategy[Snapshot]:
    return st.builds(
        a_snapshot,
        seed=st.integers(0, 2**32 - 1),
        node_count=st.integers(1, 6),
        queue_length=st.integers(0, 12),
        holder_count=st.integers(0, 8),
    )


many = settings(
    max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
some = settings(many, max_examples=700)


# --- Grants ------------------------------------------------------------------------------------


@many
@given(snapshots())
def test_no_gpu_is_granted_twice_and_every_grant_is_whole(snapshot: Snapshot) -> None:
    by_name = {(node.cluster, node.name): node for node in snapshot.nodes}
    requests = {each.id: each for each in snapshot.requests}
    taken: Counter[tuple[str, str, int]] = Counter()
    for request in snapshot.requests:
        if request.holds_gpus and request.grant:
            taken.update((request.grant.cluster, n, i) for n, gpus in request.grant.nodes for i in gpus)
    for decision in schedule(snapshot).grants:
        selection, grant = requests[decision.request_id].selection, decision.grant
        assert len({name for name, _ in grant.nodes}) == len(grant.nodes) == selection.nodes
        for name, gpus in grant.nodes:
            node = by_name[grant.cluster, name]
            assert node.schedulable
            assert len(gpus) == selection.gpus_per_node
            assert set(gpus) <= set(node.indexes)
            key = PoolKey(node.cluster, node.gpu_shape, node.instance_type, node.memory_gb)
            assert matches(selection, key, snapshot.policy(requests[decision.request_id].workspace))
            taken.update((grant.cluster, name, index) for index in gpus)
    assert not [gpu for gpu, times in taken.items() if times > 1]


@many
@given(snapshots(), st.randoms(use_true_random=False))
def test_decisions_do_not_depend_on_the_order_of_the_input(snapshot: Snapshot, chance: Any) -> None:
    floor, line = list(snapshot.nodes), list(snapshot.requests)
    chance.shuffle(floor)
    chance.shuffle(line)
    once, again = schedule(snapshot), schedule(replace(snapshot, nodes=tuple(floor), requests=tuple(line)))
    assert once == again
    assert [each.message for each in once.waits] == [each.message for each in again.waits]


@many
@given(snapshots())
def test_every_request_is_granted_or_told_why_not(snapshot: Snapshot) -> None:
    decisions = schedule(snapshot)
    waiting = {each.id for each in snapshot.requests if each.status is ProvisioningStatus.QUEUED}
    told = [each.request_id for each in decisions.grants] + [each.request_id for each in decisions.waits]
    assert sorted(told) == sorted(waiting)
    assert all(each.reason and each.message for each in decisions.grants)
    assert all(each.reason and each.message for each in decisions.evictions)
    for wait in decisions.waits:
        assert wait.reason
        assert wait.message
        assert wait.what_would_change_it
        assert wait.position >= 1
        assert wait.starts_by is None or wait.starts_by > snapshot.now


@many
@given(snapshots())
def test_no_one_is_overtaken_by_an_equal(snapshot: Snapshot) -> None:
    """Among requests that are alike in everything but age, the older never waits while the younger runs."""
    snapshot = replace(snapshot, switches=replace(snapshot.switches, fair_share=None, ageing=None))
    decisions = schedule(snapshot)
    granted = {each.request_id for each in decisions.grants}
    by_id = {each.id: each for each in snapshot.requests}
    for wait in decisions.waits:
        older = by_id[wait.request_id]
        for other in granted:
            younger = by_id[other]
            alike = (
                younger.selection == older.selection
                and younger.workspace == older.workspace
                and younger.priority == older.priority
                and younger.exit_duration >= older.exit_duration
            )
            assert not (alike and (younger.queued_at, younger.id) > (older.queued_at, older.id))


@many
@given(snapshots())
def test_policies_are_never_exceeded(snapshot: Snapshot) -> None:
    by_id = {each.id: each for each in snapshot.requests}
    decisions = schedule(snapshot)
    held = Counter(each.workspace for each in snapshot.requests if each.holds_gpus)
    for decision in decisions.grants:
        request = by_id[decision.request_id]
        policy = snapshot.policy(request.workspace)
        held[request.workspace] += 1
        assert policy.max_requests is None or held[request.workspace] <= policy.max_requests
        assert not gpr.policy_problems(request, policy)
        assert not policy.gpu_shapes or decision.grant.gpu_shape in policy.gpu_shapes
        memory = decision.grant.gpus * decision.grant.memory_gb
        assert policy.max_memory_gb_per_request is None or memory <= policy.max_memory_gb_per_request
        if snapshot.usable_clusters is not None:
            assert decision.grant.cluster in snapshot.usable_clusters.get(request.workspace, ())


# --- Evictions ---------------------------------------------------------------------------------


def _after(snapshot: Snapshot, decisions: Decisions, evicted: set[str]) -> Snapshot:
    """The next picture: grants in use, `evicted` seen free. Nobody new, no time passed."""
    grants = {each.request_id: each.grant for each in decisions.grants}
    requests = []
    for request in snapshot.requests:
        if request.id in grants:
            requests.append(gpr.started(gpr.granted(request, grants[request.id], NOW), NOW))
        elif request.id in evicted:
            continue
        else:
            requests.append(request)
    return replace(snapshot, requests=tuple(requests))


@many
@given(snapshots())
def test_an_eviction_helps_its_newcomer_and_hits_only_lower_priorities_that_take_part(
    snapshot: Snapshot,
) -> None:
    snapshot = replace(snapshot, switches=replace(snapshot.switches, eviction=True))
    decisions = schedule(snapshot)
    by_id = {each.id: each for each in snapshot.requests}
    victims: dict[str, set[str]] = {}
    for eviction in decisions.evictions:
        victims.setdefault(eviction.newcomer_id, set()).add(eviction.victim_id)
        victim, newcomer = by_id[eviction.victim_id], by_id[eviction.newcomer_id]
        assert victim.priority < newcomer.priority
        assert gpr.takes_part_in_eviction(victim, snapshot.policy(victim.workspace))
        assert gpr.takes_part_in_eviction(newcomer, snapshot.policy(newcomer.workspace))
    everybody = {each.victim_id for each in decisions.evictions}
    assert len(everybody) == len(decisions.evictions), "nobody is evicted twice"
    if everybody:
        later = schedule(_after(snapshot, decisions, everybody))
        granted = {each.request_id for each in later.grants}
        assert victims.keys() <= granted
    for newcomer_id, needed in victims.items():
        for (
            spared
        ) in needed:  # without any one of its victims the newcomer would not fit: none was for nothing
            kept = _after(snapshot, decisions, everybody - {spared})
            still_waits = schedule(kept)
            assert newcomer_id not in {each.request_id for each in still_waits.grants}


# --- Time --------------------------------------------------------------------------------------


def _lived(snapshot: Snapshot, steps_max: int = 400) -> dict[str, datetime]:
    """When each request really starts, if a controller runs a whole cycle at each end, and ends are exact."""
    now, requests = snapshot.now, {each.id: each for each in snapshot.requests}
    usage, fair_share = snapshot.usage, snapshot.switches.fair_share
    starts: dict[str, datetime] = {}
    for _ in range(steps_max):
        decisions = schedule(replace(snapshot, now=now, requests=tuple(requests.values()), usage=usage))
        for eviction in decisions.evictions:
            victim = gpr.draining(
                requests[eviction.victim_id],
                ProvisioningStatus.EVICTED,
                now,
                evicted_by=eviction.newcomer_id,
            )
            requests[victim.id] = victim
        for grant in decisions.grants:
            starts.setdefault(grant.request_id, now)
            reserved = gpr.granted(requests[grant.request_id], grant.grant, now)
            requests[reserved.id] = gpr.started(reserved, now)
        ends = {}
        for each in requests.values():
            if each.holds_gpus:
                # as `expected_end` has it: what is ending is seen free a second after now
                drained = each.draining_since or now
                end = each.ends_at if each.status is not ProvisioningStatus.DRAINING else drained
                ends[each.id] = max(end or now, now + timedelta(seconds=1))
        if not ends or not any(each.status is ProvisioningStatus.QUEUED for each in requests.values()):
            break
        before, now = now, min(ends.values())
        if fair_share is not None:
            held: Counter[str] = Counter()
            for each in requests.values():
                held[each.workspace] += each.gpus_allocated
            usage = advance_usage(usage, held, now - before, fair_share)
        for request_id in [each for each, end in ends.items() if end == now]:
            request = requests[request_id]
            if request.status is not ProvisioningStatus.DRAINING:
                request = gpr.draining(request, ProvisioningStatus.COMPLETE, now)
            request = gpr.ended(request, now)
            requests[request_id] = gpr.requeued(request, now) if gpr.wants_requeue(request) else request
    return starts


def _settled(snapshot: Snapshot, **switches: Any) -> Snapshot:
    """Without draining and provisioning holders, whose ends are guesses."""
    requests = tuple(
        each
        for each in snapshot.requests
        if each.status in (ProvisioningStatus.QUEUED, ProvisioningStatus.SUCCESSFUL)
        and (each.ends_at is None or each.ends_at > NOW)
    )
    return replace(snapshot, requests=requests, switches=replace(snapshot.switches, **switches))


@some
@given(snapshots())
def test_the_forecast_is_exact_when_ends_are(snapshot: Snapshot) -> None:
    snapshot = _settled(snapshot, eviction=False)
    lived = _lived(snapshot)
    for request_id, estimate in forecast(snapshot).items():
        assert estimate.start == lived.get(request_id), estimate
        assert estimate.assumption
        assert (estimate.start == NOW) == (estimate.basis is Basis.FITS_NOW)


@some
@given(snapshots())
def test_the_forecast_sees_evictions_and_returns(snapshot: Snapshot) -> None:
    snapshot = _settled(snapshot, eviction=True)
    lived = _lived(snapshot)
    for request_id, estimate in forecast(snapshot).items():
        assert estimate.start == lived.get(request_id), estimate


@many
@given(snapshots())
def test_backfill_never_delays_the_head_of_the_queue(snapshot: Snapshot) -> None:
    snapshot = _settled(snapshot, eviction=False, ageing=None, fair_share=None)
    with_it = replace(snapshot, switches=replace(snapshot.switches, backfill=True))
    without = replace(snapshot, switches=replace(snapshot.switches, backfill=False))
    decisions = schedule(with_it)
    head = next((each for each in decisions.waits if each.reason not in NEVER), None)
    if head is None or head.reason is WaitReason.TOO_MANY_REQUESTS:
        return
    early, late = forecast(with_it)[head.request_id].start, forecast(without)[head.request_id].start
    assert early is not None
    assert late is not None
    assert early <= late
    assert head.starts_by is not None
    assert early <= head.starts_by, "and it starts when it was promised to, at the latest"


@some
@given(snapshots())
def test_what_must_wait_is_never_said_to_start_now(snapshot: Snapshot) -> None:
    decisions, estimates = schedule(snapshot), forecast(snapshot)
    assert estimates.keys() == {
        *(each.request_id for each in decisions.waits),
        *(each.request_id for each in decisions.grants),
    }
    for wait in decisions.waits:
        estimate = estimates[wait.request_id]
        assert estimate.start is None or estimate.start > snapshot.now
        assert estimate.assumption
        assert estimate.position == wait.position


def asked_about(chance: Chance) -> GpuRequest:
    """A request that is not in line, for one or for several kinds of node."""
    anything = Selection(
        auto_cluster=True, auto_gpu=True, memory_gb=20, gpus_per_node=chance.choice([1, 1, 4])
    )
    request = a_request(chance, 5000, [a_selection(chance), anything])
    return replace(request, created_at=NOW, queued_at=NOW)


@many
@given(snapshots(), st.integers(0, 2**32 - 1))
def test_wait_times_are_those_of_the_forecast_after_really_asking(snapshot: Snapshot, seed: int) -> None:
    chance = Chance(seed)
    renewing = chance.choice([0, 0, 0.4])
    requests = tuple(replace(each, auto_renew=chance.random() < renewing) for each in snapshot.requests)
    snapshot = replace(snapshot, requests=requests)
    request = asked_about(chance)
    for candidate in wait_times(snapshot, request):
        asked = replace(request, selection=pinned_to(request.selection, candidate.pool))
        expected = forecast(replace(snapshot, requests=(*requests, asked)))[request.id]
        found = candidate.estimate
        assert (found.start, found.position, found.basis) == (
            expected.start,
            expected.position,
            expected.basis,
        )
        assert candidate.explanation


# --- Order -------------------------------------------------------------------------------------


@many
@given(snapshots())
def test_the_order_is_total_and_goes_by_priority_first(snapshot: Snapshot) -> None:
    waiting = [each for each in snapshot.requests if each.status is ProvisioningStatus.QUEUED]
    switches = snapshot.switches
    line = order_queue(waiting, NOW, snapshot.usage, switches).requests
    assert sorted(each.id for each in line) == sorted(each.id for each in waiting)
    levels = [
        each.priority if switches.ageing is None else aged_priority(each, NOW, switches.ageing)
        for each in line
    ]
    assert levels == sorted(levels, reverse=True)
