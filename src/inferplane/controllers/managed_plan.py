"""What differs where the cluster has controllers of its own (`Observation.ingress`). Pure.

There the platform says once what there should be, and again when that has changed, when what it created was
changed by somebody else, or is gone. Single servers are neither started nor stopped from here, and requests do not come
through our gateway.
"""

from __future__ import annotations

from dataclasses import replace

from inferplane.controllers.endpoint_news import PlannedEvent
from inferplane.domain.artifact import ArtifactPhase
from inferplane.domain.endpoint import (
    EndpointStatus,
    InferenceEndpoint,
    ReplicaId,
    ReplicaState,
)
from inferplane.domain.gpu_request import Grant
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.port import (
    Action,
    FetchModel,
    Observation,
    StartReplica,
    StopReplica,
    Unreachable,
    mark,
)

STOP_GRACE_SECONDS = 30.0


def steps(
    endpoint: InferenceEndpoint, seen: Observation, wanted: tuple[ReplicaId, ...], grant: Grant | None
) -> list[Action]:
    """Say what there should be, unless that was said; put all to rest where nothing should run."""
    if not wanted:
        running = [r for r in seen.replicas if r.state not in (ReplicaState.STOPPING, ReplicaState.EXITED)]
        first = min((r.id for r in running), default=None)
        if first is None and seen.mark:
            first = ReplicaId(endpoint.uid, endpoint.spec.revision, 0)
        return [] if first is None else [StopReplica(first, STOP_GRACE_SECONDS)]
    revision = target_revision(endpoint, wanted)
    start = StartReplica(ReplicaId(endpoint.uid, revision, 0), grant.nodes if grant is not None else ())
    if seen.artifact(revision).phase is not ArtifactPhase.PRESENT:
        return [FetchModel(revision)]
    return [] if seen.mark == mark(endpoint.at_revision(revision), start) else [start]


def target_revision(endpoint: InferenceEndpoint, wanted: tuple[ReplicaId, ...]) -> int:
    """The revision that the cluster should bring about: the wished one, unless requests were given back."""
    revisions = {each.revision for each in wanted}
    return endpoint.spec.revision if endpoint.spec.revision in revisions else max(revisions)


def reached(seen: Observation) -> tuple[str, ...]:
    """The replicas that requests get to."""
    if seen.ingress is None or not seen.ingress.ready:
        return ()
    return tuple(r.id.name for r in seen.replicas if r.state is ReplicaState.READY)


def away(status: EndpointStatus, unreachable: Unreachable) -> EndpointStatus:
    """The status of an endpoint whose cluster does not answer: all as it was, and that."""
    return replace(status, unreachable_since=unreachable.since, unreachable_message=unreachable.message)


def back(status: EndpointStatus) -> EndpointStatus:
    """The status of an endpoint whose cluster answers."""
    return replace(status, unreachable_since=None, unreachable_message="")


def reach_events(before: EndpointStatus, unreachable: Unreachable | None) -> tuple[PlannedEvent, ...]:
    """The cluster went away, or came back."""
    if unreachable is not None and before.unreachable_since is None:
        message = f"the cluster does not answer: {unreachable.message}"
        return (PlannedEvent("ClusterAway", message, ReasonCode.CLUSTER_UNREACHABLE),)
    if unreachable is None and before.unreachable_since is not None:
        return (PlannedEvent("ClusterBack", "the cluster answers again"),)
    return ()


def drift_events(before: EndpointStatus, seen: Observation) -> tuple[PlannedEvent, ...]:
    """Somebody else changed what the platform created."""
    if not seen.drift or seen.drift == before.drift:
        return ()
    return (PlannedEvent("Drift", seen.drift),)
