"""Templates of GPRs, and their bindings to workspaces.

A binding may outlive what it names: a template can be changed, a cluster taken away. So each template
in a binding is shown with a status, worked out when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from inferplane.domain.access import Caller, Role, Verb
from inferplane.domain.errors import Conflict, InferplaneError, Invalid, NotFound, Problem, QuotaExceeded
from inferplane.domain.gpr_template import BoundCluster, GprTemplate, GprTemplateBinding
from inferplane.domain.gpu_request import GpuRequest, request_problems
from inferplane.domain.inventory import Node
from inferplane.domain.names import check_name
from inferplane.domain.workspace import Workspace, WorkspacePolicy
from inferplane.services.context import Platform
from inferplane.services.findings import Findings
from inferplane.services.gpu_drafts import (
    GpuDraft,
    Origin,
    check_placeable,
    raise_invalid,
    request_of,
)
from inferplane.services.idempotency import Ticket, once, recall, remember
from inferplane.services.trail import difference, entry, facts
from inferplane.store.sql import Tx

VALID = "Valid"
BOUND_CLUSTERS_MAX = 50
BOUND_TEMPLATES_MAX = 100

_ANY = WorkspacePolicy("")
_ORIGIN = "template"


@dataclass(frozen=True, slots=True)
class TemplateDraft:
    """What is asked of a template: `wish.cluster` and the rest of its GPUs. None leaves a field alone."""

    name: str
    wish: GpuDraft
    enable_eviction: bool | None = None
    requeue_on_failure: bool | None = None


@dataclass(frozen=True, slots=True)
class BoundClusterDraft:
    """Templates of one cluster."""

    cluster: str
    default_template: str
    templates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BindingDraft:
    """What is asked of a binding. None leaves a field alone."""

    workspace: str
    clusters: tuple[BoundClusterDraft, ...] | None = None
    enable_auto_gpr: bool | None = None


@dataclass(frozen=True, slots=True)
class BindingSeen:
    """A binding with the status of each template in it: VALID or a sentence."""

    binding: GprTemplateBinding
    statuses: Mapping[tuple[str, str], str]  # (cluster, template)

    def status(self, cluster: str, template: str) -> str:
        """Whether that template can be used there."""
        return self.statuses.get((cluster, template), "")


# Templates


async def create_template(
    platform: Platform, caller: Caller, draft: TemplateDraft, ticket: Ticket | None = None
) -> str:
    """Make a template; returns its name. Raises Invalid with all details, AlreadyExists."""
    caller.require(Verb.MANAGE_GPUS)
    return await once(ticket, lambda: _create_template(platform, caller, draft, ticket))


async def _create_template(
    platform: Platform, caller: Caller, draft: TemplateDraft, ticket: Ticket | None
) -> str:
    now = platform.clock()
    async with platform.store.transaction() as tx:
        if (answer := await recall(tx, caller, ticket)) is not None:
            return answer
        check_name(draft.name, "name")
        template = _template(draft, now)
        await _check_cluster(tx, template)
        if len(await tx.list_templates()) >= platform.limits.templates_max:
            raise QuotaExceeded(
                f"there are {platform.limits.templates_max} templates already", reason="TooManyTemplates"
            )
        await tx.insert_template(template)
        await remember(tx, caller, ticket, template.name, now)
        await tx.append_event(
            entry(
                now,
                caller,
                "GprTemplateCreated",
                f"template {template.name} was made",
                after=facts(template),
            )
        )
    return template.name


async def update_template(platform: Platform, caller: Caller, draft: TemplateDraft) -> str:
    """Change what the draft gives. Raises NotFound, Invalid."""
    caller.require(Verb.MANAGE_GPUS)
    now = platform.clock()
    async with platform.store.transaction() as tx:
        present = await tx.get_template(draft.name)
        wanted = _template(_completed(draft, present), now)
        await _check_cluster(tx, wanted)
        if wanted != present:
            await tx.update_template(wanted)
            before, after = difference(present, wanted)
            await tx.append_event(
                entry(
                    now,
                    caller,
                    "GprTemplateChanged",
                    f"template {wanted.name} was changed: {', '.join(sorted(after))}",
                    before=before,
                    after=after,
                )
            )
    return wanted.name


async def get_template(platform: Platform, caller: Caller, name: str) -> GprTemplate:
    """One template. Raises NotFound, also where the caller's workspace is not bound to it."""
    caller.require(Verb.READ_WORKSPACE)
    async with platform.store.read() as tx:
        bound = await _bound_names(tx, caller)
        if bound is not None and name not in bound:
            raise NotFound(
                f"GPR template {name[:80]} does not exist",
                reason="GprTemplateNotFound",
                field="gprTemplateName",
            )
        return await tx.get_template(name)


async def list_templates(platform: Platform, caller: Caller) -> list[GprTemplate]:
    """All for an Owner, those that one's workspace is bound to otherwise; by name."""
    caller.require(Verb.READ_WORKSPACE)
    async with platform.store.read() as tx:
        bound = await _bound_names(tx, caller)
        return [each for each in await tx.list_templates() if bound is None or each.name in bound]


async def delete_template(platform: Platform, caller: Caller, name: str) -> None:
    """Delete a template that no binding names. Raises NotFound, Conflict."""
    caller.require(Verb.MANAGE_GPUS)
    async with platform.store.transaction() as tx:
        template = await tx.get_template(name)
        bound = [each.workspace for each in await tx.list_bindings() if name in _names_in(each)]
        if bound:
            raise Conflict(
                f"template {name} is bound to {', '.join(bound)}",
                reason="GprTemplateBound",
                field="gprTemplateName",
                next_action="Take it out of the bindings first.",
                details=tuple(
                    Problem("workspaceName", "Bound", f"workspace {each} is bound to it") for each in bound
                ),
            )
        await tx.delete_template(name)
        await tx.append_event(
            entry(
                platform.clock(),
                caller,
                "GprTemplateDeleted",
                f"template {name} was deleted",
                before=facts(template),
            )
        )


# Bindings


async def create_binding(platform: Platform, caller: Caller, draft: BindingDraft) -> BindingSeen:
    """Bind templates to a workspace. Raises NotFound, Invalid with all details, AlreadyExists."""
    caller.require(Verb.MANAGE_GPUS)
    async with platform.store.transaction() as tx:
        workspace = await tx.get_workspace(_named(draft.workspace))
        templates = await _templates(tx)
        clusters = _bound(draft.clusters or (), workspace, templates)
        if not clusters:
            raise Invalid("clusters is needed", reason="Missing", field="clusters")
        binding = GprTemplateBinding(workspace.name, clusters, bool(draft.enable_auto_gpr))
        await tx.insert_binding(binding)
        await tx.append_event(
            entry(
                platform.clock(),
                caller,
                "GprTemplateBindingCreated",
                f"templates were bound to workspace {workspace.name}",
                workspace=workspace.name,
                after=facts(binding),
            )
        )
        return await _seen(tx, binding)


async def update_binding(platform: Platform, caller: Caller, draft: BindingDraft) -> BindingSeen:
    """Replace the clusters, where given, and auto-GPR, where given. Raises NotFound, Invalid."""
    caller.require(Verb.MANAGE_GPUS)
    async with platform.store.transaction() as tx:
        present = await tx.get_binding(_named(draft.workspace))
        workspace = await tx.get_workspace(draft.workspace)
        wanted = present
        if draft.clusters is not None:
            wanted = replace(wanted, clusters=_bound(draft.clusters, workspace, await _templates(tx)))
        if draft.enable_auto_gpr is not None:
            wanted = replace(wanted, enable_auto_gpr=draft.enable_auto_gpr)
        if wanted != present:
            await tx.update_binding(wanted)
            before, after = difference(present, wanted)
            await tx.append_event(
                entry(
                    platform.clock(),
                    caller,
                    "GprTemplateBindingChanged",
                    f"the templates of workspace {workspace.name} were changed",
                    workspace=workspace.name,
                    before=before,
                    after=after,
                )
            )
        return await _seen(tx, wanted)


async def get_binding(platform: Platform, caller: Caller, name: str) -> BindingSeen:
    """The binding of a workspace, whose name is also the binding's. Raises NotFound."""
    caller.require(Verb.READ_WORKSPACE, name)
    async with platform.store.read() as tx:
        return await _seen(tx, await tx.get_binding(_named(name, "gprTemplateBindingName")))


async def list_bindings(platform: Platform, caller: Caller) -> list[BindingSeen]:
    """Those of the workspaces that the caller may see, by workspace."""
    caller.require(Verb.READ_WORKSPACE)
    async with platform.store.read() as tx:
        mine = [each for each in await tx.list_bindings() if caller.may_see(each.workspace)]
        return [await _seen(tx, each) for each in mine]


async def delete_binding(platform: Platform, caller: Caller, name: str) -> None:
    """Unbind all templates of a workspace. Raises NotFound."""
    caller.require(Verb.MANAGE_GPUS)
    async with platform.store.transaction() as tx:
        binding = await tx.get_binding(_named(name, "gprTemplateBindingName"))
        await tx.delete_binding(name)
        await tx.append_event(
            entry(
                platform.clock(),
                caller,
                "GprTemplateBindingDeleted",
                f"workspace {name} is bound to no template any more",
                workspace=name,
                before=facts(binding),
            )
        )


# Leaves


def _template(draft: TemplateDraft, now: datetime) -> GprTemplate:
    """Raises Invalid for what no GPR could ask for."""
    wish = draft.wish
    if not wish.cluster:
        raise Invalid("clusterName is needed", reason="Missing", field="clusterName")
    request = request_of(wish, Origin("", _ORIGIN, "", now), _ANY)
    return GprTemplate(
        name=draft.name,
        cluster=wish.cluster,
        gpus_per_node=request.selection.gpus_per_node,
        nodes=request.selection.nodes,
        memory_gb=request.selection.memory_gb,
        gpu_shape=request.selection.gpu_shape,
        instance_type=request.selection.instance_type,
        exit_duration=request.exit_duration,
        priority=request.priority,
        enforce_idle=request.enforce_idle,
        idle_timeout=request.idle_timeout,
        enable_eviction=bool(draft.enable_eviction),
        requeue_on_failure=bool(draft.requeue_on_failure),
    )


def _completed(draft: TemplateDraft, present: GprTemplate) -> TemplateDraft:
    """The draft with what it leaves alone filled in."""
    wish = draft.wish
    idle = present.idle_timeout
    return TemplateDraft(
        name=draft.name,
        wish=replace(
            wish,
            cluster=wish.cluster or present.cluster,
            gpus_per_node=_or(wish.gpus_per_node, present.gpus_per_node),
            nodes=_or(wish.nodes, present.nodes),
            memory_gb=_or(wish.memory_gb, present.memory_gb),
            gpu_shape=wish.gpu_shape or present.gpu_shape,
            instance_type=wish.instance_type or present.instance_type,
            exit_duration=wish.exit_duration or f"{present.exit_duration.total_seconds():.0f}s",
            priority=_or(wish.priority, present.priority),
            enforce_idle=present.enforce_idle if wish.enforce_idle is None else wish.enforce_idle,
            idle_timeout=f"{idle.total_seconds():.0f}s"
            if wish.idle_timeout is None and idle is not None
            else wish.idle_timeout,
        ),
        enable_eviction=present.enable_eviction if draft.enable_eviction is None else draft.enable_eviction,
        requeue_on_failure=present.requeue_on_failure
        if draft.requeue_on_failure is None
        else draft.requeue_on_failure,
    )


def _or(wanted: int | None, present: int) -> int:
    return present if wanted is None else wanted


async def _check_cluster(tx: Tx, template: GprTemplate) -> None:
    known = [each.name for each in await tx.list_clusters()]
    if template.cluster not in known:
        raise Invalid(
            f"cluster “{template.cluster[:80]}” is not registered",
            reason="ClusterNotFound",
            field="clusterName",
            next_action=f"Registered clusters are: {', '.join(known)}.",
        )


async def _templates(tx: Tx) -> dict[str, GprTemplate]:
    return {each.name: each for each in await tx.list_templates()}


async def _bound_names(tx: Tx, caller: Caller) -> frozenset[str] | None:
    """The templates that a caller may know of; None for all."""
    if caller.role is Role.OWNER:
        return None
    bindings = [each for each in await tx.list_bindings() if each.workspace == caller.workspace]
    return frozenset(name for each in bindings for name in _names_in(each))


def _names_in(binding: GprTemplateBinding) -> frozenset[str]:
    return frozenset(name for each in binding.clusters for name in (*each.templates, each.default_template))


def _bound(
    drafts: tuple[BoundClusterDraft, ...], workspace: Workspace, templates: Mapping[str, GprTemplate]
) -> tuple[BoundCluster, ...]:
    """Raises Invalid with every problem."""
    findings = Findings()
    if len(drafts) > BOUND_CLUSTERS_MAX:
        raise Invalid(f"at most {BOUND_CLUSTERS_MAX} clusters", reason="TooMany", field="clusters")
    names = [each.cluster for each in drafts]
    for index, draft in enumerate(drafts):
        path = f"clusters[{index}]"
        if draft.cluster not in workspace.clusters:
            findings.add(
                f"workspace {workspace.name} does not use a cluster named “{draft.cluster[:80]}”",
                field=f"{path}.clusterName",
                reason="ClusterNotInWorkspace",
                next_action=f"Its clusters are: {', '.join(workspace.clusters)}.",
            )
            continue
        if draft.cluster in names[:index]:
            findings.add(
                f"cluster {draft.cluster} is named twice", field=f"{path}.clusterName", reason="Duplicate"
            )
        if len(draft.templates) > BOUND_TEMPLATES_MAX:
            findings.add(
                f"at most {BOUND_TEMPLATES_MAX} templates", field=f"{path}.templates", reason="TooMany"
            )
        wanted = [(name, f"{path}.templates[{i}]") for i, name in enumerate(draft.templates)]
        for name, field in [(draft.default_template, f"{path}.defaultTemplateName"), *wanted]:
            if name not in templates:
                findings.add(
                    f"GPR template “{name[:80]}” does not exist", field=field, reason="GprTemplateNotFound"
                )
            elif templates[name].cluster != draft.cluster:
                findings.add(
                    f"GPR template {name} is for cluster {templates[name].cluster}",
                    field=field,
                    reason="WrongCluster",
                    next_action=f"Name a template for {draft.cluster}.",
                )
    findings.raise_any()
    return tuple(
        BoundCluster(
            each.cluster,
            each.default_template,
            tuple(dict.fromkeys((*each.templates, each.default_template))),
        )
        for each in drafts
    )


async def _seen(tx: Tx, binding: GprTemplateBinding) -> BindingSeen:
    workspace = await tx.get_workspace(binding.workspace)
    policy = await tx.get_policy(binding.workspace)
    templates, nodes = await _templates(tx), await tx.list_nodes()
    return BindingSeen(
        binding,
        {
            (each.cluster, name): template_status(
                templates.get(name), name, each.cluster, workspace, policy, nodes
            )
            for each in binding.clusters
            for name in (*each.templates, each.default_template)
            if name
        },
    )


def template_status(
    template: GprTemplate | None,
    name: str,
    cluster: str,
    workspace: Workspace,
    policy: WorkspacePolicy,
    nodes: Iterable[Node],
) -> str:
    """VALID, or a sentence that says what keeps the template from being used."""
    if template is None:
        return f"template {name} does not exist"
    if cluster not in workspace.clusters:
        return f"workspace {workspace.name} does not use cluster {cluster} any more"
    if template.cluster != cluster:
        return f"template {name} is for cluster {template.cluster}"
    request = request_from(template, Origin("", _ORIGIN, workspace.name, workspace.created_at))
    try:
        raise_invalid(request_problems(request))
        check_placeable(request, nodes, (cluster,), policy)
    except InferplaneError as error:
        return error.message
    return VALID


def request_from(template: GprTemplate, origin: Origin) -> GpuRequest:
    """The GPR that a template stands for."""
    return GpuRequest(
        id=origin.id,
        name=origin.name,
        workspace=origin.workspace,
        selection=template.selection,
        created_at=origin.at,
        queued_at=origin.at,
        exit_duration=template.exit_duration,
        priority=template.priority,
        created_by=origin.created_by,
        idle_timeout=template.idle_timeout,
        enforce_idle=template.enforce_idle,
        enable_eviction=template.enable_eviction,
        requeue_on_failure=template.requeue_on_failure,
        multi_node=template.nodes > 1,
    )


def _named(name: str, field: str = "workspaceName") -> str:
    if not name:
        raise Invalid(f"{field} is needed", reason="Missing", field=field)
    return name
