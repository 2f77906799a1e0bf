"""GPU provisioning requests (GPRs): asked for, looked at, changed, given back.

Services write what a person may say about a request: that it exists, its name, priority and duration,
and that it shall end. Everything else about it is the admission controller's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from inferplane.domain.access import Caller, Verb
from inferplane.domain.errors import Invalid, NotFound, StaleVersion, Unavailable
from inferplane.domain.gpu_request import (
    ENDED,
    GpuRequest,
    ProvisioningStatus,
    check_deletable,
    early_released,
    extended,
    renamed,
    reprioritised,
    wants_requeue,
)
from inferplane.domain.quantity import parse_duration
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.scheduler.decisions import Candidate
from inferplane.services.context import Platform
from inferplane.services.gpu_drafts import (
    GpuDraft,
    Origin,
    check_allowed,
    check_clusters,
    check_placeable,
    check_policy,
    request_of,
    with_memory_known,
)
from inferplane.services.gpu_snapshot import candidates_for
from inferplane.services.idempotency import Ticket, once, recall, remember
from inferplane.services.trail import difference, entry, facts
from inferplane.store.sql import Tx

UPDATE_ATTEMPTS_MAX = 8
"""Compare-and-set lost to the admission controller: read again, so many times."""

QUESTION_ID = "gpr-00000000-0000"
"""Stands for a request that is only asked about."""

QUESTION_NAME = "a-question"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request, and what was last said about its wait (None where nothing was).

    `idle_unmeasured`: its idle timeout does nothing, because nobody can tell whether its GPUs are used.
    """

    request: GpuRequest
    note: WaitNote | None
    idle_unmeasured: bool = False


@dataclass(frozen=True, slots=True)
class GpuChange:
    """What is asked of a stored request. None leaves a field alone; everything changes or nothing.

    `early_release` False leaves it alone too: what was released cannot be taken back, and clients that
    send every field they know mean nothing by it.
    """

    name: str | None = None
    priority: int | None = None
    exit_duration: str | None = None
    early_release: bool | None = None


async def create(
    platform: Platform,
    caller: Caller,
    workspace: str,
    name: str,
    draft: GpuDraft,
    ticket: Ticket | None = None,
) -> str:
    """Put a request into the queue; returns its id.

    Raises NotFound, Invalid with all details (also for GPUs that no cluster of the workspace has),
    QuotaExceeded for what the policy forbids.
    """
    caller.require(Verb.WRITE_GPUS, workspace)
    return await once(ticket, lambda: _create(platform, caller, workspace, name, draft, ticket))


async def _create(
    platform: Platform,
    caller: Caller,
    workspace: str,
    name: str,
    draft: GpuDraft,
    ticket: Ticket | None,
) -> str:
    now = platform.clock()
    async with platform.store.transaction() as tx:
        if (answer := await recall(tx, caller, ticket)) is not None:
            return answer
        await tx.hold_workspace(workspace)  # two at once would both find room for one more
        origin = Origin(new_request_id(platform), name.strip(), workspace, now, caller.key_name)
        request = await _understood(tx, draft, origin)
        policy = await tx.get_policy(workspace)
        check_allowed(request, policy, await tx.list_gpu_requests(workspace=workspace, live_only=True))
        await insert(tx, platform, caller, request)
        await remember(tx, caller, ticket, request.id, now)
    return request.id


async def wait_times(
    platform: Platform, caller: Caller, workspace: str, name: str, draft: GpuDraft
) -> tuple[Candidate, ...]:
    """Every kind of node that would do, with its estimate, soonest first. Nothing is stored.

    Raises what `create` would, except for how many requests there are already, and RateLimited while too
    many ask.
    """
    caller.require(Verb.READ_GPUS, workspace)
    async with platform.store.read() as tx:
        origin = Origin(QUESTION_ID, name.strip() or QUESTION_NAME, workspace, platform.clock())
        request = await _understood(tx, draft, origin)
    return await candidates_for(platform, request)


async def get(platform: Platform, caller: Caller, gpr_id: str) -> Seen:
    """One request. Raises NotFound, also for another workspace's."""
    caller.require(Verb.READ_GPUS)
    async with platform.store.read() as tx:
        request = await _get(tx, caller, gpr_id)
        notes = await tx.wait_notes([request.id])
    return Seen(request, notes.get(request.id), _is_unmeasured(platform, request))


async def list_requests(platform: Platform, caller: Caller, workspace: str) -> list[Seen]:
    """All of a workspace, oldest first, ended ones too; without one, all that the caller may see.

    The oldest of more than `gpu_requests_listed_max` are left out. Raises NotFound.
    """
    caller.require(Verb.READ_GPUS, workspace)
    async with platform.store.read() as tx:
        mine = workspace or caller.workspace
        if mine:
            await tx.get_workspace(mine)
        most = platform.limits.gpu_requests_listed_max
        newest = await tx.list_gpu_requests(workspace=mine or None, newest=most)
        waiting = [each.id for each in newest if each.status is ProvisioningStatus.QUEUED]
        notes = await tx.wait_notes(waiting if mine else None)
    return [Seen(each, notes.get(each.id), _is_unmeasured(platform, each)) for each in newest]


async def change(platform: Platform, caller: Caller, gpr_id: str, wanted: GpuChange) -> None:
    """Rename, reprioritise, extend or release a request. Raises NotFound, Invalid, Conflict, QuotaExceeded."""
    caller.require(Verb.READ_GPUS)
    if wanted == GpuChange():
        raise Invalid(
            "nothing to change is given",
            reason="Missing",
            field="priority",
            next_action="Give priority, gprName, exitDuration or earlyRelease.",
        )
    for _ in range(UPDATE_ATTEMPTS_MAX):
        try:
            async with platform.store.transaction() as tx:
                present = await _get(tx, caller, gpr_id)
                caller.require(Verb.WRITE_GPUS, present.workspace)
                policy = await tx.get_policy(present.workspace)
                changed = _changed(present, wanted, policy, platform, caller)
                if changed != present:
                    await tx.save_gpu_request(changed)
                    await _tell_change(tx, platform, caller, present, changed)
                return
        except StaleVersion:
            continue
    raise too_busy()


async def delete(platform: Platform, caller: Caller, gpr_id: str) -> None:
    """Forget a request that holds nothing. Raises NotFound, Conflict while it holds GPUs.

    An endpoint that waits for it, or could be put back into the queue by it, is stopped: it has nothing
    left to wait for until somebody starts it again.
    """
    caller.require(Verb.READ_GPUS)
    for _ in range(UPDATE_ATTEMPTS_MAX):
        try:
            async with platform.store.transaction() as tx:
                request = await _get(tx, caller, gpr_id)
                caller.require(Verb.WRITE_GPUS, request.workspace)
                check_deletable(request)
                await _stop_endpoint_of(tx, platform, caller, request)
                await remove(tx, platform, caller, request)
                return
        except StaleVersion:
            continue
    raise too_busy()


# For other services, within their transactions


async def insert(tx: Tx, platform: Platform, caller: Caller, request: GpuRequest) -> None:
    """Store a new request, and tell of it."""
    await tx.insert_gpu_request(request)
    selection = request.selection
    nodes = "" if selection.nodes == 1 else f" on each of {selection.nodes} nodes"
    gpus = f"{selection.gpus_per_node} GPU{'s' if selection.gpus_per_node > 1 else ''}"
    await tx.append_event(
        entry(
            platform.clock(),
            caller,
            "GprCreated",
            f"GPR {request.name} asks for {gpus}{nodes} with priority {request.priority}",
            workspace=request.workspace,
            endpoint=request.endpoint_name,
            endpoint_uid=request.endpoint_uid,
            gpu_request_id=request.id,
            after=_wish(request),
            data={"gprId": request.id},
        )
    )


async def remove(tx: Tx, platform: Platform, caller: Caller, request: GpuRequest) -> None:
    """Delete a request that holds nothing, and tell of it.

    Raises StaleVersion when it is not as `request` says any more: it may have been granted meanwhile.
    """
    await tx.save_gpu_request(request)
    await tx.delete_gpu_request(request.id)
    await tx.append_event(
        entry(
            platform.clock(),
            caller,
            "GprDeleted",
            f"GPR {request.name} was deleted while {request.status}",
            workspace=request.workspace,
            endpoint=request.endpoint_name,
            endpoint_uid=request.endpoint_uid,
            gpu_request_id=request.id,
            before=_wish(request),
            data={"gprId": request.id},
        )
    )


async def release(tx: Tx, platform: Platform, caller: Caller, request: GpuRequest) -> None:
    """End a request as its state allows: what waits is deleted, what holds GPUs begins to drain."""
    if request.status is ProvisioningStatus.QUEUED:
        await remove(tx, platform, caller, request)
    elif request.status is not ProvisioningStatus.DRAINING and not request.has_ended:
        released = early_released(request, platform.clock(), by=caller.key_name)
        await tx.save_gpu_request(released)
        await _tell_change(tx, platform, caller, request, released)


def new_request_id(platform: Platform) -> str:
    """`gpr-<8 hex>-<4 hex>`, drawn from the platform's own source of chance."""
    digits = hashlib.blake2b(platform.new_id(32).encode(), digest_size=6).hexdigest()
    return f"gpr-{digits[:8]}-{digits[8:]}"


def is_over(request: GpuRequest, policy: WorkspacePolicy) -> bool:
    """It has ended or is about to, and will not go back into the queue by itself.

    One that goes back does so in the transaction that ends it, so what is stored as ended stays so.
    """
    if request.status in ENDED:
        return True
    if request.status is not ProvisioningStatus.DRAINING:
        return False
    return not wants_requeue(replace(request, status=request.ending_as or ProvisioningStatus.FAILED), policy)


def too_busy() -> Unavailable:
    """Compare-and-set was lost too often in a row."""
    return Unavailable(
        "the GPR is changing too fast to be written",
        reason="TooBusy",
        next_action="Try again in a moment.",
    )


# Leaves


async def _understood(tx: Tx, draft: GpuDraft, origin: Origin) -> GpuRequest:
    workspace = await tx.get_workspace(origin.workspace)
    policy = await tx.get_policy(origin.workspace)
    request = request_of(draft, origin, policy)
    check_clusters(request, workspace)
    check_policy(request, policy)
    nodes = await tx.list_nodes()
    check_placeable(request, nodes, workspace.clusters, policy)
    return with_memory_known(request, nodes, workspace.clusters, policy)


async def _get(tx: Tx, caller: Caller, gpr_id: str) -> GpuRequest:
    if not gpr_id:
        raise Invalid("gprId is needed", reason="Missing", field="gprId")
    try:
        request = await tx.get_gpu_request(gpr_id)
    except NotFound:
        raise _unknown(gpr_id) from None
    if not caller.may_see(request.workspace):
        raise _unknown(gpr_id)
    return request


def _is_unmeasured(platform: Platform, request: GpuRequest) -> bool:
    """Whether its idle timeout is enforced in vain: without an endpoint only the driver of a real GPU on this
    machine can tell whether it is used, and not of every GPU; and of endpoints on Kubernetes nobody here sees
    the requests."""
    if not request.enforce_idle or not request.holds_gpus or request.grant is None:
        return False
    if request.endpoint_uid:
        return platform.links.of(request.grant.cluster) is not None
    return not platform.grant_measured(request.grant)


def _unknown(gpr_id: str) -> NotFound:
    return NotFound(f"there is no GPR “{gpr_id[:80]}”", reason="GprNotFound", field="gprId")


def _changed(
    request: GpuRequest, wanted: GpuChange, policy: WorkspacePolicy, platform: Platform, caller: Caller
) -> GpuRequest:
    now = platform.clock()
    if wanted.name is not None:
        name = wanted.name.strip()
        if not name.isprintable():
            raise Invalid("gprName holds control characters", reason="InvalidText", field="gprName")
        request = renamed(request, name)
    if wanted.priority is not None:
        request = reprioritised(request, wanted.priority, policy)
    if wanted.exit_duration is not None:
        duration = parse_duration(wanted.exit_duration, "exitDuration")
        request = extended(request, duration, now, policy)
    if wanted.early_release:
        request = early_released(request, now, by=caller.key_name)
    return request


async def _tell_change(
    tx: Tx, platform: Platform, caller: Caller, before: GpuRequest, after: GpuRequest
) -> None:
    releasing = after.status is ProvisioningStatus.DRAINING
    old, new = difference(before, after)
    message = "is released early" if releasing else f"was changed: {', '.join(sorted(new))}"
    await tx.append_event(
        entry(
            platform.clock(),
            caller,
            "GprReleaseRequested" if releasing else "GprChanged",
            f"GPR {after.name} {message}",
            workspace=after.workspace,
            endpoint=after.endpoint_name,
            endpoint_uid=after.endpoint_uid,
            gpu_request_id=after.id,
            before=old,
            after=new,
            data={"gprId": after.id},
        )
    )


async def _stop_endpoint_of(tx: Tx, platform: Platform, caller: Caller, request: GpuRequest) -> None:
    """Stop the endpoint for which `request` is the newest, unless it is stopped or going already."""
    if not request.endpoint_uid:
        return
    endpoint = await tx.get_endpoint_by_uid(request.endpoint_uid)
    if endpoint is None or endpoint.spec.stopped or endpoint.deletion_requested_at is not None:
        return
    newest = (await tx.list_gpu_requests(endpoint_uid=request.endpoint_uid))[-1]
    if newest.id != request.id:
        return
    spec = replace(
        endpoint.spec,
        stopped=True,
        stopped_by=caller.key_name,
        stopped_at=platform.clock(),
        stopped_because=f"its GPU request {request.name} was deleted by {caller.key_name}",
    )
    await tx.update_endpoint_spec(replace(endpoint, spec=spec, generation=endpoint.generation + 1))
    await tx.append_event(
        entry(
            platform.clock(),
            caller,
            "EndpointStopRequested",
            f"stopped, because its GPR {request.name} was deleted",
            workspace=endpoint.workspace,
            endpoint=endpoint.name,
            endpoint_uid=endpoint.uid,
            before={"stopped": False},
            after={"stopped": True},
        )
    )


_WISH = (
    *("name", "selection", "exit_duration", "priority", "idle_timeout", "enforce_idle"),
    *("enable_eviction", "requeue_on_failure", "auto_renew"),
)


def _wish(request: GpuRequest) -> dict[str, object]:
    told = facts(request)
    return {name: told[name] for name in _WISH}
