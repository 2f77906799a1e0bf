"""What is said of an endpoint that runs on GPUs: in line, granted, taken away, and what comes first."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    Exit,
    GpuNote,
    GpuSpec,
    InferenceEndpoint,
    ModelSpec,
    PublicStatus,
    Replica,
    ReplicaId,
    ReplicaState,
    RestartRecord,
    Scaling,
    public_state,
)
from inferplane.domain.gpu_request import ProvisioningStatus, Selection
from inferplane.domain.reasons import ReasonCode, reason_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UID = "0123456789ab"
GPR = "gpr-00000001-0001"
SPEC = GpuSpec(Selection("c", gpu_shape="A100", instance_type="a2"))
PRESENT = ArtifactState(ArtifactPhase.PRESENT, path="/m")
FETCHING = ArtifactState(ArtifactPhase.FETCHING, received_bytes=512, total_bytes=2048)
UNFETCHABLE = ArtifactState(
    ArtifactPhase.FAILED, reason=ReasonCode.MODEL_NOT_FOUND, message="nothing is stored at s3://b/k"
)
P, R, S = ProvisioningStatus, ReplicaState, PublicStatus


def _endpoint(
    note: GpuNote | None, *, wanted: int = 1, gpu: GpuSpec | None = SPEC, **status: Any
) -> InferenceEndpoint:
    return InferenceEndpoint(
        uid=UID,
        workspace="default",
        cluster="c",
        name="iris",
        namespace="n",
        spec=EndpointSpec(ModelSpec("sklearn", "/m"), Scaling(wanted, wanted), gpu=gpu),
        generation=1,
        created_at=NOW,
        created_by="owner",
        status=EndpointStatus(**{"observed_generation": 1, "artifact": PRESENT, "gpu": note, **status}),
    )


def _replica(state: ReplicaState, index: int = 0) -> Replica:
    return Replica(ReplicaId(UID, 1, index), state)


def _note(status: ProvisioningStatus, **more: Any) -> GpuNote:
    return GpuNote(GPR, status, **more)


_ENDED = {
    ReasonCode.EXIT_DURATION_REACHED,
    ReasonCode.IDLE_TIMEOUT,
    ReasonCode.EVICTED,
    ReasonCode.UNSCHEDULABLE,
    ReasonCode.GPU_RELEASED,
}
"""What has its whole remedy in its own words."""

_NO_FAILURE = {
    ReasonCode.ACCEPTED,
    ReasonCode.DOWNLOADING,
    ReasonCode.STARTING,
    ReasonCode.LOADING,
    ReasonCode.TERMINATING,
    ReasonCode.ROUTE_NOT_READY,
    ReasonCode.DNS_NOT_READY,
    ReasonCode.AWAITING_GPU,
    ReasonCode.STOPPED_BY_USER,
    ReasonCode.SCALED_TO_ZERO,
    ReasonCode.ROLLED_BACK,
    ReasonCode.ROLLOUT_IN_PROGRESS,
}
"""For none of these a GPU request ends."""

IN_LINE = _note(
    P.QUEUED,
    position=2,
    message="position 2; 1 GPU is needed; 0 are free; ann holds 1 GPU until 04:00",
    estimated_start=NOW,
    remedy="An earlier release.",
)
GRANTED = _note(P.PROVISIONING, cluster="c", nodes=(("gpu-0", (0,)), ("gpu-1", (2, 3))), since=NOW)
ENDED_EXIT = RestartRecord("r1-0", 3, Exit(NOW, exit_code=1, message="boom"), NOW + timedelta(minutes=1))

Case = tuple[str, InferenceEndpoint, PublicStatus, ReasonCode | None, str, str]
_AGAIN = reason_of(ReasonCode.GPU_RELEASED).next_action
_WAIT = reason_of(ReasonCode.AWAITING_GPU).next_action
CASES: list[Case] = [
    (
        "not asked for yet",
        _endpoint(None),
        S.PENDING,
        ReasonCode.ACCEPTED,
        "its GPUs are about to be asked for",
        reason_of(ReasonCode.ACCEPTED).next_action,
    ),
    (
        "in line: the explanation, the estimate, what would change it",
        _endpoint(IN_LINE),
        S.QUEUED,
        ReasonCode.AWAITING_GPU,
        f"{IN_LINE.message}; estimated start 2026-01-02 03:04:05Z",
        "An earlier release.",
    ),
    (
        "in line, nothing explained",
        _endpoint(_note(P.QUEUED, position=7)),
        S.QUEUED,
        ReasonCode.AWAITING_GPU,
        "position 7 in line for its GPUs",
        _WAIT,
    ),
    (
        "in line since a moment ago",
        _endpoint(_note(P.QUEUED)),
        S.QUEUED,
        ReasonCode.AWAITING_GPU,
        "its GPUs are asked for; its place in line is not known yet",
        _WAIT,
    ),
    (
        "what no end of another request will change has its own reason",
        _endpoint(_note(P.QUEUED, message="no node has an H900", reason=ReasonCode.NO_SUCH_SHAPE)),
        S.QUEUED,
        ReasonCode.NO_SUCH_SHAPE,
        "no node has an H900",
        reason_of(ReasonCode.NO_SUCH_SHAPE).next_action,
    ),
    (
        "the line comes before the download that goes on meanwhile",
        _endpoint(IN_LINE, artifact=FETCHING),
        S.QUEUED,
        ReasonCode.AWAITING_GPU,
        "position 2",
        "An earlier release.",
    ),
    (
        "a model that cannot be had is said at once, not after the wait",
        _endpoint(IN_LINE, artifact=UNFETCHABLE),
        S.FAILED,
        ReasonCode.MODEL_NOT_FOUND,
        "nothing is stored",
        reason_of(ReasonCode.MODEL_NOT_FOUND).next_action,
    ),
    (
        "how servers ended before the eviction is history",
        _endpoint(IN_LINE, restarts=(ENDED_EXIT,)),
        S.QUEUED,
        ReasonCode.AWAITING_GPU,
        "position 2",
        "An earlier release.",
    ),
    (
        "granted: which node, since when",
        _endpoint(GRANTED),
        S.PROVISIONING,
        ReasonCode.STARTING,
        "granted GPU 0 of node gpu-0, GPUs 2, 3 of node gpu-1 on cluster c since 2026-01-02 03:04:05Z",
        reason_of(ReasonCode.STARTING).next_action,
    ),
    (
        "granted many nodes",
        _endpoint(replace(GRANTED, nodes=tuple((f"n{number}", (0,)) for number in range(5)))),
        S.PROVISIONING,
        ReasonCode.STARTING,
        "GPU 0 of node n2 and of 2 more nodes on cluster c",
        reason_of(ReasonCode.STARTING).next_action,
    ),
    (
        "granted, nothing known of the nodes",
        _endpoint(_note(P.SUCCESSFUL)),
        S.PROVISIONING,
        ReasonCode.STARTING,
        "granted its GPUs; its server is next",
        reason_of(ReasonCode.STARTING).next_action,
    ),
    (
        "granted while the model is fetched",
        _endpoint(GRANTED, artifact=FETCHING),
        S.DOWNLOADING,
        ReasonCode.DOWNLOADING,
        "512 B of 2.0 KiB",
        reason_of(ReasonCode.DOWNLOADING).next_action,
    ),
    (
        "granted, server loading",
        _endpoint(GRANTED, replicas=(_replica(R.LOADING),)),
        S.LOADING,
        ReasonCode.LOADING,
        "is loading the model",
        reason_of(ReasonCode.LOADING).next_action,
    ),
    (
        "granted, server fails",
        _endpoint(GRANTED, restarts=(ENDED_EXIT,)),
        S.FAILED,
        ReasonCode.SERVER_EXITED,
        "boom",
        reason_of(ReasonCode.SERVER_EXITED).next_action,
    ),
    ("serving", _endpoint(GRANTED, replicas=(_replica(R.READY),), routed=("r1-0",)), S.RUNNING, None, "", ""),
    (
        "evicted and asked for again",
        _endpoint(
            _note(
                P.DRAINING,
                message="its GPU goes to gpr-2, which has priority 250",
                ended_reason=ReasonCode.EVICTED,
                requeues=True,
            ),
            replicas=(_replica(R.STOPPING),),
        ),
        S.QUEUED,
        ReasonCode.EVICTED,
        "its GPU goes to gpr-2, which has priority 250; its GPUs are asked for again",
        reason_of(ReasonCode.EVICTED).next_action,
    ),
    (
        "evicted, and nobody asks again",
        _endpoint(_note(P.EVICTED), restarts=(ENDED_EXIT,)),
        S.FAILED,
        ReasonCode.EVICTED,
        "the endpoint's GPUs went to a request of higher priority",
        _AGAIN,
    ),
    (
        "released by a person",
        _endpoint(_note(P.EARLY_RELEASED)),
        S.FAILED,
        ReasonCode.GPU_RELEASED,
        "the GPUs under the endpoint were released",
        _AGAIN,
    ),
    (
        "released by a person, and held by its servers for a moment longer",
        _endpoint(_note(P.DRAINING, message="its GPU request was released by ann", nodes=(("gpu-0", (0,)),))),
        S.FAILED,
        ReasonCode.GPU_RELEASED,
        "its GPU request was released by ann; they are held until its model servers have ended",
        _AGAIN,
    ),
    (
        "it could not use its GPUs: the true cause, and how to go on",
        _endpoint(
            _note(P.FAILED, message="not a model", ended_reason=ReasonCode.MODEL_LOAD_FAILED),
            restarts=(ENDED_EXIT,),
        ),
        S.FAILED,
        ReasonCode.MODEL_LOAD_FAILED,
        "not a model",
        f"{reason_of(ReasonCode.MODEL_LOAD_FAILED).next_action} Then `inferplane start iris` asks for GPUs again,"
        " or delete the endpoint.",
    ),
    (
        "in line, and nobody knows for how long",
        _endpoint(_note(P.QUEUED, position=1, message="position 1", assumption="what holds them is renewed")),
        S.QUEUED,
        ReasonCode.AWAITING_GPU,
        "position 1; there is no estimate: what holds them is renewed",
        _WAIT,
    ),
    (
        "its time is over",
        _endpoint(_note(P.COMPLETE, message="it began at 1 and ended at 2")),
        S.FAILED,
        ReasonCode.EXIT_DURATION_REACHED,
        "it began at 1 and ended at 2",
        reason_of(ReasonCode.EXIT_DURATION_REACHED).next_action,
    ),
    (
        "idle for too long",
        _endpoint(_note(P.TIMED_OUT)),
        S.FAILED,
        ReasonCode.IDLE_TIMEOUT,
        "",
        reason_of(ReasonCode.IDLE_TIMEOUT).next_action,
    ),
    (
        "could never be granted",
        _endpoint(_note(P.FAILED, message="cluster c is gone", remedy="Name another cluster.")),
        S.FAILED,
        ReasonCode.UNSCHEDULABLE,
        "cluster c is gone",
        "Name another cluster.",
    ),
    (
        "being given back, and nobody asks again",
        _endpoint(_note(P.DRAINING), replicas=(_replica(R.STOPPING),)),
        S.FAILED,
        ReasonCode.GPU_RELEASED,
        "",
        _AGAIN,
    ),
    (
        "GPUs that are gone come before a model that cannot be had: nothing is tried any more",
        _endpoint(_note(P.EARLY_RELEASED), artifact=UNFETCHABLE),
        S.FAILED,
        ReasonCode.GPU_RELEASED,
        "",
        _AGAIN,
    ),
    (
        "what serves beside GPUs that are being given back",
        _endpoint(_note(P.DRAINING), wanted=2, replicas=(_replica(R.READY),), routed=("r1-0",)),
        S.DEGRADED,
        ReasonCode.GPU_RELEASED,
        "1 of 2 replicas answer; the GPUs under the endpoint were released",
        _AGAIN,
    ),
    (
        "an endpoint on CPU says nothing of the GPUs it once had",
        _endpoint(_note(P.EVICTED), gpu=None),
        S.PROVISIONING,
        ReasonCode.STARTING,
        "its server is next",
        reason_of(ReasonCode.STARTING).next_action,
    ),
]


@pytest.mark.parametrize(
    ("name", "endpoint", "status", "reason", "words", "next_action"), CASES, ids=[case[0] for case in CASES]
)
def test_what_is_said(
    name: str,
    endpoint: InferenceEndpoint,
    status: PublicStatus,
    reason: ReasonCode | None,
    words: str,
    next_action: str,
) -> None:
    state = public_state(endpoint)
    assert (state.status, state.reason) == (status, reason)
    assert words in state.message
    assert state.next_action == next_action.replace("NAME", endpoint.name)


def test_a_person_and_a_deletion_come_before_the_gpus() -> None:
    endpoint = _endpoint(IN_LINE)
    stopped = replace(endpoint, spec=replace(endpoint.spec, stopped=True))
    assert public_state(stopped).status is S.STOPPED
    deleted = replace(
        endpoint, deletion_requested_at=NOW, status=replace(endpoint.status, left=("GPUs of gpr-1",))
    )
    assert public_state(deleted).status is S.TERMINATING
    assert "left: GPUs of gpr-1" in public_state(deleted).message


_REASONS = st.sampled_from(list(ReasonCode))
_NOTES = st.builds(
    GpuNote,
    gpr_id=st.just(GPR),
    status=st.sampled_from(list(ProvisioningStatus)),
    position=st.none() | st.integers(1, 9),
    message=st.text(max_size=5),
    estimated_start=st.none() | st.just(NOW),
    since=st.none() | st.just(NOW),
    nodes=st.lists(st.tuples(st.just("n"), st.just((0, 1))), max_size=6).map(tuple),
    ended_reason=st.none() | _REASONS,
    requeues=st.booleans(),
    remedy=st.text(max_size=3),
    reason=_REASONS,
)


@given(
    note=st.none() | _NOTES,
    states=st.lists(st.sampled_from(list(ReplicaState)), max_size=3),
    artifact=st.sampled_from([PRESENT, FETCHING, UNFETCHABLE, ArtifactState()]),
    routed=st.booleans(),
    failed=st.booleans(),
)
def test_whatever_is_known_of_the_gpus_something_is_said(
    note: GpuNote | None, states: list[ReplicaState], artifact: ArtifactState, routed: bool, failed: bool
) -> None:
    endpoint = _endpoint(
        note,
        replicas=tuple(_replica(state, index) for index, state in enumerate(states)),
        artifact=artifact,
        routed=("r1-0",) if routed else (),
        restarts=(ENDED_EXIT,) if failed else (),
    )
    state = public_state(endpoint)
    if state.status is S.RUNNING:
        assert state.reason is None
        return
    assert state.reason is not None
    assert state.message
    assert state.next_action
    if state.status is S.QUEUED:
        assert note is not None
        assert note.status is P.QUEUED or note.requeues


def test_one_that_was_stopped_by_the_end_of_its_request_says_so() -> None:
    endpoint = _endpoint(None)
    spec = replace(
        endpoint.spec,
        stopped=True,
        stopped_by="ann",
        stopped_because="its GPU request iris-gpr-abc123 was deleted by ann",
    )
    state = public_state(replace(endpoint, spec=spec))
    assert (state.status, state.reason) == (S.STOPPED, ReasonCode.GPU_RELEASED)
    assert state.message == "stopped, because its GPU request iris-gpr-abc123 was deleted by ann"
    assert state.next_action == reason_of(ReasonCode.GPU_RELEASED).next_action


def test_the_proof_of_why_it_could_not_use_its_gpus_stays() -> None:
    crashed = replace(ENDED_EXIT, failures=5)
    note = _note(P.FAILED, message="ended 5 times in a row", ended_reason=ReasonCode.CRASH_LOOP)
    assert public_state(_endpoint(note, restarts=(crashed,))).exit == crashed.last_exit
    other = _note(P.FAILED, message="nothing is there", ended_reason=ReasonCode.MODEL_NOT_FOUND)
    assert public_state(_endpoint(other, restarts=(crashed,))).exit is None


@pytest.mark.parametrize("reason", sorted(set(ReasonCode) - _NO_FAILURE))
def test_where_nothing_is_tried_again_nobody_is_told_to_wait_for_it(reason: ReasonCode) -> None:
    state = public_state(_endpoint(_note(P.FAILED, message="why", ended_reason=reason)))
    assert state.reason is reason
    said = state.next_action.lower()
    untrue = ("by itself", "retried", "tried again", "nothing to do", "resumes", "replaced", "requeued")
    assert not [words for words in untrue if words in said]
    assert not said.startswith("wait")
    if "`inferplane start iris`" in said:  # said once, and of this endpoint
        assert "start the endpoint again" not in said
        assert "create the endpoint again" not in said
    else:
        assert reason in _ENDED
