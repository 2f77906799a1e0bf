"""A wish for GPUs as sent → a GPR that can be stored, or every reason why not. Pure.

One road for both: a GPR of its own, and the `gpuSpec` of an endpoint. What differs are the names of the
fields (`prefix`), and that an endpoint's wish has defaults where a GPR must say what it wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from inferplane.domain.errors import Invalid, Problem, QuotaExceeded
from inferplane.domain.gpu_request import (
    EXIT_DURATION_DEFAULT,
    PRIORITY_DEFAULT,
    GpuRequest,
    Selection,
    check_admission,
    policy_problems,
    request_problems,
)
from inferplane.domain.inventory import Node
from inferplane.domain.quantity import parse_duration
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.workspace import Workspace, WorkspacePolicy
from inferplane.scheduler.placement import PoolKey, allows, matches

KINDS_SHOWN_MAX = 6
TEXT_CHARACTERS_MAX = 128
CPU_INSTEAD = "Leave gpuSpec out (or give null) to run on CPU, or name a cluster that has GPUs."


@dataclass(frozen=True, slots=True)
class GpuDraft:
    """Which GPUs are wanted, as sent. None means not given."""

    cluster: str = ""
    preferred_clusters: tuple[str, ...] = ()
    auto_cluster: bool = False
    auto_gpu: bool = False
    gpu_shape: str = ""
    instance_type: str = ""
    memory_gb: int | None = None
    gpus_per_node: int | None = None
    nodes: int | None = None
    exit_duration: str | None = None
    priority: int | None = None
    idle_timeout: str | None = None
    enforce_idle: bool | None = None
    enable_eviction: bool = False
    requeue_on_failure: bool = False
    auto_renew: bool | None = None
    multi_node: bool = False
    dedicated_nodes: bool = False
    enable_rdma: bool = False
    enable_secondary_network: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks, and for what: all that the wish itself does not say."""

    id: str
    name: str
    workspace: str
    at: datetime
    created_by: str = ""


def request_of(
    draft: GpuDraft, origin: Origin, policy: WorkspacePolicy, *, prefix: str = "", complete: bool = True
) -> GpuRequest:
    """The GPR that `draft` asks for. Raises Invalid with every problem in it.

    `complete`: the numbers and the exit duration must be given; else they have defaults, which keep
    within the policy.
    """
    problems: list[Problem] = []
    if complete:
        problems = [
            Problem(name, "Missing", f"{name} is needed")
            for name, value in (
                ("numberOfGPUs", draft.gpus_per_node),
                ("numberOfGPUNodes", draft.nodes),
                ("exitDuration", draft.exit_duration),
            )
            if value is None
        ]
    exit_duration = _duration(draft.exit_duration, "exitDuration", problems)
    idle_timeout = _duration(draft.idle_timeout, "idleTimeOutDuration", problems)
    named = draft.preferred_clusters if not draft.auto_cluster else ()
    request = GpuRequest(
        id=origin.id,
        name=origin.name,
        workspace=origin.workspace,
        selection=Selection(
            cluster_name="" if draft.auto_cluster or named else draft.cluster,
            preferred_clusters=draft.preferred_clusters,
            auto_cluster=draft.auto_cluster,
            auto_gpu=draft.auto_gpu,
            gpu_shape=draft.gpu_shape,
            instance_type=draft.instance_type,
            memory_gb=draft.memory_gb or 0,
            gpus_per_node=1 if draft.gpus_per_node is None else draft.gpus_per_node,
            nodes=1 if draft.nodes is None else draft.nodes,
        ),
        created_at=origin.at,
        queued_at=origin.at,
        exit_duration=default_exit_duration(policy) if exit_duration is None else exit_duration,
        priority=default_priority(policy) if draft.priority is None else draft.priority,
        created_by=origin.created_by,
        idle_timeout=idle_timeout,
        enforce_idle=_enforces_idle(draft, policy),
        enable_eviction=draft.enable_eviction,
        requeue_on_failure=draft.requeue_on_failure,
        multi_node=draft.multi_node or (draft.nodes or 1) > 1,
        dedicated_nodes=draft.dedicated_nodes,
        enable_rdma=draft.enable_rdma,
        enable_secondary_network=draft.enable_secondary_network,
        auto_renew=bool(draft.auto_renew),
    )
    told = {each.field for each in problems}
    problems += [each for each in request_problems(request) if each.field not in told]
    for name, text in (("gpuShape", draft.gpu_shape), ("instanceType", draft.instance_type)):
        if len(text) > TEXT_CHARACTERS_MAX or not text.isprintable():
            problems.append(
                Problem(name, "InvalidText", f"{name} must be at most {TEXT_CHARACTERS_MAX} letters")
            )
    if not origin.name.isprintable():
        problems.append(Problem("gprName", "InvalidText", "gprName holds control characters"))
    raise_invalid(problems, prefix)
    return request


def default_priority(policy: WorkspacePolicy) -> int:
    """The usual priority, or the nearest that the workspace may use."""
    return min(max(PRIORITY_DEFAULT, policy.priority_lowest), policy.priority_highest)


def default_exit_duration(policy: WorkspacePolicy) -> timedelta:
    """The usual duration, or the longest that the workspace may use."""
    return min(EXIT_DURATION_DEFAULT, policy.max_exit_duration or EXIT_DURATION_DEFAULT)


def raise_invalid(problems: Sequence[Problem], prefix: str = "") -> None:
    """Raise Invalid for what was found, its fields named as the caller knows them."""
    if problems:
        first, *rest = problems
        more = f" (and {len(rest)} more, see details)" if rest else ""
        raise Invalid(
            first.message + more,
            reason=first.reason,
            field=prefix + first.field,
            details=tuple(replace(each, field=prefix + each.field) for each in problems),
        )


def check_clusters(request: GpuRequest, workspace: Workspace) -> None:
    """Every cluster that is named belongs to the workspace. Raises Invalid."""
    selection = request.selection
    named = [(name, f"preferredClusters[{i}]") for i, name in enumerate(selection.preferred_clusters)]
    if selection.cluster_name:
        named.append((selection.cluster_name, "clusterName"))
    raise_invalid(
        [
            Problem(
                field,
                "ClusterNotInWorkspace",
                f"workspace {workspace.name} does not use a cluster named “{name[:80]}”;"
                f" its clusters are: {', '.join(workspace.clusters)}",
            )
            for name, field in named
            if name not in workspace.clusters
        ]
    )


def check_placeable(
    request: GpuRequest,
    nodes: Iterable[Node],
    clusters: Iterable[str],
    policy: WorkspacePolicy,
    *,
    prefix: str = "",
) -> None:
    """Some kind of node could hold the request if all of it were free and in order.

    Raises Invalid (NoSuchShape, LargerThanCluster), QuotaExceeded where only the policy is in the way.
    """
    selection, usable = request.selection, frozenset(clusters)
    kinds: dict[PoolKey, list[int]] = {}
    for node in nodes:
        if node.cluster in usable:
            key = PoolKey(node.cluster, node.gpu_shape, node.instance_type, node.memory_gb)
            kinds.setdefault(key, []).append(node.gpu_count)
    unlimited = WorkspacePolicy(request.workspace)
    found = {key: sizes for key, sizes in kinds.items() if matches(selection, key, unlimited)}
    if not found:
        raise _no_such_shape(selection, kinds, usable, prefix)
    allowed = {key: sizes for key, sizes in found.items() if allows(policy, selection, key)}
    if not allowed:
        raise QuotaExceeded(
            "the workspace's policy allows none of the GPUs that would do: "
            f"{_kinds(found) if found else 'none'}",
            reason="ShapeNotAllowed",
            field=f"{prefix}gpuShape",
            next_action="Ask for other GPUs, or ask an Owner to change the workspace's policy.",
        )
    if not any(_room(sizes, selection.gpus_per_node) >= selection.nodes for sizes in allowed.values()):
        most = max(max(sizes) for sizes in allowed.values())
        if most < selection.gpus_per_node:
            what, field = f"the largest of these nodes has {_count(most, 'GPU')}", "numberOfGPUs"
        else:
            nodes_most = max(_room(sizes, selection.gpus_per_node) for sizes in allowed.values())
            are = "is" if nodes_most == 1 else "are"
            what = f"there {are} {_count(nodes_most, 'such node')} in one cluster"
            field = "numberOfGPUNodes"
        nodes_wanted = "1 node" if selection.nodes == 1 else f"each of {selection.nodes} nodes"
        raise Invalid(
            f"asked for: {_count(selection.gpus_per_node, 'GPU')} on {nodes_wanted}; {what}",
            reason="LargerThanCluster",
            field=prefix + field,
            next_action="Ask for less; it would not fit even if everything were free.",
        )


def with_memory_known(
    request: GpuRequest, nodes: Iterable[Node], clusters: Iterable[str], policy: WorkspacePolicy
) -> GpuRequest:
    """With the memory of the shape that it names where it names none: of several sizes, the smallest.

    So it asks for what it could have had anyway, and everybody who reads it is told how much that is.
    """
    selection, usable = request.selection, frozenset(clusters)
    if selection.memory_gb:
        return request
    keys = (PoolKey(each.cluster, each.gpu_shape, each.instance_type, each.memory_gb) for each in nodes)
    known = (key.memory_gb for key in keys if key.cluster in usable and matches(selection, key, policy))
    return replace(request, selection=replace(selection, memory_gb=min(known, default=0)))


def check_allowed(
    request: GpuRequest, policy: WorkspacePolicy, others: Iterable[GpuRequest], *, prefix: str = ""
) -> None:
    """The workspace may ask for it now. Raises Invalid, QuotaExceeded, with fields in the caller's words."""
    try:
        check_admission(request, policy, others)
    except QuotaExceeded as error:
        raise _renamed_quota(error, prefix) from error


def check_policy(request: GpuRequest, policy: WorkspacePolicy) -> None:
    """The policy allows such a request, whatever else is going on. Raises QuotaExceeded."""
    problems = policy_problems(request, policy)
    if problems:
        raise QuotaExceeded(
            problems[0].message,
            reason=problems[0].reason,
            field=problems[0].field,
            details=problems,
            next_action="Ask for less, or ask an Owner to change the workspace's policy.",
        )


def _enforces_idle(draft: GpuDraft, policy: WorkspacePolicy) -> bool:
    return bool(draft.enforce_idle) or policy.enforce_idle_timeout


def _duration(text: str | None, field: str, problems: list[Problem]) -> timedelta | None:
    if text is None or not text.strip():
        if text is not None and field == "exitDuration":
            problems.append(Problem(field, "Missing", f"{field} is needed"))
        return None
    try:
        return parse_duration(text, field)
    except Invalid as error:
        problems.append(Problem(field, error.reason, f"{field}: {error.message}. {error.next_action}"))
        return None


def _no_such_shape(
    selection: Selection, kinds: dict[PoolKey, list[int]], usable: frozenset[str], prefix: str
) -> Invalid:
    named = selection.preferred_clusters or ((selection.cluster_name,) if selection.cluster_name else ())
    where = [name for name in named if name in usable] or sorted(usable)
    there = {key: sizes for key, sizes in kinds.items() if key.cluster in where}
    if not there:
        many = "clusters" if len(where) > 1 else "cluster"
        have = "have" if len(where) > 1 else "has"
        message, next_action = f"{many} {', '.join(where)} {have} no GPUs", "Name a cluster that has GPUs."
        if prefix:
            next_action = CPU_INSTEAD
    else:
        wanted = [f"“{each}”" for each in (selection.gpu_shape, selection.instance_type) if each]
        if selection.memory_gb:
            wanted.append(f"at least {selection.memory_gb} GB a GPU")
        message = f"no node of {', '.join(where)} has {', '.join(wanted) or 'such GPUs'}"
        next_action = f"There are: {_kinds(there)}."
    anything = replace(selection, memory_gb=0)
    unlimited = WorkspacePolicy("")
    too_much = selection.memory_gb and any(matches(anything, key, unlimited) for key in there)
    field = "memoryPerGPU" if too_much else "gpuShape"
    return Invalid(
        message, reason=ReasonCode.NO_SUCH_SHAPE.value, field=prefix + field, next_action=next_action
    )


def _kinds(kinds: Iterable[PoolKey]) -> str:
    shown = sorted(kinds)
    more = f" and {len(shown) - KINDS_SHOWN_MAX} more" if len(shown) > KINDS_SHOWN_MAX else ""
    return (
        ", ".join(
            f"{key.gpu_shape} ({key.instance_type}, {key.memory_gb} GB) on {key.cluster}"
            for key in shown[:KINDS_SHOWN_MAX]
        )
        + more
    )


def _room(sizes: Iterable[int], gpus: int) -> int:
    return sum(size >= gpus for size in sizes)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _renamed_quota(error: QuotaExceeded, prefix: str) -> QuotaExceeded:
    return QuotaExceeded(
        error.message,
        reason=error.reason,
        field=prefix + error.field if error.field else "",
        next_action=error.next_action,
        details=tuple(replace(each, field=prefix + each.field) for each in error.details),
    )
