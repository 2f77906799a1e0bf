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

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from inferplane.autoscaler import Traffic
from inferplane.controllers.endpoint_failures import (
    ALIVE,
    count_ends,
    fetch_is_due,
    new_exits,
    next_failure_deadline,
    remember_artifact,
    remember_restarts,
    unless_failed_earlier,
    unless_of_another_spec,
    without_earlier_failures,
)
from inferplane.controllers.endpoint_gpus import (
    NO_GPUS,
    USABLE,
    EndpointGpus,
    asked_at,
    gpu_note,
    share_of,
    startable,
    will_have_gpus,
)
from inferplane.controllers.endpoint_news import (
    PlannedEvent,
    progress_events,
    rollout_events,
    scale_events,
    transition_events,
)
from inferplane.controllers.endpoint_routes import routes_of
from inferplane.controllers.managed_plan import away, back, drift_events, reach_events, reached, steps
from inferplane.controllers.rollout_plan import next_note, watch_seconds
from inferplane.controllers.scale_plan import NO_TRAFFIC, Scaled, scaled
from inferplane.domain.artifact import ArtifactPhase
from inferplane.domain.endpoint import (
    EndpointStatus,
    InferenceEndpoint,
    Milestone,
    PublicStatus,
    Replica,
    ReplicaId,
    ReplicaState,
    RestartRecord,
    public_state,
)
from inferplane.domain.gpu_request import Grant
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.rollout import RevisionTraffic, RolloutPhase, phase_of
from inferplane.engines.port import (
    Action,
    DropModel,
    FetchModel,
    Observation,
    Release,
    StartReplica,
    StopReplica,
)
from inferplane.gateway.route_table import EndpointRoutes

STOP_GRACE_EXTRA_SECONDS = 5.0
HUNG_GRACE_SECONDS = 2.0  # what no longer answers its health check finishes no request either
LOOK_AGAIN_SECONDS = 1.0
LOOK_SOON_SECONDS = 0.05

NOBODY_ASKED: Mapping[int, RevisionTraffic] = {}


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
    if observation.unreachable is not None:
        status = away(endpoint.status, observation.unreachable)
        return Plan(status, routes=None, events=reach_events(endpoint.status, observation.unreachable))
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
        gpu=gpu_note(gpus),
    )
    previous, after = public_state(endpoint), public_state(replace(endpoint, status=status))
    if after.status is not previous.status or before.since is None:
        status = replace(status, since=now)
    unrouted = replace(endpoint, status=replace(status, replicas=(), routed=()))
    return Plan(
        status=status,
        routes=routes_of(unrouted),
        actions=tuple(_stops(endpoint, alive, confirmed)),
        events=transition_events(previous, after, before),
        look_again_seconds=LOOK_AGAIN_SECONDS if alive else None,
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
    left += seen.left
    if seen.ingress is not None:  # the cluster ends servers by itself when what they belong to goes
        actions += [Release()] if left else []
    elif alive:
        actions += _stops(endpoint, alive, confirmed)
    elif confirmed is None and seen.left:
        actions.append(Release())
    if gpus.live:
        left.append("GPUs")
    finished = not left
    status = replace(
        back(endpoint.status),
        observed_generation=endpoint.generation,
        replicas=tuple(r for r in seen.replicas if r.state in ALIVE),
        routed=_routed(confirmed),
        artifact=seen.artifact(endpoint.spec.revision),
        left=tuple(left),
        problem=endpoint.status.problem if actions else None,
        problem_message=endpoint.status.problem_message if actions else "",
        gpu=gpu_note(gpus),
    )
    return Plan(
        status=status,
        routes=None,
        actions=tuple(actions),
        events=reach_events(endpoint.status, None),
        look_again_seconds=None
        if finished
        else LOOK_SOON_SECONDS
        if Release() in actions and status.left != endpoint.status.left
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
    is_managed = seen.ingress is not None
    scale = Scaled() if is_managed else scaled(endpoint, traffic, seen.replicas, now)
    endpoint = replace(endpoint, status=replace(endpoint.status, scale=scale.note))
    fresh_from = asked_at(gpus)
    before = without_earlier_failures(back(endpoint.status), fresh_from)
    note = gpu_note(gpus)
    request = gpus.request
    grant = request.grant if request is not None and request.status in USABLE else None
    revision = endpoint.spec.revision
    here = unless_failed_earlier(seen.artifact(revision), fresh_from)
    if before.observed_generation < endpoint.generation:
        before = replace(before, artifact=unless_of_another_spec(before.artifact, here))
    artifact = remember_artifact(before.artifact, here, now)
    exits = new_exits(before, seen, {replica_id.name for replica_id in startable(endpoint, note)})
    restarts = remember_restarts(before.restarts, exits, seen.replicas, now)
    if endpoint.is_asleep:
        restarts = ()  # who wakes it has a fresh try
    rollout = next_note(endpoint, seen.replicas, restarts, artifact, by_revision, now)
    endpoint = replace(endpoint, status=replace(endpoint.status, rollout=rollout))
    wanted = startable(endpoint, note)

    actions: list[Action] = []
    if is_managed:
        actions += steps(endpoint, seen, wanted, grant)
    else:
        is_to_run = endpoint.desired_replicas > 0 and (bool(wanted) or will_have_gpus(gpus))
        if is_to_run and fetch_is_due(before.artifact, here, now):
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
        ends=count_ends(before.ends, exits, endpoint, seen.replicas),
        routed=reached(seen) if is_managed else _routed(confirmed),
        model=next((r.model for r in seen.replicas if r.model is not None), before.model),
        # Only a pass with nothing left to do proves that the engine takes steps again.
        problem=before.problem if actions else None,
        problem_message=before.problem_message if actions else "",
        left=(),
        gpu=note,
        rollout=rollout,
        ingress=seen.ingress,
        drift=seen.drift,
    )
    status = replace(status, milestones=_milestones(endpoint, status, now))
    after = public_state(replace(endpoint, status=status))
    if after.status is not previous.status or before.since is None:
        status = replace(status, since=now)
    return Plan(
        status=status,
        routes=None if is_managed else routes_of(replace(endpoint, status=status)),
        actions=tuple(actions),
        events=(
            *reach_events(endpoint.status, None),
            *drift_events(endpoint.status, seen),
            *progress_events(before, artifact, exits),
            *scale_events(scale),
            *rollout_events(endpoint, previous_rollout, rollout),
            *transition_events(previous, after, before),
        ),
        look_again_seconds=_soonest(
            next_failure_deadline(artifact, restarts, seen.replicas, {each.name for each in wanted}, now),
            scale.look_again_seconds,
            watch_seconds(endpoint, rollout),
            seen.look_again_seconds,
        ),
        on_traffic=scale.on_traffic,
    )


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
    known = dict(status.milestones)
    known.setdefault(Milestone.ACCEPTED, endpoint.created_at)
    if status.artifact.phase is ArtifactPhase.PRESENT and status.ingress is None:
        known.setdefault(Milestone.DOWNLOADED, status.artifact.finished_at or now)
    for replica in sorted(status.replicas, key=lambda r: r.id):
        if replica.started_at is not None:
            known.setdefault(Milestone.STARTED, replica.started_at)
        if replica.ready_at is not None:
            known.setdefault(Milestone.LOADED, replica.ready_at)
    if public_state(replace(endpoint, status=status)).status is PublicStatus.RUNNING:
        known.setdefault(Milestone.READY, now)
    return tuple((name, known[name]) for name in Milestone if name in known)


def _soonest(*moments: float | None) -> float | None:
    return min((seconds for seconds in moments if seconds is not None), default=None)
