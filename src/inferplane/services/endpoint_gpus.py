"""The GPUs of an endpoint: which it gets to ask for, on which cluster, and its requests one after another.

The cluster of an endpoint is fixed when it is created. Where candidates are given, it is the one on
which the GPUs would come soonest, and among equals the one named first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

from inferplane.domain.access import Caller
from inferplane.domain.endpoint import GpuSpec, InferenceEndpoint
from inferplane.domain.errors import Invalid, NotFound, QuotaExceeded, RateLimited
from inferplane.domain.gpr_template import GprTemplate
from inferplane.domain.gpu_request import REQUEST_NAME_CHARACTERS_MAX, GpuRequest
from inferplane.domain.inventory import Node
from inferplane.domain.quantity import format_duration
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.workspace import Cluster, Workspace, WorkspacePolicy
from inferplane.scheduler.decisions import Candidate
from inferplane.services.context import Platform
from inferplane.services.endpoint_drafts import EndpointDraft, Wish
from inferplane.services.gpu_drafts import (
    CPU_INSTEAD,
    GpuDraft,
    Origin,
    check_allowed,
    check_placeable,
    request_of,
    with_memory_known,
)
from inferplane.services.gpu_requests import QUESTION_ID, QUESTION_NAME, insert, is_over, new_request_id
from inferplane.services.gpu_snapshot import candidates_for
from inferplane.services.templates import request_from
from inferplane.store.sql import Tx

NAME_SUFFIX_CHARACTERS = 6
PREFIX = "gpuSpec."
SOON = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class ChosenCluster:
    """`name` is "" where there was nothing to choose. `warning` says where nobody could compare, or ""."""

    name: str = ""
    warning: str = ""


async def soonest_cluster(platform: Platform, draft: EndpointDraft) -> ChosenCluster:
    """Where the draft's GPUs would come soonest.

    There is a choice where GPUs are asked for, no cluster is named, and candidates are: by
    `clusterPrecedence`, or all of the workspace's with `enableAutoClusterSelection`. While too many ask how
    long GPUs take, it is the first of these that has such GPUs: others' questions must not stop anybody.
    Raises NotFound, Invalid, QuotaExceeded.
    """
    gpu = draft.gpu
    if gpu is None or draft.cluster or not (draft.cluster_precedence or gpu.auto_cluster):
        return ChosenCluster()
    async with platform.store.read() as tx:
        workspace = await tx.get_workspace(draft.workspace)
        policy = await tx.get_policy(draft.workspace)
        wanted = draft.cluster_precedence or workspace.clusters
        usable = tuple(dict.fromkeys(each for each in wanted if each in workspace.clusters))
        if not usable:
            raise _not_a_candidate(workspace, wanted[0])
        origin = Origin(QUESTION_ID, QUESTION_NAME, draft.workspace, platform.clock())
        request = request_of(_over(gpu, usable), origin, policy, prefix=PREFIX, complete=False)
        nodes = await tx.list_nodes()
        check_placeable(request, nodes, usable, policy, prefix=PREFIX)
    try:
        found = await candidates_for(platform, request)
    except RateLimited:
        able = [each for each in usable if _is_placeable(request, nodes, each, policy)]
        name = next(iter(able), usable[0])
        if len(able) < 2:
            return ChosenCluster(name)
        return ChosenCluster(
            name,
            f"so many ask how long GPUs take that clusters were not compared: {name} is the first of "
            f"{', '.join(able)}, and another one may have GPUs sooner",
        )
    if not found:
        return ChosenCluster(usable[0])  # a policy that changed just now; what follows says what is wrong
    return ChosenCluster(min(found, key=lambda each: _preference(each, usable)).pool.cluster)


async def gpu_spec_for(
    tx: Tx, platform: Platform, draft: EndpointDraft, wish: Wish, cluster: Cluster
) -> GpuSpec | None:
    """What the endpoint asks for on `cluster`; None on CPU.

    From `gpuSpec`, else for a manifest that wants GPUs from the default template that is bound to the
    workspace. Raises Invalid, QuotaExceeded.
    """
    if draft.gpu is not None:
        policy = await tx.get_policy(draft.workspace)
        origin = Origin(QUESTION_ID, QUESTION_NAME, draft.workspace, platform.clock())
        on_cluster = _on(draft.gpu, cluster.name)
        await _check_has_gpus(tx, cluster, f"{PREFIX}gpuShape" if draft.gpu.gpu_shape else "gpuSpec")
        request = request_of(on_cluster, origin, policy, prefix=PREFIX, complete=False)
        return _spec(request, auto_renew=draft.gpu.auto_renew is not False)
    if not wish.wants_gpus:
        return None
    await _check_has_gpus(tx, cluster, wish.gpu_field)
    template = await _default_template(tx, draft.workspace, cluster, wish.gpu_field)
    origin = Origin(QUESTION_ID, QUESTION_NAME, draft.workspace, platform.clock())
    request = request_from(template, origin)
    policy = await tx.get_policy(draft.workspace)
    return _spec(replace(request, enforce_idle=request.enforce_idle or policy.enforce_idle_timeout))


async def check_spec(tx: Tx, endpoint: InferenceEndpoint, gpu: GpuSpec, platform: Platform) -> None:
    """The workspace may ask for this, and the cluster has it. Raises Invalid, QuotaExceeded."""
    await _checked(tx, _request(endpoint, gpu, platform, None))


async def ask(tx: Tx, platform: Platform, caller: Caller, endpoint: InferenceEndpoint) -> GpuRequest | None:
    """Put a request for the endpoint's GPUs into the queue; None for one on CPU.

    Raises Invalid, QuotaExceeded where it may not ask, or not any more.
    """
    gpu = endpoint.spec.gpu
    if gpu is None:
        return None
    await tx.hold_workspace(endpoint.workspace)
    request = await _checked(tx, _request(endpoint, gpu, platform, caller))
    await insert(tx, platform, caller, request)
    return request


async def ask_again(tx: Tx, platform: Platform, caller: Caller, endpoint: InferenceEndpoint) -> bool:
    """As `ask`, unless a request of the endpoint is alive or comes back by itself; whether it asked.

    Raises StaleVersion when the request changes at this moment.
    """
    if endpoint.spec.gpu is None:
        return False
    policy = await tx.get_policy(endpoint.workspace)
    known = await tx.list_gpu_requests(endpoint_uid=endpoint.uid)
    alive = [each for each in known if not is_over(each, policy)]
    if alive:
        for each in alive:
            # Whoever is about to end it, because the endpoint was stopped a moment ago, has to look again.
            await tx.save_gpu_request(each)
        return False
    await ask(tx, platform, caller, endpoint)
    return True


async def wait_sentence(platform: Platform, endpoint: InferenceEndpoint, gpu: GpuSpec) -> str:
    """What a dry run says about the wait."""
    try:
        found = await candidates_for(platform, _request(endpoint, gpu, platform, None))
    except RateLimited:  # everything else that a dry run says does not depend on it
        return f"GPUs of cluster {endpoint.cluster}; there is no estimate while so many ask for one"
    soonest = next(iter(found), None)
    if soonest is None:
        return f"GPUs of cluster {endpoint.cluster}; there is no estimate"
    what = f"{soonest.pool.gpu_shape} ({soonest.pool.instance_type}) on {soonest.pool.cluster}"
    wait = soonest.estimate.wait(platform.clock())
    if soonest.estimate.start is None or wait is None:
        return f"{what}; it would wait: {soonest.explanation}"
    if wait < SOON:
        return f"{what}; free now"
    return f"{what}; starts in about {format_duration(wait)}: {soonest.explanation}"


# Leaves


def _is_placeable(request: GpuRequest, nodes: Iterable[Node], cluster: str, policy: WorkspacePolicy) -> bool:
    try:
        check_placeable(request, nodes, (cluster,), policy)
    except (Invalid, QuotaExceeded):
        return False
    return True


def _over(gpu: GpuDraft, clusters: tuple[str, ...]) -> GpuDraft:
    return replace(gpu, cluster="", preferred_clusters=clusters, auto_cluster=False)


def _on(gpu: GpuDraft, cluster: str) -> GpuDraft:
    return replace(gpu, cluster=cluster, preferred_clusters=(), auto_cluster=False)


def _preference(candidate: Candidate, clusters: tuple[str, ...]) -> tuple[bool, float, int, int, str]:
    """Startable before not, sooner before later, then as named, then the smallest memory that does."""
    start = candidate.estimate.start
    key = candidate.pool
    return (
        start is None,
        0.0 if start is None else start.timestamp(),
        clusters.index(key.cluster) if key.cluster in clusters else len(clusters),
        key.memory_gb,
        key.instance_type,
    )


def _spec(request: GpuRequest, *, auto_renew: bool = True) -> GpuSpec:
    return GpuSpec(
        selection=request.selection,
        exit_duration=request.exit_duration,
        priority=request.priority,
        idle_timeout=request.idle_timeout,
        enforce_idle=request.enforce_idle,
        auto_renew=auto_renew,
        enable_eviction=request.enable_eviction,
        requeue_on_failure=request.requeue_on_failure,
    )


def _request(
    endpoint: InferenceEndpoint, gpu: GpuSpec, platform: Platform, caller: Caller | None
) -> GpuRequest:
    """A GPR named `<endpoint>-gpr-<6 of a-z0-9>`; without a caller one that is only asked about."""
    now = platform.clock()
    suffix = f"-gpr-{platform.new_id(NAME_SUFFIX_CHARACTERS)}"
    return GpuRequest(
        id=QUESTION_ID if caller is None else new_request_id(platform),
        name=endpoint.name[: REQUEST_NAME_CHARACTERS_MAX - len(suffix)] + suffix,
        workspace=endpoint.workspace,
        selection=gpu.selection,
        created_at=now,
        queued_at=now,
        exit_duration=gpu.exit_duration,
        priority=gpu.priority,
        created_by="" if caller is None else caller.key_name,
        endpoint_uid=endpoint.uid,
        endpoint_name=endpoint.name,
        idle_timeout=gpu.idle_timeout,
        enforce_idle=gpu.enforce_idle,
        enable_eviction=gpu.enable_eviction,
        requeue_on_failure=gpu.requeue_on_failure,
        auto_renew=gpu.auto_renew,
        multi_node=gpu.selection.nodes > 1,
    )


async def _checked(tx: Tx, request: GpuRequest) -> GpuRequest:
    workspace = await tx.get_workspace(request.workspace)
    policy = await tx.get_policy(request.workspace)
    others = await tx.list_gpu_requests(workspace=request.workspace, live_only=True)
    check_allowed(request, policy, others, prefix=PREFIX)
    nodes = await tx.list_nodes()
    check_placeable(request, nodes, workspace.clusters, policy, prefix=PREFIX)
    return with_memory_known(request, nodes, workspace.clusters, policy)


async def _check_has_gpus(tx: Tx, cluster: Cluster, field: str) -> None:
    """Said before anything else is: whatever is wrong with the rest, it cannot run there."""
    if not await tx.list_nodes(cluster.name):
        raise Invalid(
            f"cluster {cluster.name} has no GPUs",
            reason=ReasonCode.NO_SUCH_SHAPE.value,
            field=field,
            next_action=CPU_INSTEAD,
        )


async def _default_template(tx: Tx, workspace: str, cluster: Cluster, field: str) -> GprTemplate:
    try:
        binding = await tx.get_binding(workspace)
        name = binding.default_template(cluster.name) if binding.enable_auto_gpr else ""
        if name:
            template = await tx.get_template(name)
            if template.cluster == cluster.name:
                return template
    except NotFound:
        pass
    raise Invalid(
        f"the manifest asks for GPUs, but there is no gpuSpec, and workspace {workspace} has no default"
        f" template with enableAutoGPR on cluster {cluster.name}",
        reason="Missing",
        field="gpuSpec" if field == "rawModelSpec" else field,
        next_action="Give a gpuSpec, or take the GPUs out of the manifest to run on CPU.",
    )


def _not_a_candidate(workspace: Workspace, name: str) -> Invalid:
    return Invalid(
        f"workspace {workspace.name} does not use a cluster named “{name[:80]}”",
        reason="ClusterNotInWorkspace",
        field="clusterPrecedence",
        next_action=f"Its clusters are: {', '.join(workspace.clusters)}.",
    )
