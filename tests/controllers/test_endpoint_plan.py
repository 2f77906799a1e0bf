"""The plan, case by case: what is seen on the left, what is decided on the right."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from inferplane.controllers.endpoint_plan import Plan, plan
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    CRASH_LOOP_FAILURES,
    EndpointSpec,
    Exit,
    InferenceEndpoint,
    Milestone,
    ModelSpec,
    PublicStatus,
    Replica,
    ReplicaId,
    ReplicaState,
    Scaling,
    public_state,
)
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.port import FetchModel, Observation, Release, StartReplica, StopReplica
from inferplane.gateway.route_table import EndpointRoutes, Upstream

T0 = datetime(2026, 1, 1, tzinfo=UTC)
UID = "0123456789ab"
PRESENT = {1: ArtifactState(ArtifactPhase.PRESENT, uri="/m", path="/m/model.joblib", finished_at=T0)}


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def make_endpoint(*, replicas: int = 1, **changes: object) -> InferenceEndpoint:
    endpoint = InferenceEndpoint(
        uid=UID,
        workspace="default",
        cluster="local",
        name="iris",
        namespace="default-iris-abc123",
        spec=EndpointSpec(
            ModelSpec("sklearn", "/m"), scaling=Scaling(min_replicas=replicas, max_replicas=replicas)
        ),
        generation=1,
        created_at=T0,
        created_by="owner",
    )
    return replace(endpoint, **changes)  # type: ignore[arg-type]


def replica(state: ReplicaState, *, index: int = 0, revision: int = 1, ended: Exit | None = None) -> Replica:
    ready_at = at(1) if state is ReplicaState.READY else None
    address = f"unix:/s/r{revision}-{index}.sock"
    return Replica(ReplicaId(UID, revision, index), state, address, 100 + index, T0, ready_at, ended)


def crash(seconds: float, reason: ReasonCode = ReasonCode.SERVER_EXITED) -> Exit:
    return Exit(at(seconds), exit_code=1, reason=reason, message="boom", log_tail=("boom",))


def settle(endpoint: InferenceEndpoint, step: Plan) -> InferenceEndpoint:
    return replace(endpoint, status=step.status, version=endpoint.version + 1)


def word(endpoint: InferenceEndpoint, step: Plan) -> tuple[PublicStatus, ReasonCode | None]:
    state = public_state(settle(endpoint, step))
    return state.status, state.reason


def test_a_new_endpoint_has_its_model_fetched_first() -> None:
    endpoint = make_endpoint()
    step = plan(endpoint, Observation(), None, T0)
    assert step.actions == (FetchModel(),)
    assert word(endpoint, step) == (PublicStatus.PENDING, ReasonCode.ACCEPTED)
    assert step.routes is not None
    assert step.routes.upstreams == ()


def test_while_the_model_arrives_nothing_is_started_and_the_bytes_are_told() -> None:
    endpoint = make_endpoint()
    fetching = ArtifactState(ArtifactPhase.FETCHING, received_bytes=1024, total_bytes=4096)
    step = plan(endpoint, Observation(artifacts={1: fetching}), None, T0)
    assert step.actions == ()
    state = public_state(settle(endpoint, step))
    assert (state.status, state.message) == (PublicStatus.DOWNLOADING, "1.0 KiB of 4.0 KiB")


def test_a_present_model_starts_every_wanted_replica_that_is_not_there() -> None:
    endpoint = make_endpoint(replicas=3)
    seen = Observation(PRESENT, (replica(ReplicaState.READY, index=1),))
    step = plan(endpoint, seen, None, T0)
    assert step.actions == (StartReplica(ReplicaId(UID, 1, 0)), StartReplica(ReplicaId(UID, 1, 2)))


def test_a_replica_that_answers_gets_a_route_and_runs_once_the_gateway_has_it() -> None:
    endpoint = make_endpoint()
    seen = Observation(PRESENT, (replica(ReplicaState.READY),))
    step = plan(endpoint, seen, None, at(2))
    assert step.routes is not None
    assert [upstream.replica for upstream in step.routes.upstreams] == ["r1-0"]
    assert word(endpoint, step) == (PublicStatus.LOADING, ReasonCode.ROUTE_NOT_READY)
    step = plan(settle(endpoint, step), seen, step.routes, at(3))
    assert word(endpoint, step) == (PublicStatus.RUNNING, None)
    assert step.status.milestone(Milestone.READY) == at(3)
    assert [event.kind for event in step.events] == ["EndpointRunning"]


def test_an_unchanged_world_changes_nothing() -> None:
    endpoint = make_endpoint()
    seen = Observation(PRESENT, (replica(ReplicaState.READY),))
    routes = plan(endpoint, seen, None, at(2)).routes
    settled = settle(endpoint, plan(endpoint, seen, routes, at(3)))
    again = plan(settled, seen, routes, at(4))
    assert (again.status, again.actions, again.events) == (settled.status, (), ())


def test_a_crash_is_shown_with_its_evidence_and_tried_again_after_a_pause() -> None:
    endpoint = make_endpoint()
    seen = Observation(PRESENT, (replica(ReplicaState.EXITED, ended=crash(5)),))
    step = plan(endpoint, seen, None, at(5))
    assert step.actions == ()
    assert step.look_again_seconds == pytest.approx(0.5)
    state = public_state(settle(endpoint, step))
    assert (state.status, state.reason, state.exit) == (
        PublicStatus.FAILED,
        ReasonCode.SERVER_EXITED,
        crash(5),
    )
    later = plan(settle(endpoint, step), seen, None, at(5.5))
    assert later.actions == (StartReplica(ReplicaId(UID, 1, 0)),)
    assert later.status.restarts == step.status.restarts


def test_enough_crashes_in_a_row_are_a_crash_loop_that_is_retried_slowly() -> None:
    endpoint = make_endpoint()
    for failure in range(CRASH_LOOP_FAILURES):
        seen = Observation(PRESENT, (replica(ReplicaState.EXITED, ended=crash(10 * failure)),))
        step = plan(endpoint, seen, None, at(10 * failure))
        endpoint = settle(endpoint, step)
    state = public_state(endpoint)
    assert (state.status, state.reason) == (PublicStatus.FAILED, ReasonCode.CRASH_LOOP)
    assert step.look_again_seconds == pytest.approx(60)
    assert state.next_retry_at == at(10 * (CRASH_LOOP_FAILURES - 1) + 60)


def test_what_cannot_mend_itself_is_failed_at_once_and_stays_so_while_a_new_try_runs() -> None:
    endpoint = make_endpoint()
    ended = crash(5, ReasonCode.MODEL_LOAD_FAILED)
    step = plan(endpoint, Observation(PRESENT, (replica(ReplicaState.EXITED, ended=ended),)), None, at(5))
    assert word(endpoint, step) == (PublicStatus.FAILED, ReasonCode.MODEL_LOAD_FAILED)
    assert step.look_again_seconds == pytest.approx(60)
    retry = plan(settle(endpoint, step), Observation(PRESENT, (replica(ReplicaState.LOADING),)), None, at(66))
    assert word(endpoint, retry) == (PublicStatus.FAILED, ReasonCode.MODEL_LOAD_FAILED)


def test_failures_are_forgotten_once_the_server_has_been_well_for_a_while() -> None:
    endpoint = make_endpoint()
    step = plan(endpoint, Observation(PRESENT, (replica(ReplicaState.EXITED, ended=crash(0)),)), None, T0)
    endpoint = settle(endpoint, step)
    well = Observation(PRESENT, (replica(ReplicaState.READY),))
    soon = plan(endpoint, well, None, at(2))
    assert len(soon.status.restarts) == 1
    assert soon.look_again_seconds == pytest.approx(59)
    later = plan(settle(endpoint, soon), well, None, at(61))
    assert later.status.restarts == ()
    assert later.status.ends == (("r1-0", 1),), "how often it ended is still known"
    restarted = plan(settle(endpoint, later), Observation(PRESENT, ()), None, at(70))
    assert restarted.status.ends == (("r1-0", 1),), "also to a control plane that was restarted"


def test_a_hung_server_is_taken_out_of_the_routes_before_it_is_stopped() -> None:
    endpoint = make_endpoint()
    hung = Observation(PRESENT, (replica(ReplicaState.UNRESPONSIVE),))
    routed = EndpointRoutes(UID, "default", "iris", upstreams=_upstreams("r1-0"))
    step = plan(endpoint, hung, routed, at(5))
    assert (step.actions, step.routes and step.routes.upstreams) == ((), ())
    step = plan(settle(endpoint, step), hung, step.routes, at(6))
    assert step.actions == (StopReplica(ReplicaId(UID, 1, 0), grace_seconds=2.0),)
    ended = Observation(PRESENT, (replica(ReplicaState.EXITED, ended=crash(7)),))
    step = plan(settle(endpoint, step), ended, None, at(7))
    assert word(endpoint, step) == (PublicStatus.FAILED, ReasonCode.UNRESPONSIVE)


def test_a_failed_fetch_is_counted_and_asked_for_again_when_due() -> None:
    endpoint = make_endpoint()
    failed = ArtifactState(
        ArtifactPhase.FAILED,
        finished_at=at(1),
        reason=ReasonCode.STORAGE_UNREACHABLE,
        message="no answer",
    )
    step = plan(endpoint, Observation(artifacts={1: failed}), None, at(1))
    assert (step.actions, step.status.artifact.attempts) == ((), 1)
    assert word(endpoint, step) == (PublicStatus.FAILED, ReasonCode.STORAGE_UNREACHABLE)
    endpoint = settle(endpoint, step)
    assert plan(endpoint, Observation(artifacts={1: failed}), None, at(1.2)).actions == ()
    assert plan(endpoint, Observation(artifacts={1: failed}), None, at(1.5)).actions == (FetchModel(),)
    # After a restart of ours the engine has forgotten the failure; the pause still holds.
    assert plan(endpoint, Observation(), None, at(1.2)).actions == ()
    assert plan(endpoint, Observation(), None, at(1.5)).actions == (FetchModel(),)


def test_a_fetch_that_a_person_must_mend_is_retried_slowly() -> None:
    endpoint = make_endpoint()
    failed = ArtifactState(ArtifactPhase.FAILED, finished_at=at(1), reason=ReasonCode.MODEL_NOT_FOUND)
    step = plan(endpoint, Observation(artifacts={1: failed}), None, at(1))
    assert step.look_again_seconds == pytest.approx(60)


def test_one_broken_replica_of_two_is_degraded_not_failed() -> None:
    endpoint = make_endpoint(replicas=2)
    seen = Observation(
        PRESENT,
        (replica(ReplicaState.READY), replica(ReplicaState.EXITED, index=1, ended=crash(3))),
    )
    routed = EndpointRoutes(UID, "default", "iris", upstreams=_upstreams("r1-0"))
    step = plan(endpoint, seen, routed, at(3))
    state = public_state(settle(endpoint, step))
    assert state.status is PublicStatus.DEGRADED
    assert state.message.startswith("1 of 2 replicas answer")


def test_a_newer_revision_takes_over_only_when_it_answers() -> None:
    endpoint = make_endpoint()
    endpoint = replace(endpoint, generation=2, spec=replace(endpoint.spec, revision=2))
    old_routes = EndpointRoutes(UID, "default", "iris", upstreams=_upstreams("r1-0"))
    loading = Observation(
        {2: PRESENT[1]}, (replica(ReplicaState.READY), replica(ReplicaState.LOADING, revision=2))
    )
    step = plan(endpoint, loading, old_routes, at(3))
    assert step.routes is not None
    assert [u.replica for u in step.routes.upstreams] == ["r1-0"]
    assert step.actions == ()
    both = Observation(
        {2: PRESENT[1]}, (replica(ReplicaState.READY), replica(ReplicaState.READY, revision=2))
    )
    step = plan(endpoint, both, old_routes, at(4))
    assert step.routes is not None
    assert [u.replica for u in step.routes.upstreams] == ["r2-0"]
    assert step.actions == ()
    step = plan(endpoint, both, step.routes, at(5))
    assert [type(action) for action in step.actions] == [StopReplica]


def test_stopping_drains_first_and_ends_as_stopped() -> None:
    endpoint = make_endpoint()
    endpoint = replace(endpoint, generation=2, spec=replace(endpoint.spec, stopped=True, stopped_by="ann"))
    ready = Observation(PRESENT, (replica(ReplicaState.READY),))
    routed = EndpointRoutes(UID, "default", "iris", upstreams=_upstreams("r1-0"))
    step = plan(endpoint, ready, routed, at(3))
    assert (step.actions, step.routes and step.routes.upstreams) == ((), ())
    step = plan(settle(endpoint, step), ready, step.routes, at(4))
    assert [type(action) for action in step.actions] == [StopReplica]
    ended = Observation(PRESENT, (replica(ReplicaState.EXITED, ended=crash(5)),))
    step = plan(settle(endpoint, step), ended, step.routes, at(5))
    assert word(endpoint, step) == (PublicStatus.STOPPED, ReasonCode.STOPPED_BY_USER)
    assert step.status.restarts == ()


def test_deletion_takes_routes_then_servers_then_files_then_the_row() -> None:
    endpoint = make_endpoint(deletion_requested_at=at(1))
    running = Observation(PRESENT, (replica(ReplicaState.READY),), left=("model files",))
    routed = EndpointRoutes(UID, "default", "iris", upstreams=_upstreams("r1-0"))
    step = plan(endpoint, running, routed, at(1))
    assert (step.actions, step.routes, step.finished) == ((), None, False)
    assert step.status.left == ("routes", "1 model server", "model files")
    step = plan(endpoint, running, None, at(2))
    assert [type(action) for action in step.actions] == [StopReplica]
    gone = Observation(PRESENT, (replica(ReplicaState.EXITED, ended=crash(3)),), left=("model files",))
    step = plan(endpoint, gone, None, at(3))
    assert step.actions == (Release(),)
    step = plan(endpoint, Observation(), None, at(4))
    assert (step.actions, step.finished) == ((), True)


def _upstreams(*names: str) -> tuple[Upstream, ...]:
    return tuple(Upstream(name, f"unix:/s/{name}.sock") for name in names)


def test_a_new_revision_does_not_take_over_how_the_model_of_the_one_before_could_not_be_had() -> None:
    failed = ArtifactState(
        ArtifactPhase.FAILED, finished_at=at(1), reason=ReasonCode.MODEL_NOT_FOUND, message="nothing there"
    )
    endpoint = make_endpoint()
    endpoint = settle(endpoint, plan(endpoint, Observation(artifacts={1: failed}), None, at(1)))
    assert public_state(endpoint).status is PublicStatus.FAILED
    changed = replace(endpoint, spec=replace(endpoint.spec, revision=2), generation=2)
    assert public_state(changed).status is PublicStatus.PENDING
    step = plan(changed, Observation(artifacts={1: failed}), None, at(2))
    assert FetchModel(2) in step.actions  # at once, not after the other's pause
    assert word(changed, step) == (PublicStatus.PENDING, ReasonCode.ACCEPTED)
    fetching = ArtifactState(ArtifactPhase.FETCHING)
    step = plan(settle(changed, step), Observation(artifacts={1: failed, 2: fetching}), None, at(3))
    assert word(changed, step)[0] is PublicStatus.DOWNLOADING


def test_a_new_revision_is_not_failed_by_how_servers_of_the_one_before_ended() -> None:
    endpoint = make_endpoint()
    dead = Observation(PRESENT, (replica(ReplicaState.EXITED, ended=crash(2, ReasonCode.NOT_A_MODEL)),))
    endpoint = settle(endpoint, plan(endpoint, dead, None, at(2)))
    assert public_state(endpoint).status is PublicStatus.FAILED
    changed = replace(endpoint, spec=replace(endpoint.spec, revision=2), generation=2)
    assert public_state(changed).status is PublicStatus.PENDING
    assert word(changed, plan(changed, dead, None, at(3)))[0] is PublicStatus.PENDING
