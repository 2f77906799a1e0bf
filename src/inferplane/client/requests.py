"""What is sent and how the answer is read. Pure: a call is a value, and nothing here talks to anyone.

A `Request` carries everything about one HTTP exchange: where it goes, what it says, whether it may be
sent a second time, and the function that turns the answer into a value or raises one of `errors`.
What to send after what (tokens, retries, waiting) is told in `conversations`; who sends is in `client`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from inferplane.client import errors
from inferplane.client.sse import ServerEvent
from inferplane.wire import (
    access,
    audit,
    endpoint_keys,
    endpoints,
    gpus,
    paths,
    policies,
    traffic,
    usage,
    workspaces,
)
from inferplane.wire.envelope import Envelope, ErrorBody, ErrorKey
from inferplane.wire.platform import Readiness

ATTEMPTS_MAX = 4
RETRY_PAUSE_SECONDS = (0.1, 0.3, 0.6)
"""Pauses between attempts, one fewer than there may be attempts."""
RETRY_AFTER_SECONDS_MAX = 5.0
"""A server that asks for a longer pause than this is not waited for: its answer is passed on."""
NOT_PROCESSED_HEADER = "x-inferplane-not-processed"
"""Set on a 503 that promises that the request has touched nothing and may be sent again."""

API_READ_SECONDS = 60.0
READY_READ_SECONDS = 3.0
"""Somebody who asks whether a platform is there wants to know soon."""
STREAM_READ_SECONDS = 60.0
"""Streams carry a heartbeat every 15 seconds; silence for four of them is a dead connection."""
PREDICT_READ_SECONDS = 300.0
"""The gateway's own limit, stated in describe, is what normally ends a slow prediction."""
TEXT_SHOWN_CHARACTERS_MAX = 300

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class Resend(Enum):
    """When the same request may be sent again."""

    SAFE = "doing it twice is doing it once"
    ONLY_IF_UNSENT = "only when it surely was not acted on"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Header names are lower case; the body of a stream that began is empty."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """One exchange. `target` is a path of the API, or a whole URL (the gateway's)."""

    method: str
    target: str
    read: Callable[[Answer], T]
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    resend: Resend = Resend.SAFE
    authenticated: bool = True
    stream: bool = False
    read_seconds: float = API_READ_SECONDS

    def with_header(self, name: str, value: str) -> Request[T]:
        """The same with one header more."""
        return replace(self, headers=(*self.headers, (name, value)))


# --- keys and tokens ------------------------------------------------------------------------------


def exchange_key(api_key: str) -> Request[access.AuthToken]:
    """An API key for a token. Raises ConfigurationError for what no key can be."""
    _check_key(api_key, "the API key", "Set INFERPLANE_API_KEY to the key as it was shown when it was made.")
    return Request(
        "POST",
        paths.AUTH,
        reads(access.AuthToken),
        body=msgspec.json.encode(access.AuthRequest(api_key)),
        headers=_JSON,
        authenticated=False,
    )


def create_api_key(body: access.CreateApiKey, idempotency_key: str) -> Request[access.ApiKeyCreated]:
    """A new API key; its value is shown this once."""
    return _write("POST", paths.API_KEY, body, access.ApiKeyCreated, idempotency_key)


def list_api_keys(workspace: str) -> Request[access.ApiKeyList]:
    """All API keys, or one workspace's; values are masked."""
    return _read(paths.API_KEY_LIST, access.ApiKeyList, workspaceName=workspace)


def delete_api_key(key_or_id: str) -> Request[None]:
    """An API key's end, and its tokens'."""
    return _act("DELETE", paths.API_KEY, access.DeleteApiKey(key_or_id))


def create_endpoint_key(
    body: endpoint_keys.CreateEndpointKey, idempotency_key: str
) -> Request[endpoint_keys.EndpointKeyCreated]:
    """A new endpoint key; its value is shown this once."""
    return _write("POST", paths.ENDPOINT_KEY, body, endpoint_keys.EndpointKeyCreated, idempotency_key)


def list_endpoint_keys(workspace: str) -> Request[endpoint_keys.EndpointKeyList]:
    """A workspace's endpoint keys, without their values."""
    return _read(paths.ENDPOINT_KEY_LIST, endpoint_keys.EndpointKeyList, workspace=workspace)


def delete_endpoint_key(key_id: str) -> Request[None]:
    """An endpoint key's end."""
    return _act("DELETE", paths.ENDPOINT_KEY, endpoint_keys.EndpointKeyRef(key_id))


def read_usage(query: Mapping[str, str]) -> Request[usage.UsageList]:
    """What was used of endpoints."""
    return _read(paths.USAGE, usage.UsageList, **query)


def read_usage_csv(query: Mapping[str, str]) -> Request[str]:
    """The same as CSV text."""
    return Request("GET", paths.USAGE, _read_text, query=_query({**query, "format": "csv"}))


# --- workspaces and clusters ----------------------------------------------------------------------


def create_workspace(
    body: workspaces.WriteWorkspace, idempotency_key: str
) -> Request[workspaces.WorkspaceName]:
    """A new workspace."""
    return _write("POST", paths.WORKSPACE, body, workspaces.WorkspaceName, idempotency_key)


def update_workspace(body: workspaces.UpdateWorkspace) -> Request[None]:
    """Other clusters or namespaces for a workspace."""
    return replace(_act("PUT", paths.WORKSPACE, body), resend=Resend.SAFE)


def delete_workspace(name: str, *, force: bool) -> Request[None]:
    """A workspace's end; with `force` of what is in it as well."""
    return _act("DELETE", paths.WORKSPACE, workspaces.DeleteWorkspace(name, force=force or None))


def list_workspaces() -> Request[workspaces.WorkspaceList]:
    """The workspaces that this key may see."""
    return _read(paths.WORKSPACE_LIST, workspaces.WorkspaceList)


def list_clusters() -> Request[workspaces.ClusterList]:
    """The registered clusters."""
    return _read(paths.CLUSTER_LIST, workspaces.ClusterList)


def kube_config(workspace: str, cluster: str = "") -> Request[workspaces.KubeConfig]:
    """A kubeconfig for the workspace."""
    body = workspaces.KubeConfigRequest(workspace, cluster or None)
    return replace(
        _write("POST", paths.WORKSPACE_KUBE_CONFIG, body, workspaces.KubeConfig, ""), resend=Resend.SAFE
    )


def register_cluster(
    body: workspaces.WriteCluster, *, dry_run: bool = False
) -> Request[workspaces.ClusterRegistered]:
    """Make a cluster known, or only look at it."""
    request = _write("POST", paths.CLUSTER, body, workspaces.ClusterRegistered, "")
    resend = Resend.SAFE if dry_run else Resend.ONLY_IF_UNSENT
    return replace(request, query=_query({"dryRun": "true"}) if dry_run else request.query, resend=resend)


def change_cluster(body: workspaces.UpdateCluster) -> Request[workspaces.ClusterRegistered]:
    """Other credentials or settings for a cluster of Kubernetes."""
    request = _write("PUT", paths.CLUSTER, body, workspaces.ClusterRegistered, "")
    return replace(request, resend=Resend.SAFE)


def check_cluster(name: str) -> Request[workspaces.ClusterRegistered]:
    """Look at a cluster of Kubernetes now."""
    body = workspaces.ClusterRef(name)
    return replace(
        _write("POST", paths.CLUSTER_CHECK, body, workspaces.ClusterRegistered, ""), resend=Resend.SAFE
    )


def delete_cluster(name: str) -> Request[None]:
    """Forget a cluster."""
    return _act("DELETE", paths.CLUSTER, workspaces.ClusterRef(name))


# --- GPUs -----------------------------------------------------------------------------------------


def list_inventory() -> Request[gpus.InventoryList]:
    """Every node with GPUs, and who holds them."""
    return _read(paths.INVENTORY_LIST, gpus.InventoryList)


def list_shapes(workspace: str) -> Request[gpus.ShapeList]:
    """The kinds of nodes that a workspace can ask for."""
    return _read(paths.INVENTORY, gpus.ShapeList, sliceName=workspace)


def create_gpr(body: gpus.CreateGpr, idempotency_key: str) -> Request[gpus.GprCreated]:
    """A new GPU request."""
    return _write("POST", paths.GPR, body, gpus.GprCreated, idempotency_key)


def wait_times(body: gpus.CreateGpr) -> Request[gpus.WaitTimeList]:
    """How long such a request would wait, on each kind of node; nothing is stored."""
    return _write("POST", paths.GPR_WAIT_TIME, body, gpus.WaitTimeList, "")


def describe_gpr(gpr_id: str) -> Request[gpus.GprItem]:
    """One GPU request."""
    return _read(paths.GPR, gpus.GprItem, gprId=gpr_id)


def list_gprs(workspace: str) -> Request[gpus.GprList]:
    """A workspace's GPU requests, oldest first."""
    return _read(paths.GPR_LIST, gpus.GprList, sliceName=workspace)


def change_gpr(body: gpus.UpdateGpr) -> Request[None]:
    """Another name, priority or duration. A release is sent again only if it surely was not acted on."""
    resend = Resend.ONLY_IF_UNSENT if body.early_release else Resend.SAFE
    return replace(_act("PUT", paths.GPR, body), resend=resend)


def delete_gpr(gpr_id: str) -> Request[None]:
    """The end of a GPU request that waits, or has ended."""
    return _act("DELETE", paths.GPR, gpus.GprRef(gpr_id))


def create_template(body: gpus.TemplateBody, idempotency_key: str) -> Request[gpus.TemplateName]:
    """A new template of GPU requests."""
    return _write("POST", paths.TEMPLATE, body, gpus.TemplateName, idempotency_key)


def change_template(body: gpus.TemplateBody) -> Request[gpus.TemplateName]:
    """Other values for a template; what is absent stays."""
    return _write("PUT", paths.TEMPLATE, body, gpus.TemplateName, "")


def get_template(name: str) -> Request[gpus.TemplateItem]:
    """One template."""
    return _read(paths.TEMPLATE, gpus.TemplateItem, gprTemplateName=name)


def list_templates() -> Request[gpus.TemplateList]:
    """The templates that this key may use."""
    return _read(paths.TEMPLATE_LIST, gpus.TemplateList)


def delete_template(name: str) -> Request[None]:
    """A template's end."""
    return _act("DELETE", paths.TEMPLATE, gpus.TemplateName(name))


def create_binding(body: gpus.BindingBody) -> Request[gpus.BindingWritten]:
    """Templates for a workspace. Sent a second time, the answer would be "exists already"."""
    request = _write("POST", paths.BINDING, body, gpus.BindingWritten, "")
    return replace(request, resend=Resend.ONLY_IF_UNSENT)


def change_binding(body: gpus.BindingBody) -> Request[gpus.BindingWritten]:
    """Other templates for a workspace."""
    return _write("PUT", paths.BINDING, body, gpus.BindingWritten, "")


def get_binding(workspace: str) -> Request[gpus.BindingItem]:
    """A workspace's templates."""
    return _read(paths.BINDING, gpus.BindingItem, gprTemplateBindingName=workspace)


def list_bindings() -> Request[gpus.BindingList]:
    """The templates of every workspace that this key may see."""
    return _read(paths.BINDING_LIST, gpus.BindingList)


def delete_binding(workspace: str) -> Request[None]:
    """No templates for a workspace any more."""
    return _act("DELETE", paths.BINDING, gpus.BindingName(workspace))


# --- policies and the audit log -------------------------------------------------------------------


def list_policies() -> Request[policies.PolicyList]:
    """What each workspace is allowed."""
    return _read(paths.POLICIES, policies.PolicyList)


def get_policy(workspace: str) -> Request[policies.PolicyEnvelope]:
    """What one workspace is allowed."""
    return _read(_policy_path(workspace), policies.PolicyEnvelope)


def change_policy(workspace: str, body: policies.PolicyBody) -> Request[policies.PolicyEnvelope]:
    """Other limits for a workspace; what is absent stays."""
    return _write("PUT", _policy_path(workspace), body, policies.PolicyEnvelope, "")


def _policy_path(workspace: str) -> str:
    return paths.POLICY.format(workspace=quote(workspace, safe=""))


def list_audit(
    *,
    actor: str = "",
    workspace: str = "",
    kind: str = "",
    since: str = "",
    until: str = "",
    after: int | None = None,
    limit: int | None = None,
) -> Request[audit.AuditList]:
    """Who did what; without `after` the newest entries, with it the next ones behind that number."""
    return _read(
        paths.AUDIT,
        audit.AuditList,
        actor=actor,
        workspace=workspace,
        kind=kind,
        since=since,
        until=until,
        after=_number(after),
        limit=_number(limit),
    )


# --- endpoints ------------------------------------------------------------------------------------


def create_endpoint(
    body: endpoints.CreateEndpoint, idempotency_key: str
) -> Request[endpoints.EndpointCreated]:
    """A new endpoint."""
    return _write("POST", paths.ENDPOINT, body, endpoints.EndpointCreated, idempotency_key)


def try_endpoint(body: endpoints.CreateEndpoint) -> Request[endpoints.Preflight]:
    """The checks that a create would go through; nothing is stored."""
    request = _write("POST", paths.ENDPOINT, body, endpoints.Preflight, "")
    return replace(request, query=(("dryRun", "true"),))


def list_endpoints(
    *, workspace: str, status: str = "", cluster: str = "", model_format: str = "", continue_from: str = ""
) -> Request[endpoints.EndpointList]:
    """One page of endpoints."""
    return _read(
        paths.ENDPOINT_LIST,
        endpoints.EndpointList,
        workspace=workspace,
        status=status,
        cluster=cluster,
        modelName=model_format,
        **{"continue": continue_from},
    )


def describe(name: str, workspace: str, cluster: str = "") -> Request[endpoints.EndpointEnvelope]:
    """One endpoint in full."""
    return _read(
        paths.ENDPOINT, endpoints.EndpointEnvelope, workspace=workspace, endpoint=name, cluster=cluster
    )


def delete_endpoint(name: str, workspace: str, cluster: str = "") -> Request[endpoints.EndpointDeleted]:
    """An endpoint's end. Asked a second time after it is gone, the answer is "not found"."""
    return _act_on(paths.ENDPOINT, name, workspace, cluster, method="DELETE", resend=Resend.ONLY_IF_UNSENT)


def stop_endpoint(name: str, workspace: str, cluster: str = "") -> Request[endpoints.EndpointDeleted]:
    """No servers for an endpoint until it is started again."""
    return _act_on(paths.ENDPOINT_STOP, name, workspace, cluster)


def start_endpoint(name: str, workspace: str, cluster: str = "") -> Request[endpoints.EndpointDeleted]:
    """Servers again for a stopped endpoint."""
    return _act_on(paths.ENDPOINT_START, name, workspace, cluster)


def update_endpoint(
    body: endpoints.UpdateEndpoint, idempotency_key: str
) -> Request[endpoints.EndpointChanged]:
    """Another model, other shares, bounds or limits for an endpoint."""
    return _write("PATCH", paths.ENDPOINT, body, endpoints.EndpointChanged, idempotency_key)


def try_update(body: endpoints.UpdateEndpoint) -> Request[endpoints.Preflight]:
    """What a change would do; nothing is stored."""
    request = _write("PATCH", paths.ENDPOINT, body, endpoints.Preflight, "")
    return replace(request, query=(("dryRun", "true"),))


def promote_endpoint(name: str, workspace: str, cluster: str = "") -> Request[endpoints.EndpointChanged]:
    """All requests for the revision on its way."""
    body = endpoints.EndpointRef(workspace, name, cluster=cluster or None)
    return _write("POST", paths.ENDPOINT_PROMOTE, body, endpoints.EndpointChanged, "")


def roll_back_endpoint(
    name: str, to: int | None, workspace: str, cluster: str = ""
) -> Request[endpoints.EndpointChanged]:
    """An earlier revision again. Never sent twice by itself: the second would go back further."""
    body = endpoints.RollbackRef(workspace, name, cluster=cluster or None, revision=to)
    request = _write("POST", paths.ENDPOINT_ROLLBACK, body, endpoints.EndpointChanged, "")
    return replace(request, resend=Resend.ONLY_IF_UNSENT)


def endpoint_metrics(
    name: str, minutes: int, workspace: str, cluster: str = ""
) -> Request[traffic.EndpointMetrics]:
    """What the gateway saw of an endpoint."""
    return _read(
        paths.ENDPOINT_METRICS,
        traffic.EndpointMetrics,
        workspace=workspace,
        endpoint=name,
        cluster=cluster,
        minutes=str(minutes),
    )


def explain(name: str, workspace: str, cluster: str = "") -> Request[endpoints.Explanation]:
    """What an endpoint waits for, or why it failed."""
    return _read(
        paths.ENDPOINT_EXPLAIN, endpoints.Explanation, workspace=workspace, endpoint=name, cluster=cluster
    )


def list_events(
    name: str, workspace: str, cluster: str = "", *, after: int | None = None, limit: int | None = None
) -> Request[endpoints.EventList]:
    """What happened; without `after` the newest ones, with it the next ones behind that number."""
    return _read(
        paths.ENDPOINT_EVENTS,
        endpoints.EventList,
        workspace=workspace,
        endpoint=name,
        cluster=cluster,
        after=_number(after),
        limit=_number(limit),
    )


def read_logs(
    name: str,
    workspace: str,
    cluster: str = "",
    *,
    replica: str = "",
    previous: bool = False,
    tail: int | None = None,
) -> Request[endpoints.LogList]:
    """The last lines that an endpoint's servers printed."""
    return _read(
        paths.ENDPOINT_LOGS,
        endpoints.LogList,
        **_log_query(name, workspace, cluster, replica, previous, tail),
    )


def follow_logs(
    name: str,
    workspace: str,
    cluster: str = "",
    *,
    replica: str = "",
    previous: bool = False,
    tail: int | None = None,
) -> Request[None]:
    """The same lines as a stream that goes on; read its events with `log_line`."""
    query = _log_query(name, workspace, cluster, replica, previous, tail)
    return _stream(paths.ENDPOINT_LOGS, follow="true", **query)


def watch(workspace: str) -> Request[None]:
    """Endpoints as they change; read its events with `change`."""
    return _stream(paths.ENDPOINT_WATCH, workspace=workspace)


def readiness() -> Request[Readiness]:
    """Which parts of the platform are ready. Answers 503 with the same shape while one is not."""
    return Request(
        "GET",
        paths.READY,
        _read_readiness,
        authenticated=False,
        resend=Resend.ONLY_IF_UNSENT,
        read_seconds=READY_READ_SECONDS,
    )


# --- predictions ----------------------------------------------------------------------------------


def predict(address: str, body: bytes, key: str = "") -> Request[dict[str, Any]]:
    """A V1 prediction at an endpoint's own address. The control plane's token stays at home.

    `key` is an endpoint key, "" for none. Raises ConfigurationError for what no key can be.
    """
    if key:
        _check_key(
            key,
            "the endpoint key",
            "Give the key as it was shown when it was made (--key or INFERPLANE_ENDPOINT_KEY); `inferplane"
            " endpoint-key create` makes another.",
        )
    signed = (("Authorization", f"Bearer {key}"),) if key else ()
    return Request(
        "POST",
        address,
        read_prediction,
        body=body,
        headers=_JSON + signed,
        resend=Resend.ONLY_IF_UNSENT,
        authenticated=False,
        read_seconds=PREDICT_READ_SECONDS,
    )


def infer(address: str, name: str, body: bytes, key: str = "") -> Request[dict[str, Any]]:
    """A V2 (Open Inference) prediction; `address` is the V1 address that describe shows."""
    return predict(f"{address.partition('/v1/models/')[0]}/v2/models/{name}/infer", body, key)


def _check_key(key: str, what: str, next_action: str) -> None:
    """Keys are sent in headers, which take no more than ASCII without blanks. Never says the key itself."""
    wrong = next((index for index, each in enumerate(key, 1) if not "!" <= each <= "~"), None)
    if wrong is not None:
        raise errors.ConfigurationError(
            f"character {wrong} of {what} is one that no key has, so nothing was sent",
            reason="InvalidKey",
            next_action=next_action,
        )


def encode_body(body: Any) -> bytes:
    """JSON for `body`: bytes and text are taken as JSON already, arrays as nested lists.

    Raises InvalidError for what JSON cannot say.
    """
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    try:
        return msgspec.json.encode(body, enc_hook=_as_list)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise errors.InvalidError(f"the body cannot be written as JSON: {error}", reason="NotJson") from error


def _as_list(value: Any) -> Any:
    """Arrays of numpy and its relatives know how to become lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


# --- reading answers ------------------------------------------------------------------------------


def reads(shape: type[S]) -> Callable[[Answer], S]:
    """A reader for answers whose `data` is a `shape`."""

    def read(answer: Answer) -> S:
        envelope = _envelope(answer)
        try:
            return msgspec.json.decode(envelope.data, type=shape)
        except msgspec.DecodeError as error:
            raise errors.ProtocolError(
                f"the platform's answer is not understood: {error}",
                status=answer.status,
                next_action="Use the same version of client and platform.",
            ) from error

    return read


def read_done(answer: Answer) -> None:
    """For calls whose answer says nothing but that it is done."""
    _envelope(answer)


def _read_text(answer: Answer) -> str:
    """An answer that is no JSON; a failure is an envelope all the same."""
    if answer.status != 200:
        _envelope(answer)
    return answer.body.decode("utf-8", "replace")


def read_stream_began(answer: Answer) -> None:
    """For streams: that it began; its events follow."""
    if answer.status != 200:
        _envelope(answer)
        raise errors.ProtocolError(f"a stream was expected, not status {answer.status}", status=answer.status)


def log_line(event: ServerEvent) -> endpoints.LogLineItem | None:
    """A log line, or None for an event that is none. Raises what the stream ended with."""
    _raise_stream_error(event)
    return _event_data(event, endpoints.LogLineItem) if event.name == paths.LOG_LINE else None


def change(event: ServerEvent) -> tuple[str, endpoints.EndpointItem] | None:
    """`("ADDED" | "MODIFIED" | "DELETED", endpoint)`, or None for an event that is none of them."""
    _raise_stream_error(event)
    if event.name not in {paths.ADDED, paths.MODIFIED, paths.DELETED}:
        return None
    return event.name, _event_data(event, endpoints.EndpointItem)


def read_prediction(answer: Answer) -> dict[str, Any]:
    """The model's answer. What says no here is the gateway or the model server, without envelope."""
    if answer.status != 200:
        raise _refusal(answer)
    try:
        value = msgspec.json.decode(answer.body)
    except msgspec.DecodeError as error:
        raise errors.ProtocolError("the model's answer is not JSON", status=answer.status) from error
    if not isinstance(value, dict):
        raise errors.ProtocolError("the model's answer is not a JSON object", status=answer.status)
    return value


def retry_pause(request: Request[Any], answer: Answer, attempt: int) -> float | None:
    """Seconds to wait before sending `request` again, or None when `answer` is what the caller gets.

    `attempt` counts from 1. Only "busy" answers are worth a second try, and only where trying again
    cannot do the same thing twice.
    """
    if attempt >= ATTEMPTS_MAX or answer.status not in {429, 503}:
        return None
    untouched = answer.status == 429 or answer.headers.get(NOT_PROCESSED_HEADER) == "1"
    if request.resend is Resend.ONLY_IF_UNSENT and not untouched:
        return None
    asked = answer.headers.get("retry-after", "")
    pause = float(asked) if asked.isascii() and asked.isdigit() else 0.0
    if pause > RETRY_AFTER_SECONDS_MAX:
        return None
    return max(pause, RETRY_PAUSE_SECONDS[attempt - 1])


def _envelope(answer: Answer) -> Envelope:
    """The envelope of a success. Raises the error that a failure carries."""
    try:
        envelope = msgspec.json.decode(answer.body, type=Envelope)
    except msgspec.DecodeError as error:
        if answer.status != 200:
            raise _refusal(answer) from error
        raise errors.ProtocolError(
            "what answers is not an Inferplane API",
            status=answer.status,
            next_action="Check the address (INFERPLANE_API_URL).",
        ) from error
    if answer.status == 200 and envelope.status_code == 200:
        return envelope
    raise _error(answer, envelope.message, envelope.error or ErrorBody(envelope.status, envelope.message))


_BY_KEY: Mapping[str, type[errors.ApiError]] = {
    ErrorKey.UNAUTHENTICATED: errors.UnauthenticatedError,
    ErrorKey.FORBIDDEN: errors.ForbiddenError,
    ErrorKey.NOT_FOUND: errors.NotFoundError,
    ErrorKey.ALREADY_EXISTS: errors.AlreadyExistsError,
    ErrorKey.CONFLICT: errors.ConflictError,
    ErrorKey.INVALID: errors.InvalidError,
    ErrorKey.QUOTA_EXCEEDED: errors.QuotaExceededError,
    ErrorKey.PAYLOAD_TOO_LARGE: errors.PayloadTooLargeError,
    ErrorKey.RATE_LIMITED: errors.RateLimitedError,
    ErrorKey.UNAVAILABLE: errors.UnavailableError,
    ErrorKey.INTERNAL: errors.ServerError,
}
_BY_STATUS: Mapping[int, type[errors.ApiError]] = {
    400: errors.InvalidError,
    401: errors.UnauthenticatedError,
    403: errors.ForbiddenError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    413: errors.PayloadTooLargeError,
    422: errors.InvalidError,
    429: errors.RateLimitedError,
    503: errors.UnavailableError,
    504: errors.AnswerTimeoutError,
}


def _by_status(status: int) -> type[errors.ApiError]:
    return _BY_STATUS.get(status, errors.ServerError if status >= 500 else errors.ApiError)


def _error(answer: Answer, message: str, body: ErrorBody) -> errors.ApiError:
    kind = _BY_KEY.get(body.error_key, _by_status(answer.status))
    return kind(
        body.message or message or f"the platform answered {answer.status}",
        status=answer.status,
        reason=body.reason or body.error_key,
        field=body.field,
        next_action=body.next_action,
        request_id=body.request_id or _request_id(answer),
        details=tuple(errors.Detail(each.field, each.reason, each.message) for each in body.details),
    )


def _refusal(answer: Answer) -> errors.ApiError:
    """An error from a failure without our envelope: `{"error": "…"}`, or any text."""
    message = _shown(answer.body.decode("utf-8", "replace"))
    reason = next_action = ""
    try:
        value = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        if message.startswith("<"):  # some proxy's page; nobody wants to read that in a terminal
            message = ""
    else:
        if isinstance(value, dict):
            said = value.get("error") or value.get("message") or value.get("detail")
            nested = said if isinstance(said, dict) else value
            message = _shown(str(nested.get("message", "")) if isinstance(said, dict) else str(said or ""))
            reason = str(nested.get("reason") or value.get("reason") or "")
            next_action = str(nested.get("nextAction") or value.get("nextAction") or "")
    return _by_status(answer.status)(
        message or f"the answer was HTTP status {answer.status}",
        status=answer.status,
        reason=reason,
        next_action=next_action,
        request_id=_request_id(answer),
    )


def _shown(text: str) -> str:
    text = text.strip()
    return text if len(text) <= TEXT_SHOWN_CHARACTERS_MAX else f"{text[:TEXT_SHOWN_CHARACTERS_MAX]}…"


def _request_id(answer: Answer) -> str:
    return answer.headers.get(paths.REQUEST_ID_HEADER.lower(), "")


def _read_readiness(answer: Answer) -> Readiness:
    """`/readyz` answers with or without the envelope's other keys, and 503 is an answer too."""
    try:
        envelope = msgspec.json.decode(answer.body, type=Envelope)
        source: bytes | msgspec.Raw = envelope.data
        if answer.status != 200 and envelope.error is not None:
            raise _error(answer, envelope.message, envelope.error)
    except msgspec.DecodeError:
        source = answer.body
    try:
        return msgspec.json.decode(source, type=Readiness)
    except msgspec.DecodeError as error:
        raise errors.ProtocolError("what answers is not an Inferplane API", status=answer.status) from error


def _raise_stream_error(event: ServerEvent) -> None:
    if event.name == paths.STREAM_ERROR:
        body = _event_data(event, ErrorBody)
        raise errors.ServerError(body.message, reason=body.reason, next_action=body.next_action)


def _event_data(event: ServerEvent, shape: type[S]) -> S:
    try:
        return msgspec.json.decode(event.data, type=shape)
    except msgspec.DecodeError as error:
        raise errors.ProtocolError(f"an event of the stream is not understood: {error}") from error


# --- building requests ----------------------------------------------------------------------------

_JSON: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)


def _read(path: str, shape: type[S], **query: str) -> Request[S]:
    return Request("GET", path, reads(shape), query=_query(query))


def _stream(path: str, **query: str) -> Request[None]:
    return Request(
        "GET",
        path,
        read_stream_began,
        query=_query(query),
        headers=(("Accept", "text/event-stream"),),
        stream=True,
        read_seconds=STREAM_READ_SECONDS,
    )


def _write(method: str, path: str, body: msgspec.Struct, shape: type[S], idempotency_key: str) -> Request[S]:
    """Something new: with an idempotency key the platform recognises the second copy of a request."""
    if not idempotency_key.isascii() or not idempotency_key.isprintable():
        raise errors.InvalidError(
            "an idempotency key is sent in a header, which takes only printable ASCII",
            reason="Invalid",
            field="idempotency_key",
        )
    known = ((paths.IDEMPOTENCY_KEY_HEADER, idempotency_key),) if idempotency_key else ()
    return Request(method, path, reads(shape), body=msgspec.json.encode(body), headers=_JSON + known)


def _act(method: str, path: str, body: msgspec.Struct) -> Request[None]:
    return Request(
        method,
        path,
        read_done,
        body=msgspec.json.encode(body),
        headers=_JSON,
        resend=Resend.ONLY_IF_UNSENT,
    )


def _act_on(
    path: str,
    name: str,
    workspace: str,
    cluster: str,
    *,
    method: str = "POST",
    resend: Resend = Resend.SAFE,
) -> Request[endpoints.EndpointDeleted]:
    body = endpoints.EndpointRef(workspace=workspace, endpoint=name, cluster=cluster or None)
    return Request(
        method,
        path,
        reads(endpoints.EndpointDeleted),
        body=msgspec.json.encode(body),
        headers=_JSON,
        resend=resend,
    )


def _query(values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in values.items() if value)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _log_query(
    name: str, workspace: str, cluster: str, replica: str, previous: bool, tail: int | None
) -> dict[str, str]:
    return {
        "workspace": workspace,
        "endpoint": name,
        "cluster": cluster,
        "replica": replica,
        "previous": "true" if previous else "",
        "tail": _number(tail),
    }


def origin_of(url: str) -> str:
    """`scheme://host:port` of a URL, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
