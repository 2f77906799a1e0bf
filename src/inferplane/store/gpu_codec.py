"""GPU requests, and what they are decided from, ⇄ what the tables hold. See codec.py for the rules."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from inferplane.domain.gpr_template import BoundCluster, GprTemplate, GprTemplateBinding
from inferplane.domain.gpu_request import (
    EXIT_DURATION_DEFAULT,
    PRIORITY_DEFAULT,
    GpuRequest,
    Grant,
    ProvisioningStatus,
    Selection,
)
from inferplane.domain.inventory import Gpu, Node, NodeHealth
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.store.values import (
    Raw,
    Row,
    duration_of,
    enum_of,
    flag_of,
    from_json,
    from_micros,
    is_whole,
    known,
    list_of,
    mapping_of,
    micros_of,
    moment_of,
    number_of,
    span_of,
    text_of,
    texts_of,
    to_json,
    to_micros,
    whole_of,
    whole_or_none,
)


def gpu_request_to_row(request: GpuRequest) -> dict[str, Any]:
    """All columns of `gpu_requests` but `wait`, which has its own writer."""
    return {
        "id": request.id,
        "workspace": request.workspace,
        "endpoint_uid": request.endpoint_uid,
        "endpoint_name": request.endpoint_name,
        "status": request.status.value,
        "live": 0 if request.has_ended else 1,
        "created_at": to_micros(request.created_at),
        "version": request.version,
        "body": to_json(
            {
                "name": request.name,
                "selection": selection_to(request.selection),
                "queued_at": to_micros(request.queued_at),
                "exit_duration": span_of(request.exit_duration),
                "priority": request.priority,
                "created_by": request.created_by,
                "idle_timeout": span_of(request.idle_timeout),
                "enforce_idle": request.enforce_idle,
                "enable_eviction": request.enable_eviction,
                "requeue_on_failure": request.requeue_on_failure,
                "auto_renew": request.auto_renew,
                "multi_node": request.multi_node,
                "dedicated_nodes": request.dedicated_nodes,
                "enable_rdma": request.enable_rdma,
                "enable_secondary_network": request.enable_secondary_network,
                "grant": _grant_to(request.grant),
                "granted_at": micros_of(request.granted_at),
                "started_at": micros_of(request.started_at),
                "renewed_until": micros_of(request.renewed_until),
                "idle_since": micros_of(request.idle_since),
                "draining_since": micros_of(request.draining_since),
                "completed_at": micros_of(request.completed_at),
                "ending_as": request.ending_as.value if request.ending_as else None,
                "early_release": request.early_release,
                "failure_reason": request.failure_reason,
                "failure_code": request.failure_code.value if request.failure_code else None,
                "released_by": request.released_by,
                "evicted_by": request.evicted_by,
                "evicted_at": micros_of(request.evicted_at),
                "retry_count": request.retry_count,
                "delayed_count": request.delayed_count,
            }
        ),
    }


def gpu_request_from_row(row: Row) -> GpuRequest:
    """The request in a row of `gpu_requests`.

    In a status that this version does not know it keeps what GPUs it was given (it is Draining), or,
    without any, asks for none (it has Failed): nothing is granted twice because a word is new.
    """
    raw = mapping_of(from_json(row["body"]))
    grant = _grant_from(raw.get("grant"))
    created_at = from_micros(row["created_at"])
    unknown = ProvisioningStatus.FAILED if grant is None else ProvisioningStatus.DRAINING
    return GpuRequest(
        id=row["id"],
        name=text_of(raw, "name"),
        workspace=row["workspace"],
        selection=selection_from(mapping_of(raw.get("selection"))),
        created_at=created_at,
        queued_at=moment_of(raw.get("queued_at")) or created_at,
        exit_duration=exit_duration_from(raw),
        priority=whole_of(raw, "priority", PRIORITY_DEFAULT),
        created_by=text_of(raw, "created_by"),
        endpoint_uid=row["endpoint_uid"],
        endpoint_name=row["endpoint_name"],
        idle_timeout=duration_of(raw.get("idle_timeout")),
        enforce_idle=flag_of(raw, "enforce_idle"),
        enable_eviction=flag_of(raw, "enable_eviction"),
        requeue_on_failure=flag_of(raw, "requeue_on_failure"),
        auto_renew=flag_of(raw, "auto_renew"),
        multi_node=flag_of(raw, "multi_node"),
        dedicated_nodes=flag_of(raw, "dedicated_nodes"),
        enable_rdma=flag_of(raw, "enable_rdma"),
        enable_secondary_network=flag_of(raw, "enable_secondary_network"),
        status=enum_of(ProvisioningStatus, row["status"]) or unknown,
        grant=grant,
        granted_at=moment_of(raw.get("granted_at")),
        started_at=moment_of(raw.get("started_at")),
        renewed_until=moment_of(raw.get("renewed_until")),
        idle_since=moment_of(raw.get("idle_since")),
        draining_since=moment_of(raw.get("draining_since")),
        completed_at=moment_of(raw.get("completed_at")),
        ending_as=enum_of(ProvisioningStatus, raw.get("ending_as")),
        early_release=flag_of(raw, "early_release"),
        failure_reason=text_of(raw, "failure_reason"),
        failure_code=enum_of(ReasonCode, raw.get("failure_code")),
        released_by=text_of(raw, "released_by"),
        evicted_by=text_of(raw, "evicted_by"),
        evicted_at=moment_of(raw.get("evicted_at")),
        retry_count=whole_of(raw, "retry_count", 0),
        delayed_count=whole_of(raw, "delayed_count", 0),
        version=row["version"],
    )


def wait_note_to_json(note: WaitNote) -> str:
    """JSON text of a wait note."""
    return to_json(
        {
            "position": note.position,
            "explanation": note.explanation,
            "estimated_start": micros_of(note.estimated_start),
            "assumption": note.assumption,
            "at": to_micros(note.at),
            "remedy": note.remedy,
            "reason": note.reason.value,
        }
    )


def wait_note_from_json(text: str) -> WaitNote | None:
    """The wait note in `text`, or None when it does not even say when it was said."""
    raw = mapping_of(from_json(text))
    at = moment_of(raw.get("at"))
    if at is None:
        return None
    return WaitNote(
        position=whole_or_none(raw, "position"),
        explanation=text_of(raw, "explanation"),
        estimated_start=moment_of(raw.get("estimated_start")),
        assumption=text_of(raw, "assumption"),
        at=at,
        remedy=text_of(raw, "remedy"),
        reason=enum_of(ReasonCode, raw.get("reason")) or ReasonCode.AWAITING_GPU,
    )


def usage_from_json(text: str) -> dict[str, float]:
    """GPU-seconds by workspace; what is no number is left out."""
    raw = mapping_of(from_json(text))
    return {workspace: number_of(raw, workspace, 0.0) for workspace in raw}


def policy_to_row(policy: WorkspacePolicy) -> dict[str, Any]:
    """All columns of `workspace_policies`."""
    body = {
        "priority_lowest": policy.priority_lowest,
        "priority_highest": policy.priority_highest,
        "max_requests": policy.max_requests,
        "max_queued": policy.max_queued,
        "max_exit_duration": span_of(policy.max_exit_duration),
        "gpu_shapes": policy.gpu_shapes,
        "max_gpus_per_request": policy.max_gpus_per_request,
        "max_memory_gb_per_request": policy.max_memory_gb_per_request,
        "max_endpoints": policy.max_endpoints,
        "requeue_on_failure": policy.requeue_on_failure,
        "auto_eviction": policy.auto_eviction,
        "enforce_idle_timeout": policy.enforce_idle_timeout,
    }
    return {"workspace": policy.workspace, "body": to_json(body)}


def policy_from_row(row: Row) -> WorkspacePolicy:
    """The policy in a row of `workspace_policies`."""
    raw = mapping_of(from_json(row["body"]))
    return WorkspacePolicy(
        workspace=row["workspace"],
        priority_lowest=whole_of(raw, "priority_lowest", _POLICY.priority_lowest),
        priority_highest=whole_of(raw, "priority_highest", _POLICY.priority_highest),
        max_requests=whole_or_none(raw, "max_requests"),
        max_queued=whole_of(raw, "max_queued", _POLICY.max_queued),
        max_exit_duration=duration_of(raw.get("max_exit_duration")),
        gpu_shapes=texts_of(raw.get("gpu_shapes")),
        max_gpus_per_request=whole_or_none(raw, "max_gpus_per_request"),
        max_memory_gb_per_request=whole_or_none(raw, "max_memory_gb_per_request"),
        max_endpoints=whole_or_none(raw, "max_endpoints"),
        requeue_on_failure=flag_of(raw, "requeue_on_failure"),
        auto_eviction=flag_of(raw, "auto_eviction"),
        enforce_idle_timeout=flag_of(raw, "enforce_idle_timeout"),
    )


_POLICY = WorkspacePolicy("")


def template_to_row(template: GprTemplate) -> dict[str, Any]:
    """All columns of `gpr_templates`."""
    body = {
        "cluster": template.cluster,
        "gpus_per_node": template.gpus_per_node,
        "nodes": template.nodes,
        "memory_gb": template.memory_gb,
        "gpu_shape": template.gpu_shape,
        "instance_type": template.instance_type,
        "exit_duration": span_of(template.exit_duration),
        "priority": template.priority,
        "enforce_idle": template.enforce_idle,
        "idle_timeout": span_of(template.idle_timeout),
        "enable_eviction": template.enable_eviction,
        "requeue_on_failure": template.requeue_on_failure,
    }
    return {"name": template.name, "body": to_json(body)}


def template_from_row(row: Row) -> GprTemplate:
    """The template in a row of `gpr_templates`."""
    raw = mapping_of(from_json(row["body"]))
    return GprTemplate(
        name=row["name"],
        cluster=text_of(raw, "cluster"),
        gpus_per_node=whole_of(raw, "gpus_per_node", 1),
        nodes=whole_of(raw, "nodes", 1),
        memory_gb=whole_of(raw, "memory_gb", 0),
        gpu_shape=text_of(raw, "gpu_shape"),
        instance_type=text_of(raw, "instance_type"),
        exit_duration=exit_duration_from(raw),
        priority=whole_of(raw, "priority", PRIORITY_DEFAULT),
        enforce_idle=flag_of(raw, "enforce_idle"),
        idle_timeout=duration_of(raw.get("idle_timeout")),
        enable_eviction=flag_of(raw, "enable_eviction"),
        requeue_on_failure=flag_of(raw, "requeue_on_failure"),
    )


def binding_to_row(binding: GprTemplateBinding) -> dict[str, Any]:
    """All columns of `gpr_template_bindings`."""
    body = {
        "clusters": [
            {"cluster": each.cluster, "default_template": each.default_template, "templates": each.templates}
            for each in binding.clusters
        ],
        "enable_auto_gpr": binding.enable_auto_gpr,
    }
    return {"workspace": binding.workspace, "body": to_json(body)}


def binding_from_row(row: Row) -> GprTemplateBinding:
    """The binding in a row of `gpr_template_bindings`."""
    raw = mapping_of(from_json(row["body"]))
    bound = [mapping_of(each) for each in list_of(raw.get("clusters"))]
    return GprTemplateBinding(
        workspace=row["workspace"],
        clusters=tuple(
            BoundCluster(
                cluster=text_of(each, "cluster"),
                default_template=text_of(each, "default_template"),
                templates=texts_of(each.get("templates")),
            )
            for each in bound
        ),
        enable_auto_gpr=flag_of(raw, "enable_auto_gpr"),
    )


def node_to_row(node: Node) -> dict[str, Any]:
    """All columns of `nodes`."""
    body = {
        "instance_type": node.instance_type,
        "gpu_shape": node.gpu_shape,
        "gpu_count": node.gpu_count,
        "memory_gb": node.memory_gb,
        "health": node.health.value,
        "simulated": node.simulated,
        "gpus": [
            {"index": gpu.index, "uuid": gpu.uuid, "model_name": gpu.model_name, "healthy": gpu.healthy}
            for gpu in node.gpus
        ],
        "gpu_model_name": node.gpu_model_name,
        "cloud_provider": node.cloud_provider,
        "region": node.region,
        "host": node.host,
        "health_since": micros_of(node.health_since),
    }
    return {"cluster": node.cluster, "name": node.name, "body": to_json(body)}


def node_from_row(row: Row) -> Node:
    """The node in a row of `nodes`. In a state of health that is not known nothing is placed on it."""
    raw = mapping_of(from_json(row["body"]))
    return Node(
        cluster=row["cluster"],
        name=row["name"],
        instance_type=text_of(raw, "instance_type"),
        gpu_shape=text_of(raw, "gpu_shape"),
        gpu_count=whole_of(raw, "gpu_count", 0),
        memory_gb=whole_of(raw, "memory_gb", 0),
        health=enum_of(NodeHealth, raw.get("health")) or NodeHealth.UNHEALTHY,
        simulated=flag_of(raw, "simulated"),
        gpus=known(_gpu_from(mapping_of(each)) for each in list_of(raw.get("gpus"))),
        gpu_model_name=text_of(raw, "gpu_model_name"),
        cloud_provider=text_of(raw, "cloud_provider"),
        region=text_of(raw, "region"),
        host=text_of(raw, "host"),
        health_since=moment_of(raw.get("health_since")),
    )


def _gpu_from(raw: Raw) -> Gpu | None:
    index = whole_or_none(raw, "index")
    if index is None:
        return None
    return Gpu(
        index=index,
        uuid=text_of(raw, "uuid"),
        model_name=text_of(raw, "model_name"),
        healthy=flag_of(raw, "healthy", default=True),
    )


def selection_to(selection: Selection) -> dict[str, Any]:
    """For JSON."""
    return {
        "cluster_name": selection.cluster_name,
        "preferred_clusters": selection.preferred_clusters,
        "auto_cluster": selection.auto_cluster,
        "auto_gpu": selection.auto_gpu,
        "gpu_shape": selection.gpu_shape,
        "instance_type": selection.instance_type,
        "memory_gb": selection.memory_gb,
        "gpus_per_node": selection.gpus_per_node,
        "nodes": selection.nodes,
    }


def selection_from(raw: Raw) -> Selection:
    """What `selection_to` came from."""
    return Selection(
        cluster_name=text_of(raw, "cluster_name"),
        preferred_clusters=texts_of(raw.get("preferred_clusters")),
        auto_cluster=flag_of(raw, "auto_cluster"),
        auto_gpu=flag_of(raw, "auto_gpu"),
        gpu_shape=text_of(raw, "gpu_shape"),
        instance_type=text_of(raw, "instance_type"),
        memory_gb=whole_of(raw, "memory_gb", 0),
        gpus_per_node=whole_of(raw, "gpus_per_node", 1),
        nodes=whole_of(raw, "nodes", 1),
    )


def _grant_to(grant: Grant | None) -> dict[str, Any] | None:
    if grant is None:
        return None
    return {
        "cluster": grant.cluster,
        "nodes": grant.nodes,
        "gpu_shape": grant.gpu_shape,
        "instance_type": grant.instance_type,
        "memory_gb": grant.memory_gb,
    }


def _grant_from(value: object) -> Grant | None:
    if not isinstance(value, dict):
        return None
    return Grant(
        cluster=text_of(value, "cluster"),
        nodes=node_gpus_from(value.get("nodes")),
        gpu_shape=text_of(value, "gpu_shape"),
        instance_type=text_of(value, "instance_type"),
        memory_gb=whole_of(value, "memory_gb", 0),
    )


def node_gpus_from(value: object) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(node, GPU indexes) pairs."""
    pairs = [pair for pair in map(list_of, list_of(value)) if len(pair) == 2]
    return tuple((str(node), tuple(filter(is_whole, list_of(indexes)))) for node, indexes in pairs)


def exit_duration_from(raw: Raw) -> timedelta:
    """How long the GPUs are wanted, under its usual key."""
    duration = duration_of(raw.get("exit_duration"))
    return EXIT_DURATION_DEFAULT if duration is None else duration
