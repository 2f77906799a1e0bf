"""What is said of an endpoint whose cluster runs its replicas by itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    InferenceEndpoint,
    Ingress,
    ModelSpec,
    PublicState,
    PublicStatus,
    Replica,
    ReplicaId,
    ReplicaState,
    Scaling,
    Waiting,
    public_state,
)
from inferplane.domain.reasons import ReasonCode

AT = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
UID = "0123456789ab"
NO_IMAGE = Waiting(ReasonCode.IMAGE_PULL_BACK_OFF, "image x: not found", AT, fails=True)
NO_ROOM = Waiting(ReasonCode.UNSCHEDULABLE, "0/1 nodes are available", AT)
LOADS = Waiting(ReasonCode.LOADING, "the model server runs and is not ready yet", AT)


def replica(name: str, state: ReplicaState, waiting: Waiting | None = None) -> Replica:
    revision, index = name.removeprefix("r").split("-")
    return Replica(ReplicaId(UID, int(revision), int(index)), state, waiting=waiting)


def ready(name: str) -> Replica:
    return replica(name, ReplicaState.READY)


def coming(name: str, waiting: Waiting) -> Replica:
    return replica(name, ReplicaState.STARTING, waiting)


def endpoint(*replicas: Replica, wanted: int = 1, revision: int = 1) -> InferenceEndpoint:
    status = EndpointStatus(
        observed_generation=1,
        replicas=replicas,
        routed=tuple(each.id.name for each in replicas if each.state is ReplicaState.READY),
        ingress=Ingress("http://demo.example.com", "192.0.2.1", ready=True),
    )
    model = ModelSpec(format="sklearn", storage_uri="s3://bucket/model")
    spec = EndpointSpec(model=model, scaling=Scaling(wanted, wanted), revision=revision)
    return InferenceEndpoint(UID, "team", "worker-1", "demo", "team-demo", spec, 1, AT, "ada", status)


def said(*replicas: Replica, wanted: int = 1, revision: int = 1) -> PublicState:
    return public_state(endpoint(*replicas, wanted=wanted, revision=revision))


@pytest.mark.parametrize(
    ("replicas", "wanted", "revision", "status", "reason"),
    [
        ((ready("r1-0"),), 1, 1, PublicStatus.RUNNING, None),
        ((ready("r1-0"), ready("r1-1"), ready("r1-2")), 1, 1, PublicStatus.RUNNING, None),
        ((ready("r1-0"), coming("r1-1", LOADS)), 2, 1, PublicStatus.RUNNING, None),
        ((ready("r1-0"),), 2, 1, PublicStatus.RUNNING, None),
        ((ready("r1-0"), coming("r1-1", NO_ROOM)), 1, 1, PublicStatus.RUNNING, None),
        ((ready("r1-0"), coming("r1-1", NO_ROOM)), 2, 1, PublicStatus.DEGRADED, ReasonCode.UNSCHEDULABLE),
        ((ready("r1-0"), coming("r1-1", NO_IMAGE)), 1, 1, PublicStatus.DEGRADED, ReasonCode.IMAGE_PULL_BACK_OFF),
        ((ready("r1-0"), coming("r2-0", LOADS)), 1, 2, PublicStatus.UPDATING, ReasonCode.LOADING),
        ((ready("r1-0"), coming("r2-0", NO_IMAGE)), 1, 2, PublicStatus.DEGRADED, ReasonCode.IMAGE_PULL_BACK_OFF),
        ((coming("r1-0", NO_IMAGE),), 1, 1, PublicStatus.FAILED, ReasonCode.IMAGE_PULL_BACK_OFF),
        ((coming("r1-0", NO_ROOM),), 1, 1, PublicStatus.PENDING, ReasonCode.UNSCHEDULABLE),
        ((coming("r1-0", LOADS),), 1, 1, PublicStatus.LOADING, ReasonCode.LOADING),
    ],
)  # fmt: skip
def test_what_serves_is_told_from_what_does_not_come_up(
    replicas: tuple[Replica, ...], wanted: int, revision: int, status: PublicStatus, reason: ReasonCode | None
) -> None:
    state = said(*replicas, wanted=wanted, revision=revision)
    assert (state.status, state.reason) == (status, reason)


def test_the_failing_revision_is_named_beside_the_one_that_serves() -> None:
    state = said(ready("r1-0"), coming("r2-0", NO_IMAGE), revision=2)
    assert state.message == "revision 1 serves while revision 2 is not there yet; image x: not found"
    assert (state.predict, state.ingress) == ("Ready", "Ready")


@pytest.mark.parametrize(
    ("replicas", "status"),
    [
        ((ready("r1-0"),), PublicStatus.RUNNING),
        ((coming("r1-0", LOADS),), PublicStatus.LOADING),
        ((coming("r1-0", NO_ROOM),), PublicStatus.PENDING),
        ((), PublicStatus.PENDING),
    ],
)
def test_a_cluster_that_is_away_changes_no_word(replicas: tuple[Replica, ...], status: PublicStatus) -> None:
    known = endpoint(*replicas)
    away = replace(known.status, unreachable_since=AT, unreachable_message="connection refused")
    state = public_state(replace(known, status=away))
    assert (state.status, state.reason) == (status, ReasonCode.CLUSTER_UNREACHABLE)
    assert "since 2026-11-24 12:00:00Z (connection refused)" in state.message


def test_a_delete_says_that_its_cluster_is_away() -> None:
    known = endpoint(ready("r1-0"))
    away = replace(known.status, left=("namespace",), unreachable_since=AT, unreachable_message="timeout")
    state = public_state(replace(known, status=away, deletion_requested_at=AT))
    assert state.status is PublicStatus.TERMINATING
    assert state.message == (
        "being deleted; left: namespace; its cluster has not answered since 2026-11-24 12:00:00Z (timeout)"
    )


def test_a_server_that_keeps_ending_is_degraded_while_it_answers() -> None:
    unsteady = Waiting(ReasonCode.OUT_OF_MEMORY, "it was restarted 3 times", AT)
    state = said(replica("r1-0", ReplicaState.READY, unsteady))
    assert (state.status, state.reason, state.predict) == (
        PublicStatus.DEGRADED,
        ReasonCode.OUT_OF_MEMORY,
        "Ready",
    )
