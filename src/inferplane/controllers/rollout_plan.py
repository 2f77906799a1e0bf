"""How far a rollout has come: a function from what is seen to the next fact about it.

    Preparing   in place only: until the candidate's model is here
    Starting    until as many of the candidate's servers answer as its share needs
    Shifted     it gets its share; measured against the base, and watched for its end
    Complete    an update was watched long enough; the base is no longer needed
    RolledBack  it was worse, kept ending, or could not start where the base had to make room for it

A candidate that cannot start beside a base that serves is no rollback: nothing was shifted, the base
serves on, and the candidate is tried again like any server that ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    CRASH_LOOP_FAILURES,
    InferenceEndpoint,
    Replica,
    ReplicaState,
    RestartRecord,
)
from inferplane.domain.reasons import reason_of
from inferplane.domain.rollout import (
    RevisionTraffic,
    Rollout,
    RolloutNote,
    RolloutPhase,
    phase_of,
    replicas_by_revision,
    why_worse,
)

WATCH_SECONDS = 1.0
"""How often a candidate that gets requests is looked at: what it answers wakes nobody."""

SETTLED = frozenset({RolloutPhase.COMPLETE, RolloutPhase.ROLLED_BACK})


def next_note(
    endpoint: InferenceEndpoint,
    replicas: tuple[Replica, ...],
    restarts: tuple[RestartRecord, ...],
    artifact: ArtifactState,
    traffic: Mapping[int, RevisionTraffic],
    now: datetime,
) -> RolloutNote | None:
    """The fact to write down; None without a rollout.

    `artifact` is the candidate's model, `traffic` what the gateway saw of each revision.
    """
    spec = endpoint.spec
    rollout = spec.rollout
    if rollout is None:
        return None
    known = endpoint.status.rollout
    if known is None or (known.base, known.candidate) != (rollout.base, spec.revision):
        known = RolloutNote(rollout.base, spec.revision, phase_of(spec.revision, rollout, None), now)
    if known.phase in SETTLED or endpoint.desired_replicas == 0:
        return known
    if known.phase is RolloutPhase.PREPARING:
        is_here = artifact.phase is ArtifactPhase.PRESENT
        return replace(known, phase=RolloutPhase.STARTING, since=now) if is_here else known
    failing = _why_failing(spec.revision, restarts, artifact)
    if known.phase is RolloutPhase.STARTING:
        if failing and rollout.is_in_place:
            return replace(known, phase=RolloutPhase.ROLLED_BACK, since=now, message=failing)
        if _answers_in_full(endpoint, rollout, replicas):
            return replace(known, phase=RolloutPhase.SHIFTED, since=now)
        return known
    worse = failing or why_worse(
        traffic.get(rollout.base, RevisionTraffic()),
        traffic.get(spec.revision, RevisionTraffic()),
        rollout.guard,
    )
    if worse:
        return replace(known, phase=RolloutPhase.ROLLED_BACK, since=now, message=worse)
    watched = rollout.is_in_place or now - known.since >= rollout.observe
    if not rollout.is_gradual and watched and _answers_in_full(endpoint, rollout, replicas):
        return replace(known, phase=RolloutPhase.COMPLETE, since=now)
    return known


def watch_seconds(endpoint: InferenceEndpoint, note: RolloutNote | None) -> float | None:
    """When to look again though nothing happens; None where nothing is watched."""
    rollout = endpoint.spec.rollout
    if rollout is None or note is None or endpoint.desired_replicas == 0:
        return None
    return WATCH_SECONDS if phase_of(endpoint.spec.revision, rollout, note) is RolloutPhase.SHIFTED else None


def _answers_in_full(endpoint: InferenceEndpoint, rollout: Rollout, replicas: tuple[Replica, ...]) -> bool:
    revision = endpoint.spec.revision
    by_ingress = endpoint.status.ingress is not None  # then nobody reaches a replica by its own address
    shifted = RolloutNote(rollout.base, revision, RolloutPhase.SHIFTED, endpoint.created_at)
    needed = replicas_by_revision(revision, endpoint.desired_replicas, rollout, shifted)[revision]
    ready = sum(
        each.state is ReplicaState.READY
        and each.id.revision == revision
        and (bool(each.address) or by_ingress)
        for each in replicas
    )
    return ready >= max(1, needed)


def _why_failing(revision: int, restarts: tuple[RestartRecord, ...], artifact: ArtifactState) -> str:
    """Why the candidate will not come up, or not stay up, without somebody acting; "" where it may."""
    if artifact.phase is ArtifactPhase.FAILED and artifact.reason is not None:
        return "" if reason_of(artifact.reason).retry_helps else artifact.message
    prefix = f"r{revision}-"
    for record in restarts:
        hopeless = not reason_of(record.last_exit.reason).retry_helps
        if record.replica.startswith(prefix) and (hopeless or record.failures >= CRASH_LOOP_FAILURES):
            return record.last_exit.message or "its model server keeps ending"
    return ""
