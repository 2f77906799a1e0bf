"""Bodies as sent → drafts as services want them. Spellings end here; meaning begins behind."""

from __future__ import annotations

from dataclasses import replace

from inferplane.domain.errors import Invalid
from inferplane.services.access_drafts import TrafficDraft
from inferplane.services.api_keys import KeyDraft
from inferplane.services.clusters import ClusterDraft
from inferplane.services.endpoint_change_drafts import CanaryDraft, ChangeDraft, GuardDraft, ModelChange
from inferplane.services.endpoint_drafts import EndpointDraft, ModelDraft
from inferplane.services.endpoint_keys import EndpointKeyDraft
from inferplane.services.gpu_drafts import GpuDraft
from inferplane.services.gpu_requests import GpuChange
from inferplane.services.policies import PolicyDraft
from inferplane.services.templates import BindingDraft, BoundClusterDraft, TemplateDraft
from inferplane.services.workspaces import WorkspaceDraft
from inferplane.wire.access import CreateApiKey
from inferplane.wire.endpoint_keys import CreateEndpointKey
from inferplane.wire.endpoints import (
    AutoscalingBody,
    CanaryBody,
    CreateEndpoint,
    EndpointRef,
    GpuSpecBody,
    GuardBody,
    LimitsBody,
    ModelChangeBody,
    ModelResources,
    ModelSpecBody,
    RollbackRef,
    UpdateEndpoint,
)
from inferplane.wire.gpus import BindingBody, CreateGpr, TemplateBody, UpdateGpr
from inferplane.wire.policies import GpuConstraintsBody, PolicyBody
from inferplane.wire.workspaces import UpdateCluster, UpdateWorkspace, WriteCluster, WriteWorkspace

NO_GPU_WORDS = frozenset({"", "none", "null"})


def key_draft(body: CreateApiKey) -> KeyDraft:
    """What a key is asked to be."""
    return KeyDraft(
        name=body.name,
        role=body.role,
        validity=body.validity,
        workspace=body.workspace_name or "",
        user_name=body.user_name or "",
        description=body.description or "",
    )


def cluster_draft(body: WriteCluster | UpdateCluster) -> ClusterDraft:
    """What a cluster is asked to be."""
    return ClusterDraft(
        name=body.name,
        engine=body.engine.strip().lower() if isinstance(body, WriteCluster) else "",
        domain=body.domain,
        ingress_address=body.ingress_address,
        kubeconfig=body.kubeconfig,
        kubeconfig_ref=body.kubeconfig_ref,
        context=body.context,
        in_cluster=body.in_cluster,
        drift=body.drift,
        force=bool(body.force),
    )


def workspace_draft(body: WriteWorkspace | UpdateWorkspace) -> WorkspaceDraft:
    """What a workspace is asked to be."""
    return WorkspaceDraft(
        name=body.workspace_name,
        clusters=None if body.clusters is None else tuple(body.clusters),
        namespaces=None if body.namespaces is None else tuple(body.namespaces),
        username=body.username,
        email=body.email,
    )


def endpoint_draft(body: CreateEndpoint) -> EndpointDraft:
    """What an endpoint is asked to be. Raises Invalid for a gpuSpec that is a word other than None."""
    model = body.model_spec
    scaling = body.autoscaling or AutoscalingBody()
    limits = body.limits or LimitsBody()
    size, timeout = limits.max_request_bytes, limits.timeout_seconds
    if model is not None:  # also accepted beside the model
        size = model.max_request_bytes if size is None else size
        timeout = model.timeout_seconds if timeout is None else timeout
    return EndpointDraft(
        workspace=body.workspace,
        name=body.endpoint_name,
        cluster=body.cluster_name or "",
        cluster_precedence=tuple(body.cluster_precedence or ()),
        model=None if model is None else _model(model),
        manifest_text=body.raw_model_spec,
        gpu=_gpu(body.gpu_spec),
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        autoscaling_provider=scaling.autoscaling_provider,
        target_concurrency=scaling.target_concurrency,
        target_rate=scaling.target_rate,
        scale_to_zero_after=scaling.scale_to_zero_after,
        max_request_bytes=size,
        timeout_seconds=timeout,
        traffic=_traffic(body.access, limits),
    )


def change_draft(body: UpdateEndpoint) -> ChangeDraft:
    """What shall change of an endpoint. Raises Invalid without a name."""
    workspace, name, cluster = place_of(body)
    model = body.model_spec
    scaling = body.autoscaling or AutoscalingBody()
    limits = body.limits or LimitsBody()
    canary = body.canary or CanaryBody()
    guard = body.guard or GuardBody()
    size, timeout = limits.max_request_bytes, limits.timeout_seconds
    if model is not None:  # also accepted beside the model
        size = model.max_request_bytes if size is None else size
        timeout = model.timeout_seconds if timeout is None else timeout
    return ChangeDraft(
        workspace=workspace,
        endpoint=name,
        cluster=cluster,
        model=None if model is None else _model_change(model),
        manifest_text=body.raw_model_spec,
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        autoscaling_provider=scaling.autoscaling_provider,
        target_concurrency=scaling.target_concurrency,
        target_rate=scaling.target_rate,
        scale_to_zero_after=scaling.scale_to_zero_after,
        max_request_bytes=size,
        timeout_seconds=timeout,
        traffic=_traffic(body.access, limits),
        canary=CanaryDraft(canary.percent, canary.mirror_percent, canary.sticky_header),
        strategy=body.strategy,
        guard=GuardDraft(
            guard.enabled,
            guard.error_points,
            guard.latency_factor,
            guard.latency_least_ms,
            guard.requests_min,
            guard.window_seconds,
        ),
        names_gpus=body.gpu_spec is not None,
        restart=bool(body.restart),
    )


def _model_change(body: ModelChangeBody) -> ModelChange | None:
    """None for an object that changes nothing of the model (limits may stand in it as well)."""
    resources = body.resources or ModelResources()
    change = ModelChange(
        format=body.model_name,
        storage_uri=body.storage_uri,
        format_version=body.model_version,
        runtime=body.runtime,
        protocol_version=body.protocol_version,
        args=None if body.args is None else tuple(body.args),
        env=body.env,
        secret=body.secret,
        cpu=resources.cpu,
        memory=resources.memory,
        digest=body.digest,
        start_timeout_seconds=body.start_timeout_seconds,
    )
    return None if change == ModelChange() else change


def _traffic(access: str | None, limits: LimitsBody) -> TrafficDraft:
    return TrafficDraft(
        access,
        limits.requests_per_second,
        limits.burst,
        limits.requests_per_second_per_key,
        limits.concurrency_max,
        limits.concurrency_max_per_key,
    )


def endpoint_key_draft(body: CreateEndpointKey) -> EndpointKeyDraft:
    """What an endpoint key is asked to be."""
    return EndpointKeyDraft(
        workspace=body.workspace,
        name=body.name,
        validity=body.validity,
        endpoints=None if body.endpoints is None else tuple(body.endpoints),
        requests_per_second=body.requests_per_second,
    )


def gpr_draft(body: CreateGpr) -> GpuDraft:
    """What a GPR is asked to be."""
    return replace(
        _wish(body),
        preferred_clusters=tuple(body.preferred_clusters or ()),
        auto_cluster=bool(body.enable_auto_cluster_selection),
        auto_gpu=bool(body.enable_auto_gpu_selection),
        enable_eviction=bool(body.enable_eviction),
        requeue_on_failure=bool(body.requeue_on_failure),
        multi_node=bool(body.multi_node),
        dedicated_nodes=bool(body.dedicated_nodes),
        enable_rdma=bool(body.enable_rdma),
        enable_secondary_network=bool(body.enable_secondary_network),
    )


def gpr_change(body: UpdateGpr) -> GpuChange:
    """What shall change of a GPR."""
    return GpuChange(body.gpr_name, body.priority, body.exit_duration, body.early_release)


def template_draft(body: TemplateBody) -> TemplateDraft:
    """What a template is asked to be."""
    return TemplateDraft(
        name=body.name,
        wish=_wish(body),
        enable_eviction=body.enable_eviction,
        requeue_on_failure=body.requeue_on_failure,
    )


def _wish(body: CreateGpr | TemplateBody) -> GpuDraft:
    """What a request and a template say in the same words."""
    return GpuDraft(
        cluster=(body.cluster_name or "").strip(),
        gpu_shape=(body.gpu_shape or "").strip(),
        instance_type=(body.instance_type or "").strip(),
        memory_gb=body.memory_per_gpu,
        gpus_per_node=body.number_of_gpus,
        nodes=body.number_of_gpu_nodes,
        exit_duration=body.exit_duration,
        priority=body.priority,
        idle_timeout=body.idle_time_out_duration,
        enforce_idle=body.enforce_idle_time_out,
    )


def binding_draft(body: BindingBody) -> BindingDraft:
    """What a binding is asked to be."""
    clusters = body.clusters
    return BindingDraft(
        workspace=body.workspace_name,
        clusters=None
        if clusters is None
        else tuple(
            BoundClusterDraft(each.cluster_name, each.default_template_name, tuple(each.templates or ()))
            for each in clusters
        ),
        enable_auto_gpr=body.enable_auto_gpr,
    )


def policy_draft(body: PolicyBody) -> PolicyDraft:
    """What shall change of a policy: bounds on single GPRs stand on their own or in their group."""
    group = body.global_gpu_constraints or GpuConstraintsBody()
    shapes = group.gpu_shapes if body.gpu_shapes is None else body.gpu_shapes
    return PolicyDraft(
        priority_range=body.priority_range,
        max_requests=body.max_gprs,
        max_queued=body.max_queued_gprs,
        max_exit_duration=body.max_exit_duration_per_gpr,
        gpu_shapes=None if shapes is None else tuple(shapes),
        max_gpus_per_request=group.max_gpu_per_gpr if body.max_gpu_per_gpr is None else body.max_gpu_per_gpr,
        max_memory_gb_per_request=group.max_memory_per_gpr
        if body.max_memory_per_gpr is None
        else body.max_memory_per_gpr,
        max_endpoints=body.max_inference_endpoints,
        requeue_on_failure=body.requeue_on_failure,
        auto_eviction=body.enable_auto_eviction,
        enforce_idle_timeout=body.enforce_idle_time_out,
    )


def place_of(body: EndpointRef | UpdateEndpoint | RollbackRef) -> tuple[str, str, str]:
    """(workspace, endpoint, cluster) of what is to be done with an endpoint. Raises Invalid without a name."""
    name = body.endpoint or body.endpoint_name or ""
    if not name:
        raise Invalid("endpoint is needed", reason="Missing", field="endpoint")
    return body.workspace, name, body.cluster or body.cluster_name or ""


def _model(body: ModelSpecBody) -> ModelDraft:
    resources = body.resources or ModelResources()
    return ModelDraft(
        format=body.model_name,
        storage_uri=body.storage_uri,
        format_version=body.model_version,
        runtime=body.runtime,
        protocol_version=body.protocol_version,
        args=tuple(body.args or ()),
        env=body.env or {},
        secret=body.secret or {},
        cpu=resources.cpu,
        memory=resources.memory,
        digest=body.digest,
        start_timeout_seconds=body.start_timeout_seconds,
    )


def _gpu(body: GpuSpecBody | str | None) -> GpuDraft | None:
    """None for CPU: absent, null, the word None, or an object that asks for nothing."""
    if body is None or (isinstance(body, str) and body.strip().lower() in NO_GPU_WORDS):
        return None
    if isinstance(body, str):
        raise Invalid(
            f"gpuSpec is an object or the word None, not “{body[:40]}”",
            reason="WrongType",
            field="gpuSpec",
            next_action="Leave it out to run on CPU.",
        )
    if body == GpuSpecBody():
        return None
    return GpuDraft(
        auto_cluster=bool(body.enable_auto_cluster_selection),
        auto_gpu=bool(body.enable_auto_gpu_selection),
        gpu_shape=(body.gpu_shape or "").strip(),
        instance_type=(body.instance_type or "").strip(),
        memory_gb=body.memory_per_gpu,
        gpus_per_node=body.number_of_gpus,
        nodes=body.number_of_gpu_nodes,
        exit_duration=body.exit_duration or None,
        priority=body.priority,
        idle_timeout=body.idle_time_out_duration,
        enforce_idle=body.enforce_idle_time_out,
        enable_eviction=bool(body.enable_eviction),
        requeue_on_failure=bool(body.requeue_on_failure),
        auto_renew=body.auto_renew,
    )
