"""GPUs, their requests, policies and templates → what callers see. Pure.

Who holds a GPU is told only to those who may know: of another workspace's requests a node shows how many
GPUs they hold, and no names.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from inferplane.domain.access import Caller
from inferplane.domain.endpoint import GpuNote, InferenceEndpoint
from inferplane.domain.gpr_template import GprTemplate
from inferplane.domain.gpu_request import GpuRequest, ProvisioningStatus
from inferplane.domain.inventory import Gpu, NodeHolding, NodeUse, ShapeSummary
from inferplane.domain.quantity import format_duration
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.scheduler.decisions import Candidate
from inferplane.services.gpu_requests import Seen
from inferplane.services.inventory import Inventory
from inferplane.services.policies import format_priority_range
from inferplane.services.templates import BindingSeen
from inferplane.wire.endpoints import EndpointGpus, GpuRequestItem, HeldNode
from inferplane.wire.gpus import (
    SHARING_MODE,
    AllocationItem,
    AllocationTime,
    BindingItem,
    BindingWritten,
    BoundClusterItem,
    DeviceItem,
    GprItem,
    GprStatus,
    InventoryList,
    NodeItem,
    ShapeItem,
    TemplateItem,
    WaitTimeItem,
)
from inferplane.wire.policies import GpuConstraints, PolicyItem

MB_PER_GB = 1024
NO_WAIT = "0h0m0s"
WAIT_AT_LEAST = timedelta(seconds=1)
"""What waits is never said to wait for no time at all."""

NODES_SHOWN_MAX = 5


# The inventory


def inventory_list(inventory: Inventory, caller: Caller) -> InventoryList:
    """Every node the caller may see."""
    return InventoryList(
        tuple(node_item(each, caller) for each in inventory.managed),
        tuple(node_item(each, caller) for each in inventory.unmanaged),
    )


def node_item(use: NodeUse, caller: Caller) -> NodeItem:
    """One node, and who holds what of it."""
    node = use.node
    return NodeItem(
        gpu_node_name=node.name,
        gpu_shape=node.gpu_shape,
        gpu_model_name=node.gpu_model_name or node.gpu_shape,
        instance_type=node.instance_type,
        cluster_name=node.cluster,
        memory=node.memory_gb,
        gpu_count=node.gpu_count,
        available_gpus=len(use.free),
        gpu_temp_threshold="",
        gpu_power_threshold="",
        cloud_provider=node.cloud_provider,
        cloud=node.cloud_provider,
        region=node.region,
        node_health=node.health.value,
        gpu_node_state=use.state.value,
        gpu_node_status=use.state.value,
        allocation=tuple(_allocation(each, caller) for each in use.holdings),
        simulated=node.simulated,
        gpus=_devices(use, caller),
    )


def shape_item(shape: ShapeSummary) -> ShapeItem:
    """One kind of node."""
    return ShapeItem(
        instance_type=shape.instance_type,
        gpu_shape=shape.gpu_shape,
        gpu_slicing_profile=(),
        memory_per_gpu=shape.memory_gb,
        gpu_per_node=shape.gpus_per_node,
        total_gpu_nodes=shape.nodes,
        cluster_name=shape.cluster,
    )


def _allocation(holding: NodeHolding, caller: Caller) -> AllocationItem:
    request = holding.request
    known = caller.may_see(request.workspace)
    return AllocationItem(
        gpr_name=request.id if known else "",
        slice_name=request.workspace if known else "",
        total_gpus_allocated=len(holding.gpus),
        allocation_time_stamp=_seconds(request.granted_at or request.created_at),
    )


def _devices(use: NodeUse, caller: Caller) -> tuple[DeviceItem, ...]:
    node = use.node
    held = {index: holding.request for holding in use.holdings for index in holding.gpus}
    known = {gpu.index: gpu for gpu in node.gpus}
    indexes = sorted(known) if known else range(node.gpu_count)
    return tuple(_device(known.get(i, Gpu(i)), held.get(i), caller) for i in indexes)


def _device(gpu: Gpu, holder: GpuRequest | None, caller: Caller) -> DeviceItem:
    item = DeviceItem(gpu.index, gpu.uuid, gpu.model_name, gpu.healthy, held=holder is not None)
    if holder is None:
        return item
    until = holder.ends_at if holder.status is ProvisioningStatus.SUCCESSFUL else None
    if not caller.may_see(holder.workspace):
        return DeviceItem(gpu.index, gpu.uuid, gpu.model_name, gpu.healthy, held=True, until=until)
    return DeviceItem(
        gpu.index,
        gpu.uuid,
        gpu.model_name,
        gpu.healthy,
        gpr_id=holder.id,
        gpr_name=holder.name,
        slice_name=holder.workspace,
        endpoint_name=holder.endpoint_name,
        held=True,
        until=until,
    )


def _seconds(at: datetime) -> AllocationTime:
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return AllocationTime(str(since // timedelta(seconds=1)), since.microseconds * 1000)


# Requests


def gpr_item(seen: Seen, now: datetime) -> GprItem:
    """One request, every key of it."""
    request, note = seen.request, seen.note
    selection, grant = request.selection, request.grant
    waits = request.status is ProvisioningStatus.QUEUED
    start, wait = _estimates(seen, now)
    return GprItem(
        gpr_id=request.id,
        slice_name=request.workspace,
        cluster_name=grant.cluster if grant is not None else selection.cluster_name,
        number_of_gpus=selection.gpus_per_node,
        number_of_gpu_nodes=selection.nodes,
        instance_type=(grant.instance_type if grant is not None else "") or selection.instance_type,
        memory_per_gpu=(grant.memory_gb if grant is not None else 0) or selection.memory_gb,
        priority=request.priority,
        gpu_sharing_mode=SHARING_MODE,
        estimated_start_time=start,
        estimated_wait_time=wait,
        exit_duration=format_duration(request.exit_duration),
        early_release=request.early_release,
        gpr_name=request.name,
        gpu_shape=(grant.gpu_shape if grant is not None else "") or selection.gpu_shape,
        multi_node=request.multi_node,
        dedicated_nodes=request.dedicated_nodes,
        enable_rdma=request.enable_rdma,
        enable_secondary_network=request.enable_secondary_network,
        enforce_idle_time_out=request.enforce_idle,
        idle_time_out_duration="" if request.idle_timeout is None else format_duration(request.idle_timeout),
        status=GprStatus(
            provisioning_status=request.status.value,
            failure_reason=request.failure_reason,
            num_gpus_allocated=request.gpus_allocated,
            start_timestamp=_instant(request.started_at),
            completion_timestamp=_instant(request.completed_at),
            cost="",
            nodes=() if grant is None else tuple(name for name, _ in grant.nodes),
            internal_state=request.internal_state,
            retry_count=request.retry_count,
            delayed_count=request.delayed_count,
        ),
        queue_position=(note.position or 0) if waits and note is not None else 0,
        explanation=explanation(seen),
        endpoint_name=request.endpoint_name,
        remaining_duration=format_duration(request.remaining(now)),
        evicted_by=request.evicted_by,
    )


def explanation(seen: Seen) -> str:
    """Where the request is and why, in a sentence for a person."""
    request = seen.request
    match request.status:
        case ProvisioningStatus.QUEUED:
            return _wait_sentence(seen)
        case ProvisioningStatus.PROVISIONING:
            return f"holds {_held(request)} since {_clock(request.granted_at)}; they are not in use yet"
        case ProvisioningStatus.SUCCESSFUL:
            ends = f"; until {_clock(request.ends_at)}" if request.ends_at is not None else ""
            renews = ", unless it is renewed" if request.auto_renew else ""
            idle = request.idle_ends_at
            idling = f"; idle, and released at {_clock(idle)} if it stays so" if idle is not None else ""
            if seen.idle_unmeasured:
                idling = "; its idle timeout has no effect: nothing measures whether these GPUs are used"
            return f"in use: {_held(request)}{ends}{renews}{idling}"
        case ProvisioningStatus.DRAINING:
            return f"giving back {_held(request)}, because {_ending(request, request.ending_as)}"
        case _:
            at = f" at {_clock(request.completed_at)}" if request.completed_at is not None else ""
            return f"over{at}: {_ending(request, request.status)}"


def wait_time_item(candidate: Candidate, now: datetime) -> WaitTimeItem:
    """One kind of node that would do."""
    estimate = candidate.estimate
    wait = estimate.wait(now)
    return WaitTimeItem(
        cluster_name=candidate.pool.cluster,
        instance_type=candidate.pool.instance_type,
        gpu_shape=candidate.pool.gpu_shape,
        memory_per_gpu=candidate.pool.memory_gb,
        estimated_wait_time="" if wait is None else format_duration(_rounded_up(wait)),
        estimated_start_time=_instant(estimate.start),
        queue_position=estimate.position,
        explanation=candidate.explanation,
    )


def gpu_request_item(request: GpuRequest) -> GpuRequestItem:
    """One line of an endpoint's history of GPUs: memory as megabytes in a text, status coarse."""
    selection, grant = request.selection, request.grant
    memory = (grant.memory_gb if grant is not None else 0) or selection.memory_gb
    return GpuRequestItem(
        gpr_name=request.name,
        gpr_id=request.id,
        instance_type=(grant.instance_type if grant is not None else "") or selection.instance_type,
        gpu_shape=(grant.gpu_shape if grant is not None else "") or selection.gpu_shape,
        number_of_gpus=selection.gpus_per_node,
        number_of_gpu_nodes=selection.nodes,
        memory_per_gpu=str(memory * MB_PER_GB),
        status=request.coarse_status.value,
    )


def endpoint_gpus(endpoint: InferenceEndpoint) -> EndpointGpus | None:
    """What the endpoint knows of its newest request; None on CPU, and before a controller looked."""
    note: GpuNote | None = endpoint.status.gpu if endpoint.spec.gpu is not None else None
    if note is None:
        return None
    return EndpointGpus(
        gpr_id=note.gpr_id,
        status=note.status.value,
        cluster_name=note.cluster,
        nodes=tuple(HeldNode(name, indexes) for name, indexes in note.nodes),
        queue_position=note.position or 0,
        message=note.message,
        estimated_start_time=note.estimated_start,
        since=note.since,
        ended_reason=note.ended_reason.value if note.ended_reason is not None else "",
    )


def _estimates(seen: Seen, now: datetime) -> tuple[str, str]:
    """(start, wait): of what has begun the true start and no wait; of what waits the estimate, or ""."""
    request, note = seen.request, seen.note
    if request.status is not ProvisioningStatus.QUEUED:
        return _instant(request.started_at or request.granted_at), NO_WAIT
    if note is None or note.estimated_start is None:
        return "", ""
    start = max(note.estimated_start, now + WAIT_AT_LEAST)
    return _instant(start), format_duration(_rounded_up(start - now))


def _wait_sentence(seen: Seen) -> str:
    note = seen.note
    if note is None:
        return "asked for; its place in line is being worked out"
    parts = [note.explanation]
    if note.estimated_start is not None:
        parts.append(f"estimated start {_clock(note.estimated_start)}")
    if note.assumption:
        parts.append(f"assuming that {note.assumption}" if note.estimated_start else note.assumption)
    evicted = seen.request.evicted_by
    if evicted:
        parts.append(f"evicted before by {evicted}")
    said = "; ".join(parts)
    return f"{said}. {note.remedy}" if note.remedy else said


def _ending(request: GpuRequest, status: ProvisioningStatus | None) -> str:
    match status:
        case ProvisioningStatus.COMPLETE:
            return f"its exit duration of {format_duration(request.exit_duration)} was reached"
        case ProvisioningStatus.EARLY_RELEASED:
            return f"it was released early{f' by {request.released_by}' if request.released_by else ''}"
        case ProvisioningStatus.TIMED_OUT:
            limit = "" if request.idle_timeout is None else f" of {format_duration(request.idle_timeout)}"
            return f"it was idle for its idle timeout{limit}"
        case ProvisioningStatus.EVICTED:
            by = request.evicted_by
            return (
                f"it yielded to {by}, which has a higher priority"
                if by
                else "it yielded to a higher priority"
            )
        case _:
            return request.failure_reason or "it failed"


def _held(request: GpuRequest) -> str:
    if request.grant is None:
        return "its GPUs"
    parts = [
        f"{'GPU' if len(indexes) == 1 else 'GPUs'} {', '.join(map(str, indexes))} of {name}"
        for name, indexes in request.grant.nodes[:NODES_SHOWN_MAX]
    ]
    more = len(request.grant.nodes) - NODES_SHOWN_MAX
    if more > 0:
        parts.append(f"those of {more} more nodes")
    return f"{' and '.join(parts)} on {request.grant.cluster}"


def _rounded_up(wait: timedelta) -> timedelta:
    return -(-wait // timedelta(seconds=1)) * timedelta(seconds=1)


def _instant(at: datetime | None) -> str:
    return "" if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _clock(at: datetime | None) -> str:
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


# Policies, templates, bindings


def policy_item(policy: WorkspacePolicy) -> PolicyItem:
    """One policy. The constraints on single GPRs are null where there are none."""
    constraints = GpuConstraints(
        policy.gpu_shapes, policy.max_gpus_per_request, policy.max_memory_gb_per_request
    )
    longest = policy.max_exit_duration
    return PolicyItem(
        workspace_name=policy.workspace,
        priority_range=format_priority_range(policy),
        max_gprs=policy.max_requests,
        max_exit_duration_per_gpr="" if longest is None else format_duration(longest),
        requeue_on_failure=policy.requeue_on_failure,
        enable_auto_eviction=policy.auto_eviction,
        global_gpu_constraints=None if constraints == GpuConstraints() else constraints,
        max_inference_endpoints=policy.max_endpoints,
        enforce_idle_time_out=policy.enforce_idle_timeout,
        max_queued_gprs=policy.max_queued,
    )


def template_item(template: GprTemplate) -> TemplateItem:
    """One template."""
    idle = template.idle_timeout
    return TemplateItem(
        name=template.name,
        cluster_name=template.cluster,
        number_of_gpus=template.gpus_per_node,
        number_of_gpu_nodes=template.nodes,
        memory_per_gpu=template.memory_gb,
        gpu_shape=template.gpu_shape,
        instance_type=template.instance_type,
        exit_duration=format_duration(template.exit_duration),
        priority=template.priority,
        enforce_idle_time_out=template.enforce_idle,
        idle_time_out_duration="" if idle is None else format_duration(idle),
        enable_eviction=template.enable_eviction,
        requeue_on_failure=template.requeue_on_failure,
    )


def binding_item(seen: BindingSeen) -> BindingItem:
    """One binding, as shown."""
    return BindingItem(seen.binding.workspace, _bound(seen), seen.binding.enable_auto_gpr)


def binding_written(seen: BindingSeen) -> BindingWritten:
    """One binding, as the answer to its being written."""
    name = seen.binding.workspace
    return BindingWritten(name, name, _bound(seen), seen.binding.enable_auto_gpr)


def _bound(seen: BindingSeen) -> tuple[BoundClusterItem, ...]:
    return tuple(
        BoundClusterItem(
            cluster_name=each.cluster,
            default_template_name=each.default_template,
            templates=each.templates,
            default_template_status=seen.status(each.cluster, each.default_template),
            template_status=tuple(seen.status(each.cluster, name) for name in each.templates),
        )
        for each in seen.binding.clusters
    )
