"""What an endpoint's GPU requests let it do, and what it knows of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from inferplane.domain.endpoint import GpuNote, InferenceEndpoint, ReplicaId
from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus, wants_requeue
from inferplane.domain.quantity import format_duration
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import WorkspacePolicy

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


def startable(endpoint: InferenceEndpoint, note: GpuNote | None) -> tuple[ReplicaId, ...]:
    """Replicas that should run and may: those of an endpoint that needs GPUs may only on granted ones."""
    if note is None:
        return () if endpoint.spec.gpu is not None else endpoint.replica_ids()
    if note.status in USABLE:
        return endpoint.replica_ids()
    is_over = note.status is not ProvisioningStatus.DRAINING and endpoint.spec.gpu is None
    return endpoint.replica_ids() if is_over else ()


def will_have_gpus(gpus: EndpointGpus) -> bool:
    """Whether it is worth having the model ready: its GPUs are asked for, or will be by themselves."""
    return gpus.comes_back or (gpus.request is not None and gpus.request.status is ProvisioningStatus.QUEUED)


def gpu_note(gpus: EndpointGpus) -> GpuNote | None:
    """What the status is to say of its GPUs; None where it never asked for any."""
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


def asked_at(gpus: EndpointGpus) -> datetime | None:
    """Since when it has been waiting for, or using, the GPUs that count; None where it has lost them."""
    request = gpus.request
    return request.queued_at if request is not None and request.status in _ON_ITS_WAY else None
