"""What a pass tells of an endpoint: events from what was and what is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inferplane.controllers.scale_plan import Scaled
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import EndpointStatus, Exit, InferenceEndpoint, PublicState, PublicStatus
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.rollout import RolloutNote, RolloutPhase


@dataclass(frozen=True, slots=True)
class PlannedEvent:
    """An event to append together with the status: what happened, and why if it is bad."""

    kind: str
    message: str
    reason: ReasonCode | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def progress_events(
    before: EndpointStatus, artifact: ArtifactState, exits: Mapping[str, Exit]
) -> tuple[PlannedEvent, ...]:
    """The model arrived; servers ended, each with its evidence."""
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


def rollout_events(
    endpoint: InferenceEndpoint, before: RolloutNote | None, after: RolloutNote | None
) -> tuple[PlannedEvent, ...]:
    """How far a rollout has come, where that is new."""
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


def scale_events(scale: Scaled) -> tuple[PlannedEvent, ...]:
    """Another number of replicas, and why."""
    if scale.event is None or scale.note is None:
        return ()
    kind, message = scale.event
    reason = ReasonCode.SCALED_TO_ZERO if scale.note.replicas == 0 else None
    return (PlannedEvent(kind, message, reason, {"replicas": scale.note.replicas}),)


def transition_events(
    previous: PublicState, after: PublicState, before: EndpointStatus
) -> tuple[PlannedEvent, ...]:
    """Another public status, or the same for another reason."""
    first = before.observed_generation == 0
    if not first and (previous.status, previous.reason) == (after.status, after.reason):
        return ()
    if first and after.status is PublicStatus.PENDING:
        return ()
    message = after.message or after.status.value
    data = {"from": previous.status.value, "to": after.status.value}
    return (PlannedEvent(f"Endpoint{after.status.value}", message, after.reason, data),)
