"""Every route on one page: parse → service → what the envelope carries.

A handler takes a `Call` and returns a wire struct (which becomes the `data` of the success
envelope), or an answer of its own for what is no envelope. Whatever it raises is turned into the
failure envelope by `app.py`. The descriptions beside the handlers are what `/openapi.json` says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inferplane.api import access_views, cluster_views, gpu_views, inputs, traffic_views, views
from inferplane.api.answers import Answer, EventStream
from inferplane.api.call import Call
from inferplane.api.metrics import CONTENT_TYPE
from inferplane.api.streams import first_line, follow, watch
from inferplane.api.ways import ingress_of
from inferplane.domain.errors import (
    InferplaneError,
    Invalid,
    Malformed,
    NotFound,
    Problem,
    Unauthenticated,
    Unavailable,
)
from inferplane.domain.storage_uri import redacted
from inferplane.engines.port import EngineError, LogLine
from inferplane.services import (
    api_keys,
    audit,
    clusters,
    endpoint_changes,
    endpoint_keys,
    endpoints,
    gpu_requests,
    inventory,
    kube_configs,
    policies,
    templates,
    traffic,
    usage,
    workspaces,
)
from inferplane.services.endpoints import Filter
from inferplane.services.names import UNKNOWN
from inferplane.wire import paths
from inferplane.wire.access import (
    ApiKeyCreated,
    ApiKeyItem,
    ApiKeyList,
    AuthRequest,
    AuthToken,
    CreateApiKey,
    DeleteApiKey,
)
from inferplane.wire.audit import AuditList
from inferplane.wire.endpoint_keys import (
    CreateEndpointKey,
    EndpointKeyCreated,
    EndpointKeyList,
    EndpointKeyRef,
)
from inferplane.wire.endpoints import (
    CreateEndpoint,
    EndpointChanged,
    EndpointCreated,
    EndpointDeleted,
    EndpointEnvelope,
    EndpointItem,
    EndpointList,
    EndpointRef,
    EventList,
    Explanation,
    LogLineItem,
    LogList,
    Preflight,
    RollbackRef,
    UpdateEndpoint,
)
from inferplane.wire.gpus import (
    BindingBody,
    BindingItem,
    BindingList,
    BindingName,
    BindingWritten,
    CreateGpr,
    GprCreated,
    GprItem,
    GprList,
    GprRef,
    InventoryList,
    ShapeList,
    TemplateBody,
    TemplateItem,
    TemplateList,
    TemplateName,
    UpdateGpr,
    WaitTimeList,
)
from inferplane.wire.platform import Health, Readiness
from inferplane.wire.policies import PolicyBody, PolicyEnvelope, PolicyList
from inferplane.wire.traffic import EndpointMetrics
from inferplane.wire.usage import UsageList
from inferplane.wire.workspaces import (
    ClusterList,
    ClusterRef,
    ClusterRegistered,
    DeleteWorkspace,
    KubeConfig,
    KubeConfigRequest,
    UpdateCluster,
    UpdateWorkspace,
    WorkspaceList,
    WorkspaceName,
    WriteCluster,
    WriteWorkspace,
)

UNMATCHED_LISTED_MAX = 50
SHOWN_CHARACTERS_MAX = 200

Handler = Callable[[Call], Awaitable[Any]]


class Nothing(msgspec.Struct, frozen=True):
    """Data with no keys: `{}`."""


@dataclass(frozen=True, slots=True)
class Route:
    """One route, and what its documentation says.

    `token` tells whether a bearer token is needed, `reads_body` whether the body is read at all.
    """

    methods: tuple[str, ...]
    path: str
    handler: Handler
    summary: str
    body: type[msgspec.Struct] | None = None
    data: type[msgspec.Struct] | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    token: bool = True
    media_type: str = "application/json"

    @property
    def reads_body(self) -> bool:
        """Only routes with a body read it; elsewhere whatever is sent is let pass unread."""
        return self.body is not None


# Access


async def authenticate(call: Call) -> AuthToken:
    """Exchange an API key for a token that is valid for 900 seconds."""
    try:
        body = call.read(AuthRequest)
    except Invalid as error:  # a malformed request for a token is 400, whatever is wrong with it
        raise Malformed(
            error.message, reason=error.reason, field=error.field, details=error.details
        ) from error
    return AuthToken(await call.tools.authenticator.exchange(body.api_key))


async def create_api_key(call: Call) -> ApiKeyCreated:
    """Make a key. Its value is in this answer and nowhere else."""
    draft = inputs.key_draft(call.read(CreateApiKey))
    secrets = await call.tools.authenticator.secrets()
    return ApiKeyCreated(await api_keys.create(call.platform, secrets, call.caller, draft, call.ticket()))


async def delete_api_key(call: Call) -> Nothing:
    """Delete a key by its value or id; its tokens end at once."""
    body = call.read(DeleteApiKey)
    secrets = await call.tools.authenticator.secrets()
    await api_keys.delete(call.platform, secrets, call.caller, body.api_key)
    return Nothing()


async def list_api_keys(call: Call) -> ApiKeyList:
    """Keys, with their values masked."""
    keys = await api_keys.list_keys(call.platform, call.caller, call.text("workspaceName"))
    items: tuple[ApiKeyItem, ...] = tuple(views.api_key_item(key) for key in keys)
    return ApiKeyList(items, items)


# Workspaces and clusters


async def create_workspace(call: Call) -> WorkspaceName:
    """Make a workspace on registered clusters."""
    draft = inputs.workspace_draft(call.read(WriteWorkspace))
    return WorkspaceName(await workspaces.create(call.platform, call.caller, draft, call.ticket()))


async def update_workspace(call: Call) -> WorkspaceName:
    """Replace a workspace's clusters and namespaces."""
    draft = inputs.workspace_draft(call.read(UpdateWorkspace))
    return WorkspaceName(await workspaces.update(call.platform, call.caller, draft))


async def delete_workspace(call: Call) -> Nothing:
    """Delete a workspace; with force, everything in it first."""
    body = call.read(DeleteWorkspace)
    await workspaces.delete(call.platform, call.caller, body.workspace_name, force=bool(body.force))
    return Nothing()


async def list_workspaces(call: Call) -> WorkspaceList:
    """Workspaces that the caller may see."""
    found = await workspaces.list_workspaces(call.platform, call.caller)
    return WorkspaceList(tuple(views.workspace_item(each) for each in found))


async def kube_config(call: Call) -> KubeConfig:
    """A kubeconfig, on clusters that are Kubernetes."""
    body = call.read(KubeConfigRequest)
    return KubeConfig(
        await kube_configs.kube_config(
            call.platform, call.caller, body.workspace_name, body.cluster_name or ""
        )
    )


async def list_clusters(call: Call) -> ClusterList:
    """Clusters that the caller may use."""
    found = await clusters.list_clusters(call.platform, call.caller)
    gateway, version = call.platform.gateway, call.tools.version
    return ClusterList(tuple(cluster_views.cluster_item(each, gateway, version) for each in found))


async def register_cluster(call: Call) -> ClusterRegistered:
    """Make a cluster known. One of Kubernetes is looked at first, and works at once."""
    draft = inputs.cluster_draft(call.read(WriteCluster))
    report = await clusters.register(call.platform, call.caller, draft, dry_run=call.flag("dryRun"))
    return ClusterRegistered(draft.name, cluster_views.report_item(report))


async def change_cluster(call: Call) -> ClusterRegistered:
    """Other credentials, domain, ingress or drift for a cluster of Kubernetes."""
    draft = inputs.cluster_draft(call.read(UpdateCluster))
    report = await clusters.change(call.platform, call.caller, draft)
    return ClusterRegistered(draft.name, cluster_views.report_item(report))


async def check_cluster(call: Call) -> ClusterRegistered:
    """Look at a cluster of Kubernetes now."""
    name = call.read(ClusterRef).name
    report = await clusters.check(call.platform, call.caller, name)
    return ClusterRegistered(name, cluster_views.report_item(report))


async def delete_cluster(call: Call) -> Nothing:
    """Forget a cluster that nobody uses."""
    await clusters.unregister(call.platform, call.caller, call.read(ClusterRef).name)
    return Nothing()


async def list_policies(call: Call) -> PolicyList:
    """What each workspace is allowed, for the workspaces that the caller may see."""
    found = await policies.list_policies(call.platform, call.caller)
    return PolicyList(tuple(gpu_views.policy_item(each) for each in found))


async def get_policy(call: Call) -> PolicyEnvelope:
    """What one workspace is allowed."""
    found = await policies.get(call.platform, call.caller, call.needed("workspace"))
    return PolicyEnvelope(gpu_views.policy_item(found))


async def change_policy(call: Call) -> PolicyEnvelope:
    """Change what a workspace is allowed; null leaves a field alone, -1, "" and [] take a limit away."""
    draft = inputs.policy_draft(call.read(PolicyBody))
    found = await policies.change(call.platform, call.caller, call.needed("workspace"), draft)
    return PolicyEnvelope(gpu_views.policy_item(found))


# GPUs


async def list_inventory(call: Call) -> InventoryList:
    """Every node with GPUs, and who holds them."""
    return gpu_views.inventory_list(await inventory.list_nodes(call.platform, call.caller), call.caller)


async def list_shapes(call: Call) -> ShapeList:
    """The kinds of nodes that a workspace can ask for."""
    found = await inventory.list_shapes(call.platform, call.caller, call.workspace())
    return ShapeList(tuple(gpu_views.shape_item(each) for each in found))


async def create_gpr(call: Call) -> GprCreated:
    """Ask for GPUs; the request is queued, and explains its wait."""
    body = call.read(CreateGpr)
    gpr_id = await gpu_requests.create(
        call.platform,
        call.caller,
        body.slice_name,
        body.gpr_name or "",
        inputs.gpr_draft(body),
        call.ticket(),
    )
    return GprCreated(gpr_id)


async def get_gpr(call: Call) -> GprItem:
    """One GPU request: its place in line, what it holds, how it ended."""
    seen = await gpu_requests.get(call.platform, call.caller, call.needed("gprId"))
    return gpu_views.gpr_item(seen, call.platform.clock())


async def list_gprs(call: Call) -> GprList:
    """A workspace's GPU requests, oldest first, ended ones too."""
    found = await gpu_requests.list_requests(call.platform, call.caller, call.workspace())
    now = call.platform.clock()
    return GprList(tuple(gpu_views.gpr_item(each, now) for each in found))


async def change_gpr(call: Call) -> Nothing:
    """Rename or reprioritise what waits, extend or release what runs."""
    body = call.read(UpdateGpr)
    await gpu_requests.change(call.platform, call.caller, body.gpr_id, inputs.gpr_change(body))
    return Nothing()


async def delete_gpr(call: Call) -> Nothing:
    """Delete a GPU request that waits or has ended."""
    await gpu_requests.delete(call.platform, call.caller, call.read(GprRef).gpr_id)
    return Nothing()


async def gpr_wait_time(call: Call) -> WaitTimeList:
    """How long a request would wait on each kind of node that would do; nothing is stored."""
    body = call.read(CreateGpr)
    found = await gpu_requests.wait_times(
        call.platform,
        call.caller,
        body.slice_name,
        body.gpr_name or body.request_name or "",
        inputs.gpr_draft(body),
    )
    now = call.platform.clock()
    return WaitTimeList(tuple(gpu_views.wait_time_item(each, now) for each in found))


async def create_template(call: Call) -> TemplateName:
    """Prepare a GPU request under a name."""
    draft = inputs.template_draft(call.read(TemplateBody))
    return TemplateName(await templates.create_template(call.platform, call.caller, draft, call.ticket()))


async def change_template(call: Call) -> TemplateName:
    """Change a template; what is absent stays as it is."""
    draft = inputs.template_draft(call.read(TemplateBody))
    return TemplateName(await templates.update_template(call.platform, call.caller, draft))


async def get_template(call: Call) -> TemplateItem:
    """One template."""
    name = call.needed("gprTemplateName")
    return gpu_views.template_item(await templates.get_template(call.platform, call.caller, name))


async def list_templates(call: Call) -> TemplateList:
    """Templates that the caller may use."""
    found = await templates.list_templates(call.platform, call.caller)
    return TemplateList(tuple(gpu_views.template_item(each) for each in found))


async def delete_template(call: Call) -> Nothing:
    """Delete a template that no binding names."""
    name = call.read(TemplateName).gpr_template_name
    await templates.delete_template(call.platform, call.caller, name)
    return Nothing()


async def create_binding(call: Call) -> BindingWritten:
    """Give a workspace templates by cluster, one of them the default."""
    draft = inputs.binding_draft(call.read(BindingBody))
    return gpu_views.binding_written(await templates.create_binding(call.platform, call.caller, draft))


async def change_binding(call: Call) -> BindingWritten:
    """Replace a workspace's templates, or switch auto-GPR."""
    draft = inputs.binding_draft(call.read(BindingBody))
    return gpu_views.binding_written(await templates.update_binding(call.platform, call.caller, draft))


async def get_binding(call: Call) -> BindingItem:
    """A workspace's templates, and whether each can be used."""
    name = call.text("gprTemplateBindingName") or call.caller.workspace
    return gpu_views.binding_item(await templates.get_binding(call.platform, call.caller, name))


async def list_bindings(call: Call) -> BindingList:
    """The templates of every workspace that the caller may see."""
    found = await templates.list_bindings(call.platform, call.caller)
    return BindingList(tuple(gpu_views.binding_item(each) for each in found))


async def delete_binding(call: Call) -> Nothing:
    """Take a workspace's templates away."""
    name = call.read(BindingName).gpr_template_binding_name
    await templates.delete_binding(call.platform, call.caller, name)
    return Nothing()


async def list_audit(call: Call) -> AuditList:
    """Who did what to what, when, with which key, from what to what."""
    wanted = audit.AuditFilter(
        actor=call.text("actor"),
        workspace=call.text("workspace"),
        kind=call.text("kind"),
        since=call.text("since"),
        until=call.text("until"),
    )
    page = await audit.list_audit(
        call.platform, call.caller, wanted, after=call.number("after"), limit=call.number("limit")
    )
    return AuditList(tuple(views.audit_item(each) for each in page.events), page.continue_from)


# Endpoint keys and usage


async def create_endpoint_key(call: Call) -> EndpointKeyCreated:
    """Make a key for endpoints. Its value is in this answer and nowhere else."""
    draft = inputs.endpoint_key_draft(call.read(CreateEndpointKey))
    made = await endpoint_keys.create(call.platform, call.caller, draft, call.ticket())
    return EndpointKeyCreated(made.value, made.key_id)


async def revoke_endpoint_key(call: Call) -> Nothing:
    """Have an endpoint key refused from now on."""
    await endpoint_keys.revoke(call.platform, call.caller, call.read(EndpointKeyRef).key_id)
    return Nothing()


async def list_endpoint_keys(call: Call) -> EndpointKeyList:
    """A workspace's endpoint keys, without their values."""
    found = await endpoint_keys.list_keys(call.platform, call.caller, call.workspace())
    now = call.platform.clock()
    return EndpointKeyList(tuple(access_views.endpoint_key_item(each, now) for each in found))


async def read_usage(call: Call) -> UsageList | Answer:
    """Requests, errors, rows, tokens and seconds by hour or day, endpoint and key; as JSON or CSV."""
    question = usage.UsageQuestion(
        workspace=call.workspace(),
        endpoint=call.text("endpoint"),
        key_id=call.text("keyId"),
        by=call.text("by"),
        since=call.text("since"),
        until=call.text("until"),
    )
    wanted = call.text("format").lower() or "json"
    if wanted not in {"json", "csv"}:
        raise Invalid("format is json or csv", reason="OutOfRange", field="format")
    found = await usage.report(call.platform, call.caller, question)
    if wanted == "csv":
        return Answer(access_views.usage_csv(found), media_type=access_views.CSV)
    return access_views.usage_list(found)


# Inference endpoints


async def create_endpoint(call: Call) -> EndpointCreated | Preflight:
    """Create an endpoint from modelSpec or rawModelSpec; with dryRun=true only say what would happen."""
    draft = inputs.endpoint_draft(call.read(CreateEndpoint))
    if call.flag("dryRun"):
        findings = await endpoints.preflight(call.platform, call.caller, draft)
        return Preflight(draft.name, tuple(views.check_item(each) for each in findings))
    made = await endpoints.create(call.platform, call.caller, draft, call.ticket())
    return EndpointCreated(made.name, made.warnings, made.access.value)


async def get_endpoint(call: Call) -> EndpointEnvelope | EndpointList:
    """One endpoint in full; without `endpoint`, the list."""
    name = call.text("endpoint")
    if not name:
        return await list_endpoints(call)
    found = await endpoints.describe(call.platform, call.caller, call.workspace(), name, call.text("cluster"))
    name_finding = UNKNOWN
    if call.platform.names is not None:
        name_finding = await call.platform.names.check(*ingress_of(found.endpoint, found.ingress_address))
    return EndpointEnvelope(
        views.endpoint_description(
            found.endpoint,
            found.secret_keys,
            call.platform.gateway,
            found.gpu_requests,
            ingress_address=found.ingress_address,
            name=name_finding,
        )
    )


async def list_endpoints(call: Call) -> EndpointList:
    """Endpoints by workspace, name and cluster, one page at a time."""
    page = await endpoints.list_endpoints(
        call.platform,
        call.caller,
        _filter(call),
        limit=call.number("limit"),
        continue_from=call.text("continue"),
    )
    return EndpointList(
        tuple(views.endpoint_item(each, call.platform.gateway) for each in page.endpoints), page.continue_from
    )


async def update_endpoint(call: Call) -> EndpointChanged | Preflight:
    """Change what is given. Another model becomes a revision, which takes over as asked once it answers.

    With dryRun=true only say what would happen.
    """
    draft = inputs.change_draft(call.read(UpdateEndpoint))
    if call.flag("dryRun"):
        name, findings = await endpoint_changes.preflight(call.platform, call.caller, draft)
        return Preflight(name, tuple(views.check_item(each) for each in findings))
    return _changed(await endpoint_changes.update(call.platform, call.caller, draft, call.ticket()))


async def promote_endpoint(call: Call) -> EndpointChanged:
    """Give the revision on its way all requests."""
    place = inputs.place_of(call.read(EndpointRef))
    return _changed(await endpoint_changes.promote(call.platform, call.caller, place, call.ticket()))


async def roll_back_endpoint(call: Call) -> EndpointChanged:
    """Have the revision before serve again, or the one that is named."""
    body = call.read(RollbackRef)
    place = inputs.place_of(body)
    return _changed(
        await endpoint_changes.roll_back(call.platform, call.caller, place, body.revision, call.ticket())
    )


def _changed(made: endpoint_changes.Changed) -> EndpointChanged:
    return EndpointChanged(made.endpoint, made.revision, made.warnings, made.without_revision)


async def delete_endpoint(call: Call) -> EndpointDeleted:
    """Delete an endpoint; asking again while it is going is harmless."""
    place = inputs.place_of(call.read(EndpointRef))
    return EndpointDeleted(await endpoints.delete(call.platform, call.caller, *place))


async def stop_endpoint(call: Call) -> EndpointDeleted:
    """Have no replica run until the endpoint is started again."""
    place = inputs.place_of(call.read(EndpointRef))
    return EndpointDeleted(await endpoints.stop(call.platform, call.caller, *place))


async def start_endpoint(call: Call) -> EndpointDeleted:
    """Start a stopped endpoint."""
    place = inputs.place_of(call.read(EndpointRef))
    return EndpointDeleted(await endpoints.start(call.platform, call.caller, *place))


async def list_events(call: Call) -> EventList:
    """What happened, oldest first: to one endpoint, or in a whole workspace."""
    page = await endpoints.list_events(
        call.platform,
        call.caller,
        call.workspace(),
        call.text("endpoint"),
        call.text("cluster"),
        after=call.number("after"),
        limit=call.number("limit"),
    )
    return EventList(tuple(views.event_item(each) for each in page.events), page.continue_from)


async def read_logs(call: Call) -> LogList | EventStream:
    """The last lines of the model servers; with follow=true, new ones as server-sent events."""
    try:
        if call.flag("follow"):
            return await _followed_logs(call)
        lines = await _log_lines(call, follow=False)
        return LogList(tuple([LogLineItem(line.replica, line.text) async for line in lines]))
    except EngineError as error:
        raise NotFound(
            redacted(error.message),
            reason="NoLog",
            field="replica",
            next_action=error.next_action or "Wait until a model server has been started.",
        ) from error


async def _followed_logs(call: Call) -> EventStream:
    async with AsyncExitStack() as held:
        held.enter_context(call.tools.streams.place())
        lines = await held.enter_async_context(first_line(await _log_lines(call, follow=True)))
        return EventStream(
            follow(call.platform, call.tools.streams, lines, lambda: _still_allowed(call)), held.pop_all()
        )


async def _log_lines(call: Call, *, follow: bool) -> AsyncIterator[LogLine]:
    return await endpoints.logs(
        call.platform,
        call.caller,
        call.workspace(),
        call.needed("endpoint"),
        call.text("cluster"),
        replica=call.text("replica"),
        previous=call.flag("previous"),
        follow=follow,
        tail_lines=call.number("tail"),
    )


async def explain_endpoint(call: Call) -> Explanation:
    """What the endpoint is waiting for or why it failed, with evidence and what to do."""
    found, decided = await endpoints.explain(
        call.platform, call.caller, call.workspace(), call.needed("endpoint"), call.text("cluster")
    )
    return views.explanation(found, decided)


async def endpoint_metrics(call: Call) -> EndpointMetrics:
    """Requests, errors, times and concurrency of the last hour, by revision."""
    place = call.workspace(), call.needed("endpoint"), call.text("cluster")
    found = await traffic.series(call.platform, call.caller, place, call.number("minutes"))
    return traffic_views.endpoint_metrics(found)


async def watch_endpoints(call: Call) -> EventStream:
    """Every endpoint as ADDED, then changes as ADDED, MODIFIED and DELETED, as server-sent events."""
    wanted = _filter(call)
    gateway = call.platform.gateway

    def render(endpoint: Any) -> EndpointItem:
        return views.endpoint_item(endpoint, gateway)

    async with AsyncExitStack() as held:
        held.enter_context(call.tools.streams.place())
        await endpoints.list_endpoints(
            call.platform, call.caller, wanted, limit=1
        )  # errors, before it begins
        return EventStream(
            watch(
                call.platform, call.tools.streams, call.caller, wanted, render, lambda: _still_allowed(call)
            ),
            held.pop_all(),
        )


async def gateway_unmatched(call: Call) -> Any:
    """Where the gateway sends requests that match no endpoint and carry a token.

    Answers 404 with the endpoints that the token's bearer may see; anybody else learns nothing.
    """
    host = call.headers.get("x-inferplane-original-host", "") or call.headers.get("host", "")
    path = call.headers.get("x-envoy-original-path", "") or call.headers.get("x-inferplane-original-path", "")
    message = f"no endpoint is served at {_shown(host)}{_shown(path.partition('?')[0])}"
    try:
        key = await call.tools.authenticator.key(call.headers)
    except Unauthenticated:
        raise NotFound("no endpoint is served at this host and path", reason="NoSuchRoute") from None
    found = await endpoints.visible(call.platform, key.role, key.workspace, UNMATCHED_LISTED_MAX)
    gateway = call.platform.gateway
    raise NotFound(
        message,
        reason="NoSuchRoute",
        next_action="Use one of the addresses in details." if found else "Create an endpoint first.",
        details=tuple(
            Problem(
                field=gateway.path_of(each.workspace, each.name, each.host_cluster),
                reason=item.status,
                message=f"{each.name} in workspace {each.workspace}: host"
                f" {gateway.host_of(each.workspace, each.name, each.host_cluster)} or path {item.path_endpoint}",
            )
            for each in found
            for item in (views.endpoint_item(each, gateway),)
        ),
    )


# The platform itself


async def health(call: Call) -> Health:
    """The process answers."""
    return Health("alive", call.tools.version)


async def ready(call: Call) -> Readiness:
    """Whether every part is ready; if not, 503 naming what is not."""
    parts = dict(call.tools.readiness())
    parts["store"] = parts.get("store") or await _store_problem(call)
    unready = {name: problem for name, problem in sorted(parts.items()) if problem}
    if unready:
        raise Unavailable(
            "not ready: " + "; ".join(f"{name}: {problem}" for name, problem in unready.items()),
            reason="NotReady",
            details=tuple(Problem(name, "NotReady", problem) for name, problem in unready.items()),
        )
    return Readiness("ready", dict.fromkeys(sorted(parts), "ready"))


async def metrics(call: Call) -> Answer:
    """Counters and gauges in Prometheus' text format."""
    async with call.platform.store.read() as tx:
        found = await tx.list_endpoints()
    text = await traffic.counters_text(call.platform)
    return Answer(call.tools.metrics.render(found) + text.encode(), media_type=CONTENT_TYPE)


# Leaves


def _filter(call: Call) -> Filter:
    return Filter(
        workspace=call.workspace(),
        status=call.text("status"),
        cluster=call.text("cluster"),
        model_format=call.text("modelName"),
    )


async def _still_allowed(call: Call) -> bool:
    """Whether the caller's key still exists: a stream outlives its token, never its key."""
    assert call.key is not None
    return await api_keys.is_alive(call.platform, call.key.id)


async def _store_problem(call: Call) -> str:
    try:
        async with call.platform.store.read() as tx:
            await tx.last_event_seq()
    except InferplaneError as error:
        return error.message
    return ""


def _shown(text: str) -> str:
    """A stranger's host or path, fit to be quoted."""
    return "".join(character for character in text if character.isprintable())[:SHOWN_CHARACTERS_MAX]


_WORKSPACE = {"workspace": "name of the workspace"}
_ENDPOINT = {**_WORKSPACE, "endpoint": "name of the endpoint", "cluster": "its cluster, if there are several"}
_FILTER = {
    **_WORKSPACE,
    "status": "only endpoints with this status",
    "cluster": "only endpoints on this cluster",
    "modelName": "only models of this format",
}
_SLICE = {"sliceName": "name of the workspace"}
_AUDIT = {
    "actor": "only what was done with keys of this name, or by this part of the platform",
    "workspace": "only what belongs to this workspace",
    "kind": "only entries of this kind",
    "since": "only entries from this moment on",
    "until": "only entries before this moment",
    "after": "only entries behind this number",
    "limit": "items a page",
}
_USAGE = {
    **_WORKSPACE,
    "endpoint": "only of this endpoint",
    "keyId": "only with this key; none: only without a valid key",
    "by": "hour or day (UTC)",
    "since": "only hours from this moment on",
    "until": "only hours that begin before this moment",
    "format": "json or csv",
}
_PAGE = {"limit": "items a page", "continue": "the continue value of the page before"}

ROUTES: tuple[Route, ...] = (
    Route(("POST",), paths.AUTH, authenticate, "Exchange an API key for a token", AuthRequest, AuthToken, token=False),
    Route(("POST",), paths.API_KEY, create_api_key, "Create an API key", CreateApiKey, ApiKeyCreated),
    Route(("DELETE",), paths.API_KEY, delete_api_key, "Delete an API key", DeleteApiKey, Nothing),
    Route(("GET",), paths.API_KEY_LIST, list_api_keys, "List API keys", data=ApiKeyList, query={"workspaceName": "only keys of this workspace"}),
    Route(("POST",), paths.WORKSPACE, create_workspace, "Create a workspace", WriteWorkspace, WorkspaceName),
    Route(("PUT",), paths.WORKSPACE, update_workspace, "Change a workspace", UpdateWorkspace, WorkspaceName),
    Route(("DELETE",), paths.WORKSPACE, delete_workspace, "Delete a workspace", DeleteWorkspace, Nothing),
    Route(("GET",), paths.WORKSPACE_LIST, list_workspaces, "List workspaces", data=WorkspaceList),
    Route(("POST",), paths.WORKSPACE_KUBE_CONFIG, kube_config, "Get a kubeconfig", KubeConfigRequest, KubeConfig),
    Route(("POST",), paths.CLUSTER, register_cluster, "Register a cluster", WriteCluster, ClusterRegistered, {"dryRun": "true: only look at it, store nothing"}),
    Route(("PUT",), paths.CLUSTER, change_cluster, "Change a cluster of Kubernetes", UpdateCluster, ClusterRegistered),
    Route(("POST",), paths.CLUSTER_CHECK, check_cluster, "Check a cluster of Kubernetes", ClusterRef, ClusterRegistered),
    Route(("DELETE",), paths.CLUSTER, delete_cluster, "Forget a cluster", ClusterRef, Nothing),
    Route(("GET",), paths.CLUSTER_LIST, list_clusters, "List clusters", data=ClusterList),
    Route(("GET",), paths.POLICIES, list_policies, "List workspace policies", data=PolicyList),
    Route(("GET",), paths.POLICY, get_policy, "Get a workspace's policy", data=PolicyEnvelope),
    Route(("PUT",), paths.POLICY, change_policy, "Change a workspace's policy", PolicyBody, PolicyEnvelope),
    Route(("GET",), paths.INVENTORY_LIST, list_inventory, "List nodes with GPUs", data=InventoryList),
    Route(("GET",), paths.INVENTORY, list_shapes, "List the kinds of nodes a workspace can ask for", data=ShapeList, query=_SLICE),
    Route(("POST",), paths.GPR, create_gpr, "Ask for GPUs", CreateGpr, GprCreated),
    Route(("GET",), paths.GPR, get_gpr, "Describe a GPU request", data=GprItem, query={"gprId": "its id"}),
    Route(("PUT",), paths.GPR, change_gpr, "Change or release a GPU request", UpdateGpr, Nothing),
    Route(("DELETE",), paths.GPR, delete_gpr, "Delete a GPU request", GprRef, Nothing),
    Route(("GET",), paths.GPR_LIST, list_gprs, "List GPU requests", data=GprList, query=_SLICE),
    Route(("POST",), paths.GPR_WAIT_TIME, gpr_wait_time, "Estimate the wait for GPUs", CreateGpr, WaitTimeList),
    Route(("POST",), paths.TEMPLATE, create_template, "Create a GPR template", TemplateBody, TemplateName),
    Route(("GET",), paths.TEMPLATE, get_template, "Get a GPR template", data=TemplateItem, query={"gprTemplateName": "its name"}),
    Route(("PUT",), paths.TEMPLATE, change_template, "Change a GPR template", TemplateBody, TemplateName),
    Route(("DELETE",), paths.TEMPLATE, delete_template, "Delete a GPR template", TemplateName, Nothing),
    Route(("GET",), paths.TEMPLATE_LIST, list_templates, "List GPR templates", data=TemplateList),
    Route(("POST",), paths.BINDING, create_binding, "Bind templates to a workspace", BindingBody, BindingWritten),
    Route(("GET",), paths.BINDING, get_binding, "Get a workspace's templates", data=BindingItem, query={"gprTemplateBindingName": "the workspace's name"}),
    Route(("PUT",), paths.BINDING, change_binding, "Change a workspace's templates", BindingBody, BindingWritten),
    Route(("DELETE",), paths.BINDING, delete_binding, "Unbind a workspace's templates", BindingName, Nothing),
    Route(("GET",), paths.BINDING_LIST, list_bindings, "List template bindings", data=BindingList),
    Route(("GET",), paths.AUDIT, list_audit, "Read the audit log", data=AuditList, query=_AUDIT),
    Route(("POST",), paths.ENDPOINT_KEY, create_endpoint_key, "Create an endpoint key", CreateEndpointKey, EndpointKeyCreated),
    Route(("DELETE",), paths.ENDPOINT_KEY, revoke_endpoint_key, "Revoke an endpoint key", EndpointKeyRef, Nothing),
    Route(("GET",), paths.ENDPOINT_KEY_LIST, list_endpoint_keys, "List endpoint keys", data=EndpointKeyList, query=_WORKSPACE),
    Route(("GET",), paths.USAGE, read_usage, "Read usage by hour or day, endpoint and key", data=UsageList, query=_USAGE),
    Route(("POST",), paths.ENDPOINT, create_endpoint, "Create an inference endpoint", CreateEndpoint, EndpointCreated, {"dryRun": "true: say what would happen, store nothing"}),
    Route(("GET",), paths.ENDPOINT, get_endpoint, "Describe an inference endpoint", data=EndpointEnvelope, query=_ENDPOINT),
    Route(("PATCH",), paths.ENDPOINT, update_endpoint, "Change an inference endpoint", UpdateEndpoint, EndpointChanged, {"dryRun": "true: say what would happen, store nothing"}),
    Route(("DELETE",), paths.ENDPOINT, delete_endpoint, "Delete an inference endpoint", EndpointRef, EndpointDeleted),
    Route(("GET",), paths.ENDPOINT_LIST, list_endpoints, "List inference endpoints", data=EndpointList, query={**_FILTER, **_PAGE}),
    Route(("GET",), paths.ENDPOINT_EVENTS, list_events, "List events", data=EventList, query={**_ENDPOINT, "after": "only events behind this number", "limit": "items a page"}),
    Route(("GET",), paths.ENDPOINT_LOGS, read_logs, "Read logs", data=LogList, query={**_ENDPOINT, "replica": "one replica's log", "previous": "true: the run before this one", "tail": "how many of the last lines", "follow": "true: go on as server-sent events"}),
    Route(("GET",), paths.ENDPOINT_EXPLAIN, explain_endpoint, "Explain an endpoint's state", data=Explanation, query=_ENDPOINT),
    Route(("GET",), paths.ENDPOINT_METRICS, endpoint_metrics, "What the gateway saw of an endpoint", data=EndpointMetrics, query={**_ENDPOINT, "minutes": "only so many of the last minutes, 60 at most"}),
    Route(("GET",), paths.ENDPOINT_WATCH, watch_endpoints, "Watch endpoints (server-sent events)", query=_FILTER, media_type="text/event-stream"),
    Route(("POST",), paths.ENDPOINT_STOP, stop_endpoint, "Stop an inference endpoint", EndpointRef, EndpointDeleted),
    Route(("POST",), paths.ENDPOINT_START, start_endpoint, "Start a stopped inference endpoint", EndpointRef, EndpointDeleted),
    Route(("POST",), paths.ENDPOINT_PROMOTE, promote_endpoint, "Give the newest revision all requests", EndpointRef, EndpointChanged),
    Route(("POST",), paths.ENDPOINT_ROLLBACK, roll_back_endpoint, "Have an earlier revision serve again", RollbackRef, EndpointChanged),
    Route(("GET", "POST", "PUT", "PATCH", "DELETE"), paths.GATEWAY_UNMATCHED, gateway_unmatched, "Answer what the gateway could not match", token=False),
    Route(("GET",), paths.HEALTH, health, "Whether the process answers", data=Health, token=False),
    Route(("GET",), paths.READY, ready, "Whether every part is ready", data=Readiness, token=False),
    Route(("GET",), paths.METRICS, metrics, "Metrics", token=False, media_type="text/plain"),
)  # fmt: skip
