"""Failures of an endpoint's model and servers: counted, remembered, and when to try again. Pure.

Counted in the status before the next try, so that a restart of ours resets no backoff.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    CRASH_LOOP_FAILURES,
    EndpointStatus,
    Exit,
    InferenceEndpoint,
    Replica,
    ReplicaState,
    RestartRecord,
)
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.engines.port import Observation

ALIVE = frozenset(ReplicaState) - {ReplicaState.EXITED}
QUICK_RETRY_FIRST_SECONDS = 0.5
QUICK_RETRY_MAX_SECONDS = 30.0
SLOW_RETRY_FIRST_SECONDS = 60.0
SLOW_RETRY_MAX_SECONDS = 600.0
STABLE_AFTER_SECONDS = 60.0


def remember_artifact(before: ArtifactState, seen: ArtifactState, now: datetime) -> ArtifactState:
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


def fetch_is_due(before: ArtifactState, seen: ArtifactState, now: datetime) -> bool:
    """Whether the model should be asked for now."""
    if seen.phase in (ArtifactPhase.PRESENT, ArtifactPhase.FETCHING):
        return False
    if before.phase is not ArtifactPhase.FAILED:
        return seen.phase is ArtifactPhase.ABSENT
    if seen.phase is ArtifactPhase.FAILED and seen.finished_at != before.finished_at:
        return False  # a fresh failure: its pause begins now
    return before.next_attempt_at is None or now >= before.next_attempt_at


def new_exits(before: EndpointStatus, seen: Observation, wanted: set[str]) -> dict[str, Exit]:
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


def remember_restarts(
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


def count_ends(
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


def without_earlier_failures(status: EndpointStatus, asked_at: datetime | None) -> EndpointStatus:
    """Who asks for GPUs has a fresh try: what failed before is history, and holds nothing up."""
    if asked_at is None:
        return status
    restarts = tuple(each for each in status.restarts if each.last_exit.at >= asked_at)
    return replace(status, artifact=unless_failed_earlier(status.artifact, asked_at), restarts=restarts)


def unless_failed_earlier(artifact: ArtifactState, asked_at: datetime | None) -> ArtifactState:
    """`artifact`, or none where it failed before `asked_at`."""
    failed_at = artifact.finished_at if artifact.phase is ArtifactPhase.FAILED else None
    is_history = failed_at is not None and asked_at is not None and failed_at < asked_at
    return ArtifactState() if is_history else artifact


def unless_of_another_spec(before: ArtifactState, seen: ArtifactState) -> ArtifactState:
    """`before`, which an earlier spec left, or none where it failed and what is wanted now was never tried."""
    is_history = before.phase is ArtifactPhase.FAILED and seen.phase is ArtifactPhase.ABSENT
    return ArtifactState() if is_history else before


def next_failure_deadline(
    artifact: ArtifactState,
    restarts: tuple[RestartRecord, ...],
    replicas: tuple[Replica, ...],
    wanted: set[str],
    now: datetime,
) -> float | None:
    """Seconds until something falls due by time alone, always more than 0; None where nothing will.

    `wanted` are the names of the servers that should run: of others no try is due. What is due already is
    done in this pass, or waits for what is no matter of time (its model, GPUs, somebody who stopped the
    endpoint), and that wakes by itself. To count it here would be to look again at once, for ever.
    """
    alive = {r.id.name for r in replicas if r.state in ALIVE}
    moments = [
        record.next_start_at
        for record in restarts
        if record.replica in wanted and record.replica not in alive
    ]
    if artifact.phase is ArtifactPhase.FAILED and artifact.next_attempt_at is not None:
        moments.append(artifact.next_attempt_at)
    recorded = {record.replica for record in restarts}
    moments += [
        r.ready_at + timedelta(seconds=STABLE_AFTER_SECONDS)
        for r in replicas
        if r.id.name in recorded and r.state is ReplicaState.READY and r.ready_at is not None
    ]
    return min(((at - now).total_seconds() for at in moments if at > now), default=None)
