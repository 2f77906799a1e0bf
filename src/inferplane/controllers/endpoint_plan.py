"""What to do next for one endpoint: a function from values to a value.

    endpoint (wish and last status) + observation (world) + routed (gateway) + its GPUs + now
        → actions, routes, status, events, when to look again

The shell in `endpoints.py` gathers the inputs and performs the outcome. Nothing here waits, asks or
remembers: a crash between any two steps loses nothing, because the next call sees the same world.

Rules kept here, each because breaking it would hurt somebody:

* A replica is stopped only when the gateway no longer sends to it, so no request is lost.
* What serves keeps serving: a newer revision takes over only once it answers.
* A delete takes routes first, then servers, then files; the row goes last.
* Where the endpoint's cluster is configured no longer, nothing is started, and whatever is still seen of it
  is ended: a delete, a stop and a drain come to their end there too (`plan_without_engine`).
* Failures are counted in the status before the next try, so a restart of ours resets no backoff.
* Where GPUs are asked for, nothing runs without a grant: the model is fetched while it waits, servers
  start on the granted GPUs only, and when these are to be given back everything on them is stopped first.
  `status.gpu` says which state of the request this pass knew of: by it the admission controller tells
  that GPUs are really free (`admission_plan.is_seen_free`), so it is saved before anything is started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from inferplane.autoscaler import Traffic
from inferplane.controllers.rollout_plan import next_note, watch_seconds
from inferplane.controllers.scale_plan import NO_TRAFFIC, Scaled, scaled
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    CRASH_LOOP_FAILURES,
    EndpointStatus,
    Exit,
    GpuNote,
    InferenceEndpoint,
    Milestone,
    PublicState,
    PublicStatus,
    Replica,
    ReplicaId,
    ReplicaState,
    RestartRecord,
    public_state,
)
from inferplane.domain.gpu_request import (
    GpuRequest,
    Grant,
    ProvisioningStatus,
    wants_requeue,
)
from inferplane.domain.quantity import format_duration
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.domain.rollout import (
    RevisionTraffic,
    RolloutNote,
    RolloutPhase,
    phase_of,
    shares,
)
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.engines.port import (
    Action,
    DropModel,
    FetchModel,
    Observation,
    Release,
    StartReplica,
    StopReplica,
)
from inferplane.gateway.route_table import EndpointRoutes, Upstream

QUICK_RETRY_FIRST_SECONDS = 0.5
QUICK_RETRY_MAX_SECONDS = 30.0
SLOW_RETRY_FIRST_SECONDS = 60.0
SLOW_RETRY_MAX_SECONDS = 600.0
STABLE_AFTER_SECONDS = 60.0
STOP_GRACE_EXTRA_SECONDS = 5.0
HUNG_GRACE_SECONDS = 2.0  # what no longer answers its health check finishes no request either
LOOK_AGAIN_SECONDS = 1.0
LOOK_SOON_SECONDS = 0.05

NOBODY_ASKED: Mapping[int, RevisionTraffic] = {}

ALIVE = frozenset(ReplicaState) - {ReplicaState.EXITED}
USABLE = frozenset({ProvisioningStatus.PROVISIONING, ProvisioningStatus.SUCCESSFUL})
_ON_ITS_WAY = USABLE | {ProvisioningStatus.QUEUED}

ENDING_REASONS = {
    ProvisioningStatus.COMPLETE: ReasonCode.EXIT_DURATION_REACHED,
    ProvisioningStatus.EARLY_RELEASED: ReasonCode.GPU_RELEASED,
    ProvisioningStatus.TIMED_OUT: ReasonCode.IDLE_TIMEOUT,
    ProvisioningStatus.EVICTED: ReasonCode.EVICTED,
    ProvisioningStatus.FAILED: ReasonCode.UNSCHEDULABLE,
}
"""Why a request's GPUs are given back, by what it becomes, where nothing more exact is known."""


def ending_reason(request: GpuRequest, ending_as: ProvisioningStatus) -> ReasonCode:
    """Why a request's GPUs are given back."""
    failed = ending_as is ProvisioningStatus.FAILED
    return (request.failure_code if failed else None) or ENDING_REASONS[ending_as]


@dataclass(frozen=True, slots=True)
class PlannedEvent:
    """An event to append together with the status: what happened, and why if it is bad."""

    kind: str
    message: str
    reason: ReasonCode | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EndpointGpus:
    """What an endpoint's GPU requests say. `request` is the one that counts (`current_request`).

    `wait` is what was last said about its wait. `comes_back` means that GPUs are asked for again without
    anybody acting when this one ends. `live` counts the requests that have not ended.
    """

    request: GpuRequest | None = None
    wait: WaitNote | None = None
    comes_back: bool = False
    live: int = 0


NO_GPUS = EndpointGpus()


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step.

    `routes` is what the gateway should have (None: nothing of this endpoint). `finished` means the
    deletion is complete and the row can go. `look_again_seconds` is None when only a wake-up matters.
    `on_traffic` says that new traffic may ask for another number of replicas.
    """

    status: EndpointStatus
    routes: EndpointRoutes | None
    actions: tuple[Action, ...] = ()
    events: tuple[PlannedEvent, ...] = ()
    look_again_seconds: float | None = None
    finished: bool = False
    on_traffic: bool = False


def plan(
    endpoint: InferenceEndpoint,
    observation: Observation,
    confirmed: EndpointRoutes | None,
    now: datetime,
    gpus: EndpointGpus = NO_GPUS,
    traffic: Traffic = NO_TRAFFIC,
    by_revision: Mapping[int, RevisionTraffic] = NOBODY_ASKED,
) -> Plan:
    """Decide the next step. `confirmed` is what the gateway may still be sending by, or None."""
    if endpoint.deletion_requested_at is not None:
        return _plan_deletion(endpoint, observation, confirmed, gpus)
    return _plan_service(endpoint, observation, confirmed, now, gpus, traffic, by_revision)


def plan_without_engine(
    endpoint: InferenceEndpoint,
    observation: Observation,
    confirmed: EndpointRoutes | None,
    now: datetime,
    gpus: EndpointGpus = NO_GPUS,
) -> Plan:
    """Decide the next step for an endpoint whose cluster has no engine: it is configured no longer.

    `observation` is what is still here of it, nothing in most cases. What the cluster may have elsewhere
    nobody can see, and it holds nothing up.
    """
    message = (
        f"no engine is configured for cluster {endpoint.cluster}: put it back into the configuration,"
        f" or delete the endpoint"
    )
    if endpoint.deletion_requested_at is not None:
        going = _plan_deletion(endpoint, observation, confirmed, gpus)
        message = f"no engine is configured for cluster {endpoint.cluster}"
        status = replace(going.status, problem=ReasonCode.CLUSTER_UNREACHABLE, problem_message=message)
        return replace(going, status=status)
    before = endpoint.status
    alive = [r for r in observation.replicas if r.state in ALIVE]
    status = replace(
        before,
        observed_generation=endpoint.generation,
        replicas=tuple(alive),
        routed=_routed(confirmed),
        problem=ReasonCode.CLUSTER_UNREACHABLE,
        problem_message=message,
        left=(),
        gpu=_gpu_note(gpus),
    )
    previous, after = public_state(endpoint), public_state(replace(endpoint, status=status))
    if after.status is not previous.status or before.since is None:
        status = replace(status, since=now)
    unrouted = replace(endpoint, status=replace(status, replicas=(), routed=()))
    return Plan(
        status=status,
        routes=routes_of(unrouted),
        actions=tuple(_stops(endpoint, alive, confirmed)),
        events=_transition_events(previous, after, before),
        look_again_seconds=LOOK_AGAIN_SECONDS if alive else None,
    )


def gpus_of(requests: Iterable[GpuRequest], wait: WaitNote | None, policy: WorkspacePolicy) -> EndpointGpus:
    """What an endpoint's requests, oldest first, say together. `wait` is that of the newest."""
    known = list(requests)
    request = current_request(known)
    if request is None:
        return NO_GPUS
    newest = known[-1]
    ending = request.ending_as
    as_ended = request if ending is None else replace(request, status=ending, ending_as=None)
    return EndpointGpus(
        request,
        wait if request is newest and request.status is ProvisioningStatus.QUEUED else None,
        comes_back=not newest.has_ended and (request is not newest or wants_requeue(as_ended, policy)),
        live=sum(not each.has_ended for each in known),
    )


def current_request(requests: Iterable[GpuRequest]) -> GpuRequest | None:
    """Which of an endpoint's requests says what it may do; None where there is none.

    One that drains comes first: nothing may be started anew before what ran on its GPUs is gone. Else the
    newest that has not ended, else the newest. `requests` come by age.
    """
    known = list(requests)
    for each in known:
        if each.status is ProvisioningStatus.DRAINING:
            return each
    live = [each for each in known if not each.has_ended]
    return next(reversed(live or known), None)


def routes_of(endpoint: InferenceEndpoint) -> EndpointRoutes:
    """The routes `endpoint` should have by its status.

    Replicas of the wished revision that answer, or of both while one takes over from another; while there
    is none, those of older revisions. None while `endpoint.status` says that it has no GPUs and needs some.
    """
    serving, percents, mirror = _serving(endpoint)
    rollout = endpoint.spec.rollout
    state = public_state(endpoint)
    names = [endpoint.name]
    if endpoint.spec.model.alias and endpoint.spec.model.alias != endpoint.name:
        names.append(endpoint.spec.model.alias)
    return EndpointRoutes(
        uid=endpoint.uid,
        workspace=endpoint.workspace,
        endpoint=endpoint.name,
        upstreams=tuple(Upstream(r.id.name, r.address) for r in sorted(serving, key=lambda r: r.id)),
        models=tuple(names),
        max_request_bytes=endpoint.spec.limits.max_request_bytes,
        timeout_seconds=endpoint.spec.limits.timeout_seconds,
        access=endpoint.spec.access,
        requests_per_second=endpoint.spec.limits.requests_per_second,
        burst=endpoint.spec.limits.burst,
        requests_per_second_per_key=endpoint.spec.limits.requests_per_second_per_key,
        concurrency_max=endpoint.spec.limits.concurrency_max,
        unavailable_reason=(state.reason or state.status).value,
        asleep=endpoint.spec.scaling.sleeps and not endpoint.spec.stopped and not serving,
        cluster=endpoint.host_cluster,
        shares=percents,
        mirror=mirror,
        sticky_header=rollout.sticky_header if rollout is not None and len(percents) > 1 else "",
    )


def _serving(
    endpoint: InferenceEndpoint,
) -> tuple[list[Replica], tuple[tuple[int, int], ...], tuple[int, int] | None]:
    """Replicas that get requests, the revisions' shares where there is more than one, and who gets copies."""
    spec, note = endpoint.spec, endpoint.status.rollout
    wanted = _startable(endpoint, endpoint.status.gpu)
    if not wanted:
        return [], (), None
    names, revisions = {each.name for each in wanted}, {each.revision for each in wanted}
    answering = [
        r
        for r in endpoint.status.replicas
        if r.state is ReplicaState.READY
        and r.address
        and (r.id.name in names or r.id.revision not in revisions)
    ]
    there = frozenset(r.id.revision for r in answering)
    percents = shares(spec.revision, spec.rollout, note, there)
    mirror = None
    if (
        spec.rollout is not None
        and spec.rollout.mirror_percent
        and phase_of(spec.revision, spec.rollout, note) is RolloutPhase.SHIFTED
        and spec.revision in there
    ):
        mirror = (spec.revision, spec.rollout.mirror_percent)
    serving = {revision for revision, _ in percents} | ({mirror[0]} if mirror is not None else set())
    return (
        [r for r in answering if r.id.revision in serving],
        percents if len(serving) > 1 else (),
        mirror,
    )


# --- deletion -------------------------------------------------------------------------------------


def _plan_deletion(
    endpoint: InferenceEndpoint, seen: Observation, confirmed: EndpointRoutes | None, gpus: EndpointGpus
) -> Plan:
    alive = [r for r in seen.replicas if r.state in ALIVE]
    left: list[str] = []
    actions: list[Action] = []
    if confirmed is not None:
        left.append("routes")
    if alive:
        left.append(f"{len(alive)} model server{'s' if len(alive) > 1 else ''}")
        actions += _stops(endpoint, alive, confirmed)
    left += seen.left
    if confirmed is None and not alive and seen.left:
        actions.append(Release())
    if gpus.live:
        left.append("GPUs")
    finished = not left
    status = replace(
        endpoint.status,
        observed_generation=endpoint.generation,
        replicas=tuple(r for r in seen.replicas if r.state in ALIVE),
        routed=_routed(confirmed),
        artifact=seen.artifact(endpoint.spec.revision),
        left=tuple(left),
        problem=endpoint.status.problem if actions else None,
        problem_message=endpoint.status.problem_message if actions else "",
        gpu=_gpu_note(gpus),
    )
    return Plan(
        status=status,
        routes=None,
        actions=tuple(actions),
        look_again_seconds=None
        if finished
        else LOOK_SOON_SECONDS
        if Release() in actions
        else LOOK_AGAIN_SECONDS,
        finished=finished,
    )


def _stops(
    endpoint: InferenceEndpoint, replicas: list[Replica], confirmed: EndpointRoutes | None
) -> list[Action]:
    """Stop those that receive nothing any more; the rest wait for the gateway."""
    routed = _routed(confirmed)
    grace = endpoint.spec.limits.timeout_seconds + STOP_GRACE_EXTRA_SECONDS
    return [
        StopReplica(replica.id, HUNG_GRACE_SECONDS if replica.state is ReplicaState.UNRESPONSIVE else grace)
        for replica in replicas
        if replica.state is not ReplicaState.STOPPING and replica.id.name not in routed
    ]


def _routed(confirmed: EndpointRoutes | None) -> tuple[str, ...]:
    return () if confirmed is None else tuple(upstream.replica for upstream in confirmed.upstreams)


# --- service --------------------------------------------------------------------------------------


def _plan_service(
    endpoint: InferenceEndpoint,
    seen: Observation,
    confirmed: EndpointRoutes | None,
    now: datetime,
    gpus: EndpointGpus,
    traffic: Traffic,
    by_revision: Mapping[int, RevisionTraffic],
) -> Plan:
    previous, previous_rollout = public_state(endpoint), endpoint.status.rollout
    scale = scaled(endpoint, traffic, seen.replicas, now)
    endpoint = replace(endpoint, status=replace(endpoint.status, scale=scale.note))
    asked_at = _asked_at(gpus)
    before = _without_earlier_failures(endpoint.status, asked_at)
    note = _gpu_note(gpus)
    request = gpus.request
    grant = request.grant if request is not None and request.status in USABLE else None
    revision = endpoint.spec.revision
    here = _unless_failed_earlier(seen.artifact(revision), asked_at)
    artifact = _remember_artifact(before.artifact, here, now)
    exits = _new_exits(before, seen, {replica_id.name for replica_id in _startable(endpoint, note)})
    restarts = _remember_restarts(before.restarts, exits, seen.replicas, now)
    if endpoint.is_asleep:
        restarts = ()  # who wakes it has a fresh try
    rollout = next_note(endpoint, seen.replicas, restarts, artifact, by_revision, now)
    endpoint = replace(endpoint, status=replace(endpoint.status, rollout=rollout))
    wanted = _startable(endpoint, note)

    actions: list[Action] = []
    is_to_run = endpoint.desired_replicas > 0 and (bool(wanted) or _will_have_gpus(gpus))
    if is_to_run and _fetch_is_due(before.artifact, here, now):
        actions.append(FetchModel(revision))
    actions += _fetches_of_base(endpoint, wanted, seen)
    # By the greatest number there may be: what one replica uses is never given to another.
    parts = max(endpoint.spec.scaling.max_replicas, endpoint.desired_replicas)
    actions += _starts(_with_room(endpoint, wanted, seen), grant, parts, seen.replicas, restarts, now)
    actions += _stops(endpoint, _superfluous(endpoint, wanted, seen.replicas, confirmed), confirmed)
    actions += _drops(endpoint, seen)

    status = replace(
        before,
        observed_generation=endpoint.generation,
        artifact=artifact,
        replicas=seen.replicas,
        restarts=restarts,
        ends=_count_ends(before.ends, exits, endpoint, seen.replicas),
        routed=_routed(confirmed),
        model=next((r.model for r in seen.replicas if r.model is not None), before.model),
        # Only a pass with nothing left to do proves that the engine takes steps again.
        problem=before.problem if actions else None,
        problem_message=before.problem_message if actions else "",
        left=(),
        gpu=note,
        rollout=rollout,
    )
    status = replace(status, milestones=_milestones(endpoint, status, now))
    after = public_state(replace(endpoint, status=status))
    if after.status is not previous.status or before.since is None:
        status = replace(status, since=now)
    return Plan(
        status=status,
        routes=routes_of(replace(endpoint, status=status)),
        actions=tuple(actions),
        events=(
            *_progress_events(before, artifact, exits),
            *_scale_events(scale),
            *_rollout_events(endpoint, previous_rollout, rollout),
            *_transition_events(previous, after, before),
        ),
        look_again_seconds=_soonest(
            _next_deadline(artifact, restarts, seen.replicas, now),
            scale.look_again_seconds,
            watch_seconds(endpoint, rollout),
        ),
        on_traffic=scale.on_traffic,
    )


def _remember_artifact(before: ArtifactState, seen: ArtifactState, now: datetime) -> ArtifactState:
    """What to say about the model files, counting failures that the engine itself does not count."""
    failed_before = before.phase is ArtifactPhase.FAILED
    if seen.phase is ArtifactPhase.FAILED:
        if failed_before and seen.finished_at == before.finished_at:
            return before
        attempts = before.attempts + 1
        reason = seen.reason or ReasonCode.STORAGE_UNREACHABLE
        pause = _pause(reason, attempts)
        return replace(seen, reason=reason, attempts=attempts, next_attempt_at=now + pause)
    if failed_before and (
        seen.phase is ArtifactPhase.ABSENT
        or (seen.phase is ArtifactPhase.FETCHING and not seen.received_bytes)
    ):
        return before  # a new try that has not got anywhere yet is no news
    if seen.phase is ArtifactPhase.FETCHING:
        return replace(seen, attempts=before.attempts)
    return seen


def _fetch_is_due(before: ArtifactState, seen: ArtifactState, now: datetime) -> bool:
    if seen.phase in (ArtifactPhase.PRESENT, ArtifactPhase.FETCHING):
        return False
    if before.phase is not ArtifactPhase.FAILED:
        return seen.phase is ArtifactPhase.ABSENT
    if seen.phase is ArtifactPhase.FAILED and seen.finished_at != before.finished_at:
        return False  # a fresh failure: its pause begins now
    return before.next_attempt_at is None or now >= before.next_attempt_at


def _new_exits(before: EndpointStatus, seen: Observation, wanted: set[str]) -> dict[str, Exit]:
    """Ends of wanted servers that the status has not counted yet, by replica name."""
    counted = {record.replica: record.last_exit.at for record in before.restarts}
    stopping = {r.id.name for r in before.replicas if r.state is ReplicaState.STOPPING}
    hung = {r.id.name for r in before.replicas if r.state is ReplicaState.UNRESPONSIVE}
    already = {r.id.name: r.exit.at for r in before.replicas if r.exit is not None}
    exits: dict[str, Exit] = {}
    for replica in seen.replicas:
        name, ended = replica.id.name, replica.exit
        if replica.state is not ReplicaState.EXITED or ended is None or name not in wanted:
            continue
        if ended.at in (counted.get(name), already.get(name)):
            continue
        if name in hung:
            message = "the model server stopped answering its health check and was ended"
            ended = replace(ended, reason=ReasonCode.UNRESPONSIVE, message=message)
        elif name in stopping and ended.reason is ReasonCode.SERVER_EXITED:
            continue  # we asked for it
        exits[name] = ended
    return exits


def _remember_restarts(
    before: tuple[RestartRecord, ...], exits: Mapping[str, Exit], replicas: tuple[Replica, ...], now: datetime
) -> tuple[RestartRecord, ...]:
    """Count new failures; forget those of servers that have been well for long enough."""
    stable = {
        r.id.name
        for r in replicas
        if r.state is ReplicaState.READY
        and r.ready_at is not None
        and now - r.ready_at >= timedelta(seconds=STABLE_AFTER_SECONDS)
    }
    records = {record.replica: record for record in before if record.replica not in stable}
    for name, ended in exits.items():
        failures = records[name].failures + 1 if name in records else 1
        pause = _pause(ended.reason, failures)
        records[name] = RestartRecord(name, failures, ended, now + pause)
    return tuple(records[name] for name in sorted(records))


def _count_ends(
    before: tuple[tuple[str, int], ...],
    exits: Mapping[str, Exit],
    endpoint: InferenceEndpoint,
    replicas: tuple[Replica, ...],
) -> tuple[tuple[str, int], ...]:
    """How often each replica has ended unasked. Those of older revisions are forgotten once they are gone."""
    counts = dict(before)
    for name in exits:
        counts[name] = counts.get(name, 0) + 1
    there = {replica.id.name for replica in replicas}
    newest = f"r{endpoint.spec.revision}-"
    return tuple((name, counts[name]) for name in sorted(counts) if name in there or name.startswith(newest))


def _pause(reason: ReasonCode, failures: int) -> timedelta:
    """How long to wait before the next try: doubling; slowly where a person must act first."""
    quick = reason_of(reason).retry_helps and failures < CRASH_LOOP_FAILURES
    first = QUICK_RETRY_FIRST_SECONDS if quick else SLOW_RETRY_FIRST_SECONDS
    longest = QUICK_RETRY_MAX_SECONDS if quick else SLOW_RETRY_MAX_SECONDS
    doublings = failures - 1 if quick or failures < CRASH_LOOP_FAILURES else failures - CRASH_LOOP_FAILURES
    return timedelta(seconds=min(longest, first * 2.0 ** min(doublings, 16)))


def _starts(
    wanted: tuple[ReplicaId, ...],
    grant: Grant | None,
    shares: int,
    replicas: tuple[Replica, ...],
    restarts: tuple[RestartRecord, ...],
    now: datetime,
) -> list[Action]:
    alive = {r.id.name for r in replicas if r.state in ALIVE}
    not_before = {record.replica: record.next_start_at for record in restarts}
    return [
        StartReplica(replica_id, share_of(grant, replica_id.index, shares))
        for replica_id in wanted
        if replica_id.name not in alive and now >= not_before.get(replica_id.name, now)
    ]


def _fetches_of_base(
    endpoint: InferenceEndpoint, wanted: tuple[ReplicaId, ...], seen: Observation
) -> list[Action]:
    """The model of the revision that serves, should it have gone from here: its servers may have to restart."""
    others = sorted({each.revision for each in wanted} - {endpoint.spec.revision})
    return [FetchModel(each) for each in others if seen.artifact(each).phase is ArtifactPhase.ABSENT]


def _with_room(
    endpoint: InferenceEndpoint, wanted: tuple[ReplicaId, ...], seen: Observation
) -> tuple[ReplicaId, ...]:
    """Those of which the model is here and, where a revision starts in place of another, the other has ended."""
    here = tuple(each for each in wanted if seen.artifact(each.revision).phase is ArtifactPhase.PRESENT)
    rollout = endpoint.spec.rollout
    if rollout is None or not rollout.is_in_place:
        return here
    alive = {r.id.revision for r in seen.replicas if r.state in ALIVE}
    return tuple(each for each in here if not alive - {each.revision})


def _drops(endpoint: InferenceEndpoint, seen: Observation) -> list[Action]:
    """Models of revisions that are over."""
    spec = endpoint.spec
    needed = {spec.revision} | {r.id.revision for r in seen.replicas if r.state in ALIVE}
    if spec.rollout is not None:
        phase = phase_of(spec.revision, spec.rollout, endpoint.status.rollout)
        needed |= set() if phase is RolloutPhase.COMPLETE else {spec.rollout.base}
    return [DropModel(each) for each in sorted(seen.artifacts) if each not in needed]


def _superfluous(
    endpoint: InferenceEndpoint,
    wanted: tuple[ReplicaId, ...],
    replicas: tuple[Replica, ...],
    confirmed: EndpointRoutes | None,
) -> list[Replica]:
    """Servers to end: those that hang, and those nobody wants any more.

    An older revision is wanted for as long as the new one is not fully there and routed.
    """
    names = {replica_id.name for replica_id in wanted}
    ready = {r.id.name for r in replicas if r.state is ReplicaState.READY} & names
    replaced = not names or (ready == names and names <= set(_routed(confirmed)))
    extra = []
    for replica in replicas:
        if replica.state is ReplicaState.UNRESPONSIVE:
            extra.append(replica)
        elif replica.state in ALIVE and replica.id.name not in names:
            # With a rollout, what shall go on serving is wanted by name.
            is_older = endpoint.spec.rollout is None and replica.id.revision != endpoint.spec.revision
            if not is_older or replaced:
                extra.append(replica)
    return extra


def _milestones(
    endpoint: InferenceEndpoint, status: EndpointStatus, now: datetime
) -> tuple[tuple[Milestone, datetime], ...]:
    reached = dict(status.milestones)
    reached.setdefault(Milestone.ACCEPTED, endpoint.created_at)
    if status.artifact.phase is ArtifactPhase.PRESENT:
        reached.setdefault(Milestone.DOWNLOADED, status.artifact.finished_at or now)
    for replica in sorted(status.replicas, key=lambda r: r.id):
        if replica.started_at is not None:
            reached.setdefault(Milestone.STARTED, replica.started_at)
        if replica.ready_at is not None:
            reached.setdefault(Milestone.LOADED, replica.ready_at)
    if public_state(replace(endpoint, status=status)).status is PublicStatus.RUNNING:
        reached.setdefault(Milestone.READY, now)
    return tuple((name, reached[name]) for name in Milestone if name in reached)


def _next_deadline(
    artifact: ArtifactState, restarts: tuple[RestartRecord, ...], replicas: tuple[Replica, ...], now: datetime
) -> float | None:
    """Seconds until something falls due by time alone."""
    alive = {r.id.name for r in replicas if r.state in ALIVE}
    moments = [record.next_start_at for record in restarts if record.replica not in alive]
    if artifact.phase is ArtifactPhase.FAILED and artifact.next_attempt_at is not None:
        moments.append(artifact.next_attempt_at)
    recorded = {record.replica for record in restarts}
    moments += [
        r.ready_at + timedelta(seconds=STABLE_AFTER_SECONDS)
        for r in replicas
        if r.id.name in recorded and r.state is ReplicaState.READY and r.ready_at is not None
    ]
    if not moments:
        return None
    return max(0.0, (min(moments) - now).total_seconds())


def _soonest(*moments: float | None) -> float | None:
    return min((seconds for seconds in moments if seconds is not None), default=None)


# --- GPUs -----------------------------------------------------------------------------------------


def _asked_at(gpus: EndpointGpus) -> datetime | None:
    """Since when it has been waiting for, or using, the GPUs that count; None where it has lost them."""
    request = gpus.request
    return request.queued_at if request is not None and request.status in _ON_ITS_WAY else None


def _without_earlier_failures(status: EndpointStatus, asked_at: datetime | None) -> EndpointStatus:
    """Who asks for GPUs has a fresh try: what failed before is history, and holds nothing up."""
    if asked_at is None:
        return status
    restarts = tuple(each for each in status.restarts if each.last_exit.at >= asked_at)
    return replace(status, artifact=_unless_failed_earlier(status.artifact, asked_at), restarts=restarts)


def _unless_failed_earlier(artifact: ArtifactState, asked_at: datetime | None) -> ArtifactState:
    failed_at = artifact.finished_at if artifact.phase is ArtifactPhase.FAILED else None
    is_history = failed_at is not None and asked_at is not None and failed_at < asked_at
    return ArtifactState() if is_history else artifact


def share_of(grant: Grant | None, index: int, replicas: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The GPUs of one replica of several: dealt out evenly where they can be, else shared by all.

    Whole nodes where there are as many for each; else the same part of every node.
    """
    if grant is None:
        return ()
    if len(grant.nodes) % replicas == 0:
        each = len(grant.nodes) // replicas
        return grant.nodes[index * each : (index + 1) * each]
    if any(len(gpus) % replicas for _, gpus in grant.nodes):
        return grant.nodes
    return tuple(
        (node, gpus[index * (len(gpus) // replicas) : (index + 1) * (len(gpus) // replicas)])
        for node, gpus in grant.nodes
    )


def _startable(endpoint: InferenceEndpoint, note: GpuNote | None) -> tuple[ReplicaId, ...]:
    """Replicas that should run and may: those of an endpoint that needs GPUs may only on granted ones."""
    if note is None:
        return () if endpoint.spec.gpu is not None else endpoint.replica_ids()
    if note.status in USABLE:
        return endpoint.replica_ids()
    is_over = note.status is not ProvisioningStatus.DRAINING and endpoint.spec.gpu is None
    return endpoint.replica_ids() if is_over else ()


def _will_have_gpus(gpus: EndpointGpus) -> bool:
    """Whether it is worth having the model ready: its GPUs are asked for, or will be by themselves."""
    return gpus.comes_back or (gpus.request is not None and gpus.request.status is ProvisioningStatus.QUEUED)


def _gpu_note(gpus: EndpointGpus) -> GpuNote | None:
    request = gpus.request
    if request is None:
        return None
    grant = request.grant if request.holds_gpus else None
    ending_as = request.ending_as or (request.status if request.has_ended else None)
    note = GpuNote(
        gpr_id=request.id,
        status=request.status,
        cluster=grant.cluster if grant is not None else "",
        nodes=grant.nodes if grant is not None else (),
        since=_since(request),
        ended_reason=ending_reason(request, ending_as) if ending_as is not None else None,
        requeues=gpus.comes_back,
        message=_ending_sentence(request, ending_as) if ending_as is not None else "",
    )
    if request.status is not ProvisioningStatus.QUEUED:
        return note
    how = f"evicted before by {request.evicted_by}" if request.evicted_by else "ended before"
    before = f"; {how}: {request.failure_reason}" if request.failure_reason else ""
    wait = gpus.wait
    if wait is None:
        return replace(note, message=f"its GPUs are asked for again{before}") if before else note
    return replace(
        note,
        position=wait.position,
        message=wait.explanation + before,
        estimated_start=wait.estimated_start,
        assumption=wait.assumption,
        remedy=wait.remedy,
        reason=wait.reason,
    )


def _since(request: GpuRequest) -> datetime | None:
    """When the request came into its present status."""
    match request.status:
        case ProvisioningStatus.QUEUED:
            return request.queued_at
        case ProvisioningStatus.PROVISIONING:
            return request.granted_at
        case ProvisioningStatus.SUCCESSFUL:
            return request.started_at
        case ProvisioningStatus.DRAINING:
            return request.draining_since
        case _:
            return request.completed_at


def _ending_sentence(request: GpuRequest, ending_as: ProvisioningStatus) -> str:
    match ending_as:
        case ProvisioningStatus.COMPLETE:
            return f"the exit duration of its GPUs, {format_duration(request.exit_duration)}, is over"
        case ProvisioningStatus.TIMED_OUT if request.idle_timeout is not None:
            return f"no request came for its idle timeout of {format_duration(request.idle_timeout)}"
        case ProvisioningStatus.EVICTED:
            return f"evicted by {request.evicted_by}: {request.failure_reason}"
        case ProvisioningStatus.FAILED:
            return request.failure_reason.removeprefix(f"{request.failure_code}: ")
        case _:
            by = f" by {request.released_by}" if request.released_by else ""
            return f"its GPU request {request.name} was released{by}"


# --- what to tell ---------------------------------------------------------------------------------


def _progress_events(
    before: EndpointStatus, artifact: ArtifactState, exits: Mapping[str, Exit]
) -> tuple[PlannedEvent, ...]:
    events = []
    if artifact.phase is ArtifactPhase.PRESENT and before.artifact.phase is not ArtifactPhase.PRESENT:
        data = {"bytes": artifact.received_bytes, "digest": artifact.digest}
        events.append(PlannedEvent("ModelDownloaded", "the model's files are here", data=data))
    for name, ended in sorted(exits.items()):
        data = {
            "replica": name,
            "exitCode": ended.exit_code,
            "signal": ended.signal,
            "logTail": list(ended.log_tail),
        }
        message = ended.message or "the model server ended"
        events.append(PlannedEvent("ReplicaExited", f"replica {name}: {message}", ended.reason, data))
    return tuple(events)


def _rollout_events(
    endpoint: InferenceEndpoint, before: RolloutNote | None, after: RolloutNote | None
) -> tuple[PlannedEvent, ...]:
    if after is None or (
        before is not None
        and (before.base, before.candidate, before.phase) == (after.base, after.candidate, after.phase)
    ):
        return ()
    rollout = endpoint.spec.rollout
    in_place = rollout is not None and rollout.is_in_place
    kind, message = {
        RolloutPhase.PREPARING: (
            "RolloutPreparing",
            f"the model of revision {after.candidate} is fetched; revision {after.base} serves on",
        ),
        RolloutPhase.STARTING: (
            "RolloutStarted",
            f"revision {after.candidate} starts in place of revision {after.base}: there is no room for both"
            if in_place
            else f"revision {after.candidate} starts beside revision {after.base}, which serves on",
        ),
        RolloutPhase.SHIFTED: ("RolloutShifted", f"revision {after.candidate} gets its share of requests"),
        RolloutPhase.COMPLETE: (
            "RolloutCompleted",
            f"revision {after.candidate} has taken over from revision {after.base}",
        ),
        RolloutPhase.ROLLED_BACK: (
            "RolledBack",
            f"revision {after.candidate} was rolled back to revision {after.base}: {after.message}",
        ),
    }[after.phase]
    reason = ReasonCode.ROLLED_BACK if after.phase is RolloutPhase.ROLLED_BACK else None
    data = {"base": after.base, "candidate": after.candidate, "phase": after.phase.value}
    return (PlannedEvent(kind, message, reason, data),)


def _scale_events(scale: Scaled) -> tuple[PlannedEvent, ...]:
    if scale.event is None or scale.note is None:
        return ()
    kind, message = scale.event
    reason = ReasonCode.SCALED_TO_ZERO if scale.note.replicas == 0 else None
    return (PlannedEvent(kind, message, reason, {"replicas": scale.note.replicas}),)


def _transition_events(
    previous: PublicState, after: PublicState, before: EndpointStatus
) -> tuple[PlannedEvent, ...]:
    first = before.observed_generation == 0
    if not first and (previous.status, previous.reason) == (after.status, after.reason):
        return ()
    if first and after.status is PublicStatus.PENDING:
        return ()
    message = after.message or after.status.value
    data = {"from": previous.status.value, "to": after.status.value}
    return (PlannedEvent(f"Endpoint{after.status.value}", message, after.reason, data),)
