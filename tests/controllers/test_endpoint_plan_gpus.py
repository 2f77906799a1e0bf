"""The endpoint's plan where it needs GPUs: nothing runs without a grant, nothing stays when it is over."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from inferplane.controllers.endpoint_gpus import NO_GPUS, EndpointGpus, gpus_of, share_of
from inferplane.controllers.endpoint_plan import Plan, plan
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    Exit,
    GpuSpec,
    InferenceEndpoint,
    ModelSpec,
    PublicState,
    PublicStatus,
    Replica,
    ReplicaId,
    ReplicaState,
    RestartRecord,
    Scaling,
    public_state,
)
from inferplane.domain.gpu_request import (
    GpuRequest,
    Grant,
    ProvisioningStatus,
    Selection,
    draining,
    ended,
    granted,
    requeued,
    started,
)
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.engines.port import FetchModel, Observation, StartReplica, StopReplica
from inferplane.gateway.route_table import EndpointRoutes, Upstream

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
UID = "0123456789ab"
PRESENT = {1: ArtifactState(ArtifactPhase.PRESENT, uri="/m", path="/m/model.joblib", finished_at=T0)}
SELECTION = Selection("local", gpu_shape="NVIDIA-A100", instance_type="a2")
GRANT = Grant("local", (("gpu", (0, 1)),), "NVIDIA-A100", "a2", 80)
NO_POLICY = WorkspacePolicy("red")
REQUEST = GpuRequest(
    "gpr-1", "iris-gpr", "red", SELECTION, T0, T0, exit_duration=HOUR, endpoint_uid=UID, endpoint_name="iris"
)
ROUTED = EndpointRoutes(UID, "red", "iris", upstreams=(Upstream("r1-0", "unix:/s/r1-0"),))


def make_endpoint(replicas: int = 1, **changes: object) -> InferenceEndpoint:
    spec = EndpointSpec(
        ModelSpec("sklearn", "/m"), scaling=Scaling(replicas, replicas), gpu=GpuSpec(SELECTION)
    )
    endpoint = InferenceEndpoint(UID, "red", "local", "iris", "red-iris", spec, 1, T0, "owner")
    return replace(endpoint, **changes)  # type: ignore[arg-type]


def replica(state: ReplicaState) -> Replica:
    ended_at = Exit(T0, 0) if state is ReplicaState.EXITED else None
    return Replica(ReplicaId(UID, 1, 0), state, "unix:/s/r1-0", 100, T0, T0, ended_at)


def only(request: GpuRequest, wait: WaitNote | None = None) -> EndpointGpus:
    return gpus_of([request], wait, NO_POLICY)


def provisioning() -> GpuRequest:
    return granted(REQUEST, GRANT, T0)


def in_use() -> GpuRequest:
    return started(provisioning(), T0)


def ending(as_: ProvisioningStatus, *, by: str = "", requeue: bool = False) -> GpuRequest:
    request = replace(in_use(), requeue_on_failure=requeue)
    why = "its 1 GPU goes elsewhere" if by else ""
    return draining(request, as_, T0 + HOUR, failure_reason=why, evicted_by=by)


def said(endpoint: InferenceEndpoint, step: Plan) -> PublicState:
    return public_state(replace(endpoint, status=step.status))


def test_while_it_waits_the_model_is_fetched_and_nothing_is_started() -> None:
    endpoint = make_endpoint()
    step = plan(endpoint, Observation(), None, T0, only(REQUEST))
    assert step.actions == (FetchModel(),)
    assert said(endpoint, step).status is PublicStatus.QUEUED
    step = plan(endpoint, Observation(PRESENT), None, T0, only(REQUEST))
    assert step.actions == ()


def test_while_it_waits_it_says_what_admission_says() -> None:
    endpoint = make_endpoint()
    wait = WaitNote(3, "position 3; 1 GPU is needed", T0 + HOUR, "known ends", T0, "Wait.")
    step = plan(endpoint, Observation(PRESENT), None, T0, only(REQUEST, wait))
    assert step.status.gpu is not None
    assert (step.status.gpu.position, step.status.gpu.assumption) == (3, "known ends")
    state = said(endpoint, step)
    assert state.message == "position 3; 1 GPU is needed; estimated start 2026-01-01 01:00:00Z"
    assert state.next_action == "Wait."


@pytest.mark.parametrize("gpus", [NO_GPUS, only(REQUEST)], ids=["none asked for", "waiting"])
def test_without_a_grant_what_runs_is_taken_out_of_the_routes_and_stopped(gpus: EndpointGpus) -> None:
    endpoint = make_endpoint()
    running = Observation(PRESENT, (replica(ReplicaState.READY),))
    step = plan(endpoint, running, ROUTED, T0, gpus)
    assert step.routes is not None
    assert (step.actions, step.routes.upstreams) == ((), ())
    step = plan(endpoint, running, step.routes, T0, gpus)
    assert [type(action) for action in step.actions] == [StopReplica]


def test_a_grant_starts_servers_on_the_granted_gpus_and_says_which() -> None:
    endpoint = make_endpoint()
    step = plan(endpoint, Observation(PRESENT), None, T0, only(provisioning()))
    assert step.actions == (StartReplica(ReplicaId(UID, 1, 0), (("gpu", (0, 1)),)),)
    state = said(endpoint, step)
    assert state.status is PublicStatus.PROVISIONING
    assert "GPUs 0, 1 of node gpu on cluster local" in state.message
    note = step.status.gpu
    assert note is not None
    assert (note.status, note.since) == (ProvisioningStatus.PROVISIONING, T0)


def test_a_grant_in_use_serves_like_any_other() -> None:
    endpoint = make_endpoint()
    step = plan(endpoint, Observation(PRESENT, (replica(ReplicaState.READY),)), ROUTED, T0, only(in_use()))
    assert said(endpoint, step).status is PublicStatus.RUNNING
    assert step.routes is not None
    assert step.routes.upstreams == ROUTED.upstreams


def test_draining_unroutes_then_stops_then_says_so() -> None:
    endpoint = make_endpoint()
    gpus = only(ending(ProvisioningStatus.COMPLETE))
    running = Observation(PRESENT, (replica(ReplicaState.READY),))
    step = plan(endpoint, running, ROUTED, T0 + HOUR, gpus)
    assert step.routes is not None
    assert (step.actions, step.routes.upstreams) == ((), ())
    step = plan(endpoint, running, step.routes, T0 + HOUR, gpus)
    assert [type(action) for action in step.actions] == [StopReplica]
    over = Observation(PRESENT, (replica(ReplicaState.EXITED),))
    endpoint = replace(endpoint, status=step.status)
    step = plan(endpoint, over, step.routes, T0 + HOUR, gpus)
    assert step.actions == ()
    assert step.status.gpu is not None
    assert step.status.gpu.since == T0 + HOUR, "by this admission knows which drain was answered"
    state = said(endpoint, step)
    assert (state.status, state.reason) == (PublicStatus.FAILED, ReasonCode.EXIT_DURATION_REACHED)
    assert step.status.restarts == (), "it did not fail: it was ended"


@pytest.mark.parametrize(
    ("request_", "reason", "words"),
    [
        (ending(ProvisioningStatus.EARLY_RELEASED), ReasonCode.GPU_RELEASED, "released"),
        (ending(ProvisioningStatus.TIMED_OUT), ReasonCode.IDLE_TIMEOUT, "released"),
        (ending(ProvisioningStatus.EVICTED, by="gpr-9"), ReasonCode.EVICTED, "evicted by gpr-9"),
    ],
    ids=["released", "idle", "evicted"],
)
def test_gpus_that_are_gone_for_good_make_it_failed_with_what_to_do(
    request_: GpuRequest, reason: ReasonCode, words: str
) -> None:
    endpoint = make_endpoint()
    for request in (request_, ended(request_, T0 + 2 * HOUR)):
        step = plan(endpoint, Observation(PRESENT), None, T0 + 2 * HOUR, only(request))
        state = said(endpoint, step)
        assert (state.status, state.reason) == (PublicStatus.FAILED, reason)
        assert words in state.message
        assert state.next_action
        assert step.actions == ()


def test_the_evicted_one_that_comes_back_is_queued_and_says_what_happened() -> None:
    endpoint = make_endpoint()
    evicted = ending(ProvisioningStatus.EVICTED, by="gpr-9", requeue=True)
    step = plan(endpoint, Observation(PRESENT), None, T0 + HOUR, only(evicted))
    assert said(endpoint, step).status is PublicStatus.QUEUED
    back = requeued(ended(evicted, T0 + HOUR), T0 + HOUR)
    for wait in (None, WaitNote(1, "position 1", None, "", T0)):
        step = plan(endpoint, Observation(PRESENT), None, T0 + HOUR, only(back, wait))
        state = said(endpoint, step)
        assert state.status is PublicStatus.QUEUED
        assert "evicted before by gpr-9: its 1 GPU goes elsewhere" in state.message


def test_a_policy_that_puts_it_back_counts_too() -> None:
    policy = WorkspacePolicy("red", requeue_on_failure=True)
    gpus = gpus_of([ending(ProvisioningStatus.EVICTED, by="gpr-9")], None, policy)
    assert gpus.comes_back


def test_a_newer_request_waits_until_what_ran_on_the_older_one_is_gone() -> None:
    endpoint = make_endpoint()
    older = ending(ProvisioningStatus.COMPLETE)
    newer = granted(replace(REQUEST, id="gpr-2", created_at=T0 + HOUR), GRANT, T0 + HOUR)
    gpus = gpus_of([older, newer], None, NO_POLICY)
    assert (gpus.request, gpus.comes_back, gpus.live) == (older, True, 2)
    step = plan(endpoint, Observation(PRESENT, (replica(ReplicaState.STOPPING),)), None, T0 + HOUR, gpus)
    assert step.actions == ()
    assert said(endpoint, step).status is PublicStatus.QUEUED
    gpus = gpus_of([ended(older, T0 + HOUR), newer], None, NO_POLICY)
    exited = Observation(PRESENT, (replica(ReplicaState.EXITED),))
    step = plan(replace(endpoint, status=step.status), exited, None, T0 + HOUR, gpus)
    assert [type(action) for action in step.actions] == [StartReplica]


def test_a_stopped_endpoint_is_stopped_whatever_its_gpus_do() -> None:
    endpoint = make_endpoint()
    endpoint = replace(endpoint, spec=replace(endpoint.spec, stopped=True, stopped_by="ann"))
    for request in (REQUEST, provisioning(), ending(ProvisioningStatus.EARLY_RELEASED)):
        step = plan(endpoint, Observation(), None, T0 + HOUR, only(request))
        assert step.actions == ()
        assert said(endpoint, step).status is PublicStatus.STOPPED


def test_a_deletion_is_finished_only_when_its_gpus_are_free() -> None:
    endpoint = make_endpoint(deletion_requested_at=T0)
    step = plan(endpoint, Observation(), None, T0, only(ending(ProvisioningStatus.EARLY_RELEASED)))
    assert (step.status.left, step.finished) == (("GPUs",), False)
    assert step.status.gpu is not None
    assert step.status.gpu.status is ProvisioningStatus.DRAINING
    over = ended(ending(ProvisioningStatus.EARLY_RELEASED), T0 + HOUR)
    assert plan(endpoint, Observation(), None, T0, only(over)).finished


def test_an_endpoint_that_went_back_to_cpu_starts_there_once_its_gpus_are_free() -> None:
    endpoint = make_endpoint()
    endpoint = replace(endpoint, spec=replace(endpoint.spec, gpu=None))
    seen = Observation(PRESENT)
    assert plan(endpoint, seen, None, T0, only(ending(ProvisioningStatus.EARLY_RELEASED))).actions == ()
    over = ended(ending(ProvisioningStatus.EARLY_RELEASED), T0 + HOUR)
    step = plan(endpoint, seen, None, T0, only(over))
    assert step.actions == (StartReplica(ReplicaId(UID, 1, 0)),)


@pytest.mark.parametrize(
    ("nodes", "shares"),
    [
        ([("a", (0, 1))], [[("a", (0,))], [("a", (1,))]]),
        ([("a", (0,)), ("b", (0,))], [[("a", (0,))], [("b", (0,))]]),
        ([("a", (0, 1, 2))], [[("a", (0, 1, 2))]] * 2),
        ([("a", (0, 1)), ("b", (4, 5)), ("c", (2, 3))], [[("a", (0,)), ("b", (4,)), ("c", (2,))]] * 1),
    ],
)
def test_replicas_share_what_was_granted(
    nodes: list[tuple[str, tuple[int, ...]]], shares: list[list[tuple[str, tuple[int, ...]]]]
) -> None:
    grant = Grant("local", tuple(nodes))
    for index, share in enumerate(shares):
        assert share_of(grant, index, 2) == tuple(share)
    assert share_of(grant, 0, 1) == grant.nodes
    assert share_of(None, 0, 2) == ()


FAILED_FETCH = ArtifactState(
    ArtifactPhase.FAILED, reason=ReasonCode.MODEL_NOT_FOUND, message="nothing there", finished_at=T0 - HOUR
)


def test_who_asks_for_gpus_anew_has_a_fresh_try() -> None:
    crashed = RestartRecord(
        "r1-0", 4, Exit(T0 - HOUR, 1, reason=ReasonCode.MODEL_LOAD_FAILED), T0 + 24 * HOUR
    )
    retry_at = T0 + 24 * HOUR
    before = EndpointStatus(
        1, artifact=replace(FAILED_FETCH, attempts=3, next_attempt_at=retry_at), restarts=(crashed,)
    )
    endpoint = make_endpoint(status=before)
    step = plan(endpoint, Observation({1: FAILED_FETCH}), None, T0, only(REQUEST))
    assert [type(action) for action in step.actions] == [FetchModel]
    assert (step.status.restarts, step.status.artifact) == ((), ArtifactState())
    assert said(endpoint, step).status is PublicStatus.QUEUED

    step = plan(endpoint, Observation(PRESENT), None, T0, only(provisioning()))
    assert [type(action) for action in step.actions] == [StartReplica]

    # One that failed since it asked waits for its next try.
    since = replace(before, artifact=replace(before.artifact, finished_at=T0 + HOUR))
    failed = replace(FAILED_FETCH, finished_at=T0 + HOUR)
    endpoint = make_endpoint(status=since)
    step = plan(endpoint, Observation({1: failed}), None, T0 + HOUR, only(REQUEST))
    assert (step.actions, said(endpoint, step).reason) == ((), ReasonCode.MODEL_NOT_FOUND)
