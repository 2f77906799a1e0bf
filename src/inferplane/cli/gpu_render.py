"""GPUs, their requests, rules about them, and the audit log → text for people. Pure; see `render`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from inferplane.cli.render import moment, pairs, table
from inferplane.wire.audit import AuditItem
from inferplane.wire.gpus import (
    BindingItem,
    BindingWritten,
    DeviceItem,
    GprItem,
    InventoryList,
    NodeItem,
    ShapeItem,
    TemplateItem,
    WaitTimeItem,
)
from inferplane.wire.policies import GpuConstraints, PolicyItem

VALUE_CHARACTERS_MAX = 200
NO_LIMIT = "no limit"


def inventory(found: InventoryList) -> str:
    """One line a GPU: where it is, what it is, who holds it until when."""
    nodes = [*found.managed_nodes, *found.unmanaged_nodes]
    rows = [_device(node, device) for node in nodes for device in node.gpus]
    if not rows:
        return "no GPUs"
    header = ("CLUSTER", "NODE", "GPU", "SHAPE", "TYPE", "MEMORY", "STATE", "HELD BY", "WORKSPACE", "UNTIL")
    return table(header, rows)


def _device(node: NodeItem, device: DeviceItem) -> tuple[str, ...]:
    """A state is a word or two: whether it can be had, and whether there is such a device at all."""
    if not device.healthy:
        state = "unhealthy"
    elif device.held:
        state = "held"
    else:
        state = "free" if node.node_health == "Healthy" else node.node_health.lower()
    holder = device.endpoint_name or device.gpr_name or device.gpr_id
    if device.held and not holder:
        holder = "another workspace"
    return (
        node.cluster_name,
        node.gpu_node_name,
        str(device.index),
        node.gpu_shape,
        node.instance_type,
        f"{node.memory} GB",
        f"{state}, simulated" if node.simulated else state,
        holder,
        device.slice_name,
        moment(device.until),
    )


def shapes(items: Sequence[ShapeItem]) -> str:
    """One line a kind of node."""
    if not items:
        return "no GPUs that this workspace can ask for"
    rows = [
        (
            each.cluster_name,
            each.gpu_shape,
            each.instance_type,
            f"{each.memory_per_gpu} GB",
            str(each.gpu_per_node),
            str(each.total_gpu_nodes),
        )
        for each in items
    ]
    return table(("CLUSTER", "SHAPE", "TYPE", "MEMORY", "GPUS A NODE", "NODES"), rows)


def gpr_list(items: Sequence[GprItem]) -> str:
    """One line a GPU request."""
    if not items:
        return "no GPU requests"
    rows = [
        (
            each.gpr_id,
            each.gpr_name,
            each.status.provisioning_status,
            str(each.queue_position or ""),
            str(each.priority),
            _count(each),
            each.gpu_shape or "any",
            each.cluster_name,
            each.endpoint_name,
            _when(each),
        )
        for each in items
    ]
    header = (
        "ID",
        "NAME",
        "STATUS",
        "POSITION",
        "PRIORITY",
        "GPUS",
        "SHAPE",
        "CLUSTER",
        "ENDPOINT",
        "WHEN",
    )
    return table(header, rows)


def _when(item: GprItem) -> str:
    """When it is expected to start, how long it may go on, or since when it is over."""
    status = item.status
    if status.provisioning_status == "Queued":
        return f"starts {_instant(item.estimated_start_time)}" if item.estimated_start_time else ""
    if status.completion_timestamp:
        return f"ended {_instant(status.completion_timestamp)}"
    return f"{item.remaining_duration} left" if status.num_gpus_allocated else ""


def gpr_step(item: GprItem) -> str:
    """One line on where a request is; of one in line, its place."""
    status = item.status.provisioning_status
    said = item.explanation
    if status == "Queued" and item.queue_position:
        start = _instant(item.estimated_start_time)
        said = f"position {item.queue_position}" + (f", expected to start at {start}" if start else "")
    return f"{item.gpr_name}: {status} — {said}"


def gpr(item: GprItem) -> str:
    """One GPU request in full."""
    status = item.status
    waits = status.provisioning_status == "Queued"
    idle = item.idle_time_out_duration
    return pairs(
        [
            ("Id", item.gpr_id),
            ("Name", item.gpr_name),
            ("Workspace", item.slice_name),
            ("Endpoint", item.endpoint_name),
            ("Status", status.provisioning_status),
            ("Explanation", item.explanation),
            ("Failure", status.failure_reason),
            ("Evicted by", item.evicted_by),
            ("Position", str(item.queue_position or "")),
            ("Expected start", _instant(item.estimated_start_time) if waits else ""),
            ("Expected wait", item.estimated_wait_time if waits and item.estimated_start_time else ""),
            ("GPUs", _size(item)),
            ("Memory", f"{item.memory_per_gpu} GB a GPU" if item.memory_per_gpu else ""),
            ("Cluster", item.cluster_name),
            ("Nodes", ", ".join(status.nodes)),
            ("Priority", str(item.priority)),
            ("Exit duration", item.exit_duration),
            ("Left", item.remaining_duration if status.num_gpus_allocated else ""),
            (
                "Idle timeout",
                idle + ("" if item.enforce_idle_time_out else " (not enforced)") if idle else "",
            ),
            ("Started", _instant(status.start_timestamp)),
            ("Ended", _instant(status.completion_timestamp)),
        ]
    )


def _size(item: GprItem) -> str:
    """`2 x NVIDIA-A100`, `4 nodes with 8 x NVIDIA-H100 each`."""
    what = " ".join(part for part in (item.gpu_shape or "any", item.instance_type) if part)
    each = f"{item.number_of_gpus} x {what}"
    return each if item.number_of_gpu_nodes == 1 else f"{item.number_of_gpu_nodes} nodes with {each} each"


def _on_nodes(gpus: int, nodes: int) -> str:
    return str(gpus) if nodes == 1 else f"{gpus} on each of {nodes} nodes"


def _count(item: GprItem) -> str:
    """`2`, or with several nodes `4 x 8`."""
    nodes = item.number_of_gpu_nodes
    return str(item.number_of_gpus) if nodes == 1 else f"{nodes} x {item.number_of_gpus}"


def wait_times(items: Sequence[WaitTimeItem]) -> str:
    """One line a kind of node, soonest first, and under the table why."""
    if not items:
        return "no kind of node would do"
    rows = [
        (
            each.cluster_name,
            each.gpu_shape,
            each.instance_type,
            f"{each.memory_per_gpu} GB",
            each.estimated_wait_time or "never, by what is known",
            _instant(each.estimated_start_time),
            str(each.queue_position or ""),
        )
        for each in items
    ]
    header = ("CLUSTER", "SHAPE", "TYPE", "MEMORY", "WAIT", "START", "POSITION")
    several = len(items) > 1
    why = pairs(
        (f"Why {each.gpu_shape} on {each.cluster_name}" if several else "Why", each.explanation)
        for each in items
    )
    return f"{table(header, rows)}\n\n{why}"


def template_list(items: Sequence[TemplateItem]) -> str:
    """One line a template."""
    if not items:
        return "no templates"
    rows = [
        (
            each.name,
            each.cluster_name,
            f"{each.number_of_gpu_nodes} x {each.number_of_gpus}",
            each.gpu_shape,
            each.instance_type,
            f"{each.memory_per_gpu} GB",
            each.exit_duration,
            str(each.priority),
        )
        for each in items
    ]
    return table(("NAME", "CLUSTER", "NODES x GPUS", "SHAPE", "TYPE", "MEMORY", "DURATION", "PRIORITY"), rows)


def template(item: TemplateItem) -> str:
    """One template in full."""
    return pairs(
        [
            ("Name", item.name),
            ("Cluster", item.cluster_name),
            ("GPUs", _on_nodes(item.number_of_gpus, item.number_of_gpu_nodes)),
            ("Shape", item.gpu_shape),
            ("Instance type", item.instance_type),
            ("Memory", f"{item.memory_per_gpu} GB a GPU"),
            ("Exit duration", item.exit_duration),
            ("Priority", str(item.priority)),
            ("Idle timeout", item.idle_time_out_duration),
            ("Enforced", _yes(item.enforce_idle_time_out)),
            ("Evictable", _yes(item.enable_eviction)),
            ("Requeued", _yes(item.requeue_on_failure)),
        ]
    )


def binding_list(items: Sequence[BindingItem | BindingWritten]) -> str:
    """One line a workspace and cluster; a template that cannot be used says why."""
    if not items:
        return "no bindings"
    rows = [
        (
            each.name,
            _yes(each.enable_auto_gpr),
            bound.cluster_name,
            bound.default_template_name,
            ", ".join(bound.templates),
            "; ".join(
                dict.fromkeys(
                    status
                    for status in (bound.default_template_status, *bound.template_status)
                    if status != "Valid"
                )
            )
            or "Valid",
        )
        for each in items
        for bound in each.clusters
    ]
    return table(("WORKSPACE", "AUTO-GPR", "CLUSTER", "DEFAULT", "TEMPLATES", "STATUS"), rows)


def policy_list(items: Sequence[PolicyItem]) -> str:
    """One line a workspace."""
    if not items:
        return "no policies"
    rows = [
        (
            each.workspace_name,
            _limit(each.max_gprs),
            _limit(each.max_inference_endpoints),
            each.priority_range or NO_LIMIT,
            each.max_exit_duration_per_gpr or NO_LIMIT,
            _which(each.enable_auto_eviction),
            _which(each.requeue_on_failure),
        )
        for each in items
    ]
    return table(
        ("WORKSPACE", "GPRS", "ENDPOINTS", "PRIORITY", "DURATION", "EVICTION", "REQUEUE"),
        rows,
    )


def policy(item: PolicyItem) -> str:
    """One workspace's policy in full."""
    bounds = item.global_gpu_constraints or GpuConstraints()
    return pairs(
        [
            ("Workspace", item.workspace_name),
            ("Priority range", item.priority_range or NO_LIMIT),
            ("Max GPRs", _limit(item.max_gprs)),
            ("Max queued GPRs", str(item.max_queued_gprs)),
            ("Max endpoints", _limit(item.max_inference_endpoints)),
            ("Max exit duration", item.max_exit_duration_per_gpr or NO_LIMIT),
            ("GPU shapes", ", ".join(bounds.gpu_shapes) or "any"),
            ("Max GPUs a GPR", _limit(bounds.max_gpu_per_gpr)),
            ("Max memory a GPR", _limit(bounds.max_memory_per_gpr, " GB")),
            ("Requeue", _which(item.requeue_on_failure, "--requeue")),
            ("Eviction", _which(item.enable_auto_eviction, "--evictable")),
            ("Enforce idle", _which(item.enforce_idle_time_out, "--enforce-idle")),
        ]
    )


def _which(all_of_them: bool, option: str = "") -> str:
    """Of a policy's switch: it holds for every GPR, or for those only that say so themselves."""
    if all_of_them:
        return "every GPR"
    return f"GPRs that say {option}" if option else "where asked"


def audit_entry(entry: AuditItem) -> str:
    """One entry on one line, and a line more for each value that changed."""
    where = "/".join(part for part in (entry.workspace, entry.endpoint) if part)
    by = f"{entry.actor} [{entry.key_id}]" if entry.key_id else entry.actor
    head = f"{moment(entry.at)}  {entry.kind}  {where + ': ' if where else ''}{entry.message} (by {by})"
    return "\n".join([head, *_changes(entry.before or {}, entry.after or {})])


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterable[str]:
    """What changed; of what was made or deleted as a whole, what it was, without what says nothing."""
    for name in sorted({*before, *after}):
        if before and after:
            yield f"  {name}: {_value(before.get(name))} → {_value(after.get(name))}"
        elif _says_something(value := {**before, **after}[name]):
            yield f"  {'was ' if before else ''}{name}: {_value(value)}"


def _says_something(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def _value(value: Any) -> str:
    if isinstance(value, dict):
        text = ", ".join(f"{name} {_value(each)}" for name, each in value.items() if _says_something(each))
    elif value is None:
        text = "nothing"
    else:
        text = value if isinstance(value, str) and value else msgspec.json.encode(value).decode()
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}…"


def _instant(text: str) -> str:
    """An RFC 3339 text as people read it; what is none is shown as it is."""
    try:
        return moment(datetime.fromisoformat(text)) if text else ""
    except ValueError:
        return text


def _limit(value: int | None, unit: str = "") -> str:
    return NO_LIMIT if value is None else f"{value}{unit}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
