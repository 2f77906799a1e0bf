"""Every route on one page: parse → service → what the envelope carries.

A handler takes a `Call` and returns a wire struct (which becomes the `data` of the success
envelope), or an answer of its own for what is no envelope. Whatever it raises is turned into the
failure envelope by `app.py`. The descriptions beside the handlers are what `/openapi.json` says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inferplane.api import inputs, views
from inferplane.api.answers import Answer, EventStream
from inferplane.api.call import Call
from inferplane.api.metrics import CONTENT_TYPE
from inferplane.api.streams import first_line, follow, watch
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
from inferplane.engines.port import EngineError
from inferplane.services import api_keys, clusters, endpoints, workspaces
from inferplane.services.endpoints import Filter
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
from inferplane.wire.endpoints import (
    CreateEndpoint,
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
)
from inferplane.wire.platform import Health, Readiness
from inferplane.wire.workspaces import (
    ClusterList,
    DeleteWorkspace,
    KubeConfigRequest,
    UpdateWorkspace,
    WorkspaceList,
    WorkspaceName,
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


async def kube_config(call: Call) -> Nothing:
    """A kubeconfig, on clusters that are Kubernetes."""
    body = call.read(KubeConfigRequest)
    await workspaces.kube_config(call.platform, call.caller, body.workspace_name, body.cluster_name or "")
    return Nothing()


async def list_clusters(call: Call) -> ClusterList:
    """Clusters that the caller may use."""
    found = await clusters.list_clusters(call.platform, call.caller)
    gateway = call.platform.gateway
    return ClusterList(
        tuple(views.cluster_item(each, clusters.problem_of(call.platform, each), gateway) for each in found)
    )


# Inference endpoints


async def create_endpoint(call: Call) -> EndpointCreated | Preflight:
    """Create an endpoint from modelSpec or rawModelSpec; with dryRun=true only say what would happen."""
    draft = inputs.endpoint_draft(call.read(CreateEndpoint))
    if call.flag("dryRun"):
        findings = await endpoints.preflight(call.platform, call.caller, draft)
        return Preflight(draft.name, tuple(views.check_item(each) for each in findings))
    return EndpointCreated(await endpoints.create(call.platform, call.caller, draft, call.ticket()))


async def get_endpoint(call: Call) -> EndpointEnvelope | EndpointList:
    """One endpoint in full; without `endpoint`, the list."""
    name = call.text("endpoint")
    if not name:
        return await list_endpoints(call)
    found, secret_keys = await endpoints.describe(
        call.platform, call.caller, call.workspace(), name, call.text("cluster")
    )
    return EndpointEnvelope(views.endpoint_description(found, secret_keys, call.platform.gateway))


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
    following = call.flag("follow")
    if following:
        call.tools.streams.check_room()
    lines = await endpoints.logs(
        call.platform,
        call.caller,
        call.workspace(),
        call.needed("endpoint"),
        call.text("cluster"),
        replica=call.text("replica"),
        previous=call.flag("previous"),
        follow=following,
        tail_lines=call.number("tail"),
    )
    try:
        if following:
            ready = await first_line(lines)
            return EventStream(follow(call.platform, call.tools.streams, ready, lambda: _still_allowed(call)))
        return LogList(tuple([LogLineItem(line.replica, line.text) async for line in lines]))
    except EngineError as error:
        raise NotFound(
            redacted(error.message),
            reason="NoLog",
            field="replica",
            next_action=error.next_action or "Wait until a model server has been started.",
        ) from error


async def explain_endpoint(call: Call) -> Explanation:
    """What the endpoint is waiting for or why it failed, with evidence and what to do."""
    found, _ = await endpoints.describe(
        call.platform, call.caller, call.workspace(), call.needed("endpoint"), call.text("cluster")
    )
    return views.explanation(found)


async def watch_endpoints(call: Call) -> EventStream:
    """Every endpoint as ADDED, then changes as ADDED, MODIFIED and DELETED, as server-sent events."""
    call.tools.streams.check_room()
    wanted = _filter(call)
    gateway = call.platform.gateway

    def render(endpoint: Any) -> EndpointItem:
        return views.endpoint_item(endpoint, gateway)

    await endpoints.list_endpoints(call.platform, call.caller, wanted, limit=1)  # errors, before it begins
    return EventStream(
        watch(call.platform, call.tools.streams, call.caller, wanted, render, lambda: _still_allowed(call))
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
                field=f"/serving/{each.workspace}/{each.name}",
                reason=item.status,
                message=f"{each.name} in workspace {each.workspace}: host"
                f" {gateway.host_of(each.workspace, each.name)} or path {item.path_endpoint}",
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
    return Answer(call.tools.metrics.render(found), media_type=CONTENT_TYPE)


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
    Route(("POST",), paths.WORKSPACE_KUBE_CONFIG, kube_config, "Get a kubeconfig", KubeConfigRequest, Nothing),
    Route(("GET",), paths.CLUSTER_LIST, list_clusters, "List clusters", data=ClusterList),
    Route(("POST",), paths.ENDPOINT, create_endpoint, "Create an inference endpoint", CreateEndpoint, EndpointCreated, {"dryRun": "true: say what would happen, store nothing"}),
    Route(("GET",), paths.ENDPOINT, get_endpoint, "Describe an inference endpoint", data=EndpointEnvelope, query=_ENDPOINT),
    Route(("DELETE",), paths.ENDPOINT, delete_endpoint, "Delete an inference endpoint", EndpointRef, EndpointDeleted),
    Route(("GET",), paths.ENDPOINT_LIST, list_endpoints, "List inference endpoints", data=EndpointList, query={**_FILTER, **_PAGE}),
    Route(("GET",), paths.ENDPOINT_EVENTS, list_events, "List events", data=EventList, query={**_ENDPOINT, "after": "only events behind this number", "limit": "items a page"}),
    Route(("GET",), paths.ENDPOINT_LOGS, read_logs, "Read logs", data=LogList, query={**_ENDPOINT, "replica": "one replica's log", "previous": "true: the run before this one", "tail": "how many of the last lines", "follow": "true: go on as server-sent events"}),
    Route(("GET",), paths.ENDPOINT_EXPLAIN, explain_endpoint, "Explain an endpoint's state", data=Explanation, query=_ENDPOINT),
    Route(("GET",), paths.ENDPOINT_WATCH, watch_endpoints, "Watch endpoints (server-sent events)", query=_FILTER, media_type="text/event-stream"),
    Route(("POST",), paths.ENDPOINT_STOP, stop_endpoint, "Stop an inference endpoint", EndpointRef, EndpointDeleted),
    Route(("POST",), paths.ENDPOINT_START, start_endpoint, "Start a stopped inference endpoint", EndpointRef, EndpointDeleted),
    Route(("GET", "POST", "PUT", "PATCH", "DELETE"), paths.GATEWAY_UNMATCHED, gateway_unmatched, "Answer what the gateway could not match", token=False),
    Route(("GET",), paths.HEALTH, health, "Whether the process answers", data=Health, token=False),
    Route(("GET",), paths.READY, ready, "Whether every part is ready", data=Readiness, token=False),
    Route(("GET",), paths.METRICS, metrics, "Metrics", token=False, media_type="text/plain"),
)  # fmt: skip
