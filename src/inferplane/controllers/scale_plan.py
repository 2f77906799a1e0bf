"""What a scaling decision means for one endpoint: the note to keep, what to tell, when to look again.

The decision itself is `autoscaler.decide`. Here it meets the endpoint: who is stopped or fixed has
nothing to decide, who has never answered does not sleep, and a wake is timed from the request that caused
it to the first replica that answers. `EndpointStatus.scale` is written from here and from nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from inferplane.autoscaler import Traffic, decide
from inferplane.domain.endpoint import InferenceEndpoint, Replica, ReplicaState, ScaleNote

NO_TRAFFIC = Traffic()


@dataclass(frozen=True, slots=True)
class Scaled:
    """`note` is for the status (None: nothing to decide). `event` is a kind and a message, or None.

    `on_traffic` says whether new traffic may change the decision.
    """

    note: ScaleNote | None = None
    event: tuple[str, str] | None = None
    look_again_seconds: float | None = None
    on_traffic: bool = False


def scaled(
    endpoint: InferenceEndpoint, traffic: Traffic, replicas: tuple[Replica, ...], now: datetime
) -> Scaled:
    """Decide anew for `endpoint`, of which the engine sees `replicas`."""
    scaling = endpoint.spec.scaling
    if endpoint.spec.stopped or endpoint.deletion_requested_at is not None or scaling.is_fixed:
        return Scaled()
    before = endpoint.status.scale or ScaleNote(max(scaling.min_replicas, 1), since=now)
    answering = [r.ready_at for r in replicas if r.state is ReplicaState.READY and r.ready_at is not None]
    decision = decide(scaling, before.replicas, traffic, now, min(answering, default=None))
    note = _woken(before, answering) if decision.replicas else replace(before, waking_since=None)
    if decision.replicas != before.replicas:
        note = replace(
            note,
            replicas=decision.replicas,
            message=decision.message,
            since=now,
            last_request_at=now if traffic.held else traffic.idle_since or before.last_request_at,
        )
        if before.replicas == 0:
            note = replace(note, waking_since=now)
    return Scaled(
        note,
        _event(before.replicas, decision.replicas, decision.message),
        decision.look_again_seconds,
        decision.on_traffic,
    )


def _woken(before: ScaleNote, answering: list[datetime]) -> ScaleNote:
    """The wake is over with the first replica that answers since it began; one that still did costs no time."""
    if before.waking_since is None or not answering:
        return before
    after = [at for at in answering if at >= before.waking_since]
    took = (min(after) - before.waking_since).total_seconds() if after else before.wake_seconds
    return replace(before, waking_since=None, wake_seconds=took)


def _event(before: int, after: int, message: str) -> tuple[str, str] | None:
    if before == after:
        return None
    if after == 0:
        return "ScaledToZero", f"scaled to zero: {message}"
    if before == 0:
        return "Woken", f"woken: {message}"
    kind = "ScaledUp" if after > before else "ScaledDown"
    return kind, f"from {before} to {after} replica{'s' if after > 1 else ''}: {message}"
