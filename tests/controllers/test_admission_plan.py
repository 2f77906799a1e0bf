"""The admission plan, case by case: requests and their endpoints on the left, what becomes of them on the right."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.controllers.admission_plan import (
    ESTIMATE_SLACK,
    GRANTS_PER_PASS_MAX,
    IDLE_LOOK_SECONDS,
    SETTLING,
    START_LIMIT,
    AdmissionPlan,
    Picture,
    follow_up,
    is_seen_free,
    notes,
    plan,
    says_the_same,
)
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    Exit,
    GpuNote,
    GpuSpec,
    InferenceEndpoint,
    Ingress,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
    RestartRecord,
    Waiting,
)
from inferplane.domain.gpu_request import (
    REQUEST_NAME_CHARACTERS_MAX,
    GpuRequest,
    Grant,
    ProvisioningStatus,
    Selection,
    check_request,
    draining,
    granted,
    started,
)
from inferplane.domain.inventory import Node, held_gpus
from inferplane.domain.quantity import format_duration
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.scheduler import Snapshot

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
UID = "0123456789ab"
NODE = Node("local", "gpu", "a2", "NVIDIA-A100", 1, 80)
GRANT = Grant("local", (("gpu", (0,)),), "NVIDIA-A100", "a2", 80)
SELECTION = Selection("local", gpu_shape="NVIDIA-A100", instance_type="a2")
QUEUED, PROVISIONING, SUCCESSFUL, DRAINING = (
    ProvisioningStatus.QUEUED,
    ProvisioningStatus.PROVISIONING,
    ProvisioningStatus.SUCCESSFUL,
    ProvisioningStatus.DRAINING,
)


def make_request(request_id: str = "gpr-1", **changes: object) -> GpuRequest:
    request = GpuRequest(request_id, f"{request_id}-name", "red", SELECTION, T0, T0, exit_duration=HOUR)
    return replace(request, **changes)  # type: ignore[arg-type]


def bound(**changes: object) -> GpuRequest:
    return replace(make_request(endpoint_uid=UID, endpoint_name="iris"), **changes)  # type: ignore[arg-type]


def provisioning(request: GpuRequest, at: datetime = T0) -> GpuRequest:
    return granted(request, GRANT, at)


def in_use(request: GpuRequest, at: datetime = T0) -> GpuRequest:
    return started(provisioning(request, at), at)


def make_endpoint(note: GpuNote | None = None, *states: ReplicaState, **changes: object) -> InferenceEndpoint:
    replicas = tuple(Replica(ReplicaId(UID, 1, n), state) for n, state in enumerate(states))
    endpoint = InferenceEndpoint(
        uid=UID,
        workspace="red",
        cluster="local",
        name="iris",
        namespace="red-iris",
        spec=EndpointSpec(ModelSpec("sklearn", "/m"), gpu=GpuSpec(SELECTION)),
        generation=1,
        created_at=T0,
        created_by="owner",
        status=EndpointStatus(1, replicas=replicas, routed=tuple(r.id.name for r in replicas), gpu=note),
    )
    return replace(endpoint, **changes)  # type: ignore[arg-type]


def decide(
    *requests: GpuRequest,
    endpoint: InferenceEndpoint | None = None,
    now: datetime = T0,
    nodes: tuple[Node, ...] = (NODE,),
    policy: WorkspacePolicy | None = None,
    idle: dict[str, datetime | None] | None = None,
) -> AdmissionPlan:
    policies = {} if policy is None else {policy.workspace: policy}
    snapshot = Snapshot(now, nodes, requests, policies)
    return plan(Picture(snapshot, {} if endpoint is None else {endpoint.uid: endpoint}, idle or {}))


def after(decided: AdmissionPlan, request_id: str = "gpr-1") -> GpuRequest:
    found = [c.after for c in decided.changes if c.after is not None and c.after.id == request_id]
    assert len(found) == 1, decided.changes
    return found[0]


def kinds(decided: AdmissionPlan) -> list[str]:
    return [event.kind for change in decided.changes for event in change.events]


# --- without an endpoint ----------------------------------------------------------------------------


def test_what_fits_is_granted_and_the_next_pass_starts_it() -> None:
    first = decide(make_request())
    assert (after(first).status, after(first).grant) == (PROVISIONING, GRANT)
    assert kinds(first) == ["GprGranted"]
    second = decide(after(first), now=T0 + SECOND)
    assert (after(second).status, after(second).started_at) == (SUCCESSFUL, T0 + SECOND)
    assert second.look_again_seconds == HOUR.total_seconds()


def test_in_use_nothing_changes_until_the_deadline() -> None:
    decided = decide(in_use(make_request()), now=T0 + HOUR / 2)
    assert decided.changes == ()
    assert decided.look_again_seconds == HOUR.total_seconds() / 2


@pytest.mark.parametrize("late", [timedelta(0), timedelta(days=30)])
def test_the_exit_duration_ends_it_however_late_that_is_noticed(late: timedelta) -> None:
    decided = decide(in_use(make_request()), now=T0 + HOUR + late)
    assert after(decided).status is ProvisioningStatus.COMPLETE
    assert kinds(decided) == ["GprDraining", "GprEnded"]
    (change,) = decided.changes
    assert change.events[0].reason is ReasonCode.EXIT_DURATION_REACHED


def test_what_one_gives_back_another_gets_in_the_same_pass() -> None:
    waiting = make_request("gpr-2", workspace="blue")
    decided = decide(in_use(make_request()), waiting, now=T0 + HOUR)
    assert after(decided).status is ProvisioningStatus.COMPLETE
    assert after(decided, "gpr-2").status is PROVISIONING


def test_a_renewal_goes_on_while_nobody_waits() -> None:
    decided = decide(in_use(make_request(auto_renew=True)), now=T0 + HOUR)
    assert after(decided).ends_at == T0 + 2 * HOUR
    assert (after(decided).status, kinds(decided)) == (SUCCESSFUL, ["GprRenewed"])


def test_a_renewal_gives_way_to_who_is_ahead_and_asks_again() -> None:
    waiting = make_request("gpr-2", workspace="blue", queued_at=T0 + SECOND)
    request = in_use(make_request(auto_renew=True))
    decided = decide(request, waiting, now=T0 + HOUR)
    assert after(decided).ending_as is ProvisioningStatus.COMPLETE
    follower = follow_up(request, T0 + HOUR)
    assert after(decided, follower.id) == follower
    assert (follower.status, follower.queued_at, follower.exit_duration) == (QUEUED, T0 + HOUR, HOUR)
    assert [wait.request_id for wait in decided.decisions.waits] == ["gpr-2", follower.id]


@given(st.text(alphabet="abc-", min_size=1, max_size=60))
def test_who_asks_again_has_a_proper_name_and_a_new_id(name: str) -> None:
    request = in_use(bound(endpoint_name=name))
    follower = follow_up(request, T0)
    assert follower.id != request.id
    assert len(follower.name) <= REQUEST_NAME_CHARACTERS_MAX
    check_request(follower)
    assert follow_up(request, T0) == follower, "a pass that is made again asks for the same"


# --- with an endpoint -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("note", "states", "comes_into_use"),
    [
        (None, (ReplicaState.READY,), False),
        (GpuNote("gpr-0", PROVISIONING, since=T0), (ReplicaState.READY,), False),
        (GpuNote("gpr-1", DRAINING, since=T0), (ReplicaState.READY,), False),
        (GpuNote("gpr-1", PROVISIONING, since=T0 - SECOND), (ReplicaState.READY,), False),
        (GpuNote("gpr-1", PROVISIONING, since=T0), (ReplicaState.LOADING,), False),
        (GpuNote("gpr-1", PROVISIONING, since=T0), (), False),
        (GpuNote("gpr-1", PROVISIONING, since=T0), (ReplicaState.READY,), True),
        (GpuNote("gpr-1", PROVISIONING, since=T0), (ReplicaState.EXITED, ReplicaState.READY), True),
    ],
)
def test_a_grant_is_in_use_once_a_server_on_it_answers(
    note: GpuNote | None, states: tuple[ReplicaState, ...], comes_into_use: bool
) -> None:
    decided = decide(provisioning(bound()), endpoint=make_endpoint(note, *states), now=T0 + SECOND)
    assert kinds(decided) == (["GprStarted"] if comes_into_use else [])


def test_a_grant_that_never_comes_into_use_ends_as_failed_and_may_be_tried_again() -> None:
    request = provisioning(bound(requeue_on_failure=True))
    endpoint = make_endpoint(GpuNote("gpr-1", PROVISIONING, since=T0), ReplicaState.EXITED)
    assert decide(request, endpoint=endpoint, now=T0 + HOUR / 2).look_again_seconds == 1800
    failing = after(decide(request, endpoint=endpoint, now=T0 + HOUR))
    assert (failing.status, failing.ending_as) == (DRAINING, ProvisioningStatus.FAILED)
    assert "1h0m0s" in failing.failure_reason
    seen = make_endpoint(GpuNote("gpr-1", DRAINING, since=T0 + HOUR), ReplicaState.EXITED)
    decided = decide(failing, endpoint=seen, now=T0 + HOUR + SECOND)
    assert kinds(decided) == ["GprEnded", "GprRequeued", "GprGranted"]
    assert after(decided).retry_count == 1


@pytest.mark.parametrize(
    ("exit_duration", "start_timeout", "limit"),
    [
        (timedelta(seconds=5), 300.0, timedelta(seconds=5)),
        (HOUR, 300.0, HOUR),
        (24 * HOUR, 300.0, START_LIMIT + timedelta(minutes=5)),
        (24 * HOUR, 7200.0, START_LIMIT + 2 * HOUR),
        (2 * HOUR, 7200.0, 2 * HOUR),
    ],
)
def test_a_grant_waits_for_its_first_use_until_its_start_limit(
    exit_duration: timedelta, start_timeout: float, limit: timedelta
) -> None:
    request = provisioning(bound(exit_duration=exit_duration))
    spec = EndpointSpec(
        ModelSpec("sklearn", "/m", start_timeout_seconds=start_timeout), gpu=GpuSpec(SELECTION)
    )
    endpoint = make_endpoint(GpuNote("gpr-1", PROVISIONING, since=T0), ReplicaState.LOADING, spec=spec)
    waiting = decide(request, endpoint=endpoint, now=T0 + limit - SECOND)
    assert (waiting.changes, waiting.look_again_seconds) == ((), 1.0)
    late = decide(request, endpoint=endpoint, now=T0 + limit)
    assert late.changes[0].relies_on is endpoint, "one that came into use meanwhile keeps its GPUs"
    failing = after(late)
    assert (failing.ending_as, failing.failure_code) == (
        ProvisioningStatus.FAILED,
        ReasonCode.START_TIMEOUT,
    )
    assert format_duration(limit) in failing.failure_reason


def test_after_a_pause_of_the_control_plane_what_started_meanwhile_is_seen_first() -> None:
    request = provisioning(bound(exit_duration=24 * HOUR))
    endpoint = make_endpoint(GpuNote("gpr-1", PROVISIONING, since=T0), ReplicaState.LOADING)
    woken = T0 + 10 * HOUR
    picture = Picture(Snapshot(woken, (NODE,), (request,)), {UID: endpoint}, awake_since=woken)
    decided = plan(picture)
    assert (decided.changes, decided.look_again_seconds) == ((), SETTLING.total_seconds())
    later = replace(picture, snapshot=replace(picture.snapshot, now=woken + SETTLING))
    assert after(plan(later)).failure_code is ReasonCode.START_TIMEOUT


PRESENT = ArtifactState(ArtifactPhase.PRESENT)
MISSING = ArtifactState(
    ArtifactPhase.FAILED,
    reason=ReasonCode.MODEL_NOT_FOUND,
    message="nothing is stored at s3://key:secret@b/k",
    finished_at=T0 + SECOND,
)
CRASHED = Exit(T0 + SECOND, 1, reason=ReasonCode.MODEL_LOAD_FAILED, message="not a model")


def troubled(note: GpuNote, artifact: ArtifactState = PRESENT, *exits: Exit) -> InferenceEndpoint:
    restarts = tuple(RestartRecord("r1-0", 1, each, T0 + HOUR) for each in exits)
    return make_endpoint(status=EndpointStatus(1, artifact=artifact, restarts=restarts, gpu=note))


def on_a_cluster(
    note: GpuNote, waiting: Waiting, ended: Exit | None = None, ends: int = 0
) -> InferenceEndpoint:
    state = ReplicaState.STARTING if ended is None else ReplicaState.EXITED
    replica = Replica(ReplicaId(UID, 1, 0), state, exit=ended, waiting=waiting)
    status = EndpointStatus(
        1, artifact=PRESENT, replicas=(replica,), ends=(("r1-0", ends),), gpu=note, ingress=Ingress()
    )
    return make_endpoint(status=status)


NO_RUNTIME = Waiting(ReasonCode.NO_RUNTIME, "no runtime", T0 + SECOND, fails=True)
LOOPS = Waiting(ReasonCode.CRASH_LOOP, "it ended", T0 + SECOND, fails=True)
ENDED = Exit(T0 + SECOND, 1, reason=ReasonCode.CRASH_LOOP, message="it ended")
ON_GRANT = GpuNote("gpr-1", PROVISIONING, since=T0)
IN_LINE = GpuNote("gpr-1", QUEUED, since=T0)


@pytest.mark.parametrize(
    ("endpoint", "code"),
    [
        (troubled(ON_GRANT, ArtifactState(), CRASHED), ReasonCode.MODEL_LOAD_FAILED),
        (troubled(ON_GRANT, MISSING), ReasonCode.MODEL_NOT_FOUND),
        (troubled(ON_GRANT, replace(MISSING, reason=ReasonCode.STORAGE_UNREACHABLE)), None),
        (troubled(ON_GRANT, replace(MISSING, finished_at=T0 - SECOND)), None),  # before it was asked for
        (troubled(ON_GRANT, ArtifactState(), replace(CRASHED, at=T0 - SECOND)), None),  # on other GPUs
        (troubled(ON_GRANT, ArtifactState(), replace(CRASHED, reason=ReasonCode.SERVER_EXITED)), None),
        (troubled(replace(ON_GRANT, gpr_id="gpr-0"), MISSING), None),
        (troubled(replace(ON_GRANT, since=T0 - SECOND), MISSING), None),
        (replace(troubled(ON_GRANT, MISSING), generation=2), None),  # it has been changed since
        (on_a_cluster(ON_GRANT, NO_RUNTIME), ReasonCode.NO_RUNTIME),
        (on_a_cluster(ON_GRANT, replace(NO_RUNTIME, since=T0 - SECOND)), None),
        (on_a_cluster(ON_GRANT, replace(NO_RUNTIME, fails=False)), None),
        (on_a_cluster(ON_GRANT, LOOPS, ENDED, ends=2), None),  # the loop is young
        (on_a_cluster(ON_GRANT, LOOPS, ENDED, ends=5), ReasonCode.CRASH_LOOP),
    ],
)
def test_gpus_are_given_back_at_once_where_only_a_person_can_mend_it(
    endpoint: InferenceEndpoint, code: ReasonCode | None
) -> None:
    request = provisioning(bound(exit_duration=24 * HOUR, requeue_on_failure=True))
    decided = decide(request, endpoint=endpoint, now=T0 + 2 * SECOND)
    if code is None:
        assert decided.changes == ()
        return
    failing = after(decided)
    assert (failing.ending_as, failing.failure_code) == (ProvisioningStatus.FAILED, code)
    assert failing.failure_reason.startswith(f"{code}: ")
    assert "secret" not in failing.failure_reason
    assert decided.changes[0].events[0].reason is code
    assert decided.changes[0].relies_on is endpoint
    seen = make_endpoint(GpuNote("gpr-1", DRAINING, since=T0 + 2 * SECOND))
    assert kinds(decide(failing, endpoint=seen, now=T0 + HOUR)) == ["GprEnded"], "it does not come back"


@pytest.mark.parametrize(
    ("endpoint", "hopeless"),
    [
        (troubled(IN_LINE, MISSING), True),
        (troubled(IN_LINE, replace(MISSING, finished_at=T0 - SECOND)), False),
        (troubled(IN_LINE, replace(MISSING, reason=ReasonCode.HOST_NOT_FOUND)), False),
        (troubled(IN_LINE, ArtifactState(), CRASHED), False),
        (troubled(IN_LINE), False),
    ],
)
def test_who_cannot_have_its_model_is_neither_granted_nor_evicts(
    endpoint: InferenceEndpoint, hopeless: bool
) -> None:
    holder = in_use(make_request("gpr-2", priority=50, enable_eviction=True), T0 - HOUR)
    request = bound(priority=250, enable_eviction=True)
    decided = decide(request, replace(holder, exit_duration=24 * HOUR), endpoint=endpoint, now=T0 + SECOND)
    assert ("GprEvicted" in kinds(decided)) is not hopeless
    if hopeless:
        assert (after(decided).status, after(decided).failure_code) == (
            ProvisioningStatus.FAILED,
            ReasonCode.MODEL_NOT_FOUND,
        )
        assert decided.changes[0].relies_on == endpoint


@pytest.mark.parametrize(
    ("note", "states", "free"),
    [
        (None, (), False),
        (GpuNote("gpr-1", PROVISIONING, since=T0), (), False),
        (GpuNote("gpr-0", DRAINING, since=T0 + SECOND), (), False),
        (GpuNote("gpr-1", DRAINING, since=T0), (), False),  # an earlier drain of the same request
        (GpuNote("gpr-1", DRAINING, since=T0 + SECOND), (ReplicaState.STOPPING,), False),
        (GpuNote("gpr-1", DRAINING, since=T0 + SECOND), (ReplicaState.EXITED, ReplicaState.READY), False),
        (GpuNote("gpr-1", DRAINING, since=T0 + SECOND), (), True),
        (GpuNote("gpr-1", DRAINING, since=T0 + SECOND), (ReplicaState.EXITED,), True),
    ],
)
def test_gpus_are_free_only_when_this_drain_was_answered(
    note: GpuNote | None, states: tuple[ReplicaState, ...], free: bool
) -> None:
    request = draining(in_use(bound()), ProvisioningStatus.EARLY_RELEASED, T0 + SECOND)
    endpoint = make_endpoint(note, *states)
    assert is_seen_free(request, endpoint) is free
    waiting = make_request("gpr-2")
    decided = decide(request, waiting, endpoint=endpoint, now=T0 + 2 * SECOND)
    assert kinds(decided) == (["GprEnded", "GprGranted"] if free else [])


@pytest.mark.parametrize(
    "endpoint",
    [
        None,
        make_endpoint(deletion_requested_at=T0),
        make_endpoint(spec=EndpointSpec(ModelSpec("sklearn", "/m"), gpu=GpuSpec(SELECTION), stopped=True)),
        make_endpoint(spec=EndpointSpec(ModelSpec("sklearn", "/m"))),
    ],
    ids=["gone", "going", "stopped", "on CPU"],
)
def test_a_request_that_nobody_wants_is_forgotten_or_released(endpoint: InferenceEndpoint | None) -> None:
    queued = decide(bound(), endpoint=endpoint)
    assert [(change.after, change.relies_on) for change in queued.changes] == [(None, endpoint)]
    assert kinds(queued) == ["GprDeleted"]
    for request in (provisioning(bound()), in_use(bound())):
        decided = decide(request, endpoint=endpoint, now=T0 + SECOND)
        expected = DRAINING if endpoint is not None else ProvisioningStatus.EARLY_RELEASED
        assert after(decided).status is expected
        assert decided.changes[0].relies_on is endpoint


def test_the_evicted_is_told_by_whom_and_keeps_its_place() -> None:
    victim = in_use(bound(priority=50, enable_eviction=True, requeue_on_failure=True))
    newcomer = make_request("gpr-2", priority=250, enable_eviction=True, queued_at=T0 + SECOND)
    endpoint = make_endpoint(GpuNote("gpr-1", SUCCESSFUL, since=T0), ReplicaState.READY)
    decided = decide(victim, newcomer, endpoint=endpoint, now=T0 + HOUR / 2)
    evicted = after(decided)
    assert (evicted.status, evicted.evicted_by) == (DRAINING, "gpr-2")
    assert "priority 250" in evicted.failure_reason
    assert kinds(decided) == ["GprEvicted"]
    seen = make_endpoint(GpuNote("gpr-1", DRAINING, since=T0 + HOUR / 2))
    decided = decide(evicted, newcomer, endpoint=seen, now=T0 + HOUR / 2 + SECOND)
    assert after(decided, "gpr-2").status is PROVISIONING
    assert (after(decided).status, after(decided).queued_at) == (QUEUED, T0)


def test_the_evicted_of_a_stopped_endpoint_does_not_come_back() -> None:
    evicted = draining(
        in_use(bound(requeue_on_failure=True)), ProvisioningStatus.EVICTED, T0, evicted_by="gpr-2"
    )
    stopped = EndpointSpec(ModelSpec("sklearn", "/m"), gpu=GpuSpec(SELECTION), stopped=True)
    decided = decide(evicted, endpoint=make_endpoint(GpuNote("gpr-1", DRAINING, since=T0), spec=stopped))
    assert after(decided).status is ProvisioningStatus.EVICTED


def test_a_policy_may_put_back_who_did_not_ask_for_it() -> None:
    evicted = draining(in_use(make_request()), ProvisioningStatus.EVICTED, T0, evicted_by="gpr-2")
    policy = WorkspacePolicy("red", requeue_on_failure=True)
    assert kinds(decide(evicted, policy=policy)) == ["GprEnded", "GprRequeued", "GprGranted"]
    assert kinds(decide(evicted)) == ["GprEnded"]


# --- idleness ---------------------------------------------------------------------------------------


def idling(**changes: object) -> GpuRequest:
    return in_use(bound(idle_timeout=timedelta(minutes=5), enforce_idle=True, **changes))


RUNNING = make_endpoint(GpuNote("gpr-1", SUCCESSFUL, since=T0), ReplicaState.READY)


def test_idleness_counts_from_the_start_at_the_earliest() -> None:
    now = T0 + timedelta(minutes=4)
    decided = decide(idling(), endpoint=RUNNING, now=now, idle={UID: T0 - HOUR})
    assert (after(decided).idle_since, after(decided).status) == (T0, SUCCESSFUL)
    assert decided.look_again_seconds == 60


def test_what_is_measured_decides_not_what_is_stored() -> None:
    stored = replace(idling(), idle_since=T0)
    now = T0 + timedelta(minutes=5)
    for measured in (None, now - SECOND):
        decided = decide(stored, endpoint=RUNNING, now=now, idle={UID: measured})
        assert (after(decided).status, after(decided).idle_since) == (SUCCESSFUL, measured)
    decided = decide(stored, endpoint=RUNNING, now=now, idle={UID: T0})
    assert after(decided).ending_as is ProvisioningStatus.TIMED_OUT
    assert decided.changes[0].events[0].reason is ReasonCode.IDLE_TIMEOUT


def test_a_request_without_an_endpoint_times_out_where_its_gpus_are_measured() -> None:
    request = in_use(make_request(enforce_idle=True, idle_timeout=timedelta(minutes=10)))
    now = T0 + timedelta(minutes=20)
    assert after(decide(request, now=now, idle={"gpr-1": T0})).status is ProvisioningStatus.TIMED_OUT
    assert decide(request, now=now, idle={}).changes == ()  # nothing is measured
    busy = decide(request, now=now, idle={"gpr-1": None})
    assert (busy.changes, busy.look_again_seconds) == ((), IDLE_LOOK_SECONDS)


def test_small_movements_are_not_written_down_but_count() -> None:
    stored = replace(idling(), idle_since=T0)
    decided = decide(stored, endpoint=RUNNING, now=T0 + timedelta(minutes=5), idle={UID: T0 + 10 * SECOND})
    assert (decided.changes, decided.look_again_seconds) == ((), 10)


def test_who_is_busy_is_looked_at_again_soon() -> None:
    decided = decide(idling(), endpoint=RUNNING, idle={UID: None})
    assert (decided.changes, decided.look_again_seconds) == ((), 5)


def test_idleness_that_is_not_enforced_ends_nothing() -> None:
    request = replace(idling(), enforce_idle=False)
    decided = decide(request, endpoint=RUNNING, now=T0 + HOUR / 2, idle={UID: T0})
    assert decided.changes == ()


# --- many -------------------------------------------------------------------------------------------


def test_a_flood_is_granted_in_several_passes() -> None:
    count = GRANTS_PER_PASS_MAX + 10
    nodes = tuple(replace(NODE, name=f"n{n}") for n in range(count))
    requests = tuple(make_request(f"gpr-{n:04}") for n in range(count))
    first = decide(*requests, nodes=nodes)
    assert (len(first.changes), first.look_again_seconds) == (GRANTS_PER_PASS_MAX, 0.0)
    changed = {change.after.id: change.after for change in first.changes if change.after is not None}
    second = decide(*(changed.get(each.id, each) for each in requests), nodes=nodes)
    assert kinds(second).count("GprGranted") == 10


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 100_000))
def test_whatever_there_is_no_gpu_is_held_twice_and_a_second_pass_settles(
    shapes: list[int], seconds: int
) -> None:
    now = T0 + timedelta(seconds=seconds)
    requests = []
    for number, shape in enumerate(shapes):
        request = make_request(f"gpr-{number}", priority=50 + 40 * shape, enable_eviction=True)
        request = replace(request, auto_renew=shape % 2 == 0, requeue_on_failure=shape > 2)
        requests.append(in_use(request) if number == 0 else request)
    for _ in range(6):
        decided = decide(*requests, now=now)
        for holdings in held_gpus(decided.snapshot.requests).values():
            taken = [index for holding in holdings for index in holding.gpus]
            assert len(taken) == len(set(taken))
        for change in decided.changes:
            assert change.events or change.after is not None
        requests = list(decided.snapshot.requests)
        if not decided.changes:
            return
    pytest.fail(f"it never settles: {decided.changes}")


# --- words ------------------------------------------------------------------------------------------


def test_everybody_who_waits_is_told_where_and_until_when() -> None:
    waiting = [make_request(f"gpr-{n}", workspace="blue", queued_at=T0 + n * SECOND) for n in (2, 3)]
    decided = decide(in_use(make_request()), *waiting, now=T0 + 10 * SECOND)
    said = notes(decided, {})
    assert {each: note.position for each, note in said.items()} == {"gpr-2": 1, "gpr-3": 2}
    first = said["gpr-2"]
    assert first.reason is ReasonCode.AWAITING_GPU
    assert first.estimated_start is not None
    assert first.estimated_start >= T0 + HOUR
    assert first.assumption
    assert first.remedy
    assert notes(decided, said) == {}, "nothing is said twice"


def test_who_cannot_be_placed_has_no_position_and_a_reason() -> None:
    request = make_request(selection=replace(SELECTION, gpu_shape="NVIDIA-H100"))
    note = notes(decide(request), {})["gpr-1"]
    assert (note.position, note.estimated_start, note.reason) == (None, None, ReasonCode.NO_SUCH_SHAPE)
    assert note.remedy


def test_a_remedy_names_only_what_the_workspace_may_use() -> None:
    other = Node("far", "gpu", "h1", "NVIDIA-H100", 1, 80)
    waiting = make_request("gpr-2", queued_at=T0 + SECOND)
    requests = (in_use(make_request()), waiting)

    def remedy(clusters: frozenset[str]) -> str:
        snapshot = Snapshot(T0 + SECOND, (NODE, other), requests, usable_clusters={"red": clusters})
        return notes(plan(Picture(snapshot)), {})["gpr-2"].remedy

    assert "NVIDIA-H100" in remedy(frozenset({"local", "far"}))
    assert "NVIDIA-H100" not in remedy(frozenset({"local"}))


@pytest.mark.parametrize(
    ("moved", "same"),
    [(timedelta(0), True), (ESTIMATE_SLACK, True), (ESTIMATE_SLACK + SECOND, False)],
)
def test_an_estimate_that_hardly_moves_is_no_news(moved: timedelta, same: bool) -> None:
    before = WaitNote(1, "position 1", T0 + HOUR, "known ends", T0)
    now = replace(before, estimated_start=T0 + HOUR + moved, at=T0 + SECOND)
    assert says_the_same(before, now) is same
    assert not says_the_same(before, replace(before, position=2))
    assert not says_the_same(before, replace(before, estimated_start=None))
