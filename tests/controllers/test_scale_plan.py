"""Scaling through `plan`: what is started and stopped, what is said, and that no request is lost by it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from inferplane.autoscaler import History, Sample, Traffic
from inferplane.controllers.endpoint_plan import Plan, plan
from inferplane.controllers.endpoint_routes import routes_of
from inferplane.controllers.endpoints import standing_of
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    Exit,
    InferenceEndpoint,
    ModelSpec,
    PublicStatus,
    Replica,
    ReplicaId,
    ReplicaState,
    RestartRecord,
    ScaleNote,
    Scaling,
    public_state,
)
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.port import Observation, StartReplica, StopReplica
from inferplane.gateway.route_table import EndpointRoutes

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
UID = "0123456789ab"
PRESENT = ArtifactState(ArtifactPhase.PRESENT, path="/cache/m", finished_at=NOW)
SLEEPY = Scaling(0, 3, 10.0, scale_to_zero_after=timedelta(minutes=5))


def endpoint_of(scaling: Scaling, note: ScaleNote | None = None) -> InferenceEndpoint:
    return InferenceEndpoint(
        uid=UID,
        workspace="team",
        cluster="local",
        name="iris",
        namespace="team",
        spec=EndpointSpec(ModelSpec("sklearn", "/m"), scaling=scaling),
        generation=1,
        created_at=NOW,
        created_by="ada",
        status=EndpointStatus(observed_generation=1, artifact=PRESENT, scale=note, since=NOW),
    )


def ready(index: int = 0, at: datetime = NOW) -> Replica:
    address = f"unix:/s/{index}"
    return Replica(ReplicaId(UID, 1, index), ReplicaState.READY, address=address, started_at=at, ready_at=at)


def seen(*replicas: Replica) -> Observation:
    return Observation(artifacts={1: PRESENT}, replicas=replicas)


def step(
    endpoint: InferenceEndpoint,
    observation: Observation,
    now: datetime,
    traffic: Traffic = Traffic(),  # noqa: B008 - a frozen value
    confirmed: EndpointRoutes | None = None,
) -> tuple[InferenceEndpoint, Plan]:
    made = plan(endpoint, observation, confirmed, now, traffic=traffic)
    return replace(endpoint, status=made.status), made


def quiet(now: datetime, since: datetime) -> Traffic:
    return Traffic(History((Sample(now),)), 0, since)


def kinds(made: Plan) -> list[str]:
    return [event.kind for event in made.events]


def test_it_answers_once_before_it_may_sleep() -> None:
    endpoint, made = step(endpoint_of(SLEEPY), seen(), NOW)
    assert made.actions == (StartReplica(ReplicaId(UID, 1, 0)),)
    assert endpoint.status.scale == ScaleNote(1, since=NOW)
    late = NOW + timedelta(hours=1)
    endpoint, made = step(endpoint, seen(), late, quiet(late, NOW))
    assert endpoint.desired_replicas == 1


def test_falling_asleep_takes_routes_first_and_servers_after() -> None:
    endpoint, made = step(endpoint_of(SLEEPY), seen(ready()), NOW)
    routes = made.routes
    assert routes is not None
    assert [upstream.replica for upstream in routes.upstreams] == ["r1-0"]
    assert not routes.asleep
    later = NOW + timedelta(minutes=5)
    endpoint, made = step(endpoint, seen(ready()), later, quiet(later, NOW), confirmed=routes)
    assert made.actions == (), "the gateway may still send to it"
    assert made.routes is not None
    assert made.routes.asleep
    assert made.routes.upstreams == ()
    assert kinds(made) == ["ScaledToZero", "EndpointIdle"]
    state = public_state(endpoint)
    assert (state.status, state.reason) == (PublicStatus.IDLE, ReasonCode.SCALED_TO_ZERO)
    assert state.message == ("scaled to zero, because no request came for 5 min; the next request wakes it")
    endpoint, made = step(endpoint, seen(ready()), later, quiet(later, NOW), confirmed=made.routes)
    assert made.actions == (StopReplica(ReplicaId(UID, 1, 0), 65.0),)
    assert endpoint.status.scale is not None
    assert endpoint.status.scale.last_request_at == NOW
    standing = standing_of(endpoint, made)
    assert (standing.addresses, standing.hopeless, standing.rests_since) == ((), False, NOW)


def test_a_held_request_wakes_it_and_the_wake_is_timed() -> None:
    asleep = endpoint_of(SLEEPY, ScaleNote(0, "no request came", since=NOW))
    endpoint, made = step(asleep, seen(), NOW, Traffic(held=1))
    assert made.actions == (StartReplica(ReplicaId(UID, 1, 0)),)
    assert kinds(made)[0] == "Woken"
    assert made.events[0].message == "woken: 1 request waits for it"
    assert made.routes is not None
    assert made.routes.asleep, "held by the activator, not refused by the gateway"
    assert public_state(endpoint).message.startswith("waking, because a request came; ")
    after = NOW + timedelta(milliseconds=150)
    endpoint, made = step(endpoint, seen(ready(at=after)), after, Traffic(held=1))
    assert standing_of(endpoint, made).addresses == ("unix:/s/0",)
    assert made.routes is not None
    assert not made.routes.asleep
    note = endpoint.status.scale
    assert note is not None
    assert (note.waking_since, note.wake_seconds) == (None, 0.15)
    rested = replace(endpoint, status=replace(endpoint.status, scale=replace(note, replicas=0)))
    assert public_state(rested).message.endswith("the next request wakes it in about 0.1 s")


def test_a_request_that_comes_while_it_falls_asleep_keeps_the_server() -> None:
    endpoint, made = step(endpoint_of(SLEEPY), seen(ready()), NOW)
    later = NOW + timedelta(minutes=5)
    endpoint, made = step(endpoint, seen(ready()), later, quiet(later, NOW), confirmed=made.routes)
    assert endpoint.desired_replicas == 0
    endpoint, made = step(endpoint, seen(ready()), later, Traffic(held=1), confirmed=made.routes)
    assert made.actions == ()
    assert standing_of(endpoint, made).addresses == ("unix:/s/0",)


def test_who_wakes_it_has_a_fresh_try() -> None:
    ended = Exit(at=NOW, exit_code=1)
    asleep = endpoint_of(SLEEPY, ScaleNote(0))
    record = RestartRecord("r1-0", 7, ended, NOW + timedelta(minutes=9))
    asleep = replace(asleep, status=replace(asleep.status, restarts=(record,)))
    gone = Replica(ReplicaId(UID, 1, 0), ReplicaState.EXITED, exit=ended)
    endpoint, _ = step(asleep, seen(gone), NOW)
    assert endpoint.status.restarts == ()
    endpoint, made = step(endpoint, seen(gone), NOW, Traffic(held=1))
    assert made.actions == (StartReplica(ReplicaId(UID, 1, 0)),)
    assert not standing_of(endpoint, made).hopeless


def test_what_fails_to_start_is_told_to_those_who_wait() -> None:
    asleep = endpoint_of(SLEEPY, ScaleNote(0))
    endpoint, _ = step(asleep, seen(), NOW, Traffic(held=1))
    ended = Exit(at=NOW, exit_code=1, reason=ReasonCode.MODEL_LOAD_FAILED, message="not a model")
    gone = Replica(ReplicaId(UID, 1, 0), ReplicaState.EXITED, exit=ended)
    endpoint, made = step(endpoint, seen(gone), NOW, Traffic(held=1))
    standing = standing_of(endpoint, made)
    assert standing.hopeless
    assert (standing.reason, "not a model" in standing.message) == ("ModelLoadFailed", True)
    assert standing.next_action


def test_scaling_up_stays_running_and_says_so() -> None:
    scaling = Scaling(1, 4, 10.0)
    endpoint, made = step(endpoint_of(scaling), seen(ready()), NOW)
    history = History(tuple(Sample(NOW + timedelta(seconds=2 * i), 0, 35) for i in range(3)))
    now = history.samples[-1].at
    endpoint, made = step(endpoint, seen(ready()), now, Traffic(history), confirmed=made.routes)
    assert [action.id.index for action in made.actions if isinstance(action, StartReplica)] == [1, 2, 3]
    assert made.events[0].kind == "ScaledUp"
    assert made.events[0].message == "from 1 to 4 replicas: 35 requests at once against 10 for each replica"
    state = public_state(endpoint)
    assert (state.status, state.message) == (
        PublicStatus.RUNNING,
        "1 of 4 replicas answer; the others are on their way",
    )


def test_scaling_down_drains_the_last_ones() -> None:
    endpoint = endpoint_of(Scaling(1, 4, 10.0), ScaleNote(3, since=NOW))
    replicas = tuple(ready(index) for index in range(3))
    endpoint, made = step(endpoint, seen(*replicas), NOW)
    history = History()
    for i in range(46):
        history = history.add(Sample(NOW + timedelta(seconds=2 * i), 0, 1))
    now = history.samples[-1].at
    before = routes_of(endpoint)
    endpoint, made = step(endpoint, seen(*replicas), now, Traffic(history), confirmed=before)
    assert made.actions == ()
    assert made.routes is not None
    assert [upstream.replica for upstream in made.routes.upstreams] == ["r1-0"]
    assert kinds(made)[0] == "ScaledDown"
    endpoint, made = step(endpoint, seen(*replicas), now, Traffic(history), confirmed=made.routes)
    assert [action.id.index for action in made.actions if isinstance(action, StopReplica)] == [1, 2]


def test_a_fixed_or_stopped_endpoint_has_no_note() -> None:
    endpoint, _ = step(endpoint_of(Scaling(2, 2), ScaleNote(5)), seen(), NOW)
    assert endpoint.status.scale is None
    asleep = endpoint_of(SLEEPY, ScaleNote(0))
    stopped = replace(asleep, spec=replace(asleep.spec, stopped=True))
    endpoint, made = step(stopped, seen(), NOW, Traffic(held=1))
    assert endpoint.status.scale is None
    assert made.routes is not None
    assert not made.routes.asleep
