"""What to do next for one endpoint: a function from values to a value.

    endpoint (wish and last status) + observation (world) + routed (gateway) + now
        → actions, routes, status, events, when to look again

The shell in `endpoints.py` gathers the inputs and performs the outcome. Nothing here waits, asks or
remembers: a crash between any two steps loses nothing, because the next call sees the same world.

Rules kept here, each because breaking it would hurt somebody:

* A replica is stopped only when the gateway no longer sends to it, so no request is lost.
* What serves keeps serving: a newer revision takes over only once it answers.
* A delete takes routes first, then servers, then files; the row goes last.
* Failures are counted in the status before the next try, so a restart of ours resets no backoff.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    CRASH_LOOP_FAILURES,
    EndpointStatus,
    Exit,
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
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.engines.port import Action, FetchModel, Observation, Release, StartReplica, StopReplica
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

ALIVE = frozenset(ReplicaState) - {ReplicaState.EXITED}


@dataclass(frozen=True, slots=True)
class PlannedEvent:
    """An event to append together with the status: what happened, and why if it is bad."""

    kind: str
    message: str
    reason: ReasonCode | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step.

    `routes` is what the gateway should have (None: nothing of this endpoint). `finished` means the
    deletion is complete and the row can go. `look_again_seconds` is None when only a wake-up matters.
    """

    status: EndpointStatus
    routes: EndpointRoutes | None
    actions: tuple[Action, ...] = ()
    events: tuple[PlannedEvent, ...] = ()
    look_again_seconds: float | None = None
    finished: bool = False


def plan(
    endpoint: InferenceEndpoint, observation: Observation, confirmed: EndpointRoutes | None, now: datetime
) -> Plan:
    """Decide the next step. `confirmed` is what the gateway may still be sending by, or None."""
    if endpoint.deletion_requested_at is not None:
        return _plan_deletion(endpoint, observation, confirmed)
    return _plan_service(endpoint, observation, confirmed, now)


def routes_of(
    endpoint: InferenceEndpoint, replicas: tuple[Replica, ...], unavailable_reason: str
) -> EndpointRoutes:
    """The routes `endpoint` should have, given its replicas.

    Replicas of the wished revision that answer; while there is none, those of older revisions.
    """
    wanted = {replica_id.name for replica_id in endpoint.replica_ids()}
    answering = [r for r in replicas if r.state is ReplicaState.READY and r.address]
    serving = [r for r in answering if r.id.name in wanted]
    if not serving and wanted:
        serving = [r for r in answering if r.id.revision != endpoint.spec.revision]
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
        unavailable_reason=unavailable_reason,
    )


# --- deletion -------------------------------------------------------------------------------------


def _plan_deletion(endpoint: InferenceEndpoint, seen: Observation, confirmed: EndpointRoutes | None) -> Plan:
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
    finished = not left
    status = replace(
        endpoint.status,
        observed_generation=endpoint.generation,
        replicas=tuple(r for r in seen.replicas if r.state in ALIVE),
        routed=_routed(confirmed),
        artifact=seen.artifact,
        left=tuple(left),
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
    endpoint: InferenceEndpoint, seen: Observation, confirmed: EndpointRoutes | None, now: datetime
) -> Plan:
    before = endpoint.status
    wanted = endpoint.replica_ids()
    artifact = _remember_artifact(before.artifact, seen.artifact, now)
    exits = _new_exits(before, seen, {replica_id.name for replica_id in wanted})
    restarts = _remember_restarts(before.restarts, exits, seen.replicas, now)

    actions: list[Action] = []
    if wanted and _fetch_is_due(before.artifact, seen.artifact, now):
        actions.append(FetchModel())
    if seen.artifact.phase is ArtifactPhase.PRESENT:
        actions += _starts(wanted, seen.replicas, restarts, now)
    actions += _stops(endpoint, _superfluous(endpoint, wanted, seen.replicas, confirmed), confirmed)

    status = replace(
        before,
        observed_generation=endpoint.generation,
        artifact=artifact,
        replicas=seen.replicas,
        restarts=restarts,
        routed=_routed(confirmed),
        model=next((r.model for r in seen.replicas if r.model is not None), before.model),
        # Only a pass with nothing left to do proves that the engine takes steps again.
        problem=before.problem if actions else None,
        problem_message=before.problem_message if actions else "",
        left=(),
    )
    status = replace(status, milestones=_milestones(endpoint, status, now))
    after = public_state(replace(endpoint, status=status))
    previous = public_state(endpoint)
    if after.status is not previous.status or before.since is None:
        status = replace(status, since=now)
    return Plan(
        status=status,
        routes=routes_of(endpoint, seen.replicas, after.status.value),
        actions=tuple(actions),
        events=(*_progress_events(before, artifact, exits), *_transition_events(previous, after, before)),
        look_again_seconds=_next_deadline(artifact, restarts, seen.replicas, now),
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


def _pause(reason: ReasonCode, failures: int) -> timedelta:
    """How long to wait before the next try: doubling; slowly where a person must act first."""
    quick = reason_of(reason).retry_helps and failures < CRASH_LOOP_FAILURES
    first = QUICK_RETRY_FIRST_SECONDS if quick else SLOW_RETRY_FIRST_SECONDS
    longest = QUICK_RETRY_MAX_SECONDS if quick else SLOW_RETRY_MAX_SECONDS
    doublings = failures - 1 if quick or failures < CRASH_LOOP_FAILURES else failures - CRASH_LOOP_FAILURES
    return timedelta(seconds=min(longest, first * 2.0 ** min(doublings, 16)))


def _starts(
    wanted: tuple[ReplicaId, ...],
    replicas: tuple[Replica, ...],
    restarts: tuple[RestartRecord, ...],
    now: datetime,
) -> list[Action]:
    alive = {r.id.name for r in replicas if r.state in ALIVE}
    not_before = {record.replica: record.next_start_at for record in restarts}
    return [
        StartReplica(replica_id)
        for replica_id in wanted
        if replica_id.name not in alive and now >= not_before.get(replica_id.name, now)
    ]


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
            is_older = replica.id.revision != endpoint.spec.revision
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
