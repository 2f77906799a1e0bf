"""What a user is told, over every branch: the word, the reason, and which of two truths comes first."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    CRASH_LOOP_FAILURES,
    EndpointSpec,
    EndpointStatus,
    Exit,
    InferenceEndpoint,
    ModelSpec,
    PublicState,
    PublicStatus,
    Replica,
    ReplicaId,
    ReplicaState,
    RestartRecord,
    Scaling,
    download_sentence,
    human_bytes,
    human_seconds,
    public_state,
)
from inferplane.domain.reasons import ReasonCode, reason_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
UID = "0123456789ab"
PRESENT = ArtifactState(ArtifactPhase.PRESENT, path="/m")


def _endpoint(
    *, wanted: int = 1, stopped: bool = False, deleted: bool = False, generation: int = 1, **status: Any
) -> InferenceEndpoint:
    return InferenceEndpoint(
        uid=UID,
        workspace="default",
        cluster="local",
        name="iris",
        namespace="default-iris-abc123",
        spec=EndpointSpec(
            ModelSpec("sklearn", "/m"), Scaling(wanted, wanted), stopped=stopped, stopped_by="ann"
        ),
        generation=generation,
        created_at=NOW,
        created_by="owner",
        deletion_requested_at=NOW if deleted else None,
        status=EndpointStatus(**{"observed_generation": 1, **status}),
    )


def _replica(state: ReplicaState, index: int = 0) -> Replica:
    return Replica(ReplicaId(UID, 1, index), state)


def _restart(
    failures: int = 1, reason: ReasonCode = ReasonCode.SERVER_EXITED, *, message: str = "", index: int = 0
) -> RestartRecord:
    last = Exit(NOW, exit_code=3, reason=reason, message=message, log_tail=("Traceback", "ValueError: x"))
    return RestartRecord(f"r1-{index}", failures, last, LATER)


P, R, S = ArtifactPhase, ReplicaState, PublicStatus
FETCH_FAILED = ArtifactState(
    P.FAILED,
    reason=ReasonCode.MODEL_NOT_FOUND,
    message="nothing is stored at s3://b/k",
    next_attempt_at=LATER,
)
SERVING: dict[str, Any] = {"replicas": (_replica(R.READY),), "routed": ("r1-0",), "artifact": PRESENT}

Case = tuple[str, InferenceEndpoint, PublicStatus, ReasonCode | None, str]
CASES: list[Case] = [
    # On the way.
    (
        "nothing observed yet",
        _endpoint(observed_generation=0),
        S.PENDING,
        ReasonCode.ACCEPTED,
        "a controller has not acted on it yet",
    ),
    ("observed, nothing begun", _endpoint(), S.PENDING, ReasonCode.ACCEPTED, "about to begin"),
    (
        "download under way",
        _endpoint(artifact=ArtifactState(P.FETCHING, received_bytes=512, total_bytes=2048)),
        S.DOWNLOADING,
        ReasonCode.DOWNLOADING,
        "512 B of 2.0 KiB",
    ),
    ("model here", _endpoint(artifact=PRESENT), S.PROVISIONING, ReasonCode.STARTING, "its server is next"),
    (
        "earlier server ending",
        _endpoint(artifact=PRESENT, replicas=(_replica(R.STOPPING),)),
        S.PROVISIONING,
        ReasonCode.STARTING,
        "an earlier model server is ending",
    ),
    (
        "server starting",
        _endpoint(artifact=PRESENT, replicas=(_replica(R.STARTING),)),
        S.LOADING,
        ReasonCode.STARTING,
        "is starting",
    ),
    (
        "server loading",
        _endpoint(artifact=PRESENT, replicas=(_replica(R.LOADING),)),
        S.LOADING,
        ReasonCode.LOADING,
        "is loading the model",
    ),
    (
        "ready, not routed",
        _endpoint(artifact=PRESENT, replicas=(_replica(R.READY),)),
        S.LOADING,
        ReasonCode.ROUTE_NOT_READY,
        "the gateway is taking up its route",
    ),
    ("ready and routed", _endpoint(**SERVING), S.RUNNING, None, ""),
    # Failing.
    (
        "fetch failed",
        _endpoint(artifact=FETCH_FAILED),
        S.FAILED,
        ReasonCode.MODEL_NOT_FOUND,
        "nothing is stored",
    ),
    (
        "engine problem",
        _endpoint(problem=ReasonCode.ENGINE_ERROR, problem_message="cannot fork"),
        S.FAILED,
        ReasonCode.ENGINE_ERROR,
        "cannot fork",
    ),
    (
        "server ended once, next try waits",
        _endpoint(artifact=PRESENT, restarts=(_restart(),)),
        S.FAILED,
        ReasonCode.SERVER_EXITED,
        "3",
    ),
    (
        "server ended once, next try runs",
        _endpoint(artifact=PRESENT, replicas=(_replica(R.LOADING),), restarts=(_restart(),)),
        S.LOADING,
        ReasonCode.LOADING,
        "is loading",
    ),
    (
        "server ended twice, next try runs",
        _endpoint(artifact=PRESENT, replicas=(_replica(R.LOADING),), restarts=(_restart(2),)),
        S.FAILED,
        ReasonCode.SERVER_EXITED,
        "",
    ),
    (
        "what cannot mend itself is shown even while a try runs",
        _endpoint(
            artifact=PRESENT,
            replicas=(_replica(R.LOADING),),
            restarts=(_restart(1, ReasonCode.MODEL_LOAD_FAILED, message="not a pickle"),),
        ),
        S.FAILED,
        ReasonCode.MODEL_LOAD_FAILED,
        "not a pickle",
    ),
    (
        "keeps ending",
        _endpoint(artifact=PRESENT, restarts=(_restart(CRASH_LOOP_FAILURES, message="segfault"),)),
        S.FAILED,
        ReasonCode.CRASH_LOOP,
        f"ended {CRASH_LOOP_FAILURES} times in a row; last: segfault",
    ),
    (
        "keeps ending for a reason that is known keeps that reason",
        _endpoint(artifact=PRESENT, restarts=(_restart(CRASH_LOOP_FAILURES, ReasonCode.MODEL_FILE_MISSING),)),
        S.FAILED,
        ReasonCode.MODEL_FILE_MISSING,
        "",
    ),
    (
        "the replica with the most failures speaks",
        _endpoint(
            wanted=2,
            artifact=PRESENT,
            restarts=(_restart(1), _restart(3, ReasonCode.OUT_OF_MEMORY, message="137", index=1)),
        ),
        S.FAILED,
        ReasonCode.OUT_OF_MEMORY,
        "137",
    ),
    (
        "failures of a replica nobody wants any more are past",
        _endpoint(artifact=PRESENT, replicas=(_replica(R.LOADING),), restarts=(_restart(9, index=7),)),
        S.LOADING,
        ReasonCode.LOADING,
        "",
    ),
    (
        "no longer answers",
        _endpoint(artifact=PRESENT, replicas=(_replica(R.UNRESPONSIVE),), routed=("r1-0",)),
        S.FAILED,
        ReasonCode.UNRESPONSIVE,
        "no longer answers",
    ),
    # What serves comes before what fails beside it.
    ("serving beats a failed fetch", _endpoint(**{**SERVING, "artifact": FETCH_FAILED}), S.RUNNING, None, ""),
    ("serving beats a past failure", _endpoint(**SERVING, restarts=(_restart(3),)), S.RUNNING, None, ""),
    (
        "one of two serves, the other fails",
        _endpoint(wanted=2, **SERVING, restarts=(_restart(2, message="boom", index=1),)),
        S.DEGRADED,
        ReasonCode.SERVER_EXITED,
        "1 of 2 replicas answer; boom",
    ),
    (
        "a failed fetch comes before a failed server",
        _endpoint(artifact=FETCH_FAILED, restarts=(_restart(9),)),
        S.FAILED,
        ReasonCode.MODEL_NOT_FOUND,
        "",
    ),
    # A person's word comes before what is observed; deletion before everything.
    ("stopped", _endpoint(stopped=True), S.STOPPED, ReasonCode.STOPPED_BY_USER, "stopped by ann"),
    (
        "stopped, servers gone",
        _endpoint(stopped=True, artifact=PRESENT, replicas=(_replica(R.EXITED),)),
        S.STOPPED,
        ReasonCode.STOPPED_BY_USER,
        "",
    ),
    (
        "stopped, a server still finishing its requests",
        _endpoint(stopped=True, artifact=PRESENT, replicas=(_replica(R.READY),), routed=("r1-0",)),
        S.STOPPED,
        ReasonCode.STOPPED_BY_USER,
        "stopped by ann; 1 model server still finishing",
    ),
    (
        "one replica serves, the other is loading",
        _endpoint(
            wanted=2,
            artifact=PRESENT,
            replicas=(_replica(R.READY), _replica(R.LOADING, 1)),
            routed=("r1-0",),
        ),
        S.DEGRADED,
        ReasonCode.LOADING,
        "1 of 2 replicas answer; the model server is loading the model",
    ),
    (
        "an older revision serves while the wished one loads",
        _endpoint(
            artifact=PRESENT,
            replicas=(Replica(ReplicaId(UID, 0, 0), R.READY), _replica(R.LOADING)),
            routed=("r0-0",),
        ),
        S.UPDATING,
        ReasonCode.LOADING,
        "revision 0 serves while revision 1 is not there yet; the model server is loading the model",
    ),
    (
        "an older revision serves because the wished one keeps ending",
        _endpoint(
            artifact=PRESENT,
            replicas=(Replica(ReplicaId(UID, 0, 0), R.READY),),
            routed=("r0-0",),
            restarts=(_restart(2, message="boom"),),
        ),
        S.DEGRADED,
        ReasonCode.SERVER_EXITED,
        "revision 0 serves while revision 1 is not there yet; boom",
    ),
    (
        "stopped and failing",
        _endpoint(stopped=True, artifact=FETCH_FAILED),
        S.STOPPED,
        ReasonCode.STOPPED_BY_USER,
        "",
    ),
    ("deleted", _endpoint(deleted=True), S.TERMINATING, ReasonCode.TERMINATING, "nothing but the record"),
    (
        "deleted while serving",
        _endpoint(deleted=True, **SERVING, left=("1 model server", "model files")),
        S.TERMINATING,
        ReasonCode.TERMINATING,
        "left: 1 model server, model files",
    ),
    ("deleted and stopped", _endpoint(deleted=True, stopped=True), S.TERMINATING, ReasonCode.TERMINATING, ""),
    (
        "deleted before anything was observed",
        _endpoint(deleted=True, observed_generation=0),
        S.TERMINATING,
        ReasonCode.TERMINATING,
        "",
    ),
    (
        "a new generation is accepted while the old one still serves",
        _endpoint(generation=2, **SERVING),
        S.RUNNING,
        None,
        "",
    ),
]


@pytest.mark.parametrize(
    ("name", "endpoint", "status", "reason", "words"), CASES, ids=[case[0] for case in CASES]
)
def test_what_is_said(
    name: str, endpoint: InferenceEndpoint, status: PublicStatus, reason: ReasonCode | None, words: str
) -> None:
    state = public_state(endpoint)
    assert (state.status, state.reason) == (status, reason)
    assert words in state.message
    _check(state)


def _check(state: PublicState) -> None:
    """What holds of every public state: a reason unless Running, with the reason's own next action."""
    if state.status is PublicStatus.RUNNING:
        assert (state.reason, state.predict, state.ingress) == (None, "Ready", "Ready")
        return
    assert state.reason is not None
    told = reason_of(state.reason).next_action.replace("cluster check NAME", "cluster check local")
    assert state.next_action == told.replace("NAME", "iris")
    assert state.predict in {"Ready", state.reason.value}
    assert state.ingress in {"Ready", state.reason.value}
    if state.ingress == "Ready":
        assert state.status in {PublicStatus.DEGRADED, PublicStatus.UPDATING}


def test_a_failed_server_brings_its_evidence() -> None:
    state = public_state(_endpoint(artifact=PRESENT, restarts=(_restart(2, message="boom"),)))
    assert state.exit is not None
    assert state.exit.exit_code == 3
    assert state.exit.log_tail == ("Traceback", "ValueError: x")
    assert state.next_retry_at == LATER


def test_a_failed_fetch_says_when_it_is_tried_again() -> None:
    assert public_state(_endpoint(artifact=FETCH_FAILED)).next_retry_at == LATER


def test_a_degraded_endpoint_still_predicts() -> None:
    state = public_state(_endpoint(wanted=2, **SERVING, restarts=(_restart(2, index=1),)))
    assert (state.predict, state.ingress) == ("Ready", "Ready")
    assert state.exit is not None


def test_a_model_that_answers_is_ready_before_its_route_is() -> None:
    state = public_state(_endpoint(artifact=PRESENT, replicas=(_replica(R.READY),)))
    assert (state.predict, state.ingress) == ("Ready", "RouteNotReady")


_REASONS = st.sampled_from(list(ReasonCode))
_ARTIFACTS = st.builds(
    ArtifactState,
    phase=st.sampled_from(list(ArtifactPhase)),
    reason=st.none() | _REASONS,
    message=st.text(max_size=5),
    received_bytes=st.integers(0, 2**50),
    total_bytes=st.none() | st.integers(0, 2**50),
    rate_bytes_per_second=st.floats(0, 1e12),
)
_REPLICAS = st.lists(st.builds(_replica, st.sampled_from(list(ReplicaState)), st.integers(0, 3)), max_size=4)
_RESTARTS = st.lists(st.builds(_restart, st.integers(1, 9), _REASONS, index=st.integers(0, 3)), max_size=3)


@given(
    artifact=_ARTIFACTS,
    replicas=_REPLICAS.map(tuple),
    restarts=_RESTARTS.map(tuple),
    routed=st.lists(st.sampled_from(["r1-0", "r1-1", "r1-2"])).map(tuple),
    problem=st.none() | _REASONS,
    wanted=st.integers(1, 4),
    stopped=st.booleans(),
    deleted=st.booleans(),
    observed=st.integers(0, 2),
)
def test_whatever_is_observed_something_is_said(
    artifact: ArtifactState,
    replicas: tuple[Replica, ...],
    restarts: tuple[RestartRecord, ...],
    routed: tuple[str, ...],
    problem: ReasonCode | None,
    wanted: int,
    stopped: bool,
    deleted: bool,
    observed: int,
) -> None:
    state = public_state(
        _endpoint(
            wanted=wanted,
            stopped=stopped,
            deleted=deleted,
            generation=2,
            observed_generation=observed,
            artifact=artifact,
            replicas=replicas,
            restarts=restarts,
            routed=routed,
            problem=problem,
        )
    )
    _check(state)
    if deleted:
        assert state.status is PublicStatus.TERMINATING
    if state.status in {PublicStatus.RUNNING, PublicStatus.DEGRADED}:
        assert any(replica.state is ReplicaState.READY and replica.id.name in routed for replica in replicas)


@pytest.mark.parametrize(
    ("artifact", "sentence"),
    [
        (ArtifactState(P.FETCHING), "0 B"),
        (ArtifactState(P.FETCHING, received_bytes=1536), "1.5 KiB"),
        (
            ArtifactState(
                P.FETCHING,
                received_bytes=2**20,
                total_bytes=3 * 2**20,
                rate_bytes_per_second=2**20,
                resumed_from_bytes=2**10,
            ),
            "1.0 MiB of 3.0 MiB, 1.0 MiB/s, about 2 s left, resumed from 1.0 KiB",
        ),
    ],
)
def test_one_line_on_a_download(artifact: ArtifactState, sentence: str) -> None:
    assert download_sentence(artifact) == sentence


def test_sizes_for_people() -> None:
    assert [human_bytes(size) for size in (0, 1023, 1024, 5 * 2**30, 2**50)][:4] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 GiB",
    ]


def test_names_of_replicas_are_derived() -> None:
    assert [each.name for each in _endpoint(wanted=3).replica_ids()] == ["r1-0", "r1-1", "r1-2"]
    assert _endpoint(wanted=3, stopped=True).replica_ids() == ()
    assert _endpoint(wanted=3, deleted=True).desired_replicas == 0


def test_long_times_are_told_in_large_units() -> None:
    assert [human_seconds(each) for each in (0.4, 90, 119, 120, 2774, 7200, 90_000)] == [
        "0 s", "90 s", "119 s", "2 min", "46 min", "2 h", "25 h",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "workspace", "command"),
    [
        (ReasonCode.CRASH_LOOP, "default", "`inferplane logs iris --previous`"),
        (ReasonCode.CRASH_LOOP, "team-a", "`inferplane logs iris -w team-a --previous`"),
        (ReasonCode.MODEL_NOT_FOUND, "default", "`inferplane update iris --uri URI`"),
        (ReasonCode.CLUSTER_FORBIDDEN, "default", "`inferplane cluster check local`"),
    ],
)
def test_commands_to_do_next_are_told_with_the_names_of_what_they_are_about(
    reason: ReasonCode, workspace: str, command: str
) -> None:
    state = public_state(replace(_endpoint(problem=reason, problem_message="so it is"), workspace=workspace))
    assert state.reason is reason
    assert command in state.next_action
    assert "NAME" not in state.next_action
