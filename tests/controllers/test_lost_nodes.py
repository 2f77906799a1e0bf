"""Nodes of a Kubernetes cluster that die or are cordoned, and who holds GPUs there."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from inferplane.controllers.admission_plan import NODE_GRACE, AdmissionPlan, Picture, plan
from inferplane.controllers.inventory import with_health_since
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    GpuNote,
    GpuSpec,
    InferenceEndpoint,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
)
from inferplane.domain.gpu_request import (
    GpuRequest,
    Grant,
    ProvisioningStatus,
    Selection,
    draining,
    granted,
    started,
)
from inferplane.domain.inventory import Node, NodeHealth
from inferplane.domain.reasons import ReasonCode
from inferplane.scheduler import Snapshot

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LATER = T0 + timedelta(minutes=30)
UID = "0123456789ab"
EAST = "east"
GRANT = Grant(EAST, (("one", (0,)),), "NVIDIA-A100", "a2", 80)
SELECTION = Selection(EAST, gpu_shape="NVIDIA-A100", instance_type="a2", memory_gb=80)
UNHEALTHY, UNSCHEDULABLE = NodeHealth.UNHEALTHY, NodeHealth.UNSCHEDULABLE


def node(health: NodeHealth = NodeHealth.HEALTHY, name: str = "one", *, since: datetime | None = T0) -> Node:
    return Node(EAST, name, "a2", "NVIDIA-A100", 1, 80, health=health, health_since=since)


def request(*, uid: str = UID, renews: bool = True) -> GpuRequest:
    asked = GpuRequest("gpr-1", "iris-gpr-1", "red", SELECTION, T0, T0, exit_duration=timedelta(hours=9))
    asked = replace(asked, endpoint_uid=uid, endpoint_name="iris" if uid else "", auto_renew=renews)
    return granted(asked, GRANT, T0)


def endpoint(*states: ReplicaState, of: GpuRequest) -> InferenceEndpoint:
    since = {
        ProvisioningStatus.PROVISIONING: of.granted_at,
        ProvisioningStatus.SUCCESSFUL: of.started_at,
        ProvisioningStatus.DRAINING: of.draining_since,
    }[of.status]
    replicas = tuple(Replica(ReplicaId(UID, 1, index), state) for index, state in enumerate(states))
    status = EndpointStatus(
        observed_generation=1,
        replicas=replicas,
        routed=tuple(each.id.name for each in replicas if each.state is ReplicaState.READY),
        gpu=GpuNote(of.id, of.status, EAST, GRANT.nodes, since=since),
    )
    return InferenceEndpoint(
        uid=UID,
        workspace="red",
        cluster=EAST,
        name="iris",
        namespace="red-iris-000000",
        spec=EndpointSpec(ModelSpec("sklearn", "s3://m"), gpu=GpuSpec(SELECTION)),
        generation=1,
        created_at=T0,
        created_by="owner",
        status=status,
    )


def decide(
    held: GpuRequest, of: InferenceEndpoint | None, *nodes: Node, answers: bool = True, now: datetime = LATER
) -> AdmissionPlan:
    snapshot = Snapshot(now=now, nodes=nodes, requests=(held,))
    endpoints = {UID: of} if of is not None else {}
    return plan(Picture(snapshot, endpoints, kubernetes=frozenset({EAST} if answers else ())))


def after(decided: AdmissionPlan) -> GpuRequest | None:
    return decided.changes[0].after if decided.changes else None


def test_a_dead_node_s_grant_drains_and_is_asked_for_elsewhere() -> None:
    held = started(request(), T0)
    drained = after(decide(held, endpoint(ReplicaState.STARTING, of=held), node(UNHEALTHY)))
    assert drained is not None
    assert (drained.status, drained.ending_as) == (ProvisioningStatus.DRAINING, ProvisioningStatus.FAILED)
    assert drained.failure_code is ReasonCode.NODE_NOT_READY
    assert "node one of cluster east does not answer since 2026-01-01 00:00:00Z" in drained.failure_reason

    # Its pod stays Terminating for as long as the machine is dead, which is no reason to wait.
    there = endpoint(ReplicaState.STOPPING, of=drained)
    again = after(decide(drained, there, node(UNHEALTHY), node(name="two"), now=LATER + NODE_GRACE))
    assert again is not None
    assert (again.status, again.queued_at) == (ProvisioningStatus.PROVISIONING, held.queued_at)
    assert again.grant is not None
    assert again.grant.nodes == (("two", (0,)),)


def test_it_drains_until_its_endpoint_knows_and_while_the_machine_lives() -> None:
    held = started(request(), T0)
    drained = draining(held, ProvisioningStatus.FAILED, LATER, failure_code=ReasonCode.NODE_NOT_READY)
    unaware = endpoint(ReplicaState.STOPPING, of=held)
    assert after(decide(drained, unaware, node(UNHEALTHY))) is None
    aware = endpoint(ReplicaState.STOPPING, of=drained)
    assert after(decide(drained, aware, node(UNSCHEDULABLE))) is None
    assert after(decide(drained, aware, node())) is None


@pytest.mark.parametrize(
    ("health", "states", "lost"),
    [
        (UNHEALTHY, (ReplicaState.READY,), False),
        (UNHEALTHY, (ReplicaState.LOADING,), True),
        (UNHEALTHY, (ReplicaState.STARTING, ReplicaState.READY), False),
        (UNSCHEDULABLE, (ReplicaState.READY,), False),
        (UNSCHEDULABLE, (ReplicaState.LOADING,), False),
        (UNSCHEDULABLE, (ReplicaState.STARTING,), True),
        (UNSCHEDULABLE, (), True),
        (NodeHealth.HEALTHY, (), False),
    ],
)
def test_nothing_is_taken_from_who_answers(
    health: NodeHealth, states: tuple[ReplicaState, ...], lost: bool
) -> None:
    held = started(request(), T0)
    there = endpoint(*states, of=held)
    now = after(decide(held, there, node(health)))
    assert (now is not None and now.status is ProvisioningStatus.DRAINING) is lost


def test_a_grant_that_has_not_come_into_use_goes_too() -> None:
    held = request()
    drained = after(decide(held, endpoint(ReplicaState.STARTING, of=held), node(UNSCHEDULABLE)))
    assert drained is not None
    assert drained.failure_code is ReasonCode.NODE_NOT_READY
    assert "takes no new pods" in drained.failure_reason


def test_a_short_cut_and_a_cluster_that_is_away_are_no_loss() -> None:
    held = started(request(), T0)
    there = endpoint(ReplicaState.STARTING, of=held)
    fresh = node(UNHEALTHY, since=LATER - NODE_GRACE + timedelta(seconds=1))
    decided = decide(held, there, fresh)
    assert after(decided) is None
    assert decided.look_again_seconds == 1.0
    assert after(decide(held, there, node(UNHEALTHY), answers=False)) is None
    assert after(decide(held, there, node(UNHEALTHY, since=None))) is None


def test_a_request_without_an_endpoint_loses_only_dead_nodes() -> None:
    held = started(request(uid=""), T0)
    assert after(decide(held, None, node(UNSCHEDULABLE))) is None
    drained = after(decide(held, None, node(UNHEALTHY)))
    assert drained is not None
    assert drained.failure_code is ReasonCode.NODE_NOT_READY


def test_since_when_a_node_is_out_of_order() -> None:
    bad = node(UNHEALTHY, since=None)
    [first] = with_health_since([node(since=None)], [bad], T0)
    assert first.health_since == T0
    [still] = with_health_since([first], [bad], LATER)
    assert still.health_since == T0
    [cordoned] = with_health_since([first], [node(UNSCHEDULABLE, since=None)], LATER)
    assert cordoned.health_since == LATER
    [well] = with_health_since([first], [node(since=None)], LATER)
    assert well.health_since is None
